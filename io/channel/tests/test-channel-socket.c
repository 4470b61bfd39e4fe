/*
 * test-channel-socket.c - passed descriptors, adopting, connecting
 */
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "io/channel/resolve.h"
#include "io/channel/tests/channel-test.h"

/* --- passed descriptors --- */

/* Send with @nb times the descriptor, by hand: the channel itself would not send too many. */
static void send_fd(int sock, const char *bytes, size_t len_bytes, int fd, unsigned nb)
{
    struct iovec iov = { (void *)bytes, len_bytes };
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * 64)] = { 0 };
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = CMSG_SPACE(sizeof(int) * nb),
    };
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(int) * nb);
    for (unsigned i = 0; i < nb; i++) {
        memcpy(CMSG_DATA(cmsg) + i * sizeof(int), &fd, sizeof(int));
    }
    ASSERT_EQ(sendmsg(sock, &msg, 0), len_bytes);
}

static void send_fds(int sock, const char *bytes, size_t len_bytes, unsigned nb)
{
    int fd = memfd_create("passed", MFD_CLOEXEC); /* of a kind that is closed at once */

    send_fd(sock, bytes, len_bytes, fd, nb);
    close(fd);
}

typedef struct FdsOp {
    Channel *ch;
    char buf[64];
    size_t len_bytes;
    ChannelFds fds;
    int ret;
    bool done;
} FdsOp;

static co_fn void read_fds_entry(void *opaque)
{
    FdsOp *op = opaque;
    struct iovec iov = { op->buf, op->len_bytes };

    op->ret = channel_co_readv_full(op->ch, &iov, 1, &op->fds);
    op->done = true;
}

static co_fn void write_fds_entry(void *opaque)
{
    FdsOp *op = opaque;
    struct iovec iov = { op->buf, op->len_bytes };

    op->ret = channel_co_writev_full(op->ch, &iov, 1, &op->fds);
    op->done = true;
}

typedef struct Raw {
    AioContext *ctx;
    Channel *ch;
    int peer;
    unsigned nb_fds_before;
} Raw;

static Raw raw_open(void)
{
    Raw raw = { .ctx = test_context(NULL) };
    int fds[2];

    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    raw.ch = channel_socket_adopt(fds[0], NULL);
    raw.peer = fds[1];
    raw.nb_fds_before = test_count_fds();
    return raw;
}

static void raw_close(Raw *raw)
{
    EXPECT_EQ(test_count_fds(), raw->nb_fds_before);
    channel_unref(raw->ch);
    close(raw->peer);
    aio_context_destroy(raw->ctx);
}

TEST(channel_socket, descriptors_arrive_with_their_bytes)
{
    AioContext *ctx = test_context(NULL);
    unsigned before = test_count_fds();
    Channel *ends[2];
    struct stat sent, got;

    pair_unix(ends);
    FdsOp out = { .ch = ends[0], .buf = "x", .len_bytes = 1 };
    FdsOp in = { .ch = ends[1], .len_bytes = 1 };

    out.fds.nb = 3;
    for (int i = 0; i < 3; i++) {
        out.fds.fds[i] = memfd_create("passed", MFD_CLOEXEC);
        ASSERT_EQ(ftruncate(out.fds.fds[i], 100 + i), 0);
    }
    test_spawn(write_fds_entry, &out);
    EXPECT_EQ(out.ret, 0);
    test_spawn(read_fds_entry, &in);
    AIO_WAIT_WHILE(ctx, !in.done);
    EXPECT_EQ(in.ret, 1);
    ASSERT_EQ(in.fds.nb, 3);
    for (int i = 0; i < 3; i++) {
        ASSERT_EQ(fstat(out.fds.fds[i], &sent), 0);
        ASSERT_EQ(fstat(in.fds.fds[i], &got), 0);
        EXPECT_EQ(got.st_ino, sent.st_ino);
        EXPECT_EQ(got.st_size, 100 + i);
        EXPECT_EQ(fcntl(in.fds.fds[i], F_GETFD), FD_CLOEXEC);
    }
    /* one is taken over, the others are closed with the list */
    int kept = take_fd(&in.fds.fds[1]);

    channel_fds_close(&in.fds);
    EXPECT_EQ(in.fds.nb, 0);
    EXPECT_EQ(fstat(kept, &got), 0);
    close(kept);
    channel_fds_close(&out.fds);
    channel_unref(ends[0]);
    channel_unref(ends[1]);
    EXPECT_EQ(test_count_fds(), before);
    aio_context_destroy(ctx);
}

