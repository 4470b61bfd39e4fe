/*
 * Virtio - numbers and layouts of the specification that the payloads use
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: constants and types only.
 * Lifetime:  none.
 * Spec:      VIRTIO 1.2, 2.1, 2.7, 2.8, 4.1.4, 5.2, 6
 */
#ifndef GUEST_TESTS_LIB_VIRTIO_H
#define GUEST_TESTS_LIB_VIRTIO_H

#include <stdint.h>

#define VIRTIO_STATUS_ACKNOWLEDGE 0x01
#define VIRTIO_STATUS_DRIVER      0x02
#define VIRTIO_STATUS_DRIVER_OK   0x04
#define VIRTIO_STATUS_FEATURES_OK 0x08
#define VIRTIO_STATUS_NEEDS_RESET 0x40
#define VIRTIO_STATUS_FAILED      0x80

#define VIRTIO_F_INDIRECT_DESC (1ull << 28)
#define VIRTIO_F_EVENT_IDX     (1ull << 29)
#define VIRTIO_F_VERSION_1     (1ull << 32)
#define VIRTIO_F_RING_PACKED   (1ull << 34)
#define VIRTIO_F_RING_RESET    (1ull << 40)

#define VIRTIO_NO_VECTOR 0xffff
#define VIRTIO_ID_BLOCK  2

/* struct virtio_pci_common_cfg */
#define VIRTIO_PCI_DEVICE_FEATURE_SELECT 0
#define VIRTIO_PCI_DEVICE_FEATURE        4
#define VIRTIO_PCI_DRIVER_FEATURE_SELECT 8
#define VIRTIO_PCI_DRIVER_FEATURE        12
#define VIRTIO_PCI_CONFIG_VECTOR         16
#define VIRTIO_PCI_NUM_QUEUES            18
#define VIRTIO_PCI_STATUS                20
#define VIRTIO_PCI_CONFIG_GENERATION     21
#define VIRTIO_PCI_QUEUE_SELECT          22
#define VIRTIO_PCI_QUEUE_SIZE            24
#define VIRTIO_PCI_QUEUE_VECTOR          26
#define VIRTIO_PCI_QUEUE_ENABLE          28
#define VIRTIO_PCI_QUEUE_NOTIFY_OFF      30
#define VIRTIO_PCI_QUEUE_DESC            32
#define VIRTIO_PCI_QUEUE_DRIVER          40
#define VIRTIO_PCI_QUEUE_DEVICE          48
#define VIRTIO_PCI_QUEUE_RESET           58

/* struct virtio_pci_cap */
#define VIRTIO_PCI_CAP_TYPE        3
#define VIRTIO_PCI_CAP_BAR         4
#define VIRTIO_PCI_CAP_OFFSET      8
#define VIRTIO_PCI_CAP_LENGTH      12
#define VIRTIO_PCI_CAP_NOTIFY_MULT 16
#define VIRTIO_PCI_CAP_COMMON_CFG  1
#define VIRTIO_PCI_CAP_NOTIFY_CFG  2
#define VIRTIO_PCI_CAP_ISR_CFG     3
#define VIRTIO_PCI_CAP_DEVICE_CFG  4
#define VIRTIO_PCI_CAP_PCI_CFG     5

#define VRING_DESC_F_NEXT           1
#define VRING_DESC_F_WRITE          2
#define VRING_DESC_F_INDIRECT       4
#define VRING_AVAIL_F_NO_INTERRUPT  1
#define VRING_USED_F_NO_NOTIFY      1
#define VRING_MAX_SIZE              32768

#define VRING_PACKED_DESC_F_AVAIL   (1u << 7)
#define VRING_PACKED_DESC_F_USED    (1u << 15)
#define VRING_PACKED_EVENT_ENABLE   0u
#define VRING_PACKED_EVENT_DISABLE  1u
#define VRING_PACKED_EVENT_DESC     2u
#define VRING_PACKED_EVENT_WRAP     (1u << 15)

typedef struct {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
} VringDesc;

typedef struct {
    uint16_t flags;
    uint16_t idx;
    uint16_t ring[]; /* then used_event */
} VringAvail;

typedef struct {
    uint32_t id;
    uint32_t len;
} VringUsedElem;

typedef struct {
    uint16_t flags;
    uint16_t idx;
    VringUsedElem ring[]; /* then avail_event */
} VringUsed;

typedef struct {
    uint64_t addr;
    uint32_t len;
    uint16_t id;
    uint16_t flags;
} VringPackedDesc;

_Static_assert(sizeof(VringDesc) == 16, "VIRTIO 1.2, 2.7.5");
_Static_assert(sizeof(VringPackedDesc) == 16, "VIRTIO 1.2, 2.8.13");
_Static_assert(sizeof(VringUsedElem) == 8, "VIRTIO 1.2, 2.7.8");

#define VIRTIO_BLK_F_SIZE_MAX     (1ull << 1)
#define VIRTIO_BLK_F_SEG_MAX      (1ull << 2)
#define VIRTIO_BLK_F_RO           (1ull << 5)
#define VIRTIO_BLK_F_BLK_SIZE     (1ull << 6)
#define VIRTIO_BLK_F_FLUSH        (1ull << 9)
#define VIRTIO_BLK_F_TOPOLOGY     (1ull << 10)
#define VIRTIO_BLK_F_CONFIG_WCE   (1ull << 11)
#define VIRTIO_BLK_F_MQ           (1ull << 12)
#define VIRTIO_BLK_F_DISCARD      (1ull << 13)
#define VIRTIO_BLK_F_WRITE_ZEROES (1ull << 14)

/* struct virtio_blk_config */
#define VIRTIO_BLK_CFG_CAPACITY               0
#define VIRTIO_BLK_CFG_SEG_MAX                12
#define VIRTIO_BLK_CFG_BLK_SIZE               20
#define VIRTIO_BLK_CFG_WRITEBACK              32
#define VIRTIO_BLK_CFG_NUM_QUEUES             34
#define VIRTIO_BLK_CFG_MAX_DISCARD_SECTORS    36
#define VIRTIO_BLK_CFG_MAX_DISCARD_SEG        40
#define VIRTIO_BLK_CFG_DISCARD_ALIGN_SECTORS  44
#define VIRTIO_BLK_CFG_MAX_WZ_SECTORS         48
#define VIRTIO_BLK_CFG_MAX_WZ_SEG             52

#define VIRTIO_BLK_T_IN           0
#define VIRTIO_BLK_T_OUT          1
#define VIRTIO_BLK_T_FLUSH        4
#define VIRTIO_BLK_T_GET_ID       8
#define VIRTIO_BLK_T_DISCARD      11
#define VIRTIO_BLK_T_WRITE_ZEROES 13

#define VIRTIO_BLK_S_OK     0
#define VIRTIO_BLK_S_IOERR  1
#define VIRTIO_BLK_S_UNSUPP 2

#define VIRTIO_BLK_ID_BYTES     20
#define VIRTIO_BLK_SECTOR_BYTES 512
#define VIRTIO_BLK_WZ_F_UNMAP   1

typedef struct {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
} VirtioBlkHeader;

typedef struct {
    uint64_t sector;
    uint32_t nb_sectors;
    uint32_t flags;
} VirtioBlkRange;

_Static_assert(sizeof(VirtioBlkHeader) == 16, "VIRTIO 1.2, 5.2.6");
_Static_assert(sizeof(VirtioBlkRange) == 16, "VIRTIO 1.2, 5.2.6");

#endif
