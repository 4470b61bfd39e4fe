/*
 * test-channel.c - what every kind of channel promises, on each kind
 */
#include <pthread.h>

#include "io/channel/tests/channel-test.h"

#define STREAM_BYTES (3 * 1000 * 1000)

static void unref_both(Channel *ends[2])
{
    channel_unref(ends[0]);
    channel_unref(ends[1]);
}

/* --- bytes --- */

typedef struct Transfer {
    Channel *ch;
    uint64_t done_bytes;
    ssize_t ret;
    AioContext *ctx; /* to go to first; may be NULL */
    atomic_bool ended;
    AioContext *watcher; /* polls until ended */
} Transfer;

static void transfer_ended(Transfer *t)
{
    AioContext *watcher = t->watcher;

    atomic_store(&t->ended, true); /* the frame may be gone after this */
    aio_notify(watcher);
}

/* In pieces of odd lengths, of several segments each. */
static int pieces(struct iovec iov[3], char *buf, uint64_t done_bytes, size_t *ret_len)
{
    size_t len[3] = { done_bytes % 4096, 0, 1 + done_bytes % 60013 };

    *ret_len = 0;
    for (int i = 0; i < 3; i++) {
        len[i] = MIN(len[i], STREAM_BYTES - done_bytes - *ret_len);
        iov[i] = (struct iovec){ buf + *ret_len, len[i] };
        *ret_len += len[i];
    }
    return 3;
}

static co_fn void send_stream_entry(void *opaque)
{
    Transfer *t = opaque;
    AUTO_FREE char *buf = malloc(70000);

    if (t->ctx) {
        aio_co_reschedule_self(t->ctx);
    }
    while (t->ret >= 0 && t->done_bytes < STREAM_BYTES) {
        struct iovec iov[3];
        size_t len;
        int niov = pieces(iov, buf, t->done_bytes, &len);

        test_pattern(buf, t->done_bytes, len);
        t->ret = channel_co_writev_full(t->ch, iov, niov, NULL);
        t->done_bytes += len;
    }
    transfer_ended(t);
}

static co_fn void receive_stream_entry(void *opaque)
{
    Transfer *t = opaque;
    AUTO_FREE char *buf = malloc(70000);

    if (t->ctx) {
        aio_co_reschedule_self(t->ctx);
    }
    while (t->ret >= 0 && t->done_bytes < STREAM_BYTES) {
        struct iovec iov[3];
        size_t len;
        int niov = pieces(iov, buf, t->done_bytes, &len);

        t->ret = channel_co_readv_full(t->ch, iov, niov, NULL);
        if (!test_pattern_matches(buf, t->done_bytes, len)) {
            t->ret = -EILSEQ;
        }
        t->done_bytes += len;
    }
    transfer_ended(t);
}

/* Both ways at once; contexts may be NULL. */
static void stream_both_ways(AioContext *ctx, Channel *ends[2], AioContext *read_ctx,
                             AioContext *write_ctx)
{
    Transfer transfers[4] = {
        { .ch = ends[0], .ctx = write_ctx }, /* -> */
        { .ch = ends[1], .ctx = read_ctx },
        { .ch = ends[1], .ctx = write_ctx }, /* <- */
        { .ch = ends[0], .ctx = read_ctx },
    };

    for (int i = 0; i < 4; i++) {
        transfers[i].watcher = ctx;
        test_spawn(i % 2 ? receive_stream_entry : send_stream_entry, &transfers[i]);
    }
    for (int i = 0; i < 4; i++) {
        AIO_WAIT_WHILE(ctx, !atomic_load(&transfers[i].ended));
        EXPECT_GE(transfers[i].ret, 0);
        EXPECT_EQ(transfers[i].done_bytes, STREAM_BYTES);
    }
}

TEST_ON_EACH_KIND(channel, bytes_arrive_in_order_both_ways)
{
    AioContext *ctx = test_context(NULL);
    Channel *ends[2];

    pair_fn(ends);
    stream_both_ways(ctx, ends, NULL, NULL);
    unref_both(ends);
    aio_context_destroy(ctx);
}

