/*
 * resolve.c - name resolution in a worker thread, which may be given up
 *
 * A look-up has two owners, the worker and the coroutine; the last one frees it. The worker tells
 * the coroutine through the slot of the caller's ChannelCancel, which it may only touch while the
 * look-up says so: look-up.waiter, under the look-up's lock. Nobody is entered while that is held,
 * because waking from a worker only schedules.
 */
#include "io/channel/resolve.h"

#include <pthread.h>
#include <string.h>

#include "io/aio/aio-worker.h"

typedef struct LookUp {
    pthread_mutex_t lock; /* protects done and waiter */
    bool done;
    WaitSlot *waiter; /* NULL once the coroutine has gone */
    _Atomic unsigned refs;
    SocketAddress addr;
    struct addrinfo *list;
    int ret;
    Error err;
} LookUp;

static int errno_of_gai(int gai)
{
    switch (gai) {
    case EAI_NONAME:
    case EAI_NODATA:
    case EAI_ADDRFAMILY:
    case EAI_SERVICE:
        return -ENOENT;
    case EAI_AGAIN:
        return -EHOSTUNREACH;
    case EAI_MEMORY:
        return -ENOMEM;
    case EAI_SYSTEM:
        return -errno;
    default:
        return -EIO;
    }
}

int resolve_blocking(const SocketAddress *addr, int flags, struct addrinfo **ret_list, Error *err)
{
    struct addrinfo hints = {
        .ai_flags = flags,
        .ai_family = AF_UNSPEC,
        .ai_socktype = SOCK_STREAM,
    };
    char text[SOCKET_ADDRESS_TEXT_BYTES];
    int gai = getaddrinfo(addr->host[0] ? addr->host : NULL, addr->port, &hints, ret_list);

    if (gai == 0) {
        return 0;
    }
    return error_set(err, errno_of_gai(gai), "resolving '%s': %s",
                     socket_address_format(addr, text), gai_strerror(gai));
}

static void look_up_unref(LookUp *look)
{
    if (atomic_fetch_sub_explicit(&look->refs, 1, memory_order_acq_rel) > 1) {
        return;
    }
    if (look->list) {
        freeaddrinfo(look->list);
    }
    pthread_mutex_destroy(&look->lock);
    free(look);
}

static int look_up_run(void *opaque)
{
    LookUp *look = opaque;
    struct addrinfo *list = NULL;
    int ret = resolve_blocking(&look->addr, 0, &list, &look->err);

    pthread_mutex_lock(&look->lock);
    look->ret = ret;
    look->list = list;
    look->done = true;
    if (look->waiter) {
        wait_slot_wake(look->waiter);
    }
    pthread_mutex_unlock(&look->lock);
    look_up_unref(look);
    return 0;
}

static bool look_up_done(LookUp *look)
{
    pthread_mutex_lock(&look->lock);
    bool done = look->done;

    pthread_mutex_unlock(&look->lock);
    return done;
}

/* 0 when it is done. */
static co_fn int look_up_wait(LookUp *look, int64_t deadline_ns, ChannelCancel *cancel)
{
    bool woken = true;

    while (woken) {
        wait_slot_prepare(&cancel->slot);
        bool done = look_up_done(look);

        if (done || channel_cancelled(cancel)) {
            wait_slot_abandon(&cancel->slot);
            return done ? 0 : -ECANCELED;
        }
        woken = wait_slot_yield(&cancel->slot, deadline_ns);
    }
    return -ETIMEDOUT;
}

static co_fn int resolve_in_worker(const SocketAddress *addr, int64_t deadline_ns,
                                   ChannelCancel *cancel, struct addrinfo **ret_list, Error *err)
{
    char text[SOCKET_ADDRESS_TEXT_BYTES];
    LookUp *look = calloc(1, sizeof(*look));
    int ret = -ENOMEM;

    if (look) {
        pthread_mutex_init(&look->lock, NULL);
        look->refs = 2;
        look->addr = *addr;
        look->waiter = &cancel->slot;
        ret = aio_run_detached(look_up_run, look);
    }
    if (ret < 0) {
        free(look);
        return error_set(err, ret, "resolving '%s': %s", socket_address_format(addr, text),
                         error_strerror(ret));
    }
    ret = look_up_wait(look, deadline_ns, cancel);
    pthread_mutex_lock(&look->lock);
    look->waiter = NULL;
    pthread_mutex_unlock(&look->lock);
    if (ret < 0) {
        error_set(err, ret, "resolving '%s': %s", socket_address_format(addr, text),
                  error_strerror(ret));
    } else if (look->ret < 0) {
        ret = error_set(err, look->ret, "%s", look->err.msg);
    } else {
        *ret_list = take_ptr(&look->list);
    }
    look_up_unref(look);
    return ret;
}

int resolve_co(const SocketAddress *addr, int64_t deadline_ns, ChannelCancel *cancel,
               struct addrinfo **ret_list, Error *err)
{
    /* What needs no asking does not block. */
    if (resolve_blocking(addr, AI_NUMERICHOST | AI_NUMERICSERV, ret_list, NULL) == 0) {
        return 0;
    }
    return resolve_in_worker(addr, deadline_ns, cancel, ret_list, err);
}
