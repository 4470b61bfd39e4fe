/*
 * ring-packed.h - the driver's side of a packed ring, behind the functions of ring-driver.h
 *
 * Layer:     virtio/ tests and fuzzers
 * Threading: as RingDriver's.
 *
 * Slots are counted on and on, from the base: where a slot is and whose lap it is follows from
 * that. So the wrap counters of the device have something different to agree with.
 */
#ifndef VIRTIO_TESTS_RING_PACKED_H
#define VIRTIO_TESTS_RING_PACKED_H

#include <stdbool.h>
#include <stdint.h>

#include <linux/virtio_ring.h>

#include "io/base/compiler.h"

#define RING_F_AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define RING_F_USED  (1u << VRING_PACKED_DESC_F_USED)

typedef struct RingPacked {
    struct vring_packed_desc *desc;
    struct vring_packed_desc_event *driver_event, *device_event;
    uint16_t size;
    uint64_t next_avail;   /* next slot to fill */
    uint64_t first;        /* slot not yet published, with those behind it; = next_avail: none */
    uint16_t first_flags;  /* what publishes it */
    uint64_t kicked_avail; /* next_avail at the last decision to kick */
    uint64_t next_used;    /* next slot to look at */
    uint16_t *nb_slots;    /* by id */
} RingPacked;

void ring_packed_init(RingPacked *r, void *desc, void *driver_event, void *device_event,
                      uint16_t size) NONNULL(1, 2, 3, 4);
void ring_packed_finish(RingPacked *r) NONNULL(1);
/* What is first is at slot @pos of all laps, rather than at 0. */
void ring_packed_begin_at(RingPacked *r, uint64_t pos) NONNULL(1);

/* One descriptor behind the last; its owner flags are added. Seen by the device at the publication,
 * if it is the first since the last one. */
void ring_packed_put(RingPacked *r, uint64_t gpa, uint32_t len, uint16_t flags, uint16_t id)
    NONNULL(1);
void ring_packed_publish(RingPacked *r) NONNULL(1);
bool ring_packed_wants_kick(RingPacked *r, bool event_idx) NONNULL(1);

/* How many used descriptors there are to take. */
unsigned ring_packed_nb_used(const RingPacked *r) NONNULL(1);
/* The slot behind them. */
uint64_t ring_packed_used_pos(const RingPacked *r) NONNULL(1);
bool ring_packed_next_used(RingPacked *r, uint32_t *ret_id, uint32_t *ret_len) NONNULL(1, 2, 3);

/* Slot @pos of all laps as the driver's event or the base of a queue names it. */
uint16_t ring_packed_name(const RingPacked *r, uint64_t pos) NONNULL(1);
/* AVAIL and USED in a descriptor that is offered there. */
uint16_t ring_packed_avail_flags(const RingPacked *r, uint64_t pos) NONNULL(1);
/* VRING_PACKED_EVENT_FLAG_*, and where; then a full barrier. */
void ring_packed_set_event(RingPacked *r, uint16_t flags, uint16_t name) NONNULL(1);
uint32_t ring_packed_device_event(const RingPacked *r) NONNULL(1);

/* Any descriptor, at any address. */
void ring_packed_write_desc(void *desc, uint64_t gpa, uint32_t len, uint16_t flags, uint16_t id)
    NONNULL(1);

#endif
