/*
 * block-drain.c - which nodes and backends a drained section covers; entering and leaving it
 *
 * What is covered is not counted up and down. Where sections begin is (DrainPoint.sections), and
 * what they cover is worked out from the graph as it is, whenever a section begins or ends or an
 * edge has changed. So sections that overlap, or a graph that changes within one, leave no count
 * behind.
 *
 *     open --drain_update(), a section covers it--> covered, its gate closed
 *       ^                                              |
 *       +--drain_update(), none does any more----------+
 *
 * Invariants:
 *   (1) After drain_update(): a point is covered exactly when a section begins at it or above it,
 *       or at something below it or below something that a section begins at or above; or
 *       everywhere. So when a node is covered, so are all its parents, and theirs.
 *   (2) Gates of parents are closed before those of children, and all are closed before anything is
 *       waited for. Children are told to go on before their parents.
 *   (3) When begin returns, all that the section covers is quiet: the gate was closed, the count
 *       was seen to be 0 after that (in-flight.c), and the gate has not been opened since. The
 *       count itself may be above 0 at any later moment: a request that comes counts itself before
 *       it sees the gate.
 *   (4) The gate of a backend opens together with taking its whole queue, under its lock; the
 *       queued requests are counted before that. A section that begins at once waits for them.
 *   (5) drain_update() runs no request and no coroutine: it only schedules them.
 *   (6) A user has been told to pause exactly when its backend is covered, or a node below it wants
 *       peace; whenever one of these changes, update_user() looks at both.
 */
#include "block/block-backend-int.h"

static unsigned everywhere; /* sections that begin everywhere; main thread */

int drain_point_init(DrainPoint *point)
{
    *point = (DrainPoint){ 0 };
    return inflight_init(&point->in_flight);
}

void drain_point_finish(DrainPoint *point)
{
    assert(point->sections == 0);
    inflight_finish(&point->in_flight);
}

/* --- walking the graph --- */

typedef struct Origin {
    BlockNode *node; /* a section's beginning; both NULL = everywhere */
    BlockBackend *blk;
} Origin;

static void clear_marks(void)
{
    for (BlockNode *node = bdrv_next(NULL); node; node = bdrv_next(node)) {
        node->drain.marked = false;
    }
    list_for_each(it, &blk_backends) {
        list_entry(it, BlockBackend, backends_link)->drain.marked = false;
    }
}

static void mark_all(void)
{
    for (BlockNode *node = bdrv_next(NULL); node; node = bdrv_next(node)) {
        node->drain.marked = true;
    }
    list_for_each(it, &blk_backends) {
        list_entry(it, BlockBackend, backends_link)->drain.marked = true;
    }
}

/* The parents of @node, and theirs. At most BDRV_DEPTH_MAX deep. */
static void mark_parents(BlockNode *node)
{
    list_for_each(it, &node->parents) {
        BdrvChild *edge = list_entry(it, BdrvChild, parents_link);

        if (edge->blk) {
            edge->blk->drain.marked = true;
        } else if (!edge->parent->drain.marked) { /* else its parents are marked, too */
            edge->parent->drain.marked = true;
            mark_parents(edge->parent);
        }
    }
}

/* @node, what is below, and what is above any of that. */
static GRAPH_RD void mark_subtree(BlockNode *node)
{
    node->drain.marked = true;
    mark_parents(node);
    for (unsigned i = 0; i < BDRV_CHILDREN_MAX; i++) {
        if (node->children[i].node) {
            mark_subtree(node->children[i].node);
        }
    }
}

static GRAPH_RD void mark_from(const Origin *origin)
{
    if (!origin->node && !origin->blk) {
        mark_all();
    } else if (origin->node) {
        mark_subtree(origin->node);
    } else {
        origin->blk->drain.marked = true;
        if (origin->blk->root.node) {
            mark_subtree(origin->blk->root.node);
        }
    }
}

