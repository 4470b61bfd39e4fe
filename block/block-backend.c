/*
 * block-backend.c - a user's requests come in, are counted, or wait while a drained section lasts
 *
 * States of a request and who performs each change:
 *
 *     arriving --inflight_enter()--> in flight --blk_request_end()--> done
 *        |                              ^
 *        | gate closed                  | drain_update(), in order of arrival
 *        +--request_wait()--> queued ---+
 *
 * Invariants:
 *   (1) A request is queued only while the gate is closed, decided under `lock`; the gate is opened
 *       under `lock`, together with taking the whole queue (block-drain.c). So nobody stays in the
 *       queue.
 *   (2) What was queued is counted before the gate opens and goes on without asking again, so a
 *       drained section that begins at once waits for it, and it cannot be overtaken a second time.
 *   (3) The range is checked, and the root looked at, once the request is counted: a drained
 *       section may change the length and the graph.
 */
#include "block/block-backend-int.h"

#include <string.h>

#include "block/iov.h"

List blk_backends = LIST_INIT(blk_backends);

/* --- opening and closing --- */

static void backend_free(BlockBackend *blk)
{
    if (list_linked(&blk->backends_link)) {
        list_remove(&blk->backends_link);
    }
    bdrv_detach(&blk->root);
    drain_point_finish(&blk->drain);
    pthread_mutex_destroy(&blk->lock);
    free(blk->id);
    free(blk);
}

void blk_ref(BlockBackend *blk)
{
    blk->refs++;
}

void blk_unref(BlockBackend *blk)
{
    assert(blk->refs > 0);
    if (--blk->refs == 0) {
        backend_free(blk);
    }
}

static BlockBackend *backend_create(const char *id, Error *err)
{
    BlockBackend *blk;

    if (posix_memalign((void **)&blk, CACHE_LINE_BYTES, sizeof(*blk)) != 0) {
        error_set(err, -ENOMEM, "disk '%s': out of memory", id);
        return NULL;
    }
    memset(blk, 0, sizeof(*blk));
    pthread_mutex_init(&blk->lock, NULL);
    list_init(&blk->queued);
    blk->refs = 1;
    blk->id = strdup(id);
    if (!blk->id || drain_point_init(&blk->drain) < 0) {
        error_set(err, -ENOMEM, "disk '%s': out of memory", id);
        backend_free(blk);
        return NULL;
    }
    return blk;
}

BlkPerm blk_default_perm(const BlockNode *node)
{
    return node->read_only ? BLK_PERM_READ : BLK_PERM_ALL;
}

BlockBackend *blk_create(const char *id, BlockNode *node, BlkPerm perm, BlkPerm shared, Error *err)
{
    BlockBackend *blk = backend_create(id, err);

    if (!blk) {
        return NULL;
    }
    blk->read_only = !(perm & BLK_PERM_WRITE);
    blk->root = (BdrvChild){ .name = "root", .blk = blk, .perm = perm, .shared = shared };
    list_push_back(&blk_backends, &blk->backends_link);
    if (bdrv_attach(&blk->root, node, err) < 0) {
        backend_free(blk);
        return NULL;
    }
    atomic_store(&blk->length_bytes, atomic_load(&node->length_bytes));
    atomic_store(&blk->write_cache, node->write_cache);
    return blk;
}

BlockBackend *blk_open(const char *id, Opts *opts, Error *err)
{
    BlockNode *node = bdrv_open(opts, err);
    BlockBackend *blk;
    Error reason;

    if (!node) {
        return NULL;
    }
    blk = blk_create(id, node, blk_default_perm(node), BLK_PERM_READ, &reason);
    if (!blk) {
        error_set(err, reason.code, "%s: %s", opts->what, reason.msg);
    }
    bdrv_unref(node);
    return blk;
}

/* Run a coroutine in the main context, wherever in the main thread this is. */
static void run_here(CoroutineEntry *entry, void *opaque)
{
    if (in_coroutine()) {
        entry(opaque);
    } else {
        aio_co_run_sync(aio_main(), entry, opaque);
    }
}

typedef struct FlushCall {
    BlockNode *node;
    int ret;
} FlushCall;

static void flush_entry(void *opaque)
{
    FlushCall *call = opaque;

    assert_in_coroutine();
    graph_assert_main();
    call->ret = bdrv_co_flush(call->node);
}

int blk_close(BlockBackend *blk)
{
    FlushCall call = { 0 };

    if (!blk) {
        return 0;
    }
    graph_assert_main();
    drain_backend_begin(blk);
    assert(blk->drain.sections == 1 && list_empty(&blk->queued));
    blk->user = NULL;
    if (!blk->read_only) {
        call.node = blk->root.node;
        run_here(flush_entry, &call);
    }
    /* Out of the graph while it is drained; the section ends with it. */
    list_remove(&blk->backends_link);
    blk->drain.sections = 0;
    bdrv_detach(&blk->root);
    blk_unref(blk);
    return call.ret;
}

