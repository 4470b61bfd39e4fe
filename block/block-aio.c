/*
 * block-aio.c - requests with a callback: each runs in a coroutine of its own
 *
 * Invariants:
 *   (1) The request is counted when it begins and until its callback has returned; between its end
 *       and a callback that comes in a later pass it is counted, too.
 *   (2) The callback runs in the context the request was started in, not before that function has
 *       returned: a request that ends at once goes to the context's next pass.
 */
#include "block/block-aio.h"

#include "block/block-backend-int.h"

static void aio_entry(void *opaque)
{
    BlkAio *aio = opaque;
    BlockBackend *blk = aio->blk;
    AioContext *ctx = aio_current();
    int ret;

    assert_in_coroutine();
    blk_co_request_begin(blk);
    ret = aio->perform(aio);
    aio_co_reschedule_self(ctx);
    if (aio->starting) {
        aio_co_schedule(ctx, co_self());
        co_yield();
    }
    aio->cb(aio->opaque, ret);
    blk_request_end(blk);
}

static int start(BlkAio *aio)
{
    Coroutine *co = co_create(aio_entry, aio);

    if (!co) {
        return -ENOMEM;
    }
    aio->starting = true;
    co_enter(co);
    aio->starting = false;
    return 0;
}

static co_fn GRAPH_RD int perform_preadv(BlkAio *aio)
{
    return blk_co_do_preadv(aio->blk, aio->offset_bytes, aio->len_bytes, aio->iov, aio->niov,
                            aio->flags);
}

int blk_aio_preadv(BlkAio *aio, BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                   const struct iovec *iov, int niov, BlkFlags flags, BlkAioCallback *cb,
                   void *opaque)
{
    *aio = (BlkAio){ .blk = blk,
                     .perform = perform_preadv,
                     .offset_bytes = offset_bytes,
                     .len_bytes = len_bytes,
                     .iov = iov,
                     .niov = niov,
                     .flags = flags,
                     .cb = cb,
                     .opaque = opaque };
    return start(aio);
}

static co_fn GRAPH_RD int perform_pwritev(BlkAio *aio)
{
    return blk_co_do_pwritev(aio->blk, aio->offset_bytes, aio->len_bytes, aio->iov, aio->niov,
                             aio->flags);
}

int blk_aio_pwritev(BlkAio *aio, BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                    const struct iovec *iov, int niov, BlkFlags flags, BlkAioCallback *cb,
                    void *opaque)
{
    *aio = (BlkAio){ .blk = blk,
                     .perform = perform_pwritev,
                     .offset_bytes = offset_bytes,
                     .len_bytes = len_bytes,
                     .iov = iov,
                     .niov = niov,
                     .flags = flags,
                     .cb = cb,
                     .opaque = opaque };
    return start(aio);
}

static co_fn GRAPH_RD int perform_flush(BlkAio *aio)
{
    return blk_co_do_flush(aio->blk);
}

int blk_aio_flush(BlkAio *aio, BlockBackend *blk, BlkAioCallback *cb, void *opaque)
{
    *aio = (BlkAio){ .blk = blk, .perform = perform_flush, .cb = cb, .opaque = opaque };
    return start(aio);
}

static co_fn GRAPH_RD int perform_pdiscard(BlkAio *aio)
{
    return blk_co_do_pdiscard(aio->blk, aio->offset_bytes, aio->len_bytes);
}

int blk_aio_pdiscard(BlkAio *aio, BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                     BlkAioCallback *cb, void *opaque)
{
    *aio = (BlkAio){ .blk = blk,
                     .perform = perform_pdiscard,
                     .offset_bytes = offset_bytes,
                     .len_bytes = len_bytes,
                     .cb = cb,
                     .opaque = opaque };
    return start(aio);
}

static co_fn GRAPH_RD int perform_pwrite_zeroes(BlkAio *aio)
{
    return blk_co_do_pwrite_zeroes(aio->blk, aio->offset_bytes, aio->len_bytes, aio->flags);
}

int blk_aio_pwrite_zeroes(BlkAio *aio, BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                          BlkFlags flags, BlkAioCallback *cb, void *opaque)
{
    *aio = (BlkAio){ .blk = blk,
                     .perform = perform_pwrite_zeroes,
                     .offset_bytes = offset_bytes,
                     .len_bytes = len_bytes,
                     .flags = flags,
                     .cb = cb,
                     .opaque = opaque };
    return start(aio);
}

static co_fn GRAPH_RD int perform_block_status(BlkAio *aio)
{
    return blk_co_do_block_status(aio->blk, aio->offset_bytes, aio->len_bytes, aio->ret_len_bytes);
}

int blk_aio_block_status(BlkAio *aio, BlockBackend *blk, uint64_t offset_bytes, uint64_t len_bytes,
                         uint64_t *ret_len_bytes, BlkAioCallback *cb, void *opaque)
{
    *aio = (BlkAio){ .blk = blk,
                     .perform = perform_block_status,
                     .offset_bytes = offset_bytes,
                     .len_bytes = len_bytes,
                     .ret_len_bytes = ret_len_bytes,
                     .cb = cb,
                     .opaque = opaque };
    return start(aio);
}