TEST(channel_socket, descriptors_of_short_reads_add_up)
{
    Raw raw = raw_open();
    FdsOp in = { .ch = raw.ch, .len_bytes = 6 };

    test_spawn(read_fds_entry, &in);
    send_fds(raw.peer, "ab", 2, 3);
    test_settle(raw.ctx);
    ASSERT_EQ(write(raw.peer, "c", 1), 1);
    test_settle(raw.ctx);
    EXPECT_FALSE(in.done);
    send_fds(raw.peer, "def", 3, CHANNEL_FDS_MAX - 3);
    AIO_WAIT_WHILE(raw.ctx, !in.done);
    EXPECT_EQ(in.ret, 1);
    EXPECT_EQ(memcmp(in.buf, "abcdef", 6), 0);
    EXPECT_EQ(in.fds.nb, CHANNEL_FDS_MAX);
    EXPECT_EQ(test_count_fds(), raw.nb_fds_before + CHANNEL_FDS_MAX);
    channel_fds_close(&in.fds);
    raw_close(&raw);
}

/* Odd numbers leave padding in the control buffer, where the kernel would put one more. */
TEST(channel_socket, too_many_descriptors_end_the_stream_and_none_leaks)
{
    for (unsigned first = 0; first <= CHANNEL_FDS_MAX; first++) {
        Raw raw = raw_open();
        FdsOp in = { .ch = raw.ch, .len_bytes = 2 };

        if (first > 0) {
            send_fds(raw.peer, "a", 1, first);
        } else {
            ASSERT_EQ(write(raw.peer, "a", 1), 1);
        }
        send_fds(raw.peer, "b", 1, CHANNEL_FDS_MAX - first + 1);
        test_spawn(read_fds_entry, &in);
        AIO_WAIT_WHILE(raw.ctx, !in.done);
        EXPECT_EQ(in.ret, -EMSGSIZE);
        EXPECT_EQ(in.fds.nb, 0);
        raw_close(&raw);
    }
}

/* However many of them still come. */
TEST(channel_socket, a_full_table_of_descriptors_is_told_from_too_many)
{
    for (unsigned nb_free = 0; nb_free < 3; nb_free++) {
        Raw raw = raw_open();
        FdsOp in = { .ch = raw.ch, .len_bytes = 1 };
        struct rlimit limit, less;
        int next;

        send_fds(raw.peer, "a", 1, 3);
        getrlimit(RLIMIT_NOFILE, &limit);
        next = fcntl(raw.peer, F_DUPFD_CLOEXEC, 0);
        ASSERT_GE(next, 0);
        close(next);
        less = limit;
        less.rlim_cur = (rlim_t)next + nb_free;
        ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &less), 0);
        test_spawn(read_fds_entry, &in);
        AIO_WAIT_WHILE(raw.ctx, !in.done);
        setrlimit(RLIMIT_NOFILE, &limit);
        EXPECT_EQ(in.ret, -EMFILE);
        EXPECT_EQ(in.fds.nb, 0);
        raw_close(&raw);
    }
}

TEST(channel_socket, descriptors_of_a_message_that_never_ends_are_the_callers)
{
    Raw raw = raw_open();
    FdsOp in = { .ch = raw.ch, .len_bytes = 6 };

    send_fds(raw.peer, "ab", 2, 2);
    shutdown(raw.peer, SHUT_WR);
    test_spawn(read_fds_entry, &in);
    AIO_WAIT_WHILE(raw.ctx, !in.done);
    EXPECT_EQ(in.ret, -ECONNRESET);
    EXPECT_EQ(in.fds.nb, 2);
    channel_fds_close(&in.fds);
    raw_close(&raw);
}

