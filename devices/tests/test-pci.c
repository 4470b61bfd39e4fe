/*
 * test-pci.c - both ways into configuration space, BARs, INTx, reset
 */
#include <linux/pci_regs.h>

#include "devices/pci.h"
#include "devices/tests/fake-platform.h"

#define ECAM         0xe0000000ull
#define MMIO32       0xc0000000ull
#define MMIO32_BYTES 0x00100000ull
#define MMIO64       0x4000000000ull
#define MMIO64_BYTES 0x100000000ull
#define SLOT         3
#define BAR0         PCI_BASE_ADDRESS_0
#define BAR2         PCI_BASE_ADDRESS_2
#define BAR3         PCI_BASE_ADDRESS_3

/* A function with a 32-bit BAR 0 of 4 KiB and a 64-bit prefetchable BAR 2 of 16 KiB. */
typedef struct TestDevice {
    PciDevice pci;
    FakePlatform *fake;
    unsigned maps[PCI_BARS], unmaps[PCI_BARS];
    uint64_t gpa[PCI_BARS]; /* of the last call */
    unsigned config_writes, config_reads;
    uint64_t written;
} TestDevice;

typedef struct World {
    FakePlatform fake;
    PciHost *host;
    TestDevice dev, other;
} World;

/* --- the devices --- */

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned len_bytes)
{
    return 0xab00 + offset;
}

static void bar_write(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value)
{
    TestDevice *dev = opaque;

    dev->written = value;
}

static void config_written(PciDevice *pci, unsigned offset, unsigned len_bytes)
{
    container_of(pci, TestDevice, pci)->config_writes++;
}

static void config_reading(PciDevice *pci, unsigned offset, unsigned len_bytes)
{
    container_of(pci, TestDevice, pci)->config_reads++;
}

static void bar_mapped(PciDevice *pci, unsigned bar, uint64_t gpa, bool enabled)
{
    TestDevice *dev = container_of(pci, TestDevice, pci);

    dev->maps[bar] += enabled;
    dev->unmaps[bar] += !enabled;
    dev->gpa[bar] = gpa;
    EXPECT_EQ(fake_read(dev->fake, gpa + 4, 2), 0xab04); /* on the bus at both calls */
}

static const BusOps bar_ops = { bar_read, bar_write };
static const PciDeviceOps device_ops = { config_written, config_reading, bar_mapped };

static unsigned intx_gsi(unsigned slot, unsigned pin)
{
    return 16 + (slot + pin) % 4;
}

static void device_init(World *world, TestDevice *dev, const char *name)
{
    static const PciDeviceIds ids = { .vendor = 0x1234, .device = 0x5678,
                                      .subsystem_vendor = 0x9abc, .subsystem = 0xdef0,
                                      .revision = 7, .class_code = 0x010203 };

    *dev = (TestDevice){ .fake = &world->fake };
    pci_device_init(&dev->pci, &device_ops, &ids, name);
    pci_use_intx(&dev->pci);
    pci_set_bar(&dev->pci, 0, 4096, false, false, &bar_ops, dev);
    pci_set_bar(&dev->pci, 2, 16384, true, true, &bar_ops, dev);
}

static void world_init(World *world)
{
    static const PciHostParams params = { ECAM, MMIO32, MMIO32_BYTES, MMIO64, MMIO64_BYTES,
                                          intx_gsi };
    Error err = { 0 };

    fake_init(&world->fake);
    world->host = pci_host_create(&world->fake.platform, &params, &err);
    ASSERT_TRUE(world->host);
    device_init(world, &world->dev, "dev");
    device_init(world, &world->other, "other");
    ASSERT_EQ(pci_host_add(world->host, &world->dev.pci, SLOT, &err), 0);
    ASSERT_EQ(pci_host_add(world->host, &world->other.pci, SLOT + 4, &err), 0);
}

static void world_finish(World *world)
{
    pci_host_remove(world->host, &world->dev.pci);
    pci_host_remove(world->host, &world->other.pci);
    pci_device_finish(&world->dev.pci);
    pci_device_finish(&world->other.pci);
    pci_host_destroy(world->host);
    fake_finish(&world->fake);
}

