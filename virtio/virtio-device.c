/*
 * virtio-device.c - the device's state machine, between a transport's registers and a device type
 *
 * States are the status bits (VIRTIO 1.2 section 2.1); who performs each change:
 *
 *     0 --ACKNOWLEDGE--> 1 --DRIVER--> 3 --FEATURES_OK [features_accept]--> b --DRIVER_OK [run]-->
 *     f any --NEEDS_RESET [vdev_needs_reset, any thread]--> any | 0x40
 *     any --FAILED--> any | 0x80, which only a reset leaves
 *     any --0 [device_reset]--> 0
 *
 * Invariants:
 *   (1) Status bits are only added, each after those before it, until a reset clears them all.
 *   (2) Status reads 0 only after device_reset() has stopped every queue: what was in flight is
 *       done, no guest memory is touched any more.
 *   (3) A queue runs only with DRIVER_OK; driver_features change only without FEATURES_OK.
 *   (4) Everything but NEEDS_RESET changes in the main context under vdev->lock. Other threads set
 *       that bit and schedule needs_reset_bh, no more.
 *   (5) Registers of an enabled queue do not change; disabling is by reset alone, after the stop.
 */
#include "virtio/virtio-device.h"

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "virtio/virtqueue-track.h"

#define STATUS_STEPS                                                                               \
    (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK |          \
     VIRTIO_CONFIG_S_DRIVER_OK)

#define FEATURE(bit) ((uint64_t)1 << (bit))

/* What every device of ours offers beside its type's bits. */
#define COMMON_FEATURES                                                                            \
    (FEATURE(VIRTIO_F_VERSION_1) | FEATURE(VIRTIO_RING_F_INDIRECT_DESC) |                          \
     FEATURE(VIRTIO_RING_F_EVENT_IDX) | FEATURE(VIRTIO_F_RING_RESET))

/* --- NEEDS_RESET --- */

static void tell_reasons(VirtioDevice *vdev)
{
    for (unsigned i = 0; i < vdev->nb_queues; i++) {
        VirtQueue *vq = &vdev->queues[i];

        /* acquire: pairs with vq_break() */
        if (atomic_load_explicit(&vq->broken, memory_order_acquire) && !vq->broken_told) {
            vq->broken_told = true;
            log_limited(&vdev->log_limit, LOG_LEVEL_WARN, "virtio",
                        "%s: queue %u: the guest gave %s; the device needs a reset", vdev->name, i,
                        vq->broken_reason);
            if (vdev->transport->queue_broken) {
                vdev->transport->queue_broken(vdev->transport_opaque, i);
            }
        }
    }
}

static void needs_reset_bh(void *opaque)
{
    VirtioDevice *vdev = opaque;
    uint8_t both = VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_DRIVER_OK;

    tell_reasons(vdev);
    if ((vdev_status(vdev) & both) == both && !vdev->needs_reset_told) {
        vdev->needs_reset_told = true;
        vdev_config_changed(vdev);
    }
}

void vdev_needs_reset(VirtioDevice *vdev)
{
    atomic_fetch_or(&vdev->status, VIRTIO_CONFIG_S_NEEDS_RESET);
    aio_bh_schedule(vdev->needs_reset_bh);
}

/* --- creation --- */

int vdev_init(VirtioDevice *vdev, const VirtioDeviceOps *ops, const char *name,
              const GuestMemory *gm, unsigned nb_queues, unsigned queue_size, Error *err)
{
    int ret;

    memset(vdev, 0, sizeof(*vdev));
    co_mutex_init(&vdev->lock);
    vdev->ops = ops;
    vdev->gm = gm;
    assert(ops->config_bytes <= VIRTIO_CONFIG_BYTES_MAX);
    if (nb_queues < 1 || nb_queues > VIRTIO_QUEUES_MAX) {
        return error_set(err, -EINVAL, "%s: queues: %u is not between 1 and %d", name, nb_queues,
                         VIRTIO_QUEUES_MAX);
    }
    if (!IS_POWER_OF_2(queue_size) || queue_size > VQ_SIZE_MAX) {
        return error_set(err, -EINVAL, "%s: queue-size: %u is not a power of 2 up to %d", name,
                         queue_size, VQ_SIZE_MAX);
    }
    vdev->name = strdup(name);
    vdev->queues = aligned_alloc(CACHE_LINE_BYTES, nb_queues * sizeof(VirtQueue));
    if (!vdev->name || !vdev->queues) {
        return error_set(err, -ENOMEM, "%s: out of memory", name);
    }
    vdev->needs_reset_bh = aio_bh_create(aio_main(), needs_reset_bh, vdev);
    for (unsigned i = 0; i < nb_queues; i++) {
        ret = vq_init(&vdev->queues[i], vdev, i, (uint16_t)queue_size, err);
        if (ret < 0) {
            error_prefix(err, "%s: queue %u: ", name, i);
            return ret;
        }
        vdev->nb_queues++;
    }
    return 0;
}

