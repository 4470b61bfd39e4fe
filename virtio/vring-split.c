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
#include "virtio/virtqueue-int.h"

#include <inttypes.h>
#include <linux/virtio_ring.h>

#define DESC_BYTES        sizeof(struct vring_desc)
#define CHAIN_BYTES_MAX   ((uint64_t)1 << 32) /* 2.7.5: no chain is longer */
#define PREFETCH_DISTANCE 4                   /* chains ahead whose descriptors are fetched */

static_assert(sizeof(struct vring_desc) == 16, "wire format");
static_assert(sizeof(struct vring_used_elem) == 8, "wire format");

/* A descriptor in host byte order. */
typedef struct SplitDesc {
    Gpa addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
} SplitDesc;

/* The table that a walk is in: the ring's own or an indirect one. */
typedef struct SplitTable {
    const struct vring_desc *desc; /* NULL: it does not lie in one region, look each up */
    Gpa gpa;
    unsigned nb_desc;
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
    return le16toh(__atomic_load_n(&vq->avail->idx, __ATOMIC_ACQUIRE));
}

static inline __virtio16 *used_event(const VirtQueue *vq)
{
    return &vq->avail->ring[vq->size];
}

static inline __virtio16 *avail_event(const VirtQueue *vq)
{
    return (__virtio16 *)&vq->used->ring[vq->size];
}

/* An indirect table may stand at any address. */
typedef struct __attribute__((packed, may_alias)) UnalignedLe64 {
    uint64_t raw;
} UnalignedLe64;

static inline SplitDesc desc_load(const struct vring_desc *desc)
{
    const volatile UnalignedLe64 *words = (const volatile UnalignedLe64 *)desc;
    uint64_t addr = le64toh(words[0].raw);
    uint64_t rest = le64toh(words[1].raw);

    return (SplitDesc){ .addr = GPA(addr),
                        .len = (uint32_t)rest,
                        .flags = (uint16_t)(rest >> 32),
                        .next = (uint16_t)(rest >> 48) };
}

/* --- start --- */

static int area_find(VirtQueue *vq, const char *what, uint64_t gpa, uint64_t len_bytes,
                     uint64_t align_bytes, void *ret_hva, Error *err)
{
    void *hva;

    if (gpa % align_bytes != 0) {
        return error_set(err, -EINVAL, "queue %u: %s at 0x%" PRIx64 " is not aligned to %" PRIu64,
                         vq->index, what, gpa, align_bytes);
    }
    hva = gm_translate(vq->gm, GPA(gpa), len_bytes);
    if (!hva) {
        return error_set(err, -EINVAL,
                         "queue %u: %s at 0x%" PRIx64 " (%" PRIu64
                         " bytes) is not in one piece of guest memory",
                         vq->index, what, gpa, len_bytes);
    }
    if ((uintptr_t)hva % align_bytes != 0) {
        return error_set(err, -EINVAL,
                         "queue %u: %s at 0x%" PRIx64 " is in memory that is not mapped with an "
                         "alignment of %" PRIu64,
                         vq->index, what, gpa, align_bytes);
    }
    *(void **)ret_hva = hva;
    return 0;
}

int vring_split_setup(VirtQueue *vq, Error *err)
{
    uint16_t size = vq->cfg_size;
    int ret;

    if (!IS_POWER_OF_2(size) || size > vq->max_size) {
        return error_set(err, -EINVAL, "queue %u: %u is no size for it (a power of 2 up to %u)",
                         vq->index, size, vq->max_size);
    }
    if ((ret = area_find(vq, "descriptor table", vq->cfg_desc_gpa, DESC_BYTES * size,
                         VRING_DESC_ALIGN_SIZE, &vq->desc, err)) < 0 ||
        (ret = area_find(vq, "available ring", vq->cfg_avail_gpa,
                         sizeof(struct vring_avail) + sizeof(__virtio16) * (size + 1u),
                         VRING_AVAIL_ALIGN_SIZE, &vq->avail, err)) < 0 ||
        (ret = area_find(vq, "used ring", vq->cfg_used_gpa,
                         sizeof(struct vring_used) + sizeof(struct vring_used_elem) * size +
                             sizeof(__virtio16),
                         VRING_USED_ALIGN_SIZE, &vq->used, err)) < 0) {
        return ret;
    }
    vq->size = size;
    vq->region = gm_find(vq->gm, GPA(vq->cfg_desc_gpa));
    vq->last_avail = vq->avail_seen = 0;
    vq->used_idx = vq->used_published = vq->signalled_used = 0;
    return 0;
}

/* --- one chain --- */

/* What a walk has gathered so far. */
typedef struct SplitChain {
    struct iovec *iov;
    unsigned nb_iov, max_iov;
    unsigned nb_out;
    uint64_t out_bytes, in_bytes;
} SplitChain;

