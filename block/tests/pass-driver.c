/*
 * pass-driver.c - a filter for tests
 */
#include "block/tests/pass-driver.h"

#include <string.h>

#include "io/base/test.h"

typedef struct Held {
    ListNode node;
    Coroutine *co;
} Held;

static unsigned next_rank = 1;

void pass_ranks_reset(void)
{
    next_rank = 1;
}

PassState *pass_state(const BlockNode *node)
{
    ASSERT_TRUE(node->driver == &pass_driver);
    return node->state;
}

/* --- holding back --- */

static void let_go(PassState *s)
{
    List held = LIST_INIT(held);
    ListNode *node;

    pthread_mutex_lock(&s->lock);
    list_splice_back(&held, &s->held);
    pthread_mutex_unlock(&s->lock);
    while ((node = list_pop_front(&held)) != NULL) {
        Coroutine *co = list_entry(node, Held, node)->co;

        aio_co_schedule(co_home(co), co);
    }
}

static void set_hold(PassState *s, bool hold)
{
    pthread_mutex_lock(&s->lock);
    s->hold = hold;
    pthread_mutex_unlock(&s->lock);
    if (!hold) {
        let_go(s);
    }
}

void pass_hold(BlockNode *node, bool hold)
{
    set_hold(pass_state(node), hold);
}

unsigned pass_nb_held(const BlockNode *node)
{
    PassState *s = pass_state(node);
    unsigned nb = 0;

    pthread_mutex_lock(&s->lock);
    list_for_each(it, &s->held) {
        nb++;
    }
    pthread_mutex_unlock(&s->lock);
    return nb;
}

static co_fn void pass(BlockNode *node)
{
    PassState *s = node->state;
    Held held = { .co = co_self() };
    bool hold;

    atomic_fetch_add(&s->nb_requests, 1);
    pthread_mutex_lock(&s->lock);
    hold = s->hold && !s->drained;
    if (hold) {
        list_push_back(&s->held, &held.node);
    }
    pthread_mutex_unlock(&s->lock);
    if (hold) {
        co_yield();
    }
}

/* --- activity --- */

static void activity_bh(void *opaque)
{
    BlockNode *node = opaque;
    PassState *s = node->state;

    atomic_fetch_add(&s->nb_activities, 1);
    bdrv_activity_end(node);
}

void pass_act(BlockNode *node, AioContext *ctx)
{
    PassState *s = pass_state(node);

    s->activity_ctx = ctx;
    s->refused = !bdrv_activity_begin(node);
    if (!s->refused) {
        aio_bh_schedule_oneshot(ctx, activity_bh, node);
    }
}

/* --- the driver --- */

static int pass_driver_open(BlockNode *node, Opts *opts, Error *err)
{
    PassState *s = node->state;
    bool fail = false;
    int ret = opts_get_bool(opts, "fail-open", &fail, err);

    if (ret < 0) {
        return ret;
    }
    if (fail) {
        return error_set(err, -EIO, "as you wish");
    }
    pthread_mutex_init(&s->lock, NULL);
    list_init(&s->held);
    return 0;
}

static void pass_driver_close(BlockNode *node)
{
    PassState *s = node->state;

    assert(list_empty(&s->held));
    pthread_mutex_destroy(&s->lock);
}

static void pass_drained_begin(BlockNode *node)
{
    PassState *s = node->state;

    assert(!s->drained);
    pthread_mutex_lock(&s->lock);
    s->drained = true;
    pthread_mutex_unlock(&s->lock);
    s->begun++;
    s->begun_rank = next_rank++;
    let_go(s);
}

static void pass_drained_end(BlockNode *node)
{
    PassState *s = node->state;

    assert(s->drained);
    pthread_mutex_lock(&s->lock);
    s->drained = false;
    pthread_mutex_unlock(&s->lock);
    s->ended++;
    s->ended_rank = next_rank++;
    if (s->refused) {
        pass_act(node, s->activity_ctx);
    }
}

static co_fn GRAPH_RD int pass_co_preadv(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                const struct iovec *iov, int niov, BlkFlags flags)
{
    pass(node);
    return bdrv_pass_co_preadv(node, offset_bytes, len_bytes, iov, niov, flags);
}

static co_fn GRAPH_RD int pass_co_pwritev(BlockNode *node, uint64_t offset_bytes,
                                          uint64_t len_bytes, const struct iovec *iov, int niov,
                                          BlkFlags flags)
{
    pass(node);
    return bdrv_pass_co_pwritev(node, offset_bytes, len_bytes, iov, niov, flags);
}

static co_fn GRAPH_RD int pass_co_flush(BlockNode *node)
{
    pass(node);
    return bdrv_pass_co_flush(node);
}

static co_fn GRAPH_RD int pass_co_pdiscard(BlockNode *node, uint64_t offset_bytes,
                                           uint64_t len_bytes)
{
    pass(node);
    return bdrv_pass_co_pdiscard(node, offset_bytes, len_bytes);
}

static co_fn GRAPH_RD int pass_co_pwrite_zeroes(BlockNode *node, uint64_t offset_bytes,
                                                uint64_t len_bytes, BlkFlags flags)
{
    pass(node);
    return bdrv_pass_co_pwrite_zeroes(node, offset_bytes, len_bytes, flags);
}

const BlockDriver pass_driver = {
    .name = "pass",
    .instance_bytes = sizeof(PassState),
    .is_filter = true,
    .write_flags = BLK_FUA,
    .open = pass_driver_open,
    .close = pass_driver_close,
    .drained_begin = pass_drained_begin,
    .drained_end = pass_drained_end,
    .co_preadv = pass_co_preadv,
    .co_pwritev = pass_co_pwritev,
    .co_flush = pass_co_flush,
    .co_pdiscard = pass_co_pdiscard,
    .co_pwrite_zeroes = pass_co_pwrite_zeroes,
};

BlockNode *pass_open(const char *options, Error *err)
{
    Opts opts;
    BlockNode *node;

    ASSERT_EQ(opts_parse(&opts, "--disk", options, NULL, NULL), 0);
    node = bdrv_open_driver(&pass_driver, &opts, err);
    opts_finish(&opts);
    return node;
}

BlockNode *pass_insert(BlockNode *node, const char *options, Error *err)
{
    Opts opts;
    BlockNode *filter;

    ASSERT_EQ(opts_parse(&opts, "insert", options, NULL, NULL), 0);
    filter = bdrv_insert_filter_driver(&pass_driver, node, &opts, err);
    opts_finish(&opts);
    return filter;
}
