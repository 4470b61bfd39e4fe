/*
 * test-virtio-mmio.c - a driver's way through the register window, and ill-sized accesses
 */
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>

#include "devices/tests/blk-guest.h"
#include "devices/virtio-mmio.h"

#define WINDOW      0xfeb00000ull
#define GSI         20
#define QUEUES      2
#define QUEUE_RESET 0x0c0

#define STATUS_READY                                                                               \
    (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK)

typedef struct World {
    FakePlatform fake;
    BlkGuest blk;
    VirtioMmio *vmmio;
} World;

static void world_init_disk(World *world, const char *disk)
{
    Error err = { 0 };

    fake_init(&world->fake);
    blk_guest_init(&world->blk, &world->fake, QUEUES, disk);
    world->vmmio = virtio_mmio_create(&world->fake.platform, WINDOW, GSI, world->blk.vdev, &err);
    ASSERT_TRUE(world->vmmio);
}

static void world_init(World *world)
{
    world_init_disk(world, "driver=null,size=1M");
}

static co_fn void reset_co(void *opaque)
{
    virtio_mmio_co_reset(opaque);
}

static void world_finish(World *world)
{
    aio_co_run_sync(world->fake.platform.main, reset_co, world->vmmio);
    virtio_mmio_destroy(world->vmmio);
    blk_guest_finish(&world->blk);
    fake_settle(&world->fake);
    fake_finish(&world->fake);
}

static uint32_t get(World *world, unsigned reg)
{
    return (uint32_t)fake_read(&world->fake, WINDOW + reg, 4);
}

static void set(World *world, unsigned reg, uint32_t value)
{
    fake_write(&world->fake, WINDOW + reg, 4, value);
}