/* More pieces than fit into the element itself. */
static void chain_use_large(SplitChain *chain, VqElem *elem)
{
    if (chain->iov != elem->iov_large) {
        memcpy(elem->iov_large, chain->iov, chain->nb_iov * sizeof(*chain->iov));
        chain->iov = elem->iov_large;
        chain->max_iov = VQ_ELEM_IOV_MAX;
    }
}

/* A buffer in another region than the last one, in several, in none, or one piece too many. */
static NOINLINE int chain_map(VirtQueue *vq, VqElem *elem, SplitChain *chain, Gpa gpa, uint32_t len)
{
    const GuestMemoryRegion *region = gm_find(vq->gm, gpa);
    int nb;

    chain_use_large(chain, elem);
    nb = gm_map(vq->gm, gpa, len, chain->iov + chain->nb_iov, chain->max_iov - chain->nb_iov);
    if (nb == -E2BIG) {
        vq_break(vq, "a chain of more than %d pieces", VQ_ELEM_IOV_MAX);
        return -EPIPE;
    }
    if (nb < 0) {
        vq_break(vq, "a buffer of %u bytes at 0x%" PRIx64 " is not guest memory", len, gpa.addr);
        return -EPIPE;
    }
    vq->region = region;
    chain->nb_iov += (unsigned)nb;
    return 0;
}

/* Inlined, so that the chain stays in registers: only the copy has an address. */
static ALWAYS_INLINE int chain_add(VirtQueue *vq, VqElem *elem, SplitChain *chain,
                                   const SplitDesc *d)
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
        SplitChain copy = *chain;
        int ret = chain_map(vq, elem, &copy, d->addr, d->len);

        *chain = copy;
        return ret;
    }
    chain->iov[chain->nb_iov++] = (struct iovec){ .iov_base = hva, .iov_len = d->len };
    return 0;
}

/* @d leads to an indirect table (2.7.5.3); its WRITE flag is ignored. */
static ALWAYS_INLINE int table_enter(VirtQueue *vq, SplitTable *table, const SplitDesc *d)
{
    uint64_t last;

    if (unlikely(!vq->indirect || table->indirect || (d->flags & VRING_DESC_F_NEXT))) {
        vq_break(vq, "an indirect descriptor %s",
                 !vq->indirect     ? "though the feature was not negotiated"
                 : table->indirect ? "inside an indirect table"
                                   : "with a next one");
        return -EPIPE;
    }
    if (unlikely(d->len == 0 || d->len % DESC_BYTES != 0 ||
                 !checked_add(d->addr.addr, (uint64_t)d->len - 1, &last))) {
        vq_break(vq, "an indirect table of %u bytes at 0x%" PRIx64, d->len, d->addr.addr);
        return -EPIPE;
    }
    table->desc = gm_region_translate(vq->region, d->addr, d->len);
    if (unlikely(!table->desc)) {
        table->desc = gm_translate(vq->gm, d->addr, d->len);
    }
    table->gpa = d->addr;
    table->nb_desc = d->len / DESC_BYTES;
    table->indirect = true;
    return 0;
}

static ALWAYS_INLINE int table_get(VirtQueue *vq, const SplitTable *table, unsigned i,
                                   SplitDesc *ret_desc)
{
    const struct vring_desc *desc;

    if (unlikely(i >= table->nb_desc)) {
        vq_break(vq, "descriptor %u of a table of %u", i, table->nb_desc);
        return -EPIPE;
    }
    if (likely(table->desc)) {
        desc = &table->desc[i];
    } else {
        desc = gm_translate(vq->gm, GPA(table->gpa.addr + i * DESC_BYTES), DESC_BYTES);
        if (!desc) {
            vq_break(vq, "an indirect table at 0x%" PRIx64 " is not guest memory", table->gpa.addr);
            return -EPIPE;
        }
    }
    *ret_desc = desc_load(desc);
    return 0;
}

static ALWAYS_INLINE int chain_walk(VirtQueue *vq, VqElem *elem, SplitChain *chain, unsigned i)
{
    SplitTable table = { .desc = vq->desc, .nb_desc = vq->size };
    unsigned left = vq->max_size;
    SplitDesc d;
    int ret;

    for (;;) {
        if (unlikely((ret = table_get(vq, &table, i, &d)) < 0)) {
            return ret;
        }
        if (d.flags & VRING_DESC_F_INDIRECT) {
            if (unlikely((ret = table_enter(vq, &table, &d)) < 0)) {
                return ret;
            }
            i = 0;
            continue;
        }
        if (unlikely(left-- == 0)) {
            vq_break(vq, "a chain that is longer than the queue or loops");
            return -EPIPE;
        }
        if (unlikely((ret = chain_add(vq, elem, chain, &d)) < 0)) {
            return ret;
        }
        if (!(d.flags & VRING_DESC_F_NEXT)) {
            return 0;
        }
        i = d.next;
    }
}

