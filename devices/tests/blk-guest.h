/*
 * blk-guest.h - a virtio-blk device on the null driver, and the driver's rings for it, for tests of
 * transports
 *
 * Layer:     devices/tests
 * Threading: the test's main thread.
 * Lifetime:  blk_guest_init() .. blk_guest_finish(), with the transport created and destroyed in
 *            between. The rings are at fixed places; telling the device of them is the test's work.
 *
 * With TEST_RING=packed in the environment the rings are packed ones.
 */
#ifndef DEVICES_TESTS_BLK_GUEST_H
#define DEVICES_TESTS_BLK_GUEST_H

#include "devices/tests/fake-platform.h"
#include "virtio/virtio-blk.h"

#define BLK_GUEST_QUEUES     4
#define BLK_GUEST_RING_SIZE  8
#define BLK_GUEST_RAM_GPA    0x100000u
#define BLK_GUEST_RAM_BYTES  0x100000u
#define BLK_GUEST_AREA_BYTES 0x10000u
/* One area a queue */
#define BLK_GUEST_DESC(q)  (BLK_GUEST_RAM_GPA + (q) * BLK_GUEST_AREA_BYTES)
#define BLK_GUEST_AVAIL(q) (BLK_GUEST_DESC(q) + 0x1000)
#define BLK_GUEST_USED(q)  (BLK_GUEST_DESC(q) + 0x2000)

typedef struct BlkGuest {
    FakePlatform *fake;
    BlockBackend *blk;
    VirtioBlk *vblk;
    VirtioDevice *vdev;
    GuestMemory gm;
    uint8_t *ram;
    bool packed;
    uint16_t avail_idx[BLK_GUEST_QUEUES]; /* chains offered */
} BlkGuest;

/* @disk  options of the backend, "driver=null,size=1M" */
void blk_guest_init(BlkGuest *guest, FakePlatform *fake, unsigned nb_queues, const char *disk);
void blk_guest_finish(BlkGuest *guest);

/* VIRTIO_F_RING_PACKED, which the test has to negotiate then, or 0. */
uint64_t blk_guest_ring_feature(const BlkGuest *guest);
/* Zero ring @q. */
void blk_guest_clear_ring(BlkGuest *guest, unsigned q);
/* Make one read of a sector available; the one before must be done. */
void blk_guest_offer_read(BlkGuest *guest, unsigned q);
/* Make something available that breaks the queue. */
void blk_guest_offer_nonsense(BlkGuest *guest, unsigned q);
/* How many the device has used of ring @q, as the driver sees it. */
uint16_t blk_guest_used(const BlkGuest *guest, unsigned q);
/* Status byte of the read that was done last on @q. */
uint8_t blk_guest_status(const BlkGuest *guest, unsigned q);

#endif
