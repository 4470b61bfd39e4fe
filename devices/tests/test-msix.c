/*
 * test-msix.c - masks, pending bits, accesses of every size, vectors that do not exist
 */
#include <linux/pci_regs.h>

#include "devices/msix.h"
#include "devices/tests/fake-platform.h"

#define ECAM    0xe0000000ull
#define MMIO32  0xc0000000ull
#define SLOT    1
#define VECTORS 5
#define UNMASK  0

typedef struct World {
    FakePlatform fake;
    PciHost *host;
    PciDevice pci;
    Msix msix;
    uint64_t bar;
    unsigned enable_changes;
} World;

static void config_written(PciDevice *pci, unsigned offset, unsigned len_bytes)
{
    World *world = container_of(pci, World, pci);

    world->enable_changes += msix_config_written(&world->msix, offset, len_bytes);
}

static const PciDeviceOps device_ops = { .config_written = config_written };

static unsigned intx_gsi(unsigned slot, unsigned pin)
{
    return 16;
}

static void world_init(World *world)
{
    static const PciHostParams params = { ECAM, MMIO32, 0x100000, 0, 0, intx_gsi };
    static const PciDeviceIds ids = { .vendor = 1 };

    *world = (World){ .host = NULL };
    fake_init(&world->fake);
    world->host = pci_host_create(&world->fake.platform, &params, NULL);
    pci_device_init(&world->pci, &device_ops, &ids, "dev");
    pci_set_bar(&world->pci, 2, MSIX_BAR_BYTES, false, false, &msix_bar_ops, &world->msix);
    ASSERT_EQ(msix_init(&world->msix, &world->pci, &world->fake.platform, VECTORS, 2, NULL), 0);
    ASSERT_EQ(pci_host_add(world->host, &world->pci, SLOT, NULL), 0);
    ASSERT_EQ(pci_host_assign_bars(world->host, NULL), 0);
    world->bar = world->pci.bars[2].mapped_gpa;
}

static void world_finish(World *world)
{
    pci_host_remove(world->host, &world->pci);
    msix_finish(&world->msix);
    pci_host_destroy(world->host);
    fake_finish(&world->fake);
}

static uint64_t cap(World *world)
{
    return ECAM + SLOT * 0x8000 + world->msix.cap_offset;
}

static void set_control(World *world, uint16_t control)
{
    fake_write(&world->fake, cap(world) + PCI_MSIX_FLAGS, 2, control);
}

static void set_entry(World *world, unsigned vector, uint64_t address, uint32_t data,
                      uint32_t control)
{
    uint64_t entry = world->bar + vector * PCI_MSIX_ENTRY_SIZE;

    fake_write(&world->fake, entry + PCI_MSIX_ENTRY_LOWER_ADDR, 4, (uint32_t)address);
    fake_write(&world->fake, entry + PCI_MSIX_ENTRY_UPPER_ADDR, 4, address >> 32);
    fake_write(&world->fake, entry + PCI_MSIX_ENTRY_DATA, 4, data);
    fake_write(&world->fake, entry + PCI_MSIX_ENTRY_VECTOR_CTRL, 4, control);
}

static void set_mask(World *world, unsigned vector, uint32_t control)
{
    fake_write(&world->fake,
               world->bar + vector * PCI_MSIX_ENTRY_SIZE + PCI_MSIX_ENTRY_VECTOR_CTRL, 4, control);
}

static uint64_t pending(World *world)
{
    return fake_read(&world->fake, world->bar + MSIX_PBA_OFFSET, 8);
}

/* Collect messages: exactly one, with this data. */
static void expect_message(World *world, uint64_t address, uint32_t data)
{
    ASSERT_EQ(fake_take_messages(&world->fake), 1);
    EXPECT_EQ(world->fake.messages[0].address, address);
    EXPECT_EQ(world->fake.messages[0].data, data);
}

TEST(msix, capability_tells_vectors_table_and_pending_bits_and_all_start_masked)
{
    World world;

    world_init(&world);
    EXPECT_EQ(fake_read(&world.fake, cap(&world), 1), PCI_CAP_ID_MSIX);
    EXPECT_EQ(fake_read(&world.fake, cap(&world) + PCI_MSIX_FLAGS, 2), VECTORS - 1);
    EXPECT_EQ(fake_read(&world.fake, cap(&world) + PCI_MSIX_TABLE, 4), 2);
    EXPECT_EQ(fake_read(&world.fake, cap(&world) + PCI_MSIX_PBA, 4), MSIX_PBA_OFFSET | 2);
    for (unsigned i = 0; i < VECTORS; i++) {
        EXPECT_EQ(fake_read(&world.fake, world.bar + i * 16 + PCI_MSIX_ENTRY_VECTOR_CTRL, 4), 1);
    }
    set_control(&world, 0xffff);
    EXPECT_EQ(fake_read(&world.fake, cap(&world) + PCI_MSIX_FLAGS, 2), 0xc000 | (VECTORS - 1));
    EXPECT_TRUE(msix_enabled(&world.msix));
    set_control(&world, 0);
    EXPECT_FALSE(msix_enabled(&world.msix));
    EXPECT_EQ(world.enable_changes, 2);
    world_finish(&world);
}

