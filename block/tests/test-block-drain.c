/*
 * test-block-drain.c - what drained sections cover, wait for and let go; contexts stepped by hand
 */
#include "block/block-drain.h"

#include <stdio.h>
#include <string.h>

#include "block/block-aio.h"
#include "block/block-backend-int.h"
#include "block/tests/block-test.h"
#include "block/tests/mem-driver.h"
#include "block/tests/pass-driver.h"

#define KIB 1024u

static const MemConfig config = { .length_bytes = 64 * KIB };

/*
 *     disk.blk --> top --> disk.node <-- reader        other.blk --> other.node
 */
typedef struct World {
    Env env;
    MemDisk disk, other;
    BlockNode *top;
    BlockBackend *reader;
    char buf[512];
} World;

static void world_init(World *w)
{
    memset(w, 0, sizeof(*w));
    env_init(&w->env, 3);
    mem_open(&w->disk, &config);
    mem_open(&w->other, &config);
    w->top = pass_insert(w->disk.node, "node-name=top", NULL);
    ASSERT_TRUE(w->top != NULL);
    w->reader = blk_create("r", w->disk.node, BLK_PERM_READ, BLK_PERM_ALL, NULL);
    ASSERT_TRUE(w->reader != NULL);
    pass_state(w->top)->begun = pass_state(w->top)->ended = 0; /* its own insertion */
}

static void world_finish(World *w)
{
    EXPECT_FALSE(w->disk.node->drain.covered || w->other.node->drain.covered);
    EXPECT_EQ(blk_close(w->reader), 0);
    EXPECT_EQ(mem_close(&w->disk), 0);
    EXPECT_EQ(mem_close(&w->other), 0);
    env_finish(&w->env);
}

static bool is_closed(const DrainPoint *point)
{
    EXPECT_EQ(inflight_is_closed(&point->in_flight), point->covered);
    return point->covered;
}

/* What is covered, as letters: Backend, Top, Node, Reader; O for the other disk, o for its node. */
static const char *covered(const World *w)
{
    static char text[8];

    snprintf(text, sizeof(text), "%s%s%s%s%s%s", is_closed(&w->disk.blk->drain) ? "B" : "",
             is_closed(&w->top->drain) ? "T" : "", is_closed(&w->disk.node->drain) ? "N" : "",
             is_closed(&w->reader->drain) ? "R" : "", is_closed(&w->other.blk->drain) ? "O" : "",
             is_closed(&w->other.node->drain) ? "o" : "");
    return text;
}

/* --- what a section covers --- */

TEST(cover, a_subtree_and_all_that_can_send_requests_into_it)
{
    World w;

    world_init(&w);
    EXPECT_STREQ(covered(&w), "");
    bdrv_drained_begin(w.disk.node);
    EXPECT_STREQ(covered(&w), "BTNR");
    bdrv_drained_end(w.disk.node);
    EXPECT_STREQ(covered(&w), "");
    bdrv_drained_begin(w.top); /* the reader is above what is below */
    EXPECT_STREQ(covered(&w), "BTNR");
    bdrv_drained_end(w.top);
    blk_drained_begin(w.reader);
    EXPECT_STREQ(covered(&w), "BTNR");
    blk_drained_end(w.reader);
    bdrv_drained_begin(w.other.node);
    EXPECT_STREQ(covered(&w), "Oo");
    bdrv_drained_end(w.other.node);
    bdrv_drain_all_begin();
    EXPECT_STREQ(covered(&w), "BTNROo");
    bdrv_drain_all_end();
    EXPECT_STREQ(covered(&w), "");
    world_finish(&w);
}

