/*
 * test-aio-handler.c - fd handlers: level-triggering, removal at awkward moments, nesting, counts
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "io/aio/tests/aio-test.h"

typedef struct Sink {
    AioContext *ctx;
    int fd;
    int calls;
    int writes;
    int bytes_per_call;   /* how much the read callback takes */
    bool remove_self;
    struct Sink *victim;  /* removed by the callback */
    bool nest;            /* poll once more inside the callback */
} Sink;

static void sink_read_cb(void *opaque)
{
    Sink *sink = opaque;
    char buf[64];

    sink->calls++;
    if (sink->bytes_per_call) {
        EXPECT_EQ(read(sink->fd, buf, sink->bytes_per_call), sink->bytes_per_call);
    }
    if (sink->victim) {
        aio_set_fd_handler(sink->ctx, sink->victim->fd, NULL, NULL);
        sink->victim = NULL;
    }
    if (sink->remove_self) {
        aio_set_fd_handler(sink->ctx, sink->fd, NULL, NULL);
    }
    if (sink->nest) {
        sink->nest = false;
        EXPECT_TRUE(aio_poll(sink->ctx, false));
    }
}

static void sink_write_cb(void *opaque)
{
    Sink *sink = opaque;

    sink->writes++;
}

static const AioHandlerOps read_ops = { .read = sink_read_cb };
static const AioHandlerOps write_ops = { .write = sink_write_cb };
static const AioHandlerOps both_ops = { .read = sink_read_cb, .write = sink_write_cb };

static void pair(int fds[2])
{
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
}

/* A handler that waits for data on one end; the other end is in *ret_peer. */
static Sink sink_open(AioContext *ctx, int *ret_peer)
{
    int fds[2];

    pair(fds);
    *ret_peer = fds[1];
    return (Sink){ .ctx = ctx, .fd = fds[0], .bytes_per_call = 1 };
}

static void sink_close(Sink *sink, int peer)
{
    aio_set_fd_handler(sink->ctx, sink->fd, NULL, NULL);
    close(sink->fd);
    close(peer);
}

TEST_ON_EACH_RING(aio_handler, is_called_while_data_is_left)
{
    AioContext *ctx = test_context(NULL);
    int peer;
    Sink sink = sink_open(ctx, &peer);

    aio_set_fd_handler(ctx, sink.fd, &read_ops, &sink);
    EXPECT_FALSE(aio_poll(ctx, false));
    ASSERT_EQ(write(peer, "abcde", 5), 5);
    for (int i = 1; i <= 5; i++) {
        AIO_WAIT_WHILE(ctx, sink.calls < i); /* one byte a call, one edge in all */
    }
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(sink.calls, 5);
    sink_close(&sink, peer);
    aio_context_destroy(ctx);
}

TEST_ON_EACH_RING(aio_handler, read_and_write_interest_are_told_apart)
{
    AioContext *ctx = test_context(NULL);
    int peer;
    Sink sink = sink_open(ctx, &peer);

    aio_set_fd_handler(ctx, sink.fd, &write_ops, &sink);
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_EQ(sink.writes, 1);
    EXPECT_EQ(sink.calls, 0);

    aio_set_fd_handler(ctx, sink.fd, &read_ops, &sink); /* instead */
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_FALSE(aio_poll(ctx, false));
    ASSERT_EQ(write(peer, "x", 1), 1);
    AIO_WAIT_WHILE(ctx, sink.calls < 1);
    EXPECT_EQ(sink.writes, 1);

    aio_set_fd_handler(ctx, sink.fd, &both_ops, &sink);
    ASSERT_EQ(write(peer, "x", 1), 1);
    AIO_WAIT_WHILE(ctx, sink.calls < 2 || sink.writes < 2);
    sink_close(&sink, peer);
    aio_context_destroy(ctx);
}

