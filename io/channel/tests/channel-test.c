/*
 * channel-test.c - pairs of channels, and operations on them as coroutines
 */
#include "io/channel/tests/channel-test.h"

#include <fcntl.h>
#include <netinet/in.h>

#include "io/channel/channel-file.h"

static Channel *adopted(int fd)
{
    Error err = { 0 };
    Channel *ch = channel_socket_adopt(fd, &err);

    if (!ch) {
        test_fail_abort(__FILE__, __LINE__, "%s", err.msg);
    }
    return ch;
}

void pair_unix(Channel *ends[2])
{
    int fds[2];

    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    ends[0] = adopted(fds[0]);
    ends[1] = adopted(fds[1]);
}

void pair_tcp(Channel *ends[2])
{
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    socklen_t len = sizeof(in);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    ASSERT_EQ(bind(listener, (struct sockaddr *)&in, len), 0);
    ASSERT_EQ(listen(listener, 1), 0);
    ASSERT_EQ(getsockname(listener, (struct sockaddr *)&in, &len), 0);
    ASSERT_EQ(connect(fd, (struct sockaddr *)&in, len), 0);
    ends[0] = adopted(fd);
    ends[1] = adopted(accept(listener, NULL, NULL));
    close(listener);
}

void pair_buffer(Channel *ends[2])
{
    ASSERT_EQ(channel_buffer_pair(10000, 0, ends, NULL), 0);
}

void pair_pipes(Channel *ends[2])
{
    int there[2], back[2];

    ASSERT_EQ(pipe2(there, O_CLOEXEC), 0);
    ASSERT_EQ(pipe2(back, O_CLOEXEC), 0);
    ends[0] = channel_file_adopt(back[0], there[1], "pipe 0", NULL);
    ends[1] = channel_file_adopt(there[0], back[1], "pipe 1", NULL);
    ASSERT_TRUE(ends[0] && ends[1]);
}

static co_fn void handshake_entry(void *opaque)
{
    TlsEnd *end = opaque;

    end->ch = channel_tls_co_handshake(end->lower, end->creds, end->hostname, end->deadline_ns,
                                       &end->err);
    if (end->ch) {
        channel_unref(end->lower);
        end->lower = NULL;
    }
    end->done = true;
}

void tls_end_start(TlsEnd *end)
{
    test_spawn(handshake_entry, end);
}

void tls_handshake(AioContext *ctx, TlsEnd *client, TlsEnd *server)
{
    tls_end_start(client);
    tls_end_start(server);
    AIO_WAIT_WHILE(ctx, !client->done || !server->done);
}

static TlsCreds *psk_creds(TlsRole role)
{
    char path[] = "/tmp/penstock-psk-XXXXXX";
    static const char line[] = "user:0123456789abcdef0123456789abcdef\n";
    Error err = { 0 };
    int fd = mkstemp(path);

    ASSERT_EQ(write(fd, line, strlen(line)), strlen(line));
    close(fd);
    TlsCreds *creds = tls_creds_create_psk(role, path, "user", &err);

    unlink(path);
    if (!creds) {
        test_fail_abort(__FILE__, __LINE__, "%s", err.msg);
    }
    return creds;
}

void pair_tls(Channel *ends[2])
{
    static TlsCreds *client_creds, *server_creds;
    Channel *lower[2];

    if (!client_creds) {
        client_creds = psk_creds(TLS_CLIENT);
        server_creds = psk_creds(TLS_SERVER);
    }
    pair_unix(lower);
    TlsEnd client = { .lower = lower[0], .creds = client_creds, .deadline_ns = -1 };
    TlsEnd server = { .lower = lower[1], .creds = server_creds, .deadline_ns = -1 };

    tls_handshake(aio_current(), &client, &server);
    if (!client.ch || !server.ch) {
        test_fail_abort(__FILE__, __LINE__, "%s; %s", client.err.msg, server.err.msg);
    }
    ends[0] = client.ch;
    ends[1] = server.ch;
}

ssize_t pair_cut_off(PairFn *pair_fn)
{
    return pair_fn == pair_tls ? -ECONNABORTED : 0;
}

void test_spawn(CoroutineEntry *entry, void *opaque)
{
    Coroutine *co = co_create(entry, opaque);

    ASSERT_TRUE(co);
    co_enter(co);
}

void test_settle(AioContext *ctx)
{
    for (int quiet = 0; quiet < 3;) {
        quiet = aio_poll(ctx, false) ? 0 : quiet + 1;
    }
}

static char pattern_byte(uint64_t at)
{
    return (char)((at * 0x9e3779b97f4a7c15ULL) >> 56);
}

void test_pattern(char *buf, uint64_t offset, size_t len_bytes)
{
    for (size_t i = 0; i < len_bytes; i++) {
        buf[i] = pattern_byte(offset + i);
    }
}

bool test_pattern_matches(const char *buf, uint64_t offset, size_t len_bytes)
{
    for (size_t i = 0; i < len_bytes; i++) {
        if (buf[i] != pattern_byte(offset + i)) {
            return false;
        }
    }
    return true;
}

/* --- operations --- */

static co_fn void read_entry(void *opaque)
{
    Op *op = opaque;

    op->ret = channel_co_read(op->ch, op->buf, op->len_bytes);
    op->done = true;
}

static co_fn void read_full_entry(void *opaque)
{
    Op *op = opaque;

    op->ret = channel_co_read_full(op->ch, op->buf, op->len_bytes);
    op->done = true;
}

static co_fn void write_full_entry(void *opaque)
{
    Op *op = opaque;

    op->ret = channel_co_write_full(op->ch, op->buf, op->len_bytes);
    op->done = true;
}

static co_fn void half_close_entry(void *opaque)
{
    Op *op = opaque;

    op->ret = channel_co_half_close(op->ch);
    op->done = true;
}

static co_fn void wait_readable_entry(void *opaque)
{
    Op *op = opaque;

    op->ret = channel_yield(op->ch, CHANNEL_READ);
    op->done = true;
}

static void op_start(Op *op, CoroutineEntry *entry)
{
    op->done = false;
    test_spawn(entry, op);
}

void op_read(Op *op)
{
    op_start(op, read_entry);
}

void op_read_full(Op *op)
{
    op_start(op, read_full_entry);
}

void op_write_full(Op *op)
{
    op_start(op, write_full_entry);
}

void op_half_close(Op *op)
{
    op_start(op, half_close_entry);
}

void op_wait_readable(Op *op)
{
    op_start(op, wait_readable_entry);
}
