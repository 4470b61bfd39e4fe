/*
 * iothread.c - threads that do nothing but poll their context
 *
 * Life of the thread: [iothread_create] starts it; it enters the context (which ties the ring to
 * it), polls until told to stop, and leaves. The context is created before and destroyed after, by
 * the main thread, so that it can be used as soon as iothread_create() returns.
 */
#include "io/aio/iothread.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>

#include "io/base/thread.h"

struct IOThread {
    AioContext *ctx;
    pthread_t thread;
    atomic_bool stopping;
    unsigned refs; /* main thread */
    char *id;
};

static void *iothread_thread(void *opaque)
{
    IOThread *iot = opaque;

    thread_set_name("io:%s", iot->id);
    aio_context_enter(iot->ctx);
    /* acquire: pairs with iothread_stop(); the notify after its store keeps us from sleeping */
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
static int start_thread(IOThread *iot)
{
    sigset_t all, saved;

    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &saved);
    int ret = -pthread_create(&iot->thread, NULL, iothread_thread, iot);

    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    return ret;
}

static void iothread_destroy(IOThread *iot)
{
    aio_context_destroy(iot->ctx);
    free(iot->id);
    free(iot);
}

IOThread *iothread_create(const char *id, const AioParams *params, Error *err)
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
    iot->ctx = aio_context_create(id, params, err);
    if (!iot->ctx) {
        error_prefix(err, "iothread '%s': ", id);
        iothread_destroy(iot);
        return NULL;
    }
    int ret = start_thread(iot);

    if (ret < 0) {
        error_set(err, ret, "iothread '%s': starting the thread: %s", id, error_strerror(ret));
        iothread_destroy(iot);
        return NULL;
    }
    return iot;
}

IOThread *iothread_ref(IOThread *iot)
{
    iot->refs++;
    return iot;
}

static void iothread_stop(IOThread *iot)
{
    /* release: pairs with iothread_thread() */
    atomic_store_explicit(&iot->stopping, true, memory_order_release);
    aio_notify(iot->ctx);
    pthread_join(iot->thread, NULL);
}

void iothread_unref(IOThread *iot)
{
    if (iot && --iot->refs == 0) {
        iothread_stop(iot);
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