TEST(channel, bytes_arrive_one_at_a_time)
{
    AioContext *ctx = test_context(NULL);
    char out[300], in[300];
    Channel *ends[2];

    ASSERT_EQ(channel_buffer_pair(7, 1, ends, NULL), 0);
    Op write = { .ch = ends[0], .buf = out, .len_bytes = sizeof(out) };
    Op read = { .ch = ends[1], .buf = in, .len_bytes = sizeof(in) };

    test_pattern(out, 0, sizeof(out));
    op_read_full(&read);
    op_write_full(&write);
    AIO_WAIT_WHILE(ctx, !read.done || !write.done);
    EXPECT_EQ(read.ret, 1);
    EXPECT_EQ(write.ret, 0);
    EXPECT_TRUE(test_pattern_matches(in, 0, sizeof(in)));
    unref_both(ends);
    aio_context_destroy(ctx);
}

static co_fn void long_list_entry(void *opaque)
{
    Op *op = opaque;
    struct iovec iov[200];

    for (int i = 0; i < 200; i++) {
        iov[i] = (struct iovec){ op->buf + 5 * i, i % 7 == 3 ? 0 : 5 };
    }
    op->ret = channel_co_writev_full(op->ch, iov, 200, NULL);
    op->done = true;
}

TEST(channel, list_longer_than_one_call_takes_is_written_whole)
{
    AioContext *ctx = test_context(NULL);
    char out[1000], in[1000], *expect = in;
    Channel *ends[2];

    pair_unix(ends);
    Op write = { .ch = ends[0], .buf = out };
    Op read = { .ch = ends[1], .buf = in, .len_bytes = 5 * (200 - 29) };

    test_pattern(out, 0, sizeof(out));
    test_spawn(long_list_entry, &write);
    op_read_full(&read);
    AIO_WAIT_WHILE(ctx, !read.done || !write.done);
    EXPECT_EQ(read.ret, 1);
    for (int i = 0; i < 200; i++) {
        if (i % 7 != 3) {
            EXPECT_EQ(memcmp(expect, out + 5 * i, 5), 0);
            expect += 5;
        }
    }
    unref_both(ends);
    aio_context_destroy(ctx);
}

TEST_ON_EACH_KIND(channel, nothing_to_transfer_returns_at_once)
{
    AioContext *ctx = test_context(NULL);
    Channel *ends[2];

    pair_fn(ends);
    Op op = { .ch = ends[0], .buf = NULL, .len_bytes = 0, .ret = -1 };

    op_read(&op);
    EXPECT_TRUE(op.done);
    EXPECT_EQ(op.ret, 0);
    op_read_full(&op);
    EXPECT_TRUE(op.done);
    EXPECT_EQ(op.ret, 1);
    op_write_full(&op);
    EXPECT_TRUE(op.done);
    EXPECT_EQ(op.ret, 0);
    unref_both(ends);
    aio_context_destroy(ctx);
}

/* --- ends --- */

TEST_ON_EACH_KIND(channel, end_before_a_message_is_clean_and_inside_one_is_not)
{
    AioContext *ctx = test_context(NULL);
    char buf[10] = "abc", in[10];
    Channel *ends[2];

    for (int sent = 0; sent < 10; sent++) {
        pair_fn(ends);
        Op write = { .ch = ends[0], .buf = buf, .len_bytes = sent };
        Op read = { .ch = ends[1], .buf = in, .len_bytes = 10 };

        op_read_full(&read);
        op_write_full(&write);
        AIO_WAIT_WHILE(ctx, !write.done);
        EXPECT_FALSE(read.done);
        channel_unref(ends[0]);
        AIO_WAIT_WHILE(ctx, !read.done);
        ssize_t cut_off = pair_cut_off(pair_fn);

        EXPECT_EQ(read.ret, sent == 0 || cut_off ? cut_off : -ECONNRESET);
        channel_unref(ends[1]);
    }
    aio_context_destroy(ctx);
}

