/*
 * VblkDevice - a small virtio-blk driver, polling or with interrupts
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: start and stop on the first processor; a VblkQueue belongs to
 *            whichever one processor drives it.
 * Lifetime:  vblk_open() once, then vblk_start() and vdev_reset() in turns.
 * Spec:      VIRTIO 1.2, 5.2
 *
 * A queue has slots, one for each request that can be in flight.  A slot owns
 * three descriptors (header, data, status) and the memory of header, status
 * and indirect table; it is filled anew for every request.
 */
#ifndef GUEST_TESTS_LIB_VIRTIO_BLK_H
#define GUEST_TESTS_LIB_VIRTIO_BLK_H

#include "guest-tests/lib/mem.h"
#include "guest-tests/lib/virtio-dev.h"
#include "guest-tests/lib/vring.h"

#include <stdbool.h>
#include <stdint.h>

#define VBLK_MAX_QUEUES     64
#define VBLK_SLOT_DESCS     3
#define VBLK_STATUS_PENDING 0xff

typedef struct {
    VirtioBlkHeader header;
    volatile uint8_t status;
    union {
        VringDesc table[VBLK_SLOT_DESCS] __attribute__((aligned(16)));
        VringPackedDesc packed_table[VBLK_SLOT_DESCS];
    };
} __attribute__((aligned(128))) VblkSlot;

typedef struct {
    Vring ring;
    VblkSlot *slots;
    uint16_t nb_slots;
    bool indirect;
    uint8_t vector;          /* with ring.interrupts: */
    uint64_t irqs_seen;      /* irq_count(vector) when we looked last */
} __attribute__((aligned(128))) VblkQueue;

typedef struct {
    uint64_t features; /* wanted; what the device lacks is left out */
    uint16_t nb_queues;
    uint16_t queue_size; /* 0: the largest the device takes */
    bool interrupts;
} VblkSetup;

typedef struct {
    Vdev dev;
    uint64_t features; /* negotiated */
    uint64_t capacity_sectors;
    uint16_t max_queues; /* what the device has */
    uint16_t nb_queues;  /* in use */
    VblkQueue queues[VBLK_MAX_QUEUES];
} VblkDevice;

/* vblk_open - find the @nth virtio-blk device; see vdev_open() */
bool vblk_open(VblkDevice *d, VdevTransport transport, unsigned nth, bool reassign);

/*
 * vblk_start - reset, negotiate, set the queues up, DRIVER_OK
 * Returns NULL, or a sentence that says what went wrong.
 */
const char *vblk_start(VblkDevice *d, const VblkSetup *setup);

/*
 * vblk_do - one request, waiting for its end
 * Returns the status byte, or -1 if nothing came back in time.
 */
int vblk_do(VblkQueue *q, uint32_t type, uint64_t sector, void *data,
            uint32_t len_bytes);

/*
 * vblk_wait - take one completion; false if none comes within @timeout_ms
 *
 * With interrupts the ring is not looked at again before one has come, so a
 * lost interrupt is a timeout.
 */
bool vblk_wait(VblkQueue *q, uint64_t timeout_ms, uint16_t *ret_slot);

static inline bool vblk_type_writes_guest(uint32_t type)
{
    return type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;
}

/* In a packed ring an indirect table means nothing but addresses, lengths and WRITE. */
static inline void vblk_put_packed(VblkQueue *q, VblkSlot *s, uint16_t slot, uint16_t n,
                                   uint64_t gpa, uint32_t len_bytes, uint16_t flags)
{
    if (q->indirect) {
        s->packed_table[n] = (VringPackedDesc){
            .addr = gpa, .len = len_bytes, .flags = flags & VRING_DESC_F_WRITE
        };
    } else {
        vring_packed_put(&q->ring.packed, gpa, len_bytes, flags, slot);
    }
}

static inline void vblk_offer_packed(VblkQueue *q, uint16_t slot, uint32_t type,
                                     uint64_t sector, void *data, uint32_t len_bytes)
{
    VblkSlot *s = &q->slots[slot];
    uint16_t data_flags = vblk_type_writes_guest(type) ? VRING_DESC_F_WRITE : 0;
    uint16_t n = 0;

    s->header = (VirtioBlkHeader){ .type = type, .sector = sector };
    s->status = VBLK_STATUS_PENDING;
    vblk_put_packed(q, s, slot, n++, mem_gpa(&s->header), sizeof(s->header), VRING_DESC_F_NEXT);
    if (len_bytes) {
        vblk_put_packed(q, s, slot, n++, mem_gpa(data), len_bytes,
                        VRING_DESC_F_NEXT | data_flags);
    }
    vblk_put_packed(q, s, slot, n++, mem_gpa(&s->status), 1, VRING_DESC_F_WRITE);
    if (q->indirect) {
        vring_packed_put(&q->ring.packed, mem_gpa(s->packed_table),
                         n * (uint32_t)sizeof(VringPackedDesc), VRING_DESC_F_INDIRECT, slot);
    }
    vring_packed_chain(&q->ring.packed, slot, q->indirect ? 1 : n);
}

/* vblk_offer - fill a free slot and offer it; not yet visible to the device */
static inline void vblk_offer(VblkQueue *q, uint16_t slot, uint32_t type,
                              uint64_t sector, void *data, uint32_t len_bytes)
{
    if (q->ring.is_packed) {
        vblk_offer_packed(q, slot, type, sector, data, len_bytes);
        return;
    }

    VblkSlot *s = &q->slots[slot];
    uint16_t head = (uint16_t)(q->indirect ? slot : slot * VBLK_SLOT_DESCS);
    uint16_t base = q->indirect ? 0 : head;
    volatile VringDesc *desc = q->indirect ? s->table : &q->ring.desc[head];
    uint16_t data_flags =
        vblk_type_writes_guest(type) ? VRING_DESC_F_WRITE : 0;
    uint16_t n = 0;

    s->header = (VirtioBlkHeader){ .type = type, .sector = sector };
    s->status = VBLK_STATUS_PENDING;
    desc[n].addr = mem_gpa(&s->header);
    desc[n].len = sizeof(s->header);
    desc[n].flags = VRING_DESC_F_NEXT;
    desc[n].next = (uint16_t)(base + n + 1);
    n++;
    if (len_bytes) {
        desc[n].addr = mem_gpa(data);
        desc[n].len = len_bytes;
        desc[n].flags = VRING_DESC_F_NEXT | data_flags;
        desc[n].next = (uint16_t)(base + n + 1);
        n++;
    }
    desc[n].addr = mem_gpa(&s->status);
    desc[n].len = 1;
    desc[n].flags = VRING_DESC_F_WRITE;
    desc[n].next = 0;
    n++;
    if (q->indirect) {
        vring_set_desc(&q->ring, head, mem_gpa(s->table),
                       n * (uint32_t)sizeof(VringDesc), VRING_DESC_F_INDIRECT,
                       0);
    }
    vring_offer(&q->ring, head);
}

/* vblk_take - the slot of the next completion; false if there is none */
static inline bool vblk_take(VblkQueue *q, uint16_t *ret_slot)
{
    uint32_t head, len_bytes;

    if (!vring_take(&q->ring, &head, &len_bytes)) {
        return false;
    }
    *ret_slot = (uint16_t)(q->indirect || q->ring.is_packed ? head : head / VBLK_SLOT_DESCS);
    return true;
}

#endif
