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

static void device_offers_version_1_and_the_queues_it_was_given(void)
{
    uint64_t queues;

    CHECK(smoke.offered & VIRTIO_F_VERSION_1);
    if (arg_get_u64("queues", &queues)) {
        CHECK(smoke.nb_queues == queues);
    }
    if (smoke.nb_queues > 1) {
        CHECK(smoke.offered & VIRTIO_BLK_F_MQ);
        CHECK(vpci_config16(&smoke.disk.pci, VIRTIO_BLK_CFG_NUM_QUEUES) ==
              smoke.nb_queues);
    }
}

static void capacity_is_that_of_the_disk(void)
{
    uint64_t size_bytes;

    SKIP_IF(!arg_get_u64("size", &size_bytes), "no size= to compare with");
    CHECK(smoke.disk.capacity_sectors == size_bytes / VIRTIO_BLK_SECTOR_BYTES);
}

static void status_bits_read_back_as_they_were_written(void)
{
    VpciDevice *d = &smoke.disk.pci;

    CHECK(vpci_reset(d));
    vpci_set_status(d, VIRTIO_STATUS_ACKNOWLEDGE);
    CHECK(vpci_get_status(d) == VIRTIO_STATUS_ACKNOWLEDGE);
    vpci_set_status(d, STATUS_DRIVER_KNOWN);
    CHECK(vpci_get_status(d) == STATUS_DRIVER_KNOWN);
    CHECK(smoke_start(0));
    CHECK(vpci_get_status(d) ==
          (STATUS_DRIVER_KNOWN | VIRTIO_STATUS_FEATURES_OK |
           VIRTIO_STATUS_DRIVER_OK));
}

static bool features_ok_with(uint64_t features)
{
    VpciDevice *d = &smoke.disk.pci;

    if (!vpci_reset(d)) {
        return true;
    }
    vpci_set_status(d, VIRTIO_STATUS_ACKNOWLEDGE);
    vpci_set_status(d, STATUS_DRIVER_KNOWN);
    vpci_set_features(d, features);
    vpci_set_status(d, STATUS_DRIVER_KNOWN | VIRTIO_STATUS_FEATURES_OK);
    return vpci_get_status(d) & VIRTIO_STATUS_FEATURES_OK;
}

static void features_ok_is_refused_for_a_feature_not_offered(void)
{
    uint64_t bit = 1;

    SKIP_IF(smoke.qemu, "QEMU drops the feature and goes on");
    while (smoke.offered & bit) {
        bit <<= 1;
    }
    CHECK(bit < 1ull << NB_DEVICE_FEATURES);
    CHECK(!features_ok_with(VIRTIO_F_VERSION_1 | bit));
    CHECK(features_ok_with(VIRTIO_F_VERSION_1));
}

static void features_ok_is_refused_without_version_1(void)
{
    SKIP_IF(smoke.qemu, "QEMU does not ask for VERSION_1");
    CHECK(!features_ok_with(VIRTIO_BLK_F_MQ & smoke.offered));
    CHECK(features_ok_with(VIRTIO_F_VERSION_1));
}

static void feature_writes_after_features_ok_are_ignored(void)
{
    VpciDevice *d = &smoke.disk.pci;

    SKIP_IF(smoke.qemu, "QEMU's register takes them");
    CHECK(features_ok_with(VIRTIO_F_VERSION_1));
    vpci_set_features(d, VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX);
    mmio_write32(d->common + VIRTIO_PCI_DRIVER_FEATURE_SELECT, 0);
    CHECK(mmio_read32(d->common + VIRTIO_PCI_DRIVER_FEATURE) == 0);
    mmio_write32(d->common + VIRTIO_PCI_DRIVER_FEATURE_SELECT, 1);
    CHECK(mmio_read32(d->common + VIRTIO_PCI_DRIVER_FEATURE) == 1);
}

static void a_queue_that_is_not_there_has_size_0(void)
{
    VpciDevice *d = &smoke.disk.pci;

    CHECK(vpci_reset(d));
    CHECK(vpci_get_queue_size(d, smoke.nb_queues) == 0);
    CHECK(vpci_get_queue_size(d, 0xffff) == 0);
    CHECK(vpci_get_queue_size(d, 0) != 0);
}