TEST_ON_EACH_RING(aio_handler, hang_up_is_reported_to_the_reader)
{
    AioContext *ctx = test_context(NULL);
    int peer;
    Sink sink = sink_open(ctx, &peer);

    sink.bytes_per_call = 0;
    aio_set_fd_handler(ctx, sink.fd, &read_ops, &sink);
    EXPECT_FALSE(aio_poll(ctx, false));
    close(peer);
    AIO_WAIT_WHILE(ctx, sink.calls < 3); /* and again and again */
    sink_close(&sink, -1);
    aio_context_destroy(ctx);
}

TEST_ON_EACH_RING(aio_handler, removed_one_is_not_called_though_its_event_is_in_the_ring)
{
    AioContext *ctx = test_context(NULL);
    int peer[2];
    Sink a = sink_open(ctx, &peer[0]);
    Sink b = sink_open(ctx, &peer[1]);

    a.victim = &b;
    b.victim = &a;
    aio_set_fd_handler(ctx, a.fd, &read_ops, &a);
    aio_set_fd_handler(ctx, b.fd, &read_ops, &b);
    EXPECT_FALSE(aio_poll(ctx, false)); /* both are armed */
    ASSERT_EQ(write(peer[0], "x", 1), 1);
    ASSERT_EQ(write(peer[1], "x", 1), 1);
    /* Both completions come in one pass; whichever is called first removes the other. */
    AIO_WAIT_WHILE(ctx, a.calls + b.calls == 0);
    for (int i = 0; i < 5; i++) {
        aio_poll(ctx, false);
    }
    EXPECT_EQ(a.calls + b.calls, 1);
    sink_close(&a, peer[0]);
    sink_close(&b, peer[1]);
    aio_context_destroy(ctx);
}

TEST_ON_EACH_RING(aio_handler, removes_itself_and_is_freed_once)
{
    AioContext *ctx = test_context(NULL);
    int peer;
    Sink sink = sink_open(ctx, &peer);

    sink.remove_self = true;
    aio_set_fd_handler(ctx, sink.fd, &read_ops, &sink);
    ASSERT_EQ(write(peer, "xy", 2), 2);
    AIO_WAIT_WHILE(ctx, sink.calls < 1);
    for (int i = 0; i < 5; i++) {
        aio_poll(ctx, false);
    }
    EXPECT_EQ(sink.calls, 1);
    EXPECT_TRUE(list_empty(&ctx->dead_handlers));
    sink_close(&sink, peer);
    aio_context_destroy(ctx);
}

TEST_ON_EACH_RING(aio_handler, completion_of_a_removed_one_touches_no_freed_memory)
{
    AioContext *ctx = test_ring_context(NULL);

    for (int i = 0; i < 50; i++) {
        int peer;
        Sink sink = sink_open(ctx, &peer);

        aio_set_fd_handler(ctx, sink.fd, &read_ops, &sink);
        EXPECT_FALSE(aio_poll(ctx, false)); /* armed */
        if (i & 1) {
            ASSERT_EQ(write(peer, "x", 1), 1); /* fired and not yet reaped */
        }
        aio_set_fd_handler(ctx, sink.fd, NULL, NULL);
        /* the kernel still has the poll: the handler must wait for that */
        EXPECT_FALSE(list_empty(&ctx->dead_handlers));
        close(sink.fd); /* the number is used again in the next round */
        close(peer);
        if (i % 3 == 0) {
            aio_poll(ctx, false);
            aio_poll(ctx, false);
        }
        EXPECT_EQ(sink.calls, 0);
    }
    for (int i = 0; i < 10 && !list_empty(&ctx->dead_handlers); i++) {
        aio_poll(ctx, false);
    }
    EXPECT_TRUE(list_empty(&ctx->dead_handlers));
    aio_context_destroy(ctx);
}

TEST(aio_handler, context_may_go_while_removed_ones_are_still_armed)
{
    AioContext *ctx = test_ring_context(NULL);
    int peer;
    Sink sink = sink_open(ctx, &peer);

    aio_set_fd_handler(ctx, sink.fd, &read_ops, &sink);
    EXPECT_FALSE(aio_poll(ctx, false));
    sink_close(&sink, peer);
    EXPECT_FALSE(list_empty(&ctx->dead_handlers));
    aio_context_destroy(ctx);
}