TEST(msix, an_enabled_unmasked_vector_sends_its_message)
{
    World world;

    world_init(&world);
    set_entry(&world, 2, 0x1fee00000, 0x4041, UNMASK);
    msix_signal(&world.msix, 2);
    EXPECT_EQ(fake_take_messages(&world.fake), 0); /* not enabled */
    set_control(&world, PCI_MSIX_FLAGS_ENABLE);
    expect_message(&world, 0x1fee00000, 0x4041);
    msix_signal(&world.msix, 2);
    expect_message(&world, 0x1fee00000, 0x4041);
    EXPECT_EQ(pending(&world), 0);
    EXPECT_EQ(fake_read(&world.fake, world.bar + 2 * 16, 8), 0x1fee00000);
    EXPECT_EQ(fake_read(&world.fake, world.bar + 2 * 16 + 8, 8), 0x4041);
    world_finish(&world);
}

TEST(msix, a_masked_vector_becomes_pending_and_is_delivered_once_at_unmask)
{
    World world;

    world_init(&world);
    set_control(&world, PCI_MSIX_FLAGS_ENABLE);
    set_entry(&world, 3, 0xfee00000, 33, UNMASK);
    set_mask(&world, 3, PCI_MSIX_ENTRY_CTRL_MASKBIT);
    msix_signal(&world.msix, 3);
    msix_signal(&world.msix, 3);
    EXPECT_EQ(fake_take_messages(&world.fake), 0);
    EXPECT_EQ(pending(&world), 1 << 3);
    fake_write(&world.fake, world.bar + MSIX_PBA_OFFSET, 8, 0); /* read-only */
    EXPECT_EQ(pending(&world), 1 << 3);
    set_mask(&world, 3, UNMASK);
    expect_message(&world, 0xfee00000, 33);
    EXPECT_EQ(pending(&world), 0);
    EXPECT_EQ(fake_take_messages(&world.fake), 0);
    world_finish(&world);
}

TEST(msix, the_function_mask_holds_all_vectors_back)
{
    World world;

    world_init(&world);
    set_control(&world, PCI_MSIX_FLAGS_ENABLE);
    set_entry(&world, 0, 0xfee00000, 10, UNMASK);
    set_entry(&world, 4, 0xfee00000, 14, UNMASK);
    set_control(&world, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    msix_signal(&world.msix, 0);
    msix_signal(&world.msix, 1); /* masked itself */
    msix_signal(&world.msix, 4);
    EXPECT_EQ(fake_take_messages(&world.fake), 0);
    EXPECT_EQ(pending(&world), 1 << 0 | 1 << 1 | 1 << 4);
    set_control(&world, PCI_MSIX_FLAGS_ENABLE);
    EXPECT_EQ(fake_take_messages(&world.fake), 2);
    EXPECT_EQ(pending(&world), 1 << 1);
    EXPECT_EQ(world.enable_changes, 1);
    world_finish(&world);
}

TEST(msix, what_is_pending_can_be_cleared_and_is_not_delivered_then)
{
    World world;

    world_init(&world);
    set_control(&world, PCI_MSIX_FLAGS_ENABLE);
    msix_signal(&world.msix, 1);
    EXPECT_EQ(pending(&world), 1 << 1);
    msix_clear_pending(&world.msix);
    EXPECT_EQ(pending(&world), 0);
    set_entry(&world, 1, 0xfee00000, 5, UNMASK);
    EXPECT_EQ(fake_take_messages(&world.fake), 0);
    world_finish(&world);
}

TEST(msix, a_message_changed_while_unmasked_takes_effect)
{
    World world;

    world_init(&world);
    set_control(&world, PCI_MSIX_FLAGS_ENABLE);
    set_entry(&world, 1, 0xfee00000, 5, UNMASK);
    fake_write(&world.fake, world.bar + 16 + PCI_MSIX_ENTRY_DATA, 4, 6);
    fake_write(&world.fake, world.bar + 16, 8, 0x2fee01003); /* low two bits are not there */
    msix_signal(&world.msix, 1);
    expect_message(&world, 0x2fee01000, 6);
    world_finish(&world);
}

TEST(msix, ill_sized_and_out_of_range_accesses_do_nothing)
{
    static const struct {
        unsigned offset, len_bytes;
    } bad[] = { { 0, 1 }, { 0, 2 }, { 2, 4 }, { 4, 8 }, { 12, 8 }, { 13, 1 }, { 12, 2 },
                { MSIX_PBA_OFFSET, 1 }, { MSIX_PBA_OFFSET + 4, 8 } };
    World world;

    world_init(&world);
    set_entry(&world, 0, 0xfee00000, 1, PCI_MSIX_ENTRY_CTRL_MASKBIT);
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        uint64_t ones = UINT64_MAX >> (64 - 8 * bad[i].len_bytes);

        EXPECT_EQ(fake_read(&world.fake, world.bar + bad[i].offset, bad[i].len_bytes), ones);
        fake_write(&world.fake, world.bar + bad[i].offset, bad[i].len_bytes, 0);
    }
    EXPECT_EQ(fake_read(&world.fake, world.bar, 8), 0xfee00000);
    EXPECT_EQ(fake_read(&world.fake, world.bar + 8, 8), 1ull << 32 | 1);

    fake_write(&world.fake, world.bar + VECTORS * 16, 4, 1); /* between table and PBA */
    EXPECT_EQ(fake_read(&world.fake, world.bar + VECTORS * 16, 4), 0);
    EXPECT_EQ(fake_read(&world.fake, world.bar + MSIX_BAR_BYTES - 8, 8), 0);
    EXPECT_EQ(msix_vector_fd(&world.msix, VECTORS), -1);
    EXPECT_EQ(msix_vector_fd(&world.msix, 0xffff), -1);
    EXPECT_GE(msix_vector_fd(&world.msix, VECTORS - 1), 0);
    msix_signal(&world.msix, VECTORS);
    world_finish(&world);
}

