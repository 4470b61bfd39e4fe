/*
 * vring-split.c - the split ring's format
 *
 * Three areas in guest memory. The driver owns the descriptor table and the available ring, the
 * device the used ring; each end of a ring also has one word by which its reader says when it
 * wants to be told (flags, or with EVENT_IDX used_event and avail_event).
 *
 * Invariants:
 *   (1) The areas lie in guest memory in full, aligned there and here (a peer that gives us memory
 *       may map it oddly); checked once, when the queue is started.
 *   (2) Nothing of the driver's is read twice: avail->idx once a batch, a ring entry and a
 *       descriptor once each, into locals that are then checked and used.
 *   (3) avail_seen - last_avail <= size: what was announced and not taken.
 *   (4) A head is in flight at most once; so at most `size` elements are out, and used_idx never
 *       passes last_avail.
 *   (5) A walk looks at no more than `max_size` buffers and one indirect table, whatever the links.
 *       Not `size`: a driver that found memory for a smaller ring only still makes indirect
 *       chains as long as the device's limits allow (Linux does).
 *   (6) used_published is what the driver sees of used_idx. The entries before it are complete.
 *
 * Memory order:
 *   load of avail->idx (acquire) pairs with the driver's barrier between ring entry and avail->idx;
 *   store of used->idx (release) pairs with the driver's barrier between used->idx and used entry;
 *   the store-load barrier of vring_split_wants_signal() (used->idx | used_event) pairs with the
 *     driver's when it asks for interrupts (used_event | used->idx);
 *   the store-load barrier of vq_enable_notifications() (avail_event | avail->idx) pairs with the
 *     driver's before it decides to kick (avail->idx | avail_event).
 *
 * Spec: VIRTIO 1.2 section 2.7
 */
#include "virtio/vring-chain.h"

#include <inttypes.h>

#define PREFETCH_DISTANCE 4 /* chains ahead whose descriptors are fetched */

static_assert(sizeof(struct vring_used_elem) == 8, "wire format");

/* The table that a walk is in: the ring's own or an indirect one. */
typedef struct SplitTable {
    VringTable table;
    bool indirect;
} SplitTable;

/* --- words shared with the driver: one access each --- */

static inline uint16_t shared_load16(const __virtio16 *p)
{
    return le16_load((const le16 *)p);
}

static inline void shared_store16(__virtio16 *p, uint16_t value)
{
    le16_store((le16 *)p, value);
}

static inline uint16_t avail_idx_acquire(const VirtQueue *vq)
{
    return le16toh(__atomic_load_n(&vq->split.avail->idx, __ATOMIC_ACQUIRE));
}

static inline __virtio16 *used_event(const VirtQueue *vq)
{
    return &vq->split.avail->ring[vq->size];
}

static inline __virtio16 *avail_event(const VirtQueue *vq)
{
    return (__virtio16 *)&vq->split.used->ring[vq->size];
}

static inline VringDesc split_desc_load(const void *desc)
{
    uint64_t addr = vring_desc_half(desc, 0);
    uint64_t rest = vring_desc_half(desc, 1);

    return (VringDesc){ .addr = GPA(addr),
                        .len = (uint32_t)rest,
                        .flags = (uint16_t)(rest >> 32),
                        .link = (uint16_t)(rest >> 48) };
}

/* --- start --- */

