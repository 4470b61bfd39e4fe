/*
 * block-graph.c - edges: permissions, filters put in and taken out, news of a length
 *
 * Permissions are worked out for the whole graph at once: it has a handful of nodes. What a backend
 * needs of its root is given; what a node needs of its children follows from what its parents need
 * of it. An edge is changed, the permissions are worked out, and if two edges to one node do not
 * get on with each other, the edge is put back and they are worked out again. What they were before
 * is kept while that is tried, to say in the message who came and who was there.
 *
 * Invariants: see block-graph.h.
 */
#include "block/block-graph.h"

#include <stdio.h>
#include <string.h>

#include "block/block-backend-int.h"
#include "io/base/thread.h"

#define DESCRIPTION_BYTES 80

static List nodes = LIST_INIT(nodes); /* in order of opening; main thread */

/* --- the lock --- */

void graph_assert_main(void)
{
    assert_main();
}

/* That nobody reads what is going to be written is asserted edge by edge: is_quiet(). */
static void graph_write_lock(void) ACQUIRES(tsa_graph_lock) NO_TSA;
static void graph_write_lock(void)
{
    assert_main();
}

static void graph_write_unlock(void) RELEASES(tsa_graph_lock) NO_TSA;
static void graph_write_unlock(void)
{
}

/* --- nodes --- */

void bdrv_register(BlockNode *node)
{
    list_push_back(&nodes, &node->nodes_link);
}

void bdrv_unregister(BlockNode *node)
{
    list_remove(&node->nodes_link);
}

BlockNode *bdrv_next(const BlockNode *node)
{
    ListNode *next = node ? node->nodes_link.next : nodes.head.next;

    return next == &nodes.head ? NULL : list_entry(next, BlockNode, nodes_link);
}

BlockNode *bdrv_find(const char *id)
{
    list_for_each(it, &nodes) {
        BlockNode *node = list_entry(it, BlockNode, nodes_link);

        if (strcmp(node->id, id) == 0) {
            return node;
        }
    }
    return NULL;
}

const char *bdrv_id(const BlockNode *node)
{
    return node->id;
}

/* Nodes on the longest path from @node down, itself counted. */
static GRAPH_RD unsigned depth_below(const BlockNode *node)
{
    unsigned deepest = 0;

    for (unsigned i = 0; i < BDRV_CHILDREN_MAX; i++) {
        if (node->children[i].node) {
            deepest = MAX(deepest, depth_below(node->children[i].node));
        }
    }
    return deepest + 1;
}

/* Nodes on the longest path to @node, itself not counted. */
static unsigned depth_above(const BlockNode *node)
{
    unsigned deepest = 0;

    list_for_each(it, &node->parents) {
        const BdrvChild *edge = list_entry(it, BdrvChild, parents_link);

        if (edge->parent) {
            deepest = MAX(deepest, depth_above(edge->parent) + 1);
        }
    }
    return deepest;
}

static GRAPH_RD int check_depth(const BlockNode *node, Error *err)
{
    if (depth_above(node) + depth_below(node) > BDRV_DEPTH_MAX) {
        return error_set(err, -EINVAL, "node '%s': more than %d nodes on top of each other",
                         node->id, BDRV_DEPTH_MAX);
    }
    return 0;
}

/* --- permissions --- */

static const char *describe_parent(const BdrvChild *edge, char *buf)
{
    snprintf(buf, DESCRIPTION_BYTES, "%s '%s'", edge->blk ? "disk" : "node",
             edge->blk ? edge->blk->id : edge->parent->id);
    return buf;
}

static const char *perm_verb(BlkPerm perm)
{
    return perm & BLK_PERM_WRITE ? "write to" : perm & BLK_PERM_READ ? "read" : "resize";
}

/* Whether @edge needs something of @perm that it had not before. */
static bool is_new(const BdrvChild *edge, BlkPerm perm)
{
    return (perm & ~edge->saved_perm) != 0;
}

/* @user needs @perm, which @other does not share. Which of them is new? */
static GRAPH_RD int conflict(const BdrvChild *user, const BdrvChild *other, BlkPerm perm,
                             Error *err)
{
    const BlockNode *node = user->node;
    char user_text[DESCRIPTION_BYTES], other_text[DESCRIPTION_BYTES];

    describe_parent(user, user_text);
    describe_parent(other, other_text);
    if (!is_new(user, perm)) {
        return error_set(err, -EBUSY, "%s lets nobody else %s '%s' (node '%s'), but %s does",
                         other_text, perm_verb(perm), node->name, node->id, user_text);
    }
    return error_set(err, -EBUSY,
                     "%s cannot %s '%s' (node '%s'): %s uses it and does not share that", user_text,
                     perm_verb(perm), node->name, node->id, other_text);
}

