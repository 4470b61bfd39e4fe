/*
 * write-tracker.c - the list of writes in flight on a node that does read-modify-writes
 *
 * Invariants:
 *   (1) Two writes meet when their blocks overlap and at least one of them is a read-modify-write.
 *       Of two that meet, the one later in the list does nothing before the earlier one has ended.
 *   (2) A write waits only for writes before it in the list, so there is no cycle.
 *   (3) The first read-modify-write closes the gate of `untracked` and waits until the writes that
 *       entered it have ended; each later one finds `settled`, or waits as well. A write in the
 *       list that is aligned need not wait for them: two aligned writes do not meet.
 *   (4) A waiter is linked in the list of the one write it waits for. That write unlinks it when it
 *       ends and wakes it; it then looks for the next one.
 */
#include "block/write-tracker.h"

typedef struct Waiter {
    ListNode node;
    Coroutine *co;
} Waiter;

int write_tracker_init(WriteTracker *t)
{
    pthread_mutex_init(&t->lock, NULL);
    list_init(&t->writes);
    atomic_store(&t->settled, false);
    return inflight_init(&t->untracked);
}

void write_tracker_finish(WriteTracker *t)
{
    assert(list_empty(&t->writes));
    inflight_finish(&t->untracked);
    pthread_mutex_destroy(&t->lock);
}

static co_fn void settle(WriteTracker *t)
{
    inflight_close(&t->untracked);
    inflight_co_wait(&t->untracked);
    atomic_store(&t->settled, true);
}

/* Under the lock: the first write before @write that it must not meet. */
static TrackedWrite *find_earlier(const WriteTracker *t, const TrackedWrite *write)
{
    list_for_each(it, &t->writes) {
        TrackedWrite *other = list_entry(it, TrackedWrite, node);

        if (other == write) {
            break;
        }
        if ((write->modifies || other->modifies) && write->start_bytes < other->end_bytes &&
            other->start_bytes < write->end_bytes) {
            return other;
        }
    }
    return NULL;
}

co_fn void write_tracker_co_begin(WriteTracker *t, TrackedWrite *write, uint64_t start_bytes,
                                  uint64_t end_bytes, bool modifies)
{
    TrackedWrite *earlier;

    if (modifies && !atomic_load(&t->settled)) {
        settle(t);
    }
    *write =
        (TrackedWrite){ .start_bytes = start_bytes, .end_bytes = end_bytes, .modifies = modifies };
    list_init(&write->waiters);

    pthread_mutex_lock(&t->lock);
    list_push_back(&t->writes, &write->node);
    while ((earlier = find_earlier(t, write)) != NULL) {
        Waiter waiter = { .co = co_self() };

        list_push_back(&earlier->waiters, &waiter.node);
        pthread_mutex_unlock(&t->lock);
        co_yield();
        pthread_mutex_lock(&t->lock);
    }
    pthread_mutex_unlock(&t->lock);
}

void write_tracker_end(WriteTracker *t, TrackedWrite *write)
{
    List waiters = LIST_INIT(waiters);
    ListNode *node;

    pthread_mutex_lock(&t->lock);
    list_remove(&write->node);
    list_splice_back(&waiters, &write->waiters);
    pthread_mutex_unlock(&t->lock);

    while ((node = list_pop_front(&waiters)) != NULL) {
        aio_co_wake(list_entry(node, Waiter, node)->co);
    }
}
