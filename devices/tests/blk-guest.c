/*
 * blk-guest.c - see blk-guest.h
 */
#include "devices/tests/blk-guest.h"

#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#define CHAIN_DESCS  3
#define PACKED_AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define PACKED_OWNER (PACKED_AVAIL | 1u << VRING_PACKED_DESC_F_USED)

#define HEADER_OFFSET 0x3000
#define DATA_OFFSET   0x4000
#define STATUS_OFFSET 0x5000

static void *at(const BlkGuest *guest, unsigned q, unsigned offset)
{
    return guest->ram + q * BLK_GUEST_AREA_BYTES + offset;
}

void blk_guest_init(BlkGuest *guest, FakePlatform *fake, unsigned nb_queues, const char *disk)
{
    const char *ring = getenv("TEST_RING");
    VirtioBlkParams params = { .id = "disk",
                               .nb_queues = nb_queues,
                               .queue_size = BLK_GUEST_RING_SIZE };
    Error err = { 0 };
    Opts opts;

    ASSERT_LE(nb_queues, BLK_GUEST_QUEUES);
    params.packed = ring && strcmp(ring, "packed") == 0;
    *guest = (BlkGuest){ .fake = fake, .packed = params.packed };
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

uint64_t blk_guest_ring_feature(const BlkGuest *guest)
{
    return guest->packed ? 1ull << VIRTIO_F_RING_PACKED : 0;
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

/* Slots are counted on and on; the flags of an available descriptor there. */
static uint16_t packed_owner(unsigned slot)
{
    return slot / BLK_GUEST_RING_SIZE % 2 == 0 ? PACKED_AVAIL : PACKED_OWNER ^ PACKED_AVAIL;
}

static struct vring_packed_desc *packed_slot(const BlkGuest *guest, unsigned q, unsigned slot)
{
    return (struct vring_packed_desc *)at(guest, q, 0) + slot % BLK_GUEST_RING_SIZE;
}

static void set_packed(BlkGuest *guest, unsigned q, unsigned i, unsigned offset, uint32_t len_bytes,
                       uint16_t flags)
{
    unsigned slot = guest->avail_idx[q] * CHAIN_DESCS + i;
    struct vring_packed_desc *desc = packed_slot(guest, q, slot);

    desc->addr = htole64(BLK_GUEST_DESC(q) + offset);
    desc->len = htole32(len_bytes);
    __atomic_store_n(&desc->flags, htole16(flags | packed_owner(slot)), __ATOMIC_RELEASE);
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
    if (guest->packed) {
        set_packed(guest, q, 2, STATUS_OFFSET, 1, VRING_DESC_F_WRITE);
        set_packed(guest, q, 1, DATA_OFFSET, 512, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE);
        set_packed(guest, q, 0, HEADER_OFFSET, sizeof(*header), VRING_DESC_F_NEXT);
        guest->avail_idx[q]++;
        return;
    }
    set_desc(guest, q, 0, HEADER_OFFSET, sizeof(*header), VRING_DESC_F_NEXT);
    set_desc(guest, q, 1, DATA_OFFSET, 512, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE);
    set_desc(guest, q, 2, STATUS_OFFSET, 1, VRING_DESC_F_WRITE);
    offer(guest, q, 0);
}

void blk_guest_offer_nonsense(BlkGuest *guest, unsigned q)
{
    if (guest->packed) {
        set_packed(guest, q, 0, 0, 0, 0);
        guest->avail_idx[q]++;
    } else {
        offer(guest, q, 0x7777);
    }
}

/* At most the last one is out. */
static uint16_t packed_used(const BlkGuest *guest, unsigned q)
{
    uint16_t nb = guest->avail_idx[q];
    unsigned slot = (nb - 1u) * CHAIN_DESCS;

    if (nb == 0) {
        return 0;
    }
    uint16_t flags = __atomic_load_n(&packed_slot(guest, q, slot)->flags, __ATOMIC_ACQUIRE);
    bool out = (le16toh(flags) & PACKED_OWNER) == packed_owner(slot);

    return (uint16_t)(nb - out);
}

uint16_t blk_guest_used(const BlkGuest *guest, unsigned q)
{
    const struct vring_used *used = at(guest, q, 0x2000);

    if (guest->packed) {
        return packed_used(guest, q);
    }
    return le16toh(__atomic_load_n(&used->idx, __ATOMIC_ACQUIRE));
}

uint8_t blk_guest_status(const BlkGuest *guest, unsigned q)
{
    return *(const uint8_t *)at(guest, q, STATUS_OFFSET);
}