static GRAPH_RD void mark_sections(void)
{
    if (everywhere > 0) {
        mark_all();
        return;
    }
    for (BlockNode *node = bdrv_next(NULL); node; node = bdrv_next(node)) {
        if (node->drain.sections > 0) {
            mark_subtree(node);
        }
    }
    list_for_each(it, &blk_backends) {
        BlockBackend *blk = list_entry(it, BlockBackend, backends_link);

        if (blk->drain.sections > 0) {
            mark_from(&(Origin){ .blk = blk });
        }
    }
}

/* --- covering and uncovering --- */

static void cover(DrainPoint *point)
{
    point->covered = true;
    point->quiet = false;
    inflight_close(&point->in_flight);
}

/* At most BDRV_DEPTH_MAX deep. */
static GRAPH_RD bool wants_peace_below(const BlockNode *node)
{
    if (node->drain.wants_peace) {
        return true;
    }
    for (unsigned i = 0; i < BDRV_CHILDREN_MAX; i++) {
        if (node->children[i].node && wants_peace_below(node->children[i].node)) {
            return true;
        }
    }
    return false;
}

/* Invariant (6). */
static GRAPH_RD void update_user(BlockBackend *blk)
{
    bool pause = blk->drain.covered || (blk->root.node && wants_peace_below(blk->root.node));
    const BlkUserOps *user = blk->user;

    if (pause == blk->user_paused) {
        return;
    }
    blk->user_paused = pause;
    if (pause && user && user->drained_begin) {
        user->drained_begin(blk->user_opaque);
    } else if (!pause && user && user->drained_end) {
        user->drained_end(blk->user_opaque);
    }
}

static void update_users(void)
{
    graph_assert_main();
    list_for_each(it, &blk_backends) {
        update_user(list_entry(it, BlockBackend, backends_link));
    }
}

void bdrv_want_peace(BlockNode *node, bool on)
{
    node->drain.wants_peace = on;
    update_users();
}

static GRAPH_RD void cover_backend(BlockBackend *blk)
{
    cover(&blk->drain);
    update_user(blk);
}

/* Parents first: none of them can be covered later than its child. */
static void cover_node(BlockNode *node)
{
    if (node->drain.covered) {
        return;
    }
    list_for_each(it, &node->parents) {
        BdrvChild *edge = list_entry(it, BdrvChild, parents_link);

        if (edge->parent) {
            cover_node(edge->parent);
        }
    }
    cover(&node->drain);
    if (node->is_open && node->driver->drained_begin) {
        node->driver->drained_begin(node);
    }
}

/* Children first. */
static GRAPH_RD void uncover_node(BlockNode *node)
{
    if (!node->drain.covered || node->drain.marked) {
        return;
    }
    for (unsigned i = 0; i < BDRV_CHILDREN_MAX; i++) {
        if (node->children[i].node) {
            uncover_node(node->children[i].node);
        }
    }
    node->drain.covered = node->drain.quiet = false;
    inflight_open(&node->drain.in_flight);
    if (node->is_open && node->driver->drained_end) {
        node->driver->drained_end(node);
    }
}

/* Invariant (4). */
static GRAPH_RD void uncover_backend(BlockBackend *blk)
{
    List queued = LIST_INIT(queued);
    ListNode *node;
    unsigned nb = 0;

    blk->drain.covered = blk->drain.quiet = false;
    pthread_mutex_lock(&blk->lock);
    list_splice_back(&queued, &blk->queued);
    list_for_each(it, &queued) {
        nb++;
    }
    inflight_add(&blk->drain.in_flight, nb);
    inflight_open(&blk->drain.in_flight);
    pthread_mutex_unlock(&blk->lock);

    while ((node = list_pop_front(&queued)) != NULL) {
        Coroutine *co = list_entry(node, QueuedRequest, node)->co;

        aio_co_schedule(co_home(co), co);
    }
    update_user(blk);
}