TEST(cover, sections_nest_and_need_not_end_in_order)
{
    World w;

    world_init(&w);
    bdrv_drained_begin(w.disk.node);
    bdrv_drain_all_begin();
    blk_drained_begin(w.disk.blk);
    bdrv_drained_begin(w.disk.node);
    EXPECT_EQ(pass_state(w.top)->begun, 1u);
    bdrv_drained_end(w.disk.node);
    bdrv_drained_end(w.disk.node);
    EXPECT_STREQ(covered(&w), "BTNROo");
    bdrv_drain_all_end();
    EXPECT_STREQ(covered(&w), "BTNR");
    EXPECT_EQ(pass_state(w.top)->ended, 0u);
    blk_drained_end(w.disk.blk);
    EXPECT_STREQ(covered(&w), "");
    EXPECT_EQ(pass_state(w.top)->begun, 1u);
    EXPECT_EQ(pass_state(w.top)->ended, 1u);
    world_finish(&w);
}

TEST(cover, parents_stop_before_children_and_go_on_after_them)
{
    World w;
    BlockNode *higher, *lower;

    world_init(&w);
    higher = pass_insert(w.top, "", NULL);
    lower = pass_insert(w.disk.node, "", NULL);
    ASSERT_TRUE(higher && lower);
    pass_ranks_reset();
    bdrv_drained_begin(w.disk.node);
    bdrv_drained_end(w.disk.node);
    EXPECT_EQ(pass_state(higher)->begun_rank, 1u);
    EXPECT_EQ(pass_state(w.top)->begun_rank, 2u);
    EXPECT_EQ(pass_state(lower)->begun_rank, 3u);
    EXPECT_EQ(pass_state(lower)->ended_rank, 4u);
    EXPECT_EQ(pass_state(w.top)->ended_rank, 5u);
    EXPECT_EQ(pass_state(higher)->ended_rank, 6u);
    world_finish(&w);
}

TEST(cover, follows_the_graph_when_that_changes_in_a_section)
{
    World w;
    BlockBackend *late;
    BlockNode *filter;

    world_init(&w);
    bdrv_drained_begin(w.disk.node);
    late = blk_create("late", w.disk.node, BLK_PERM_READ, BLK_PERM_ALL, NULL);
    ASSERT_TRUE(late != NULL);
    EXPECT_TRUE(is_closed(&late->drain));
    filter = pass_insert(w.disk.node, "", NULL);
    ASSERT_TRUE(filter != NULL);
    EXPECT_TRUE(is_closed(&filter->drain));
    EXPECT_TRUE(pass_state(filter)->drained);
    bdrv_ref(filter);
    EXPECT_EQ(bdrv_remove_filter(filter, NULL), 0);
    EXPECT_TRUE(is_closed(&filter->drain)); /* it still stands above */
    bdrv_unref(filter);
    EXPECT_EQ(blk_close(late), 0);
    EXPECT_EQ(bdrv_remove_filter(w.top, NULL), 0);
    bdrv_drained_end(w.disk.node);
    EXPECT_FALSE(is_closed(&w.disk.node->drain) || is_closed(&w.disk.blk->drain));
    world_finish(&w);
}

TEST(cover, a_disk_opened_while_everything_is_drained_waits_like_all_others)
{
    World w;
    MemDisk late;
    Request req = { .kind = REQ_FLUSH };

    world_init(&w);
    bdrv_drain_all_begin();
    mem_open(&late, &config);
    req.blk = late.blk;
    request_start(&req, w.env.ctx[0]);
    env_settle(&w.env);
    EXPECT_FALSE(req.done);
    bdrv_drain_all_end();
    env_settle(&w.env);
    EXPECT_TRUE(req.done);
    mem_close(&late);
    world_finish(&w);
}

TEST(cover, a_disk_may_be_closed_in_a_section)
{
    World w;
    MemDisk late;

    world_init(&w);
    mem_open(&late, &config);
    bdrv_drain_all_begin();
    EXPECT_EQ(mem_close(&late), 0);
    EXPECT_EQ(late.stats.ops[MEM_FLUSH], 1u);
    bdrv_drain_all_end();
    world_finish(&w);
}

/* --- what a section waits for --- */