TEST(msix, a_vector_the_platform_refuses_stays_pending_until_it_agrees)
{
    World world;

    world_init(&world);
    set_control(&world, PCI_MSIX_FLAGS_ENABLE);
    world.fake.fail_msi_attach = -EINVAL;
    set_entry(&world, 1, 0xdead00000000, 5, UNMASK);
    msix_signal(&world.msix, 1);
    EXPECT_EQ(pending(&world), 1 << 1);
    world.fake.fail_msi_attach = 0;
    set_mask(&world, 1, UNMASK);
    expect_message(&world, 0xdead00000000, 5);

    world.fake.fail_msi_attach = -EINVAL;
    fake_write(&world.fake, world.bar + 16, 4, 0x1000); /* a change refused detaches */
    msix_signal(&world.msix, 1);
    EXPECT_EQ(pending(&world), 1 << 1);
    EXPECT_EQ(fake_take_messages(&world.fake), 0);
    world_finish(&world);
}

TEST(msix, reset_masks_detaches_and_forgets)
{
    World world;

    world_init(&world);
    set_control(&world, PCI_MSIX_FLAGS_ENABLE);
    set_entry(&world, 1, 0xfee00000, 5, UNMASK);
    msix_signal(&world.msix, 2);
    msix_reset(&world.msix);
    EXPECT_FALSE(msix_enabled(&world.msix));
    EXPECT_EQ(fake_read(&world.fake, cap(&world) + PCI_MSIX_FLAGS, 2), VECTORS - 1);
    EXPECT_EQ(fake_read(&world.fake, world.bar + 16, 8), 0);
    EXPECT_EQ(fake_read(&world.fake, world.bar + 24, 8), 1ull << 32);
    EXPECT_EQ(pending(&world), 0);
    set_control(&world, PCI_MSIX_FLAGS_ENABLE);
    msix_signal(&world.msix, 1);
    EXPECT_EQ(fake_take_messages(&world.fake), 0);
    world_finish(&world);
}

TEST(msix, creation_that_fails_half_way_gives_everything_back)
{
    for (int left = 0; left < VECTORS; left++) {
        static const PciDeviceIds ids = { .vendor = 1 };
        FakePlatform fake;
        PciDevice pci;
        Msix msix;
        Error err = { 0 };

        fake_init(&fake);
        fake.routes_left = left;
        pci_device_init(&pci, NULL, &ids, "dev");
        EXPECT_EQ(msix_init(&msix, &pci, &fake.platform, VECTORS, 0, &err), -ENOSPC);
        EXPECT_EQ(err.code, -ENOSPC);
        msix_finish(&msix);
        fake_finish(&fake);
    }
}

TEST_MAIN()
