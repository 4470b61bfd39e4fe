/*
 * block-backend.c - requests come in, are counted, or wait while a drained section lasts
 *
 * States of a request and who performs each change:
 *
 *     arriving --inflight_enter()--> in flight --request_end()--> done
 *        |                              ^
 *        | gate closed                  | blk_drained_end(), in order of arrival
 *        +--request_wait()--> queued ---+
 *
 * Invariants:
 *   (1) blk_drained_begin() returns when no request is in flight: the gate of `in_flight` is closed,
 *       and in-flight.c guarantees that what was counted has ended.
 *   (2) A request is queued only while the gate is closed, decided under `lock`; the gate is opened
 *       under `lock`, together with taking the whole queue. So nobody stays in the queue.
 *   (3) blk_drained_end() counts the queued requests itself before it opens the gate. They go on
 *       without asking again, so a drained section that begins at once waits for them, and they
 *       cannot be overtaken a second time.
 *   (4) The range is checked once the request is counted: a drained section may change the length.
 */
#include "block/block-backend.h"

#include <pthread.h>
#include <string.h>

#include "block/in-flight.h"
#include "block/iov.h"

struct BlockBackend {
    /* Read by every request, written in the main thread. */
    BlockNode *node;
    InFlight in_flight;
    _Atomic bool write_cache;

    char *id;
    unsigned quiesce_depth; /* nested drained sections; main thread */
    pthread_mutex_t lock;   /* protects queued */
    List queued;            /* QueuedRequest, in order of arrival */
};

/* A request that waits for the end of a drained section; in its coroutine's frame. */
typedef struct QueuedRequest {
    ListNode node;
    Coroutine *co;
} QueuedRequest;

/* --- opening and closing --- */

static void backend_free(BlockBackend *blk)
{
    inflight_finish(&blk->in_flight);
    pthread_mutex_destroy(&blk->lock);
    bdrv_unref(blk->node);
    free(blk->id);
    free(blk);
}

BlockBackend *blk_create(const char *id, BlockNode *node)
{
    BlockBackend *blk;

    if (posix_memalign((void **)&blk, CACHE_LINE_BYTES, sizeof(*blk)) != 0) {
        return NULL;
    }
    memset(blk, 0, sizeof(*blk));
    pthread_mutex_init(&blk->lock, NULL);
    list_init(&blk->queued);
    blk->node = bdrv_ref(node);
    blk->id = strdup(id);
    if (!blk->id || inflight_init(&blk->in_flight) < 0) {
        backend_free(blk);
        return NULL;
    }
    atomic_store(&blk->write_cache, node->write_cache);
    return blk;
}

BlockBackend *blk_open(const char *id, Opts *opts, Error *err)
{
    BlockNode *node = bdrv_open(opts, err);
    BlockBackend *blk;

    if (!node) {
        return NULL;
    }
    blk = blk_create(id, node);
    if (!blk) {
        error_set(err, -ENOMEM, "%s: out of memory", opts->what);
    }
    bdrv_unref(node);
    return blk;
}

typedef struct FlushCall {
    BlockNode *node;
    int ret;
} FlushCall;

static void flush_entry(void *opaque)
{
    FlushCall *call = opaque;

    assert_in_coroutine();
    call->ret = bdrv_co_flush(call->node);
}

int blk_close(BlockBackend *blk)
{
    FlushCall call;

    if (!blk) {
        return 0;
    }
    blk_drained_begin(blk);
    assert(blk->quiesce_depth == 1 && list_empty(&blk->queued));
    call = (FlushCall){ .node = blk->node };
    aio_co_run_sync(aio_main(), flush_entry, &call);
    backend_free(blk);
    return call.ret;
}

/* --- what it is --- */

const char *blk_id(const BlockBackend *blk)
{
    return blk->id;
}

uint64_t blk_length(const BlockBackend *blk)
{
    return atomic_load_explicit(&blk->node->length_bytes, memory_order_relaxed);
}

bool blk_read_only(const BlockBackend *blk)
{
    return blk->node->read_only;
}

const BlockLimits *blk_limits(const BlockBackend *blk)
{
    return &blk->node->limits;
}

BlockNode *blk_node(const BlockBackend *blk)
{
    return blk->node;
}

bool blk_write_cache(const BlockBackend *blk)
{
    return atomic_load_explicit(&blk->write_cache, memory_order_relaxed);
}

void blk_set_write_cache(BlockBackend *blk, bool on)
{
    atomic_store(&blk->write_cache, on);
}

unsigned blk_in_flight(BlockBackend *blk)
{
    return (unsigned)inflight_count(&blk->in_flight);
}

/* --- a request's begin and end --- */

/* Wait for the end of the drained section. True: counted by who ended it. False: it had ended
 * already, try again. */
