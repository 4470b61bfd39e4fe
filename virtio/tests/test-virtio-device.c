/*
 * test-virtio-device.c - the device's state machine, as registers drive it
 */
#include <pthread.h>

#include "io/base/test.h"
#include "virtio/tests/test-device.h"

#define QUEUE_SIZE 16

#define ACK     VIRTIO_CONFIG_S_ACKNOWLEDGE
#define DRIVER  VIRTIO_CONFIG_S_DRIVER
#define FEAT_OK VIRTIO_CONFIG_S_FEATURES_OK
#define DRV_OK  VIRTIO_CONFIG_S_DRIVER_OK
#define FAILED  VIRTIO_CONFIG_S_FAILED
#define NEEDS   VIRTIO_CONFIG_S_NEEDS_RESET

#define VERSION_1 FEATURE(VIRTIO_F_VERSION_1)

static TestDevice dev;
static Guest guest;
static RingDriver ring;
static uint64_t buf_gpa;

static uint8_t write_status(uint8_t status)
{
    dev_set_status(&dev.vdev, status);
    return vdev_status(&dev.vdev);
}

/* FEATURES_OK with a ring ready to be enabled. */
static void configure(uint64_t features)
{
    test_device_init(&dev, &guest, 4, QUEUE_SIZE);
    ASSERT_TRUE(dev_negotiate(&dev.vdev, VERSION_1 | features));
    ring_init(&ring, &guest, &dev.vdev, 0, QUEUE_SIZE);
    buf_gpa = guest_alloc(&guest, 4096, 4096);
}

static void begin(uint64_t features)
{
    configure(features);
    dev_enable_queue(&dev.vdev, 0);
    dev_driver_ok(&dev.vdev);
    dev_settle();
}

static void end(void)
{
    ring_finish(&ring);
    test_device_finish(&dev, &guest);
}

static void add_and_publish(void)
{
    ring_add(&ring, (RingBuf[]){ { buf_gpa, 8, true } }, 1);
    ring_publish(&ring);
}

/* --- status and features --- */

TEST(vdev, starts_with_status_zero_and_takes_the_steps_in_order)
{
    test_device_init(&dev, &guest, 1, QUEUE_SIZE);
    EXPECT_EQ(vdev_status(&dev.vdev), 0);
    EXPECT_EQ(write_status(ACK), ACK);
    EXPECT_EQ(write_status(ACK | DRIVER), ACK | DRIVER);
    dev_write_features(&dev.vdev, VERSION_1);
    EXPECT_EQ(write_status(ACK | DRIVER | FEAT_OK), ACK | DRIVER | FEAT_OK);
    EXPECT_EQ(write_status(ACK | DRIVER | FEAT_OK | DRV_OK), ACK | DRIVER | FEAT_OK | DRV_OK);
    EXPECT_TRUE(dev.vdev.running);
    EXPECT_EQ(write_status(0), 0);
    EXPECT_FALSE(dev.vdev.running);
    test_device_finish(&dev, &guest);
}

TEST(vdev, a_step_that_skips_another_is_ignored)
{
    test_device_init(&dev, &guest, 1, QUEUE_SIZE);
    dev_write_features(&dev.vdev, VERSION_1);
    EXPECT_EQ(write_status(DRIVER), 0);
    EXPECT_EQ(write_status(ACK | FEAT_OK), ACK);
    EXPECT_EQ(write_status(ACK | DRV_OK), ACK);
    EXPECT_EQ(write_status(ACK | DRIVER | DRV_OK), ACK | DRIVER);
    EXPECT_FALSE(dev.vdev.running);
    test_device_finish(&dev, &guest);
}

TEST(vdev, several_steps_in_one_write_are_taken_in_order)
{
    test_device_init(&dev, &guest, 1, QUEUE_SIZE);
    dev_write_features(&dev.vdev, VERSION_1);
    EXPECT_EQ(write_status(ACK | DRIVER | FEAT_OK | DRV_OK), ACK | DRIVER | FEAT_OK | DRV_OK);
    EXPECT_TRUE(dev.vdev.running);
    test_device_finish(&dev, &guest);
}

TEST(vdev, a_driver_cannot_clear_a_bit_or_set_needs_reset)
{
    test_device_init(&dev, &guest, 1, QUEUE_SIZE);
    EXPECT_EQ(write_status(ACK | DRIVER), ACK | DRIVER);
    EXPECT_EQ(write_status(ACK), ACK | DRIVER);
    EXPECT_EQ(write_status(ACK | DRIVER | NEEDS), ACK | DRIVER);
    test_device_finish(&dev, &guest);
}

