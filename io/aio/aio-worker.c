/*
 * aio-worker.c - the pool of threads for calls that block
 *
 *     NEW --[job_queue]--> QUEUED --[worker]--> BEGUN --[done, aio_co_wake]--> at home again
 *     NEW or QUEUED --[aio_job_cancel]--> CANCELLED --[done, aio_co_wake]--> at home again
 *
 * Who changes the state from QUEUED to another, under the lock, has the job from then on. It lives
 * in the frame of the coroutine that waits for it; aio_co_wake() is the last that is done with
 * either, and hands the result over. A job that nobody waits for is the worker's own, which frees
 * it.
 * A worker is started when there are more jobs than idle workers to take them and fewer workers
 * than allowed; it ends after WORKER_IDLE_S without a job. Nothing waits for workers at the end of
 * the process: an idle one holds nothing, and a busy one has a coroutine that is waited for, or
 * something that nobody waits for.
 */
#include "io/aio/aio-worker.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "io/base/thread.h"

#define WORKER_IDLE_S      10
#define WORKER_STACK_BYTES (256 * 1024)

enum {
    JOB_NEW,
    JOB_QUEUED,
    JOB_BEGUN,
    JOB_CANCELLED,
};

static struct {
    pthread_mutex_t lock; /* protects the rest */
    pthread_cond_t work;
    List jobs;
    unsigned nb_jobs; /* in that list */
    unsigned max_workers;
    unsigned workers;
    unsigned idle; /* of these, waiting; still counted while one wakes up for a job */
} pool = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .work = PTHREAD_COND_INITIALIZER,
    .jobs = LIST_INIT(pool.jobs),
    .max_workers = AIO_WORKERS_MAX_DEFAULT,
};

void aio_workers_set_max(unsigned max)
{
    assert(max >= 1 && max <= AIO_WORKERS_MAX_LIMIT);
    pthread_mutex_lock(&pool.lock);
    pool.max_workers = max;
    pthread_mutex_unlock(&pool.lock);
}

/* Take @job off the list. Called with the lock held. */
static void job_unqueue(AioJob *job, int state)
{
    list_remove(&job->node);
    pool.nb_jobs--;
    job->state = state;
}

/* Wait for a job; NULL after WORKER_IDLE_S without one. Called with the lock held. */
static AioJob *worker_next_job(void)
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
    AioJob *job = list_first_entry(&pool.jobs, AioJob, node);

    if (job) {
        job_unqueue(job, JOB_BEGUN);
    }
    return job;
}

/* The last that is done with @job here. */
static void job_done(AioJob *job, int ret)
{
    job->ret = ret;
    job->done = true;
    aio_co_wake(job->co);
}

static void job_run(AioJob *job)
{
    int ret = job->fn(job->opaque);

    if (job->co) {
        job_done(job, ret);
    } else {
        free(job);
    }
}

static void *worker_thread(void *opaque)
{
    AioJob *job;

    thread_set_name("worker");
    thread_use_main_cpus(); /* whoever had us started */
    pthread_mutex_lock(&pool.lock);
    while (pool.workers <= pool.max_workers && (job = worker_next_job())) {
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
    sigset_t saved;

    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, WORKER_STACK_BYTES);
    thread_block_signals(&saved);
    int ret = -pthread_create(&thread, &attr, worker_thread, NULL);

    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    pthread_attr_destroy(&attr);
    return ret;
}

/* See to it that somebody comes to the last job of the list. -errno when there is no worker at all
 * and none can be started: then it is off the list again. Called with the lock held. */
static int wake_worker(AioJob *job)
{
    if (pool.idle >= pool.nb_jobs) {
        pthread_cond_signal(&pool.work);
        return 0;
    }
    if (pool.workers >= pool.max_workers) {
        return 0;
    }
    pool.workers++;
    int ret = worker_start();

    if (ret < 0 && --pool.workers == 0) {
        job_unqueue(job, JOB_NEW);
        return ret;
    }
    return 0; /* if need be, one of those that are there will come to it */
}

static int job_queue(AioJob *job)
{
    int ret = -ECANCELED;

    pthread_mutex_lock(&pool.lock);
    if (job->state == JOB_NEW) {
        list_push_back(&pool.jobs, &job->node);
        pool.nb_jobs++;
        job->state = JOB_QUEUED;
        ret = wake_worker(job);
    }
    pthread_mutex_unlock(&pool.lock);
    return ret;
}

void aio_job_init(AioJob *job, AioBlockingFn *fn, void *opaque)
{
    *job = (AioJob){ .fn = fn, .opaque = opaque, .state = JOB_NEW };
}

int aio_co_run_job(AioJob *job)
{
    job->co = co_self();
    int ret = job_queue(job);

    if (ret == -ECANCELED) {
        return ret;
    }
    if (ret < 0) {
        return job->fn(job->opaque); /* slow, but done */
    }
    co_yield();
    assert(job->done); /* nobody else may wake it */
    return job->ret;
}

bool aio_job_cancel(AioJob *job)
{
    pthread_mutex_lock(&pool.lock);
    int state = job->state;

    if (state == JOB_QUEUED) {
        job_unqueue(job, JOB_CANCELLED);
    } else if (state == JOB_NEW) {
        job->state = JOB_CANCELLED;
    }
    pthread_mutex_unlock(&pool.lock);
    if (state == JOB_QUEUED) {
        job_done(job, -ECANCELED);
    }
    return state != JOB_BEGUN;
}

int aio_co_run_blocking(AioBlockingFn *fn, void *opaque)
{
    AioJob job;

    aio_job_init(&job, fn, opaque);
    return aio_co_run_job(&job);
}

int aio_run_detached(AioBlockingFn *fn, void *opaque)
{
    AioJob *job = malloc(sizeof(*job));

    if (!job) {
        return -ENOMEM;
    }
    aio_job_init(job, fn, opaque);
    int ret = job_queue(job);

    if (ret < 0) {
        free(job);
    }
    return ret;
}
