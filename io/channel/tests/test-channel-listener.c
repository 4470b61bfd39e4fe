/*
 * test-channel-listener.c - accepting: limits, shortages, socket files, where connections run
 */
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "io/channel/channel-listener.h"
#include "io/channel/tests/channel-test.h"

typedef struct Server {
    AioContext *ctx;
    AioContext *serve_in; /* NULL = where it was accepted */
    ChannelListener *listener;
    SocketAddress addr;
    atomic_int served;
    Channel *last; /* of the last that began; borrowed */
    bool stop_inside;
} Server;

/* Echo a byte at a time until the peer ends. */
static co_fn void serve(Channel *ch, void *opaque)
{
    Server *s = opaque;
    char byte;

    s->last = ch;
    if (s->stop_inside) {
        channel_listener_unref(take_ptr(&s->listener));
    }
    if (s->serve_in) {
        aio_co_reschedule_self(s->serve_in);
    }
    while (channel_co_read_full(ch, &byte, 1) == 1 && channel_co_write_full(ch, &byte, 1) == 0) {
    }
    channel_unref(ch);
    atomic_fetch_add(&s->served, 1);
}

static Server server_init(const char *text)
{
    Server s = { .ctx = test_context(NULL) };

    ASSERT_EQ(socket_address_parse(text, &s.addr, NULL), 0);
    return s;
}

static void server_start(Server *s, unsigned connections_max)
{
    ChannelListenerParams params = { serve, s, connections_max };
    Error err = { 0 };

    s->listener = channel_listener_create(&s->addr, &params, &err);
    if (!s->listener) {
        test_fail_abort(__FILE__, __LINE__, "%s", err.msg);
    }
    channel_listener_start(s->listener);
}

static co_fn void wait_idle_entry(void *opaque)
{
    Server *s = opaque;

    EXPECT_EQ(channel_listener_co_wait_idle(s->listener, -1), 0);
    channel_listener_unref(take_ptr(&s->listener));
}

static void server_stop(Server *s)
{
    channel_listener_stop(s->listener);
    test_spawn(wait_idle_entry, s);
    AIO_WAIT_WHILE(s->ctx, s->listener);
    aio_context_destroy(s->ctx);
}

static char *socket_path(char path[64])
{
    snprintf(path, 64, "/tmp/penstock-test-%d.sock", getpid());
    unlink(path);
    return path;
}

static const char *unix_text(char text[80])
{
    char path[64];

    snprintf(text, 80, "unix:%s", socket_path(path));
    return text;
}

/* A blocking client, from outside of all contexts. */
static int client(const char *name)
{
    SocketAddress addr;
    int fd;

    ASSERT_EQ(socket_address_parse(name, &addr, NULL), 0);
    if (addr.type == SOCKET_ADDRESS_UNIX) {
        struct sockaddr_un un = { .sun_family = AF_UNIX };

        strcpy(un.sun_path, addr.path);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        ASSERT_EQ(connect(fd, (struct sockaddr *)&un, sizeof(un)), 0);
    } else {
        struct sockaddr_in in = { .sin_family = AF_INET,
                                  .sin_addr = { htonl(INADDR_LOOPBACK) },
                                  .sin_port = htons(atoi(addr.port)) };

        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        ASSERT_EQ(connect(fd, (struct sockaddr *)&in, sizeof(in)), 0);
    }
    return fd;
}

static bool echoed(AioContext *ctx, int fd)
{
    char byte = 'e';

    ASSERT_EQ(send(fd, &byte, 1, MSG_NOSIGNAL), 1);
    for (int i = 0; i < 50; i++) {
        aio_poll(ctx, false);
        if (recv(fd, &byte, 1, MSG_DONTWAIT) == 1) {
            return true;
        }
    }
    return false;
}

static void await_connections(Server *s, unsigned nb)
{
    AIO_WAIT_WHILE(s->ctx, channel_listener_nb_connections(s->listener) != nb);
}

TEST(channel_listener, runs_a_coroutine_for_each_connection)
{
    char text[80];
    Server s = server_init(unix_text(text));
    int fds[5];

    server_start(&s, 0);
    EXPECT_STREQ(channel_listener_name(s.listener), text);
    for (int i = 0; i < 5; i++) {
        fds[i] = client(text);
        EXPECT_TRUE(echoed(s.ctx, fds[i]));
    }
    EXPECT_EQ(channel_listener_nb_connections(s.listener), 5);
    EXPECT_STREQ(channel_name(s.last), text);
    for (int i = 0; i < 5; i++) {
        close(fds[i]);
    }
    await_connections(&s, 0);
    EXPECT_EQ(s.served, 5);
    server_stop(&s);
}

