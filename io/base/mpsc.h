/*
 * mpsc.h - intrusive queue that any thread pushes onto and one takes from; pushing is wait-free
 *
 * Layer:     io/base
 * Threading: mpsc_push() in any thread or signal handler; everything else by the queue's owner.
 *            After its push a producer notifies the owner by other means, every time.
 * Lifetime:  nodes are embedded. A node is in one queue at most, from mpsc_push() until mpsc_pop()
 *            has returned it; then nobody refers to it any more. The queue stays where it is.
 *
 * The queue is a chain of links that begins in `first`; `tail` points to the link at its end. A
 * producer takes that place with one exchange and leaves its node's own link as the new end; then
 * it fills in the place it got. Between the two the chain has a gap. The owner cuts off the whole
 * chain and appends it to its list, in the order of the exchanges, and takes nodes from there.
 *
 *     push:    node.next = NULL; place = exchange(tail, &node.next); *place = node; (notify)
 *     collect: if first: list += first; first = NULL; end of list = exchange(tail, &first)
 *     pop:     the head, if the next one is known or the head's link is the end of the list
 *
 * Invariants:
 *   (1) Every link is handed out once as the place for a node: the exchanges on tail stand in one
 *       order, and each takes what the one before has left. So no two producers write to one link,
 *       no node is lost, and the order of the exchanges is that of the list: first come, first
 *       served. Nothing is tried again: a push is the same few instructions whatever others do.
 *   (2) A link is NULL until its place is filled: node.next is cleared before the exchange that
 *       offers it (release), and filled after an exchange that took it (acquire), by a producer or,
 *       at the end of the list, the owner. [mpsc_reserve() pairs with itself, mpsc_collect()]
 *   (3) The place is filled with release and looked at with acquire: who sees a node sees what its
 *       producer wrote before. [mpsc_link() pairs with mpsc_collect(), mpsc_pop()]
 *   (4) `first` is filled by the producer that got it, once in each life of the chain, so who sees
 *       it filled may clear it before it is offered again. [mpsc_collect(), release]
 *   (5) At a gap the list ends for now: neither the node before it, whose link is still to be
 *       written, nor what is behind it can be taken. The owner does not wait there. The producer's
 *       notification comes after its link and brings the owner back.
 *   (6) A node is returned only when its link has been written or belongs to the owner (the end of
 *       the list), so it may be freed or pushed again at once.
 * A signal handler may interrupt a producer in its gap, even in the owner's thread, and push: its
 * node is behind the gap. The handler must not wait for it to be taken.
 */
#ifndef IO_BASE_MPSC_H
#define IO_BASE_MPSC_H

#include <stdatomic.h>

#include "io/base/compiler.h"

typedef struct MpscNode MpscNode;
typedef MpscNode *_Atomic MpscLink;

struct MpscNode {
    MpscLink next;
};

typedef struct MpscQueue {
    MpscLink first;           /* NULL: nothing, or it is not linked yet */
    MpscLink *_Atomic tail;   /* the place for the next one */
} MpscQueue;

/* What the owner has collected; all zero is an empty one. */
typedef struct MpscList {
    MpscNode *head;
    MpscLink *tail; /* the link at the end; means nothing while head is NULL */
} MpscList;

static inline void mpsc_init(MpscQueue *queue)
{
    atomic_init(&queue->first, NULL);
    atomic_init(&queue->tail, &queue->first);
}

/* mpsc_reserve - the first half of a push: the place for @node; mpsc_link() must follow */
static inline MpscLink *mpsc_reserve(MpscQueue *queue, MpscNode *node)
{
    atomic_store_explicit(&node->next, NULL, memory_order_relaxed);
    /* acquire, release: pairs with itself and mpsc_collect() */
    return atomic_exchange_explicit(&queue->tail, &node->next, memory_order_acq_rel);
}

static inline void mpsc_link(MpscLink *place, MpscNode *node)
{
    /* release: pairs with mpsc_collect() and mpsc_pop() */
    atomic_store_explicit(place, node, memory_order_release);
}

/* mpsc_push - @node comes to the end; it may be gone after this */
static inline void mpsc_push(MpscQueue *queue, MpscNode *node)
{
    mpsc_link(mpsc_reserve(queue, node), node);
}

/* mpsc_collect - move what was pushed before this to the end of @list */
static inline void mpsc_collect(MpscQueue *queue, MpscList *list)
{
    /* acquire: pairs with mpsc_link() */
    MpscNode *first = atomic_load_explicit(&queue->first, memory_order_acquire);

    if (!first) {
        return;
    }
    atomic_store_explicit(&queue->first, NULL, memory_order_relaxed);
    /* acquire, release: pairs with mpsc_reserve() */
    MpscLink *end =
        atomic_exchange_explicit(&queue->tail, &queue->first, memory_order_acq_rel);

    if (list->head) {
        atomic_store_explicit(list->tail, first, memory_order_relaxed);
    } else {
        list->head = first;
    }
    list->tail = end;
}

/* mpsc_pop - the oldest of @list; NULL when there is none or it stands before a gap */
static inline MpscNode *mpsc_pop(MpscList *list)
{
    MpscNode *node = list->head;

    if (!node) {
        return NULL;
    }
    /* acquire: pairs with mpsc_link() */
    MpscNode *next = atomic_load_explicit(&node->next, memory_order_acquire);

    if (unlikely(!next && list->tail != &node->next)) {
        return NULL;
    }
    list->head = next;
    return node;
}

/* mpsc_can_pop - would mpsc_pop() return one? */
static inline bool mpsc_can_pop(const MpscList *list)
{
    const MpscNode *node = list->head;

    return node && (list->tail == &node->next ||
                    atomic_load_explicit(&node->next, memory_order_relaxed));
}

#endif
