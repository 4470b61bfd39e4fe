/*
 * test-virtio-pci.c - a driver's way through a virtio-pci function, and what a hostile one tries
 */
#include <linux/pci_regs.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <sched.h>

#include "devices/tests/blk-guest.h"
#include "devices/virtio-pci.h"
#include "io/aio/iothread.h"

#define ECAM         0xe0000000ull
#define MMIO32       0xc0000000ull
#define MMIO32_BYTES 0x00100000ull
#define SLOT         1
#define QUEUES       3
#define GSI          16

#define STATUS_READY                                                                               \
    (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK)

/* Where a structure is, as its capability says. */
typedef struct Structure {
    unsigned cap;
    unsigned bar;
    uint32_t offset, len_bytes;
} Structure;

typedef struct World {
    FakePlatform fake;
    PciHost *host;
    BlkGuest blk;
    VirtioPci *vpci;
    Structure common, notify, isr, device, cfg;
    uint32_t notify_multiplier;
    unsigned msix_cap;
} World;

/* --- configuration space, as a driver walks it --- */

static uint64_t cfg_read(World *world, unsigned reg, unsigned len_bytes)
{
    return fake_read(&world->fake, ECAM + SLOT * 0x8000 + reg, len_bytes);
}

static void cfg_write(World *world, unsigned reg, unsigned len_bytes, uint64_t value)
{
    fake_write(&world->fake, ECAM + SLOT * 0x8000 + reg, len_bytes, value);
}

static uint64_t bar_gpa(World *world, unsigned bar)
{
    uint64_t low = cfg_read(world, PCI_BASE_ADDRESS_0 + 4 * bar, 4);
    uint64_t high = low & PCI_BASE_ADDRESS_MEM_TYPE_64
                        ? cfg_read(world, PCI_BASE_ADDRESS_0 + 4 * bar + 4, 4) : 0;

    return (low & ~0xfull) | high << 32;
}

static void note_vendor_cap(World *world, unsigned cap)
{
    Structure structure = {
        .cap = cap,
        .bar = (unsigned)cfg_read(world, cap + VIRTIO_PCI_CAP_BAR, 1),
        .offset = (uint32_t)cfg_read(world, cap + VIRTIO_PCI_CAP_OFFSET, 4),
        .len_bytes = (uint32_t)cfg_read(world, cap + VIRTIO_PCI_CAP_LENGTH, 4),
    };

    switch (cfg_read(world, cap + VIRTIO_PCI_CAP_CFG_TYPE, 1)) {
    case VIRTIO_PCI_CAP_COMMON_CFG:
        world->common = structure;
        break;
    case VIRTIO_PCI_CAP_NOTIFY_CFG:
        world->notify = structure;
        world->notify_multiplier = (uint32_t)cfg_read(world, cap + VIRTIO_PCI_NOTIFY_CAP_MULT, 4);
        break;
    case VIRTIO_PCI_CAP_ISR_CFG:
        world->isr = structure;
        break;
    case VIRTIO_PCI_CAP_DEVICE_CFG:
        world->device = structure;
        break;
    case VIRTIO_PCI_CAP_PCI_CFG:
        world->cfg = structure;
        break;
    }
}

static void walk_caps(World *world)
{
    unsigned cap = (unsigned)cfg_read(world, PCI_CAPABILITY_LIST, 1);

    for (unsigned n = 0; cap && n < 48; n++) {
        if (cfg_read(world, cap, 1) == PCI_CAP_ID_VNDR) {
            note_vendor_cap(world, cap);
        } else if (cfg_read(world, cap, 1) == PCI_CAP_ID_MSIX) {
            world->msix_cap = cap;
        }
        cap = (unsigned)cfg_read(world, cap + 1, 1);
    }
}

/* --- the world --- */

static unsigned intx_gsi(unsigned slot, unsigned pin)
{
    return GSI;
}

static void world_init_disk(World *world, const char *disk)
{
    static const PciHostParams params = { ECAM, MMIO32, MMIO32_BYTES, 0, 0, intx_gsi };
    Error err = { 0 };

    *world = (World){ .host = NULL };
    fake_init(&world->fake);
    world->host = pci_host_create(&world->fake.platform, &params, &err);
    ASSERT_TRUE(world->host);
    blk_guest_init(&world->blk, &world->fake, QUEUES, disk);
    world->vpci = virtio_pci_create(&world->fake.platform, world->host, SLOT, world->blk.vdev,
                                    &err);
    ASSERT_TRUE(world->vpci);
    ASSERT_EQ(pci_host_assign_bars(world->host, &err), 0);
    walk_caps(world);
}

static void world_init(World *world)
{
    world_init_disk(world, "driver=null,size=1M");
}

static co_fn void reset_co(void *opaque)
{
    virtio_pci_co_reset(opaque);
}

static void world_finish(World *world)
{
    aio_co_run_sync(world->fake.platform.main, reset_co, world->vpci);
    virtio_pci_destroy(world->vpci);
    blk_guest_finish(&world->blk);
    fake_settle(&world->fake);
    pci_host_destroy(world->host);
    fake_finish(&world->fake);
}

/* --- registers --- */

static uint64_t structure_gpa(World *world, const Structure *structure)
{
    return bar_gpa(world, structure->bar) + structure->offset;
}

static uint64_t common(World *world, unsigned offset, unsigned len_bytes)
{
    return fake_read(&world->fake, structure_gpa(world, &world->common) + offset, len_bytes);
}

