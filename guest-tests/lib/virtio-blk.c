/*
 * VblkDevice - a small virtio-blk driver that polls
 */
#include "guest-tests/lib/virtio-blk.h"

#include "guest-tests/lib/tsc.h"

#define REQUEST_TIMEOUT_MS 20000
#define PAGE_BYTES         4096

bool vblk_open(VblkDevice *d, unsigned nth, bool reassign)
{
    if (!vpci_open(&d->pci, nth, reassign)) {
        return false;
    }
    d->capacity_sectors = vpci_config64(&d->pci, VIRTIO_BLK_CFG_CAPACITY);
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
    vring_rewind(&q->ring);
    q->ring.doorbell =
        vpci_setup_queue(&d->pci, i, size, mem_gpa(q->ring.desc),
                         mem_gpa(q->ring.avail), mem_gpa(q->ring.used));
}

static const char *negotiate(VblkDevice *d, uint64_t wanted)
{
    uint8_t status = VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER;

    if (!vpci_reset(&d->pci)) {
        return "the status does not go to 0 after a reset";
    }
    vpci_set_status(&d->pci, VIRTIO_STATUS_ACKNOWLEDGE);
    vpci_set_status(&d->pci, status);
    d->features =
        (wanted | VIRTIO_F_VERSION_1) & vpci_get_features(&d->pci);
    vpci_set_features(&d->pci, d->features);
    status |= VIRTIO_STATUS_FEATURES_OK;
    vpci_set_status(&d->pci, status);
    if (!(vpci_get_status(&d->pci) & VIRTIO_STATUS_FEATURES_OK)) {
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
        setup->nb_queues > vpci_get_nb_queues(&d->pci)) {
        return "the device has fewer queues";
    }
    d->nb_queues = setup->nb_queues;
    if (!setup->interrupts) {
        vpci_disable_interrupts(&d->pci);
    } else if (!vpci_enable_interrupts(&d->pci, setup->nb_queues)) {
        return "no MSI-X vector for every queue";
    }
    for (uint16_t i = 0; i < setup->nb_queues; i++) {
        uint16_t max = vpci_get_queue_size(&d->pci, i);

        if (max == 0) {
            return "a queue has size 0";
        }
        start_queue(d, i, choose_size(max, setup->queue_size, d->features & VIRTIO_F_RING_PACKED),
                    setup->interrupts);
    }
    vpci_set_status(&d->pci,
                    VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER |
                        VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_DRIVER_OK);
    return NULL;
}

bool vblk_wait(VblkQueue *q, uint64_t timeout_ms, uint16_t *ret_slot)
{
    uint64_t start = cpu_rdtsc();

    while (!vblk_take(q, ret_slot)) {
        if (cpu_rdtsc() - start > tsc_from_ms(timeout_ms)) {
            return false;
        }
        cpu_pause();
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