static uint64_t cfg_read(World *world, unsigned slot, unsigned reg, unsigned len_bytes)
{
    return fake_read(&world->fake, ECAM + slot * 0x8000ull + reg, len_bytes);
}

static void cfg_write(World *world, unsigned slot, unsigned reg, unsigned len_bytes,
                      uint64_t value)
{
    fake_write(&world->fake, ECAM + slot * 0x8000ull + reg, len_bytes, value);
}

static void cf8_select(World *world, unsigned bus, unsigned slot, unsigned function, unsigned reg)
{
    fake_out(&world->fake, 0xcf8, 4, 1u << 31 | bus << 16 | slot << 11 | function << 8 | reg);
}

static void set_command(World *world, unsigned slot, uint16_t command)
{
    cfg_write(world, slot, PCI_COMMAND, 2, command);
}

/* --- access --- */

TEST(pci, ids_and_class_read_back_through_ecam_with_all_sizes)
{
    World world;

    world_init(&world);
    EXPECT_EQ(cfg_read(&world, SLOT, 0, 2), 0x1234);
    EXPECT_EQ(cfg_read(&world, SLOT, 2, 2), 0x5678);
    EXPECT_EQ(cfg_read(&world, SLOT, 0, 4), 0x56781234);
    EXPECT_EQ(cfg_read(&world, SLOT, 1, 1), 0x12);
    EXPECT_EQ(cfg_read(&world, SLOT, 8, 4), 0x01020307);
    EXPECT_EQ(cfg_read(&world, SLOT, 0x28, 8), 0xdef09abc00000000);
    EXPECT_EQ(cfg_read(&world, SLOT, 1, 4), 0x00567812); /* misaligned */
    EXPECT_EQ(cfg_read(&world, SLOT, PCI_INTERRUPT_PIN, 1), 1);
    EXPECT_EQ(cfg_read(&world, SLOT, PCI_CONFIG_BYTES - 4, 4), 0);
    EXPECT_EQ(cfg_read(&world, SLOT, PCI_CONFIG_BYTES - 1, 2), 0xffff);
    EXPECT_EQ(cfg_read(&world, SLOT, PCI_CONFIG_BYTES - 4, 8), UINT64_MAX);
    cfg_write(&world, SLOT, PCI_CONFIG_BYTES - 4, 8, 0); /* into the next function: nowhere */
    cfg_write(&world, SLOT, 0, 4, 0xffffffff);
    EXPECT_EQ(cfg_read(&world, SLOT, 0, 4), 0x56781234);
    EXPECT_EQ(cfg_read(&world, 0, 8, 4) >> 8, 0x060000); /* a host bridge, or Linux sees no PCI */
    world_finish(&world);
}

TEST(pci, empty_slots_other_functions_and_other_buses_read_all_ones)
{
    World world;

    world_init(&world);
    EXPECT_EQ(cfg_read(&world, 1, 0, 4), 0xffffffff);
    EXPECT_EQ(cfg_read(&world, 31, 0, 8), UINT64_MAX);
    EXPECT_EQ(cfg_read(&world, SLOT, 0x1000, 2), 0xffff); /* function 1 */
    EXPECT_EQ(fake_read(&world.fake, ECAM + 0x100000, 4), 0xffffffff); /* bus 1 */
    cfg_write(&world, 1, PCI_COMMAND, 2, 0xffff);
    cf8_select(&world, 0, 31, 0, 0);
    EXPECT_EQ(fake_in(&world.fake, 0xcfc, 4), 0xffffffff);
    cf8_select(&world, 0, SLOT, 1, 0);
    EXPECT_EQ(fake_in(&world.fake, 0xcfc, 2), 0xffff);
    cf8_select(&world, 1, SLOT, 0, 0);
    EXPECT_EQ(fake_in(&world.fake, 0xcfc, 1), 0xff);
    fake_out(&world.fake, 0xcfc, 4, 0);
    world_finish(&world);
}