TEST_ON_EACH_KIND(channel, half_closed_channel_still_reads)
{
    AioContext *ctx = test_context(NULL);
    char ping[5] = "ping", pong[5] = "pong", in[10];
    Channel *ends[2];

    pair_fn(ends);
    Op write = { .ch = ends[0], .buf = ping, .len_bytes = 4 };
    Op read = { .ch = ends[1], .buf = in, .len_bytes = 4 };
    Op end = { .ch = ends[0] };

    op_write_full(&write);
    AIO_WAIT_WHILE(ctx, !write.done);
    op_half_close(&end);
    AIO_WAIT_WHILE(ctx, !end.done);
    EXPECT_EQ(end.ret, 0);
    op_write_full(&write);
    AIO_WAIT_WHILE(ctx, !write.done);
    EXPECT_EQ(write.ret, -ESHUTDOWN);

    op_read_full(&read);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, 1);
    op_read_full(&read);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, 0);

    Op back = { .ch = ends[1], .buf = pong, .len_bytes = 4 };
    Op answer = { .ch = ends[0], .buf = in, .len_bytes = 4 };

    op_write_full(&back);
    op_read_full(&answer);
    AIO_WAIT_WHILE(ctx, !answer.done || !back.done);
    EXPECT_EQ(back.ret, 0);
    EXPECT_EQ(answer.ret, 1);
    EXPECT_EQ(memcmp(in, "pong", 4), 0);
    unref_both(ends);
    aio_context_destroy(ctx);
}

static Op fill(Channel *ch, char *buf, size_t len_bytes)
{
    return (Op){ .ch = ch, .buf = buf, .len_bytes = len_bytes };
}

TEST_ON_EACH_KIND(channel, shutdown_wakes_the_reader_and_the_writer)
{
    AioContext *ctx = test_context(NULL);
    AUTO_FREE char *much = calloc(1, 64 << 20);
    char in[4];
    Channel *ends[2];

    pair_fn(ends);
    Op write = fill(ends[0], much, 64 << 20);
    Op read = { .ch = ends[0], .buf = in, .len_bytes = sizeof(in) };

    op_write_full(&write);
    op_read(&read);
    test_settle(ctx);
    EXPECT_FALSE(write.done);
    EXPECT_FALSE(read.done);
    channel_shutdown(ends[0], CHANNEL_READ);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, -ESHUTDOWN);
    EXPECT_FALSE(write.done);
    channel_shutdown(ends[0], CHANNEL_READ | CHANNEL_WRITE);
    AIO_WAIT_WHILE(ctx, !write.done);
    EXPECT_EQ(write.ret, -ESHUTDOWN);
    channel_shutdown(ends[0], CHANNEL_READ | CHANNEL_WRITE);
    op_read(&read);
    EXPECT_TRUE(read.done);
    EXPECT_EQ(read.ret, -ESHUTDOWN);
    op_wait_readable(&read);
    EXPECT_TRUE(read.done);
    EXPECT_EQ(read.ret, -ESHUTDOWN);
    unref_both(ends);
    aio_context_destroy(ctx);
}

TEST_ON_EACH_KIND(channel, peer_sees_the_end_of_a_channel_that_was_shut_down)
{
    AioContext *ctx = test_context(NULL);
    char in[4];
    Channel *ends[2];

    pair_fn(ends);
    Op read = { .ch = ends[1], .buf = in, .len_bytes = sizeof(in) };

    op_read(&read);
    channel_shutdown(ends[0], CHANNEL_READ | CHANNEL_WRITE);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, pair_cut_off(pair_fn));
    unref_both(ends);
    aio_context_destroy(ctx);
}

TEST_ON_EACH_KIND(channel, writing_to_a_peer_that_has_gone_fails_without_a_signal)
{
    AioContext *ctx = test_context(NULL);
    AUTO_FREE char *much = calloc(1, 64 << 20);
    Channel *ends[2];

    pair_fn(ends);
    Op write = fill(ends[0], much, 64 << 20);

    op_write_full(&write);
    test_settle(ctx);
    EXPECT_FALSE(write.done);
    channel_unref(ends[1]);
    AIO_WAIT_WHILE(ctx, !write.done);
    EXPECT_TRUE(write.ret == -EPIPE || write.ret == -ECONNRESET);
    op_write_full(&write);
    AIO_WAIT_WHILE(ctx, !write.done);
    EXPECT_EQ(write.ret, -EPIPE);
    channel_unref(ends[0]);
    aio_context_destroy(ctx);
}

