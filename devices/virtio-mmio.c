/*
 * virtio-mmio.c - the register window of VIRTIO 1.2 section 4.2.2
 *
 * 1. Registers below 0x100 take aligned 32-bit accesses only; others read 0 and write nothing. The
 *    device configuration above takes any.
 * 2. A used buffer must show in InterruptStatus, so queues have no interrupt eventfd of their own:
 *    every notification comes through notify(), which sets the bit before it signals the GSI.
 *    The edge may be spurious for a driver that has acknowledged already, but never missing.
 * 3. Doorbells are attached for a 4-byte write of the queue's index to QueueNotify; kicks of a
 * queue
 *    whose doorbell the platform refused come to queue_notify(). A kick always signals the queue's
 *    notifier (virtio-pci.c says why).
 */
#include "devices/virtio-mmio.h"

#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>

#include "io/base/endian.h"

#define MAGIC          0x74726976 /* "virt" */
#define VERSION        2
#define VENDOR         0x6b747370 /* "pstk" */
#define QUEUE_RESET    0x0c0 /* VIRTIO 1.2; not in older Linux headers */
#define DOORBELL_BYTES 4

static_assert(VIRTIO_QUEUES_MAX <= 64, "queues_in_reset has a bit a queue");

struct VirtioMmio {
    _Atomic uint32_t interrupt_status; /* set by any thread, cleared by the driver's ACK */

    /* registers; main context */
    uint32_t device_features_select;
    uint32_t driver_features_select;
    uint32_t queue_select;
    uint64_t queues_in_reset; /* a bit a queue: QueueReset reads 1 */
    bool doorbell_attached[VIRTIO_QUEUES_MAX];

    /* set up */
    Platform *platform;
    VirtioDevice *vdev;
    uint64_t gpa;
    unsigned gsi;
    EventNotifier irq;
    bool irq_attached;
    bool on_bus;
};

/* --- transport --- */

static int transport_attach_doorbell(void *opaque, unsigned index, EventNotifier *en)
{
    VirtioMmio *vmmio = opaque;
    int ret = vmmio->platform->ops->doorbell_attach(vmmio->platform->opaque,
                                                    vmmio->gpa + VIRTIO_MMIO_QUEUE_NOTIFY,
                                                    DOORBELL_BYTES, index, en->fd);

    if (ret < 0) {
        log_limited(&vmmio->vdev->log_limit, LOG_LEVEL_INFO, "virtio-mmio",
                    "%s: queue %u: no doorbell, kicks take the slow way: %s", vmmio->vdev->name,
                    index, error_strerror(ret));
    }
    vmmio->doorbell_attached[index] = ret == 0;
    return 0;
}

static void transport_detach_doorbell(void *opaque, unsigned index, EventNotifier *en)
{
    VirtioMmio *vmmio = opaque;

    if (vmmio->doorbell_attached[index]) {
        vmmio->platform->ops->doorbell_detach(vmmio->platform->opaque,
                                              vmmio->gpa + VIRTIO_MMIO_QUEUE_NOTIFY,
                                              DOORBELL_BYTES, index, en->fd);
        vmmio->doorbell_attached[index] = false;
    }
}

static void notify(VirtioMmio *vmmio, uint32_t bit)
{
    atomic_fetch_or(&vmmio->interrupt_status, bit);
    event_notifier_set(&vmmio->irq);
}

static void transport_notify_queue(void *opaque, unsigned index)
{
    notify(opaque, VIRTIO_MMIO_INT_VRING);
}

static void transport_notify_config(void *opaque)
{
    notify(opaque, VIRTIO_MMIO_INT_CONFIG);
}

static const VirtioTransportOps transport_ops = {
    .attach_doorbell = transport_attach_doorbell,
    .detach_doorbell = transport_detach_doorbell,
    .notify_queue = transport_notify_queue,
    .notify_config = transport_notify_config,
};

/* --- registers; coroutine in main --- */

typedef struct MmioAccess {
    VirtioMmio *vmmio;
    uint64_t offset;
    unsigned len_bytes;
    bool is_write;
    uint64_t value;
} MmioAccess;

static uint32_t read_queue_register(VirtioMmio *vmmio, uint64_t offset)
{
    const VirtQueue *vq = vdev_queue(vmmio->vdev, vmmio->queue_select);

    if (!vq) {
        return 0;
    }
    switch (offset) {
    case VIRTIO_MMIO_QUEUE_NUM_MAX:
        return vq->max_size;
    case VIRTIO_MMIO_QUEUE_READY:
        return vq->cfg_enabled;
    case QUEUE_RESET:
        return vmmio->queues_in_reset >> vq->index & 1;
    default:
        return 0;
    }
}