TEST(pci, ports_cf8_cfc_take_all_sizes_and_need_the_enable_bit)
{
    World world;
    FakePlatform *fake = &world.fake;

    world_init(&world);
    cf8_select(&world, 0, SLOT, 0, 0);
    EXPECT_EQ(fake_in(fake, 0xcf8, 4), 1u << 31 | SLOT << 11);
    EXPECT_EQ(fake_in(fake, 0xcfc, 4), 0x56781234);
    EXPECT_EQ(fake_in(fake, 0xcfe, 2), 0x5678);
    EXPECT_EQ(fake_in(fake, 0xcfd, 1), 0x12);
    EXPECT_EQ(fake_in(fake, 0xcfd, 2), 0x7812);
    EXPECT_EQ(fake_in(fake, 0xcfe, 4), 0xffffffff); /* past the port */

    fake_out(fake, 0xcf8, 2, 0); /* only a 32-bit write selects */
    EXPECT_EQ(fake_in(fake, 0xcf8, 2), 0xffff);
    EXPECT_EQ(fake_in(fake, 0xcfc, 4), 0x56781234);

    cf8_select(&world, 0, SLOT, 0, PCI_INTERRUPT_LINE);
    fake_out(fake, 0xcfc, 1, 0x5a);
    EXPECT_EQ(cfg_read(&world, SLOT, PCI_INTERRUPT_LINE, 1), 0x5a);
    cf8_select(&world, 0, SLOT, 0, PCI_CACHE_LINE_SIZE);
    fake_out(fake, 0xcfd, 1, 0x20); /* latency timer */
    EXPECT_EQ(cfg_read(&world, SLOT, PCI_CACHE_LINE_SIZE, 2), 0x2000);

    fake_out(fake, 0xcf8, 4, SLOT << 11);
    EXPECT_EQ(fake_in(fake, 0xcfc, 4), 0xffffffff);
    fake_out(fake, 0xcfc, 4, 0xffffffff);
    world_finish(&world);
}

TEST(pci, capabilities_form_a_list_with_the_newest_first)
{
    World world;
    TestDevice dev;
    unsigned first, second;

    world_init(&world);
    device_init(&world, &dev, "caps");
    EXPECT_EQ(dev.pci.config[PCI_STATUS] & PCI_STATUS_CAP_LIST, 0);
    first = pci_add_capability(&dev.pci, PCI_CAP_ID_VNDR, 17);
    second = pci_add_capability(&dev.pci, PCI_CAP_ID_MSIX, 12);
    EXPECT_EQ(second, first + 20);
    EXPECT_EQ(dev.pci.config[PCI_CAPABILITY_LIST], second);
    EXPECT_EQ(dev.pci.config[second], PCI_CAP_ID_MSIX);
    EXPECT_EQ(dev.pci.config[second + 1], first);
    EXPECT_EQ(dev.pci.config[first + 1], 0);
    EXPECT_NE(dev.pci.config[PCI_STATUS] & PCI_STATUS_CAP_LIST, 0);
    world_finish(&world);
}

TEST(pci, hooks_see_each_access_once)
{
    World world;

    world_init(&world);
    cfg_write(&world, SLOT, PCI_INTERRUPT_LINE, 1, 1);
    cfg_read(&world, SLOT, 0, 8);
    EXPECT_EQ(world.dev.config_writes, 1);
    EXPECT_EQ(world.dev.config_reads, 1);
    EXPECT_EQ(world.other.config_writes, 0);
    world_finish(&world);
}

TEST(pci, write_1_to_clear_bits_are_cleared_by_ones_only)
{
    World world;

    world_init(&world);
    world.dev.pci.config[0x80] = 0x0f;
    world.dev.pci.write_1_clear[0x80] = 0x05;
    cfg_write(&world, SLOT, 0x80, 1, 0x00);
    EXPECT_EQ(cfg_read(&world, SLOT, 0x80, 1), 0x0f);
    cfg_write(&world, SLOT, 0x80, 1, 0xff);
    EXPECT_EQ(cfg_read(&world, SLOT, 0x80, 1), 0x0a);
    world_finish(&world);
}