static void set_common(World *world, unsigned offset, unsigned len_bytes, uint64_t value)
{
    fake_write(&world->fake, structure_gpa(world, &world->common) + offset, len_bytes, value);
}

static uint8_t get_status(World *world)
{
    return (uint8_t)common(world, VIRTIO_PCI_COMMON_STATUS, 1);
}

static void set_status(World *world, uint8_t status)
{
    set_common(world, VIRTIO_PCI_COMMON_STATUS, 1, status);
}

static uint8_t take_isr(World *world)
{
    return (uint8_t)fake_read(&world->fake, structure_gpa(world, &world->isr), 1);
}

static uint64_t notify_gpa(World *world, unsigned q)
{
    set_common(world, VIRTIO_PCI_COMMON_Q_SELECT, 2, q);
    return structure_gpa(world, &world->notify) +
           common(world, VIRTIO_PCI_COMMON_Q_NOFF, 2) * world->notify_multiplier;
}

static void kick(World *world, unsigned q)
{
    fake_write(&world->fake, notify_gpa(world, q), 2, q);
    fake_settle(&world->fake);
}

/* --- driver steps --- */

static uint64_t offered_features(World *world)
{
    uint64_t features = 0;

    for (unsigned i = 0; i < 2; i++) {
        set_common(world, VIRTIO_PCI_COMMON_DFSELECT, 4, i);
        features |= common(world, VIRTIO_PCI_COMMON_DF, 4) << 32 * i;
    }
    return features;
}

static void negotiate(World *world, uint64_t features)
{
    features |= blk_guest_ring_feature(&world->blk);
    set_status(world, 0);
    EXPECT_EQ(get_status(world), 0);
    set_status(world, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    set_status(world, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    for (unsigned i = 0; i < 2; i++) {
        set_common(world, VIRTIO_PCI_COMMON_GFSELECT, 4, i);
        set_common(world, VIRTIO_PCI_COMMON_GF, 4, (uint32_t)(features >> 32 * i));
    }
    set_status(world, STATUS_READY);
}

static void set_queue(World *world, unsigned q)
{
    blk_guest_clear_ring(&world->blk, q);
    set_common(world, VIRTIO_PCI_COMMON_Q_SELECT, 2, q);
    set_common(world, VIRTIO_PCI_COMMON_Q_SIZE, 2, BLK_GUEST_RING_SIZE);
    set_common(world, VIRTIO_PCI_COMMON_Q_DESCLO, 4, BLK_GUEST_DESC(q));
    set_common(world, VIRTIO_PCI_COMMON_Q_DESCHI, 4, 0);
    set_common(world, VIRTIO_PCI_COMMON_Q_AVAILLO, 4, BLK_GUEST_AVAIL(q));
    set_common(world, VIRTIO_PCI_COMMON_Q_AVAILHI, 4, 0);
    set_common(world, VIRTIO_PCI_COMMON_Q_USEDLO, 8, BLK_GUEST_USED(q)); /* 64 bits at once */
}

static void set_vector(World *world, unsigned q, uint16_t vector)
{
    set_common(world, VIRTIO_PCI_COMMON_Q_SELECT, 2, q);
    set_common(world, VIRTIO_PCI_COMMON_Q_MSIX, 2, vector);
}

static uint16_t get_vector(World *world, unsigned q)
{
    set_common(world, VIRTIO_PCI_COMMON_Q_SELECT, 2, q);
    return (uint16_t)common(world, VIRTIO_PCI_COMMON_Q_MSIX, 2);
}

static void enable_queue(World *world, unsigned q)
{
    set_common(world, VIRTIO_PCI_COMMON_Q_SELECT, 2, q);
    set_common(world, VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
}

static void msix_control(World *world, uint16_t control)
{
    cfg_write(world, world->msix_cap + PCI_MSIX_FLAGS, 2, control);
}

static uint64_t msix_bar(World *world)
{
    return bar_gpa(world, (unsigned)cfg_read(world, world->msix_cap + PCI_MSIX_TABLE, 4) & 7);
}

/* Vector v sends data 100 + v. */
static void msix_on(World *world)
{
    msix_control(world, PCI_MSIX_FLAGS_ENABLE);
    for (unsigned v = 0; v < QUEUES + 1; v++) {
        uint64_t entry = msix_bar(world) + v * PCI_MSIX_ENTRY_SIZE;

        fake_write(&world->fake, entry, 8, 0xfee00000);
        fake_write(&world->fake, entry + PCI_MSIX_ENTRY_DATA, 8, 100 + v);
    }
}

static void msix_mask(World *world, unsigned vector, bool masked)
{
    fake_write(&world->fake,
               msix_bar(world) + vector * PCI_MSIX_ENTRY_SIZE + PCI_MSIX_ENTRY_VECTOR_CTRL, 4,
               masked);
}

static uint64_t msix_pending(World *world)
{
    return fake_read(&world->fake, msix_bar(world) + MSIX_PBA_OFFSET, 8);
}

/* All queues set up and running; with MSI-X, vector 0 is for config and q + 1 for queue q. */
static void start(World *world, bool msix)
{
    negotiate(world, 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_F_RING_RESET);
    ASSERT_EQ(get_status(world), STATUS_READY);
    if (msix) {
        msix_on(world);
        set_common(world, VIRTIO_PCI_COMMON_MSIX, 2, 0);
    }
    for (unsigned q = 0; q < QUEUES; q++) {
        set_queue(world, q);
        if (msix) {
            set_vector(world, q, (uint16_t)(q + 1));
            ASSERT_EQ(get_vector(world, q), q + 1);
        }
        enable_queue(world, q);
    }
    set_status(world, STATUS_READY | VIRTIO_CONFIG_S_DRIVER_OK);
    fake_settle(&world->fake);
}

static void expect_message(World *world, uint32_t data)
{
    ASSERT_EQ(fake_take_messages(&world->fake), 1);
    EXPECT_EQ(world->fake.messages[0].data, data);
}

/* --- identity --- */

TEST(virtio_pci, ids_and_capabilities_are_those_of_a_modern_block_device)
{
    World world;

    world_init(&world);
    EXPECT_EQ(cfg_read(&world, PCI_VENDOR_ID, 4), 0x10421af4);
    EXPECT_GE(cfg_read(&world, PCI_REVISION_ID, 1), 1);
    EXPECT_EQ(cfg_read(&world, PCI_SUBSYSTEM_VENDOR_ID, 2), 0x1af4);
    EXPECT_GE(cfg_read(&world, PCI_SUBSYSTEM_ID, 2), 0x40);
    EXPECT_TRUE(world.common.cap && world.notify.cap && world.isr.cap && world.device.cap &&
                world.cfg.cap && world.msix_cap);
    EXPECT_GE(world.common.len_bytes, VIRTIO_PCI_COMMON_Q_RESET + 2);
    EXPECT_EQ(world.notify_multiplier, 4);
    EXPECT_GE(world.notify.len_bytes, 4 * QUEUES);
    EXPECT_EQ(world.device.len_bytes, world.blk.vdev->ops->config_bytes);
    EXPECT_EQ(cfg_read(&world, world.common.cap + VIRTIO_PCI_CAP_LEN, 1), 16);
    EXPECT_EQ(cfg_read(&world, world.notify.cap + VIRTIO_PCI_CAP_LEN, 1), 20);
    EXPECT_EQ(cfg_read(&world, world.cfg.cap + VIRTIO_PCI_CAP_LEN, 1), 20);
    EXPECT_EQ(cfg_read(&world, world.msix_cap + PCI_MSIX_FLAGS, 2), QUEUES);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_NUMQ, 2), QUEUES);
    EXPECT_EQ(cfg_read(&world, PCI_INTERRUPT_PIN, 1), 1);
    world_finish(&world);
}

TEST(virtio_pci, features_are_read_in_halves_and_beyond_read_0)
{
    World world;
    uint64_t features;

    world_init(&world);
    features = offered_features(&world);
    EXPECT_EQ(features, vdev_features_offered(world.blk.vdev));
    EXPECT_TRUE(features >> VIRTIO_F_VERSION_1 & 1);
    set_common(&world, VIRTIO_PCI_COMMON_DFSELECT, 4, 2);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_DF, 4), 0);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_DFSELECT, 4), 2);
    set_common(&world, VIRTIO_PCI_COMMON_GFSELECT, 4, 7);
    set_common(&world, VIRTIO_PCI_COMMON_GF, 4, 0xffffffff);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_GF, 4), 0);

    negotiate(&world, 0); /* without VERSION_1 */
    EXPECT_EQ(get_status(&world) & VIRTIO_CONFIG_S_FEATURES_OK, 0);
    negotiate(&world, features);
    EXPECT_EQ(get_status(&world), STATUS_READY);
    set_common(&world, VIRTIO_PCI_COMMON_GFSELECT, 4, 0);
    set_common(&world, VIRTIO_PCI_COMMON_GF, 4, 0); /* too late */
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_GF, 4), (uint32_t)features);
    world_finish(&world);
}

