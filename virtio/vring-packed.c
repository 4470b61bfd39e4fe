/*
 * vring-packed.c - the packed ring's format
 *
 * One area that both sides write, the descriptor ring, and a word for each side by which it says
 * when it wants to be told. The driver fills slots in circular order, a chain side by side; the
 * device writes used descriptors over them, also in circular order, one for each chain, and then
 * skips as many slots as the chain has taken. So used descriptors never catch up with those that
 * the device has not read.
 *
 * Whose a slot is, two of its flags tell, together with the lap: AVAIL and USED differ in one that
 * is the driver's offer and are equal in one that has been used; which way round is a matter of
 * the wrap counter, which changes with each lap. A position is a slot and the flags that are due
 * there in this lap.
 *
 * Invariants:
 *   (1) The areas lie in guest memory in full, aligned there and here; checked once, when the queue
 *       is started.
 *   (2) Nothing of the driver's is read twice: flags and the rest of a descriptor once each, into
 *       locals that are then checked and used. (The probe looks at flags and acts on nothing.)
 *   (3) `slots_out` of the slots from used on belong to chains that were popped and not pushed;
 *       avail is that far ahead of used, never more than a lap. A chain takes none of them again,
 *       which also bounds every walk.
 *   (4) A walk looks at no more than `size` slots, or at one indirect table of no more than
 *       `max_size` buffers.
 *   (5) An id is in flight at most once. It is the driver's own number: any 16 bits.
 *   (6) What was pushed and not yet published is complete but for the flags of its first used
 *       descriptor. The driver looks at slots in order, so it sees nothing of that.
 *
 * Memory order:
 *   load of the first descriptor's flags (acquire) pairs with the driver's barrier between the rest
 *     of the chain and these flags;
 *   store of the first used descriptor's flags (release) pairs with the driver's barrier between
 *     these flags and the rest, and between them and the flags of the next ones;
 *   the store-load barrier of vring_packed_wants_signal() (used flags | driver event) pairs with
 *     the driver's when it asks for interrupts (driver event | used flags);
 *   the store-load barrier of vq_enable_notifications() (device event | available flags) pairs with
 *     the driver's before it decides to kick (available flags | device event).
 *   An event word is one access of 32 bits: its halves always belong together.
 *
 * Spec: VIRTIO 1.2 section 2.8
 */
#include <linux/virtio_config.h>

#include "virtio/vring-chain.h"

#define F_AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define F_USED  (1u << VRING_PACKED_DESC_F_USED)
#define F_OWNER (F_AVAIL | F_USED)

#define EVENT_FLAGS(event)  ((event) >> 16 & 3)
#define EVENT_OFFSET(event) ((event)&0x7fff)
#define EVENT_WRAP(event)   ((event) >> VRING_PACKED_EVENT_F_WRAP_CTR & 1)

#define EVENT_BYTES sizeof(struct vring_packed_desc_event)

static_assert(sizeof(struct vring_packed_desc) == VRING_DESC_BYTES, "wire format");
static_assert(EVENT_BYTES == 4, "wire format");

/* --- words shared with the driver: one access each --- */

static inline uint16_t flags_acquire(const struct vring_packed_desc *desc)
{
    return le16toh(__atomic_load_n(&desc->flags, __ATOMIC_ACQUIRE));
}

static inline uint16_t flags_load(const struct vring_packed_desc *desc)
{
    return le16_load((const le16 *)&desc->flags);
}

static inline VringDesc packed_desc_load(const void *desc)
{
    uint64_t addr = vring_desc_half(desc, 0);
    uint64_t rest = vring_desc_half(desc, 1);

    return (VringDesc){ .addr = GPA(addr),
                        .len = (uint32_t)rest,
                        .flags = (uint16_t)(rest >> 48),
                        .link = (uint16_t)(rest >> 32) };
}

/* --- positions --- */

static inline void pos_advance(const VirtQueue *vq, VringPackedPos *pos, unsigned nb_slots)
{
    unsigned slot = pos->slot + nb_slots;

    if (slot >= vq->size) {
        slot -= vq->size;
        pos->flags ^= F_OWNER;
    }
    pos->slot = (uint16_t)slot;
}

static inline bool pos_wrap(const VringPackedPos *pos)
{
    return pos->flags & F_AVAIL; /* due in an available and in a used descriptor alike */
}

static uint16_t pos_to_base(const VringPackedPos *pos)
{
    return (uint16_t)(pos->slot | pos_wrap(pos) << VRING_PACKED_EVENT_F_WRAP_CTR);
}

/* --- start --- */

