/*
 * VringPacked - the driver's side of a packed virtqueue
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: one processor at a time, whichever drives the queue.
 * Lifetime:  part of a Vring, whose memory it uses.
 * Spec:      VIRTIO 1.2, 2.8
 *
 * Descriptors go into the ring one behind the other with vring_packed_put();
 * the last of a chain has its id, which vring_packed_chain() notes with the
 * chain's length. The device sees all of it when the flags of the first are
 * stored, by vring_packed_publish().
 *
 * Nothing here stops a test from writing nonsense: the ring and the two event
 * words are open, and any id and flags are taken.
 */
#ifndef GUEST_TESTS_LIB_VRING_PACKED_H
#define GUEST_TESTS_LIB_VRING_PACKED_H

#include "guest-tests/lib/cpu.h"
#include "guest-tests/lib/virtio.h"

#include <stdbool.h>
#include <stdint.h>

#define VRING_PACKED_OWNER (VRING_PACKED_DESC_F_AVAIL | VRING_PACKED_DESC_F_USED)

typedef struct {
    volatile VringPackedDesc *desc;
    volatile uint32_t *driver_event; /* ours: VRING_PACKED_EVENT_... << 16 | slot and wrap */
    volatile uint32_t *device_event; /* the same, the device's */
    uint16_t *chain_slots;           /* by id below size; others are for chains of one */
    uint16_t size;
    uint16_t avail_slot;  /* next to fill */
    uint16_t avail_flags; /* AVAIL and USED as they are due there */
    uint16_t first_slot;  /* next to publish */
    uint16_t first_flags;
    uint16_t nb_pending; /* put and not published */
    uint16_t used_slot;  /* next to take */
    uint16_t used_flags;
} VringPacked;

/* vring_packed_init - once for each size; @driver and @device have 4 bytes */
void vring_packed_init(VringPacked *p, uint16_t size, volatile void *desc,
                       volatile void *driver, volatile void *device);

/* vring_packed_rewind - zeroed memory, both wrap counters 1 */
void vring_packed_rewind(VringPacked *p, bool interrupts, bool event_idx);

/* vring_packed_wants_kick - of the last @nb_slots, is there one the device waits for? */
bool vring_packed_wants_kick(const VringPacked *p, uint16_t nb_slots);

static inline void vring_packed_put(VringPacked *p, uint64_t gpa, uint32_t len_bytes,
                                    uint16_t flags, uint16_t id)
{
    volatile VringPackedDesc *desc = &p->desc[p->avail_slot];

    flags |= p->avail_flags;
    desc->addr = gpa;
    desc->len = len_bytes;
    desc->id = id;
    if (p->nb_pending++ == 0) {
        p->first_slot = p->avail_slot;
        p->first_flags = flags;
    } else {
        desc->flags = flags;
    }
    if (++p->avail_slot == p->size) {
        p->avail_slot = 0;
        p->avail_flags ^= VRING_PACKED_OWNER;
    }
}

static inline void vring_packed_chain(VringPacked *p, uint16_t id, uint16_t nb_slots)
{
    if (id < p->size) {
        p->chain_slots[id] = nb_slots;
    }
}

/*
 * vring_packed_publish - show the device what was put; whether it asks for a kick
 *
 * The full barrier orders the flags before our look at the device's wish; its
 * partner in the device orders its wish before its last look at the flags.
 */
static inline bool vring_packed_publish(VringPacked *p)
{
    uint16_t nb_slots = p->nb_pending;

    if (nb_slots) {
        cpu_barrier();
        p->desc[p->first_slot].flags = p->first_flags;
        p->nb_pending = 0;
    }
    cpu_mb();
    return vring_packed_wants_kick(p, nb_slots);
}

/* vring_packed_take - the next used descriptor; false if there is none */
static inline bool vring_packed_take(VringPacked *p, uint32_t *ret_id, uint32_t *ret_len_bytes)
{
    volatile VringPackedDesc *desc = &p->desc[p->used_slot];
    uint32_t slot;

    if ((desc->flags & VRING_PACKED_OWNER) != p->used_flags) {
        return false;
    }
    cpu_barrier();
    *ret_id = desc->id;
    *ret_len_bytes = desc->len;
    slot = p->used_slot + (*ret_id < p->size ? p->chain_slots[*ret_id] : 1u);
    if (slot >= p->size) {
        slot -= p->size;
        p->used_flags ^= VRING_PACKED_OWNER;
    }
    p->used_slot = (uint16_t)slot;
    return true;
}

/* vring_packed_want_next - the next used descriptor asks for an interrupt (EVENT_IDX) */
static inline void vring_packed_want_next(VringPacked *p)
{
    *p->driver_event = VRING_PACKED_EVENT_DESC << 16 | p->used_slot |
                       (p->used_flags ? VRING_PACKED_EVENT_WRAP : 0u);
}

#endif
