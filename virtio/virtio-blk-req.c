/*
 * virtio-blk-req.c - one request, from its descriptor chain to its status byte
 *
 * The framing is the driver's choice (2.7.4): the 16-byte header is the first readable bytes, in
 * however many pieces and perhaps with data behind it in the last of them; the status is the last
 * writable byte. Both are cut off the element's vectors, and what is left is the data.
 *
 * Invariants:
 *   (1) Every element that was popped is pushed exactly once, with its status byte written exactly
 *       once before that; or, if it has no writable byte at all, detached and the queue broken; or,
 *       if its storage fails while the queue is suspended, left, with no status byte written.
 *   (2) The header and discard ranges are copied before they are looked at.
 *   (3) Nothing reaches the backend whose range does not lie within the capacity.
 *   (4) Ranges of a discard or write-zeroes are all checked before the first is carried out.
 */
#include <inttypes.h>

#include "virtio/virtio-blk-int.h"

#define RANGE_BYTES sizeof(struct virtio_blk_discard_write_zeroes)

static_assert(sizeof(struct virtio_blk_outhdr) == 16, "wire format");
static_assert(RANGE_BYTES == 16, "wire format");

/* In the frame of the request's coroutine. */
typedef struct BlkRequest {
    VirtioBlk *vblk;
    VqElem *elem;
    uint32_t type;
    uint64_t sector;
    BlkAcctOp op;        /* what it counts as; BLK_ACCT_NB_OPS: nothing */
    uint64_t len_bytes;  /* that it counts for */
    uint32_t read_bytes; /* data bytes written to the guest, from the first writable one on */
} BlkRequest;

static uint8_t virtio_blk_status(int ret)
{
    switch (ret) {
    case 0:
        return VIRTIO_BLK_S_OK;
    case -EOPNOTSUPP:
        return VIRTIO_BLK_S_UNSUPP;
    default:
        return VIRTIO_BLK_S_IOERR;
    }
}

/* --- framing --- */

/* Cut the status byte off. NULL when there is none. */
static uint8_t *take_status(VqElem *elem)
{
    if (unlikely(elem->nb_in == 0)) {
        return NULL;
    }
    struct iovec *last = &elem->iov[elem->nb_out + elem->nb_in - 1];

    last->iov_len--;
    elem->in_bytes--;
    if (last->iov_len == 0) {
        elem->nb_in--;
    }
    return (uint8_t *)last->iov_base + last->iov_len;
}

/* Cut @len_bytes off the readable part's beginning; there are that many. */
static void skip_out(VqElem *elem, size_t len_bytes)
{
    elem->out_bytes -= len_bytes;
    while (len_bytes > 0) {
        size_t piece = MIN(len_bytes, elem->iov[0].iov_len);

        elem->iov[0].iov_base = (char *)elem->iov[0].iov_base + piece;
        elem->iov[0].iov_len -= piece;
        len_bytes -= piece;
        if (elem->iov[0].iov_len == 0) {
            elem->iov++;
            elem->nb_out--;
        }
    }
}

/* Cut the header off. False when the readable part is shorter. */
static bool take_header(VqElem *elem, struct virtio_blk_outhdr *ret_header)
{
    if (unlikely(elem->out_bytes < sizeof(*ret_header))) {
        return false;
    }
    vq_elem_copy_out(elem, 0, ret_header, sizeof(*ret_header));
    skip_out(elem, sizeof(*ret_header));
    return true;
}

static const struct iovec *data_in(const VqElem *elem)
{
    return elem->iov + elem->nb_out;
}

/* --- checks --- */

static bool range_ok(const VirtioBlk *vblk, uint64_t sector, uint64_t nb_sectors)
{
    uint64_t capacity = virtio_blk_capacity_sectors(vblk);

    return sector <= capacity && nb_sectors <= capacity - sector;
}

static int check_data(const BlkRequest *req, uint64_t len_bytes)
{
    if (unlikely(len_bytes % SECTOR_BYTES != 0 ||
                 !range_ok(req->vblk, req->sector, len_bytes / SECTOR_BYTES))) {
        return -EINVAL;
    }
    return 0;
}

/* --- the operations --- */