/* --- slots --- */

TEST(pci, slots_are_refused_when_taken_or_absent_and_found_when_free)
{
    World world;
    TestDevice more[PCI_DEVICES_MAX];
    TestDevice last;
    unsigned nb_added = 0;
    Error err = { 0 };

    world_init(&world);
    device_init(&world, &last, "last");
    EXPECT_EQ(pci_host_add(world.host, &last.pci, 0, &err), -EEXIST);
    EXPECT_EQ(pci_host_add(world.host, &last.pci, SLOT, &err), -EEXIST);
    EXPECT_TRUE(strstr(err.msg, "dev"));
    EXPECT_EQ(pci_host_add(world.host, &last.pci, PCI_DEVICES_MAX, &err), -EINVAL);
    for (; nb_added < PCI_DEVICES_MAX; nb_added++) {
        device_init(&world, &more[nb_added], "more");
        if (pci_host_add(world.host, &more[nb_added].pci, PCI_SLOT_ANY, &err) < 0) {
            break;
        }
    }
    EXPECT_EQ(nb_added, PCI_DEVICES_MAX - 3);
    EXPECT_EQ(err.code, -ENOSPC);
    EXPECT_EQ(more[0].pci.slot, 1);
    EXPECT_EQ(pci_host_assign_bars(world.host, &err), 0);
    EXPECT_EQ(world.fake.mmio.nb_ranges, 1 + 2 * (PCI_DEVICES_MAX - 1));
    while (nb_added > 0) {
        pci_host_remove(world.host, &more[--nb_added].pci);
    }
    world_finish(&world);
}

/* --- BARs --- */