TEST(channel_listener, further_peers_wait_at_the_limit)
{
    char text[80];
    Server s = server_init(unix_text(text));
    int fds[4];

    server_start(&s, 2);
    for (int i = 0; i < 4; i++) {
        fds[i] = client(text);
    }
    EXPECT_TRUE(echoed(s.ctx, fds[0]));
    EXPECT_TRUE(echoed(s.ctx, fds[1]));
    EXPECT_FALSE(echoed(s.ctx, fds[2]));
    EXPECT_EQ(channel_listener_nb_connections(s.listener), 2);
    /* and nobody is busy because of them */
    EXPECT_FALSE(aio_poll(s.ctx, false));
    close(fds[0]);
    AIO_WAIT_WHILE(s.ctx, s.served < 1);
    AIO_WAIT_WHILE(s.ctx, channel_listener_nb_connections(s.listener) < 2);
    EXPECT_TRUE(echoed(s.ctx, fds[2]));
    EXPECT_FALSE(echoed(s.ctx, fds[3]));
    close(fds[1]);
    AIO_WAIT_WHILE(s.ctx, s.served < 2);
    AIO_WAIT_WHILE(s.ctx, channel_listener_nb_connections(s.listener) < 2);
    EXPECT_TRUE(echoed(s.ctx, fds[3]));
    close(fds[2]);
    close(fds[3]);
    await_connections(&s, 0);
    server_stop(&s);
}

TEST(channel_listener, shortage_of_descriptors_makes_it_pause_and_try_again)
{
    char text[80];
    Server s = server_init(unix_text(text));
    struct rlimit limit, none;

    server_start(&s, 0);
    int fd = client(text);

    getrlimit(RLIMIT_NOFILE, &limit);
    none = limit;
    none.rlim_cur = 0;
    setrlimit(RLIMIT_NOFILE, &none);
    AIO_WAIT_WHILE(s.ctx, s.ctx->nb_timers == 0);
    /* it sleeps now: a blocking pass does nothing but wait for the timer */
    uint64_t passes = test_stats(s.ctx).passes;

    EXPECT_FALSE(aio_poll(s.ctx, false));
    EXPECT_FALSE(aio_poll(s.ctx, false));
    EXPECT_EQ(channel_listener_nb_connections(s.listener), 0);
    setrlimit(RLIMIT_NOFILE, &limit);
    await_connections(&s, 1);
    EXPECT_LE(test_stats(s.ctx).passes - passes, 10);
    EXPECT_TRUE(echoed(s.ctx, fd));
    close(fd);
    await_connections(&s, 0);
    server_stop(&s);
}

TEST(channel_listener, stopping_while_it_pauses_leaves_nothing_behind)
{
    char text[80];
    Server s = server_init(unix_text(text));
    struct rlimit limit, none;

    server_start(&s, 0);
    int fd = client(text);

    getrlimit(RLIMIT_NOFILE, &limit);
    none = limit;
    none.rlim_cur = 0;
    setrlimit(RLIMIT_NOFILE, &none);
    AIO_WAIT_WHILE(s.ctx, s.ctx->nb_timers == 0);
    setrlimit(RLIMIT_NOFILE, &limit);
    server_stop(&s);
    close(fd);
}

TEST(channel_listener, connections_outlive_its_stop_and_are_waited_for)
{
    char text[80];
    Server s = server_init(unix_text(text));

    server_start(&s, 0);
    int fd = client(text);

    EXPECT_TRUE(echoed(s.ctx, fd));
    channel_listener_stop(s.listener);
    channel_listener_stop(s.listener);
    EXPECT_LT(access(s.addr.path, F_OK), 0);
    EXPECT_TRUE(echoed(s.ctx, fd));
    test_spawn(wait_idle_entry, &s);
    test_settle(s.ctx);
    EXPECT_TRUE(s.listener);
    close(fd);
    AIO_WAIT_WHILE(s.ctx, s.listener);
    aio_context_destroy(s.ctx);
}

static co_fn void wait_idle_briefly_entry(void *opaque)
{
    Server *s = opaque;

    EXPECT_EQ(channel_listener_co_wait_idle(s->listener, aio_now_ns() + 1000000), -ETIMEDOUT);
    s->last = NULL;
}

TEST(channel_listener, waiting_for_connections_has_a_deadline)
{
    char text[80];
    Server s = server_init(unix_text(text));

    server_start(&s, 0);
    int fd = client(text);

    await_connections(&s, 1);
    test_spawn(wait_idle_briefly_entry, &s);
    AIO_WAIT_WHILE(s.ctx, s.last);
    close(fd);
    server_stop(&s);
}