TEST(channel_socket, descriptors_nobody_asked_for_are_dropped)
{
    Raw raw = raw_open();
    char buf[4];
    Op read = { .ch = raw.ch, .buf = buf, .len_bytes = 2 };

    send_fds(raw.peer, "ab", 2, 5);
    op_read_full(&read);
    AIO_WAIT_WHILE(raw.ctx, !read.done);
    EXPECT_EQ(read.ret, 1);
    raw_close(&raw);
}

TEST(channel_socket, descriptors_unread_at_the_end_are_closed)
{
    Raw raw = raw_open();

    send_fds(raw.peer, "ab", 2, 5);
    raw_close(&raw);
}

/* A TCP socket whose close() waits for its peer, which does not read. */
static int make_lingering(int *ret_peer)
{
    static const struct linger linger = { .l_onoff = 1, .l_linger = 1000 };
    struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof(addr);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    static const char bytes[65536];

    ASSERT_EQ(bind(listener, (struct sockaddr *)&addr, len), 0);
    ASSERT_EQ(listen(listener, 1), 0);
    ASSERT_EQ(getsockname(listener, (struct sockaddr *)&addr, &len), 0);
    ASSERT_EQ(connect(fd, (struct sockaddr *)&addr, len), 0);
    *ret_peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    ASSERT_GE(*ret_peer, 0);
    while (send(fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0) {
    }
    ASSERT_EQ(errno, EAGAIN);
    ASSERT_EQ(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), 0);
    close(listener);
    return fd;
}

typedef enum Unwanted {
    UNASKED, /* nobody takes descriptors */
    SURPLUS,
    REFUSED, /* given back by who took it */
    UNREAD,
} Unwanted;

/* Send the last reference to @fd, and let the channel get rid of it. */
static void pass_unwanted(int fd, Unwanted why)
{
    Raw raw = raw_open();
    char buf[4];
    Op read = { .ch = raw.ch, .buf = buf, .len_bytes = 2 };
    FdsOp read_fds = { .ch = raw.ch, .len_bytes = 2 };

    send_fd(raw.peer, "ab", 2, fd, why == SURPLUS ? CHANNEL_FDS_MAX + 1 : 1);
    close(fd);
    if (why == UNASKED) {
        op_read_full(&read);
        AIO_WAIT_WHILE(raw.ctx, !read.done);
        EXPECT_EQ(read.ret, 1);
    } else if (why != UNREAD) {
        test_spawn(read_fds_entry, &read_fds);
        AIO_WAIT_WHILE(raw.ctx, !read_fds.done);
        EXPECT_EQ(read_fds.ret, why == SURPLUS ? -EMSGSIZE : 1);
        channel_fds_close(&read_fds.fds);
    }
    channel_unref(raw.ch);
    close(raw.peer);
    aio_context_destroy(raw.ctx);
}

/* The test ends before the sockets do. */
TEST(channel_socket, unwanted_descriptors_hold_nobody_up)
{
    int peers[UNREAD + 1], pipe_fds[2];
    char byte;

    for (Unwanted why = UNASKED; why <= UNREAD; why++) {
        pass_unwanted(make_lingering(&peers[why]), why);
    }
    for (Unwanted why = UNASKED; why <= UNREAD; why++) {
        ASSERT_EQ(pipe2(pipe_fds, O_CLOEXEC), 0);
        pass_unwanted(pipe_fds[1], why);
        EXPECT_EQ(read(pipe_fds[0], &byte, 1), 0); /* all copies are closed */
        close(pipe_fds[0]);
        EXPECT_EQ(recv(peers[why], &byte, 1, MSG_PEEK), 1);
    }
    for (Unwanted why = UNASKED; why <= UNREAD; why++) {
        close(peers[why]);
    }
}