/* Two edges that do not get on; @news: of those where what is needed is new. */
static GRAPH_RD int check_pairs(const BlockNode *node, bool news, Error *err)
{
    list_for_each(it, &node->parents) {
        const BdrvChild *edge = list_entry(it, BdrvChild, parents_link);

        list_for_each(other_it, &node->parents) {
            const BdrvChild *other = list_entry(other_it, BdrvChild, parents_link);
            BlkPerm perm = other != edge ? edge->perm & ~other->shared : 0;

            if (perm && is_new(edge, perm) == news) {
                return conflict(edge, other, perm, err);
            }
        }
    }
    return 0;
}

static GRAPH_RD int check_edges(const BlockNode *node, Error *err)
{
    int ret;

    list_for_each(it, &node->parents) {
        const BdrvChild *edge = list_entry(it, BdrvChild, parents_link);

        if (node->read_only && (edge->perm & (BLK_PERM_WRITE | BLK_PERM_RESIZE))) {
            char text[DESCRIPTION_BYTES];

            return error_set(err, -EPERM, "%s cannot write to '%s' (node '%s'): it is read-only",
                             describe_parent(edge, text), node->name, node->id);
        }
    }
    ret = check_pairs(node, true, err);
    return ret < 0 ? ret : check_pairs(node, false, err);
}

static void remember_permissions(void)
{
    list_for_each(it, &nodes) {
        list_for_each(edge_it, &list_entry(it, BlockNode, nodes_link)->parents) {
            BdrvChild *edge = list_entry(edge_it, BdrvChild, parents_link);

            edge->saved_perm = edge->perm;
        }
    }
}

/* What @node needs of its children, from what is needed of it. True when something is new. */
static GRAPH_RD bool work_out_children(BlockNode *node)
{
    BlkPerm perm = 0, shared = BLK_PERM_ALL;
    bool changed = false;

    list_for_each(it, &node->parents) {
        const BdrvChild *edge = list_entry(it, BdrvChild, parents_link);

        perm |= edge->perm;
        shared &= edge->shared;
    }
    for (unsigned i = 0; i < BDRV_CHILDREN_MAX && node->children[i].node; i++) {
        BdrvChild *child = &node->children[i];
        BlkPerm child_perm = perm, child_shared = shared;

        if (node->driver->child_perm) {
            node->driver->child_perm(node, child, &child_perm, &child_shared);
        }
        changed |= child->perm != child_perm || child->shared != child_shared;
        child->perm = child_perm;
        child->shared = child_shared;
    }
    return changed;
}

/* Downwards, until nothing changes any more: no later than after BDRV_DEPTH_MAX rounds. */
static GRAPH_RD void work_out(void)
{
    bool changed;

    do {
        changed = false;
        list_for_each(it, &nodes) {
            changed |= work_out_children(list_entry(it, BlockNode, nodes_link));
        }
    } while (changed);
}

/* After a change that the caller undoes when this fails. */
static GRAPH_RD int update_permissions(Error *err)
{
    work_out();
    list_for_each(it, &nodes) {
        int ret = check_edges(list_entry(it, BlockNode, nodes_link), err);

        if (ret < 0) {
            return ret;
        }
    }
    return 0;
}

/* --- edges --- */

static GRAPH_WR void lead_to(BdrvChild *edge, BlockNode *node)
{
    edge->node = bdrv_ref(node);
    list_push_back(&node->parents, &edge->parents_link);
}

/* The caller gives the reference back. */
static GRAPH_WR BlockNode *lead_nowhere(BdrvChild *edge)
{
    list_remove(&edge->parents_link);
    return take_ptr(&edge->node);
}

int bdrv_attach(BdrvChild *edge, BlockNode *node, Error *err)
{
    BlkPerm perm = edge->perm, shared = edge->shared;
    int ret;

    graph_write_lock();
    assert(!edge->node && (edge->blk || edge->parent));
    edge->perm = 0; /* what it had until now */
    edge->shared = BLK_PERM_ALL;
    lead_to(edge, node);
    remember_permissions();
    edge->perm = perm;
    edge->shared = shared;
    ret = check_depth(node, err);
    if (ret == 0) {
        ret = update_permissions(err);
    }
    if (ret < 0) {
        bdrv_unref(lead_nowhere(edge));
        work_out();
    }
    graph_write_unlock();
    drain_update();
    return ret;
}

void bdrv_detach(BdrvChild *edge)
{
    BlockNode *node = NULL;

    graph_write_lock();
    if (edge->node) {
        node = lead_nowhere(edge);
        work_out(); /* less is needed, more is shared: nothing to check */
    }
    graph_write_unlock();
    if (node) {
        drain_update();
        bdrv_unref(node);
    }
}