TEST(wait, requests_that_a_filter_holds_back_are_let_go)
{
    World w;
    Request reqs[3];

    world_init(&w);
    pass_hold(w.top, true);
    for (unsigned i = 0; i < 3; i++) {
        reqs[i] = (Request){ .blk = w.disk.blk, .kind = REQ_FLUSH };
        request_start(&reqs[i], w.env.ctx[i]);
    }
    env_settle(&w.env);
    EXPECT_EQ(pass_nb_held(w.top), 3u);
    EXPECT_EQ(blk_in_flight(w.disk.blk), 3u);
    env_step_along(&w.env, true);
    blk_drained_begin(w.reader); /* begun at its neighbour */
    env_step_along(&w.env, false);
    EXPECT_TRUE(reqs[0].done && reqs[1].done && reqs[2].done);
    EXPECT_EQ(blk_in_flight(w.disk.blk), 0u);
    blk_drained_end(w.reader);
    pass_hold(w.top, false);
    world_finish(&w);
}

TEST(wait, a_bottom_half_that_is_scheduled_counts)
{
    World w;
    PassState *s;

    world_init(&w);
    s = pass_state(w.top);
    pass_act(w.top, w.env.ctx[1]); /* scheduled in a context that nobody polls yet */
    EXPECT_EQ(s->nb_activities, 0u);
    env_step_along(&w.env, true);
    bdrv_drained_begin(w.disk.node);
    env_step_along(&w.env, false);
    EXPECT_EQ(s->nb_activities, 1u);
    pass_act(w.top, w.env.ctx[1]); /* none begins in a section */
    env_settle(&w.env);
    EXPECT_EQ(s->nb_activities, 1u);
    EXPECT_TRUE(s->refused);
    bdrv_drained_end(w.disk.node);
    env_settle(&w.env);
    EXPECT_EQ(s->nb_activities, 2u); /* the filter has begun it again itself */
    world_finish(&w);
}

TEST(wait, closing_a_node_waits_for_what_it_does_by_itself)
{
    World w;
    BlockNode *filter;

    world_init(&w);
    filter = bdrv_ref(pass_insert(w.other.node, "", NULL));
    EXPECT_EQ(bdrv_remove_filter(filter, NULL), 0);
    pass_act(filter, w.env.ctx[1]);
    env_step_along(&w.env, true);
    bdrv_unref(filter); /* the bottom half would come to freed memory */
    env_step_along(&w.env, false);
    env_settle(&w.env);
    world_finish(&w);
}

typedef struct AioCall {
    BlkAio aio;
    World *w;
    int ret;
    unsigned nb_calls;
    bool in_flight; /* when it was called */
} AioCall;

static void aio_call_cb(void *opaque, int ret)
{
    AioCall *call = opaque;

    call->ret = ret;
    call->nb_calls++;
    call->in_flight = blk_in_flight(call->w->disk.blk) == 1;
}

TEST(wait, a_callback_that_is_still_to_come_counts)
{
    World w;
    AioCall call = { .w = &w, .ret = 1 };

    world_init(&w);
    aio_context_enter(w.env.ctx[0]);
    ASSERT_EQ(blk_aio_flush(&call.aio, w.disk.blk, aio_call_cb, &call), 0);
    aio_context_enter(w.env.main);
    EXPECT_EQ(w.disk.stats.ops[MEM_FLUSH], 1u); /* it is done, but nobody knows */
    EXPECT_EQ(call.nb_calls, 0u);
    EXPECT_EQ(blk_in_flight(w.disk.blk), 1u);
    env_step_along(&w.env, true);
    bdrv_drained_begin(w.disk.node);
    EXPECT_EQ(call.nb_calls, 1u);
    EXPECT_EQ(call.ret, 0);
    EXPECT_TRUE(call.in_flight);
    EXPECT_EQ(blk_in_flight(w.disk.blk), 0u);
    bdrv_drained_end(w.disk.node);
    env_step_along(&w.env, false);
    world_finish(&w);
}

/* A coroutine of the main thread that drains one node and says when. */
typedef struct Drainer {
    BlockNode *node;
    bool begun, may_end, ended;
    Coroutine *co;
} Drainer;