TEST(channel_socket, descriptors_need_a_byte_and_a_unix_socket)
{
    static PairFn *const cannot[] = { pair_tcp, pair_buffer, pair_pipes };
    AioContext *ctx = test_context(NULL);
    Channel *ends[2];
    FdsOp out = { .buf = "x", .len_bytes = 1, .fds = { 1, { 0 } } };

    for (unsigned i = 0; i < ARRAY_SIZE(cannot); i++) {
        cannot[i](ends);
        out.ch = ends[0];
        test_spawn(write_fds_entry, &out);
        EXPECT_TRUE(out.done);
        EXPECT_EQ(out.ret, -EINVAL);
        channel_unref(ends[0]);
        channel_unref(ends[1]);
    }
    pair_unix(ends);
    out.ch = ends[0];
    out.len_bytes = 0;
    test_spawn(write_fds_entry, &out);
    EXPECT_EQ(out.ret, -EINVAL);
    out.fds.nb = 0; /* an empty list is none */
    out.len_bytes = 1;
    test_spawn(write_fds_entry, &out);
    EXPECT_EQ(out.ret, 0);
    channel_unref(ends[0]);
    channel_unref(ends[1]);
    aio_context_destroy(ctx);
}

#define LONG_BYTES (4 << 20) /* more than a socket takes at once */

static co_fn void write_long_entry(void *opaque)
{
    FdsOp *op = opaque;
    AUTO_FREE char *much = calloc(1, LONG_BYTES);
    struct iovec iov = { much, LONG_BYTES };

    op->ret = channel_co_writev_full(op->ch, &iov, 1, &op->fds);
    op->done = true;
}

TEST(channel_socket, descriptors_go_out_once_however_short_the_writes_are)
{
    AioContext *ctx = test_context(NULL);
    unsigned nb = 0, nb_bytes = 0;
    Channel *ends[2];

    pair_unix(ends);
    FdsOp out = { .ch = ends[0], .fds = { 1, { 0 } } };
    FdsOp in = { .ch = ends[1], .len_bytes = sizeof(in.buf) };

    test_spawn(write_long_entry, &out);
    EXPECT_FALSE(out.done);
    while (nb_bytes < LONG_BYTES) {
        in.done = false;
        test_spawn(read_fds_entry, &in);
        AIO_WAIT_WHILE(ctx, !in.done);
        EXPECT_EQ(in.ret, 1);
        nb += in.fds.nb;
        nb_bytes += in.len_bytes;
        channel_fds_close(&in.fds);
    }
    EXPECT_TRUE(out.done);
    EXPECT_EQ(out.ret, 0);
    EXPECT_EQ(nb, 1);
    channel_unref(ends[0]);
    channel_unref(ends[1]);
    aio_context_destroy(ctx);
}

TEST(channel_socket, reset_by_the_peer_is_an_error)
{
    AioContext *ctx = test_context(NULL);
    struct linger linger = { 1, 0 };
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    socklen_t len = sizeof(in);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int peer = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char buf[4];

    ASSERT_EQ(bind(listener, (struct sockaddr *)&in, len), 0);
    ASSERT_EQ(listen(listener, 1), 0);
    ASSERT_EQ(getsockname(listener, (struct sockaddr *)&in, &len), 0);
    ASSERT_EQ(connect(peer, (struct sockaddr *)&in, len), 0);
    Op read = { .ch = channel_socket_adopt(accept(listener, NULL, NULL), NULL),
                .buf = buf,
                .len_bytes = 4 };

    op_read(&read);
    EXPECT_FALSE(read.done);
    setsockopt(peer, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
    close(peer);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, -ECONNRESET);
    channel_unref(read.ch);
    close(listener);
    aio_context_destroy(ctx);
}

/* --- adopting --- */

