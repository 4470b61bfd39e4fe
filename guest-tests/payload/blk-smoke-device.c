/*
 * blk-smoke: identity, features and registers
 */
#include "guest-tests/lib/args.h"
#include "guest-tests/lib/str.h"
#include "guest-tests/lib/tsc.h"
#include "guest-tests/payload/blk-smoke.h"

#define REGISTER_BYTES      64
#define ISR_SETTLE_MS       20
#define NB_DEVICE_FEATURES  24 /* bits 0 to 23 belong to the device type */
#define STATUS_DRIVER_KNOWN (VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER)

TEST(device, device_offers_version_1_and_the_queues_it_was_given)
{
    uint64_t queues;

    ASSERT_TRUE(smoke.offered & VIRTIO_F_VERSION_1);
    if (arg_get_u64("queues", &queues)) {
        ASSERT_EQ(smoke.nb_queues, queues);
    }
    if (smoke.nb_queues > 1) {
        ASSERT_TRUE(smoke.offered & VIRTIO_BLK_F_MQ);
        ASSERT_EQ(vdev_config16(&smoke.disk.dev, VIRTIO_BLK_CFG_NUM_QUEUES), smoke.nb_queues);
    }
}

TEST(device, capacity_is_that_of_the_disk)
{
    uint64_t size_bytes;

    TEST_SKIP_IF(!arg_get_u64("size", &size_bytes), "no size= to compare with");
    ASSERT_EQ(smoke.disk.capacity_sectors, size_bytes / VIRTIO_BLK_SECTOR_BYTES);
}

TEST(device, status_bits_read_back_as_they_were_written)
{
    Vdev *d = &smoke.disk.dev;

    ASSERT_TRUE(vdev_reset(d));
    vdev_set_status(d, VIRTIO_STATUS_ACKNOWLEDGE);
    ASSERT_EQ(vdev_get_status(d), VIRTIO_STATUS_ACKNOWLEDGE);
    vdev_set_status(d, STATUS_DRIVER_KNOWN);
    ASSERT_EQ(vdev_get_status(d), STATUS_DRIVER_KNOWN);
    ASSERT_TRUE(smoke_start(0));
    ASSERT_EQ(vdev_get_status(d),
              (STATUS_DRIVER_KNOWN | VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_DRIVER_OK));
}

static bool features_ok_with(uint64_t features)
{
    Vdev *d = &smoke.disk.dev;

    if (!vdev_reset(d)) {
        return true;
    }
    vdev_set_status(d, VIRTIO_STATUS_ACKNOWLEDGE);
    vdev_set_status(d, STATUS_DRIVER_KNOWN);
    vdev_set_features(d, features);
    vdev_set_status(d, STATUS_DRIVER_KNOWN | VIRTIO_STATUS_FEATURES_OK);
    return vdev_get_status(d) & VIRTIO_STATUS_FEATURES_OK;
}

TEST(device, features_ok_is_refused_for_a_feature_not_offered)
{
    uint64_t bit = 1;

    TEST_SKIP_IF(smoke.qemu, "QEMU drops the feature and goes on");
    while (smoke.offered & bit) {
        bit <<= 1;
    }
    ASSERT_TRUE(bit < 1ull << NB_DEVICE_FEATURES);
    ASSERT_FALSE(features_ok_with(VIRTIO_F_VERSION_1 | bit));
    ASSERT_TRUE(features_ok_with(VIRTIO_F_VERSION_1));
}

TEST(device, features_ok_is_refused_without_version_1)
{
    TEST_SKIP_IF(smoke.qemu, "QEMU does not ask for VERSION_1");
    ASSERT_FALSE(features_ok_with(VIRTIO_BLK_F_MQ & smoke.offered));
    ASSERT_TRUE(features_ok_with(VIRTIO_F_VERSION_1));
}

TEST(device, feature_writes_after_features_ok_are_ignored)
{
    VpciDevice *d = smoke_pci(); /* mmio: nothing to read it back from */

    TEST_SKIP_IF(smoke.qemu, "QEMU's register takes them");
    ASSERT_TRUE(features_ok_with(VIRTIO_F_VERSION_1));
    vdev_set_features(&smoke.disk.dev, VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX);
    mmio_write32(d->common + VIRTIO_PCI_DRIVER_FEATURE_SELECT, 0);
    ASSERT_EQ(mmio_read32(d->common + VIRTIO_PCI_DRIVER_FEATURE), 0);
    mmio_write32(d->common + VIRTIO_PCI_DRIVER_FEATURE_SELECT, 1);
    ASSERT_EQ(mmio_read32(d->common + VIRTIO_PCI_DRIVER_FEATURE), 1);
}