void vdev_finish(VirtioDevice *vdev)
{
    if (!vdev) {
        return;
    }
    for (unsigned i = 0; i < vdev->nb_queues; i++) {
        vq_finish(&vdev->queues[i]);
    }
    aio_bh_destroy(take_ptr(&vdev->needs_reset_bh));
    free(take_ptr(&vdev->queues));
    free(take_ptr(&vdev->name));
    vdev->nb_queues = 0;
    co_mutex_finish(&vdev->lock);
}

void vdev_set_transport(VirtioDevice *vdev, const VirtioTransportOps *transport, void *opaque)
{
    assert(!vdev->running);
    vdev->transport = transport;
    vdev->transport_opaque = opaque;
}

void vdev_offer_packed(VirtioDevice *vdev)
{
    assert(vdev_status(vdev) == 0);
    vdev->offer_packed = true;
}

void vdev_set_queue_context(VirtioDevice *vdev, unsigned index, AioContext *ctx)
{
    assert(index < vdev->nb_queues && !vdev->queues[index].started);
    vdev->queues[index].ctx = ctx;
}

/* --- features --- */

uint64_t vdev_features_offered(VirtioDevice *vdev)
{
    return vdev->ops->features(vdev) | COMMON_FEATURES |
           (vdev->offer_packed ? FEATURE(VIRTIO_F_RING_PACKED) : 0);
}

uint32_t vdev_features_read(VirtioDevice *vdev, uint32_t select)
{
    return select > 1 ? 0 : (uint32_t)(vdev_features_offered(vdev) >> (32 * select));
}

co_fn void vdev_co_driver_features_write(VirtioDevice *vdev, uint32_t select, uint32_t value)
{
    co_mutex_lock(&vdev->lock);
    if (select <= 1 && !(vdev_status(vdev) & VIRTIO_CONFIG_S_FEATURES_OK)) {
        uint64_t mask = (uint64_t)UINT32_MAX << (32 * select);

        vdev->driver_features =
            (vdev->driver_features & ~mask) | ((uint64_t)value << (32 * select));
    }
    co_mutex_unlock(&vdev->lock);
}

uint32_t vdev_driver_features_read(VirtioDevice *vdev, uint32_t select)
{
    return select > 1 ? 0 : (uint32_t)(vdev->driver_features >> (32 * select));
}

bool vdev_has_feature(const VirtioDevice *vdev, unsigned bit)
{
    return (vdev_status(vdev) & VIRTIO_CONFIG_S_FEATURES_OK) &&
           (vdev->driver_features & FEATURE(bit));
}

static bool features_accept(VirtioDevice *vdev)
{
    const VirtioDeviceOps *ops = vdev->ops;
    uint64_t features = vdev->driver_features;

    if ((features & ~vdev_features_offered(vdev)) || !(features & FEATURE(VIRTIO_F_VERSION_1)) ||
        (ops->check_features && ops->check_features(vdev, features) < 0)) {
        log_debug("virtio", "%s: features 0x%llx refused", vdev->name,
                  (unsigned long long)features);
        return false;
    }
    if (ops->set_features) {
        ops->set_features(vdev, features);
    }
    return true;
}

/* --- queues --- */

static co_fn int queue_start(VirtioDevice *vdev, VirtQueue *vq, Error *err)
{
    int ret = vdev->transport->attach_doorbell(vdev->transport_opaque, vq->index, &vq->doorbell);

    if (ret < 0) {
        return error_set(err, ret, "queue %u: no doorbell: %s", vq->index, error_strerror(ret));
    }
    vq->doorbell_attached = true;
    return vq_co_start(vq, vdev->ops->elem_bytes, err);
}