TEST(channel_socket, adopting_refuses_what_is_no_connected_stream)
{
    Error err = { 0 };
    int fds[2];

    unsigned before = test_count_fds();
    EXPECT_FALSE(channel_socket_adopt(open("/dev/null", O_RDONLY), &err));
    EXPECT_EQ(err.code, -ENOTSOCK);
    EXPECT_FALSE(channel_socket_adopt(socket(AF_UNIX, SOCK_DGRAM, 0), &err));
    EXPECT_EQ(err.code, -EPROTOTYPE);
    EXPECT_FALSE(channel_socket_adopt(socket(AF_UNIX, SOCK_STREAM, 0), &err));
    EXPECT_EQ(err.code, -ENOTCONN);
    EXPECT_FALSE(channel_socket_adopt(-1, &err));
    EXPECT_EQ(err.code, -EBADF);
    EXPECT_EQ(test_count_fds(), before);

    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    Channel *ch = channel_socket_adopt(fds[0], &err);

    EXPECT_EQ(fcntl(fds[0], F_GETFD), FD_CLOEXEC);
    EXPECT_TRUE(fcntl(fds[0], F_GETFL) & O_NONBLOCK);
    EXPECT_STREQ(channel_name(ch), "unix:");
    channel_unref(channel_ref(ch));
    EXPECT_GE(fcntl(fds[0], F_GETFD), 0);
    channel_unref(ch);
    EXPECT_LT(fcntl(fds[0], F_GETFD), 0);
    close(fds[1]);
}

/* --- connecting --- */

typedef struct Connect {
    SocketAddress addr;
    int64_t deadline_ns;
    ChannelCancel *cancel;
    Channel *ch;
    Error err;
    bool done;
} Connect;

static co_fn void connect_entry(void *opaque)
{
    Connect *c = opaque;

    c->ch = channel_co_connect(&c->addr, c->deadline_ns, c->cancel, &c->err);
    c->done = true;
}

static Connect connect_to(const char *text)
{
    Connect c = { .deadline_ns = -1 };

    ASSERT_EQ(socket_address_parse(text, &c.addr, NULL), 0);
    return c;
}

static int tcp_listener(uint16_t *ret_port, int backlog)
{
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    socklen_t len = sizeof(in);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    ASSERT_EQ(bind(fd, (struct sockaddr *)&in, len), 0);
    ASSERT_EQ(listen(fd, backlog), 0);
    ASSERT_EQ(getsockname(fd, (struct sockaddr *)&in, &len), 0);
    *ret_port = ntohs(in.sin_port);
    return fd;
}

TEST(channel_socket, connects_by_number_and_by_name)
{
    static const char *const hosts[] = { "127.0.0.1", "localhost", "" };
    AioContext *ctx = test_context(NULL);
    uint16_t port;
    int listener = tcp_listener(&port, 5);

    for (unsigned i = 0; i < ARRAY_SIZE(hosts); i++) {
        char text[64], name[64];

        snprintf(text, sizeof(text), "%s:%u", hosts[i], port);
        snprintf(name, sizeof(name), "127.0.0.1:%u", port);
        Connect c = connect_to(text);

        test_spawn(connect_entry, &c);
        AIO_WAIT_WHILE(ctx, !c.done);
        if (!c.ch) {
            test_fail_abort(__FILE__, __LINE__, "%s", c.err.msg);
        }
        EXPECT_STREQ(channel_name(c.ch), name);
        channel_unref(c.ch);
        close(accept(listener, NULL, NULL));
    }
    close(listener);
    aio_context_destroy(ctx);
}

TEST(channel_socket, connecting_to_nobody_is_refused_with_the_address_in_the_message)
{
    AioContext *ctx = test_context(NULL);
    unsigned before = test_count_fds();
    uint16_t port;
    char text[64];

    close(tcp_listener(&port, 1));
    snprintf(text, sizeof(text), "127.0.0.1:%u", port);
    Connect c = connect_to(text);

    test_spawn(connect_entry, &c);
    AIO_WAIT_WHILE(ctx, !c.done);
    EXPECT_FALSE(c.ch);
    EXPECT_EQ(c.err.code, -ECONNREFUSED);
    EXPECT_TRUE(strstr(c.err.msg, text));

    Connect none = connect_to("unix:/nonexistent/socket");

    test_spawn(connect_entry, &none);
    EXPECT_TRUE(none.done);
    EXPECT_EQ(none.err.code, -ENOENT);
    EXPECT_TRUE(strstr(none.err.msg, "unix:/nonexistent/socket"));
    EXPECT_EQ(test_count_fds(), before);
    aio_context_destroy(ctx);
}