static void drainer_entry(void *opaque)
{
    Drainer *d = opaque;

    assert_in_coroutine();
    d->co = co_self();
    bdrv_drained_begin(d->node);
    d->begun = true;
    if (!d->may_end) {
        co_yield();
    }
    bdrv_drained_end(d->node);
    d->ended = true;
}

static void drainer_start(Drainer *d, BlockNode *node)
{
    *d = (Drainer){ .node = node };
    co_enter(co_create(drainer_entry, d));
}

static void drainer_end(Drainer *d)
{
    d->may_end = true;
    if (d->begun) {
        co_enter(d->co);
    }
}

TEST(wait, a_section_of_one_disk_does_not_wait_for_another)
{
    World w;
    Request slow = { .kind = REQ_READ, .len_bytes = 512 };
    Drainer slow_drainer, drainer;

    world_init(&w);
    slow.blk = w.disk.blk;
    slow.buf = w.buf;
    atomic_store(&w.disk.yield, MEM_YIELD_PARK);
    request_start(&slow, w.env.ctx[0]);
    env_settle(&w.env);
    drainer_start(&slow_drainer, w.disk.node);
    env_settle(&w.env);
    EXPECT_FALSE(slow_drainer.begun);
    drainer_start(&drainer, w.other.node);
    EXPECT_TRUE(drainer.begun);
    drainer_end(&drainer);
    EXPECT_TRUE(drainer.ended);
    EXPECT_STREQ(covered(&w), "BTNR");
    mem_release(&w.disk, 0);
    env_settle(&w.env);
    EXPECT_TRUE(slow_drainer.begun && slow.done);
    drainer_end(&slow_drainer);
    atomic_store(&w.disk.yield, MEM_YIELD_NEVER);
    world_finish(&w);
}

TEST(wait, two_coroutines_wait_for_the_same_request)
{
    World w;
    Request slow = { .kind = REQ_READ, .len_bytes = 512 };
    Drainer first, second;

    world_init(&w);
    slow.blk = w.disk.blk;
    slow.buf = w.buf;
    atomic_store(&w.disk.yield, MEM_YIELD_PARK);
    request_start(&slow, w.env.ctx[0]);
    env_settle(&w.env);
    drainer_start(&first, w.disk.node);
    drainer_start(&second, w.top);
    drainer_end(&first); /* it goes on as soon as it can, and opens nothing for the second */
    mem_release(&w.disk, 0);
    env_settle(&w.env);
    EXPECT_TRUE(first.ended && second.begun);
    EXPECT_STREQ(covered(&w), "BTNR");
    drainer_end(&second);
    EXPECT_STREQ(covered(&w), "");
    atomic_store(&w.disk.yield, MEM_YIELD_NEVER);
    world_finish(&w);
}

/* The backend a coroutine waits for is closed before it can run again. */
TEST(wait, a_backend_is_closed_while_somebody_waits_for_it)
{
    World w;
    MemDisk late;
    Request slow = { .kind = REQ_READ, .len_bytes = 512 };
    Drainer drainer;

    world_init(&w);
    mem_open(&late, &config);
    slow.blk = late.blk;
    slow.buf = w.buf;
    atomic_store(&late.yield, MEM_YIELD_PARK);
    request_start(&slow, w.env.ctx[0]);
    env_settle(&w.env);
    drainer_start(&drainer, late.node);
    EXPECT_FALSE(drainer.begun);
    atomic_store(&late.yield, MEM_YIELD_NEVER);
    mem_release(&late, 0);
    env_step_along(&w.env, true);
    EXPECT_EQ(blk_close(late.blk), 0);
    env_step_along(&w.env, false);
    env_settle(&w.env);
    EXPECT_TRUE(drainer.begun);
    drainer_end(&drainer);
    late.blk = NULL;
    mem_close(&late);
    world_finish(&w);
}

/* --- what a section lets go --- */

#define NB_QUEUED 12