void blk_set_user(BlockBackend *blk, const BlkUserOps *ops, void *opaque)
{
    if (blk->user_paused && blk->user && blk->user->drained_end) {
        blk->user->drained_end(blk->user_opaque);
    }
    blk->user = ops;
    blk->user_opaque = opaque;
    if (blk->user_paused && ops && ops->drained_begin) {
        ops->drained_begin(opaque);
    }
}

/* --- what it is --- */

const char *blk_id(const BlockBackend *blk)
{
    return blk->id;
}

uint64_t blk_length(const BlockBackend *blk)
{
    return atomic_load_explicit(&blk->length_bytes, memory_order_relaxed);
}

bool blk_read_only(const BlockBackend *blk)
{
    return blk->read_only;
}

const BlockLimits *blk_limits(const BlockBackend *blk)
{
    graph_assert_main();
    return &blk->root.node->limits;
}

BlockNode *blk_node(const BlockBackend *blk)
{
    graph_assert_main();
    return blk->root.node;
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
    return (unsigned)inflight_count(&blk->drain.in_flight);
}

/* --- length --- */

void blk_node_resized(BlockBackend *blk)
{
    uint64_t length_bytes;

    graph_assert_main();
    length_bytes = atomic_load(&blk->root.node->length_bytes);
    if (length_bytes == blk_length(blk)) {
        return;
    }
    atomic_store(&blk->length_bytes, length_bytes);
    if (blk->user && blk->user->resized) {
        blk->user->resized(blk->user_opaque);
    }
}

typedef struct LengthCall {
    BlockNode *node;
    uint64_t length_bytes;
    Error *err;
    int ret;
} LengthCall;

static void truncate_entry(void *opaque)
{
    LengthCall *call = opaque;

    assert_in_coroutine();
    graph_assert_main();
    call->ret = bdrv_co_truncate(call->node, call->length_bytes, call->err);
}

static void refresh_entry(void *opaque)
{
    LengthCall *call = opaque;

    assert_in_coroutine();
    graph_assert_main();
    call->ret = bdrv_co_refresh_length(call->node, call->err);
}

static int call_drained(BlockBackend *blk, CoroutineEntry *entry, uint64_t length_bytes, Error *err)
{
    LengthCall call = { .length_bytes = length_bytes, .err = err };

    graph_assert_main();
    drain_backend_begin(blk);
    call.node = blk->root.node;
    run_here(entry, &call);
    drain_backend_end(blk);
    if (call.ret < 0) {
        error_prefix(err, "disk '%s': ", blk->id);
    }
    return call.ret;
}

int blk_truncate(BlockBackend *blk, uint64_t length_bytes, Error *err)
{
    if (!(blk->root.perm & BLK_PERM_RESIZE)) {
        return error_set(err, -EPERM, "disk '%s' is not open for changing its length", blk->id);
    }
    return call_drained(blk, truncate_entry, length_bytes, err);
}

int blk_refresh_length(BlockBackend *blk, Error *err)
{
    return call_drained(blk, refresh_entry, 0, err);
}

/* --- a request's begin --- */

/* Wait for the end of the drained section. True: counted by who ended it. False: it had ended
 * already, try again. */
static co_fn bool request_wait(BlockBackend *blk)
{
    QueuedRequest request = { .co = co_self() };
    bool wait;

    pthread_mutex_lock(&blk->lock);
    wait = inflight_is_closed(&blk->drain.in_flight);
    if (wait) {
        list_push_back(&blk->queued, &request.node);
    }
    pthread_mutex_unlock(&blk->lock);
    if (wait) {
        co_yield();
    }
    return wait;
}

NOINLINE co_fn void blk_co_wait_counted(BlockBackend *blk)
{
    while (!request_wait(blk) && !inflight_enter(&blk->drain.in_flight)) {
    }
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
    return unlikely(blk->read_only) ? -EPERM : check_range(blk, offset_bytes, len_bytes);
}

/* --- requests, counted --- */

/* These two are inlined: they are what a disk does most. */

static ALWAYS_INLINE co_fn GRAPH_RD int do_preadv(BlockBackend *blk, uint64_t offset_bytes,
                                         uint64_t len_bytes, const struct iovec *iov, int niov,
                                         BlkFlags flags)
{
    int ret = check_read(blk, offset_bytes, len_bytes, iov, niov);

    if (likely(ret == 0) && likely(len_bytes > 0)) {
        ret = bdrv_co_preadv(blk->root.node, offset_bytes, len_bytes, iov, niov, flags);
    }
    return ret;
}