/* --- the way of a driver --- */

TEST(virtio_pci, a_driver_starts_every_queue_kicks_it_and_gets_that_queues_message)
{
    World world;

    world_init(&world);
    start(&world, true);
    EXPECT_EQ(get_status(&world), STATUS_READY | VIRTIO_CONFIG_S_DRIVER_OK);
    EXPECT_EQ(world.fake.nb_doorbells, QUEUES);
    for (unsigned q = 0; q < QUEUES; q++) {
        for (unsigned i = 1; i <= 3; i++) {
            blk_guest_offer_read(&world.blk, q);
            kick(&world, q);
            EXPECT_EQ(blk_guest_used(&world.blk, q), i);
            EXPECT_EQ(blk_guest_status(&world.blk, q), VIRTIO_BLK_S_OK);
            expect_message(&world, 100 + q + 1);
        }
    }
    EXPECT_FALSE(world.fake.level[GSI]);
    EXPECT_EQ(take_isr(&world), 0);
    world_finish(&world);
}

TEST(virtio_pci, kicks_before_driver_ok_are_served_after_it_and_not_before)
{
    World world;

    world_init(&world);
    negotiate(&world, 1ull << VIRTIO_F_VERSION_1);
    set_queue(&world, 0);
    enable_queue(&world, 0);
    blk_guest_offer_read(&world.blk, 0);
    kick(&world, 0);
    EXPECT_EQ(blk_guest_used(&world.blk, 0), 0);
    EXPECT_EQ(world.fake.nb_doorbells, 0);
    set_status(&world, STATUS_READY | VIRTIO_CONFIG_S_DRIVER_OK);
    fake_settle(&world.fake);
    EXPECT_EQ(blk_guest_used(&world.blk, 0), 1);
    EXPECT_EQ(world.fake.nb_doorbells, 1); /* fewer enabled than offered */
    world_finish(&world);
}

