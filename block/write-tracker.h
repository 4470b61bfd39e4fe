/*
 * WriteTracker - keeps a read-modify-write apart from other writes to the same blocks
 *
 * Layer:     block/, private to block-io.c
 * Threading: any context, in coroutines.
 * Lifetime:  embedded in a node's request state; init() .. finish(), when no write is in flight.
 *
 * A write that is not a whole number of blocks reads its edge blocks, changes part of them and
 * writes them back. Another write to these blocks in between, from any context, would be undone.
 * Most nodes never see such a write, so until the first one comes aligned writes are only counted,
 * at no shared cache line. From then on every write of that node is entered in a list.
 */
#ifndef BLOCK_WRITE_TRACKER_H
#define BLOCK_WRITE_TRACKER_H

#include <pthread.h>

#include "block/in-flight.h"

typedef struct WriteTracker {
    InFlight untracked;   /* aligned writes that are only counted; its gate closes for good */
    _Atomic bool settled; /* the gate is closed and what was counted has ended */
    pthread_mutex_t lock; /* protects writes, and the nodes and waiters in it */
    List writes;          /* TrackedWrite, in order of arrival */
} WriteTracker;

/* One write in the list; lives in the coroutine's frame. */
typedef struct TrackedWrite {
    ListNode node;
    uint64_t start_bytes, end_bytes; /* whole blocks */
    bool modifies;                   /* a read-modify-write */
    List waiters;
} TrackedWrite;

int write_tracker_init(WriteTracker *t) NONNULL(1) WARN_UNUSED; /* -ENOMEM */
void write_tracker_finish(WriteTracker *t);

/* write_tracker_enter - for an aligned write: true: go on, and leave afterwards. False: writes are
 * tracked by now, use begin and end. */
static inline bool write_tracker_enter(WriteTracker *t)
{
    return inflight_enter(&t->untracked);
}

static inline void write_tracker_leave(WriteTracker *t)
{
    inflight_leave(&t->untracked);
}

/*
 * write_tracker_co_begin - enter a write in the list; wait for earlier ones it must not meet
 * @start_bytes, @end_bytes  the range, extended to whole blocks
 * @modifies                 part of a block is kept: the write begins with a read
 */
co_fn void write_tracker_co_begin(WriteTracker *t, TrackedWrite *write, uint64_t start_bytes,
                                  uint64_t end_bytes, bool modifies) NONNULL(1, 2);
void write_tracker_end(WriteTracker *t, TrackedWrite *write) NONNULL(1, 2);

#endif
