/*
 * test-device.c - a device type that shows what its queues hand it
 */
#include "virtio/tests/test-device.h"

#include <string.h>

#include "io/base/test.h"

static TestDevice *to_test(VirtioDevice *vdev)
{
    return container_of(vdev, TestDevice, vdev);
}

static uint64_t test_features(VirtioDevice *vdev)
{
    return FEATURE(TEST_DEVICE_FEATURE) | FEATURE(TEST_DEVICE_FEATURE_BAD);
}

static int test_check_features(VirtioDevice *vdev, uint64_t features)
{
    return features & FEATURE(TEST_DEVICE_FEATURE_BAD) ? -EINVAL : 0;
}

static void test_set_features(VirtioDevice *vdev, uint64_t features)
{
    to_test(vdev)->set_features = features;
}

static void test_config_read(VirtioDevice *vdev, void *ret_config)
{
    memcpy(ret_config, to_test(vdev)->config, TEST_DEVICE_CONFIG_BYTES);
}

static co_fn void test_co_config_write(VirtioDevice *vdev, size_t offset, const void *data,
                                       size_t len_bytes)
{
    memcpy(to_test(vdev)->config + offset, data, len_bytes);
}

static void remember(TestDevice *dev, const VqElem *elem)
{
    dev->last = *elem;
    memcpy(dev->last_iov, elem->iov, (elem->nb_out + elem->nb_in) * sizeof(struct iovec));
    dev->last.iov = dev->last_iov;
}

static void test_handle_queue(VirtioDevice *vdev, VirtQueue *vq)
{
    TestDevice *dev = to_test(vdev);
    unsigned nb = 0;
    VqElem *elem;

    dev->nb_calls++;
    while (nb < VQ_BATCH_MAX && (elem = vq_pop(vq))) {
        nb++;
        dev->nb_popped++;
        remember(dev, elem);
        if (dev->hold) {
            dev->held[dev->nb_held++] = elem;
        } else {
            vq_push(vq, elem, (uint32_t)elem->in_bytes);
        }
    }
    dev->most_in_call = MAX(dev->most_in_call, nb);
}

static void test_reset(VirtioDevice *vdev)
{
    to_test(vdev)->nb_resets++;
}

static const VirtioDeviceOps test_ops = {
    .device_id = 63,
    .elem_bytes = sizeof(VqElem),
    .config_bytes = TEST_DEVICE_CONFIG_BYTES,
    .features = test_features,
    .check_features = test_check_features,
    .set_features = test_set_features,
    .config_read = test_config_read,
    .co_config_write = test_co_config_write,
    .handle_queue = test_handle_queue,
    .reset = test_reset,
};

void test_device_init(TestDevice *dev, Guest *guest, unsigned nb_queues, unsigned queue_size)
{
    Error err;

    if (!guest_main_context(&err)) {
        TEST_SKIP("%s", err.msg);
    }
    memset(dev, 0, sizeof(*dev));
    guest_init(guest, 4 << 20);
    ASSERT_EQ(vdev_init(&dev->vdev, &test_ops, "test", &guest->gm, nb_queues, queue_size, &err), 0);
    vdev_offer_packed(&dev->vdev);
    guest_transport_init(&dev->transport, &dev->vdev);
}

void test_device_finish(TestDevice *dev, Guest *guest)
{
    AioContext *ctx = aio_main();

    while (dev->nb_held > 0) {
        test_device_push(dev, 0);
    }
    dev_set_status(&dev->vdev, 0);
    EXPECT_EQ(dev->transport.nb_attached, 0);
    vdev_finish(&dev->vdev);
    guest_finish(guest);
    aio_context_destroy(ctx);
}

void test_device_push(TestDevice *dev, uint32_t written_bytes)
{
    VqElem *elem = dev->held[0];

    dev->nb_held--;
    memmove(dev->held, dev->held + 1, dev->nb_held * sizeof(dev->held[0]));
    vq_push(elem->vq, elem, written_bytes);
}
