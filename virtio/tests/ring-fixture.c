/*
 * ring-fixture.c - one device with two queues, and the driver of the first
 */
#include "virtio/tests/ring-fixture.h"

TestDevice dev;
Guest guest;
RingDriver ring;
uint64_t buf_gpa;

static uint64_t format; /* of configure_with(), for lives after a reset */

void configure_with(uint64_t features, unsigned max_size, uint16_t size)
{
    format = guest_wants_packed() ? FEATURE(VIRTIO_F_RING_PACKED)
                                  : features & FEATURE(VIRTIO_F_RING_PACKED);
    test_device_init(&dev, &guest, 2, max_size);
    ASSERT_TRUE(dev_negotiate(&dev.vdev, features | format | FEATURE(VIRTIO_F_VERSION_1)));
    ring_init(&ring, &guest, &dev.vdev, 0, size);
    buf_gpa = guest_alloc(&guest, 65536, 4096);
}

void configure(void)
{
    configure_with(FEATURE(VIRTIO_RING_F_INDIRECT_DESC), QUEUE_SIZE, QUEUE_SIZE);
}

void start(void)
{
    dev_enable_queue(&dev.vdev, 0);
    dev_driver_ok(&dev.vdev);
    dev_settle();
}

void begin_with(uint64_t features, unsigned max_size, uint16_t size)
{
    configure_with(features, max_size, size);
    start();
}

void begin(void)
{
    begin_with(FEATURE(VIRTIO_RING_F_INDIRECT_DESC), QUEUE_SIZE, QUEUE_SIZE);
}

void end(void)
{
    ring_finish(&ring);
    test_device_finish(&dev, &guest);
}

bool broken(void)
{
    return vdev_status(&dev.vdev) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

void publish_and_kick(void)
{
    ring_publish(&ring);
    ring_kick(&ring);
    dev_settle();
}

uint16_t add_small(uint32_t len)
{
    return ring_add(&ring, (RingBuf[]){ { buf_gpa, len, true } }, 1);
}

void settle_broken(void)
{
    publish_and_kick();
    expect_broken_until_reset();
}

void expect_broken_until_reset(void)
{
    EXPECT_TRUE(broken());
    EXPECT_EQ(dev.nb_popped, 0);
    EXPECT_EQ(dev.transport.config_interrupts, 1);
    EXPECT_TRUE(dev.vdev.queues[0].broken_reason[0] != '\0');
    ring_kick(&ring);
    dev_settle();
    EXPECT_EQ(dev.nb_popped, 0);

    ring_finish(&ring);
    ASSERT_TRUE(dev_negotiate(&dev.vdev, format | FEATURE(VIRTIO_F_VERSION_1)));
    ring_init(&ring, &guest, &dev.vdev, 0, QUEUE_SIZE);
    dev_enable_queue(&dev.vdev, 0);
    dev_driver_ok(&dev.vdev);
    add_small(10);
    publish_and_kick();
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_FALSE(broken());
}

void expect_start_refused(void)
{
    dev_enable_queue(&dev.vdev, 0);
    dev_driver_ok(&dev.vdev);
    dev_settle();
    EXPECT_TRUE(broken());
    EXPECT_FALSE(ring.vq->started);
    EXPECT_EQ(dev.transport.config_interrupts, 1);
    end();
}

static void stop_entry(void *opaque)
{
    assert_in_coroutine();
    vq_co_stop(opaque);
}

void stop_queue(void)
{
    aio_co_run_sync(aio_main(), stop_entry, ring.vq);
}

uint64_t begin_with_seam(void)
{
    uint64_t gpa = GUEST_BASE_GPA + ((uint64_t)1 << 32);

    configure();
    ASSERT_EQ(gm_add(&guest.gm, gpa, 4096, guest.ram + SEAM_UPPER, NULL), 0);
    ASSERT_EQ(gm_add(&guest.gm, gpa + 4096, 4096, guest.ram + SEAM_LOWER, NULL), 0);
    start();
    return gpa + 4096;
}

unsigned interrupts_for(unsigned nb)
{
    unsigned before = dev.transport.queue_interrupts[0];
    uint32_t head, len;

    dev.hold = true;
    for (unsigned i = 0; i < nb; i++) {
        add_small(8);
    }
    publish_and_kick();
    while (dev.nb_held > 0) {
        test_device_push(&dev, 4);
    }
    dev_settle();
    while (ring_next_used(&ring, &head, &len)) {
        ring_free(&ring, (uint16_t)head);
    }
    return dev.transport.queue_interrupts[0] - before;
}