TEST_ON_EACH_KIND(channel, deadline_ends_a_wait_to_read_and_to_write)
{
    AioContext *ctx = test_context(NULL);
    AUTO_FREE char *much = calloc(1, 64 << 20);
    char in[4];
    Channel *ends[2];

    pair_fn(ends);
    Op write = fill(ends[0], much, 64 << 20);
    Op read = { .ch = ends[0], .buf = in, .len_bytes = sizeof(in) };

    channel_set_deadline(ends[0], CHANNEL_READ | CHANNEL_WRITE, aio_now_ns() + 2000000);
    op_write_full(&write);
    op_read(&read);
    AIO_WAIT_WHILE(ctx, !write.done || !read.done);
    EXPECT_EQ(write.ret, -ETIMEDOUT);
    EXPECT_EQ(read.ret, -ETIMEDOUT);
    EXPECT_EQ(ctx->nb_timers, 0);

    /* and no deadline is none */
    channel_set_deadline(ends[0], CHANNEL_READ, -1);
    op_read(&read);
    EXPECT_EQ(ctx->nb_timers, 0);
    channel_shutdown(ends[0], CHANNEL_READ);
    AIO_WAIT_WHILE(ctx, !read.done);
    unref_both(ends);
    aio_context_destroy(ctx);
}

/* --- waiting --- */

TEST_ON_EACH_KIND(channel, spurious_wake_ups_are_tolerated)
{
    AioContext *ctx = test_context(NULL);
    char in[4], out[4] = "abc";
    Channel *ends[2];

    pair_fn(ends);
    Op read = { .ch = ends[0], .buf = in, .len_bytes = 4 };
    Op write = { .ch = ends[1], .buf = out, .len_bytes = 4 };

    op_read_full(&read);
    for (int i = 0; i < 5; i++) {
        channel_wake(ends[0], CHANNEL_READ);
        channel_wake(ends[0], CHANNEL_WRITE);
        test_settle(ctx);
        EXPECT_FALSE(read.done);
    }
    op_write_full(&write);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, 1);
    unref_both(ends);
    aio_context_destroy(ctx);
}

TEST_ON_EACH_KIND(channel, yield_waits_until_something_can_be_read)
{
    AioContext *ctx = test_context(NULL);
    char out[4] = "abc", in;
    Channel *ends[2];

    pair_fn(ends);
    Op wait = { .ch = ends[0] }, read = { .ch = ends[0], .buf = &in, .len_bytes = 1 };
    Op write = { .ch = ends[1], .buf = out, .len_bytes = 2 };

    op_wait_readable(&wait);
    test_settle(ctx);
    EXPECT_FALSE(wait.done);
    op_write_full(&write);
    AIO_WAIT_WHILE(ctx, !wait.done || !write.done);
    EXPECT_EQ(wait.ret, 0);
    /* what is left of it can still be read */
    op_read(&read);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, 1);
    op_wait_readable(&wait);
    AIO_WAIT_WHILE(ctx, !wait.done);
    EXPECT_EQ(wait.ret, 0);
    unref_both(ends);
    aio_context_destroy(ctx);
}

/* --- wait slots --- */

typedef struct Slotted {
    WaitSlot slot;
    bool woken;
    bool done;
} Slotted;

static co_fn void abandon_entry(void *opaque)
{
    Slotted *s = opaque;

    wait_slot_prepare(&s->slot);
    wait_slot_wake(&s->slot); /* as another thread might, before we are away */
    wait_slot_abandon(&s->slot);
    wait_slot_prepare(&s->slot);
    s->woken = wait_slot_yield(&s->slot, aio_now_ns() + 1000000);
    s->done = true;
}

TEST(wait_slot, waker_that_was_faster_than_the_change_of_mind_does_not_wake_the_next_wait)
{
    AioContext *ctx = test_context(NULL);
    Slotted s = { .woken = true };

    test_spawn(abandon_entry, &s);
    AIO_WAIT_WHILE(ctx, !s.done);
    EXPECT_FALSE(s.woken);
    aio_context_destroy(ctx);
}

static co_fn void slot_wait_entry(void *opaque)
{
    Slotted *s = opaque;

    wait_slot_prepare(&s->slot);
    s->woken = wait_slot_yield(&s->slot, -1);
    s->done = true;
}

TEST(wait_slot, second_waker_finds_nobody)
{
    AioContext *ctx = test_context(NULL);
    Slotted s = { .woken = false };

    wait_slot_wake(&s.slot);
    test_spawn(slot_wait_entry, &s);
    test_settle(ctx);
    EXPECT_FALSE(s.done);
    wait_slot_wake(&s.slot);
    wait_slot_wake(&s.slot);
    EXPECT_TRUE(s.done);
    EXPECT_TRUE(s.woken);
    aio_context_destroy(ctx);
}

