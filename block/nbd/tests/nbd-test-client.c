/*
 * nbd-test-client.c - see nbd-test-client.h
 */
#include "block/nbd/tests/nbd-test-client.h"

#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "io/base/log.h"

#define RECEIVE_TIMEOUT_S 20

/* --- what is logged about clients --- */

static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static char logged[16384]; /* under log_lock */

void __wrap_log_limited(LogLimit *limit, LogLevel level, const char *area, const char *fmt, ...)
    PRINTF(4, 5);

/* In the place of log.c's: see meson.build. */
void __wrap_log_limited(LogLimit *limit, LogLevel level, const char *area, const char *fmt, ...)
{
    size_t len;
    va_list ap;

    pthread_mutex_lock(&log_lock);
    len = strlen(logged);
    va_start(ap, fmt);
    vsnprintf(logged + len, sizeof(logged) - len, fmt, ap);
    va_end(ap);
    pthread_mutex_unlock(&log_lock);
}

bool test_logged(const char *text)
{
    bool found;

    pthread_mutex_lock(&log_lock);
    found = text ? strstr(logged, text) != NULL : logged[0] != '\0';
    pthread_mutex_unlock(&log_lock);
    return found;
}

/* --- system calls --- */

static _Atomic unsigned nb_sends;

ssize_t __real_sendmsg(int fd, const struct msghdr *msg, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *msg, int flags);

ssize_t __wrap_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    atomic_fetch_add(&nb_sends, 1);
    return __real_sendmsg(fd, msg, flags);
}

unsigned bench_nb_sends(void)
{
    return atomic_load(&nb_sends);
}

/* --- the server --- */

void bench_init(Bench *bench, const BenchConfig *config)
{
    NbdServerParams params = config->params;
    MemConfig mem = config->mem;
    AioContext *contexts[BENCH_IOTHREADS_MAX];
    Error err;

    memset(bench, 0, sizeof(*bench));
    signal(SIGPIPE, SIG_IGN);
    bench->main = aio_context_create("main", NULL, &err);
    ASSERT_TRUE(bench->main != NULL);
    aio_context_enter(bench->main);
    aio_context_set_main(bench->main);
    bench->nb_iothreads = config->nb_iothreads ? config->nb_iothreads : 1;
    for (unsigned i = 0; i < bench->nb_iothreads; i++) {
        bench->iothreads[i] = iothread_create("nbd", NULL, &err);
        ASSERT_TRUE(bench->iothreads[i] != NULL);
        contexts[i] = iothread_context(bench->iothreads[i]);
    }
    mem.length_bytes = mem.length_bytes ? mem.length_bytes : DISK_BYTES;
    mem_open(&bench->mem, &mem);
    params.contexts = contexts;
    params.nb_contexts = bench->nb_iothreads;
    bench->server = nbd_server_create(&params, &err);
    ASSERT_TRUE(bench->server != NULL);
    NbdExportParams export = {
        .name = "disk",
        .description = "a disk",
        .blk = bench->mem.blk,
        .read_only = config->read_only,
    };

    if (!config->no_export) {
        ASSERT_EQ(nbd_server_add_export(bench->server, &export, &err), 0);
    }
}

void bench_wait_connections(Bench *bench, unsigned nb)
{
    while (nbd_server_nb_connections(bench->server) != nb) {
        aio_poll(bench->main, false);
        sched_yield();
    }
}

void bench_wait_idle(Bench *bench)
{
    bench_wait_connections(bench, 0);
}

void bench_finish(Bench *bench)
{
    bench_wait_idle(bench);
    nbd_server_destroy(bench->server);
    EXPECT_EQ(mem_close(&bench->mem), 0);
    EXPECT_EQ(bench->mem.stats.violations, 0u);
    for (unsigned i = 0; i < bench->nb_iothreads; i++) {
        iothread_unref(bench->iothreads[i]);
    }
    aio_poll(bench->main, false);
    aio_context_enter(NULL);
    aio_context_set_main(NULL);
    aio_context_destroy(bench->main);
}

void bench_wait_parked(Bench *bench, unsigned nb)
{
    while (mem_nb_parked(&bench->mem) < nb) {
        sched_yield();
    }
}

