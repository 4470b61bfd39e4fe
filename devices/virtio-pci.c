/*
 * virtio-pci.c - the PCI function around a VirtioDevice: BARs, capabilities, doorbells
 *
 * BAR 0 holds a structure a page, so that a guest may map each on its own:
 *
 *     0x0000 common configuration     main context (virtio-pci-common.c)
 *     0x1000 ISR byte                 answered in the vCPU thread
 *     0x2000 device configuration     main context
 *     0x3000 notify, 4 bytes a queue  doorbells; here only what the kernel did not take
 *
 * BAR 2 holds the MSI-X table and pending bits.
 *
 * 1. A vCPU thread hands a register access to the main context and waits for it, perhaps holding
 *    the PCI host's config_lock (PCI_CFG capability, BAR moves). So nothing that runs in the main
 *    context takes that lock while vCPUs run.
 * 2. A doorbell is attached exactly when its queue wants one, the notify structure is on the bus
 * and
 *    the platform could. All three are known in the main context only. A queue without still
 *    works: its kicks exit to notify_write().
 * 3. A kick always signals the queue's notifier, whatever the device's status: a stopped queue
 * looks
 *    at its notifier once it starts, so that nothing is lost and nothing is consumed early.
 */
#include "devices/virtio-pci.h"

#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <stdio.h>

#include "devices/pci-int.h"
#include "devices/virtio-pci-int.h"

#define VENDOR_VIRTIO      0x1af4
#define DEVICE_VIRTIO_BASE 0x1040 /* + virtio device id */
#define SUBSYSTEM_ID       0x1100
#define CLASS_STORAGE      0x018000

#define REGS_BAR         0
#define REGS_BAR_BYTES   0x4000
#define COMMON_OFFSET    0x0000
#define ISR_OFFSET       0x1000
#define DEVICE_OFFSET    0x2000
#define NOTIFY_OFFSET    0x3000
#define STRUCTURE_BYTES  0x1000
#define NOTIFY_STRIDE    4
#define MSIX_BAR         2

#define CFG_DATA_OFFSET sizeof(struct virtio_pci_cap)
#define CFG_CAP_BYTES   sizeof(struct virtio_pci_cfg_cap)

static_assert(VIRTIO_QUEUES_MAX * NOTIFY_STRIDE <= STRUCTURE_BYTES, "notify structure too small");
static_assert(VIRTIO_QUEUES_MAX + 1 <= MSIX_VECTORS_MAX, "a vector a queue and one for config");
static_assert(VIRTIO_QUEUES_MAX <= 64, "queues_in_reset has a bit a queue");
static_assert(CFG_CAP_BYTES == 20, "VIRTIO 1.2 section 4.1.4.9");

/* --- doorbells; main context --- */

static void doorbell_attach(VirtioPci *vpci, unsigned index)
{
    int ret;

    if (!vpci->notify_gpa || vpci->doorbell_fd[index] < 0 || vpci->doorbell_attached[index]) {
        return;
    }
    ret = vpci->platform->ops->doorbell_attach(vpci->platform->opaque,
                                               vpci->notify_gpa + index * NOTIFY_STRIDE, 0, -1,
                                               vpci->doorbell_fd[index]);
    if (ret < 0) {
        log_limited(&vpci->vdev->log_limit, LOG_LEVEL_INFO, "virtio-pci",
                    "%s: queue %u: no doorbell, kicks take the slow way: %s", vpci->vdev->name,
                    index, error_strerror(ret));
    }
    vpci->doorbell_attached[index] = ret == 0;
}

static void doorbell_detach(VirtioPci *vpci, unsigned index)
{
    if (vpci->doorbell_attached[index]) {
        vpci->platform->ops->doorbell_detach(vpci->platform->opaque,
                                             vpci->notify_gpa + index * NOTIFY_STRIDE, 0, -1,
                                             vpci->doorbell_fd[index]);
        vpci->doorbell_attached[index] = false;
    }
}

static int transport_attach_doorbell(void *opaque, unsigned index, EventNotifier *en)
{
    VirtioPci *vpci = opaque;

    assert(vpci->doorbell_fd[index] < 0);
    vpci->doorbell_fd[index] = en->fd;
    doorbell_attach(vpci, index);
    return 0;
}

