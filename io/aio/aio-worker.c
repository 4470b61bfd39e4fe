/*
 * aio-worker.c - a few threads for calls that block and that io_uring does not have
 *
 *     queued --[worker]--> running --[worker: done, aio_co_wake]--> the coroutine goes on at home
 *
 * The job lives in the frame of the coroutine that waits for it; the worker's aio_co_wake() is the
 * last that the worker does with either, and hands the result over. A job that nobody waits for is
 * the worker's own, which frees it.
 * A worker is started when there are more jobs than idle workers to take them and fewer than
 * AIO_WORKERS_MAX; it ends after WORKER_IDLE_S without a job. Nothing waits for workers at the end
 * of the process: an idle one holds nothing, and a busy one has a coroutine that is waited for, or
 * something that nobody waits for.
 */
#include "io/aio/aio-file.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "io/base/thread.h"

#define WORKER_IDLE_S      10
#define WORKER_STACK_BYTES (256 * 1024)

typedef struct WorkerJob {
    ListNode node;
    AioBlockingFn *fn;
    void *opaque;
    Coroutine *co; /* NULL = nobody waits */
    int ret;
    bool done;
} WorkerJob;

static struct {
    pthread_mutex_t lock; /* protects the rest */
    pthread_cond_t work;
    List jobs;
    unsigned nb_jobs; /* in that list */
    unsigned workers;
    unsigned idle; /* of these, waiting; still counted while one wakes up for a job */
} pool = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .work = PTHREAD_COND_INITIALIZER,
    .jobs = LIST_INIT(pool.jobs),
};

/* Wait for a job; NULL after WORKER_IDLE_S without one. Called with the lock held. */
static WorkerJob *worker_next_job(void)
{
    struct timespec deadline;
    int ret = 0;

    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += WORKER_IDLE_S;
    pool.idle++;
    while (list_empty(&pool.jobs) && ret != ETIMEDOUT) {
        ret = pthread_cond_timedwait(&pool.work, &pool.lock, &deadline);
    }
    pool.idle--;
    if (list_empty(&pool.jobs)) {
        return NULL;
    }
    pool.nb_jobs--;
    return list_entry(list_pop_front(&pool.jobs), WorkerJob, node);
}

static void job_run(WorkerJob *job)
{
    if (!job->co) {
        job->fn(job->opaque);
        free(job);
        return;
    }
    job->ret = job->fn(job->opaque);
    job->done = true;
    aio_co_wake(job->co);
}

static void *worker_thread(void *opaque)
{
    WorkerJob *job;

    thread_set_name("worker");
    pthread_mutex_lock(&pool.lock);
    while ((job = worker_next_job())) {
        pthread_mutex_unlock(&pool.lock);
        job_run(job);
        pthread_mutex_lock(&pool.lock);
    }
    pool.workers--;
    pthread_mutex_unlock(&pool.lock);
    return NULL;
}

static int worker_start(void)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, saved;

    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, WORKER_STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &saved);
    int ret = -pthread_create(&thread, &attr, worker_thread, NULL);

    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    pthread_attr_destroy(&attr);
    return ret;
}

/* -errno when there is no worker at all and none can be started. */
static int job_queue(WorkerJob *job)
{
    int ret = 0;

    pthread_mutex_lock(&pool.lock);
    list_push_back(&pool.jobs, &job->node);
    pool.nb_jobs++;
    if (pool.idle >= pool.nb_jobs) {
        pthread_cond_signal(&pool.work);
    } else if (pool.workers < AIO_WORKERS_MAX) {
        pool.workers++;
        ret = worker_start();
        if (ret < 0) {
            pool.workers--;
            if (pool.workers > 0) {
                ret = 0; /* one of those will come to it */
            } else {
                list_remove(&job->node);
                pool.nb_jobs--;
            }
        }
    }
    pthread_mutex_unlock(&pool.lock);
    return ret;
}

int aio_co_run_blocking(AioBlockingFn *fn, void *opaque)
{
    WorkerJob job = { .fn = fn, .opaque = opaque, .co = co_self() };
    int ret = job_queue(&job);

    if (ret < 0) {
        return ret;
    }
    co_yield();
    assert(job.done); /* nobody else may wake it */
    return job.ret;
}

int aio_run_detached(AioBlockingFn *fn, void *opaque)
{
    WorkerJob *job = calloc(1, sizeof(*job));

    if (!job) {
        return -ENOMEM;
    }
    job->fn = fn;
    job->opaque = opaque;
    int ret = job_queue(job);

    if (ret < 0) {
        free(job);
    }
    return ret;
}