TEST(virtio_pci, every_queue_field_reads_back_and_holds_still_while_enabled)
{
    World world;

    world_init(&world);
    negotiate(&world, 1ull << VIRTIO_F_VERSION_1);
    set_queue(&world, 1);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_SIZE, 2), BLK_GUEST_RING_SIZE);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_NOFF, 2), 1);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_NDATA, 2), 1);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_DESCLO, 8), BLK_GUEST_DESC(1));
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_AVAILLO, 8), BLK_GUEST_AVAIL(1));
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_USEDLO, 4), BLK_GUEST_USED(1));
    set_common(&world, VIRTIO_PCI_COMMON_Q_DESCHI, 4, 0x12345678);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_DESCHI, 4), 0x12345678);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_DESCLO, 4), BLK_GUEST_DESC(1));
    enable_queue(&world, 1);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 1);
    set_common(&world, VIRTIO_PCI_COMMON_Q_DESCHI, 4, 0);
    set_common(&world, VIRTIO_PCI_COMMON_Q_SIZE, 2, 2);
    set_common(&world, VIRTIO_PCI_COMMON_Q_ENABLE, 2, 0); /* only a reset disables */
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_DESCHI, 4), 0x12345678);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_SIZE, 2), BLK_GUEST_RING_SIZE);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 1);
    world_finish(&world);
}

TEST(virtio_pci, a_queue_that_does_not_exist_reads_0_and_ignores_writes)
{
    static const uint16_t selects[] = { QUEUES, 64, 0x8000, 0xffff };
    World world;

    world_init(&world);
    start(&world, true);
    for (unsigned i = 0; i < ARRAY_SIZE(selects); i++) {
        set_common(&world, VIRTIO_PCI_COMMON_Q_SELECT, 2, selects[i]);
        EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_SELECT, 2), selects[i]);
        for (unsigned offset = VIRTIO_PCI_COMMON_Q_SIZE; offset < 60; offset += 2) {
            set_common(&world, offset, 2, 1);
            set_common(&world, offset, 4, 1);
            EXPECT_EQ(common(&world, offset, 2),
                      offset == VIRTIO_PCI_COMMON_Q_MSIX ? VIRTIO_MSI_NO_VECTOR : 0);
        }
    }
    blk_guest_offer_read(&world.blk, 0);
    kick(&world, 0);
    EXPECT_EQ(blk_guest_used(&world.blk, 0), 1);
    world_finish(&world);
}

TEST(virtio_pci, accesses_of_any_size_and_place_are_survived)
{
    World world;
    uint64_t base;

    world_init(&world);
    negotiate(&world, 1ull << VIRTIO_F_VERSION_1);
    base = bar_gpa(&world, 0);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_NUMQ, 1), QUEUES);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_MSIX, 4), QUEUES << 16 | 0xffff);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_MSIX, 8) >> 32 & 0xff, STATUS_READY);
    set_common(&world, VIRTIO_PCI_COMMON_Q_SELECT, 1, 2); /* not the field's size */
    set_common(&world, VIRTIO_PCI_COMMON_STATUS, 4, 0);
    set_common(&world, VIRTIO_PCI_COMMON_Q_DESCHI, 8, 0);
    EXPECT_EQ(get_status(&world), STATUS_READY);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_SELECT, 2), 0);
    for (unsigned offset = 0; offset < 0x4000; offset += offset % 0x1000 < 96 ? 1 : 61) {
        for (unsigned len_bytes = 1; len_bytes <= 8; len_bytes *= 2) {
            fake_read(&world.fake, base + offset, len_bytes);
            if (offset >= 0x40) { /* not the common structure: it would reset the device */
                fake_write(&world.fake, base + offset, len_bytes, UINT64_MAX);
            }
        }
    }
    EXPECT_EQ(fake_read(&world.fake, base + 0x3ffc, 8), UINT64_MAX); /* past the BAR */
    EXPECT_EQ(get_status(&world), STATUS_READY);
    world_finish(&world);
}

/* --- vectors --- */

TEST(virtio_pci, a_vector_that_does_not_exist_reads_back_no_vector)
{
    static const uint16_t bad[] = { QUEUES + 1, 128, 2048, 0xfffe, VIRTIO_MSI_NO_VECTOR };
    World world;

    world_init(&world);
    start(&world, true);
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        set_vector(&world, 0, 1);
        EXPECT_EQ(get_vector(&world, 0), 1);
        set_vector(&world, 0, bad[i]);
        EXPECT_EQ(get_vector(&world, 0), VIRTIO_MSI_NO_VECTOR);
        set_common(&world, VIRTIO_PCI_COMMON_MSIX, 2, 1);
        EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_MSIX, 2), 1);
        set_common(&world, VIRTIO_PCI_COMMON_MSIX, 2, bad[i]);
        EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_MSIX, 2), VIRTIO_MSI_NO_VECTOR);
    }
    world_finish(&world);
}

TEST(virtio_pci, without_a_vector_there_is_no_interrupt_at_all)
{
    World world;

    world_init(&world);
    start(&world, true);
    set_vector(&world, 0, VIRTIO_MSI_NO_VECTOR);
    blk_guest_offer_read(&world.blk, 0);
    kick(&world, 0);
    EXPECT_EQ(blk_guest_used(&world.blk, 0), 1);
    EXPECT_EQ(fake_take_messages(&world.fake), 0);
    EXPECT_EQ(msix_pending(&world), 0);
    EXPECT_EQ(world.fake.level_changes[GSI], 0);
    EXPECT_EQ(take_isr(&world), 0);
    world_finish(&world);
}

