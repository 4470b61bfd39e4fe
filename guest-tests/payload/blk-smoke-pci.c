/*
 * blk-smoke: what is of PCI alone - BARs that move, the window in configuration space
 */
#include "guest-tests/payload/blk-smoke.h"

#define CAP_DATA 16 /* pci_cfg_data, behind struct virtio_pci_cap */
#define ALL_ONES 0xffffffffu

typedef struct {
    PciFunction f;
    unsigned cap;
} CfgWindow;

static CfgWindow find_window(void)
{
    VpciDevice *d = smoke_pci();
    CfgWindow w = { .f = d->pci };

    for (w.cap = pci_find_cap(w.f, PCI_CAP_VENDOR, 0); w.cap;
         w.cap = pci_find_cap(w.f, PCI_CAP_VENDOR, w.cap)) {
        if (pci_read8(w.f, w.cap + VIRTIO_PCI_CAP_TYPE) == VIRTIO_PCI_CAP_PCI_CFG) {
            return w;
        }
    }
    TEST_FAIL("no capability of type VIRTIO_PCI_CAP_PCI_CFG");
}

static void aim(const CfgWindow *w, uint32_t bar, uint32_t offset, uint32_t len_bytes)
{
    pci_write32(w->f, w->cap + VIRTIO_PCI_CAP_BAR, bar);
    pci_write32(w->f, w->cap + VIRTIO_PCI_CAP_OFFSET, offset);
    pci_write32(w->f, w->cap + VIRTIO_PCI_CAP_LENGTH, len_bytes);
}

TEST(pci, the_window_in_configuration_space_reaches_the_registers)
{
    CfgWindow w = find_window();
    VpciDevice *d = smoke_pci();

    ASSERT_TRUE(smoke_start(0));
    aim(&w, d->common_bar, d->common_offset + VIRTIO_PCI_STATUS, 1);
    EXPECT_EQ(pci_read8(w.f, w.cap + CAP_DATA), vdev_get_status(&smoke.disk.dev));
    aim(&w, d->common_bar, d->common_offset + VIRTIO_PCI_NUM_QUEUES, 2);
    EXPECT_EQ(pci_read16(w.f, w.cap + CAP_DATA), smoke.nb_queues);
    aim(&w, d->common_bar, d->common_offset + VIRTIO_PCI_DRIVER_FEATURE_SELECT, 4);
    pci_write32(w.f, w.cap + CAP_DATA, 1);
    EXPECT_EQ(mmio_read32(d->common + VIRTIO_PCI_DRIVER_FEATURE_SELECT), 1);
}

TEST(pci, the_window_takes_any_bar_offset_and_length)
{
    static const uint32_t offsets[] = { 0, 1, 3, 0x13, 0xfff, 0x1001, 0x7fffffff, 0xffffffff };
    static const uint32_t lens_bytes[] = { 0, 1, 2, 3, 4, 5, 8, 0xffffffff };
    CfgWindow w = find_window();

    ASSERT_TRUE(smoke_start(0));
    for (uint32_t bar = 0; bar < 8; bar++) {
        for (size_t i = 0; i < 8; i++) {
            for (size_t k = 0; k < 8; k++) {
                aim(&w, bar, offsets[i], lens_bytes[k]);
                pci_read32(w.f, w.cap + CAP_DATA);
            }
        }
    }
    EXPECT_TRUE(smoke_works());
}

/* What is read where no device answers. */
static uint8_t nobodys_byte(void)
{
    return smoke.qemu ? 0 : 0xff;
}

static void read_bars(PciFunction f, uint32_t *ret_bars)
{
    for (unsigned i = 0; i < PCI_NB_BARS; i++) {
        ret_bars[i] = pci_read32(f, PCI_BAR0 + 4 * i);
    }
}

static void write_bars(PciFunction f, const uint32_t *bars)
{
    uint16_t command = pci_read16(f, PCI_COMMAND);

    pci_write16(f, PCI_COMMAND, command & (uint16_t)~PCI_COMMAND_MEMORY);
    for (unsigned i = 0; i < PCI_NB_BARS; i++) {
        pci_write32(f, PCI_BAR0 + 4 * i, bars[i]);
    }
    pci_write16(f, PCI_COMMAND, command);
}

TEST(pci, bars_move_and_move_back_under_a_running_device)
{
    VpciDevice *d = smoke_pci();
    VblkQueue *q = &smoke.disk.queues[0];
    uint32_t bars[PCI_NB_BARS];
    VpciDevice moved;

    ASSERT_TRUE(smoke_start(0));
    read_bars(d->pci, bars);
    ASSERT_TRUE(vpci_open(&moved, smoke.nth, true));
    ASSERT_NE(moved.common_gpa, d->common_gpa);
    EXPECT_EQ(mmio_read8(moved.common + VIRTIO_PCI_STATUS) & VIRTIO_STATUS_DRIVER_OK,
              VIRTIO_STATUS_DRIVER_OK);
    EXPECT_EQ(mmio_read8(d->common + VIRTIO_PCI_STATUS), nobodys_byte());
    q->ring.doorbell = moved.notify + ((volatile uint8_t *)q->ring.doorbell - d->notify);
    EXPECT_EQ(vblk_do(q, VIRTIO_BLK_T_IN, 0, smoke.in, 512), VIRTIO_BLK_S_OK);
    write_bars(d->pci, bars);
    EXPECT_TRUE(smoke_works());
}

TEST(pci, sizing_a_bar_while_it_decodes_does_no_harm)
{
    VpciDevice *d = smoke_pci();
    uint32_t bars[PCI_NB_BARS];

    ASSERT_TRUE(smoke_start(0));
    read_bars(d->pci, bars);
    for (unsigned i = 0; i < PCI_NB_BARS; i++) {
        pci_write32(d->pci, PCI_BAR0 + 4 * i, ALL_ONES);
        pci_read32(d->pci, PCI_BAR0 + 4 * i);
        pci_write32(d->pci, PCI_BAR0 + 4 * i, bars[i]);
    }
    EXPECT_TRUE(smoke_works());
}

TEST(pci, a_function_whose_memory_is_off_answers_nothing)
{
    VpciDevice *d = smoke_pci();
    uint16_t command = pci_read16(d->pci, PCI_COMMAND);

    ASSERT_TRUE(smoke_start(0));
    pci_write16(d->pci, PCI_COMMAND, command & (uint16_t)~PCI_COMMAND_MEMORY);
    EXPECT_EQ(mmio_read8(d->common + VIRTIO_PCI_STATUS), nobodys_byte());
    mmio_write8(d->common + VIRTIO_PCI_STATUS, 0);
    pci_write16(d->pci, PCI_COMMAND, command);
    EXPECT_EQ(mmio_read8(d->common + VIRTIO_PCI_STATUS) & VIRTIO_STATUS_DRIVER_OK,
              VIRTIO_STATUS_DRIVER_OK);
    EXPECT_TRUE(smoke_works());
}