TEST(channel_listener, connection_may_stop_it)
{
    char text[80];
    Server s = server_init(unix_text(text));

    s.stop_inside = true;
    server_start(&s, 0);
    int fd = client(text), second = client(text);

    AIO_WAIT_WHILE(s.ctx, s.listener);
    EXPECT_TRUE(echoed(s.ctx, fd));
    close(fd);
    close(second);
    AIO_WAIT_WHILE(s.ctx, s.served < 1);
    test_settle(s.ctx);
    aio_context_destroy(s.ctx);
}

#define CROWD 60

TEST(channel_listener, connections_may_live_and_end_in_another_thread)
{
    char text[80];
    Server s = server_init(unix_text(text));
    IOThread *iot = iothread_create("serve", NULL, NULL);
    int fds[CROWD];

    s.serve_in = iothread_context(iot);
    server_start(&s, 2); /* so that each end has the next one accepted */
    for (int i = 0; i < CROWD; i++) {
        fds[i] = client(text);
        ASSERT_EQ(write(fds[i], "x", 1), 1);
        shutdown(fds[i], SHUT_WR);
    }
    AIO_WAIT_WHILE(s.ctx, atomic_load(&s.served) < CROWD);
    for (int i = 0; i < CROWD; i++) {
        close(fds[i]);
    }
    server_stop(&s);
    iothread_unref(iot);
}

/* --- socket files --- */

static ChannelListener *try_listen(Server *s, Error *err)
{
    ChannelListenerParams params = { serve, s, 0 };

    return channel_listener_create(&s->addr, &params, err);
}

TEST(channel_listener, file_of_a_dead_listener_is_replaced)
{
    char text[80];
    Server s = server_init(unix_text(text));
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    int dead = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strcpy(un.sun_path, s.addr.path);
    ASSERT_EQ(bind(dead, (struct sockaddr *)&un, sizeof(un)), 0);
    ASSERT_EQ(listen(dead, 1), 0);
    close(dead);
    server_start(&s, 0);
    int fd = client(text);

    EXPECT_TRUE(echoed(s.ctx, fd));
    close(fd);
    server_stop(&s);
}

TEST(channel_listener, file_of_a_live_listener_and_other_files_are_left_alone)
{
    char text[80];
    Server s = server_init(unix_text(text));
    Server second = { .ctx = s.ctx, .addr = s.addr };
    Error err = { 0 };

    server_start(&s, 0);
    EXPECT_FALSE(try_listen(&second, &err));
    EXPECT_EQ(err.code, -EADDRINUSE);
    EXPECT_TRUE(strstr(err.msg, text));
    test_settle(s.ctx); /* our question came as a connection */
    int fd = client(text);

    EXPECT_TRUE(echoed(s.ctx, fd));
    close(fd);
    channel_listener_stop(s.listener);

    fd = open(s.addr.path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
    EXPECT_FALSE(try_listen(&second, &err));
    EXPECT_EQ(err.code, -EADDRINUSE);
    EXPECT_EQ(access(s.addr.path, F_OK), 0);
    unlink(s.addr.path);
    close(fd);
    server_stop(&s);
}

TEST(channel_listener, file_of_a_listener_that_is_too_busy_is_left_alone)
{
    char text[80];
    Server s = server_init(unix_text(text));
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    int busy = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), peer;
    Error err = { 0 };

    strcpy(un.sun_path, s.addr.path);
    ASSERT_EQ(bind(busy, (struct sockaddr *)&un, sizeof(un)), 0);
    ASSERT_EQ(listen(busy, 0), 0);
    do {
        peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    } while (connect(peer, (struct sockaddr *)&un, sizeof(un)) == 0);
    EXPECT_EQ(errno, EAGAIN);
    EXPECT_FALSE(try_listen(&s, &err));
    EXPECT_EQ(err.code, -EADDRINUSE);
    EXPECT_EQ(access(un.sun_path, F_OK), 0);
    unlink(un.sun_path);
    close(busy);
    aio_context_destroy(s.ctx);
}

TEST(channel_listener, end_removes_its_own_file_only)
{
    char text[80];
    Server s = server_init(unix_text(text));
    struct stat st;

    server_start(&s, 0);
    EXPECT_EQ(stat(s.addr.path, &st), 0);
    unlink(s.addr.path);
    Server heir = { .ctx = s.ctx, .addr = s.addr };

    server_start(&heir, 0);
    channel_listener_unref(s.listener);
    EXPECT_EQ(stat(heir.addr.path, &st), 0);
    channel_listener_unref(heir.listener);
    EXPECT_LT(stat(heir.addr.path, &st), 0);
    aio_context_destroy(s.ctx);
}

