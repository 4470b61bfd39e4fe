/*
 * co-wait.h - coroutines in line: what CoQueue, CoSemaphore and CoRwlock are made of
 *
 * Layer:     io/aio; for the locks of this folder only
 * Threading: any thread, under the line's own lock where it says "locked". That lock is a leaf,
 *            held for a few instructions, never across a yield or a wake-up.
 * Lifetime:  a CoLine is embedded in a lock; a CoWaiter lies in the frame of the coroutine that
 *            waits. Nothing is allocated.
 *
 * Theory: co-wait.c.
 */
#ifndef IO_AIO_CO_WAIT_H
#define IO_AIO_CO_WAIT_H

#include <pthread.h>

#include "io/aio/aio.h"

/* A deadline that never comes. Deadlines are absolute, on the clock of aio_now_ns(). */
#define CO_NO_DEADLINE INT64_MAX

typedef struct CoLine {
    pthread_mutex_t lock; /* protects the list, the state of the waiters in it, and what the
                             lock around it says */
    List waiters;         /* CoWaiter.node; first come first */
} CoLine;

typedef struct CoWaiter {
    ListNode node;
    CoLine *line;
    Coroutine *co;
    struct CoWaiter *next_granted;
    int kind; /* for the owner of the line */
    enum { CO_WAITING, CO_GRANTED, CO_TIMED_OUT } state;
} CoWaiter;

/* Waiters that were taken out of a line and have still to be woken. */
typedef struct CoGrants {
    CoWaiter *first, *last;
} CoGrants;

void co_line_init(CoLine *line) NONNULL(1);
/* co_line_finish - nobody may wait; NULL is allowed */
void co_line_finish(CoLine *line);

static inline void co_line_lock(CoLine *line)
{
    pthread_mutex_lock(&line->lock);
}

static inline void co_line_unlock(CoLine *line)
{
    pthread_mutex_unlock(&line->lock);
}

/* co_line_first - NULL when nobody waits. Locked. */
static inline CoWaiter *co_line_first(CoLine *line)
{
    return list_first_entry(&line->waiters, CoWaiter, node);
}

/* co_line_append, co_line_push_front - the running coroutine stands in line as @waiter. Locked. */
co_fn void co_line_append(CoLine *line, CoWaiter *waiter, int kind) NONNULL(1, 2);
co_fn void co_line_push_front(CoLine *line, CoWaiter *waiter, int kind) NONNULL(1, 2);
/*
 * co_line_wait - after that, unlocked: yield until granted or @deadline_ns
 * Returns 0, or -ETIMEDOUT: @waiter has then left the line without having been granted.
 */
co_fn int co_line_wait(CoWaiter *waiter, int64_t deadline_ns) NONNULL(1);

/* co_line_grant - take @waiter out of its line; to be woken by co_grants_wake(). Locked. */
void co_line_grant(CoWaiter *waiter, CoGrants *grants) NONNULL(1, 2);
/* co_grants_wake - wake each in its home, in order; touches no line. Not locked; any thread. */
void co_grants_wake(CoGrants *grants) NONNULL(1);

#endif