/* --- ends of directions, by a kind that counts --- */

typedef struct Counting {
    Channel base;
    int vacated[3];
    int shut[3];
    int attempts;
    bool shut_inside;
} Counting;

static co_fn ssize_t counting_co_readv(Channel *ch, const struct iovec *iov, int niov,
                                       ChannelFds *fds)
{
    Counting *c = container_of(ch, Counting, base);

    c->attempts++;
    if (c->shut_inside) {
        channel_shutdown(ch, CHANNEL_READ);
        EXPECT_EQ(c->vacated[CHANNEL_READ], 0); /* we are still in it */
    }
    return 1;
}

static void counting_shutdown(Channel *ch, unsigned directions)
{
    Counting *c = container_of(ch, Counting, base);

    c->shut[CHANNEL_READ] += !!(directions & CHANNEL_READ);
    c->shut[CHANNEL_WRITE] += !!(directions & CHANNEL_WRITE);
    if (directions & CHANNEL_WRITE) {
        /* somebody comes and goes before the one who shuts down gets to vacate it */
        Op write = { .ch = ch, .buf = (char[]){ 0 }, .len_bytes = 1 };

        op_write_full(&write);
        EXPECT_EQ(write.ret, -ESHUTDOWN);
    }
}

static void counting_vacated(Channel *ch, ChannelCondition direction)
{
    container_of(ch, Counting, base)->vacated[direction]++;
}

static void counting_destroy(Channel *ch)
{
    container_of(ch, Counting, base)->attempts = -1;
}

TEST(channel, direction_is_vacated_once_and_after_the_last_one_has_left)
{
    static const ChannelOps ops = {
        .co_readv = counting_co_readv,
        .shutdown = counting_shutdown,
        .vacated = counting_vacated,
        .destroy = counting_destroy,
    };
    AioContext *ctx = test_context(NULL);
    static Counting c;
    char in;
    Op read = { .ch = &c.base, .buf = &in, .len_bytes = 1 };

    channel_init(&c.base, &ops, "counting");
    op_read(&read);
    EXPECT_EQ(read.ret, 1);
    EXPECT_EQ(c.vacated[CHANNEL_READ], 0);
    c.shut_inside = true;
    op_read(&read);
    EXPECT_EQ(read.ret, 1); /* that byte had come before */
    EXPECT_EQ(c.vacated[CHANNEL_READ], 1);
    for (int i = 0; i < 2; i++) {
        op_read(&read);
        EXPECT_EQ(read.ret, -ESHUTDOWN);
        channel_shutdown(&c.base, CHANNEL_READ | CHANNEL_WRITE);
    }
    EXPECT_EQ(c.attempts, 2);
    EXPECT_EQ(c.vacated[CHANNEL_READ], 1);
    EXPECT_EQ(c.vacated[CHANNEL_WRITE], 1);
    EXPECT_EQ(c.shut[CHANNEL_READ], 1);
    EXPECT_EQ(c.shut[CHANNEL_WRITE], 1);
    channel_unref(&c.base);
    EXPECT_EQ(c.attempts, -1);
    aio_context_destroy(ctx);
}

static void second_reader(void *opaque)
{
    AioContext *ctx = test_context(NULL);
    char in[4];
    Channel *ends[2];

    pair_unix(ends);
    Op one = { .ch = ends[0], .buf = in, .len_bytes = 4 }, two = one;

    op_read(&one);
    op_read(&two);
    aio_poll(ctx, false);
}

TEST(channel, second_reader_at_a_time_aborts)
{
    EXPECT_DEATH(second_reader, NULL, SIGABRT, "SIDE_BUSY");
}

/* The descriptor that end waits with in @ctx is watched for @events; 0 = not at all. */
static void expect_watched(AioContext *ctx, int fd, uint32_t events)
{
    AioHandler *h = (unsigned)fd < ctx->nb_handlers ? ctx->handlers[fd] : NULL;
    uint32_t watched = h ? (h->ops.read ? 1 : 0) | (h->ops.write ? 2 : 0) : 0;

    EXPECT_EQ(watched, events);
}