TEST(device, steps_of_the_status_cannot_be_skipped_or_taken_back)
{
    Vdev *d = &smoke.disk.dev;
    const uint8_t running =
        STATUS_DRIVER_KNOWN | VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_DRIVER_OK;

    TEST_SKIP_IF(smoke.qemu, "QEMU's register takes what is written");
    ASSERT_TRUE(vdev_reset(d));
    vdev_set_status(d, VIRTIO_STATUS_DRIVER_OK);
    EXPECT_EQ(vdev_get_status(d), 0);
    vdev_set_status(d, STATUS_DRIVER_KNOWN | VIRTIO_STATUS_DRIVER_OK);
    EXPECT_EQ(vdev_get_status(d), STATUS_DRIVER_KNOWN);
    vdev_set_features(d, VIRTIO_F_VERSION_1);
    vdev_set_status(d, VIRTIO_STATUS_FEATURES_OK);
    EXPECT_EQ(vdev_get_status(d), STATUS_DRIVER_KNOWN);
    ASSERT_TRUE(smoke_start(0));
    vdev_set_status(d, STATUS_DRIVER_KNOWN);
    EXPECT_EQ(vdev_get_status(d), running);
    EXPECT_EQ(vblk_do(&smoke.disk.queues[0], VIRTIO_BLK_T_IN, 0, smoke.in, 512), VIRTIO_BLK_S_OK);
}

TEST(device, features_do_not_outlive_a_reset)
{
    Vdev *d = &smoke.disk.dev;

    TEST_SKIP_IF(smoke.qemu, "QEMU does not ask for VERSION_1");
    ASSERT_TRUE(features_ok_with(VIRTIO_F_VERSION_1));
    ASSERT_TRUE(vdev_reset(d));
    vdev_set_status(d, VIRTIO_STATUS_ACKNOWLEDGE);
    vdev_set_status(d, STATUS_DRIVER_KNOWN);
    vdev_set_status(d, STATUS_DRIVER_KNOWN | VIRTIO_STATUS_FEATURES_OK);
    EXPECT_EQ(vdev_get_status(d), STATUS_DRIVER_KNOWN);
}

TEST(device, registers_of_an_enabled_queue_do_not_change)
{
    VpciDevice *d = smoke_pci(); /* mmio: nothing to read them back from */

    TEST_SKIP_IF(smoke.qemu, "QEMU's registers take what is written");
    ASSERT_TRUE(smoke_start(0));
    mmio_write16(d->common + VIRTIO_PCI_QUEUE_SELECT, 0);

    uint16_t size = mmio_read16(d->common + VIRTIO_PCI_QUEUE_SIZE);
    uint32_t low = mmio_read32(d->common + VIRTIO_PCI_QUEUE_DESC);

    mmio_write16(d->common + VIRTIO_PCI_QUEUE_SIZE, size / 2);
    mmio_write32(d->common + VIRTIO_PCI_QUEUE_DESC, low + 4096);
    EXPECT_EQ(mmio_read16(d->common + VIRTIO_PCI_QUEUE_SIZE), size);
    EXPECT_EQ(mmio_read32(d->common + VIRTIO_PCI_QUEUE_DESC), low);
    EXPECT_EQ(vblk_do(&smoke.disk.queues[0], VIRTIO_BLK_T_IN, 0, smoke.in, 512), VIRTIO_BLK_S_OK);
}

TEST(device, a_driver_that_failed_can_start_again_after_a_reset)
{
    Vdev *d = &smoke.disk.dev;

    ASSERT_TRUE(smoke_start(0));
    vdev_set_status(d, vdev_get_status(d) | VIRTIO_STATUS_FAILED);
    EXPECT_TRUE(vdev_get_status(d) & VIRTIO_STATUS_FAILED);
    EXPECT_TRUE(smoke_works());
}

TEST(device, a_queue_that_is_not_there_has_size_0)
{
    Vdev *d = &smoke.disk.dev;

    ASSERT_TRUE(vdev_reset(d));
    ASSERT_EQ(vdev_get_queue_size(d, smoke.nb_queues), 0);
    ASSERT_EQ(vdev_get_queue_size(d, 0xffff), 0);
    ASSERT_NE(vdev_get_queue_size(d, 0), 0);
}

