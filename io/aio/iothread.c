/*
 * iothread.c - threads that do nothing but poll their context
 *
 * Life of the thread: [create] starts it, bound to its CPUs by the C library before it runs our
 * code; it enters the context (which ties the ring to it), says so, polls until told to stop, and
 * leaves. The context is created before and destroyed after, by the main thread.
 *
 * The kernel takes a set of CPUs of which only some may be used, and uses those. So what it has
 * made of the set is read back, and a CPU that is missing is an error.
 */
#include "io/aio/iothread.h"

#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>

#include "io/base/thread.h"

struct IOThread {
    AioContext *ctx;
    pthread_t thread;
    atomic_bool stopping;
    sem_t started; /* posted by the thread when the two below are set */
    pid_t tid;
    char name[IOTHREAD_NAME_BYTES];

    /* main thread */
    unsigned refs;
    AioParams params;
    char *id;
};

static void *iothread_thread(void *opaque)
{
    IOThread *iot = opaque;

    thread_set_name("io:%s", iot->id);
    pthread_getname_np(pthread_self(), iot->name, sizeof(iot->name));
    iot->tid = gettid();
    aio_context_enter(iot->ctx);
    sem_post(&iot->started);
    /* acquire: pairs with stop_thread(); the notify after its store keeps us from sleeping */
    while (!atomic_load_explicit(&iot->stopping, memory_order_acquire)) {
        aio_poll(iot->ctx, true);
    }
    while (aio_poll(iot->ctx, false)) {
        /* bottom halves that were scheduled before the end are run */
    }
    aio_context_enter(NULL);
    co_pool_drain();
    return NULL;
}

/* Signals are for the threads that ask for them; one that polls must not be interrupted. */
static int start_thread(IOThread *iot, const cpu_set_t *cpus)
{
    pthread_attr_t attr;
    sigset_t saved;
    int ret = pthread_attr_init(&attr);

    if (ret == 0 && cpus) {
        ret = pthread_attr_setaffinity_np(&attr, sizeof(*cpus), cpus);
    }
    if (ret == 0) {
        thread_block_signals(&saved);
        ret = pthread_create(&iot->thread, &attr, iothread_thread, iot);
        pthread_sigmask(SIG_SETMASK, &saved, NULL);
    }
    pthread_attr_destroy(&attr);
    while (ret == 0 && sem_wait(&iot->started) < 0) {
        assert(errno == EINTR);
    }
    return -ret;
}

static void stop_thread(IOThread *iot)
{
    /* release: pairs with iothread_thread() */
    atomic_store_explicit(&iot->stopping, true, memory_order_release);
    aio_notify(iot->ctx);
    pthread_join(iot->thread, NULL);
}

/* The first of @wanted that the thread was not given; -1 when it has them all. */
static int missing_cpu(const IOThread *iot, const cpu_set_t *wanted)
{
    cpu_set_t cpus;

    if (pthread_getaffinity_np(iot->thread, sizeof(cpus), &cpus) != 0) {
        CPU_ZERO(&cpus);
    }
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, wanted) && !CPU_ISSET(cpu, &cpus)) {
            return cpu;
        }
    }
    return -1;
}

static int first_cpu(const cpu_set_t *cpus)
{
    int cpu = 0;

    assert(CPU_COUNT(cpus) > 0);
    while (!CPU_ISSET(cpu, cpus)) {
        cpu++;
    }
    return cpu;
}

/* On all of @cpus, or anywhere when that is NULL. */
static int start(IOThread *iot, const cpu_set_t *cpus, Error *err)
{
    int ret = start_thread(iot, cpus);
    int cpu;

    if (ret < 0 && !(cpus && ret == -EINVAL)) {
        return error_set(err, ret, "starting the thread: %s", thread_strerror(ret));
    }
    if (!cpus) {
        return 0;
    }
    if (ret < 0) {
        cpu = first_cpu(cpus); /* the kernel takes none of them */
    } else {
        cpu = missing_cpu(iot, cpus);
        if (cpu < 0) {
            return 0;
        }
        stop_thread(iot);
    }
    return error_set(err, -EINVAL, "CPU %d is absent, offline or not allowed to this process", cpu);
}

static void iothread_destroy(IOThread *iot)
{
    aio_context_destroy(iot->ctx);
    sem_destroy(&iot->started);
    free(iot->id);
    free(iot);
}

static main_fn IOThread *create(const char *id, const AioParams *params, const cpu_set_t *cpus,
                                Error *err)
{
    IOThread *iot = calloc(1, sizeof(*iot));

    if (iot) {
        iot->id = strdup(id);
    }
    if (!iot || !iot->id) {
        free(iot);
        error_set(err, -ENOMEM, "iothread '%s': out of memory", id);
        return NULL;
    }
    iot->refs = 1;
    if (params) {
        iot->params = *params;
    }
    sem_init(&iot->started, 0, 0);
    iot->ctx = aio_context_create(id, params, err);
    if (!iot->ctx) {
        error_prefix(err, "iothread '%s': ", id);
        iothread_destroy(iot);
        return NULL;
    }
    if (start(iot, cpus, err) < 0) {
        error_prefix(err, "iothread '%s': ", id);
        iothread_destroy(iot);
        return NULL;
    }
    return iot;
}

IOThread *iothread_create(const char *id, const AioParams *params, Error *err)
{
    return create(id, params, NULL, err);
}

IOThread *iothread_create_on(const char *id, const AioParams *params, const cpu_set_t *cpus,
                             Error *err)
{
    return create(id, params, cpus, err);
}

IOThread *iothread_ref(IOThread *iot)
{
    iot->refs++;
    return iot;
}

void iothread_unref(IOThread *iot)
{
    if (iot && --iot->refs == 0) {
        stop_thread(iot);
        iothread_destroy(iot);
    }
}

AioContext *iothread_context(const IOThread *iot)
{
    return iot->ctx;
}

const char *iothread_id(const IOThread *iot)
{
    return iot->id;
}

/* --- while it runs --- */

typedef struct SetPolling {
    AioContext *ctx;
    AioParams params;
} SetPolling;

static void set_polling_bh(void *opaque)
{
    SetPolling *set = opaque;

    aio_context_set_polling(set->ctx, &set->params);
    free(set);
}

void iothread_set_polling(IOThread *iot, const AioParams *params)
{
    SetPolling *set = malloc(sizeof(*set));

    if (!set) {
        abort();
    }
    iot->params.poll_max_ns = params->poll_max_ns;
    iot->params.poll_grow = params->poll_grow;
    iot->params.poll_shrink = params->poll_shrink;
    iot->params.poll_weight = params->poll_weight;
    *set = (SetPolling){ .ctx = iot->ctx, .params = iot->params };
    aio_bh_schedule_oneshot(iot->ctx, set_polling_bh, set);
}

void iothread_query(const IOThread *iot, IOThreadInfo *ret_info)
{
    *ret_info = (IOThreadInfo){ .id = iot->id, .tid = iot->tid, .params = iot->params };
    memcpy(ret_info->name, iot->name, sizeof(iot->name));
    if (pthread_getaffinity_np(iot->thread, sizeof(ret_info->cpus), &ret_info->cpus) != 0) {
        CPU_ZERO(&ret_info->cpus);
    }
    aio_context_stats(iot->ctx, &ret_info->stats);
}