static ALWAYS_INLINE co_fn GRAPH_RD int do_pwritev(BlockBackend *blk, uint64_t offset_bytes,
                                          uint64_t len_bytes, const struct iovec *iov, int niov,
                                          BlkFlags flags)
{
    int ret = check_write(blk, offset_bytes, len_bytes);

    if (unlikely(iov_total(iov, niov) != len_bytes)) {
        ret = ret < 0 ? ret : -EINVAL;
    }
    if (unlikely(!blk_write_cache(blk))) {
        flags |= BLK_FUA;
    }
    if (likely(ret == 0) && likely(len_bytes > 0)) {
        ret = bdrv_co_pwritev(blk->root.node, offset_bytes, len_bytes, iov, niov, flags);
    }
    return ret;
}

co_fn GRAPH_RD int blk_co_do_preadv(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                           const struct iovec *iov, int niov, BlkFlags flags)
{
    return do_preadv(blk, offset_bytes, len_bytes, iov, niov, flags);
}

co_fn GRAPH_RD int blk_co_do_pwritev(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                            const struct iovec *iov, int niov, BlkFlags flags)
{
    return do_pwritev(blk, offset_bytes, len_bytes, iov, niov, flags);
}

co_fn GRAPH_RD int blk_co_do_flush(BlockBackend *blk)
{
    return blk->read_only ? 0 : bdrv_co_flush(blk->root.node);
}

co_fn GRAPH_RD int blk_co_do_pdiscard(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes)
{
    int ret = check_write(blk, offset_bytes, len_bytes);

    return ret == 0 ? bdrv_co_pdiscard(blk->root.node, offset_bytes, len_bytes) : ret;
}

co_fn GRAPH_RD int blk_co_do_pwrite_zeroes(BlockBackend *blk, uint64_t offset_bytes,
                                           uint64_t len_bytes, BlkFlags flags)
{
    int ret = check_write(blk, offset_bytes, len_bytes);

    if (!blk_write_cache(blk)) {
        flags |= BLK_FUA;
    }
    if (ret == 0 && len_bytes > 0) {
        ret = bdrv_co_pwrite_zeroes(blk->root.node, offset_bytes, len_bytes, flags);
    }
    return ret;
}

co_fn GRAPH_RD int blk_co_do_block_status(BlockBackend *blk, uint64_t offset_bytes,
                                          uint64_t len_bytes, uint64_t *ret_len_bytes)
{
    int ret = check_range(blk, offset_bytes, len_bytes);

    if (ret == 0 && len_bytes > 0) {
        return bdrv_co_block_status(blk->root.node, offset_bytes, len_bytes, ret_len_bytes);
    }
    if (ret == 0) {
        *ret_len_bytes = 0;
    }
    return ret;
}

/* --- requests --- */

co_fn int blk_co_preadv(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                        const struct iovec *iov, int niov, BlkFlags flags)
{
    int ret;

    blk_co_request_begin(blk);
    ret = do_preadv(blk, offset_bytes, len_bytes, iov, niov, flags);
    blk_request_end(blk);
    return ret;
}

co_fn int blk_co_pwritev(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                         const struct iovec *iov, int niov, BlkFlags flags)
{
    int ret;

    blk_co_request_begin(blk);
    ret = do_pwritev(blk, offset_bytes, len_bytes, iov, niov, flags);
    blk_request_end(blk);
    return ret;
}

co_fn int blk_co_flush(BlockBackend *blk)
{
    int ret;

    blk_co_request_begin(blk);
    ret = blk_co_do_flush(blk);
    blk_request_end(blk);
    return ret;
}

co_fn int blk_co_pdiscard(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes)
{
    int ret;

    blk_co_request_begin(blk);
    ret = blk_co_do_pdiscard(blk, offset_bytes, len_bytes);
    blk_request_end(blk);
    return ret;
}

co_fn int blk_co_pwrite_zeroes(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                               BlkFlags flags)
{
    int ret;

    blk_co_request_begin(blk);
    ret = blk_co_do_pwrite_zeroes(blk, offset_bytes, len_bytes, flags);
    blk_request_end(blk);
    return ret;
}

co_fn int blk_co_block_status(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                              uint64_t *ret_len_bytes)
{
    int ret;

    blk_co_request_begin(blk);
    ret = blk_co_do_block_status(blk, offset_bytes, len_bytes, ret_len_bytes);
    blk_request_end(blk);
    return ret;
}

co_fn int blk_co_prefetch(BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes)
{
    int ret;

    blk_co_request_begin(blk);
    ret = check_range(blk, offset_bytes, len_bytes);
    if (ret == 0) {
        ret = bdrv_co_prefetch(blk->root.node, offset_bytes, len_bytes);
    }
    blk_request_end(blk);
    return ret;
}

/* --- drained sections --- */

void blk_drained_begin(BlockBackend *blk)
{
    drain_backend_begin(blk);
}

void blk_drained_end(BlockBackend *blk)
{
    drain_backend_end(blk);
}