int vring_split_setup(VirtQueue *vq, Error *err)
{
    VringSplit *ring = &vq->split;
    uint16_t size = vq->cfg_size;
    int ret;

    if (!IS_POWER_OF_2(size) || size > vq->max_size) {
        return error_set(err, -EINVAL, "queue %u: %u is no size for it (a power of 2 up to %u)",
                         vq->index, size, vq->max_size);
    }
    if ((ret = vring_area_find(vq, "descriptor table", vq->cfg_desc_gpa, VRING_DESC_BYTES * size,
                               VRING_DESC_ALIGN_SIZE, &ring->desc, err)) < 0 ||
        (ret = vring_area_find(vq, "available ring", vq->cfg_avail_gpa,
                               sizeof(struct vring_avail) + sizeof(__virtio16) * (size + 1u),
                               VRING_AVAIL_ALIGN_SIZE, &ring->avail, err)) < 0 ||
        (ret = vring_area_find(vq, "used ring", vq->cfg_used_gpa,
                               sizeof(struct vring_used) + sizeof(struct vring_used_elem) * size +
                                   sizeof(__virtio16),
                               VRING_USED_ALIGN_SIZE, &ring->used, err)) < 0) {
        return ret;
    }
    vq->size = size;
    vq->region = gm_find(vq->gm, GPA(vq->cfg_desc_gpa));
    ring->last_avail = ring->avail_seen = vq_base(vq).avail;
    vq->used_idx = vq->base_given ? shared_load16(&ring->used->idx) : 0;
    return 0;
}

VqBase vring_split_base(const VirtQueue *vq)
{
    return (VqBase){ .avail = vq->split.last_avail, .used = vq->used_idx };
}

/* --- one chain --- */

/* @d leads to an indirect table (2.7.5.3); its WRITE flag is ignored. */
static ALWAYS_INLINE int table_enter(VirtQueue *vq, SplitTable *t, const VringDesc *d)
{
    if (unlikely(!vq->indirect || t->indirect || (d->flags & VRING_DESC_F_NEXT))) {
        vq_break(vq, "an indirect descriptor %s",
                 !vq->indirect ? "though the feature was not negotiated"
                 : t->indirect ? "inside an indirect table"
                               : "with a next one");
        return -EPIPE;
    }
    t->indirect = true;
    return vring_table_find(vq, &t->table, d);
}

static ALWAYS_INLINE int table_get(VirtQueue *vq, const SplitTable *t, unsigned i,
                                   VringDesc *ret_desc)
{
    const void *desc;

    if (unlikely(i >= t->table.nb_desc)) {
        vq_break(vq, "descriptor %u of a table of %u", i, t->table.nb_desc);
        return -EPIPE;
    }
    desc = vring_table_at(vq, &t->table, i);
    if (unlikely(!desc)) {
        return -EPIPE;
    }
    *ret_desc = split_desc_load(desc);
    return 0;
}

static ALWAYS_INLINE int chain_walk(VirtQueue *vq, VqElem *elem, VringChain *chain, unsigned i)
{
    SplitTable t = { .table = { .desc = (const char *)vq->split.desc, .nb_desc = vq->size } };
    unsigned left = vq->max_size;
    VringDesc d;
    int ret;

    for (;;) {
        if (unlikely((ret = table_get(vq, &t, i, &d)) < 0)) {
            return ret;
        }
        if (d.flags & VRING_DESC_F_INDIRECT) {
            if (unlikely((ret = table_enter(vq, &t, &d)) < 0)) {
                return ret;
            }
            i = 0;
            continue;
        }
        if (unlikely(left-- == 0)) {
            vq_break(vq, "a chain that is longer than the queue or loops");
            return -EPIPE;
        }
        if (unlikely((ret = vring_chain_add(vq, elem, chain, &d)) < 0)) {
            return ret;
        }
        if (!(d.flags & VRING_DESC_F_NEXT)) {
            return 0;
        }
        i = d.link;
    }
}

static ALWAYS_INLINE int elem_read(VirtQueue *vq, VqElem *elem, uint16_t head)
{
    VringChain chain = vring_chain_begin(elem);
    int ret = chain_walk(vq, elem, &chain, head);

    return unlikely(ret < 0) ? ret : vring_chain_finish(vq, elem, &chain, head);
}

/* --- the available ring --- */

static inline uint16_t avail_head(const VirtQueue *vq, uint16_t idx)
{
    return shared_load16(&vq->split.avail->ring[idx & (vq->size - 1)]);
}