/* --- TCP and adopted sockets --- */

TEST(channel_listener, tcp_connections_are_tuned_and_the_port_is_told)
{
    Server s = server_init("127.0.0.1:0");
    int value = 0;
    socklen_t len = sizeof(value);

    server_start(&s, 0);
    EXPECT_FALSE(strstr(channel_listener_name(s.listener), ":0"));
    int fd = client(channel_listener_name(s.listener));

    EXPECT_TRUE(echoed(s.ctx, fd));
    /* the accepted one is the newest descriptor but that of the client */
    bool found = false;

    for (int i = 3; i < 100; i++) {
        struct sockaddr_in peer;
        socklen_t peer_len = sizeof(peer);

        if (i != fd && getpeername(i, (struct sockaddr *)&peer, &peer_len) == 0) {
            found = true;
            ASSERT_EQ(getsockopt(i, IPPROTO_TCP, TCP_NODELAY, &value, &len), 0);
            EXPECT_EQ(value, 1);
            ASSERT_EQ(getsockopt(i, SOL_SOCKET, SO_KEEPALIVE, &value, &len), 0);
            EXPECT_EQ(value, 1);
            EXPECT_EQ(fcntl(i, F_GETFD), FD_CLOEXEC);
        }
    }
    EXPECT_TRUE(found);
    close(fd);
    server_stop(&s);
}

TEST(channel_listener, all_addresses_get_the_same_port)
{
    Server s = server_init(":0");

    server_start(&s, 0);
    const char *port = strrchr(channel_listener_name(s.listener), ':');
    char text[40];

    snprintf(text, sizeof(text), "127.0.0.1%s", port);
    int fd = client(text);

    EXPECT_TRUE(echoed(s.ctx, fd));
    close(fd);
    struct sockaddr_in6 in6 = { .sin6_family = AF_INET6,
                                .sin6_addr = IN6ADDR_LOOPBACK_INIT };
    int probe = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (probe >= 0 && bind(probe, (struct sockaddr *)&in6, sizeof(in6)) == 0) {
        /* there is IPv6 */
        in6.sin6_port = htons(atoi(port + 1));
        ASSERT_EQ(connect(probe, (struct sockaddr *)&in6, sizeof(in6)), 0);
        EXPECT_TRUE(echoed(s.ctx, probe));
    }
    close(probe);
    /* the port can be used again at once, whatever the connection's remains wait for */
    ASSERT_EQ(socket_address_parse(text, &s.addr, NULL), 0);
    await_connections(&s, 0);
    channel_listener_unref(s.listener);
    server_start(&s, 0);
    server_stop(&s);
}

TEST(channel_listener, foreign_address_is_an_error)
{
    Server s = server_init("192.0.2.1:0");
    Error err = { 0 };

    EXPECT_FALSE(try_listen(&s, &err));
    EXPECT_EQ(err.code, -EADDRNOTAVAIL);
    EXPECT_TRUE(strstr(err.msg, "192.0.2.1:0"));
    aio_context_destroy(s.ctx);
}

TEST(channel_listener, adopted_socket_serves_and_its_file_stays)
{
    char text[80];
    Server s = server_init(unix_text(text));
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    ChannelListenerParams params = { serve, &s, 0 };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    unsigned before;
    Error err = { 0 };

    before = test_count_fds();
    EXPECT_FALSE(channel_listener_adopt(fd, &params, &err));
    EXPECT_EQ(err.code, -EINVAL);
    EXPECT_EQ(test_count_fds(), before - 1);
    EXPECT_FALSE(channel_listener_adopt(open("/dev/null", O_RDONLY), &params, &err));
    EXPECT_EQ(err.code, -ENOTSOCK);

    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strcpy(un.sun_path, s.addr.path);
    ASSERT_EQ(bind(fd, (struct sockaddr *)&un, sizeof(un)), 0);
    ASSERT_EQ(listen(fd, 5), 0);
    s.listener = channel_listener_adopt(fd, &params, &err);
    ASSERT_TRUE(s.listener);
    channel_listener_start(s.listener);
    int peer = client(text);

    EXPECT_TRUE(echoed(s.ctx, peer));
    close(peer);
    server_stop(&s);
    EXPECT_EQ(access(un.sun_path, F_OK), 0);
    unlink(un.sun_path);
}

TEST_MAIN()