TEST(channel, reader_and_writer_wait_with_one_handler_in_one_context)
{
    AioContext *ctx = test_context(NULL);
    AUTO_FREE char *much = calloc(1, 64 << 20);
    char in[4], out[4] = "abc";
    int fds[2];
    Channel *ends[2];

    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    ends[0] = channel_socket_adopt(fds[0], NULL);
    ends[1] = channel_socket_adopt(fds[1], NULL);
    Op write = fill(ends[0], much, 64 << 20);
    Op read = { .ch = ends[0], .buf = in, .len_bytes = 4 };
    Op peer = { .ch = ends[1], .buf = out, .len_bytes = 4 };

    op_read_full(&read);
    expect_watched(ctx, fds[0], CHANNEL_READ);
    op_write_full(&write);
    expect_watched(ctx, fds[0], CHANNEL_READ | CHANNEL_WRITE);
    op_write_full(&peer);
    AIO_WAIT_WHILE(ctx, !read.done);
    EXPECT_EQ(read.ret, 1);
    EXPECT_FALSE(write.done);
    expect_watched(ctx, fds[0], CHANNEL_WRITE);
    op_read_full(&read);
    expect_watched(ctx, fds[0], CHANNEL_READ | CHANNEL_WRITE);
    channel_shutdown(ends[0], CHANNEL_WRITE);
    AIO_WAIT_WHILE(ctx, !write.done);
    expect_watched(ctx, fds[0], CHANNEL_READ);
    channel_shutdown(ends[0], CHANNEL_READ);
    AIO_WAIT_WHILE(ctx, !read.done);
    expect_watched(ctx, fds[0], 0);
    unref_both(ends);
    aio_context_destroy(ctx);
}

typedef struct Wanderer {
    Channel *ch;
    AioContext *first, *second;
    int reads;
    AioContext *found_in[4];
} Wanderer;

static co_fn void wander_entry(void *opaque)
{
    Wanderer *w = opaque;

    for (int i = 0; i < 4; i++) {
        char byte;

        aio_co_reschedule_self(i % 2 ? w->second : w->first);
        EXPECT_EQ(channel_co_read_full(w->ch, &byte, 1), 1);
        w->found_in[i] = aio_current();
        w->reads++;
    }
}

TEST(channel, wait_is_in_the_context_that_the_coroutine_is_in)
{
    AioContext *first = test_context(NULL), *second;
    int fds[2];

    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    Wanderer w = { .ch = channel_socket_adopt(fds[0], NULL), .first = first };

    w.second = second = aio_context_create("second", NULL, NULL);
    ASSERT_TRUE(second);
    test_spawn(wander_entry, &w);
    for (int i = 0; i < 4; i++) {
        AioContext *here = i % 2 ? second : first, *there = i % 2 ? first : second;

        aio_context_enter(here);
        test_settle(here);
        expect_watched(here, fds[0], CHANNEL_READ);
        expect_watched(there, fds[0], 0);
        ASSERT_EQ(write(fds[1], "x", 1), 1);
        aio_context_enter(there);
        EXPECT_FALSE(aio_poll(there, false)); /* nothing of it is here */
        EXPECT_EQ(w.reads, i);
        aio_context_enter(here);
        AIO_WAIT_WHILE(here, w.reads == i);
        EXPECT_TRUE(w.found_in[i] == here);
    }
    channel_unref(w.ch);
    close(fds[1]);
    aio_context_destroy(second);
    aio_context_enter(first);
    aio_context_destroy(first);
}

static co_fn void echo_entry(void *opaque)
{
    Op *op = opaque;
    char byte;

    while ((op->ret = channel_co_read_full(op->ch, &byte, 1)) == 1) {
        EXPECT_EQ(channel_co_write_full(op->ch, &byte, 1), 0);
    }
    op->done = true;
}

TEST(channel, wait_makes_no_system_call_of_its_own)
{
    AioContext *ctx = test_ring_context(NULL);
    int fds[2];

    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    Op echo = { .ch = channel_socket_adopt(fds[0], NULL) };

    test_spawn(echo_entry, &echo);
    test_settle(ctx);
    AioStats before = test_stats(ctx), after;

    for (int i = 0; i < 100; i++) {
        char byte = 'a';

        ASSERT_EQ(write(fds[1], &byte, 1), 1);
        aio_poll(ctx, true);
        ASSERT_EQ(recv(fds[1], &byte, 1, MSG_DONTWAIT), 1); /* echoed in that one pass */
    }
    after = test_stats(ctx);
    EXPECT_LE(after.enters - before.enters, 100);
    close(fds[1]);
    AIO_WAIT_WHILE(ctx, !echo.done);
    EXPECT_EQ(echo.ret, 0);
    channel_unref(echo.ch);
    aio_context_destroy(ctx);
}