/* Invariant (1). */
static bool is_quiet(const BdrvChild *edge)
{
    return edge->blk ? edge->blk->drain.quiet : edge->parent->drain.quiet;
}

static GRAPH_WR void move_edge(BdrvChild *edge, BlockNode *to)
{
    assert(is_quiet(edge));
    bdrv_unref(lead_nowhere(edge));
    lead_to(edge, to);
}

/* The edges that try_move() has moved, back to @from or for good. */
static GRAPH_WR void settle_moved(BlockNode *from, BlockNode *to, bool back)
{
    list_for_each_safe(it, &to->parents) {
        BdrvChild *edge = list_entry(it, BdrvChild, parents_link);

        if (edge->moved && back) {
            move_edge(edge, from);
        } else if (edge->moved && edge->blk) {
            blk_node_resized(edge->blk);
        }
        edge->moved = false;
    }
}

/* Lead all parents of @from to @to, but for @to itself. The caller holds references to both. */
static int move_parents(BlockNode *from, BlockNode *to, Error *err)
{
    int ret;

    graph_write_lock();
    remember_permissions();
    list_for_each_safe(it, &from->parents) {
        BdrvChild *edge = list_entry(it, BdrvChild, parents_link);

        if (edge->parent != to) {
            edge->moved = true;
            move_edge(edge, to);
        }
    }
    ret = check_depth(to, err);
    if (ret == 0) {
        ret = update_permissions(err);
    }
    settle_moved(from, to, ret < 0);
    if (ret < 0) {
        work_out();
    }
    graph_write_unlock();
    drain_update();
    return ret;
}

void bdrv_set_length(BlockNode *node, uint64_t length_bytes)
{
    assert(node->drain.covered);
    if (atomic_load(&node->length_bytes) == length_bytes) {
        return;
    }
    atomic_store(&node->length_bytes, length_bytes);
    list_for_each(it, &node->parents) {
        BdrvChild *edge = list_entry(it, BdrvChild, parents_link);

        if (edge->blk) {
            blk_node_resized(edge->blk);
        } else if (edge->parent->driver->is_filter) {
            bdrv_set_length(edge->parent, length_bytes);
        }
    }
}

/* --- filters --- */

static int check_used(const BlockNode *node, Error *err)
{
    if (list_empty(&node->parents)) {
        return error_set(err, -EINVAL, "node '%s' is used by nobody", node->id);
    }
    return 0;
}

/* All options must have been used: nobody else will look at them. */
static BlockNode *open_filter(const BlockDriver *driver, BlockNode *node, Opts *opts, Error *err)
{
    BlockNode *filter;

    if (!driver->is_filter) {
        error_set(err, -EINVAL, "%s: driver '%s' is no filter", opts->what, driver->name);
        return NULL;
    }
    if (opts_add(opts, "file", node->id, err) < 0) {
        return NULL;
    }
    filter = bdrv_open_driver(driver, opts, err);
    if (filter && opts_check_all_used(opts, err) < 0) {
        bdrv_unref(filter);
        return NULL;
    }
    return filter;
}

BlockNode *bdrv_insert_filter_driver(const BlockDriver *driver, BlockNode *node, Opts *opts,
                                     Error *err)
{
    BlockNode *filter = NULL;
    int ret = check_used(node, err);

    bdrv_ref(node);
    if (ret == 0 && (filter = open_filter(driver, node, opts, err))) {
        bdrv_drained_begin(node);
        /* Its last parent may have gone while that waited; the filter is one by now. */
        ret = node->parents.head.next == node->parents.head.prev ? -EINVAL : 0;
        ret = ret < 0 ? error_set(err, ret, "node '%s' is used by nobody", node->id)
                      : move_parents(node, filter, err);
        bdrv_drained_end(node);
        bdrv_unref(filter);
    }
    bdrv_unref(node);
    return filter && ret == 0 ? filter : NULL;
}

BlockNode *bdrv_insert_filter(BlockNode *node, Opts *opts, Error *err)
{
    const BlockDriver *driver = bdrv_find_driver(opts, err);

    return driver ? bdrv_insert_filter_driver(driver, node, opts, err) : NULL;
}

int bdrv_remove_filter(BlockNode *filter, Error *err)
{
    int ret;

    if (!filter->driver->is_filter) {
        return error_set(err, -EINVAL, "node '%s' is no filter", filter->id);
    }
    graph_assert_main();
    bdrv_ref(filter);
    bdrv_drained_begin(filter);
    ret = check_used(filter, err);
    if (ret == 0) {
        ret = move_parents(filter, bdrv_filtered(filter), err);
    }
    bdrv_drained_end(filter);
    bdrv_unref(filter);
    return ret;
}