TEST(channel_socket, unknown_service_is_told)
{
    AioContext *ctx = test_context(NULL);
    Connect c = connect_to("127.0.0.1:nosuchservice");

    test_spawn(connect_entry, &c);
    AIO_WAIT_WHILE(ctx, !c.done);
    EXPECT_FALSE(c.ch);
    EXPECT_EQ(c.err.code, -ENOENT);
    EXPECT_TRUE(strstr(c.err.msg, "nosuchservice"));
    aio_context_destroy(ctx);
}

/* A unix socket whose queue is full gives EAGAIN and cannot be polled. */
static int full_unix_listener(char path[64])
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(path, 64, "/tmp/penstock-test-%d.sock", getpid());
    strcpy(un.sun_path, path);
    unlink(path);
    ASSERT_EQ(bind(fd, (struct sockaddr *)&un, sizeof(un)), 0);
    ASSERT_EQ(listen(fd, 0), 0);
    for (;;) {
        int client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

        if (connect(client, (struct sockaddr *)&un, sizeof(un)) < 0) {
            ASSERT_EQ(errno, EAGAIN);
            close(client);
            return fd;
        }
        /* stays open, and in the queue */
    }
}

TEST(channel_socket, connecting_waits_for_room_in_the_queue_until_the_deadline)
{
    AioContext *ctx = test_context(NULL);
    char path[64], text[80];
    int listener = full_unix_listener(path);

    snprintf(text, sizeof(text), "unix:%s", path);
    Connect c = connect_to(text);

    c.deadline_ns = aio_now_ns() + 20000000;
    test_spawn(connect_entry, &c);
    EXPECT_FALSE(c.done);
    AIO_WAIT_WHILE(ctx, !c.done);
    EXPECT_EQ(c.err.code, -ETIMEDOUT);
    EXPECT_GE(aio_now_ns(), c.deadline_ns);

    Connect later = connect_to(text);

    test_spawn(connect_entry, &later);
    test_settle(ctx);
    EXPECT_FALSE(later.done);
    close(accept(listener, NULL, NULL));
    AIO_WAIT_WHILE(ctx, !later.done);
    EXPECT_TRUE(later.ch);
    EXPECT_STREQ(channel_name(later.ch), text);
    channel_unref(later.ch);
    close(listener);
    unlink(path);
    aio_context_destroy(ctx);
}

TEST(channel_socket, connecting_can_be_cancelled_from_another_thread)
{
    AioContext *ctx = test_context(NULL);
    ChannelCancel cancel;
    char path[64], text[80];
    int listener = full_unix_listener(path);

    snprintf(text, sizeof(text), "unix:%s", path);
    for (int round = 0; round < 2; round++) {
        Connect c = connect_to(text);

        channel_cancel_init(&cancel);
        c.cancel = &cancel;
        if (round == 1) {
            channel_cancel(&cancel); /* before it has begun */
        }
        test_spawn(connect_entry, &c);
        if (round == 0) {
            EXPECT_FALSE(c.done);
            IOThread *other = iothread_create("other", NULL, NULL);

            aio_run_sync(iothread_context(other), (AioCallback *)channel_cancel, &cancel);
            iothread_unref(other);
        }
        AIO_WAIT_WHILE(ctx, !c.done);
        EXPECT_FALSE(c.ch);
        EXPECT_EQ(c.err.code, -ECANCELED);
        EXPECT_EQ(ctx->nb_timers, 0);
    }
    close(listener);
    unlink(path);
    aio_context_destroy(ctx);
}