/* As vdev_resume(), where all queues are stopped or parked: they look at the ring when they go on. */
static void end_pause(VirtioDevice *vdev)
{
    for (unsigned i = 0; i < vdev->nb_queues; i++) {
        atomic_fetch_sub(&vdev->queues[i].paused, 1);
    }
}

static co_fn void queue_run(VirtioDevice *vdev, VirtQueue *vq)
{
    Error err;

    if (queue_start(vdev, vq, &err) < 0) {
        log_limited(&vdev->log_limit, LOG_LEVEL_WARN, "virtio", "%s: %s; the device needs a reset",
                    vdev->name, err.msg);
        vdev_needs_reset(vdev);
    }
}

static co_fn void queue_halt(VirtioDevice *vdev, VirtQueue *vq)
{
    if (vdev->ops->halting) {
        vdev->ops->halting(vdev, vq, true);
    }
    atomic_fetch_add(&vq->paused, 1);
    if (vdev->ops->co_settle) {
        vdev->ops->co_settle(vdev, vq);
    }
    vq_co_stop(vq);
    atomic_fetch_sub(&vq->paused, 1); /* a start looks at the ring by itself */
    if (vdev->ops->halting) {
        vdev->ops->halting(vdev, vq, false);
    }
    if (vq->doorbell_attached) {
        vq->doorbell_attached = false;
        vdev->transport->detach_doorbell(vdev->transport_opaque, vq->index, &vq->doorbell);
    }
}

VirtQueue *vdev_queue(VirtioDevice *vdev, unsigned index)
{
    return index < vdev->nb_queues ? &vdev->queues[index] : NULL;
}

void vdev_queue_set_size(VirtioDevice *vdev, VirtQueue *vq, uint16_t size)
{
    if (!vq->cfg_enabled) {
        vq->cfg_size = size;
    }
}

static uint64_t *queue_address(VirtQueue *vq, VqRingPart part)
{
    switch (part) {
    case VQ_RING_DESC:
        return &vq->cfg_desc_gpa;
    case VQ_RING_AVAIL:
        return &vq->cfg_avail_gpa;
    default:
        return &vq->cfg_used_gpa;
    }
}

void vdev_queue_set_address(VirtioDevice *vdev, VirtQueue *vq, VqRingPart part, bool high,
                            uint32_t value)
{
    uint64_t *address = queue_address(vq, part);

    if (vq->cfg_enabled) {
        return;
    }
    *address = high ? (*address & UINT32_MAX) | ((uint64_t)value << 32)
                    : (*address & ~(uint64_t)UINT32_MAX) | value;
}

uint32_t vdev_queue_address(const VirtQueue *vq, VqRingPart part, bool high)
{
    return (uint32_t)(*queue_address((VirtQueue *)vq, part) >> (high ? 32 : 0));
}

co_fn void vdev_co_queue_enable(VirtioDevice *vdev, VirtQueue *vq)
{
    co_mutex_lock(&vdev->lock);
    if (!vq->cfg_enabled) {
        vq->cfg_enabled = true;
        if (vdev->running) {
            queue_run(vdev, vq);
        }
    }
    co_mutex_unlock(&vdev->lock);
}

co_fn int vdev_co_queue_start(VirtioDevice *vdev, VirtQueue *vq, Error *err)
{
    co_mutex_lock(&vdev->lock);
    assert(vdev->running && !vq->cfg_enabled);
    int ret = queue_start(vdev, vq, err);

    if (ret < 0) {
        queue_halt(vdev, vq);
    }
    vq->cfg_enabled = ret == 0;
    co_mutex_unlock(&vdev->lock);
    return ret;
}

co_fn void vdev_co_queue_stop(VirtioDevice *vdev, VirtQueue *vq)
{
    co_mutex_lock(&vdev->lock);
    vq_co_take_left(vq);
    queue_halt(vdev, vq);
    vq->cfg_enabled = false;
    co_mutex_unlock(&vdev->lock);
}

