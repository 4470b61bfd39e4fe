/*
 * Vring - the driver's side of a virtqueue, split or packed
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: one processor at a time, whichever drives the queue.
 * Lifetime:  vring_init() allocates; after a device reset vring_rewind() makes
 *            the same memory ready for a second life.
 * Spec:      VIRTIO 1.2, 2.7
 *
 * Publishing and taking are the same for both formats; offering is not: see
 * vring-packed.h, and vblk_offer(), which does it for either.
 *
 * Nothing here stops a test from writing nonsense: the three areas are open,
 * and vring_offer() takes any head.
 */
#ifndef GUEST_TESTS_LIB_VRING_H
#define GUEST_TESTS_LIB_VRING_H

#include "guest-tests/lib/cpu.h"
#include "guest-tests/lib/virtio.h"
#include "guest-tests/lib/vring-packed.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    volatile VringDesc *desc;
    volatile VringAvail *avail;
    volatile VringUsed *used;
    volatile void *doorbell;
    uint16_t index;
    uint16_t size; /* a power of 2 */
    uint16_t avail_next;      /* our copy of avail->idx, ahead until publish */
    uint16_t avail_published; /* what the device was last shown */
    uint16_t used_next;       /* the next used element to take */
    bool is_packed; /* before vring_rewind(); then this in place of the above */
    VringPacked packed;
    bool event_idx;
    bool interrupts;    /* ask for one per batch */
    bool wide_doorbell; /* 32 bits instead of 16 */
    uint64_t kicks;
} Vring;

void vring_init(Vring *r, uint16_t index, uint16_t size);

/* vring_rewind - all indexes 0, flags as the fields of @r say */
void vring_rewind(Vring *r);

static inline void vring_set_desc(Vring *r, uint16_t i, uint64_t gpa,
                                  uint32_t len_bytes, uint16_t flags,
                                  uint16_t next)
{
    r->desc[i].addr = gpa;
    r->desc[i].len = len_bytes;
    r->desc[i].flags = flags;
    r->desc[i].next = next;
}

/* vring_offer - put a chain in the ring, not yet visible to the device */
static inline void vring_offer(Vring *r, uint16_t head)
{
    r->avail->ring[r->avail_next & (r->size - 1)] = head;
    r->avail_next++;
}

/* Where the two event indexes stand, behind the rings. */
static inline volatile uint16_t *vring_used_event(Vring *r)
{
    return &r->avail->ring[r->size];
}

static inline uint16_t vring_avail_event(Vring *r)
{
    return mmio_read16(&r->used->ring[r->size]);
}

static inline void vring_kick(Vring *r)
{
    r->kicks++;
    if (r->wide_doorbell) {
        mmio_write32(r->doorbell, r->index);
    } else {
        mmio_write16(r->doorbell, r->index);
    }
}

/*
 * vring_publish - show the device what was offered, and ring the doorbell if
 * it asks for that
 *
 * The full barrier orders our index before our look at the device's wish; its
 * partner in the device orders its wish before its last look at the index.
 */
static inline void vring_publish(Vring *r)
{
    uint16_t from = r->avail_published;
    uint16_t to = r->avail_next;
    bool wanted;

    if (r->is_packed) {
        if (vring_packed_publish(&r->packed)) {
            vring_kick(r);
        }
        return;
    }
    cpu_barrier();
    r->avail->idx = to;
    r->avail_published = to;
    cpu_mb();
    if (r->event_idx) {
        wanted = (uint16_t)(to - vring_avail_event(r) - 1) <
                 (uint16_t)(to - from);
    } else {
        wanted = !(r->used->flags & VRING_USED_F_NO_NOTIFY);
    }
    if (wanted) {
        vring_kick(r);
    }
}

/* vring_take - the next used element; false if there is none */
static inline bool vring_take(Vring *r, uint32_t *ret_head,
                              uint32_t *ret_len_bytes)
{
    if (r->is_packed) {
        return vring_packed_take(&r->packed, ret_head, ret_len_bytes);
    }
    if (r->used->idx == r->used_next) {
        return false;
    }
    cpu_barrier();

    volatile VringUsedElem *e = &r->used->ring[r->used_next & (r->size - 1)];
    *ret_head = e->id;
    *ret_len_bytes = e->len;
    r->used_next++;
    return true;
}

/* vring_ask_interrupts - one for each batch, of a ring without the event index */
static inline void vring_ask_interrupts(Vring *r)
{
    if (r->is_packed) {
        *r->packed.driver_event = VRING_PACKED_EVENT_ENABLE << 16;
    } else {
        r->avail->flags = 0;
    }
}

/*
 * vring_taken_all - after a batch: the next completion asks for an interrupt
 *
 * Without interrupts the event index stays where vring_rewind() put it, as a
 * driver that has switched callbacks off leaves it.
 */
static inline void vring_taken_all(Vring *r)
{
    if (!r->event_idx || !r->interrupts) {
        return;
    }
    if (r->is_packed) {
        vring_packed_want_next(&r->packed);
    } else {
        *vring_used_event(r) = r->used_next;
    }
}

#endif