static uint32_t read_register(VirtioMmio *vmmio, uint64_t offset)
{
    VirtioDevice *vdev = vmmio->vdev;

    switch (offset) {
    case VIRTIO_MMIO_MAGIC_VALUE:
        return MAGIC;
    case VIRTIO_MMIO_VERSION:
        return VERSION;
    case VIRTIO_MMIO_DEVICE_ID:
        return vdev->ops->device_id;
    case VIRTIO_MMIO_VENDOR_ID:
        return VENDOR;
    case VIRTIO_MMIO_DEVICE_FEATURES:
        return vdev_features_read(vdev, vmmio->device_features_select);
    case VIRTIO_MMIO_STATUS:
        return vdev_status(vdev);
    case VIRTIO_MMIO_SHM_LEN_LOW ... VIRTIO_MMIO_SHM_BASE_HIGH:
        return UINT32_MAX; /* no shared memory region */
    case VIRTIO_MMIO_CONFIG_GENERATION:
        return vdev->config_generation;
    default:
        return read_queue_register(vmmio, offset);
    }
}

static co_fn void reset_queue(VirtioMmio *vmmio, VirtQueue *vq)
{
    uint64_t bit = 1ull << vq->index;

    vmmio->queues_in_reset |= bit;
    vdev_co_queue_reset(vmmio->vdev, vq);
    vmmio->queues_in_reset &= ~bit;
}

static co_fn void write_queue_register(VirtioMmio *vmmio, uint64_t offset, uint32_t value)
{
    VirtioDevice *vdev = vmmio->vdev;
    VirtQueue *vq = vdev_queue(vdev, vmmio->queue_select);

    if (!vq) {
        return;
    }
    switch (offset) {
    case VIRTIO_MMIO_QUEUE_NUM:
        vdev_queue_set_size(vdev, vq, (uint16_t)MIN(value, UINT16_MAX));
        break;
    case VIRTIO_MMIO_QUEUE_READY:
        if (value == 1) {
            vdev_co_queue_enable(vdev, vq);
        } else if (value == 0 && vq->cfg_enabled) {
            reset_queue(vmmio, vq);
        }
        break;
    case QUEUE_RESET:
        if (value == 1 && vdev_has_feature(vdev, VIRTIO_F_RING_RESET)) {
            reset_queue(vmmio, vq);
        }
        break;
    case VIRTIO_MMIO_QUEUE_DESC_LOW:
    case VIRTIO_MMIO_QUEUE_DESC_HIGH:
        vdev_queue_set_address(vdev, vq, VQ_RING_DESC, offset & 4, value);
        break;
    case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
    case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
        vdev_queue_set_address(vdev, vq, VQ_RING_AVAIL, offset & 4, value);
        break;
    case VIRTIO_MMIO_QUEUE_USED_LOW:
    case VIRTIO_MMIO_QUEUE_USED_HIGH:
        vdev_queue_set_address(vdev, vq, VQ_RING_USED, offset & 4, value);
        break;
    }
}

static void reset_registers(VirtioMmio *vmmio)
{
    vmmio->device_features_select = 0;
    vmmio->driver_features_select = 0;
    vmmio->queue_select = 0;
    atomic_store(&vmmio->interrupt_status, 0);
}

static co_fn void write_register(VirtioMmio *vmmio, uint64_t offset, uint32_t value)
{
    switch (offset) {
    case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
        vmmio->device_features_select = value;
        break;
    case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
        vmmio->driver_features_select = value;
        break;
    case VIRTIO_MMIO_DRIVER_FEATURES:
        vdev_co_driver_features_write(vmmio->vdev, vmmio->driver_features_select, value);
        break;
    case VIRTIO_MMIO_QUEUE_SEL:
        vmmio->queue_select = value;
        break;
    case VIRTIO_MMIO_STATUS:
        vdev_co_set_status(vmmio->vdev, (uint8_t)value);
        if ((uint8_t)value == 0) {
            reset_registers(vmmio);
        }
        break;
    default:
        write_queue_register(vmmio, offset, value);
        break;
    }
}

static co_fn void access_co(void *opaque)
{
    MmioAccess *access = opaque;
    VirtioMmio *vmmio = access->vmmio;
    le64 value = le64_make(access->value);

    if (access->offset >= VIRTIO_MMIO_CONFIG) {
        uint64_t offset = access->offset - VIRTIO_MMIO_CONFIG;

        if (access->is_write) {
            vdev_co_config_write(vmmio->vdev, offset, &value, access->len_bytes);
        } else {
            vdev_config_read(vmmio->vdev, offset, &value, access->len_bytes);
            access->value = le64_get(value);
        }
    } else if (access->is_write) {
        write_register(vmmio, access->offset, (uint32_t)access->value);
    } else {
        access->value = read_register(vmmio, access->offset);
    }
}