co_fn void vdev_co_queue_suspend(VirtioDevice *vdev, VirtQueue *vq)
{
    co_mutex_lock(&vdev->lock);
    atomic_store(&vq->tracker->suspending, true);
    queue_halt(vdev, vq);
    atomic_store(&vq->tracker->suspending, false);
    vq->cfg_enabled = false;
    co_mutex_unlock(&vdev->lock);
}

co_fn void vdev_co_queue_set_interrupt(VirtioDevice *vdev, VirtQueue *vq, int fd)
{
    co_mutex_lock(&vdev->lock);
    atomic_store(&vq->interrupt.fd, fd);
    if (vq->started && !vq->parked) {
        aio_co_reschedule_self(vq->ctx); /* what it does with the one before has ended */
        aio_co_reschedule_self(aio_main());
    }
    co_mutex_unlock(&vdev->lock);
}

co_fn void vdev_co_park(VirtioDevice *vdev)
{
    co_mutex_lock(&vdev->lock);
    vdev_pause(vdev);
    for (unsigned i = 0; i < vdev->nb_queues; i++) {
        VirtQueue *vq = &vdev->queues[i];

        if (vq->started && vdev->ops->co_settle) {
            vdev->ops->co_settle(vdev, vq);
        }
        if (vq->started) {
            vq_co_park(vq);
        }
    }
    end_pause(vdev);
    co_mutex_unlock(&vdev->lock);
}

co_fn int vdev_co_unpark(VirtioDevice *vdev, Error *err)
{
    Error first = { .code = 0 };

    co_mutex_lock(&vdev->lock);
    for (unsigned i = 0; i < vdev->nb_queues; i++) {
        VirtQueue *vq = &vdev->queues[i];

        if (vq->started && vq->parked) {
            int ret UNUSED = vq_co_unpark(vq, first.code == 0 ? &first : NULL);
        }
    }
    co_mutex_unlock(&vdev->lock);
    return first.code < 0 ? error_set(err, first.code, "%s", first.msg) : 0;
}

co_fn void vdev_co_queue_reset(VirtioDevice *vdev, VirtQueue *vq)
{
    co_mutex_lock(&vdev->lock);
    if (vdev_has_feature(vdev, VIRTIO_F_RING_RESET)) {
        queue_halt(vdev, vq);
        vq_reset_config(vq);
    }
    co_mutex_unlock(&vdev->lock);
}

co_fn int vdev_co_move_queue(VirtioDevice *vdev, unsigned index, AioContext *ctx)
{
    VirtQueue *vq = &vdev->queues[index];
    int ret = 0;

    assert(index < vdev->nb_queues);
    co_mutex_lock(&vdev->lock);
    if (!vq->started) {
        vq->ctx = ctx;
    } else if (vq->ctx != ctx) {
        ret = vq_co_move(vq, ctx);
    }
    co_mutex_unlock(&vdev->lock);
    return ret;
}

/* --- status --- */

uint8_t vdev_status(const VirtioDevice *vdev)
{
    return atomic_load(&vdev->status);
}

static co_fn void device_reset(VirtioDevice *vdev)
{
    vdev->running = false;
    vdev_pause(vdev); /* or one queue would go on while another one's requests are waited for */
    for (unsigned i = 0; i < vdev->nb_queues; i++) {
        queue_halt(vdev, &vdev->queues[i]);
    }
    end_pause(vdev);
    tell_reasons(vdev);
    for (unsigned i = 0; i < vdev->nb_queues; i++) {
        vq_reset_config(&vdev->queues[i]);
    }
    if (vdev->ops->set_features) {
        vdev->ops->set_features(vdev, 0);
    }
    if (vdev->ops->reset) {
        vdev->ops->reset(vdev);
    }
    vdev->driver_features = 0;
    vdev->needs_reset_told = false;
    atomic_store(&vdev->status, 0);
}

static co_fn void run(VirtioDevice *vdev)
{
    vdev->running = true;
    for (unsigned i = 0; i < vdev->nb_queues; i++) {
        if (vdev->queues[i].cfg_enabled) {
            queue_run(vdev, &vdev->queues[i]);
        }
    }
}

/* One step: true when @bit is wanted, not set, and comes after all that must be set before it. */
static bool step_wanted(const VirtioDevice *vdev, uint8_t wanted, uint8_t bit, uint8_t before)
{
    uint8_t status = vdev_status(vdev);

    return (wanted & bit) && !(status & bit) && (status & before) == before;
}