TEST(virtio_pci, a_changed_vector_takes_effect_while_the_queue_runs)
{
    World world;

    world_init(&world);
    start(&world, true);
    set_vector(&world, 0, 3);
    blk_guest_offer_read(&world.blk, 0);
    kick(&world, 0);
    expect_message(&world, 103);
    set_vector(&world, 1, 3); /* shared */
    blk_guest_offer_read(&world.blk, 1);
    kick(&world, 1);
    expect_message(&world, 103);
    world_finish(&world);
}

TEST(virtio_pci, a_masked_queues_interrupt_waits_as_pending_bit)
{
    World world;

    world_init(&world);
    start(&world, true);
    msix_mask(&world, 2, true);
    blk_guest_offer_read(&world.blk, 1);
    kick(&world, 1);
    EXPECT_EQ(fake_take_messages(&world.fake), 0);
    EXPECT_EQ(msix_pending(&world), 1 << 2);
    msix_mask(&world, 2, false);
    expect_message(&world, 102);

    msix_control(&world, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    blk_guest_offer_read(&world.blk, 0);
    kick(&world, 0);
    EXPECT_EQ(msix_pending(&world), 1 << 1);
    set_status(&world, 0); /* the cause is gone */
    EXPECT_EQ(msix_pending(&world), 0);
    msix_control(&world, PCI_MSIX_FLAGS_ENABLE);
    EXPECT_EQ(fake_take_messages(&world.fake), 0);
    world_finish(&world);
}

/* --- INTx --- */

TEST(virtio_pci, without_msix_the_isr_bit_and_the_line_rise_and_reading_lowers_both)
{
    World world;

    world_init(&world);
    start(&world, false);
    EXPECT_EQ(take_isr(&world), 0);
    blk_guest_offer_read(&world.blk, 2);
    kick(&world, 2);
    EXPECT_TRUE(world.fake.level[GSI]);
    EXPECT_TRUE(cfg_read(&world, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT);
    EXPECT_EQ(take_isr(&world), 1);
    EXPECT_FALSE(world.fake.level[GSI]);
    EXPECT_EQ(take_isr(&world), 0);
    EXPECT_EQ(fake_take_messages(&world.fake), 0);

    blk_guest_offer_read(&world.blk, 0);
    kick(&world, 0);
    EXPECT_TRUE(world.fake.level[GSI]);
    set_status(&world, 0); /* a reset takes the interrupt back */
    EXPECT_FALSE(world.fake.level[GSI]);
    EXPECT_EQ(take_isr(&world), 0);
    world_finish(&world);
}

TEST(virtio_pci, switching_msix_on_and_off_moves_the_interrupts)
{
    World world;

    world_init(&world);
    start(&world, false);
    blk_guest_offer_read(&world.blk, 0);
    kick(&world, 0);
    EXPECT_TRUE(world.fake.level[GSI]);
    msix_on(&world);
    EXPECT_FALSE(world.fake.level[GSI]); /* a function with MSI-X does not use its pin */
    set_vector(&world, 0, 1);
    blk_guest_offer_read(&world.blk, 0);
    kick(&world, 0);
    expect_message(&world, 101);
    msix_control(&world, 0);
    EXPECT_TRUE(world.fake.level[GSI]); /* the ISR byte was not read yet */
    take_isr(&world);
    blk_guest_offer_read(&world.blk, 0);
    kick(&world, 0);
    EXPECT_EQ(fake_take_messages(&world.fake), 0);
    EXPECT_TRUE(world.fake.level[GSI]);
    EXPECT_EQ(take_isr(&world), 1);
    world_finish(&world);
}

/* --- configuration changes --- */

TEST(virtio_pci, a_configuration_change_moves_the_generation_and_interrupts_by_its_own_vector)
{
    World world;
    uint8_t generation;

    world_init(&world);
    start(&world, true);
    generation = (uint8_t)common(&world, VIRTIO_PCI_COMMON_CFGGENERATION, 1);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_CFGGENERATION, 1), generation);
    for (unsigned i = 1; i <= 300; i++) { /* 8 bits: it wraps */
        vdev_config_changed(world.blk.vdev);
        EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_CFGGENERATION, 1), (uint8_t)(generation + i));
    }
    expect_message(&world, 100);
    msix_control(&world, 0);
    vdev_config_changed(world.blk.vdev);
    EXPECT_TRUE(world.fake.level[GSI]);
    EXPECT_EQ(take_isr(&world), 2);
    world_finish(&world);
}

TEST(virtio_pci, a_broken_ring_shows_needs_reset_with_an_interrupt_and_reset_heals_it)
{
    World world;

    world_init(&world);
    start(&world, true);
    blk_guest_offer_nonsense(&world.blk, 0);
    kick(&world, 0);
    EXPECT_TRUE(get_status(&world) & VIRTIO_CONFIG_S_NEEDS_RESET);
    expect_message(&world, 100);
    blk_guest_offer_read(&world.blk, 1); /* other queues go on */
    kick(&world, 1);
    EXPECT_EQ(blk_guest_used(&world.blk, 1), 1);
    expect_message(&world, 102);
    start(&world, true);
    blk_guest_offer_read(&world.blk, 0);
    kick(&world, 0);
    EXPECT_EQ(blk_guest_used(&world.blk, 0), 1);
    expect_message(&world, 101);
    world_finish(&world);
}