TEST(vdev, a_write_that_clears_a_bit_sets_none_either)
{
    test_device_init(&dev, &guest, 1, QUEUE_SIZE);
    dev_write_features(&dev.vdev, VERSION_1);
    EXPECT_EQ(write_status(ACK | DRIVER), ACK | DRIVER);
    EXPECT_EQ(write_status(ACK | FEAT_OK), ACK | DRIVER);
    EXPECT_EQ(write_status(DRIVER | FEAT_OK | DRV_OK), ACK | DRIVER);
    EXPECT_FALSE(dev.vdev.running);
    EXPECT_EQ(write_status(ACK | DRIVER | FEAT_OK), ACK | DRIVER | FEAT_OK);
    test_device_finish(&dev, &guest);
}

TEST(vdev, after_failed_only_a_reset_helps)
{
    test_device_init(&dev, &guest, 1, QUEUE_SIZE);
    dev_write_features(&dev.vdev, VERSION_1);
    EXPECT_EQ(write_status(ACK | DRIVER), ACK | DRIVER);
    EXPECT_EQ(write_status(ACK | DRIVER | FAILED), ACK | DRIVER | FAILED);
    EXPECT_EQ(write_status(ACK | DRIVER | FEAT_OK), ACK | DRIVER | FAILED);
    EXPECT_EQ(write_status(0), 0);
    test_device_finish(&dev, &guest);
}

TEST(vdev, features_that_were_not_offered_are_refused)
{
    test_device_init(&dev, &guest, 1, QUEUE_SIZE);
    EXPECT_FALSE(dev_negotiate(&dev.vdev, VERSION_1 | FEATURE(5)));
    EXPECT_EQ(vdev_status(&dev.vdev), ACK | DRIVER);
    EXPECT_FALSE(dev_negotiate(&dev.vdev, VERSION_1 | FEATURE(63)));
    EXPECT_EQ(dev.set_features, 0);
    /* the driver may think again without a reset */
    dev_write_features(&dev.vdev, VERSION_1);
    EXPECT_EQ(write_status(ACK | DRIVER | FEAT_OK), ACK | DRIVER | FEAT_OK);
    test_device_finish(&dev, &guest);
}

TEST(vdev, features_without_version_1_are_refused)
{
    test_device_init(&dev, &guest, 1, QUEUE_SIZE);
    EXPECT_FALSE(dev_negotiate(&dev.vdev, FEATURE(TEST_DEVICE_FEATURE)));
    EXPECT_FALSE(dev_negotiate(&dev.vdev, 0));
    test_device_finish(&dev, &guest);
}

TEST(vdev, the_device_type_may_veto_features)
{
    test_device_init(&dev, &guest, 1, QUEUE_SIZE);
    EXPECT_FALSE(dev_negotiate(&dev.vdev, VERSION_1 | FEATURE(TEST_DEVICE_FEATURE_BAD)));
    EXPECT_EQ(dev.set_features, 0);
    test_device_finish(&dev, &guest);
}

TEST(vdev, features_take_effect_with_features_ok_and_go_with_a_reset)
{
    test_device_init(&dev, &guest, 1, QUEUE_SIZE);
    write_status(ACK | DRIVER);
    dev_write_features(&dev.vdev, VERSION_1 | FEATURE(TEST_DEVICE_FEATURE));
    EXPECT_FALSE(vdev_has_feature(&dev.vdev, TEST_DEVICE_FEATURE));
    write_status(ACK | DRIVER | FEAT_OK);
    EXPECT_TRUE(vdev_has_feature(&dev.vdev, TEST_DEVICE_FEATURE));
    EXPECT_EQ(dev.set_features, VERSION_1 | FEATURE(TEST_DEVICE_FEATURE));
    write_status(0);
    EXPECT_FALSE(vdev_has_feature(&dev.vdev, TEST_DEVICE_FEATURE));
    EXPECT_EQ(dev.set_features, 0);
    EXPECT_EQ(vdev_driver_features_read(&dev.vdev, 1), 0);
    test_device_finish(&dev, &guest);
}