/* Whether a call of the backend that gave *ret is to be made again; perhaps later. */
static ALWAYS_INLINE co_fn bool again(const BlkRequest *req, bool is_write, int *ret)
{
    return unlikely(*ret < 0) &&
           virtio_blk_co_again(req->vblk, req->elem->vq->index, is_write, ret);
}

static co_fn int do_read(BlkRequest *req)
{
    VqElem *elem = req->elem;
    uint64_t len_bytes = elem->in_bytes;
    int ret = check_data(req, len_bytes);

    req->op = BLK_ACCT_READ;
    req->len_bytes = len_bytes;
    if (unlikely(ret < 0)) {
        return ret;
    }
    do {
        ret = blk_co_preadv(req->vblk->blk, req->sector * SECTOR_BYTES, len_bytes, data_in(elem),
                            elem->nb_in, 0);
    } while (again(req, false, &ret));
    if (likely(ret == 0)) {
        req->read_bytes = (uint32_t)len_bytes;
    }
    return ret;
}

static co_fn int do_write(BlkRequest *req)
{
    VqElem *elem = req->elem;
    uint64_t len_bytes = elem->out_bytes;
    int ret = unlikely(req->vblk->read_only) ? -EPERM : check_data(req, len_bytes);

    req->op = BLK_ACCT_WRITE;
    req->len_bytes = len_bytes;
    if (unlikely(ret < 0)) {
        return ret;
    }
    do {
        ret = blk_co_pwritev(req->vblk->blk, req->sector * SECTOR_BYTES, len_bytes, elem->iov,
                             elem->nb_out, 0);
    } while (again(req, true, &ret));
    return ret;
}

static co_fn int do_flush(BlkRequest *req)
{
    int ret;

    req->op = BLK_ACCT_FLUSH;
    do {
        ret = blk_co_flush(req->vblk->blk);
    } while (again(req, true, &ret));
    return ret;
}

static int do_get_id(BlkRequest *req)
{
    req->read_bytes = (uint32_t)vq_elem_copy_in(
        req->elem, 0, req->vblk->serial, MIN(req->elem->in_bytes, (uint64_t)VIRTIO_BLK_ID_BYTES));
    return 0;
}

/* --- discard and write-zeroes --- */

typedef struct BlkRange {
    uint64_t sector;
    uint32_t nb_sectors;
    uint32_t flags;
} BlkRange;

/* Copy the ranges in. Their number or -EINVAL. */
static int ranges_read(const BlkRequest *req, BlkRange *ranges)
{
    struct virtio_blk_discard_write_zeroes wire[VIRTIO_BLK_RANGES_MAX];
    uint64_t len_bytes = req->elem->out_bytes;

    if (len_bytes == 0 || len_bytes % RANGE_BYTES != 0 || len_bytes > sizeof(wire)) {
        return -EINVAL;
    }
    vq_elem_copy_out(req->elem, 0, wire, len_bytes);
    for (unsigned i = 0; i < len_bytes / RANGE_BYTES; i++) {
        ranges[i] = (BlkRange){ .sector = le64toh(wire[i].sector),
                                .nb_sectors = le32toh(wire[i].num_sectors),
                                .flags = le32toh(wire[i].flags) };
    }
    return (int)(len_bytes / RANGE_BYTES);
}

/* 5.2.6.2: flags that are unknown, or unmap on a discard, are not supported. That is decided before
 * the numbers are looked at. */
static int ranges_check(const BlkRequest *req, const BlkRange *ranges, int nb_ranges,
                        uint32_t known_flags, uint32_t max_sectors)
{
    for (int i = 0; i < nb_ranges; i++) {
        if (ranges[i].flags & ~known_flags) {
            return -EOPNOTSUPP;
        }
    }
    for (int i = 0; i < nb_ranges; i++) {
        if (ranges[i].nb_sectors > max_sectors ||
            !range_ok(req->vblk, ranges[i].sector, ranges[i].nb_sectors)) {
            return -EINVAL;
        }
    }
    return 0;
}