TEST_ON_EACH_RING(aio_handler, new_file_under_an_old_number_is_not_mixed_up)
{
    AioContext *ctx = test_context(NULL);
    int old_peer, new_peer;
    Sink old = sink_open(ctx, &old_peer);

    aio_set_fd_handler(ctx, old.fd, &read_ops, &old);
    EXPECT_FALSE(aio_poll(ctx, false));
    ASSERT_EQ(write(old_peer, "x", 1), 1);
    aio_set_fd_handler(ctx, old.fd, NULL, NULL);
    close(old.fd);
    Sink new = sink_open(ctx, &new_peer);

    EXPECT_EQ(new.fd, old.fd);
    aio_set_fd_handler(ctx, new.fd, &read_ops, &new);
    for (int i = 0; i < 5; i++) {
        aio_poll(ctx, false);
    }
    EXPECT_EQ(old.calls, 0);
    EXPECT_EQ(new.calls, 0);
    ASSERT_EQ(write(new_peer, "x", 1), 1);
    AIO_WAIT_WHILE(ctx, new.calls < 1);
    close(old_peer);
    sink_close(&new, new_peer);
    aio_context_destroy(ctx);
}

TEST_ON_EACH_RING(aio_handler, inner_pass_calls_the_one_that_polls_again)
{
    AioContext *ctx = test_context(NULL);
    int peer;
    Sink sink = sink_open(ctx, &peer);

    sink.nest = true;
    aio_set_fd_handler(ctx, sink.fd, &read_ops, &sink);
    ASSERT_EQ(write(peer, "xy", 2), 2);
    AIO_WAIT_WHILE(ctx, sink.calls == 0);
    EXPECT_EQ(sink.calls, 2);
    sink_close(&sink, peer);
    aio_context_destroy(ctx);
}

/* --- event notifiers --- */

typedef struct Noted {
    EventNotifier en;
    int calls;
} Noted;

static void noted_cb(void *opaque)
{
    Noted *noted = opaque;

    noted->calls += event_notifier_test_and_clear(&noted->en);
}

TEST(aio_handler, event_notifier_is_a_flag)
{
    static const AioHandlerOps ops = { .read = noted_cb };
    AioContext *ctx = test_context(NULL);
    Noted noted = { .calls = 0 };

    ASSERT_EQ(event_notifier_open(&noted.en, NULL), 0);
    EXPECT_FALSE(event_notifier_test_and_clear(&noted.en));
    event_notifier_set(&noted.en);
    event_notifier_set(&noted.en);
    EXPECT_TRUE(event_notifier_test_and_clear(&noted.en));
    EXPECT_FALSE(event_notifier_test_and_clear(&noted.en));

    event_notifier_set(&noted.en); /* before it is attached: not lost */
    aio_set_event_notifier(ctx, &noted.en, &ops, &noted);
    AIO_WAIT_WHILE(ctx, noted.calls < 1);
    event_notifier_set(&noted.en);
    AIO_WAIT_WHILE(ctx, noted.calls < 2);
    EXPECT_FALSE(aio_poll(ctx, false));
    aio_set_event_notifier(ctx, &noted.en, NULL, NULL);
    event_notifier_close(&noted.en);
    event_notifier_close(&noted.en);
    EXPECT_EQ(noted.en.fd, -1);
    aio_context_destroy(ctx);
}

/* --- the ring --- */

#define CROWD 200

TEST_ON_EACH_RING(aio_handler, crowd_overflows_both_rings_and_all_are_called)
{
    static Sink crowd[CROWD];
    static int peers[CROWD];
    AioParams params = { .ring_entries = 4 }; /* and 16 completions */
    AioContext *ctx = test_context(&params);
    int called;

    for (int i = 0; i < CROWD; i++) {
        crowd[i] = sink_open(ctx, &peers[i]);
        aio_set_fd_handler(ctx, crowd[i].fd, &read_ops, &crowd[i]);
    }
    EXPECT_FALSE(aio_poll(ctx, false));
    for (int i = 0; i < CROWD; i++) {
        ASSERT_EQ(write(peers[i], "x", 1), 1);
    }
    do {
        aio_poll(ctx, true);
        called = 0;
        for (int i = 0; i < CROWD; i++) {
            EXPECT_LE(crowd[i].calls, 1);
            called += crowd[i].calls;
        }
    } while (called < CROWD);
    for (int i = 0; i < CROWD; i++) {
        sink_close(&crowd[i], peers[i]);
    }
    aio_context_destroy(ctx);
}