TEST(vdev, feature_writes_after_features_ok_are_ignored)
{
    test_device_init(&dev, &guest, 1, QUEUE_SIZE);
    ASSERT_TRUE(dev_negotiate(&dev.vdev, VERSION_1));
    dev_write_features(&dev.vdev, VERSION_1 | FEATURE(TEST_DEVICE_FEATURE));
    EXPECT_FALSE(vdev_has_feature(&dev.vdev, TEST_DEVICE_FEATURE));
    EXPECT_EQ(vdev_driver_features_read(&dev.vdev, 0), 0);
    EXPECT_EQ(vdev_driver_features_read(&dev.vdev, 1), VERSION_1 >> 32);
    test_device_finish(&dev, &guest);
}

TEST(vdev, features_are_read_in_two_halves_and_nothing_else)
{
    test_device_init(&dev, &guest, 1, QUEUE_SIZE);
    EXPECT_EQ(vdev_features_read(&dev.vdev, 0),
              FEATURE(VIRTIO_RING_F_INDIRECT_DESC) | FEATURE(VIRTIO_RING_F_EVENT_IDX) |
                  FEATURE(TEST_DEVICE_FEATURE) | FEATURE(TEST_DEVICE_FEATURE_BAD));
    EXPECT_EQ(vdev_features_read(&dev.vdev, 1), FEATURE(VIRTIO_F_VERSION_1 - 32) |
                                                    FEATURE(VIRTIO_F_RING_PACKED - 32) |
                                                    FEATURE(VIRTIO_F_RING_RESET - 32));
    EXPECT_EQ(vdev_features_read(&dev.vdev, 2), 0);
    EXPECT_EQ(vdev_features_read(&dev.vdev, UINT32_MAX), 0);
    EXPECT_EQ(vdev_driver_features_read(&dev.vdev, 2), 0);
    test_device_finish(&dev, &guest);
}

/* --- queues --- */

TEST(vdev, nothing_is_consumed_before_driver_ok_and_the_kick_is_not_lost)
{
    configure(0);
    dev_enable_queue(&dev.vdev, 0);
    add_and_publish();
    dev_settle();
    EXPECT_EQ(dev.nb_calls, 0);
    EXPECT_EQ(dev.transport.nb_attached, 0);
    dev_driver_ok(&dev.vdev);
    dev_settle();
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(ring.vq->stats.kicks, 0);
    end();
}

TEST(vdev, a_doorbell_rung_before_driver_ok_is_served)
{
    configure(0);
    dev_enable_queue(&dev.vdev, 0);
    add_and_publish();
    ring_kick(&ring);
    dev_driver_ok(&dev.vdev);
    dev_settle();
    EXPECT_EQ(dev.nb_popped, 1);
    end();
}

TEST(vdev, queues_that_were_not_enabled_stay_silent)
{
    begin(0);
    EXPECT_EQ(dev.transport.nb_attached, 1);
    EXPECT_TRUE(vdev_queue(&dev.vdev, 0)->started);
    EXPECT_FALSE(vdev_queue(&dev.vdev, 1)->started);
    add_and_publish();
    ring_kick(&ring);
    dev_settle();
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_FALSE(vdev_status(&dev.vdev) & NEEDS);
    end();
}

TEST(vdev, a_queue_out_of_range_is_no_queue)
{
    begin(0);
    EXPECT_TRUE(vdev_queue(&dev.vdev, 3) != NULL);
    EXPECT_TRUE(vdev_queue(&dev.vdev, 4) == NULL);
    EXPECT_TRUE(vdev_queue(&dev.vdev, UINT32_MAX) == NULL);
    end();
}

TEST(vdev, registers_of_an_enabled_queue_do_not_change)
{
    begin(0);
    vdev_queue_set_size(&dev.vdev, ring.vq, 4);
    vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_DESC, false, 0x1000);
    EXPECT_EQ(ring.vq->cfg_size, QUEUE_SIZE);
    EXPECT_EQ(vdev_queue_address(ring.vq, VQ_RING_DESC, false), (uint32_t)ring.desc_gpa);
    end();
}