static void transport_detach_doorbell(void *opaque, unsigned index, EventNotifier *en)
{
    VirtioPci *vpci = opaque;

    doorbell_detach(vpci, index);
    vpci->doorbell_fd[index] = -1;
}

typedef struct NotifyMove {
    VirtioPci *vpci;
    uint64_t notify_gpa;
} NotifyMove;

static void notify_move_cb(void *opaque)
{
    NotifyMove *move = opaque;
    VirtioPci *vpci = move->vpci;

    for (unsigned i = 0; i < vpci->vdev->nb_queues; i++) {
        doorbell_detach(vpci, i);
    }
    vpci->notify_gpa = move->notify_gpa;
    for (unsigned i = 0; i < vpci->vdev->nb_queues; i++) {
        doorbell_attach(vpci, i);
    }
}

static void bar_mapped(PciDevice *dev, unsigned bar, uint64_t gpa, bool enabled)
{
    VirtioPci *vpci = container_of(dev, VirtioPci, pci);
    NotifyMove move = { vpci, enabled ? gpa + NOTIFY_OFFSET : 0 };

    if (bar != REGS_BAR) {
        return;
    }
    if (aio_current() == vpci->platform->main) {
        notify_move_cb(&move); /* perhaps in a coroutine, which may not wait */
    } else {
        aio_run_sync(vpci->platform->main, notify_move_cb, &move);
    }
}

/* --- BAR 0 --- */

typedef struct RegsAccess {
    VirtioPci *vpci;
    uint64_t offset;
    unsigned len_bytes;
    bool is_write;
    uint64_t value;
} RegsAccess;

static co_fn void device_config_access(RegsAccess *access)
{
    VirtioDevice *vdev = access->vpci->vdev;
    uint64_t offset = access->offset - DEVICE_OFFSET;
    le64 value = le64_make(access->value);

    if (access->is_write) {
        vdev_co_config_write(vdev, offset, &value, access->len_bytes);
    } else {
        vdev_config_read(vdev, offset, &value, access->len_bytes);
        access->value = le64_get(value);
    }
}

static co_fn void regs_access_co(void *opaque)
{
    RegsAccess *access = opaque;

    if (access->offset >= DEVICE_OFFSET) {
        device_config_access(access);
    } else if (access->is_write) {
        virtio_pci_common_co_write(access->vpci, access->offset, access->len_bytes, access->value);
    } else {
        access->value =
            virtio_pci_common_read(access->vpci, access->offset, access->len_bytes);
    }
}

static void notify_write(VirtioPci *vpci, uint64_t offset)
{
    VirtioDevice *vdev = vpci->vdev;
    uint64_t index = offset / NOTIFY_STRIDE;

    if (offset % NOTIFY_STRIDE == 0 && index < vdev->nb_queues) {
        event_notifier_set(&vdev->queues[index].doorbell);
    }
}

static uint64_t regs_read(void *opaque, uint64_t offset, unsigned len_bytes)
{
    VirtioPci *vpci = opaque;
    RegsAccess access = { .vpci = vpci, .offset = offset, .len_bytes = len_bytes };

    switch (offset & ~(uint64_t)(STRUCTURE_BYTES - 1)) {
    case ISR_OFFSET:
        return offset == ISR_OFFSET ? virtio_pci_irq_take_isr(vpci) : 0;
    case NOTIFY_OFFSET:
        return 0;
    default:
        aio_co_run_sync(vpci->platform->main, regs_access_co, &access);
        return access.value;
    }
}

static void regs_write(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value)
{
    VirtioPci *vpci = opaque;
    RegsAccess access = { .vpci = vpci, .offset = offset, .len_bytes = len_bytes,
                          .is_write = true, .value = value };

    switch (offset & ~(uint64_t)(STRUCTURE_BYTES - 1)) {
    case ISR_OFFSET:
        break;
    case NOTIFY_OFFSET:
        notify_write(vpci, offset - NOTIFY_OFFSET);
        break;
    default:
        aio_co_run_sync(vpci->platform->main, regs_access_co, &access);
        break;
    }
}

static const BusOps regs_ops = { .read = regs_read, .write = regs_write };

/* --- PCI_CFG: a window on the BARs for a guest that cannot reach memory --- */