static int set_positions(VirtQueue *vq, Error *err)
{
    VringPacked *ring = &vq->packed;
    VqBase base = vq_base(vq);
    unsigned avail = EVENT_OFFSET(base.avail), used = EVENT_OFFSET(base.used);
    bool avail_wrap = EVENT_WRAP(base.avail), used_wrap = EVENT_WRAP(base.used);
    unsigned ahead = avail - used + (avail_wrap != used_wrap ? vq->size : 0);

    if (avail >= vq->size || used >= vq->size || ahead > vq->size) {
        return error_set(err, -EINVAL, "queue %u: 0x%04x and 0x%04x are no base in a ring of %u",
                         vq->index, base.avail, base.used, vq->size);
    }
    ring->avail = (VringPackedPos){ (uint16_t)avail, avail_wrap ? F_AVAIL : F_USED };
    ring->used = (VringPackedPos){ (uint16_t)used, used_wrap ? F_OWNER : 0 };
    ring->slots_out = (uint16_t)ahead;
    ring->slots_unsignalled = 0;
    vq->used_idx = 0;
    return 0;
}

int vring_packed_setup(VirtQueue *vq, Error *err)
{
    VringPacked *ring = &vq->packed;
    uint16_t size = vq->cfg_size;
    int ret;

    if (size < 1 || size > vq->max_size) {
        return error_set(err, -EINVAL, "queue %u: %u is no size for it (up to %u)", vq->index, size,
                         vq->max_size);
    }
    if ((ret = vring_area_find(vq, "descriptor ring", vq->cfg_desc_gpa, VRING_DESC_BYTES * size,
                               VRING_DESC_BYTES, &ring->desc, err)) < 0 ||
        (ret = vring_area_find(vq, "driver event suppression", vq->cfg_avail_gpa, EVENT_BYTES,
                               EVENT_BYTES, &ring->driver_event, err)) < 0 ||
        (ret = vring_area_find(vq, "device event suppression", vq->cfg_used_gpa, EVENT_BYTES,
                               EVENT_BYTES, &ring->device_event, err)) < 0) {
        return ret;
    }
    vq->size = size;
    vq->region = gm_find(vq->gm, GPA(vq->cfg_desc_gpa));
    return set_positions(vq, err);
}

VqBase vring_packed_base(const VirtQueue *vq)
{
    return (VqBase){ .avail = pos_to_base(&vq->packed.avail),
                     .used = pos_to_base(&vq->packed.used) };
}

/* --- one chain --- */

/* 2.8.7: in a table only WRITE means something, and descriptors follow each other. */
static ALWAYS_INLINE int table_walk(VirtQueue *vq, VqElem *elem, VringChain *chain,
                                    const VringDesc *d)
{
    VringTable table;
    int ret;

    if (unlikely(!vq->indirect || (d->flags & VRING_DESC_F_NEXT))) {
        vq_break(vq, "an indirect descriptor %s",
                 !vq->indirect ? "though the feature was not negotiated" : "with a next one");
        return -EPIPE;
    }
    if (unlikely((ret = vring_table_find(vq, &table, d)) < 0)) {
        return ret;
    }
    if (unlikely(table.nb_desc > vq->max_size)) {
        vq_break(vq, "an indirect table of %u descriptors", table.nb_desc);
        return -EPIPE;
    }
    for (unsigned i = 0; i < table.nb_desc; i++) {
        const void *desc = vring_table_at(vq, &table, i);

        if (unlikely(!desc)) {
            return -EPIPE;
        }
        VringDesc entry = packed_desc_load(desc);

        if (unlikely((ret = vring_chain_add(vq, elem, chain, &entry)) < 0)) {
            return ret;
        }
    }
    return 0;
}

/* The slots from @pos on, of which the first is @d; the number of them, and in @d the last. */
static ALWAYS_INLINE int slots_walk(VirtQueue *vq, VqElem *elem, VringChain *chain,
                                    VringPackedPos pos, VringDesc *d)
{
    unsigned room = vq->size - vq->packed.slots_out;
    unsigned nb = 0;
    int ret;

    for (;;) {
        nb++;
        if (unlikely((ret = vring_chain_add(vq, elem, chain, d)) < 0)) {
            return ret;
        }
        if (!(d->flags & VRING_DESC_F_NEXT)) {
            return (int)nb;
        }
        if (unlikely(nb == room)) {
            vq_break(vq, "a chain that does not fit into the ring");
            return -EPIPE;
        }
        pos_advance(vq, &pos, 1);
        *d = packed_desc_load(&vq->packed.desc[pos.slot]);
        if (unlikely((d->flags ^ pos.flags) & F_OWNER || d->flags & VRING_DESC_F_INDIRECT)) {
            vq_break(vq, "a chain that goes on with a descriptor that is %s",
                     d->flags & VRING_DESC_F_INDIRECT ? "indirect" : "not available");
            return -EPIPE;
        }
    }
}