TEST(queue, requests_go_on_in_order_through_a_filter_inserted_meanwhile)
{
    World w;
    Request reqs[NB_QUEUED];
    BlockNode *filter;
    unsigned order = 0;

    world_init(&w);
    bdrv_drain_all_begin();
    for (unsigned i = 0; i < NB_QUEUED; i++) {
        reqs[i] = (Request){ .blk = w.disk.blk, .kind = REQ_FLUSH, .order = &order };
        request_start(&reqs[i], w.env.ctx[1]);
        env_settle(&w.env);
    }
    filter = pass_insert(w.disk.node, "", NULL);
    ASSERT_TRUE(filter != NULL);
    EXPECT_EQ(bdrv_remove_filter(w.top, NULL), 0);
    bdrv_drain_all_end();
    env_settle(&w.env);
    for (unsigned i = 0; i < NB_QUEUED; i++) {
        EXPECT_TRUE(reqs[i].done);
        EXPECT_EQ(reqs[i].rank, i + 1);
    }
    EXPECT_EQ(pass_state(filter)->nb_requests, (unsigned)NB_QUEUED);
    world_finish(&w);
}

TEST(queue, the_end_of_a_section_runs_no_request_itself)
{
    World w;
    Request req = { .kind = REQ_FLUSH };

    world_init(&w);
    req.blk = w.disk.blk;
    blk_drained_begin(w.disk.blk);
    request_start(&req, w.env.main); /* which is the one that ends it */
    env_settle(&w.env);
    blk_drained_end(w.disk.blk);
    EXPECT_FALSE(req.done);
    EXPECT_EQ(blk_in_flight(w.disk.blk), 1u);
    env_settle(&w.env);
    EXPECT_TRUE(req.done);
    world_finish(&w);
}

TEST(queue, callback_requests_wait_too_and_in_the_same_order)
{
    World w;
    AioCall calls[2] = { { .w = &w, .ret = 1 }, { .w = &w, .ret = 1 } };

    world_init(&w);
    blk_drained_begin(w.disk.blk);
    ASSERT_EQ(blk_aio_flush(&calls[0].aio, w.disk.blk, aio_call_cb, &calls[0]), 0);
    ASSERT_EQ(blk_aio_pdiscard(&calls[1].aio, w.disk.blk, 1u << 30, 512, aio_call_cb, &calls[1]),
              0);
    env_settle(&w.env);
    EXPECT_EQ(calls[0].nb_calls + calls[1].nb_calls, 0u);
    blk_drained_end(w.disk.blk);
    env_settle(&w.env);
    EXPECT_EQ(calls[0].nb_calls, 1u);
    EXPECT_EQ(calls[1].nb_calls, 1u);
    EXPECT_EQ(calls[0].ret, 0);
    EXPECT_EQ(calls[1].ret, -EINVAL);
    world_finish(&w);
}

/* --- who is told --- */

typedef struct User {
    int depth;
    unsigned nb_begun;
} User;

static void user_begin(void *opaque)
{
    User *user = opaque;

    user->depth++;
    user->nb_begun++;
}

static void user_end(void *opaque)
{
    User *user = opaque;

    user->depth--;
}

static const BlkUserOps user_ops = { .drained_begin = user_begin, .drained_end = user_end };

TEST(user, is_told_once_however_many_sections_there_are)
{
    World w;
    User user = { 0 }, reader = { 0 };

    world_init(&w);
    blk_set_user(w.disk.blk, &user_ops, &user);
    blk_set_user(w.reader, &user_ops, &reader);
    blk_drained_begin(w.disk.blk);
    bdrv_drain_all_begin();
    EXPECT_EQ(user.depth, 1);
    EXPECT_EQ(reader.depth, 1);
    blk_drained_end(w.disk.blk);
    EXPECT_EQ(user.depth, 1);
    bdrv_drain_all_end();
    EXPECT_EQ(user.depth, 0);
    EXPECT_EQ(reader.depth, 0);
    EXPECT_EQ(user.nb_begun, 1u);
    blk_set_user(w.reader, NULL, NULL);
    bdrv_drain_all_begin();
    bdrv_drain_all_end();
    EXPECT_EQ(user.nb_begun, 2u);
    EXPECT_EQ(reader.nb_begun, 1u);
    blk_set_user(w.disk.blk, NULL, NULL);
    world_finish(&w);
}