static co_fn int do_range(const BlkRequest *req, const BlkRange *range)
{
    const VirtioBlk *vblk = req->vblk;
    uint64_t offset_bytes = range->sector * SECTOR_BYTES;
    uint64_t len_bytes = (uint64_t)range->nb_sectors * SECTOR_BYTES;
    bool unmap = vblk->may_unmap && (range->flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP);

    if (len_bytes == 0) {
        return 0;
    }
    if (req->type == VIRTIO_BLK_T_DISCARD) {
        return blk_co_pdiscard(vblk->blk, offset_bytes, len_bytes);
    }
    return blk_co_pwrite_zeroes(vblk->blk, offset_bytes, len_bytes, unmap ? BLK_MAY_UNMAP : 0);
}

/* Not inlined: the ranges stay out of the frame of reads and writes. */
static NOINLINE co_fn int do_ranges(BlkRequest *req)
{
    const VirtioBlk *vblk = req->vblk;
    bool discard = req->type == VIRTIO_BLK_T_DISCARD;
    BlkRange ranges[VIRTIO_BLK_RANGES_MAX];
    int nb_ranges, ret;

    req->op = discard ? BLK_ACCT_DISCARD : BLK_ACCT_WRITE_ZEROES;
    if (vblk->read_only) {
        return -EPERM;
    }
    if (!virtio_blk_has_feature(vblk, discard ? VIRTIO_BLK_F_DISCARD : VIRTIO_BLK_F_WRITE_ZEROES)) {
        return -EOPNOTSUPP;
    }
    nb_ranges = ranges_read(req, ranges);
    if (nb_ranges < 0) {
        return nb_ranges;
    }
    ret = ranges_check(req, ranges, nb_ranges, discard ? 0 : VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
                       discard ? vblk->max_discard_sectors : vblk->max_write_zeroes_sectors);
    for (int i = 0; i < nb_ranges && ret == 0; i++) {
        do {
            ret = do_range(req, &ranges[i]);
        } while (again(req, true, &ret));
        req->len_bytes += (uint64_t)ranges[i].nb_sectors * SECTOR_BYTES;
    }
    return ret;
}

/* --- one request --- */

static co_fn int carry_out(BlkRequest *req)
{
    switch (req->type) {
    case VIRTIO_BLK_T_IN:
        return do_read(req);
    case VIRTIO_BLK_T_OUT:
        return do_write(req);
    case VIRTIO_BLK_T_FLUSH:
        return do_flush(req);
    case VIRTIO_BLK_T_GET_ID:
        return do_get_id(req);
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES:
        return do_ranges(req);
    default:
        return -EOPNOTSUPP;
    }
}

/* Invariant (1), its second half. */
static void no_status(VqElem *elem)
{
    VirtQueue *vq = elem->vq;

    vq_detach(vq, elem);
    vq_break(vq, "a request without a status byte");
}

static void complete(VqElem *elem, uint8_t *status, int ret, uint32_t read_bytes)
{
    __atomic_store_n(status, virtio_blk_status(ret), __ATOMIC_RELAXED);
    vq_push(elem->vq, elem, read_bytes + 1);
}

void virtio_blk_req_entry(void *opaque)
{
    VqElem *elem = *(VqElem **)opaque;
    BlkRequest req = {
        .vblk = container_of(elem->vq->vdev, VirtioBlk, vdev), .elem = elem, .op = BLK_ACCT_NB_OPS
    };
    BlkAcct *acct = &req.vblk->acct[elem->vq->index];
    int64_t start_ns = blk_acct_batch_ns(acct);
    uint8_t *status = take_status(elem);
    struct virtio_blk_outhdr header;
    int ret = -EINVAL;

    assert_in_coroutine();
    if (unlikely(!status)) {
        no_status(elem);
        return;
    }
    if (likely(take_header(elem, &header))) {
        req.type = le32toh(header.type);
        req.sector = le64toh(header.sector);
        ret = carry_out(&req);
    }
    if (unlikely(ret == VIRTIO_BLK_SUSPENDED) && vq_suspends(elem->vq)) {
        vq_leave(elem->vq, elem);
        return;
    }
    if (likely(req.op != BLK_ACCT_NB_OPS)) {
        blk_acct_end(acct, req.op, start_ns, req.len_bytes, ret < 0);
    }
    complete(elem, status, ret, req.read_bytes);
}