int vring_packed_pop(VirtQueue *vq, VqElem *elem)
{
    VringPacked *ring = &vq->packed;
    const struct vring_packed_desc *desc = &ring->desc[ring->avail.slot];
    uint16_t flags = flags_acquire(desc);
    VringChain chain = vring_chain_begin(elem);
    int nb_slots = 1, ret;

    if ((flags ^ ring->avail.flags) & F_OWNER) {
        return 0;
    }
    if (unlikely(ring->slots_out == vq->size)) {
        vq_break(vq, "more descriptors than the ring holds");
        return -EPIPE;
    }
    VringDesc d = packed_desc_load(desc);

    d.flags = flags; /* those that have decided that the rest may be read */
    if (flags & VRING_DESC_F_INDIRECT) {
        ret = table_walk(vq, elem, &chain, &d);
    } else {
        ret = nb_slots = slots_walk(vq, elem, &chain, ring->avail, &d);
    }
    if (unlikely(ret < 0 || (ret = vring_chain_finish(vq, elem, &chain, d.link)) < 0)) {
        return ret;
    }
    if (unlikely(vq->head_in_flight[d.link])) {
        vq_break(vq, "buffer %u was made available twice", d.link);
        return -EPIPE;
    }
    elem->nb_slots = (uint16_t)nb_slots;
    ring->slots_out += (uint16_t)nb_slots;
    pos_advance(vq, &ring->avail, (unsigned)nb_slots);
    return 1;
}

static int left_walk(VirtQueue *vq, VqElem *elem, VringChain *chain,
                     const struct vring_packed_desc *desc, unsigned nb, VringDesc *ret_last)
{
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < nb; i++) {
        *ret_last = packed_desc_load(&desc[i]);
        if (i == 0 && nb == 1 && (ret_last->flags & VRING_DESC_F_INDIRECT)) {
            ret = table_walk(vq, elem, chain, ret_last);
        } else {
            ret = vring_chain_add(vq, elem, chain, ret_last);
        }
    }
    return ret;
}

NOINLINE __attribute__((cold)) int vring_packed_pop_left(VirtQueue *vq, VqElem *elem,
                                   const struct vring_packed_desc *desc, unsigned nb)
{
    VringChain chain = vring_chain_begin(elem);
    VringDesc last = { .link = 0 };
    int ret = left_walk(vq, elem, &chain, desc, nb, &last);

    if (ret < 0 || (ret = vring_chain_finish(vq, elem, &chain, last.link)) < 0) {
        return ret;
    }
    if (vq->head_in_flight[last.link]) {
        vq_break(vq, "buffer %u in flight twice", last.link);
        return -EPIPE;
    }
    elem->nb_slots = (uint16_t)nb;
    return 1;
}

bool vring_packed_has_work(VirtQueue *vq)
{
    const VringPackedPos *avail = &vq->packed.avail;

    return !((flags_load(&vq->packed.desc[avail->slot]) ^ avail->flags) & F_OWNER);
}

void vring_packed_ask_kicks(VirtQueue *vq, bool on)
{
    uint32_t event = VRING_PACKED_EVENT_FLAG_DISABLE << 16;

    if (on && vq->event_idx) {
        event = VRING_PACKED_EVENT_FLAG_DESC << 16 | pos_to_base(&vq->packed.avail);
    } else if (on) {
        event = VRING_PACKED_EVENT_FLAG_ENABLE << 16;
    }
    le32_store((le32 *)vq->packed.device_event, event);
}

/* --- used descriptors --- */

void vring_packed_push(VirtQueue *vq, const VqElem *elem, uint32_t written_bytes)
{
    VringPacked *ring = &vq->packed;
    struct vring_packed_desc *desc = &ring->desc[ring->used.slot];
    uint16_t flags = ring->used.flags | (written_bytes > 0 ? VRING_DESC_F_WRITE : 0);

    le32_store((le32 *)&desc->len, written_bytes);
    le16_store((le16 *)&desc->id, elem->head);
    if (vq->used_idx == vq->used_published) {
        ring->first = desc; /* invariant (6) */
        ring->first_flags = flags;
    } else {
        le16_store((le16 *)&desc->flags, flags);
    }
    pos_advance(vq, &ring->used, elem->nb_slots);
    ring->slots_out -= elem->nb_slots;
    ring->slots_unsignalled += elem->nb_slots;
}

void vring_packed_publish(VirtQueue *vq)
{
    __atomic_store_n(&vq->packed.first->flags, htole16(vq->packed.first_flags), __ATOMIC_RELEASE);
}

/* Has the slot that @event tells been used, the last @nb_slots being those before used? */
static bool slot_passed(const VirtQueue *vq, uint32_t event, uint32_t nb_slots)
{
    const VringPackedPos *used = &vq->packed.used;
    bool other_lap = EVENT_WRAP(event) != pos_wrap(used);
    uint16_t back = (uint16_t)(used->slot + (other_lap ? vq->size : 0u) - EVENT_OFFSET(event));

    /* more than a lap: whatever the slot, it has been passed */
    return nb_slots > vq->size || (uint16_t)(back - 1) < nb_slots;
}

bool vring_packed_wants_signal(VirtQueue *vq)
{
    uint32_t nb_slots = vq->packed.slots_unsignalled;

    vq->packed.slots_unsignalled = 0;
    vq_store_load_barrier();

    uint32_t event = le32_load((const le32 *)vq->packed.driver_event);

    if (EVENT_FLAGS(event) == VRING_PACKED_EVENT_FLAG_DISABLE) {
        return false;
    }
    return EVENT_FLAGS(event) != VRING_PACKED_EVENT_FLAG_DESC || !vq->event_idx ||
           slot_passed(vq, event, nb_slots);
}
