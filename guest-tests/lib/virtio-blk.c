/*
 * VblkDevice - a small virtio-blk driver, polling or with interrupts
 */
#include "guest-tests/lib/virtio-blk.h"

#include "guest-tests/lib/irq.h"
#include "guest-tests/lib/tsc.h"

#define REQUEST_TIMEOUT_MS 20000
#define PAGE_BYTES         4096

bool vblk_open(VblkDevice *d, VdevTransport transport, unsigned nth, bool reassign)
{
    if (!vdev_open(&d->dev, transport, nth, reassign)) {
        return false;
    }
    d->capacity_sectors = vdev_config64(&d->dev, VIRTIO_BLK_CFG_CAPACITY);
    d->max_queues = vdev_get_features(&d->dev) & VIRTIO_BLK_F_MQ
                        ? vdev_config16(&d->dev, VIRTIO_BLK_CFG_NUM_QUEUES)
                        : 1;
    return true;
}

/* The largest size that is neither above @wanted nor above @max; split: a power of 2. */
static uint16_t choose_size(uint16_t max, uint16_t wanted, bool packed)
{
    uint16_t size = 1;

    if (wanted && wanted < max) {
        max = wanted;
    }
    if (packed) {
        return max;
    }
    while (size <= max / 2) {
        size = (uint16_t)(size * 2);
    }
    return size;
}

static void start_queue(VblkDevice *d, uint16_t i, uint16_t size,
                        bool interrupts)
{
    VblkQueue *q = &d->queues[i];

    if (q->ring.size != size) {
        vring_init(&q->ring, i, size);
        q->slots = mem_alloc(sizeof(VblkSlot) * size, PAGE_BYTES);
    }
    q->indirect = d->features & VIRTIO_F_INDIRECT_DESC;
    q->nb_slots = q->indirect ? size : size / VBLK_SLOT_DESCS;
    q->ring.event_idx = d->features & VIRTIO_F_EVENT_IDX;
    q->ring.interrupts = interrupts;
    q->ring.is_packed = d->features & VIRTIO_F_RING_PACKED;
    q->ring.wide_doorbell = vdev_doorbell_bytes(&d->dev) == 4;
    q->vector = vdev_vector(&d->dev, i);
    q->irqs_seen = irq_count(q->vector);
    vring_rewind(&q->ring);
    q->ring.doorbell =
        vdev_setup_queue(&d->dev, i, size, mem_gpa(q->ring.desc),
                         mem_gpa(q->ring.avail), mem_gpa(q->ring.used));
}

static const char *negotiate(VblkDevice *d, uint64_t wanted)
{
    uint8_t status = VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER;

    if (!vdev_reset(&d->dev)) {
        return "the status does not go to 0 after a reset";
    }
    vdev_set_status(&d->dev, VIRTIO_STATUS_ACKNOWLEDGE);
    vdev_set_status(&d->dev, status);
    d->features =
        (wanted | VIRTIO_F_VERSION_1) & vdev_get_features(&d->dev);
    vdev_set_features(&d->dev, d->features);
    status |= VIRTIO_STATUS_FEATURES_OK;
    vdev_set_status(&d->dev, status);
    if (!(vdev_get_status(&d->dev) & VIRTIO_STATUS_FEATURES_OK)) {
        return "FEATURES_OK is refused";
    }
    return NULL;
}

const char *vblk_start(VblkDevice *d, const VblkSetup *setup)
{
    const char *problem = negotiate(d, setup->features);

    if (problem) {
        return problem;
    }
    if (setup->nb_queues > VBLK_MAX_QUEUES ||
        setup->nb_queues > d->max_queues) {
        return "the device has fewer queues";
    }
    d->nb_queues = setup->nb_queues;
    if (!setup->interrupts) {
        vdev_disable_interrupts(&d->dev);
    } else if (!vdev_enable_interrupts(&d->dev, setup->nb_queues)) {
        return "no interrupt vector for every queue";
    }
    for (uint16_t i = 0; i < setup->nb_queues; i++) {
        uint16_t max = vdev_get_queue_size(&d->dev, i);

        if (max == 0) {
            return "a queue has size 0";
        }
        start_queue(d, i, choose_size(max, setup->queue_size, d->features & VIRTIO_F_RING_PACKED),
                    setup->interrupts);
    }
    vdev_set_status(&d->dev,
                    VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER |
                        VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_DRIVER_OK);
    return NULL;
}

/* With interrupts: until the next one. */
static bool may_look(VblkQueue *q)
{
    uint64_t count;

    if (!q->ring.interrupts) {
        return true;
    }
    count = irq_count(q->vector);
    if (count == q->irqs_seen) {
        return false;
    }
    q->irqs_seen = count;
    return true;
}

bool vblk_wait(VblkQueue *q, uint64_t timeout_ms, uint16_t *ret_slot)
{
    uint64_t start = cpu_rdtsc();
    bool taken;

    cpu_mb(); /* between asking for interrupts and the look at the ring */
    q->irqs_seen = irq_count(q->vector);
    taken = vblk_take(q, ret_slot);
    while (!taken) {
        if (cpu_rdtsc() - start > tsc_from_ms(timeout_ms)) {
            return false;
        }
        cpu_pause();
        taken = may_look(q) && vblk_take(q, ret_slot);
    }
    vring_taken_all(&q->ring);
    return true;
}

int vblk_do(VblkQueue *q, uint32_t type, uint64_t sector, void *data,
            uint32_t len_bytes)
{
    uint16_t slot;

    vblk_offer(q, 0, type, sector, data, len_bytes);
    vring_publish(&q->ring);
    if (!vblk_wait(q, REQUEST_TIMEOUT_MS, &slot) || slot != 0) {
        return -1;
    }
    return q->slots[0].status;
}
