/*
 * blk-guest.c - see blk-guest.h
 */
#include "devices/tests/blk-guest.h"

#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>

#define HEADER_OFFSET 0x3000
#define DATA_OFFSET   0x4000
#define STATUS_OFFSET 0x5000

static void *at(const BlkGuest *guest, unsigned q, unsigned offset)
{
    return guest->ram + q * BLK_GUEST_AREA_BYTES + offset;
}

void blk_guest_init(BlkGuest *guest, FakePlatform *fake, unsigned nb_queues, const char *disk)
{
    VirtioBlkParams params = { .id = "disk", .nb_queues = nb_queues,
                               .queue_size = BLK_GUEST_RING_SIZE };
    Error err = { 0 };
    Opts opts;

    ASSERT_LE(nb_queues, BLK_GUEST_QUEUES);
    *guest = (BlkGuest){ .fake = fake };
    guest->ram = aligned_alloc(4096, BLK_GUEST_RAM_BYTES);
    memset(guest->ram, 0, BLK_GUEST_RAM_BYTES);
    gm_init(&guest->gm);
    ASSERT_EQ(gm_add(&guest->gm, BLK_GUEST_RAM_GPA, BLK_GUEST_RAM_BYTES, guest->ram, &err), 0);
    ASSERT_EQ(opts_parse(&opts, "--disk", disk, NULL, &err), 0);
    guest->blk = blk_open("disk", &opts, &err);
    ASSERT_TRUE(guest->blk);
    opts_finish(&opts);
    guest->vblk = virtio_blk_create(&params, guest->blk, &guest->gm, &err);
    ASSERT_TRUE(guest->vblk);
    guest->vdev = virtio_blk_device(guest->vblk);
}

void blk_guest_finish(BlkGuest *guest)
{
    virtio_blk_destroy(guest->vblk);
    EXPECT_EQ(blk_close(guest->blk), 0);
    gm_finish(&guest->gm);
    free(guest->ram);
}

void blk_guest_clear_ring(BlkGuest *guest, unsigned q)
{
    memset(at(guest, q, 0), 0, 0x3000);
    guest->avail_idx[q] = 0;
}

static void set_desc(BlkGuest *guest, unsigned q, unsigned i, unsigned offset, uint32_t len_bytes,
                     uint16_t flags)
{
    struct vring_desc *desc = at(guest, q, 0);

    desc[i] = (struct vring_desc){
        .addr = htole64(BLK_GUEST_DESC(q) + offset),
        .len = htole32(len_bytes),
        .flags = htole16(flags),
        .next = htole16((uint16_t)(i + 1)),
    };
}

static void offer(BlkGuest *guest, unsigned q, uint16_t head)
{
    struct vring_avail *avail = at(guest, q, 0x1000);

    avail->ring[guest->avail_idx[q] % BLK_GUEST_RING_SIZE] = htole16(head);
    __atomic_store_n(&avail->idx, htole16(++guest->avail_idx[q]), __ATOMIC_RELEASE);
}

void blk_guest_offer_read(BlkGuest *guest, unsigned q)
{
    struct virtio_blk_outhdr *header = at(guest, q, HEADER_OFFSET);

    *header = (struct virtio_blk_outhdr){ .type = htole32(VIRTIO_BLK_T_IN) };
    *(uint8_t *)at(guest, q, STATUS_OFFSET) = 0xee;
    set_desc(guest, q, 0, HEADER_OFFSET, sizeof(*header), VRING_DESC_F_NEXT);
    set_desc(guest, q, 1, DATA_OFFSET, 512, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE);
    set_desc(guest, q, 2, STATUS_OFFSET, 1, VRING_DESC_F_WRITE);
    offer(guest, q, 0);
}

void blk_guest_offer_nonsense(BlkGuest *guest, unsigned q)
{
    offer(guest, q, 0x7777);
}

uint16_t blk_guest_used(const BlkGuest *guest, unsigned q)
{
    const struct vring_used *used = at(guest, q, 0x2000);

    return le16toh(__atomic_load_n(&used->idx, __ATOMIC_ACQUIRE));
}

uint8_t blk_guest_status(const BlkGuest *guest, unsigned q)
{
    return *(const uint8_t *)at(guest, q, STATUS_OFFSET);
}