static inline int elem_read(VirtQueue *vq, VqElem *elem, uint16_t head)
{
    SplitChain chain = { .iov = elem->iov_inline, .max_iov = VQ_ELEM_IOV_INLINE };
    int ret = chain_walk(vq, elem, &chain, head);

    if (unlikely(ret < 0)) {
        return ret;
    }
    if (unlikely(chain.out_bytes + chain.in_bytes > CHAIN_BYTES_MAX)) {
        vq_break(vq, "a chain of more than 4 GiB");
        return -EPIPE;
    }
    if (chain.in_bytes == 0) {
        chain.nb_out = chain.nb_iov;
    }
    elem->iov = chain.iov;
    elem->out_bytes = chain.out_bytes;
    elem->in_bytes = chain.in_bytes;
    elem->head = head;
    elem->nb_out = (uint16_t)chain.nb_out;
    elem->nb_in = (uint16_t)(chain.nb_iov - chain.nb_out);
    return 1;
}

/* --- the available ring --- */

static inline uint16_t avail_head(const VirtQueue *vq, uint16_t idx)
{
    return shared_load16(&vq->avail->ring[idx & (vq->size - 1)]);
}

static inline void prefetch_chain(const VirtQueue *vq, uint16_t idx)
{
    __builtin_prefetch(&vq->desc[avail_head(vq, idx) & (vq->size - 1)]);
}

/* See what has been announced since we looked last: once a batch. */
static inline int avail_look(VirtQueue *vq)
{
    uint16_t idx = avail_idx_acquire(vq);
    uint16_t nb = idx - vq->last_avail;

    if (nb == 0) {
        return 0;
    }
    if (unlikely(nb > vq->size)) {
        vq_break(vq, "available index moved from %u to %u in a queue of %u", vq->last_avail, idx,
                 vq->size);
        return -EPIPE;
    }
    vq->avail_seen = idx;
    for (unsigned i = 1; i < MIN((unsigned)nb, PREFETCH_DISTANCE); i++) {
        prefetch_chain(vq, (uint16_t)(vq->last_avail + i));
    }
    return 1;
}

int vring_split_pop(VirtQueue *vq, VqElem *elem)
{
    int ret;

    if (vq->last_avail == vq->avail_seen && (ret = avail_look(vq)) <= 0) {
        return ret;
    }
    if ((uint16_t)(vq->avail_seen - vq->last_avail) > PREFETCH_DISTANCE) {
        prefetch_chain(vq, (uint16_t)(vq->last_avail + PREFETCH_DISTANCE));
    }
    uint16_t head = avail_head(vq, vq->last_avail);

    if (unlikely(head >= vq->size)) {
        vq_break(vq, "head %u in a queue of %u", head, vq->size);
        return -EPIPE;
    }
    if (unlikely(vq->head_in_flight[head])) {
        vq_break(vq, "head %u was made available twice", head);
        return -EPIPE;
    }
    ret = elem_read(vq, elem, head);
    if (likely(ret > 0)) {
        vq->head_in_flight[head] = 1;
        vq->last_avail++;
    }
    return ret;
}

bool vring_split_has_work(VirtQueue *vq)
{
    return vq->last_avail != vq->avail_seen || shared_load16(&vq->avail->idx) != vq->last_avail;
}

void vring_split_ask_kicks(VirtQueue *vq, bool on)
{
    if (vq->event_idx) {
        /* An index the driver has just passed is the farthest from being passed again. */
        shared_store16(avail_event(vq), on ? vq->last_avail : (uint16_t)(vq->last_avail - 1));
    } else {
        shared_store16(&vq->used->flags, on ? 0 : VRING_USED_F_NO_NOTIFY);
    }
}

/* --- the used ring --- */

void vring_split_push(VirtQueue *vq, uint16_t head, uint32_t written_bytes)
{
    struct vring_used_elem *entry = &vq->used->ring[vq->used_idx & (vq->size - 1)];

    le32_store((le32 *)&entry->id, head);
    le32_store((le32 *)&entry->len, written_bytes);
    vq->used_idx++;
    vring_split_forget(vq, head);
}

void vring_split_forget(VirtQueue *vq, uint16_t head)
{
    vq->head_in_flight[head] = 0;
}

void vring_split_publish(VirtQueue *vq)
{
    vq->used_published = vq->used_idx;
    __atomic_store_n(&vq->used->idx, htole16(vq->used_idx), __ATOMIC_RELEASE);
}

bool vring_split_wants_signal(VirtQueue *vq)
{
    uint16_t old = vq->signalled_used;

    vq->signalled_used = vq->used_published;
    vq_store_load_barrier();
    if (!vq->event_idx) {
        return !(shared_load16(&vq->avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
    }
    return vring_need_event(shared_load16(used_event(vq)), vq->used_published, old);
}