static void negotiate(World *world, uint64_t features)
{
    features |= blk_guest_ring_feature(&world->blk);
    set(world, VIRTIO_MMIO_STATUS, 0);
    set(world, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    set(world, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    for (unsigned i = 0; i < 2; i++) {
        set(world, VIRTIO_MMIO_DRIVER_FEATURES_SEL, i);
        set(world, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(features >> 32 * i));
    }
    set(world, VIRTIO_MMIO_STATUS, STATUS_READY);
}

static void set_queue(World *world, unsigned q)
{
    blk_guest_clear_ring(&world->blk, q);
    set(world, VIRTIO_MMIO_QUEUE_SEL, q);
    set(world, VIRTIO_MMIO_QUEUE_NUM, BLK_GUEST_RING_SIZE);
    set(world, VIRTIO_MMIO_QUEUE_DESC_LOW, BLK_GUEST_DESC(q));
    set(world, VIRTIO_MMIO_QUEUE_DESC_HIGH, 0);
    set(world, VIRTIO_MMIO_QUEUE_AVAIL_LOW, BLK_GUEST_AVAIL(q));
    set(world, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 0);
    set(world, VIRTIO_MMIO_QUEUE_USED_LOW, BLK_GUEST_USED(q));
    set(world, VIRTIO_MMIO_QUEUE_USED_HIGH, 0);
    set(world, VIRTIO_MMIO_QUEUE_READY, 1);
}

static void start(World *world)
{
    negotiate(world, 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_F_RING_RESET);
    ASSERT_EQ(get(world, VIRTIO_MMIO_STATUS), STATUS_READY);
    for (unsigned q = 0; q < QUEUES; q++) {
        set_queue(world, q);
    }
    set(world, VIRTIO_MMIO_STATUS, STATUS_READY | VIRTIO_CONFIG_S_DRIVER_OK);
    fake_settle(&world->fake);
}

static void kick(World *world, unsigned q)
{
    set(world, VIRTIO_MMIO_QUEUE_NOTIFY, q);
    fake_settle(&world->fake);
}

TEST(virtio_mmio, identifies_itself_as_a_version_2_block_device)
{
    World world;
    uint64_t features = 0;

    world_init(&world);
    EXPECT_EQ(get(&world, VIRTIO_MMIO_MAGIC_VALUE), 0x74726976);
    EXPECT_EQ(get(&world, VIRTIO_MMIO_VERSION), 2);
    EXPECT_EQ(get(&world, VIRTIO_MMIO_DEVICE_ID), 2);
    EXPECT_NE(get(&world, VIRTIO_MMIO_VENDOR_ID), 0);
    for (unsigned i = 0; i < 2; i++) {
        set(&world, VIRTIO_MMIO_DEVICE_FEATURES_SEL, i);
        features |= (uint64_t)get(&world, VIRTIO_MMIO_DEVICE_FEATURES) << 32 * i;
    }
    EXPECT_EQ(features, vdev_features_offered(world.blk.vdev));
    set(&world, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    EXPECT_EQ(get(&world, VIRTIO_MMIO_DEVICE_FEATURES), 0);
    EXPECT_EQ(get(&world, VIRTIO_MMIO_QUEUE_NUM_MAX), BLK_GUEST_RING_SIZE);
    for (unsigned reg = VIRTIO_MMIO_SHM_LEN_LOW; reg <= VIRTIO_MMIO_SHM_BASE_HIGH; reg += 4) {
        EXPECT_EQ(get(&world, reg), UINT32_MAX);
    }
    EXPECT_EQ(get(&world, VIRTIO_MMIO_GUEST_PAGE_SIZE), 0); /* legacy only */
    world_finish(&world);
}

TEST(virtio_mmio, a_driver_starts_the_queues_and_gets_an_edge_and_a_status_bit)
{
    World world;

    world_init(&world);
    start(&world);
    EXPECT_EQ(world.fake.nb_doorbells, QUEUES);
    EXPECT_EQ(get(&world, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    for (unsigned i = 1; i <= 3; i++) {
        for (unsigned q = 0; q < QUEUES; q++) {
            blk_guest_offer_read(&world.blk, q);
            kick(&world, q);
            EXPECT_EQ(blk_guest_used(&world.blk, q), i);
            EXPECT_EQ(blk_guest_status(&world.blk, q), VIRTIO_BLK_S_OK);
            EXPECT_TRUE(fake_take_edge(&world.fake, GSI));
            EXPECT_EQ(get(&world, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
            set(&world, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_CONFIG);
            EXPECT_EQ(get(&world, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
            set(&world, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
            EXPECT_EQ(get(&world, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        }
    }
    EXPECT_FALSE(fake_take_edge(&world.fake, GSI));
    world_finish(&world);
}

TEST(virtio_mmio, a_second_interrupt_comes_though_the_first_was_not_acknowledged)
{
    World world;

    world_init(&world);
    start(&world);
    blk_guest_offer_read(&world.blk, 0);
    kick(&world, 0);
    EXPECT_TRUE(fake_take_edge(&world.fake, GSI));
    blk_guest_offer_read(&world.blk, 1);
    kick(&world, 1);
    EXPECT_TRUE(fake_take_edge(&world.fake, GSI));
    world_finish(&world);
}

TEST(virtio_mmio, only_aligned_32_bit_accesses_reach_registers)
{
    World world;

    world_init(&world);
    start(&world);
    for (unsigned reg = 0; reg < VIRTIO_MMIO_CONFIG; reg++) {
        for (unsigned len_bytes = 1; len_bytes <= 8; len_bytes *= 2) {
            if (len_bytes != 4 || reg % 4 != 0) {
                EXPECT_EQ(fake_read(&world.fake, WINDOW + reg, len_bytes), 0);
                fake_write(&world.fake, WINDOW + reg, len_bytes, 0);
            }
        }
    }
    EXPECT_EQ(get(&world, VIRTIO_MMIO_STATUS), STATUS_READY | VIRTIO_CONFIG_S_DRIVER_OK);
    EXPECT_EQ(get(&world, VIRTIO_MMIO_QUEUE_READY), 1);
    EXPECT_EQ(fake_read(&world.fake, WINDOW + VIRTIO_MMIO_BYTES - 4, 8), UINT64_MAX);
    world_finish(&world);
}

TEST(virtio_mmio, a_queue_that_does_not_exist_reads_0_and_its_kick_does_nothing)
{
    World world;

    world_init(&world);
    start(&world);
    set(&world, VIRTIO_MMIO_QUEUE_SEL, 0x10000); /* not queue 0 */
    EXPECT_EQ(get(&world, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    EXPECT_EQ(get(&world, VIRTIO_MMIO_QUEUE_READY), 0);
    set(&world, VIRTIO_MMIO_QUEUE_READY, 1);
    set(&world, VIRTIO_MMIO_QUEUE_NUM, 4);
    set(&world, QUEUE_RESET, 1);
    blk_guest_offer_read(&world.blk, 0);
    kick(&world, QUEUES);
    kick(&world, 0xffff);
    EXPECT_EQ(blk_guest_used(&world.blk, 0), 0);
    kick(&world, 0);
    EXPECT_EQ(blk_guest_used(&world.blk, 0), 1);
    world_finish(&world);
}

TEST(virtio_mmio, a_queue_size_above_16_bits_is_not_taken_for_a_small_one)
{
    World world;

    world_init(&world);
    negotiate(&world, 1ull << VIRTIO_F_VERSION_1);
    set_queue(&world, 0);
    set(&world, VIRTIO_MMIO_STATUS, 0);
    negotiate(&world, 1ull << VIRTIO_F_VERSION_1);
    set(&world, VIRTIO_MMIO_QUEUE_SEL, 0);
    set(&world, VIRTIO_MMIO_QUEUE_NUM, 0x10004);
    EXPECT_NE(world.blk.vdev->queues[0].cfg_size, 4);
    world_finish(&world);
}

TEST(virtio_mmio, configuration_takes_any_size_and_its_change_moves_the_generation)
{
    World world;
    uint32_t generation;

    world_init(&world);
    start(&world);
    EXPECT_EQ(fake_read(&world.fake, WINDOW + VIRTIO_MMIO_CONFIG, 8), (1 << 20) / 512);
    EXPECT_EQ(fake_read(&world.fake, WINDOW + VIRTIO_MMIO_CONFIG + 1, 1), (1 << 20) / 512 >> 8);
    EXPECT_EQ(fake_read(&world.fake, WINDOW + VIRTIO_MMIO_BYTES - 1, 1), 0);
    generation = get(&world, VIRTIO_MMIO_CONFIG_GENERATION);
    vdev_config_changed(world.blk.vdev);
    EXPECT_NE(get(&world, VIRTIO_MMIO_CONFIG_GENERATION), generation);
    EXPECT_EQ(get(&world, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    EXPECT_TRUE(fake_take_edge(&world.fake, GSI));
    world_finish(&world);
}

TEST(virtio_mmio, one_queue_is_reset_by_either_register_and_set_up_again)
{
    World world;

    world_init(&world);
    start(&world);
    for (int by_ready = 0; by_ready < 2; by_ready++) {
        set(&world, VIRTIO_MMIO_QUEUE_SEL, 1);
        set(&world, by_ready ? VIRTIO_MMIO_QUEUE_READY : QUEUE_RESET, !by_ready);
        EXPECT_EQ(get(&world, VIRTIO_MMIO_QUEUE_READY), 0);
        EXPECT_EQ(get(&world, QUEUE_RESET), 0);
        EXPECT_EQ(world.fake.nb_doorbells, QUEUES - 1);
        set_queue(&world, 1);
        fake_settle(&world.fake);
        blk_guest_offer_read(&world.blk, 1);
        kick(&world, 1);
        EXPECT_EQ(blk_guest_used(&world.blk, 1), 1);
    }
    world_finish(&world);
}

TEST(virtio_mmio, reset_with_requests_in_flight_waits_and_a_second_life_works)
{
    World world;

    world_init_disk(&world, "driver=null,size=1M,latency-ns=10000000");
    for (int life = 0; life < 2; life++) {
        start(&world);
        blk_guest_offer_read(&world.blk, 0);
        kick(&world, 0);
        EXPECT_EQ(blk_in_flight(world.blk.blk), 1);
        set(&world, VIRTIO_MMIO_STATUS, 0);
        EXPECT_EQ(get(&world, VIRTIO_MMIO_STATUS), 0);
        EXPECT_EQ(blk_in_flight(world.blk.blk), 0);
        EXPECT_EQ(get(&world, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        EXPECT_EQ(get(&world, VIRTIO_MMIO_QUEUE_READY), 0);
        EXPECT_EQ(world.fake.nb_doorbells, 0);
    }
    world_finish(&world);
}

TEST(virtio_mmio, without_doorbells_kicks_go_through_user_space)
{
    World world;

    world_init(&world);
    world.fake.fail_doorbell_attach = -ENOSPC;
    start(&world);
    EXPECT_EQ(world.fake.nb_doorbells, 0);
    blk_guest_offer_read(&world.blk, 1);
    kick(&world, 1);
    EXPECT_EQ(blk_guest_used(&world.blk, 1), 1);
    world_finish(&world);
}

static void vcpu_life(void *opaque)
{
    World *world = opaque;

    for (int i = 0; i < 50; i++) {
        start(world);
        blk_guest_offer_read(&world->blk, 0);
        set(world, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        set(world, VIRTIO_MMIO_INTERRUPT_ACK, 3);
        set(world, VIRTIO_MMIO_STATUS, 0);
        EXPECT_EQ(get(world, VIRTIO_MMIO_STATUS), 0);
    }
}

TEST(virtio_mmio, a_vcpu_thread_starts_and_resets_the_device)
{
    World world;

    world_init(&world);
    fake_in_vcpu(&world.fake, vcpu_life, &world);
    world_finish(&world);
}

TEST(virtio_mmio, a_taken_window_is_an_error_that_leaves_nothing)
{
    World world;
    Error err = { 0 };

    world_init(&world);
    EXPECT_FALSE(virtio_mmio_create(&world.fake.platform, WINDOW + 0x100, GSI + 1,
                                    world.blk.vdev, &err));
    EXPECT_EQ(err.code, -EEXIST);
    EXPECT_EQ(world.fake.gsi_fd[GSI + 1], -1);
    world_finish(&world);
}

TEST_MAIN()