/* A TCP listener that answers nobody: its queue is full. */
TEST(channel_socket, tcp_connect_that_gets_no_answer_ends_at_the_deadline)
{
    AioContext *ctx = test_context(NULL);
    uint16_t port;
    char text[64];
    int listener = tcp_listener(&port, 0);
    Channel *clients[8];
    int nb = 0;
    int32_t code = 0;

    snprintf(text, sizeof(text), "127.0.0.1:%u", port);
    while (nb < 8 && !code) {
        Connect c = connect_to(text);

        c.deadline_ns = aio_now_ns() + 50000000;
        test_spawn(connect_entry, &c);
        AIO_WAIT_WHILE(ctx, !c.done);
        if (c.ch) {
            clients[nb++] = c.ch;
        }
        code = c.err.code;
    }
    EXPECT_EQ(code, -ETIMEDOUT);
    while (nb > 0) {
        channel_unref(clients[--nb]);
    }
    close(listener);
    aio_context_destroy(ctx);
}

/* getaddrinfo() as these tests want it: hosts of the test's own, that hang or have two
 * addresses. */
int __real_getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                       struct addrinfo **ret_list);
int __wrap_getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                       struct addrinfo **ret_list);

static int resolver_gate; /* a pipe */
static uint16_t refusing_port;

int __wrap_getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                       struct addrinfo **ret_list)
{
    bool hangs = host && strcmp(host, "hangs.test") == 0;
    bool two = host && strcmp(host, "two.test") == 0;

    if (!hangs && !two) {
        return __real_getaddrinfo(host, port, hints, ret_list);
    }
    if (hints->ai_flags & AI_NUMERICHOST) {
        return EAI_NONAME;
    }
    if (hangs) {
        uint64_t count;

        return read(resolver_gate, &count, sizeof(count)) < 0 ? EAI_SYSTEM : EAI_NONAME;
    }
    char first_port[8];

    snprintf(first_port, sizeof(first_port), "%u", refusing_port);
    EXPECT_EQ(__real_getaddrinfo("127.0.0.1", first_port, hints, ret_list), 0);
    EXPECT_EQ(__real_getaddrinfo("127.0.0.1", port, hints, &(*ret_list)->ai_next), 0);
    return 0;
}

TEST(channel_socket, each_address_of_a_name_is_tried)
{
    AioContext *ctx = test_context(NULL);
    uint16_t port;
    int listener = tcp_listener(&port, 1);
    char text[64];

    close(tcp_listener(&refusing_port, 1));
    snprintf(text, sizeof(text), "two.test:%u", port);
    Connect c = connect_to(text);

    test_spawn(connect_entry, &c);
    AIO_WAIT_WHILE(ctx, !c.done);
    EXPECT_TRUE(c.ch);
    channel_unref(c.ch);
    close(listener);
    aio_context_destroy(ctx);
}

TEST(channel_socket, resolver_that_hangs_is_given_up_and_may_end_after_the_context)
{
    AioContext *ctx = test_context(NULL);
    ChannelCancel cancel;
    Connect late = connect_to("hangs.test:1"), cancelled = late;
    int pipe_fds[2];

    ASSERT_EQ(pipe2(pipe_fds, O_CLOEXEC), 0);
    resolver_gate = pipe_fds[0];
    late.deadline_ns = aio_now_ns() + 5000000;
    test_spawn(connect_entry, &late);
    channel_cancel_init(&cancel);
    cancelled.cancel = &cancel;
    test_spawn(connect_entry, &cancelled);
    AIO_WAIT_WHILE(ctx, !late.done);
    EXPECT_EQ(late.err.code, -ETIMEDOUT);
    EXPECT_FALSE(cancelled.done);
    channel_cancel(&cancel);
    AIO_WAIT_WHILE(ctx, !cancelled.done);
    EXPECT_EQ(cancelled.err.code, -ECANCELED);
    EXPECT_TRUE(strstr(cancelled.err.msg, "hangs.test:1"));
    aio_context_destroy(ctx);
    close(pipe_fds[1]); /* both look-ups end, with nobody to tell */
}

/* --- addresses --- */