void drain_update(void)
{
    graph_assert_main();
    clear_marks();
    mark_sections();
    list_for_each(it, &blk_backends) {
        BlockBackend *blk = list_entry(it, BlockBackend, backends_link);

        if (blk->drain.marked && !blk->drain.covered) {
            cover_backend(blk);
        }
    }
    for (BlockNode *node = bdrv_next(NULL); node; node = bdrv_next(node)) {
        if (node->drain.marked) {
            cover_node(node);
        }
    }
    for (BlockNode *node = bdrv_next(NULL); node; node = bdrv_next(node)) {
        uncover_node(node);
    }
    list_for_each(it, &blk_backends) {
        BlockBackend *blk = list_entry(it, BlockBackend, backends_link);

        if (blk->drain.covered && !blk->drain.marked) {
            uncover_backend(blk);
        }
    }
    update_users(); /* the edges may be others */
}

/* --- waiting --- */

/* Invariant (3). */
static bool is_busy(DrainPoint *point)
{
    if (point->marked && !point->quiet) {
        assert(point->covered);
        point->quiet = inflight_count(&point->in_flight) == 0;
        return !point->quiet;
    }
    return false;
}

/* Something that a section from @origin covers and that has requests or activity in flight. */
static GRAPH_RD bool find_busy(const Origin *origin, Origin *ret_busy)
{
    clear_marks();
    mark_from(origin);
    list_for_each(it, &blk_backends) {
        BlockBackend *blk = list_entry(it, BlockBackend, backends_link);

        if (is_busy(&blk->drain)) {
            *ret_busy = (Origin){ .blk = blk };
            return true;
        }
    }
    for (BlockNode *node = bdrv_next(NULL); node; node = bdrv_next(node)) {
        if (is_busy(&node->drain)) {
            *ret_busy = (Origin){ .node = node };
            return true;
        }
    }
    return false;
}

/* Looks again after each wait: the graph may be another one. */
static GRAPH_RD co_fn void wait_idle(const Origin *origin)
{
    Origin busy;

    while (find_busy(origin, &busy)) {
        if (busy.blk) {
            blk_ref(busy.blk);
            inflight_co_wait(&busy.blk->drain.in_flight);
            blk_unref(busy.blk);
        } else {
            bdrv_ref(busy.node);
            inflight_co_wait(&busy.node->drain.in_flight);
            bdrv_unref(busy.node);
        }
    }
}

static void wait_entry(void *opaque)
{
    assert_in_coroutine();
    graph_assert_main();
    wait_idle(opaque);
}

static void wait_here(Origin *origin)
{
    Origin busy;

    graph_assert_main();
    if (in_coroutine()) {
        wait_entry(origin);
    } else if (find_busy(origin, &busy)) {
        aio_co_run_sync(aio_main(), wait_entry, origin);
    }
}

/* --- sections --- */

static void begin(unsigned *sections, Origin origin)
{
    ++*sections;
    drain_update();
    wait_here(&origin);
}

static void end(unsigned *sections)
{
    assert(*sections > 0);
    --*sections;
    drain_update();
}

void bdrv_drained_begin(BlockNode *node)
{
    begin(&node->drain.sections, (Origin){ .node = node });
}

void bdrv_drained_end(BlockNode *node)
{
    end(&node->drain.sections);
}

void bdrv_drain_all_begin(void)
{
    begin(&everywhere, (Origin){ 0 });
}

void bdrv_drain_all_end(void)
{
    end(&everywhere);
}

void drain_backend_begin(BlockBackend *blk)
{
    begin(&blk->drain.sections, (Origin){ .blk = blk });
}

void drain_backend_end(BlockBackend *blk)
{
    end(&blk->drain.sections);
}

/* --- a node's own activity --- */

bool bdrv_activity_begin(BlockNode *node)
{
    return inflight_enter(&node->drain.in_flight);
}

void bdrv_activity_end(BlockNode *node)
{
    inflight_leave(&node->drain.in_flight);
}