static void a_vector_out_of_range_reads_back_as_no_vector(void)
{
    VpciDevice *d = &smoke.disk.pci;

    CHECK(vpci_reset(d));
    mmio_write16(d->common + VIRTIO_PCI_CONFIG_VECTOR, 0x7fe);
    CHECK(mmio_read16(d->common + VIRTIO_PCI_CONFIG_VECTOR) ==
          VIRTIO_NO_VECTOR);
    mmio_write16(d->common + VIRTIO_PCI_QUEUE_SELECT, 0);
    mmio_write16(d->common + VIRTIO_PCI_QUEUE_VECTOR, 0x7fe);
    CHECK(mmio_read16(d->common + VIRTIO_PCI_QUEUE_VECTOR) ==
          VIRTIO_NO_VECTOR);
}

/* Any size at any offset, past the end too: an answer, and nothing else. */
static void odd_register_accesses_do_no_harm(void)
{
    VpciDevice *d = &smoke.disk.pci;

    CHECK(smoke_start(0));
    for (uint32_t i = 0; i < REGISTER_BYTES; i++) {
        uint64_t wide;

        mmio_read8(d->common + i);
        mmio_read16(d->common + i);
        mmio_read32(d->common + i);
        __asm__ volatile("movq (%1), %0" : "=r"(wide) : "r"(d->common + i));
        mmio_read32(d->config + i);
        mmio_read32(d->config + d->config_bytes - 1 + i);
        mmio_write8(d->config + i, 0xff);
    }
    CHECK(smoke_works());
}

static void get_id_gives_the_serial_number(void)
{
    const char *serial;
    size_t len;

    CHECK(smoke_start(0));
    memset(smoke.in, 0xee, 64);
    CHECK(vblk_do(&smoke.disk.queues[0], VIRTIO_BLK_T_GET_ID, 0, smoke.in,
                  VIRTIO_BLK_ID_BYTES) == VIRTIO_BLK_S_OK);
    CHECK(smoke.in[VIRTIO_BLK_ID_BYTES] == 0xee);
    SKIP_IF(!arg_get_str("serial", &serial, &len), "no serial= to compare");
    CHECK(len <= VIRTIO_BLK_ID_BYTES);
    CHECK(memcmp(smoke.in, serial, len) == 0);
    CHECK(len == VIRTIO_BLK_ID_BYTES || smoke.in[len] == 0);
}

static void get_id_into_a_short_buffer_stays_inside_it(void)
{
    int status;

    CHECK(smoke_start(0));
    memset(smoke.in, 0xee, 64);
    status = vblk_do(&smoke.disk.queues[0], VIRTIO_BLK_T_GET_ID, 0, smoke.in,
                     8);
    CHECK(status == VIRTIO_BLK_S_OK || status == VIRTIO_BLK_S_IOERR);
    CHECK(smoke_is_all(smoke.in + 8, 56, 0xee));
}

static void isr_tells_of_a_used_buffer_and_reading_clears_it(void)
{
    const VblkSetup setup = { .nb_queues = 1 };
    Vring *r = &smoke.disk.queues[0].ring;

    CHECK(smoke_start_with(&setup));
    r->avail->flags = 0;
    mmio_read8(smoke.disk.pci.isr);
    CHECK(vblk_do(&smoke.disk.queues[0], VIRTIO_BLK_T_IN, 0, smoke.in, 512) ==
          VIRTIO_BLK_S_OK);
    /* The used index may be seen before the interrupt is raised. */
    for (int i = 0; i < 10000; i++) {
        if (mmio_read8(smoke.disk.pci.isr) & 1) {
            /* QEMU may raise it a second time for the same buffer. */
            tsc_wait_ms(ISR_SETTLE_MS);
            mmio_read8(smoke.disk.pci.isr);
            CHECK(mmio_read8(smoke.disk.pci.isr) == 0);
            return;
        }
    }
    CHECK(!"the queue bit never came up");
}

const TapCase smoke_device_cases[] = {
    TAP_CASE(device_offers_version_1_and_the_queues_it_was_given),
    TAP_CASE(capacity_is_that_of_the_disk),
    TAP_CASE(status_bits_read_back_as_they_were_written),
    TAP_CASE(features_ok_is_refused_for_a_feature_not_offered),
    TAP_CASE(features_ok_is_refused_without_version_1),
    TAP_CASE(feature_writes_after_features_ok_are_ignored),
    TAP_CASE(a_queue_that_is_not_there_has_size_0),
    TAP_CASE(a_vector_out_of_range_reads_back_as_no_vector),
    TAP_CASE(odd_register_accesses_do_no_harm),
    TAP_CASE(get_id_gives_the_serial_number),
    TAP_CASE(get_id_into_a_short_buffer_stays_inside_it),
    TAP_CASE(isr_tells_of_a_used_buffer_and_reading_clears_it),
};
const size_t smoke_nb_device_cases =
    sizeof(smoke_device_cases) / sizeof(smoke_device_cases[0]);