TEST(virtio_pci, device_configuration_reads_in_any_part_and_writes_reach_the_device)
{
    World world;
    uint64_t base;

    world_init(&world);
    negotiate(&world, vdev_features_offered(world.blk.vdev));
    base = structure_gpa(&world, &world.device);
    EXPECT_EQ(fake_read(&world.fake, base, 8), (1 << 20) / 512);
    EXPECT_EQ(fake_read(&world.fake, base, 2), (1 << 20) / 512);
    EXPECT_EQ(fake_read(&world.fake, base + 1, 4), (1 << 20) / 512 >> 8);
    EXPECT_EQ(fake_read(&world.fake, base + offsetof(struct virtio_blk_config, num_queues), 2),
              QUEUES);
    EXPECT_EQ(fake_read(&world.fake, base + world.device.len_bytes, 8), 0);
    EXPECT_EQ(fake_read(&world.fake, base + 0xff9, 8), 0);
    fake_write(&world.fake, base, 8, 7); /* capacity is read-only */
    EXPECT_EQ(fake_read(&world.fake, base, 8), (1 << 20) / 512);
    fake_write(&world.fake, base + offsetof(struct virtio_blk_config, wce), 1, 0);
    EXPECT_EQ(fake_read(&world.fake, base + offsetof(struct virtio_blk_config, wce), 1), 0);
    fake_write(&world.fake, base + offsetof(struct virtio_blk_config, wce), 1, 1);
    EXPECT_EQ(fake_read(&world.fake, base + offsetof(struct virtio_blk_config, wce), 1), 1);
    world_finish(&world);
}

/* --- reset --- */

TEST(virtio_pci, reset_unmaps_vectors_takes_doorbells_away_and_a_second_life_works)
{
    World world;

    world_init(&world);
    for (int life = 0; life < 3; life++) {
        start(&world, true);
        blk_guest_offer_read(&world.blk, 2);
        kick(&world, 2);
        EXPECT_EQ(blk_guest_used(&world.blk, 2), 1);
        expect_message(&world, 103);
        set_status(&world, 0);
        EXPECT_EQ(get_status(&world), 0);
        EXPECT_EQ(world.fake.nb_doorbells, 0);
        for (unsigned q = 0; q < QUEUES; q++) {
            EXPECT_EQ(get_vector(&world, q), VIRTIO_MSI_NO_VECTOR);
            EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
            EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_DESCLO, 8), 0);
            EXPECT_EQ(atomic_load(&world.blk.vdev->queues[q].interrupt.fd), -1);
        }
        EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_MSIX, 2), VIRTIO_MSI_NO_VECTOR);
    }
    world_finish(&world);
}

TEST(virtio_pci, reset_with_requests_in_flight_returns_when_they_are_done)
{
    World world;

    world_init_disk(&world, "driver=null,size=1M,latency-ns=20000000");
    start(&world, true);
    blk_guest_offer_read(&world.blk, 0);
    kick(&world, 0);
    EXPECT_EQ(blk_in_flight(world.blk.blk), 1);
    set_status(&world, 0);
    EXPECT_EQ(get_status(&world), 0);
    EXPECT_EQ(blk_in_flight(world.blk.blk), 0);
    world_finish(&world);
}

TEST(virtio_pci, one_queue_is_reset_and_set_up_again_while_the_others_run)
{
    World world;

    world_init(&world);
    start(&world, true);
    set_common(&world, VIRTIO_PCI_COMMON_Q_SELECT, 2, 1);
    set_common(&world, VIRTIO_PCI_COMMON_Q_RESET, 2, 1);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_RESET, 2), 0);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 0);
    EXPECT_EQ(get_vector(&world, 1), VIRTIO_MSI_NO_VECTOR);
    EXPECT_EQ(world.fake.nb_doorbells, QUEUES - 1);
    blk_guest_offer_read(&world.blk, 0);
    kick(&world, 0);
    expect_message(&world, 101);

    set_queue(&world, 1);
    set_vector(&world, 1, 2);
    enable_queue(&world, 1);
    fake_settle(&world.fake);
    EXPECT_EQ(world.fake.nb_doorbells, QUEUES);
    blk_guest_offer_read(&world.blk, 1);
    kick(&world, 1);
    expect_message(&world, 102);
    world_finish(&world);
}

TEST(virtio_pci, without_ring_reset_negotiated_queue_reset_does_nothing)
{
    World world;

    world_init(&world);
    negotiate(&world, 1ull << VIRTIO_F_VERSION_1);
    set_queue(&world, 0);
    enable_queue(&world, 0);
    set_common(&world, VIRTIO_PCI_COMMON_Q_RESET, 2, 1);
    EXPECT_EQ(common(&world, VIRTIO_PCI_COMMON_Q_ENABLE, 2), 1);
    world_finish(&world);
}

TEST(virtio_pci, machine_reset_is_power_on_and_the_guest_starts_again)
{
    World world;

    world_init(&world);
    start(&world, true);
    aio_co_run_sync(world.fake.platform.main, reset_co, world.vpci);
    pci_host_reset(world.host);
    EXPECT_EQ(get_status(&world), 0);
    EXPECT_EQ(cfg_read(&world, world.msix_cap + PCI_MSIX_FLAGS, 2), QUEUES);
    start(&world, false);
    blk_guest_offer_read(&world.blk, 0);
    kick(&world, 0);
    EXPECT_EQ(take_isr(&world), 1);
    world_finish(&world);
}

/* --- doorbells --- */

