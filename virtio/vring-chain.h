/*
 * vring-chain.h - from descriptors to the vectors of an element, the same for all ring formats
 *
 * Layer:     virtio/, private to the ring formats
 * Threading: home context of the queue, except vring_area_find() (main, while stopped).
 * Spec:      VIRTIO 1.2 section 2.7.5, 2.8.5
 *
 * A walk belongs to the format; it hands each buffer it meets to vring_chain_add() and, at the end,
 * the sum to vring_chain_finish(). What is inlined is so that the chain stays in registers.
 */
#ifndef VIRTIO_VRING_CHAIN_H
#define VIRTIO_VRING_CHAIN_H

#include <linux/virtio_ring.h>

#include "virtio/virtqueue-int.h"

#define VRING_DESC_BYTES      16                  /* of either format */
#define VRING_CHAIN_BYTES_MAX ((uint64_t)1 << 32) /* 2.7.5: no chain is longer */

static_assert(sizeof(struct vring_desc) == VRING_DESC_BYTES, "wire format");

/* A descriptor in host byte order. The flags WRITE, NEXT and INDIRECT are those of both formats. */
typedef struct VringDesc {
    Gpa addr;
    uint32_t len;
    uint16_t flags;
    uint16_t link; /* split: the next one; packed: the buffer's id */
} VringDesc;

/* Descriptors side by side in guest memory. */
typedef struct VringTable {
    const char *desc; /* NULL: they do not lie in one region, look each up */
    Gpa gpa;
    unsigned nb_desc;
} VringTable;

/* What a walk has gathered so far. */
typedef struct VringChain {
    struct iovec *iov;
    unsigned nb_iov, max_iov;
    unsigned nb_out;
    uint64_t out_bytes, in_bytes;
} VringChain;

/* vring_area_find - pointer to one part of a ring; -EINVAL unless all of it is guest memory in one
 * piece, aligned there and here */
int vring_area_find(VirtQueue *vq, const char *what, uint64_t gpa, uint64_t len_bytes,
                    uint64_t align_bytes, void *ret_hva, Error *err) NONNULL(1, 2, 6) WARN_UNUSED;

/* vring_chain_map - vring_chain_add() for a buffer in another region than the last one, in several,
 * in none, or of one piece too many */
int vring_chain_map(VirtQueue *vq, VqElem *elem, VringChain *chain, Gpa gpa, uint32_t len)
    NONNULL(1, 2, 3) WARN_UNUSED;

/* An indirect table may stand at any address. */
typedef struct __attribute__((packed, may_alias)) VringUnalignedLe64 {
    uint64_t raw;
} VringUnalignedLe64;

/* One of the two halves of a descriptor, in one access. */
static inline uint64_t vring_desc_half(const void *desc, unsigned half)
{
    return le64toh(((const volatile VringUnalignedLe64 *)desc)[half].raw);
}

static inline VringChain vring_chain_begin(VqElem *elem)
{
    return (VringChain){ .iov = elem->iov_inline, .max_iov = VQ_ELEM_IOV_INLINE };
}

/* 0, or -EPIPE: the queue is now broken */
static ALWAYS_INLINE int vring_chain_add(VirtQueue *vq, VqElem *elem, VringChain *chain,
                                         const VringDesc *d)
{
    if (unlikely(d->len == 0)) {
        vq_break(vq, "a buffer of no length");
        return -EPIPE;
    }
    if (d->flags & VRING_DESC_F_WRITE) {
        if (chain->in_bytes == 0) {
            chain->nb_out = chain->nb_iov;
        }
        chain->in_bytes += d->len;
    } else {
        if (unlikely(chain->in_bytes != 0)) {
            vq_break(vq, "a readable buffer after a writable one");
            return -EPIPE;
        }
        chain->out_bytes += d->len;
    }
    void *hva = gm_region_translate(vq->region, d->addr, d->len);

    if (unlikely(!hva || chain->nb_iov == chain->max_iov)) {
        VringChain copy = *chain; /* only the copy has an address */
        int ret = vring_chain_map(vq, elem, &copy, d->addr, d->len);

        *chain = copy;
        return ret;
    }
    chain->iov[chain->nb_iov++] = (struct iovec){ .iov_base = hva, .iov_len = d->len };
    return 0;
}

/* 0, or -EPIPE: the queue is now broken */
static ALWAYS_INLINE int vring_chain_finish(VirtQueue *vq, VqElem *elem, VringChain *chain,
                                            uint16_t head)
{
    if (unlikely(chain->out_bytes + chain->in_bytes > VRING_CHAIN_BYTES_MAX)) {
        vq_break(vq, "a chain of more than 4 GiB");
        return -EPIPE;
    }
    if (chain->in_bytes == 0) {
        chain->nb_out = chain->nb_iov;
    }
    elem->iov = chain->iov;
    elem->out_bytes = chain->out_bytes;
    elem->in_bytes = chain->in_bytes;
    elem->head = head;
    elem->nb_out = (uint16_t)chain->nb_out;
    elem->nb_in = (uint16_t)(chain->nb_iov - chain->nb_out);
    return 0;
}

/* vring_table_find - the indirect table that @d leads to: 0, or -EPIPE: the queue is now broken */
static ALWAYS_INLINE int vring_table_find(VirtQueue *vq, VringTable *table, const VringDesc *d)
{
    uint64_t last;

    if (unlikely(d->len == 0 || d->len % VRING_DESC_BYTES != 0 ||
                 !checked_add(d->addr.addr, (uint64_t)d->len - 1, &last))) {
        vq_break(vq, "an indirect table of %u bytes at 0x%llx", d->len,
                 (unsigned long long)d->addr.addr);
        return -EPIPE;
    }
    table->desc = gm_region_translate(vq->region, d->addr, d->len);
    if (unlikely(!table->desc)) {
        table->desc = gm_translate(vq->gm, d->addr, d->len);
    }
    table->gpa = d->addr;
    table->nb_desc = d->len / VRING_DESC_BYTES;
    return 0;
}

/* vring_table_at - descriptor @i, which is below nb_desc; NULL: the queue is now broken */
static ALWAYS_INLINE const void *vring_table_at(VirtQueue *vq, const VringTable *table, unsigned i)
{
    const void *desc;

    if (likely(table->desc)) {
        return table->desc + (size_t)i * VRING_DESC_BYTES;
    }
    desc = gm_translate(vq->gm, GPA(table->gpa.addr + (uint64_t)i * VRING_DESC_BYTES),
                        VRING_DESC_BYTES);
    if (!desc) {
        vq_break(vq, "an indirect table at 0x%llx is not guest memory",
                 (unsigned long long)table->gpa.addr);
    }
    return desc;
}

#endif