/* The BAR access that the capability's fields ask for, NULL when they make no sense. */
static const PciBar *cfg_window(const VirtioPci *vpci, uint32_t *ret_offset, unsigned *ret_bytes)
{
    const PciDevice *dev = &vpci->pci;
    unsigned bar = dev->config[vpci->cfg_cap + VIRTIO_PCI_CAP_BAR];
    uint32_t offset = pci_config_get32(dev, vpci->cfg_cap + VIRTIO_PCI_CAP_OFFSET);
    uint32_t len_bytes = pci_config_get32(dev, vpci->cfg_cap + VIRTIO_PCI_CAP_LENGTH);

    if (bar >= PCI_BARS || (len_bytes != 1 && len_bytes != 2 && len_bytes != 4) ||
        offset % len_bytes != 0 || (uint64_t)offset + len_bytes > dev->bars[bar].len_bytes) {
        return NULL;
    }
    *ret_offset = offset;
    *ret_bytes = len_bytes;
    return &dev->bars[bar];
}

static bool touches_cfg_data(const VirtioPci *vpci, unsigned offset, unsigned len_bytes)
{
    return pci_range_touches(offset, len_bytes, vpci->cfg_cap + CFG_DATA_OFFSET, 1);
}

static void config_reading(PciDevice *dev, unsigned offset, unsigned len_bytes)
{
    VirtioPci *vpci = container_of(dev, VirtioPci, pci);
    uint64_t value = UINT64_MAX;
    uint32_t at;
    unsigned at_bytes;

    if (touches_cfg_data(vpci, offset, len_bytes)) {
        const PciBar *bar = cfg_window(vpci, &at, &at_bytes);

        if (bar) {
            value = bar->ops->read(bar->opaque, at, at_bytes);
        }
        pci_config_set32(dev->config, vpci->cfg_cap + CFG_DATA_OFFSET, (uint32_t)value);
    }
}

static void config_written(PciDevice *dev, unsigned offset, unsigned len_bytes)
{
    VirtioPci *vpci = container_of(dev, VirtioPci, pci);
    uint32_t at;
    unsigned at_bytes;

    if (msix_config_written(&vpci->msix, offset, len_bytes)) {
        virtio_pci_irq_msix_changed(vpci);
    }
    if (touches_cfg_data(vpci, offset, len_bytes)) {
        const PciBar *bar = cfg_window(vpci, &at, &at_bytes);
        uint32_t value = pci_config_get32(dev, vpci->cfg_cap + CFG_DATA_OFFSET);

        if (bar) {
            value &= UINT32_MAX >> (32 - 8 * at_bytes);
            bar->ops->write(bar->opaque, at, at_bytes, value);
        }
    }
}

static const PciDeviceOps pci_ops = {
    .config_written = config_written,
    .config_reading = config_reading,
    .bar_mapped = bar_mapped,
};

/* --- capabilities --- */

static unsigned add_capability(VirtioPci *vpci, uint8_t type, unsigned cap_bytes, uint32_t offset,
                               uint32_t len_bytes)
{
    uint8_t *config = vpci->pci.config;
    unsigned cap = pci_add_capability(&vpci->pci, PCI_CAP_ID_VNDR, cap_bytes);

    config[cap + VIRTIO_PCI_CAP_LEN] = (uint8_t)cap_bytes;
    config[cap + VIRTIO_PCI_CAP_CFG_TYPE] = type;
    config[cap + VIRTIO_PCI_CAP_BAR] = REGS_BAR;
    pci_config_set32(config, cap + VIRTIO_PCI_CAP_OFFSET, offset);
    pci_config_set32(config, cap + VIRTIO_PCI_CAP_LENGTH, len_bytes);
    return cap;
}