static co_fn void serve_entry(void *opaque)
{
    void **args = opaque;
    NbdServer *server = args[0];
    Channel *ch = args[1];

    free(args);
    nbd_server_co_serve(server, ch);
}

int client_connect(Bench *bench)
{
    struct timeval timeout = { .tv_sec = RECEIVE_TIMEOUT_S };
    void **args = calloc(2, sizeof(*args));
    Error err;
    int fds[2];

    ASSERT_TRUE(args != NULL);
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    ASSERT_EQ(setsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)), 0);
    ASSERT_EQ(setsockopt(fds[0], SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)), 0);
    args[0] = bench->server;
    args[1] = channel_socket_adopt(fds[1], &err);
    ASSERT_TRUE(args[1] != NULL);
    Coroutine *co = co_create(serve_entry, args);

    ASSERT_TRUE(co != NULL);
    co_enter(co); /* it is counted now, or turned away */
    return fds[0];
}

/* --- bytes --- */

void client_send(int fd, const void *buf, size_t len_bytes)
{
    for (size_t done = 0; done < len_bytes;) {
        ssize_t ret = send(fd, (const char *)buf + done, len_bytes - done, MSG_NOSIGNAL);

        ASSERT_TRUE(ret > 0);
        done += (size_t)ret;
    }
}

void client_receive(int fd, void *buf, size_t len_bytes)
{
    if (len_bytes > 0) {
        ASSERT_EQ(recv(fd, buf, len_bytes, MSG_WAITALL), (ssize_t)len_bytes);
    }
}

bool client_sees_end(int fd)
{
    char buf[4096];
    ssize_t ret;

    while ((ret = recv(fd, buf, sizeof(buf), 0)) > 0) {
    }
    return ret == 0 || errno == ECONNRESET;
}

/* --- handshake --- */