static co_fn void swallow_entry(void *opaque)
{
    Op *op = opaque;

    for (int i = 0; i < 5000; i++) {
        EXPECT_EQ(channel_co_read_full(op->ch, op->buf, 1), 1);
    }
    op->done = true;
}

TEST(channel, peer_that_always_has_more_does_not_keep_the_thread)
{
    AioContext *ctx = test_context(NULL);
    char bytes[5000], in;
    Channel *ends[2];

    ASSERT_EQ(channel_buffer_pair(sizeof(bytes), 0, ends, NULL), 0);
    Op write = { .ch = ends[0], .buf = bytes, .len_bytes = sizeof(bytes) };
    Op read = { .ch = ends[1], .buf = &in };
    int passes = 0;

    op_write_full(&write);
    EXPECT_TRUE(write.done);
    test_spawn(swallow_entry, &read);
    while (!read.done) {
        aio_poll(ctx, true);
        passes++;
    }
    EXPECT_GE(passes, 10);
    unref_both(ends);
    aio_context_destroy(ctx);
}

/* --- threads --- */

typedef struct Threads {
    AioContext *ctx;
    IOThread *reader, *writer;
} Threads;

static main_fn Threads threads_start(void)
{
    Threads t = { .ctx = test_context(NULL) };

    t.reader = iothread_create("reader", NULL, NULL);
    t.writer = iothread_create("writer", NULL, NULL);
    ASSERT_TRUE(t.reader && t.writer);
    return t;
}

static main_fn void threads_stop(Threads *t)
{
    iothread_unref(t->reader);
    iothread_unref(t->writer);
    aio_context_destroy(t->ctx);
}

TEST_ON_EACH_KIND(channel, one_thread_reads_while_another_writes)
{
    Threads t = threads_start();
    Channel *ends[2];

    pair_fn(ends);
    stream_both_ways(t.ctx, ends, iothread_context(t.reader), iothread_context(t.writer));
    unref_both(ends);
    threads_stop(&t);
}

static co_fn void read_until_shut_entry(void *opaque)
{
    Transfer *t = opaque;
    char buf[100];

    aio_co_reschedule_self(t->ctx);
    while ((t->ret = channel_co_read(t->ch, buf, sizeof(buf))) > 0) {
        t->done_bytes += t->ret;
    }
    channel_unref(t->ch);
    transfer_ended(t);
}

static co_fn void write_until_shut_entry(void *opaque)
{
    Transfer *t = opaque;
    char buf[1000] = { 0 };

    aio_co_reschedule_self(t->ctx);
    while ((t->ret = channel_co_write_full(t->ch, buf, sizeof(buf))) == 0) {
        t->done_bytes += sizeof(buf);
    }
    channel_unref(t->ch);
    transfer_ended(t);
}

#define SHUTDOWN_ROUNDS 100

/* The main thread is the third; where the other two are at that moment differs from round to
 * round. */
TEST_ON_EACH_KIND(channel, shutdown_from_a_third_thread_ends_reader_and_writer)
{
    Threads t = threads_start();

    for (int i = 0; i < SHUTDOWN_ROUNDS; i++) {
        Channel *ends[2];

        pair_fn(ends);
        Transfer read = { .ch = channel_ref(ends[0]),
                          .ctx = iothread_context(t.reader),
                          .watcher = t.ctx };
        Transfer write = { .ch = channel_ref(ends[0]),
                           .ctx = iothread_context(t.writer),
                           .watcher = t.ctx };

        test_spawn(read_until_shut_entry, &read);
        test_spawn(write_until_shut_entry, &write);
        for (int spin = 0; spin < i * 50; spin++) {
            cpu_relax();
        }
        channel_shutdown(ends[0], CHANNEL_READ | CHANNEL_WRITE);
        channel_unref(ends[0]);
        AIO_WAIT_WHILE(t.ctx, !atomic_load(&read.ended) || !atomic_load(&write.ended));
        EXPECT_EQ(read.ret, -ESHUTDOWN);
        EXPECT_EQ(write.ret, -ESHUTDOWN);
        channel_unref(ends[1]);
    }
    threads_stop(&t);
}

TEST_MAIN()