static NOINLINE co_fn bool request_wait(BlockBackend *blk)
{
    QueuedRequest request = { .co = co_self() };
    bool wait;

    pthread_mutex_lock(&blk->lock);
    wait = inflight_is_closed(&blk->in_flight);
    if (wait) {
        list_push_back(&blk->queued, &request.node);
    }
    pthread_mutex_unlock(&blk->lock);
    if (wait) {
        co_yield();
    }
    return wait;
}

static inline co_fn void request_begin(BlockBackend *blk)
{
    while (unlikely(!inflight_enter(&blk->in_flight))) {
        if (request_wait(blk)) {
            return;
        }
    }
}

static inline void request_end(BlockBackend *blk)
{
    inflight_leave(&blk->in_flight);
}

static inline int check_range(const BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes)
{
    uint64_t length_bytes = blk_length(blk);

    return offset_bytes <= length_bytes && len_bytes <= length_bytes - offset_bytes ? 0 : -EINVAL;
}

static inline int check_read(const BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                             const struct iovec *iov, int niov)
{
    if (unlikely(iov_total(iov, niov) != len_bytes)) {
        return -EINVAL;
    }
    return check_range(blk, offset_bytes, len_bytes);
}

static inline int check_write(const BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes)
{
    return unlikely(blk->node->read_only) ? -EPERM : check_range(blk, offset_bytes, len_bytes);
}

/* --- requests --- */

co_fn int blk_co_preadv(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                        const struct iovec *iov, int niov, BlkFlags flags)
{
    int ret;

    request_begin(blk);
    ret = check_read(blk, offset_bytes, len_bytes, iov, niov);
    if (likely(ret == 0) && likely(len_bytes > 0)) {
        ret = bdrv_co_preadv(blk->node, offset_bytes, len_bytes, iov, niov, flags);
    }
    request_end(blk);
    return ret;
}

co_fn int blk_co_pwritev(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                         const struct iovec *iov, int niov, BlkFlags flags)
{
    int ret;

    request_begin(blk);
    ret = check_write(blk, offset_bytes, len_bytes);
    if (unlikely(iov_total(iov, niov) != len_bytes)) {
        ret = ret < 0 ? ret : -EINVAL;
    }
    if (unlikely(!blk_write_cache(blk))) {
        flags |= BLK_FUA;
    }
    if (likely(ret == 0) && likely(len_bytes > 0)) {
        ret = bdrv_co_pwritev(blk->node, offset_bytes, len_bytes, iov, niov, flags);
    }
    request_end(blk);
    return ret;
}

co_fn int blk_co_flush(BlockBackend *blk)
{
    int ret;

    request_begin(blk);
    ret = bdrv_co_flush(blk->node);
    request_end(blk);
    return ret;
}

co_fn int blk_co_pdiscard(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes)
{
    int ret;

    request_begin(blk);
    ret = check_write(blk, offset_bytes, len_bytes);
    if (ret == 0) {
        ret = bdrv_co_pdiscard(blk->node, offset_bytes, len_bytes);
    }
    request_end(blk);
    return ret;
}

co_fn int blk_co_pwrite_zeroes(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                               BlkFlags flags)
{
    int ret;

    request_begin(blk);
    ret = check_write(blk, offset_bytes, len_bytes);
    if (!blk_write_cache(blk)) {
        flags |= BLK_FUA;
    }
    if (ret == 0 && len_bytes > 0) {
        ret = bdrv_co_pwrite_zeroes(blk->node, offset_bytes, len_bytes, flags);
    }
    request_end(blk);
    return ret;
}

/* --- drained sections --- */

static void wait_entry(void *opaque)
{
    assert_in_coroutine();
    inflight_co_wait(opaque);
}

void blk_drained_begin(BlockBackend *blk)
{
    if (blk->quiesce_depth++ > 0) {
        return;
    }
    inflight_close(&blk->in_flight);
    if (inflight_count(&blk->in_flight) > 0) {
        aio_co_run_sync(aio_main(), wait_entry, &blk->in_flight);
    }
}

void blk_drained_end(BlockBackend *blk)
{
    List queued = LIST_INIT(queued);
    ListNode *node;
    unsigned nb = 0;

    assert(blk->quiesce_depth > 0);
    if (--blk->quiesce_depth > 0) {
        return;
    }
    pthread_mutex_lock(&blk->lock);
    list_splice_back(&queued, &blk->queued);
    list_for_each(it, &queued) {
        nb++;
    }
    inflight_add(&blk->in_flight, nb);
    inflight_open(&blk->in_flight);
    pthread_mutex_unlock(&blk->lock);

    while ((node = list_pop_front(&queued)) != NULL) {
        aio_co_wake(list_entry(node, QueuedRequest, node)->co);
    }
}