static co_fn void status_advance(VirtioDevice *vdev, uint8_t wanted)
{
    uint8_t before = 0;

    if (vdev_status(vdev) & STATUS_STEPS & ~wanted) {
        return; /* 2.1.1: a driver clears no bit */
    }
    if (step_wanted(vdev, wanted, VIRTIO_CONFIG_S_ACKNOWLEDGE, before)) {
        atomic_fetch_or(&vdev->status, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    }
    before |= VIRTIO_CONFIG_S_ACKNOWLEDGE;
    if (step_wanted(vdev, wanted, VIRTIO_CONFIG_S_DRIVER, before)) {
        atomic_fetch_or(&vdev->status, VIRTIO_CONFIG_S_DRIVER);
    }
    before |= VIRTIO_CONFIG_S_DRIVER;
    if (step_wanted(vdev, wanted, VIRTIO_CONFIG_S_FEATURES_OK, before) && features_accept(vdev)) {
        atomic_fetch_or(&vdev->status, VIRTIO_CONFIG_S_FEATURES_OK);
    }
    before |= VIRTIO_CONFIG_S_FEATURES_OK;
    if (step_wanted(vdev, wanted, VIRTIO_CONFIG_S_DRIVER_OK, before)) {
        atomic_fetch_or(&vdev->status, VIRTIO_CONFIG_S_DRIVER_OK);
        run(vdev);
    }
}

co_fn void vdev_co_set_status(VirtioDevice *vdev, uint8_t status)
{
    co_mutex_lock(&vdev->lock);
    if (status == 0) {
        device_reset(vdev);
    } else if (!(vdev_status(vdev) & VIRTIO_CONFIG_S_FAILED)) {
        atomic_fetch_or(&vdev->status, status & VIRTIO_CONFIG_S_FAILED);
        if (!(status & VIRTIO_CONFIG_S_FAILED)) {
            status_advance(vdev, status);
        }
    }
    co_mutex_unlock(&vdev->lock);
}

co_fn void vdev_co_reset(VirtioDevice *vdev)
{
    vdev_co_set_status(vdev, 0);
}

/* --- configuration space --- */

void vdev_config_read(VirtioDevice *vdev, size_t offset, void *ret_data, size_t len_bytes)
{
    uint8_t config[VIRTIO_CONFIG_BYTES_MAX];
    size_t config_bytes = vdev->ops->config_bytes;

    memset(ret_data, 0, len_bytes);
    if (offset < config_bytes) {
        vdev->ops->config_read(vdev, config);
        memcpy(ret_data, config + offset, MIN(len_bytes, config_bytes - offset));
    }
}

bool vdev_config_writable(VirtioDevice *vdev, size_t offset, size_t len_bytes)
{
    return vdev->ops->config_writable && vdev->ops->config_writable(vdev, offset, len_bytes);
}

co_fn void vdev_co_config_write(VirtioDevice *vdev, size_t offset, const void *data,
                                size_t len_bytes)
{
    size_t config_bytes = vdev->ops->config_bytes;

    if (offset >= config_bytes || !vdev->ops->co_config_write) {
        return;
    }
    co_mutex_lock(&vdev->lock);
    vdev->ops->co_config_write(vdev, offset, data, MIN(len_bytes, config_bytes - offset));
    co_mutex_unlock(&vdev->lock);
}

void vdev_pause(VirtioDevice *vdev)
{
    for (unsigned i = 0; i < vdev->nb_queues; i++) {
        atomic_fetch_add(&vdev->queues[i].paused, 1);
    }
}

void vdev_resume(VirtioDevice *vdev)
{
    for (unsigned i = 0; i < vdev->nb_queues; i++) {
        VirtQueue *vq = &vdev->queues[i];

        if (atomic_fetch_sub(&vq->paused, 1) == 1 && vq->doorbell.fd >= 0) {
            event_notifier_set(&vq->doorbell);
        }
    }
}

void vdev_config_changed(VirtioDevice *vdev)
{
    vdev->config_generation++;
    if (vdev_status(vdev) & VIRTIO_CONFIG_S_DRIVER_OK) {
        vdev->transport->notify_config(vdev->transport_opaque);
    }
}
