/*
 * ring-driver.h - a guest for tests: memory, a transport, and the driver's side of a ring
 *
 * Layer:     virtio/ tests and fuzzers
 * Threading: control functions in the main context's thread, not in a coroutine; a RingDriver's
 *            other functions in any one thread (they share with the device only guest memory).
 *
 * Honest drivers use ring_add() .. ring_next_used(), which are the same for split and packed rings;
 * which it is was negotiated. Hostile ones write into a split ring as they like with
 * ring_set_desc(), ring_offer() and ring_publish_index(), and into a packed one with the functions
 * of ring-packed.h.
 */
#ifndef VIRTIO_TESTS_RING_DRIVER_H
#define VIRTIO_TESTS_RING_DRIVER_H

#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "virtio/tests/ring-packed.h"
#include "virtio/virtio-device.h"

#define FEATURE(bit) ((uint64_t)1 << (bit))

/* --- guest memory --- */

#define GUEST_BASE_GPA 0x40000000u /* not 0: an address is never a valid offset by chance */

typedef struct Guest {
    int fd; /* a memfd that holds the RAM, for who has to share it */
    uint8_t *ram;
    uint64_t ram_bytes;
    uint64_t next_gpa;
    GuestMemory gm; /* one region; a test may add others */
} Guest;

void guest_init(Guest *guest, uint64_t ram_bytes);
void guest_finish(Guest *guest);
/* Memory from the guest's RAM; never freed. Aborts when there is none left. */
uint64_t guest_alloc(Guest *guest, uint64_t len_bytes, uint64_t align_bytes);
void guest_rewind(Guest *guest); /* forget all allocations */
void *guest_ptr(const Guest *guest, uint64_t gpa);

/* --- main context and transport --- */

/* The main context, home in the calling thread; NULL and a message where io_uring is refused. */
AioContext *guest_main_context(Error *err);

typedef struct GuestTransport {
    unsigned nb_attached;
    int attach_result;                                    /* what attach_doorbell answers */
    _Atomic unsigned queue_interrupts[VIRTIO_QUEUES_MAX]; /* notify_queue() calls */
    unsigned config_interrupts;
} GuestTransport;

void guest_transport_init(GuestTransport *transport, VirtioDevice *vdev);

/* Whether this run of the test program is meant for packed rings: TEST_RING=packed in the
 * environment. */
bool guest_wants_packed(void);

/* --- control, as a transport's registers would --- */

void dev_set_status(VirtioDevice *vdev, uint8_t status);
void dev_write_features(VirtioDevice *vdev, uint64_t features);
void dev_enable_queue(VirtioDevice *vdev, unsigned index);
void dev_reset_queue(VirtioDevice *vdev, unsigned index);
int dev_move_queue(VirtioDevice *vdev, unsigned index, AioContext *ctx);
void dev_write_config(VirtioDevice *vdev, size_t offset, const void *data, size_t len_bytes);
/* Reset .. FEATURES_OK; false when refused. */
bool dev_negotiate(VirtioDevice *vdev, uint64_t features);
void dev_driver_ok(VirtioDevice *vdev);
/* Run the main context until nothing happens any more. */
void dev_settle(void);

/* --- the ring --- */

typedef struct RingBuf {
    uint64_t gpa;
    uint32_t len;
    bool writable;
} RingBuf;

typedef struct RingDriver {
    Guest *guest;
    VirtioDevice *vdev; /* the device in this process, if it is in this process */
    VirtQueue *vq;
    unsigned index;
    uint16_t size;
    bool is_packed;
    RingPacked packed; /* is_packed; else desc, avail and used */
    uint64_t desc_gpa, avail_gpa, used_gpa;
    struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    bool event_idx;
    uint16_t avail_idx;    /* next entry to fill: how many chains were offered */
    uint16_t avail_kicked; /* avail_idx at the last decision to kick */
    uint16_t used_seen;    /* next used entry to look at: how many were taken */
    uint16_t free_head;    /* next descriptor, or buffer id of a packed ring */
    uint16_t nb_free;      /* descriptors */
    uint16_t *next_free;   /* by descriptor or id */
} RingDriver;

/* Fresh zeroed ring memory, of which no device knows yet. */
void ring_place(RingDriver *ring, Guest *guest, uint16_t size);
/* What was negotiated, event index and format: before the first use. */
void ring_set_features(RingDriver *ring, uint64_t features);
/* Both; programs the queue's registers, does not enable it. */
void ring_init(RingDriver *ring, Guest *guest, VirtioDevice *vdev, unsigned index, uint16_t size);
void ring_finish(RingDriver *ring);

/* Honest: a chain of free descriptors (or one that leads to an indirect table); its head (in a
 * packed ring its id). Aborts when there are too few descriptors. */
uint16_t ring_add(RingDriver *ring, const RingBuf *bufs, unsigned nb_bufs);
uint16_t ring_add_indirect(RingDriver *ring, uint64_t table_gpa, const RingBuf *bufs,
                           unsigned nb_bufs);
/* Give a chain's descriptors back. */
void ring_free(RingDriver *ring, uint16_t head);

/* Split rings only. */
void ring_set_desc(RingDriver *ring, unsigned i, uint64_t gpa, uint32_t len, uint16_t flags,
                   uint16_t next);
/* In an indirect table, which may stand at any address. */
void ring_write_desc(void *desc, uint64_t gpa, uint32_t len, uint16_t flags, uint16_t next);
/* Put @head into the next entry of the available ring; the device does not see it yet. */
void ring_offer(RingDriver *ring, uint16_t head);
/* Let the device see what was added. */
void ring_publish(RingDriver *ring);
/* Split: avail->idx is any number. */
void ring_publish_index(RingDriver *ring, uint16_t idx);

/* The driver's decision (2.7.13.4), with its barrier. */
bool ring_wants_kick(RingDriver *ring);
void ring_kick(RingDriver *ring);

/* How many used entries the device has published, from the first on. */
uint16_t ring_used_index(const RingDriver *ring);
/* False when the device has published nothing more. */
bool ring_next_used(RingDriver *ring, uint32_t *ret_head, uint32_t *ret_len);
/* Ask to be interrupted for the next used entry, or for none; and the barrier. */
void ring_want_interrupt(RingDriver *ring, bool on);
/* Split: ask to be interrupted when used index @idx has been passed (EVENT_IDX), and the barrier. */
void ring_set_used_event(RingDriver *ring, uint16_t idx);
uint16_t ring_avail_event(const RingDriver *ring);

#endif