static void add_capabilities(VirtioPci *vpci)
{
    const unsigned plain = sizeof(struct virtio_pci_cap);
    PciDevice *dev = &vpci->pci;
    unsigned notify, cfg;

    add_capability(vpci, VIRTIO_PCI_CAP_COMMON_CFG, plain, COMMON_OFFSET, COMMON_BYTES);
    add_capability(vpci, VIRTIO_PCI_CAP_ISR_CFG, plain, ISR_OFFSET, 1);
    add_capability(vpci, VIRTIO_PCI_CAP_DEVICE_CFG, plain, DEVICE_OFFSET,
                   (uint32_t)vpci->vdev->ops->config_bytes);
    notify = add_capability(vpci, VIRTIO_PCI_CAP_NOTIFY_CFG, sizeof(struct virtio_pci_notify_cap),
                            NOTIFY_OFFSET, vpci->vdev->nb_queues * NOTIFY_STRIDE);
    pci_config_set32(dev->config, notify + VIRTIO_PCI_NOTIFY_CAP_MULT, NOTIFY_STRIDE);

    cfg = add_capability(vpci, VIRTIO_PCI_CAP_PCI_CFG, CFG_CAP_BYTES, 0, 0);
    dev->config[cfg + VIRTIO_PCI_CAP_BAR] = 0;
    dev->writable[cfg + VIRTIO_PCI_CAP_BAR] = 0xff;
    pci_config_set32(dev->writable, cfg + VIRTIO_PCI_CAP_OFFSET, UINT32_MAX);
    pci_config_set32(dev->writable, cfg + VIRTIO_PCI_CAP_LENGTH, UINT32_MAX);
    pci_config_set32(dev->writable, cfg + CFG_DATA_OFFSET, UINT32_MAX);
    vpci->cfg_cap = cfg;
}

/* --- life --- */

static const VirtioTransportOps transport_ops = {
    .attach_doorbell = transport_attach_doorbell,
    .detach_doorbell = transport_detach_doorbell,
    .notify_queue = virtio_pci_irq_notify_queue,
    .notify_config = virtio_pci_irq_notify_config,
};

static int build(VirtioPci *vpci, unsigned slot, Error *err)
{
    VirtioDevice *vdev = vpci->vdev;
    PciDeviceIds ids = {
        .vendor = VENDOR_VIRTIO,
        .device = DEVICE_VIRTIO_BASE + vdev->ops->device_id,
        .subsystem_vendor = VENDOR_VIRTIO,
        .subsystem = SUBSYSTEM_ID,
        .revision = 1,
        .class_code = CLASS_STORAGE,
    };
    int ret;

    assert(vdev->ops->config_bytes <= STRUCTURE_BYTES);
    pci_device_init(&vpci->pci, &pci_ops, &ids, vdev->name);
    pci_use_intx(&vpci->pci);
    pci_set_bar(&vpci->pci, REGS_BAR, REGS_BAR_BYTES, true, false, &regs_ops, vpci);
    pci_set_bar(&vpci->pci, MSIX_BAR, MSIX_BAR_BYTES, false, false, &msix_bar_ops, &vpci->msix);
    ret = msix_init(&vpci->msix, &vpci->pci, vpci->platform, vdev->nb_queues + 1, MSIX_BAR, err);
    if (ret < 0) {
        return ret;
    }
    add_capabilities(vpci);
    ret = pci_host_add(vpci->host, &vpci->pci, slot, err);
    if (ret < 0) {
        return ret;
    }
    vdev_set_transport(vdev, &transport_ops, vpci);
    return 0;
}

VirtioPci *virtio_pci_create(Platform *platform, PciHost *host, unsigned slot, VirtioDevice *vdev,
                             Error *err)
{
    VirtioPci *vpci = calloc(1, sizeof(*vpci));

    if (!vpci) {
        error_set(err, -ENOMEM, "%s: no memory for a PCI function", vdev->name);
        return NULL;
    }
    vpci->platform = platform;
    vpci->host = host;
    vpci->vdev = vdev;
    virtio_pci_irq_init(vpci);
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) {
        vpci->doorbell_fd[i] = -1;
    }
    if (build(vpci, slot, err) < 0) {
        virtio_pci_destroy(vpci);
        return NULL;
    }
    return vpci;
}

void virtio_pci_destroy(VirtioPci *vpci)
{
    if (!vpci) {
        return;
    }
    for (unsigned i = 0; i < vpci->vdev->nb_queues; i++) {
        assert(vpci->doorbell_fd[i] < 0); /* the device was reset */
    }
    if (vpci->pci.host) {
        virtio_pci_irq_reset(vpci); /* no queue keeps a vector's descriptor */
        pci_host_remove(vpci->host, &vpci->pci);
    }
    msix_finish(&vpci->msix);
    pci_device_finish(&vpci->pci);
    pthread_mutex_destroy(&vpci->irq_lock);
    free(vpci);
}

void virtio_pci_co_reset(VirtioPci *vpci)
{
    vdev_co_reset(vpci->vdev);
    virtio_pci_common_reset(vpci);
    msix_reset(&vpci->msix);
    virtio_pci_irq_reset(vpci);
}