TEST(vdev, each_half_of_an_address_is_written_alone)
{
    test_device_init(&dev, &guest, 1, QUEUE_SIZE);
    VirtQueue *vq = vdev_queue(&dev.vdev, 0);

    vdev_queue_set_address(&dev.vdev, vq, VQ_RING_AVAIL, true, 0x11223344);
    vdev_queue_set_address(&dev.vdev, vq, VQ_RING_AVAIL, false, 0x55667788);
    EXPECT_EQ(vq->cfg_avail_gpa, 0x1122334455667788);
    vdev_queue_set_address(&dev.vdev, vq, VQ_RING_AVAIL, true, 0);
    EXPECT_EQ(vq->cfg_avail_gpa, 0x55667788);
    EXPECT_EQ(vdev_queue_address(vq, VQ_RING_AVAIL, false), 0x55667788);
    EXPECT_EQ(vq->cfg_desc_gpa, 0);
    EXPECT_EQ(vq->cfg_used_gpa, 0);
    test_device_finish(&dev, &guest);
}

TEST(vdev, a_doorbell_that_cannot_be_attached_needs_a_reset)
{
    configure(0);
    dev.transport.attach_result = -ENOSPC;
    dev_enable_queue(&dev.vdev, 0);
    dev_driver_ok(&dev.vdev);
    dev_settle();
    EXPECT_TRUE(vdev_status(&dev.vdev) & NEEDS);
    EXPECT_FALSE(ring.vq->started);
    EXPECT_EQ(dev.transport.config_interrupts, 1);
    end();
}

/* --- reset --- */

TEST(vdev, a_second_life_after_reset)
{
    begin(0);
    for (int life = 0; life < 3; life++) {
        add_and_publish();
        ring_kick(&ring);
        dev_settle();
        EXPECT_EQ(dev.nb_popped, life + 1);
        ring_finish(&ring);
        EXPECT_EQ(write_status(0), 0);
        EXPECT_EQ(dev.transport.nb_attached, 0);
        EXPECT_EQ(ring.vq->cfg_size, QUEUE_SIZE);
        EXPECT_EQ(ring.vq->cfg_desc_gpa, 0);
        EXPECT_FALSE(ring.vq->cfg_enabled);

        ASSERT_TRUE(dev_negotiate(&dev.vdev, VERSION_1));
        ring_init(&ring, &guest, &dev.vdev, 0, life == 1 ? 4 : QUEUE_SIZE);
        dev_enable_queue(&dev.vdev, 0);
        dev_driver_ok(&dev.vdev);
    }
    end();
}

typedef struct ResetCall {
    bool queue_only;
    bool done;
    uint8_t status;
} ResetCall;

static void reset_entry(void *opaque)
{
    ResetCall *call = opaque;

    assert_in_coroutine();
    if (call->queue_only) {
        vdev_co_queue_reset(&dev.vdev, ring.vq);
    } else {
        vdev_co_set_status(&dev.vdev, 0);
    }
    call->status = vdev_status(&dev.vdev);
    call->done = true;
}

static void start_reset(ResetCall *call)
{
    co_enter(co_create(reset_entry, call));
    dev_settle();
}

TEST(vdev, status_reads_zero_only_when_nothing_is_in_flight)
{
    ResetCall call = { 0 };

    begin(0);
    unsigned before = dev.nb_resets;

    dev.hold = true;
    add_and_publish();
    add_and_publish();
    ring_kick(&ring);
    dev_settle();
    ASSERT_EQ(dev.nb_held, 2);
    start_reset(&call);
    EXPECT_FALSE(call.done);
    EXPECT_EQ(vdev_status(&dev.vdev), ACK | DRIVER | FEAT_OK | DRV_OK);
    /* what arrives now is not taken any more */
    add_and_publish();
    ring_kick(&ring);
    dev_settle();
    EXPECT_EQ(dev.nb_held, 2);
    test_device_push(&dev, 8);
    dev_settle();
    EXPECT_FALSE(call.done);
    test_device_push(&dev, 8);
    dev_settle();
    EXPECT_TRUE(call.done);
    EXPECT_EQ(call.status, 0);
    EXPECT_EQ(dev.nb_resets, before + 1);
    EXPECT_EQ(ring_used_index(&ring), 2); /* all before the status was 0 */
    end();
}

TEST(vdev, no_guest_memory_is_touched_after_the_reset)
{
    begin(0);
    add_and_publish();
    ring_kick(&ring);
    dev_settle();
    dev_set_status(&dev.vdev, 0);
    memset(guest.ram, 0xa5, guest.ram_bytes);
    ring_kick(&ring);
    dev_settle();
    for (uint64_t i = 0; i < guest.ram_bytes; i++) {
        ASSERT_EQ(guest.ram[i], 0xa5);
    }
    end();
}