TEST(user, who_comes_or_goes_in_a_section_is_told_of_it)
{
    World w;
    User first = { 0 }, second = { 0 };

    world_init(&w);
    blk_set_user(w.disk.blk, &user_ops, &first);
    blk_drained_begin(w.disk.blk);
    blk_set_user(w.disk.blk, &user_ops, &second);
    EXPECT_EQ(first.depth, 0);
    EXPECT_EQ(second.depth, 1);
    blk_drained_end(w.disk.blk);
    EXPECT_EQ(second.depth, 0);
    blk_set_user(w.disk.blk, NULL, NULL);
    world_finish(&w);
}

/* --- peace --- */

TEST(peace, is_told_to_the_users_above_alone_and_queues_nothing)
{
    World w;
    User user = { 0 }, reader = { 0 }, other = { 0 };

    world_init(&w);
    blk_set_user(w.disk.blk, &user_ops, &user);
    blk_set_user(w.reader, &user_ops, &reader);
    blk_set_user(w.other.blk, &user_ops, &other);
    bdrv_want_peace(w.top, true);
    EXPECT_STREQ(covered(&w), "");
    EXPECT_EQ(user.depth, 1);
    EXPECT_EQ(reader.depth, 0); /* it is not above the filter */
    EXPECT_EQ(run_read(w.disk.blk, 0, 512, w.buf), 0);
    bdrv_want_peace(w.disk.node, true);
    EXPECT_EQ(user.depth, 1);
    EXPECT_EQ(reader.depth, 1);
    bdrv_want_peace(w.top, false);
    EXPECT_EQ(user.depth, 1);
    bdrv_want_peace(w.disk.node, false);
    EXPECT_EQ(user.depth, 0);
    EXPECT_EQ(reader.depth, 0);
    EXPECT_EQ(user.nb_begun, 1u);
    EXPECT_EQ(other.nb_begun, 0u);
    blk_set_user(w.disk.blk, NULL, NULL);
    blk_set_user(w.reader, NULL, NULL);
    blk_set_user(w.other.blk, NULL, NULL);
    world_finish(&w);
}

TEST(peace, and_sections_overlap_in_any_order)
{
    World w;
    User user = { 0 }, next = { 0 };
    BlockBackend *late;

    world_init(&w);
    blk_set_user(w.disk.blk, &user_ops, &user);
    blk_drained_begin(w.disk.blk);
    bdrv_want_peace(w.top, true);
    blk_drained_end(w.disk.blk);
    EXPECT_EQ(user.depth, 1);
    blk_drained_begin(w.disk.blk);
    bdrv_want_peace(w.top, false);
    EXPECT_EQ(user.depth, 1);
    blk_drained_end(w.disk.blk);
    EXPECT_EQ(user.depth, 0);
    EXPECT_EQ(user.nb_begun, 1u);
    bdrv_want_peace(w.top, true);
    late = blk_create("l", w.top, BLK_PERM_READ, BLK_PERM_ALL, NULL);
    ASSERT_TRUE(late != NULL);
    blk_set_user(late, &user_ops, &next);
    EXPECT_EQ(next.depth, 1);
    blk_set_user(late, NULL, NULL);
    EXPECT_EQ(blk_close(late), 0);
    EXPECT_EQ(next.depth, 0);
    blk_set_user(w.disk.blk, &user_ops, &next);
    EXPECT_EQ(user.depth, 0);
    EXPECT_EQ(next.depth, 1);
    /* The node goes, and nobody is left who wants it. */
    ASSERT_EQ(bdrv_remove_filter(w.top, NULL), 0);
    EXPECT_EQ(next.depth, 0);
    w.top = pass_insert(w.disk.node, "node-name=top", NULL);
    ASSERT_TRUE(w.top != NULL);
    EXPECT_EQ(next.depth, 0);
    blk_set_user(w.disk.blk, NULL, NULL);
    world_finish(&w);
}

TEST_MAIN()