static inline void prefetch_chain(const VirtQueue *vq, uint16_t idx)
{
    __builtin_prefetch(&vq->split.desc[avail_head(vq, idx) & (vq->size - 1)]);
}

/* See what has been announced since we looked last: once a batch. */
static inline int avail_look(VirtQueue *vq)
{
    uint16_t idx = avail_idx_acquire(vq);
    uint16_t nb = idx - vq->split.last_avail;

    if (nb == 0) {
        return 0;
    }
    if (unlikely(nb > vq->size)) {
        vq_break(vq, "available index moved from %u to %u in a queue of %u", vq->split.last_avail,
                 idx, vq->size);
        return -EPIPE;
    }
    vq->split.avail_seen = idx;
    for (unsigned i = 1; i < MIN((unsigned)nb, PREFETCH_DISTANCE); i++) {
        prefetch_chain(vq, (uint16_t)(vq->split.last_avail + i));
    }
    return 1;
}

int vring_split_pop(VirtQueue *vq, VqElem *elem)
{
    int ret;

    if (vq->split.last_avail == vq->split.avail_seen && (ret = avail_look(vq)) <= 0) {
        return ret;
    }
    if ((uint16_t)(vq->split.avail_seen - vq->split.last_avail) > PREFETCH_DISTANCE) {
        prefetch_chain(vq, (uint16_t)(vq->split.last_avail + PREFETCH_DISTANCE));
    }
    uint16_t head = avail_head(vq, vq->split.last_avail);

    if (unlikely(head >= vq->size)) {
        vq_break(vq, "head %u in a queue of %u", head, vq->size);
        return -EPIPE;
    }
    if (unlikely(vq->head_in_flight[head])) {
        vq_break(vq, "head %u was made available twice", head);
        return -EPIPE;
    }
    ret = elem_read(vq, elem, head);
    if (unlikely(ret < 0)) {
        return ret;
    }
    vq->split.last_avail++;
    return 1;
}

NOINLINE __attribute__((cold)) int vring_split_pop_left(VirtQueue *vq, VqElem *elem, uint16_t head)
{
    if (vq->head_in_flight[head]) {
        vq_break(vq, "head %u in flight twice", head);
        return -EPIPE;
    }
    int ret = elem_read(vq, elem, head);

    return ret < 0 ? ret : 1;
}

bool vring_split_has_work(VirtQueue *vq)
{
    return vq->split.last_avail != vq->split.avail_seen ||
           shared_load16(&vq->split.avail->idx) != vq->split.last_avail;
}

void vring_split_ask_kicks(VirtQueue *vq, bool on)
{
    if (vq->event_idx) {
        /* An index the driver has just passed is the farthest from being passed again. */
        shared_store16(avail_event(vq),
                       on ? vq->split.last_avail : (uint16_t)(vq->split.last_avail - 1));
    } else {
        shared_store16(&vq->split.used->flags, on ? 0 : VRING_USED_F_NO_NOTIFY);
    }
}

/* --- the used ring --- */

void vring_split_push(VirtQueue *vq, const VqElem *elem, uint32_t written_bytes)
{
    struct vring_used_elem *entry = &vq->split.used->ring[vq->used_idx & (vq->size - 1)];

    le32_store((le32 *)&entry->id, elem->head);
    le32_store((le32 *)&entry->len, written_bytes);
}

void vring_split_publish(VirtQueue *vq)
{
    __atomic_store_n(&vq->split.used->idx, htole16(vq->used_idx), __ATOMIC_RELEASE);
}

bool vring_split_wants_signal(VirtQueue *vq, uint16_t from, uint16_t to)
{
    vq_store_load_barrier();
    if (!vq->event_idx) {
        return !(shared_load16(&vq->split.avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
    }
    return vring_need_event(shared_load16(used_event(vq)), to, from);
}