TEST(vdev, a_status_write_waits_for_a_reset_under_way)
{
    ResetCall first = { 0 }, second = { 0 };

    begin(0);
    dev.hold = true;
    add_and_publish();
    ring_kick(&ring);
    dev_settle();
    start_reset(&first);
    start_reset(&second);
    EXPECT_FALSE(first.done);
    EXPECT_FALSE(second.done);
    test_device_push(&dev, 8);
    dev_settle();
    EXPECT_TRUE(first.done);
    EXPECT_TRUE(second.done);
    end();
}

TEST(vdev, registers_do_not_change_while_a_reset_waits)
{
    ResetCall call = { 0 };

    begin(0);
    dev.hold = true;
    add_and_publish();
    ring_kick(&ring);
    dev_settle();
    start_reset(&call);
    vdev_queue_set_size(&dev.vdev, ring.vq, 2);
    EXPECT_EQ(ring.vq->cfg_size, QUEUE_SIZE);
    test_device_push(&dev, 8);
    dev_settle();
    EXPECT_TRUE(call.done);
    end();
}

TEST(vdev, clearing_a_status_bit_of_a_running_device_changes_nothing)
{
    const uint8_t all = ACK | DRIVER | FEAT_OK | DRV_OK;

    begin(0);
    for (uint8_t bit = ACK; bit <= FEAT_OK; bit <<= 1) {
        if (!(all & bit)) {
            continue;
        }
        EXPECT_EQ(write_status(all & ~bit), all);
        dev_write_features(&dev.vdev, 0);
        EXPECT_TRUE(vdev_has_feature(&dev.vdev, VIRTIO_F_VERSION_1));
        EXPECT_TRUE(ring.vq->started);
        unsigned before = dev.nb_popped;

        add_and_publish();
        ring_kick(&ring);
        dev_settle();
        EXPECT_EQ(dev.nb_popped, before + 1);
    }
    EXPECT_EQ(dev.nb_resets, 1); /* that of begin() */
    end();
}

/* --- reset of one queue --- */

TEST(vdev, a_ring_reset_waits_and_the_queue_starts_again_elsewhere)
{
    ResetCall call = { .queue_only = true };

    begin(FEATURE(VIRTIO_F_RING_RESET));
    dev.hold = true;
    add_and_publish();
    ring_kick(&ring);
    dev_settle();
    start_reset(&call);
    EXPECT_FALSE(call.done);
    EXPECT_TRUE(ring.vq->cfg_enabled);
    test_device_push(&dev, 8);
    dev_settle();
    ASSERT_TRUE(call.done);
    EXPECT_EQ(call.status, ACK | DRIVER | FEAT_OK | DRV_OK);
    EXPECT_FALSE(ring.vq->cfg_enabled);
    EXPECT_EQ(dev.transport.nb_attached, 0);

    ring_finish(&ring);
    ring_init(&ring, &guest, &dev.vdev, 0, 4); /* other addresses, other size */
    add_and_publish();
    dev_enable_queue(&dev.vdev, 0);
    dev_settle();
    EXPECT_EQ(dev.nb_popped, 2);
    EXPECT_EQ(ring.vq->size, 4);
    end();
}

TEST(vdev, a_ring_reset_mends_a_broken_queue)
{
    begin(FEATURE(VIRTIO_F_RING_RESET));
    ring_offer(&ring, QUEUE_SIZE);
    ring_publish(&ring);
    ring_kick(&ring);
    dev_settle();
    ASSERT_TRUE(vdev_status(&dev.vdev) & NEEDS);
    dev_reset_queue(&dev.vdev, 0);
    ring_finish(&ring);
    ring_init(&ring, &guest, &dev.vdev, 0, QUEUE_SIZE);
    add_and_publish();
    dev_enable_queue(&dev.vdev, 0);
    dev_settle();
    EXPECT_EQ(dev.nb_popped, 1);
    end();
}

TEST(vdev, a_ring_reset_that_was_not_negotiated_is_ignored)
{
    begin(0);
    dev_reset_queue(&dev.vdev, 0);
    EXPECT_TRUE(ring.vq->started);
    EXPECT_TRUE(ring.vq->cfg_enabled);
    end();
}

/* --- NEEDS_RESET --- */