TEST(virtio_pci, doorbells_follow_the_bar_and_leave_with_memory_decoding)
{
    World world;
    uint64_t old, to = MMIO32 + MMIO32_BYTES - 0x4000;

    world_init(&world);
    start(&world, true);
    old = notify_gpa(&world, 0);
    cfg_write(&world, PCI_BASE_ADDRESS_0, 4, to);
    EXPECT_EQ(world.fake.nb_doorbells, QUEUES);
    for (unsigned i = 0; i < QUEUES; i++) {
        EXPECT_GE(world.fake.doorbells[i].gpa, to);
    }
    EXPECT_NE(notify_gpa(&world, 0), old);
    blk_guest_offer_read(&world.blk, 0);
    fake_write(&world.fake, old, 2, 0);
    fake_settle(&world.fake);
    EXPECT_EQ(blk_guest_used(&world.blk, 0), 0);
    kick(&world, 0);
    EXPECT_EQ(blk_guest_used(&world.blk, 0), 1);

    cfg_write(&world, PCI_COMMAND, 2, 0);
    EXPECT_EQ(world.fake.nb_doorbells, 0);
    cfg_write(&world, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    EXPECT_EQ(world.fake.nb_doorbells, QUEUES);

    set_status(&world, 0); /* and stay away while the device is stopped */
    cfg_write(&world, PCI_BASE_ADDRESS_0, 4, to - 0x4000);
    EXPECT_EQ(world.fake.nb_doorbells, 0);
    start(&world, true);
    blk_guest_offer_read(&world.blk, 1);
    kick(&world, 1);
    EXPECT_EQ(blk_guest_used(&world.blk, 1), 1);
    world_finish(&world);
}

TEST(virtio_pci, without_doorbells_kicks_go_through_user_space_to_the_queue_of_the_address)
{
    World world;

    world_init(&world);
    world.fake.fail_doorbell_attach = -ENOSPC;
    start(&world, true);
    EXPECT_EQ(world.fake.nb_doorbells, 0);
    blk_guest_offer_read(&world.blk, 1);
    fake_write(&world.fake, notify_gpa(&world, 0), 2, 1); /* the value is not what counts */
    fake_settle(&world.fake);
    EXPECT_EQ(blk_guest_used(&world.blk, 1), 0);
    kick(&world, 1);
    EXPECT_EQ(blk_guest_used(&world.blk, 1), 1);

    blk_guest_offer_read(&world.blk, 0);
    fake_write(&world.fake, notify_gpa(&world, 0) + 1, 1, 0); /* beside the address */
    fake_write(&world.fake, notify_gpa(&world, QUEUES - 1) + 4, 2, 0); /* no such queue */
    fake_write(&world.fake, notify_gpa(&world, 0) + 0xffc, 4, 0);
    fake_settle(&world.fake);
    EXPECT_EQ(blk_guest_used(&world.blk, 0), 0);
    EXPECT_EQ(fake_read(&world.fake, notify_gpa(&world, 0), 4), 0);
    world_finish(&world);
}

/* --- PCI_CFG --- */

static void cfg_window(World *world, uint8_t bar, uint32_t offset, uint32_t len_bytes)
{
    cfg_write(world, world->cfg.cap + VIRTIO_PCI_CAP_BAR, 1, bar);
    cfg_write(world, world->cfg.cap + VIRTIO_PCI_CAP_OFFSET, 4, offset);
    cfg_write(world, world->cfg.cap + VIRTIO_PCI_CAP_LENGTH, 4, len_bytes);
}

TEST(virtio_pci, the_cfg_capability_reaches_registers_without_memory_decoding)
{
    World world;
    unsigned data;

    world_init(&world);
    data = world.cfg.cap + sizeof(struct virtio_pci_cap);
    cfg_write(&world, PCI_COMMAND, 2, 0);
    cfg_window(&world, (uint8_t)world.common.bar,
               world.common.offset + VIRTIO_PCI_COMMON_NUMQ, 2);
    EXPECT_EQ(cfg_read(&world, data, 2), QUEUES);
    cfg_window(&world, (uint8_t)world.common.bar,
               world.common.offset + VIRTIO_PCI_COMMON_STATUS, 1);
    cfg_write(&world, data, 1, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    EXPECT_EQ(cfg_read(&world, data, 1), VIRTIO_CONFIG_S_ACKNOWLEDGE);
    cfg_write(&world, data, 4, 0xabcdef00 | VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    EXPECT_EQ(cfg_read(&world, data, 1), VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    cfg_write(&world, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
    EXPECT_EQ(get_status(&world), VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    EXPECT_EQ(cfg_read(&world, world.common.cap + VIRTIO_PCI_CAP_OFFSET, 4),
              world.common.offset); /* other capabilities are read-only */
    cfg_write(&world, world.common.cap + VIRTIO_PCI_CAP_OFFSET, 4, 0x123);
    EXPECT_EQ(cfg_read(&world, world.common.cap + VIRTIO_PCI_CAP_OFFSET, 4), world.common.offset);
    world_finish(&world);
}

TEST(virtio_pci, the_cfg_capability_refuses_odd_windows)
{
    static const struct {
        uint8_t bar;
        uint32_t offset, len_bytes;
    } bad[] = { { 0, 0, 0 }, { 0, 0, 3 }, { 0, 0, 8 }, { 0, 1, 2 }, { 0, 2, 4 }, { 0, 0x4000, 1 },
                { 0, 0xfffffffc, 4 }, { 1, 0, 4 }, { 3, 0, 4 }, { 6, 0, 4 }, { 255, 0, 4 },
                { 2, 0x1000, 4 }, { 0, 0, 0xffffffff } };
    World world;
    unsigned data;

    world_init(&world);
    data = world.cfg.cap + sizeof(struct virtio_pci_cap);
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        cfg_window(&world, bad[i].bar, bad[i].offset, bad[i].len_bytes);
        EXPECT_EQ(cfg_read(&world, data, 4), 0xffffffff);
        cfg_write(&world, data, 4, 0);
    }
    cfg_window(&world, 2, PCI_MSIX_ENTRY_VECTOR_CTRL, 4); /* the MSI-X table is fine */
    EXPECT_EQ(cfg_read(&world, data, 4), PCI_MSIX_ENTRY_CTRL_MASKBIT);
    cfg_write(&world, data, 4, 0);
    EXPECT_EQ(cfg_read(&world, data, 4), 0);
    world_finish(&world);
}

TEST(virtio_pci, a_kick_through_the_cfg_capability_counts)
{
    World world;

    world_init(&world);
    start(&world, true);
    blk_guest_offer_read(&world.blk, 1);
    cfg_window(&world, 0, world.notify.offset + 4, 2);
    cfg_write(&world, world.cfg.cap + sizeof(struct virtio_pci_cap), 2, 1);
    fake_settle(&world.fake);
    EXPECT_EQ(blk_guest_used(&world.blk, 1), 1);
    world_finish(&world);
}

/* --- threads --- */

/* Everything that waits for main while it holds the PCI host's lock, from a vCPU's thread. */
static void vcpu_life(void *opaque)
{
    World *world = opaque;
    unsigned data = world->cfg.cap + sizeof(struct virtio_pci_cap);

    for (int i = 0; i < 20; i++) {
        start(world, i % 2);
        for (unsigned q = 0; q < QUEUES; q++) {
            blk_guest_offer_read(&world->blk, q);
            fake_write(&world->fake, notify_gpa(world, q), 2, q);
        }
        cfg_write(world, PCI_BASE_ADDRESS_0, 4, MMIO32 + 0x10000 + 0x4000 * (unsigned)(i % 3));
        cfg_write(world, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
        take_isr(world);
        cfg_window(world, 0, world->common.offset + VIRTIO_PCI_COMMON_STATUS, 1);
        cfg_write(world, data, 1, 0); /* reset, with requests in flight in the IOThreads */
        EXPECT_EQ(cfg_read(world, data, 1), 0);
        msix_control(world, 0);
    }
}

TEST(virtio_pci, a_vcpu_resets_and_moves_the_device_while_iothreads_serve_its_queues)
{
    IOThread *iot[QUEUES];
    World world;

    world_init_disk(&world, "driver=null,size=1M,latency-ns=100000");
    for (unsigned q = 0; q < QUEUES; q++) {
        iot[q] = iothread_create("test", NULL, NULL);
        ASSERT_TRUE(iot[q]);
        vdev_set_queue_context(world.blk.vdev, q, iothread_context(iot[q]));
    }
    world.fake.discard_messages = true;
    fake_in_vcpu(&world.fake, vcpu_life, &world);
    world_finish(&world);
    for (unsigned q = 0; q < QUEUES; q++) {
        iothread_unref(iot[q]);
    }
}

typedef struct IsrRace {
    World *world;
    _Atomic bool stop;
} IsrRace;

/* A level-triggered handler: while the line is up, read the ISR. */
static void *isr_thread(void *opaque)
{
    IsrRace *race = opaque;

    while (!atomic_load(&race->stop)) {
        if (fake_level(&race->world->fake, GSI)) {
            take_isr(race->world);
        } else {
            sched_yield(); /* where there are more threads than processors */
        }
    }
    return NULL;
}

/* If a read of the ISR came between the two halves of a notification, the bit would stay set with
 * the line down, and the guest would wait for ever. */
TEST(virtio_pci, no_interrupt_is_lost_between_a_notification_and_an_isr_read)
{
    World world;
    IsrRace race = { .world = &world };
    pthread_t thread;

    world_init(&world);
    start(&world, false);
    ASSERT_EQ(pthread_create(&thread, NULL, isr_thread, &race), 0);
    for (int i = 0; i < (HAVE_TSAN || HAVE_ASAN ? 500 : 3000); i++) {
        int64_t end_ns = aio_now_ns() + 10000000000;

        for (int k = 0; k < 3; k++) { /* the later ones meet the read of the first */
            world.blk.vdev->transport->notify_queue(world.vpci, 0);
        }
        while (fake_level(&world.fake, GSI)) {
            ASSERT_LT(aio_now_ns(), end_ns);
            sched_yield();
        }
        ASSERT_EQ(take_isr(&world), 0);
    }
    atomic_store(&race.stop, true);
    pthread_join(thread, NULL);
    world_finish(&world);
}

/* --- creation --- */

TEST(virtio_pci, creation_that_fails_gives_everything_back)
{
    World world;
    BlkGuest other;
    Error err = { 0 };

    world_init(&world);
    blk_guest_init(&other, &world.fake, 2, "driver=null,size=1M");
    EXPECT_FALSE(virtio_pci_create(&world.fake.platform, world.host, SLOT, other.vdev, &err));
    EXPECT_EQ(err.code, -EEXIST);
    world.fake.routes_left = 1;
    EXPECT_FALSE(virtio_pci_create(&world.fake.platform, world.host, SLOT + 1, other.vdev, &err));
    EXPECT_EQ(err.code, -ENOSPC);
    blk_guest_finish(&other);
    world_finish(&world);
}

TEST_MAIN()