void client_greet(int fd, uint32_t flags)
{
    uint8_t greeting[NBD_GREETING_BYTES], buf[NBD_CLIENT_FLAGS_BYTES];
    uint16_t server_flags = 0;

    client_receive(fd, greeting, sizeof(greeting));
    ASSERT_EQ(nbd_greeting_decode(greeting, &server_flags), 0);
    ASSERT_EQ(server_flags, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    nbd_put_be32(buf, flags);
    client_send(fd, buf, sizeof(buf));
}

void client_option(int fd, uint32_t option, const void *data, size_t len_bytes)
{
    uint8_t head[NBD_OPTION_BYTES];
    NbdOptionHeader header = { option, (uint32_t)len_bytes };

    nbd_option_encode(head, &header);
    client_send(fd, head, sizeof(head));
    client_send(fd, data, len_bytes);
}

uint32_t client_option_reply(int fd, uint32_t option, char buf[REPLY_BYTES_MAX], uint32_t *ret_len)
{
    uint8_t head[NBD_OPTION_REPLY_BYTES];
    NbdOptionReply reply;

    client_receive(fd, head, sizeof(head));
    ASSERT_EQ(nbd_option_reply_decode(head, &reply), 0);
    ASSERT_EQ(reply.option, option);
    ASSERT_TRUE(reply.len_bytes < REPLY_BYTES_MAX);
    client_receive(fd, buf, reply.len_bytes);
    buf[reply.len_bytes] = '\0';
    *ret_len = reply.len_bytes;
    return reply.type;
}

uint32_t client_option_type(int fd, uint32_t option)
{
    char buf[REPLY_BYTES_MAX];
    uint32_t len;

    return client_option_reply(fd, option, buf, &len);
}

void client_expect_option(int fd, uint32_t option, uint32_t type)
{
    client_option(fd, option, NULL, 0);
    ASSERT_EQ(client_option_type(fd, option), type);
}

void client_send_go(int fd, uint32_t option, const char *name, uint32_t infos)
{
    uint8_t buf[NBD_GO_BYTES_MAX];
    NbdGo go = { .name = { name, (uint32_t)strlen(name) }, .infos = infos };

    client_option(fd, option, buf, nbd_go_encode(buf, &go));
}

void client_send_meta(int fd, uint32_t option, const char *name, const char *query)
{
    uint8_t buf[NBD_META_QUERY_BYTES_MAX];
    uint32_t name_bytes = (uint32_t)strlen(name);
    size_t len_bytes = 4 + name_bytes + 4;

    nbd_put_be32(buf, name_bytes);
    memcpy(buf + 4, name, name_bytes);
    nbd_put_be32(buf + 4 + name_bytes, query ? 1 : 0);
    if (query) {
        nbd_put_be32(buf + len_bytes, (uint32_t)strlen(query));
        memcpy(buf + len_bytes + 4, query, strlen(query));
        len_bytes += 4 + strlen(query);
    }
    client_option(fd, option, buf, len_bytes);
}

NbdExportInfo client_go(int fd, const char *name)
{
    char buf[REPLY_BYTES_MAX];
    NbdExportInfo info = { 0 };
    uint32_t len;

    client_send_go(fd, NBD_OPT_GO, name, 0);
    ASSERT_EQ(client_option_reply(fd, NBD_OPT_GO, buf, &len), NBD_REP_INFO);
    ASSERT_EQ(nbd_info_export_decode((uint8_t *)buf, len, &info), 0);
    ASSERT_EQ(client_option_type(fd, NBD_OPT_GO), NBD_REP_ACK);
    return info;
}

NbdExportInfo client_enter(int fd, NbdHeaders headers)
{
    client_greet(fd, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    if (headers != NBD_HEADERS_SIMPLE) {
        client_expect_option(fd,
                             headers == NBD_HEADERS_STRUCTURED ? NBD_OPT_STRUCTURED_REPLY
                                                               : NBD_OPT_EXTENDED_HEADERS,
                             NBD_REP_ACK);
        client_send_meta(fd, NBD_OPT_SET_META_CONTEXT, "disk", NBD_CONTEXT_BASE_ALLOCATION);
        ASSERT_EQ(client_option_type(fd, NBD_OPT_SET_META_CONTEXT), NBD_REP_META_CONTEXT);
        ASSERT_EQ(client_option_type(fd, NBD_OPT_SET_META_CONTEXT), NBD_REP_ACK);
    }
    return client_go(fd, "disk");
}

int client_open(Bench *bench, NbdHeaders headers)
{
    int fd = client_connect(bench);

    (void)client_enter(fd, headers);
    return fd;
}

/* --- transmission --- */

void client_request(int fd, NbdHeaders headers, uint16_t type, uint16_t flags, uint64_t cookie,
                    uint64_t offset_bytes, uint64_t len_bytes)
{
    uint8_t buf[NBD_EXTENDED_REQUEST_BYTES];
    NbdRequest req = { .flags = flags,
                       .type = type,
                       .cookie = cookie,
                       .offset_bytes = offset_bytes,
                       .len_bytes = len_bytes };

    client_send(fd, buf, nbd_request_encode(buf, headers, &req));
}

NbdReply client_reply(int fd, NbdHeaders headers)
{
    uint8_t buf[NBD_REPLY_BYTES_MAX];
    NbdReply reply = { 0 };

    client_receive(fd, buf, NBD_SIMPLE_REPLY_BYTES);
    size_t len_bytes = nbd_reply_bytes(buf, headers);

    ASSERT_TRUE(len_bytes >= NBD_SIMPLE_REPLY_BYTES);
    client_receive(fd, buf + NBD_SIMPLE_REPLY_BYTES, len_bytes - NBD_SIMPLE_REPLY_BYTES);
    nbd_reply_decode(buf, &reply);
    return reply;
}

static uint32_t receive_error_chunk(int fd, const NbdReply *reply)
{
    uint8_t buf[NBD_CHUNK_ERROR_BYTES + NBD_STRING_BYTES];

    ASSERT_TRUE(reply->payload_bytes >= NBD_CHUNK_ERROR_BYTES &&
                reply->payload_bytes <= sizeof(buf));
    client_receive(fd, buf, reply->payload_bytes);
    EXPECT_EQ(NBD_CHUNK_ERROR_BYTES + nbd_get_be16(buf + 4), reply->payload_bytes);
    EXPECT_NE(nbd_get_be32(buf), 0u);
    return nbd_get_be32(buf);
}

uint32_t client_error(int fd, NbdHeaders headers, uint64_t cookie)
{
    NbdReply reply = client_reply(fd, headers);

    EXPECT_EQ(reply.cookie, cookie);
    if (reply.simple) {
        EXPECT_NE(headers, NBD_HEADERS_EXTENDED);
        return reply.error;
    }
    EXPECT_EQ(reply.flags, NBD_REPLY_FLAG_DONE);
    if (reply.type == NBD_REPLY_TYPE_ERROR) {
        return receive_error_chunk(fd, &reply);
    }
    EXPECT_EQ(reply.type, NBD_REPLY_TYPE_NONE);
    EXPECT_EQ(reply.payload_bytes, 0u);
    return 0;
}

uint32_t client_run(int fd, NbdHeaders headers, uint16_t type, uint16_t flags,
                    uint64_t offset_bytes, uint64_t len_bytes)
{
    client_request(fd, headers, type, flags, 77, offset_bytes, len_bytes);
    return client_error(fd, headers, 77);
}

uint32_t client_write(int fd, NbdHeaders headers, uint16_t flags, uint64_t offset_bytes,
                      const void *buf, size_t len_bytes)
{
    flags |= headers == NBD_HEADERS_EXTENDED ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;
    client_request(fd, headers, NBD_CMD_WRITE, flags, 99, offset_bytes, len_bytes);
    client_send(fd, buf, len_bytes);
    return client_error(fd, headers, 99);
}

/* A chunk of a read that is no error; returns the bytes that it is about. */
static uint64_t receive_piece(int fd, const NbdReply *reply, uint64_t offset_bytes, uint8_t *buf,
                              size_t len_bytes, uint64_t *holes)
{
    uint8_t head[NBD_OFFSET_HOLE_BYTES];
    bool hole = reply->type == NBD_REPLY_TYPE_OFFSET_HOLE;
    size_t head_bytes = hole ? NBD_OFFSET_HOLE_BYTES : NBD_OFFSET_DATA_BYTES;
    uint64_t at, piece_bytes;

    ASSERT_TRUE(hole || reply->type == NBD_REPLY_TYPE_OFFSET_DATA);
    client_receive(fd, head, head_bytes);
    at = nbd_get_be64(head);
    piece_bytes = hole ? nbd_get_be32(head + 8) : reply->payload_bytes - head_bytes;
    ASSERT_TRUE(piece_bytes > 0 && at >= offset_bytes &&
                at + piece_bytes <= offset_bytes + len_bytes);
    if (hole) {
        memset(buf + (at - offset_bytes), 0, piece_bytes);
        *holes += piece_bytes;
    } else {
        client_receive(fd, buf + (at - offset_bytes), piece_bytes);
    }
    return piece_bytes;
}

uint32_t client_read(int fd, NbdHeaders headers, uint16_t flags, uint64_t offset_bytes, void *buf,
                     size_t len_bytes, uint64_t *ret_holes)
{
    uint64_t done_bytes = 0, holes = 0;
    NbdReply reply = { 0 };

    client_request(fd, headers, NBD_CMD_READ, flags, 55, offset_bytes, len_bytes);
    if (headers == NBD_HEADERS_SIMPLE) {
        reply = client_reply(fd, headers);
        EXPECT_EQ(reply.cookie, 55u);
        client_receive(fd, buf, reply.error ? 0 : len_bytes);
        return reply.error;
    }
    while (!(reply.flags & NBD_REPLY_FLAG_DONE)) {
        reply = client_reply(fd, headers);
        EXPECT_EQ(reply.cookie, 55u);
        ASSERT_FALSE(reply.simple);
        if (reply.type == NBD_REPLY_TYPE_ERROR) {
            EXPECT_EQ(reply.flags, NBD_REPLY_FLAG_DONE);
            return receive_error_chunk(fd, &reply);
        }
        if (headers == NBD_HEADERS_EXTENDED) {
            EXPECT_EQ(reply.offset_bytes, offset_bytes);
        }
        done_bytes += receive_piece(fd, &reply, offset_bytes, buf, len_bytes, &holes);
    }
    EXPECT_EQ(done_bytes, len_bytes);
    if (ret_holes) {
        *ret_holes = holes;
    }
    return 0;
}