static void ignore_signal(int signo)
{
}

TEST_ON_EACH_RING(aio_handler, signals_during_the_sleep_lose_no_event)
{
    struct sigaction action = { .sa_handler = ignore_signal };
    struct itimerval every = { { 0, 300 }, { 0, 300 } };
    AioContext *ctx = test_context(NULL);
    int peer;
    Sink sink = sink_open(ctx, &peer);

    sigaction(SIGALRM, &action, NULL);
    aio_set_fd_handler(ctx, sink.fd, &read_ops, &sink);
    setitimer(ITIMER_REAL, &every, NULL);
    for (int i = 1; i <= 30; i++) {
        /* Several sleeps, each with something to submit, end early with nothing reaped... */
        aio_poll(ctx, true);
        aio_poll(ctx, true);
        EXPECT_EQ(sink.calls, i - 1);
        ASSERT_EQ(write(peer, "x", 1), 1);
        AIO_WAIT_WHILE(ctx, sink.calls < i);
    }
    sink_close(&sink, peer);
    aio_context_destroy(ctx);
}

TEST(aio_handler, idle_pass_that_must_not_block_makes_no_system_call)
{
    AioContext *ctx = test_ring_context(NULL);
    int peer;
    Sink sink = sink_open(ctx, &peer);

    aio_set_fd_handler(ctx, sink.fd, &read_ops, &sink);
    aio_poll(ctx, false);
    uint64_t enters = test_stats(ctx).enters;

    for (int i = 0; i < 10; i++) {
        EXPECT_FALSE(aio_poll(ctx, false));
    }
    EXPECT_EQ(test_stats(ctx).enters, enters);
    ASSERT_EQ(write(peer, "xx", 2), 2);
    for (int i = 1; i <= 2; i++) {
        aio_poll(ctx, true);
        EXPECT_EQ(sink.calls, i);
    }
    EXPECT_LE(test_stats(ctx).enters, enters + 2); /* one a pass: re-arm and wait together */
    sink_close(&sink, peer);
    aio_context_destroy(ctx);
}

/* --- deferred calls --- */

typedef struct Deferred {
    AioContext *ctx;
    AioDefer defer;
    int calls;
    int again;
} Deferred;

static void deferred_cb(void *opaque)
{
    Deferred *d = opaque;

    d->calls++;
    if (d->again > 0) {
        d->again--;
        aio_defer(d->ctx, &d->defer);
    }
}

static void ask_twice_bh(void *opaque)
{
    Deferred *d = opaque;

    aio_defer(d->ctx, &d->defer);
    aio_defer(d->ctx, &d->defer);
    EXPECT_EQ(d->calls, 0);
}

TEST(aio_handler, deferred_call_is_made_once_at_the_end_of_the_pass)
{
    AioContext *ctx = test_context(NULL);
    Deferred d = { .ctx = ctx };

    aio_defer_init(&d.defer, deferred_cb, &d);
    aio_bh_schedule_oneshot(ctx, ask_twice_bh, &d);
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_EQ(d.calls, 1);
    EXPECT_FALSE(aio_poll(ctx, false));
    EXPECT_EQ(d.calls, 1);

    /* asked for between passes: the next pass must not sleep over it */
    aio_defer(ctx, &d.defer);
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_EQ(d.calls, 2);

    /* one that asks for itself is made once a pass */
    d.again = 2;
    aio_defer(ctx, &d.defer);
    aio_defer_flush(ctx);
    EXPECT_EQ(d.calls, 3);
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_TRUE(aio_poll(ctx, true));
    EXPECT_EQ(d.calls, 5);
    EXPECT_FALSE(aio_poll(ctx, false));
    aio_context_destroy(ctx);
}

TEST_MAIN()