/* --- window; vCPU threads --- */

static bool well_sized(uint64_t offset, unsigned len_bytes)
{
    return offset >= VIRTIO_MMIO_CONFIG || (len_bytes == 4 && offset % 4 == 0);
}

static uint64_t window_read(void *opaque, uint64_t offset, unsigned len_bytes)
{
    VirtioMmio *vmmio = opaque;
    MmioAccess access = { .vmmio = vmmio, .offset = offset, .len_bytes = len_bytes };

    if (!well_sized(offset, len_bytes)) {
        return 0;
    }
    if (offset == VIRTIO_MMIO_INTERRUPT_STATUS) {
        return atomic_load(&vmmio->interrupt_status);
    }
    aio_co_run_sync(vmmio->platform->main, access_co, &access);
    return access.value;
}

static void queue_notify(VirtioMmio *vmmio, uint32_t value)
{
    uint16_t index = (uint16_t)value;

    if (index < vmmio->vdev->nb_queues) {
        event_notifier_set(&vmmio->vdev->queues[index].doorbell);
    }
}

static void window_write(void *opaque, uint64_t offset, unsigned len_bytes, uint64_t value)
{
    VirtioMmio *vmmio = opaque;
    MmioAccess access = { .vmmio = vmmio, .offset = offset, .len_bytes = len_bytes,
                          .is_write = true, .value = value };

    if (!well_sized(offset, len_bytes)) {
        return;
    }
    switch (offset) {
    case VIRTIO_MMIO_QUEUE_NOTIFY:
        queue_notify(vmmio, (uint32_t)value);
        break;
    case VIRTIO_MMIO_INTERRUPT_ACK:
        atomic_fetch_and(&vmmio->interrupt_status, ~(uint32_t)value);
        break;
    default:
        aio_co_run_sync(vmmio->platform->main, access_co, &access);
        break;
    }
}

static const BusOps window_ops = { .read = window_read, .write = window_write };

/* --- life --- */

static int build(VirtioMmio *vmmio, Error *err)
{
    BusRange range = { .base = vmmio->gpa, .len_bytes = VIRTIO_MMIO_BYTES, .ops = &window_ops,
                       .opaque = vmmio, .name = vmmio->vdev->name };
    Platform *platform = vmmio->platform;
    int ret = event_notifier_open(&vmmio->irq, err);

    if (ret < 0) {
        return ret;
    }
    ret = platform->ops->irqfd_attach_gsi(platform->opaque, vmmio->gsi, vmmio->irq.fd);
    if (ret < 0) {
        return error_set(err, ret, "%s: no interrupt on GSI %u: %s", vmmio->vdev->name,
                         vmmio->gsi, error_strerror(ret));
    }
    vmmio->irq_attached = true;
    ret = bus_add(platform->mmio, &range, err);
    if (ret < 0) {
        return ret;
    }
    vmmio->on_bus = true;
    vdev_set_transport(vmmio->vdev, &transport_ops, vmmio);
    return 0;
}

VirtioMmio *virtio_mmio_create(Platform *platform, uint64_t gpa, unsigned gsi, VirtioDevice *vdev,
                               Error *err)
{
    VirtioMmio *vmmio = calloc(1, sizeof(*vmmio));

    if (!vmmio) {
        error_set(err, -ENOMEM, "%s: no memory for a virtio-mmio window", vdev->name);
        return NULL;
    }
    assert(vdev->ops->config_bytes <= VIRTIO_MMIO_BYTES - VIRTIO_MMIO_CONFIG);
    vmmio->platform = platform;
    vmmio->vdev = vdev;
    vmmio->gpa = gpa;
    vmmio->gsi = gsi;
    vmmio->irq.fd = -1;
    if (build(vmmio, err) < 0) {
        virtio_mmio_destroy(vmmio);
        return NULL;
    }
    return vmmio;
}

void virtio_mmio_destroy(VirtioMmio *vmmio)
{
    if (!vmmio) {
        return;
    }
    if (vmmio->on_bus) {
        bus_remove(vmmio->platform->mmio, vmmio->gpa);
    }
    if (vmmio->irq_attached) {
        vmmio->platform->ops->irqfd_detach_gsi(vmmio->platform->opaque, vmmio->gsi,
                                               vmmio->irq.fd);
    }
    event_notifier_close(&vmmio->irq);
    free(vmmio);
}

void virtio_mmio_co_reset(VirtioMmio *vmmio)
{
    vdev_co_reset(vmmio->vdev);
    reset_registers(vmmio);
}