TEST(vdev, needs_reset_interrupts_once_and_goes_with_the_reset)
{
    begin(0);
    uint32_t generation = dev.vdev.config_generation;

    vdev_needs_reset(&dev.vdev);
    vdev_needs_reset(&dev.vdev);
    EXPECT_EQ(vdev_status(&dev.vdev), ACK | DRIVER | FEAT_OK | DRV_OK | NEEDS);
    dev_settle();
    EXPECT_EQ(dev.transport.config_interrupts, 1);
    EXPECT_NE(dev.vdev.config_generation, generation);
    vdev_needs_reset(&dev.vdev);
    dev_settle();
    EXPECT_EQ(dev.transport.config_interrupts, 1);
    EXPECT_EQ(write_status(0), 0);
    end();
}

TEST(vdev, needs_reset_before_driver_ok_does_not_interrupt)
{
    configure(0);
    vdev_needs_reset(&dev.vdev);
    dev_settle();
    EXPECT_TRUE(vdev_status(&dev.vdev) & NEEDS);
    EXPECT_EQ(dev.transport.config_interrupts, 0);
    end();
}

static void *needs_reset_thread(void *opaque)
{
    vdev_needs_reset(&dev.vdev);
    return NULL;
}

TEST(vdev, needs_reset_may_come_from_another_thread)
{
    pthread_t thread;

    begin(0);
    ASSERT_EQ(pthread_create(&thread, NULL, needs_reset_thread, NULL), 0);
    while (dev.transport.config_interrupts == 0) {
        aio_poll(aio_main(), true);
    }
    pthread_join(thread, NULL);
    EXPECT_TRUE(vdev_status(&dev.vdev) & NEEDS);
    end();
}

/* --- configuration space --- */

TEST(vdev, config_reads_beyond_the_end_give_zero)
{
    uint8_t buf[16];

    begin(0);
    memset(dev.config, 0x77, sizeof(dev.config));
    memset(buf, 0xff, sizeof(buf));
    vdev_config_read(&dev.vdev, 8, buf, 8);
    EXPECT_EQ(buf[3], 0x77);
    EXPECT_EQ(buf[4], 0);
    EXPECT_EQ(buf[7], 0);
    EXPECT_EQ(buf[8], 0xff);
    vdev_config_read(&dev.vdev, TEST_DEVICE_CONFIG_BYTES, buf, 4);
    EXPECT_EQ(buf[0], 0);
    vdev_config_read(&dev.vdev, SIZE_MAX, buf + 8, 4);
    EXPECT_EQ(buf[8], 0);
    end();
}

TEST(vdev, config_writes_beyond_the_end_are_cut)
{
    uint8_t data[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };

    begin(0);
    dev_write_config(&dev.vdev, 10, data, 8);
    EXPECT_EQ(dev.config[9], 0);
    EXPECT_EQ(dev.config[10], 1);
    EXPECT_EQ(dev.config[11], 2);
    EXPECT_EQ(dev.set_features, VERSION_1); /* the field behind it */
    dev_write_config(&dev.vdev, TEST_DEVICE_CONFIG_BYTES, data, 8);
    dev_write_config(&dev.vdev, SIZE_MAX, data, 8);
    end();
}

TEST(vdev, a_changed_configuration_has_a_new_generation_and_an_interrupt)
{
    begin(0);
    uint32_t generation = dev.vdev.config_generation;

    vdev_config_changed(&dev.vdev);
    EXPECT_EQ(dev.vdev.config_generation, generation + 1);
    EXPECT_EQ(dev.transport.config_interrupts, 1);
    write_status(0);
    vdev_config_changed(&dev.vdev);
    EXPECT_EQ(dev.vdev.config_generation, generation + 2);
    EXPECT_EQ(dev.transport.config_interrupts, 1); /* nobody listens */
    end();
}

/* --- creation --- */

TEST(vdev, numbers_out_of_range_are_refused)
{
    static const struct {
        unsigned nb_queues, queue_size;
    } bad[] = { { 0, 16 }, { VIRTIO_QUEUES_MAX + 1, 16 }, { 1, 0 }, { 1, 12 }, { 1, 2048 } };
    Error err;

    test_device_init(&dev, &guest, 1, QUEUE_SIZE);
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        VirtioDevice vdev;

        EXPECT_EQ(vdev_init(&vdev, dev.vdev.ops, "bad", &guest.gm, bad[i].nb_queues,
                            bad[i].queue_size, &err),
                  -EINVAL);
        EXPECT_TRUE(strstr(err.msg, "bad: ") == err.msg);
        vdev_finish(&vdev);
    }
    test_device_finish(&dev, &guest);
}

TEST_MAIN()