TEST(pci, assigned_bars_are_aligned_apart_on_the_bus_and_answer)
{
    World world;
    Error err;

    world_init(&world);
    ASSERT_EQ(pci_host_assign_bars(world.host, &err), 0);
    for (unsigned slot = SLOT; slot <= SLOT + 4; slot += 4) {
        TestDevice *dev = slot == SLOT ? &world.dev : &world.other;
        uint64_t bar0 = cfg_read(&world, slot, BAR0, 4);
        uint64_t bar2 = cfg_read(&world, slot, BAR2, 8);

        EXPECT_EQ(bar0 % 4096, 0); /* memory, 32 bits, not prefetchable */
        EXPECT_EQ(bar2 % 16384, 0xc);
        EXPECT_GE(bar0, MMIO32);
        EXPECT_LT(bar2, MMIO32 + MMIO32_BYTES); /* low while there is room */
        EXPECT_EQ(dev->maps[0], 1);
        EXPECT_EQ(dev->maps[2], 1);
        EXPECT_EQ(dev->gpa[2], bar2 & ~0xfull);
        fake_write(&world.fake, bar0, 4, 77 + slot);
        EXPECT_EQ(dev->written, 77 + slot);
        EXPECT_EQ(fake_read(&world.fake, bar2 - 0xc + 16380, 4), 0xab00 + 16380);
        EXPECT_EQ(cfg_read(&world, slot, PCI_COMMAND, 2), PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
        EXPECT_EQ(cfg_read(&world, slot, PCI_INTERRUPT_LINE, 1), intx_gsi(slot, 0));
    }
    world_finish(&world);
}

TEST(pci, big_64_bit_bars_go_high_and_without_room_there_is_an_error)
{
    static const BusOps ops = { bar_read, bar_write };
    World world;
    TestDevice big = { 0 };
    PciDeviceIds ids = { .vendor = 1 };
    Error err = { 0 };

    world_init(&world);
    big.fake = &world.fake;
    pci_device_init(&big.pci, NULL, &ids, "big");
    pci_set_bar(&big.pci, 0, 2 * MMIO32_BYTES, true, false, &ops, &big);
    ASSERT_EQ(pci_host_add(world.host, &big.pci, 1, &err), 0);
    ASSERT_EQ(pci_host_assign_bars(world.host, &err), 0);
    EXPECT_EQ(cfg_read(&world, 1, BAR0, 8), MMIO64 | PCI_BASE_ADDRESS_MEM_TYPE_64);
    EXPECT_EQ(fake_read(&world.fake, MMIO64 + 1, 2), 0xab01);
    pci_host_remove(world.host, &big.pci);

    pci_device_init(&big.pci, NULL, &ids, "big");
    pci_set_bar(&big.pci, 0, 2 * MMIO32_BYTES, false, false, &ops, &big);
    ASSERT_EQ(pci_host_add(world.host, &big.pci, 1, &err), 0);
    EXPECT_EQ(pci_host_assign_bars(world.host, &err), -ENOSPC);
    EXPECT_TRUE(strstr(err.msg, "big"));
    pci_host_remove(world.host, &big.pci);
    world_finish(&world);
}

TEST(pci, sizing_gives_the_mask_with_decoding_on_or_off_and_the_old_address_comes_back)
{
    World world;

    world_init(&world);
    ASSERT_EQ(pci_host_assign_bars(world.host, NULL), 0);
    for (int decoding = 0; decoding < 2; decoding++) {
        uint64_t bar0 = cfg_read(&world, SLOT, BAR0, 4);
        uint64_t bar2 = cfg_read(&world, SLOT, BAR2, 8);

        set_command(&world, SLOT, decoding ? PCI_COMMAND_MEMORY : 0);
        EXPECT_EQ(fake_read(&world.fake, bar0, 4), decoding ? 0xab00 : 0xffffffff);
        cfg_write(&world, SLOT, BAR0, 4, 0xffffffff);
        EXPECT_EQ(cfg_read(&world, SLOT, BAR0, 4), 0xfffff000);
        cfg_write(&world, SLOT, BAR2, 4, 0xffffffff);
        EXPECT_EQ(cfg_read(&world, SLOT, BAR2, 4), 0xffffc00c);
        cfg_write(&world, SLOT, BAR3, 4, 0xffffffff);
        EXPECT_EQ(cfg_read(&world, SLOT, BAR3, 4), 0xffffffff);
        cfg_write(&world, SLOT, PCI_BASE_ADDRESS_1, 4, 0xffffffff);
        EXPECT_EQ(cfg_read(&world, SLOT, PCI_BASE_ADDRESS_1, 4), 0); /* absent */
        EXPECT_EQ(fake_read(&world.fake, 0xfffff000, 4), 0xffffffff); /* no window: not decoded */

        cfg_write(&world, SLOT, BAR0, 4, bar0);
        cfg_write(&world, SLOT, BAR2, 8, bar2);
        set_command(&world, SLOT, PCI_COMMAND_MEMORY);
        EXPECT_EQ(fake_read(&world.fake, bar0, 4), 0xab00);
        EXPECT_EQ(fake_read(&world.fake, bar2 & ~0xfull, 4), 0xab00);
    }
    world_finish(&world);
}

TEST(pci, a_moved_bar_answers_at_its_new_place_only_and_tells_its_device)
{
    World world;
    uint64_t old, to = MMIO32 + MMIO32_BYTES - 4096;

    world_init(&world);
    ASSERT_EQ(pci_host_assign_bars(world.host, NULL), 0);
    old = cfg_read(&world, SLOT, BAR0, 4);
    cfg_write(&world, SLOT, BAR0, 4, to);
    EXPECT_EQ(fake_read(&world.fake, old, 4), 0xffffffff);
    EXPECT_EQ(fake_read(&world.fake, to, 4), 0xab00);
    EXPECT_EQ(world.dev.unmaps[0], 1);
    EXPECT_EQ(world.dev.maps[0], 2);
    EXPECT_EQ(world.dev.gpa[0], to);

    cfg_write(&world, SLOT, BAR0, 4, to | 0xfff); /* low bits are not there */
    EXPECT_EQ(cfg_read(&world, SLOT, BAR0, 4), to);
    EXPECT_EQ(world.dev.maps[0], 2); /* not moved */

    cfg_write(&world, SLOT, BAR2, 4, 0x10000000); /* 64 bits in two halves */
    cfg_write(&world, SLOT, BAR3, 4, MMIO64 >> 32);
    EXPECT_EQ(fake_read(&world.fake, MMIO64 + 0x10000000, 4), 0xab00);
    cfg_write(&world, SLOT, BAR2, 8, MMIO64 + MMIO64_BYTES - 8192); /* masked to 16 KiB */
    EXPECT_EQ(fake_read(&world.fake, MMIO64 + MMIO64_BYTES - 16384, 4), 0xab00);
    world_finish(&world);
}

TEST(pci, a_bar_moved_onto_another_stays_off_until_it_moves_on_or_the_other_leaves)
{
    World world;
    uint64_t mine, theirs;

    world_init(&world);
    ASSERT_EQ(pci_host_assign_bars(world.host, NULL), 0);
    mine = cfg_read(&world, SLOT, BAR0, 4);
    theirs = cfg_read(&world, SLOT + 4, BAR0, 4);
    cfg_write(&world, SLOT, BAR0, 4, theirs);
    EXPECT_EQ(fake_read(&world.fake, mine, 4), 0xffffffff);
    fake_write(&world.fake, theirs, 4, 1);
    EXPECT_EQ(world.other.written, 1); /* who was there first */
    EXPECT_EQ(cfg_read(&world, SLOT, BAR0, 4), theirs);

    cfg_write(&world, SLOT, BAR0, 4, mine); /* roll back */
    fake_write(&world.fake, mine, 4, 2);
    EXPECT_EQ(world.dev.written, 2);

    cfg_write(&world, SLOT, BAR0, 4, theirs); /* swap */
    cfg_write(&world, SLOT + 4, BAR0, 4, mine);
    fake_write(&world.fake, theirs, 4, 3);
    fake_write(&world.fake, mine, 4, 4);
    EXPECT_EQ(world.dev.written, 3);
    EXPECT_EQ(world.other.written, 4);
    world_finish(&world);
}

TEST(pci, a_bar_outside_the_windows_or_across_their_end_is_not_decoded)
{
    static const uint64_t places[] = { 0, 0x1000, ECAM, MMIO32 - 4096, MMIO32 + MMIO32_BYTES,
                                       0xfee00000 };
    World world;

    world_init(&world);
    ASSERT_EQ(pci_host_assign_bars(world.host, NULL), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        cfg_write(&world, SLOT, BAR0, 4, places[i]);
        EXPECT_NE(fake_read(&world.fake, places[i] + 8, 2), 0xab08);
    }
    cfg_write(&world, SLOT, BAR2, 8, UINT64_MAX);
    cfg_write(&world, SLOT, BAR2, 8, MMIO64 - 16384);
    EXPECT_EQ(world.dev.maps[0], 1);
    EXPECT_EQ(world.dev.maps[2], 1);
    EXPECT_EQ(cfg_read(&world, SLOT, 0, 2), 0x1234); /* ECAM still answers */
    world_finish(&world);
}

/* --- INTx --- */

TEST(pci, intx_raises_the_line_shows_in_status_and_obeys_the_disable_bit)
{
    World world;
    FakePlatform *fake = &world.fake;
    unsigned gsi = intx_gsi(SLOT, 0);

    world_init(&world);
    EXPECT_FALSE(cfg_read(&world, SLOT, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT);
    pci_set_intx(&world.dev.pci, true);
    pci_set_intx(&world.dev.pci, true);
    EXPECT_TRUE(fake->level[gsi]);
    EXPECT_EQ(fake->level_changes[gsi], 1);
    EXPECT_TRUE(cfg_read(&world, SLOT, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT);
    EXPECT_TRUE(cfg_read(&world, SLOT, PCI_COMMAND, 4) >> 16 & PCI_STATUS_INTERRUPT);

    set_command(&world, SLOT, PCI_COMMAND_INTX_DISABLE);
    EXPECT_FALSE(fake->level[gsi]);
    EXPECT_TRUE(cfg_read(&world, SLOT, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT);
    set_command(&world, SLOT, 0);
    EXPECT_TRUE(fake->level[gsi]);
    set_command(&world, SLOT, PCI_COMMAND_INTX_DISABLE);
    pci_set_intx(&world.dev.pci, false);
    set_command(&world, SLOT, 0);
    EXPECT_FALSE(fake->level[gsi]);
    EXPECT_FALSE(cfg_read(&world, SLOT, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT);
    world_finish(&world);
}

TEST(pci, functions_that_share_a_line_hold_it_up_together)
{
    World world;
    FakePlatform *fake = &world.fake;
    unsigned gsi = intx_gsi(SLOT, 0);

    world_init(&world);
    ASSERT_EQ(gsi, intx_gsi(SLOT + 4, 0));
    pci_set_intx(&world.dev.pci, true);
    pci_set_intx(&world.other.pci, true);
    pci_set_intx(&world.dev.pci, false);
    EXPECT_TRUE(fake->level[gsi]);
    pci_set_intx(&world.other.pci, false);
    EXPECT_FALSE(fake->level[gsi]);
    EXPECT_EQ(fake->level_changes[gsi], 2);
    world_finish(&world);
}

/* --- reset --- */

TEST(pci, reset_undoes_what_the_guest_wrote_and_assigns_the_same_bars_again)
{
    World world;
    uint64_t bar0, bar2;

    world_init(&world);
    ASSERT_EQ(pci_host_assign_bars(world.host, NULL), 0);
    bar0 = cfg_read(&world, SLOT, BAR0, 4);
    bar2 = cfg_read(&world, SLOT, BAR2, 8);
    cfg_write(&world, SLOT, BAR0, 4, MMIO32 + MMIO32_BYTES - 4096);
    cfg_write(&world, SLOT, BAR2, 8, 0);
    cfg_write(&world, SLOT, PCI_INTERRUPT_LINE, 1, 0xaa);
    cfg_write(&world, SLOT, PCI_CACHE_LINE_SIZE, 1, 0x10);
    set_command(&world, SLOT, PCI_COMMAND_MEMORY | PCI_COMMAND_INTX_DISABLE);
    cf8_select(&world, 0, SLOT, 0, 0);

    pci_host_reset(world.host);
    EXPECT_EQ(fake_in(&world.fake, 0xcf8, 4), 0);
    EXPECT_EQ(cfg_read(&world, SLOT, BAR0, 4), bar0);
    EXPECT_EQ(cfg_read(&world, SLOT, BAR2, 8), bar2);
    EXPECT_EQ(cfg_read(&world, SLOT, PCI_CACHE_LINE_SIZE, 1), 0);
    EXPECT_EQ(cfg_read(&world, SLOT, PCI_INTERRUPT_LINE, 1), intx_gsi(SLOT, 0));
    EXPECT_EQ(cfg_read(&world, SLOT, PCI_COMMAND, 2), PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    EXPECT_EQ(fake_read(&world.fake, bar0, 4), 0xab00);
    EXPECT_EQ(fake_read(&world.fake, bar2 & ~0xfull, 4), 0xab00);
    pci_set_intx(&world.dev.pci, true);
    EXPECT_TRUE(world.fake.level[intx_gsi(SLOT, 0)]); /* INTX_DISABLE is gone, too */
    world_finish(&world);
}

TEST(pci, ports_that_are_taken_fail_the_creation_and_leave_nothing)
{
    static const PciHostParams params = { ECAM, MMIO32, MMIO32_BYTES, 0, 0, intx_gsi };
    static const BusOps ops = { bar_read, bar_write };
    BusRange in_the_way = { .base = 0xcfc, .len_bytes = 4, .ops = &ops, .name = "squatter" };
    FakePlatform fake;
    Error err = { 0 };

    fake_init(&fake);
    ASSERT_EQ(bus_add(&fake.pio, &in_the_way, NULL), 0);
    EXPECT_FALSE(pci_host_create(&fake.platform, &params, &err));
    EXPECT_EQ(err.code, -EEXIST);
    EXPECT_TRUE(strstr(err.msg, "squatter"));
    EXPECT_EQ(fake.pio.nb_ranges, 1);
    bus_remove(&fake.pio, 0xcfc);
    fake_finish(&fake);
}

TEST_MAIN()
