/*
 * test-device.h - a device type that shows what its queues hand it
 *
 * Layer:     virtio/ tests
 * Threading: main context only: every queue's home is the main context.
 */
#ifndef VIRTIO_TESTS_TEST_DEVICE_H
#define VIRTIO_TESTS_TEST_DEVICE_H

#include "virtio/tests/ring-driver.h"

#define TEST_DEVICE_CONFIG_BYTES 12
#define TEST_DEVICE_FEATURE      3 /* offered by the type */
#define TEST_DEVICE_FEATURE_BAD  4 /* offered, but vetoed */

typedef struct TestDevice {
    VirtioDevice vdev;
    GuestTransport transport;
    bool hold; /* keep what was popped; else it is pushed at once */
    VqElem *held[VQ_SIZE_MAX];
    unsigned nb_held;
    unsigned nb_popped;
    unsigned nb_calls; /* of handle_queue() */
    unsigned most_in_call;
    uint64_t set_features;
    unsigned nb_resets;
    uint8_t config[TEST_DEVICE_CONFIG_BYTES];
    VqElem last; /* copy of the last one popped, with its vectors */
    struct iovec last_iov[VQ_ELEM_IOV_MAX];
} TestDevice;

/* Creates the main context, too; skips the test where that is refused. */
void test_device_init(TestDevice *dev, Guest *guest, unsigned nb_queues, unsigned queue_size);
void test_device_finish(TestDevice *dev, Guest *guest);
/* Push the oldest held element. */
void test_device_push(TestDevice *dev, uint32_t written_bytes);

#endif
