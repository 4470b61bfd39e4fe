/*
 * aio-worker.h - calls that block, made in threads of their own
 *
 * Layer:     io/aio
 * Threading: see each function. There is one pool for the process. A call that a coroutine waits
 *            for wakes it in its home context when it has returned.
 * Lifetime:  an AioJob belongs to the coroutine that runs it, usually in its frame. Threads are
 *            started on demand, at most aio_workers_set_max() of them, and end when idle.
 *
 * Calls are begun in the order in which they were handed in. They must not wait for one another:
 * those that wait could hold all the threads. Where no thread can be started and there is none, a
 * call that a coroutine waits for is made in the thread of that coroutine.
 */
#ifndef IO_AIO_AIO_WORKER_H
#define IO_AIO_AIO_WORKER_H

#include "io/aio/aio.h"

#define AIO_WORKERS_MAX_DEFAULT 64
#define AIO_WORKERS_MAX_LIMIT   1024

/* aio_workers_set_max - how many threads there may be, 1 to AIO_WORKERS_MAX_LIMIT. Those that are
 * too many end when they have done what they do. Any thread. */
void aio_workers_set_max(unsigned max);

typedef int AioBlockingFn(void *opaque);

/* aio_co_run_blocking - run fn(opaque), which may block, in a worker; returns what it returned */
co_fn int aio_co_run_blocking(AioBlockingFn *fn, void *opaque) NONNULL(1) WARN_UNUSED;

/* AioJob - such a call, where somebody may want to cancel it */
typedef struct AioJob {
    ListNode node;
    AioBlockingFn *fn;
    void *opaque;
    Coroutine *co; /* NULL = nobody waits */
    int state;     /* aio-worker.c; under its lock */
    int ret;
    bool done; /* @ret stands; what the coroutine is woken for */
} AioJob;

void aio_job_init(AioJob *job, AioBlockingFn *fn, void *opaque) NONNULL(1, 2);
/* aio_co_run_job - run it once; -ECANCELED when it was cancelled before it began */
co_fn int aio_co_run_job(AioJob *job) NONNULL(1) WARN_UNUSED;
/*
 * aio_job_cancel - keep it from being begun, now or later
 * Returns false when it has begun: then it goes on to its end, and @job's owner gets what it
 * returns. Any thread; the caller sees to it that @job is still there.
 */
bool aio_job_cancel(AioJob *job) NONNULL(1);

/*
 * aio_run_detached - run fn(opaque) with nobody waiting for it: for calls that cannot be
 * interrupted and whose caller may lose patience. What @fn returns is not looked at. Any thread.
 * Errors: -ENOMEM, -EAGAIN: no worker could be started, and @fn will not be called
 */
int aio_run_detached(AioBlockingFn *fn, void *opaque) NONNULL(1) WARN_UNUSED;

#endif