TEST(device, a_vector_out_of_range_reads_back_as_no_vector)
{
    VpciDevice *d = smoke_pci();

    ASSERT_TRUE(vdev_reset(&smoke.disk.dev));
    mmio_write16(d->common + VIRTIO_PCI_CONFIG_VECTOR, 0x7fe);
    ASSERT_EQ(mmio_read16(d->common + VIRTIO_PCI_CONFIG_VECTOR), VIRTIO_NO_VECTOR);
    mmio_write16(d->common + VIRTIO_PCI_QUEUE_SELECT, 0);
    mmio_write16(d->common + VIRTIO_PCI_QUEUE_VECTOR, 0x7fe);
    ASSERT_EQ(mmio_read16(d->common + VIRTIO_PCI_QUEUE_VECTOR), VIRTIO_NO_VECTOR);
}

/* Any size at any offset, past the end too: an answer, and nothing else. */
TEST(device, odd_register_accesses_do_no_harm)
{
    Vdev *d = &smoke.disk.dev;
    volatile uint8_t *regs = d->transport == VDEV_PCI ? d->pci.common : d->mmio.regs;

    ASSERT_TRUE(smoke_start(0));
    for (uint32_t i = 0; i < REGISTER_BYTES; i++) {
        uint64_t wide;

        mmio_read8(regs + i);
        mmio_read16(regs + i);
        mmio_read32(regs + i);
        __asm__ volatile("movq (%1), %0" : "=r"(wide) : "r"(regs + i));
        mmio_read32(d->config + i);
        mmio_read32(d->config + d->config_bytes - 1 - i);
        mmio_write8(d->config + i, 0xff);
    }
    ASSERT_TRUE(smoke_works());
}

TEST(device, get_id_gives_the_serial_number)
{
    const char *serial;
    size_t len;

    ASSERT_TRUE(smoke_start(0));
    memset(smoke.in, 0xee, 64);
    ASSERT_EQ(vblk_do(&smoke.disk.queues[0], VIRTIO_BLK_T_GET_ID, 0, smoke.in, VIRTIO_BLK_ID_BYTES),
              VIRTIO_BLK_S_OK);
    ASSERT_EQ(smoke.in[VIRTIO_BLK_ID_BYTES], 0xee);
    TEST_SKIP_IF(!arg_get_str("serial", &serial, &len), "no serial= to compare");
    ASSERT_TRUE(len <= VIRTIO_BLK_ID_BYTES);
    ASSERT_EQ(memcmp(smoke.in, serial, len), 0);
    ASSERT_TRUE(len == VIRTIO_BLK_ID_BYTES || smoke.in[len] == 0);
}

TEST(device, get_id_into_a_short_buffer_stays_inside_it)
{
    int status;

    ASSERT_TRUE(smoke_start(0));
    memset(smoke.in, 0xee, 64);
    status = vblk_do(&smoke.disk.queues[0], VIRTIO_BLK_T_GET_ID, 0, smoke.in, 8);
    ASSERT_TRUE(status == VIRTIO_BLK_S_OK || status == VIRTIO_BLK_S_IOERR);
    ASSERT_TRUE(smoke_is_all(smoke.in + 8, 56, 0xee));
}

TEST(device, isr_tells_of_a_used_buffer_and_reading_clears_it)
{
    const VblkSetup setup = { .nb_queues = 1 };
    Vring *r = &smoke.disk.queues[0].ring;

    ASSERT_TRUE(smoke_start_with(&setup));
    vring_ask_interrupts(r);
    vdev_take_isr(&smoke.disk.dev);
    ASSERT_EQ(vblk_do(&smoke.disk.queues[0], VIRTIO_BLK_T_IN, 0, smoke.in, 512), VIRTIO_BLK_S_OK);
    /* The used index may be seen before the interrupt is raised. */
    for (int i = 0; i < 10000; i++) {
        if (vdev_take_isr(&smoke.disk.dev) & 1) {
            /* QEMU may raise it a second time for the same buffer. */
            tsc_wait_ms(ISR_SETTLE_MS);
            vdev_take_isr(&smoke.disk.dev);
            ASSERT_EQ(vdev_take_isr(&smoke.disk.dev), 0);
            return;
        }
    }
    TEST_FAIL("the queue bit never came up");
}