TEST(socket_address, parses_and_formats_alike)
{
    static const char *const texts[] = { "unix:/run/a b:c.sock", "unix:relative", "localhost:10809",
                                         "127.0.0.1:0",          "[::1]:65535",   ":nbd",
                                         "[fe80::1%eth0]:1" };
    char buf[SOCKET_ADDRESS_TEXT_BYTES];
    SocketAddress addr;

    for (unsigned i = 0; i < ARRAY_SIZE(texts); i++) {
        ASSERT_EQ(socket_address_parse(texts[i], &addr, NULL), 0);
        EXPECT_STREQ(socket_address_format(&addr, buf), texts[i]);
    }
    ASSERT_EQ(socket_address_parse("[::1]:80", &addr, NULL), 0);
    EXPECT_EQ(addr.type, SOCKET_ADDRESS_TCP);
    EXPECT_STREQ(addr.host, "::1");
    EXPECT_STREQ(addr.port, "80");
}

TEST(socket_address, refuses_what_is_none_and_says_why)
{
    static const struct {
        const char *text;
        int code;
        const char *why;
    } bad[] = {
        { "", -EINVAL, "no port" },
        { "host", -EINVAL, "no port" },
        { "host:", -EINVAL, "port ''" },
        { "host:65536", -EINVAL, "'65536'" },
        { "host:123456", -EINVAL, "'123456'" },
        { "::1:80", -EINVAL, "brackets" },
        { "[::1:80", -EINVAL, "[ADDRESS]:PORT" },
        { "[]:80", -EINVAL, "[ADDRESS]:PORT" },
        { "unix:", -EINVAL, "empty" },
    };
    SocketAddress addr;
    char text[400];
    Error err;

    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        err.code = 0;
        EXPECT_EQ(socket_address_parse(bad[i].text, &addr, &err), bad[i].code);
        EXPECT_EQ(err.code, bad[i].code);
        if (!strstr(err.msg, bad[i].why)) {
            test_fail(__FILE__, __LINE__, "'%s': '%s' is not in '%s'", bad[i].text, bad[i].why,
                      err.msg);
        }
    }
    memset(text, 'a', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    memcpy(text, "unix:", 5);
    EXPECT_EQ(socket_address_parse(text, &addr, &err), -ENAMETOOLONG);
    text[5 + 107] = '\0';
    EXPECT_EQ(socket_address_parse(text, &addr, &err), 0);
    memset(text, 'a', sizeof(text));
    strcpy(text + 300, ":80");
    EXPECT_EQ(socket_address_parse(text, &addr, &err), -ENAMETOOLONG);
    EXPECT_EQ(socket_address_parse(text + 45, &addr, &err), 0);
}

TEST(socket_address, formats_what_the_kernel_has)
{
    char buf[SOCKET_ADDRESS_TEXT_BYTES];
    struct sockaddr_un un = { .sun_family = AF_UNIX, .sun_path = "\0name" };
    struct sockaddr_in6 in6 = { .sin6_family = AF_INET6, .sin6_port = htons(7) };
    struct sockaddr other = { .sa_family = AF_NETLINK };

    EXPECT_STREQ(socket_address_format_sa((struct sockaddr *)&un,
                                          offsetof(struct sockaddr_un, sun_path) + 5, buf),
                 "unix:@name");
    EXPECT_STREQ(socket_address_format_sa((struct sockaddr *)&un,
                                          offsetof(struct sockaddr_un, sun_path), buf),
                 "unix:");
    in6.sin6_addr.s6_addr[15] = 1;
    EXPECT_STREQ(socket_address_format_sa((struct sockaddr *)&in6, sizeof(in6), buf), "[::1]:7");
    in6.sin6_scope_id = 1;
    EXPECT_STREQ(socket_address_format_sa((struct sockaddr *)&in6, sizeof(in6), buf), "[::1%lo]:7");
    socket_address_format_sa(&other, sizeof(other), buf);
    EXPECT_TRUE(strstr(buf, "family"));
}

TEST_MAIN()
