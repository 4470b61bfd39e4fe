/*
 * VirtioDevice - the device state machine between a transport and a device type
 *
 * Layer:     virtio/ (may use block/, io/)
 * Threading: everything here runs in the main context; functions with _co_ are coroutines
 *            there (vCPU threads hand register writes over with aio_co_run_sync(), a
 *            vhost-user session is such a coroutine already) and are serialised by `lock`.
 *            vdev_needs_reset() and vdev_status() may be called from any thread.
 * Lifetime:  embedded in the device type, which calls vdev_init()/vdev_finish().
 * Spec:      VIRTIO 1.2 section 2.1, 2.2, 2.4, 3.1
 *
 *   0 --ACKNOWLEDGE,DRIVER--> negotiating --FEATURES_OK--> configured --DRIVER_OK--> running
 *     ^                          | (refused: the bit does not stick)                   |
 *     |                          v                                                     |
 *     +------- vdev_co_reset() (waits until no element is in flight) <-----------------+
 *     +------- any state, NEEDS_RESET set by vdev_needs_reset() <-- guest broke a rule
 *
 * A status write that would clear a bit, or skip a step, is ignored as far as it does.
 *
 * No queue is looked at before DRIVER_OK; a kick that came earlier is not lost, because a queue
 * kicks itself when it starts.
 */
#ifndef VIRTIO_VIRTIO_DEVICE_H
#define VIRTIO_VIRTIO_DEVICE_H

#include "io/aio/co-mutex.h"
#include "io/base/log.h"
#include "virtio/virtqueue.h"

typedef struct VirtioDevice VirtioDevice;

/* What a device type implements. Main context; the _co_ ones under vdev->lock. */
typedef struct VirtioDeviceOps {
    uint16_t device_id; /* 2 = block */
    size_t elem_bytes;  /* request size for vq_co_start() */
    size_t config_bytes;

    /* The bits offered by the type (transport-independent bits are added by virtio-device.c). */
    uint64_t (*features)(VirtioDevice *vdev);
    /* Veto a combination: -EINVAL refuses FEATURES_OK. NULL = any subset is fine. */
    int (*check_features)(VirtioDevice *vdev, uint64_t features);
    /* FEATURES_OK was accepted; reset: called with 0. */
    void (*set_features)(VirtioDevice *vdev, uint64_t features);
    void (*config_read)(VirtioDevice *vdev, void *ret_config); /* config_bytes */
    /* Whether a driver may write these bytes, all of them. NULL = none. */
    bool (*config_writable)(VirtioDevice *vdev, size_t offset, size_t len_bytes);
    /* One driver write, within config_bytes. */
    void (*co_config_write)(VirtioDevice *vdev, size_t offset, const void *data,
                            size_t len_bytes) co_fn_ptr;
    /* Handle what is available on @vq; home context of the queue. Bounded work a call. */
    void (*handle_queue)(VirtioDevice *vdev, VirtQueue *vq);
    /* A queue is about to be stopped: end its requests, hold back none of them until it is called
     * again with @on false. Main. NULL = nothing. */
    void (*halting)(VirtioDevice *vdev, VirtQueue *vq, bool on);
    /* Then, as nothing of that queue is popped any more: see to it that what is in flight ends, or
     * leave that to itself. Main. NULL = nothing. */
    void (*co_settle)(VirtioDevice *vdev, VirtQueue *vq) co_fn_ptr;
    /* Whether a popped request waits for somebody outside, without end: the queue cannot move. Home;
     * whoever begins to hold one calls vq_look_for_held(). NULL = never. */
    bool (*holds)(VirtioDevice *vdev, VirtQueue *vq);
    /* All queues are stopped; forget what was negotiated. NULL = nothing. */
    void (*reset)(VirtioDevice *vdev);
} VirtioDeviceOps;

/*
 * What a transport (virtio-pci, virtio-mmio, vhost-user) implements.
 * attach_doorbell: from now on the guest's notification of queue @index signals @en (for example
 * KVM_IOEVENTFD). Main context. Returns 0 or -errno.
 */
typedef struct VirtioTransportOps {
    int (*attach_doorbell)(void *opaque, unsigned index, EventNotifier *en);
    void (*detach_doorbell)(void *opaque, unsigned index, EventNotifier *en);
    /* Interrupt for a queue whose interrupt.fd is -1. Any thread. */
    void (*notify_queue)(void *opaque, unsigned index);
    /* Configuration change interrupt (also NEEDS_RESET). Main context. */
    void (*notify_config)(void *opaque);
    /* The guest has broken queue @index. Main context. NULL = nothing. */
    void (*queue_broken)(void *opaque, unsigned index);
} VirtioTransportOps;

struct VirtioDevice {
    CoMutex lock; /* serialises the _co_ functions below */

    const VirtioDeviceOps *ops;
    const VirtioTransportOps *transport;
    void *transport_opaque;
    char *name; /* for messages: the disk's id */
    const GuestMemory *gm;

    _Atomic uint8_t status;   /* VIRTIO_CONFIG_S_*; written in main, NEEDS_RESET by any thread */
    uint64_t driver_features; /* what the driver wrote; effective after FEATURES_OK */
    uint32_t config_generation;
    bool offer_packed;
    bool running; /* DRIVER_OK: enabled queues are started */
    LogLimit log_limit;
    AioBh *needs_reset_bh; /* main: tells the driver and the log */
    bool needs_reset_told; /* main: the driver has been interrupted for it */

    unsigned nb_queues;
    VirtQueue *queues; /* nb_queues */
};

/*
 * vdev_init - a device with @nb_queues queues of @queue_size, all stopped, home context main
 * Errors: -EINVAL a number out of range, -ENOMEM, -EMFILE. vdev_finish() accepts the half-built.
 */
int vdev_init(VirtioDevice *vdev, const VirtioDeviceOps *ops, const char *name,
              const GuestMemory *gm, unsigned nb_queues, unsigned queue_size, Error *err)
    NONNULL(1, 2, 3, 4) WARN_UNUSED;
void vdev_finish(VirtioDevice *vdev);

void vdev_set_transport(VirtioDevice *vdev, const VirtioTransportOps *transport, void *opaque)
    NONNULL(1, 2);
/* vdev_offer_packed - let the driver choose packed rings (VIRTIO_F_RING_PACKED). Before it is there. */
void vdev_offer_packed(VirtioDevice *vdev) NONNULL(1);
/* Home context of a stopped queue. */
void vdev_set_queue_context(VirtioDevice *vdev, unsigned index, AioContext *ctx) NONNULL(1, 3);

/* --- what a transport's registers do; all in a coroutine in the main context --- */

uint64_t vdev_features_offered(VirtioDevice *vdev) NONNULL(1);
/* 32 bits at a time; select > 1 reads 0, writes are ignored; ignored after FEATURES_OK */
uint32_t vdev_features_read(VirtioDevice *vdev, uint32_t select) NONNULL(1);
co_fn void vdev_co_driver_features_write(VirtioDevice *vdev, uint32_t select, uint32_t value)
    NONNULL(1);
uint32_t vdev_driver_features_read(VirtioDevice *vdev, uint32_t select) NONNULL(1);
bool vdev_has_feature(const VirtioDevice *vdev, unsigned bit) NONNULL(1);

uint8_t vdev_status(const VirtioDevice *vdev) NONNULL(1);
/* Returns when it has taken effect: writing 0 returns when no request is in flight any more. */
co_fn void vdev_co_set_status(VirtioDevice *vdev, uint8_t status) NONNULL(1);
co_fn void vdev_co_reset(VirtioDevice *vdev) NONNULL(1);

/* NULL when @index is out of range: reads give 0, writes are ignored. */
VirtQueue *vdev_queue(VirtioDevice *vdev, unsigned index) NONNULL(1);
/* Ring registers; ignored while the queue is enabled. */
void vdev_queue_set_size(VirtioDevice *vdev, VirtQueue *vq, uint16_t size) NONNULL(1, 2);
typedef enum VqRingPart { VQ_RING_DESC, VQ_RING_AVAIL, VQ_RING_USED } VqRingPart;
void vdev_queue_set_address(VirtioDevice *vdev, VirtQueue *vq, VqRingPart part, bool high,
                            uint32_t value) NONNULL(1, 2);
uint32_t vdev_queue_address(const VirtQueue *vq, VqRingPart part, bool high) NONNULL(1);
/* queue_enable = 1; starts it when the device is running (after a ring reset) */
co_fn void vdev_co_queue_enable(VirtioDevice *vdev, VirtQueue *vq) NONNULL(1, 2);
/*
 * For a transport whose driver starts and stops its queues one by one; the device is running.
 * vdev_co_queue_start - as it is configured, and from its base. Errors: those of vq_co_start()
 * vdev_co_queue_stop - returns when the ring is no longer used, and what another process had left of
 *                      it is done; the configuration may be changed then, and the base is where it
 *                      stands. Started or not.
 * vdev_co_queue_suspend - likewise, but what was left stays so, and requests that fail meanwhile are
 *                      left, too, in the queue's tracker, which keeps requests in flight. What the
 *                      storage is at is waited for: it cannot be called back, and would come
 *                      after its repetition.
 */
co_fn int vdev_co_queue_start(VirtioDevice *vdev, VirtQueue *vq, Error *err)
    NONNULL(1, 2) WARN_UNUSED;
co_fn void vdev_co_queue_stop(VirtioDevice *vdev, VirtQueue *vq) NONNULL(1, 2);
co_fn void vdev_co_queue_suspend(VirtioDevice *vdev, VirtQueue *vq) NONNULL(1, 2);
/* vdev_co_queue_set_interrupt - another eventfd (-1 = none) for a queue's interrupts; when this
 * returns the one before is not used any more */
co_fn void vdev_co_queue_set_interrupt(VirtioDevice *vdev, VirtQueue *vq, int fd) NONNULL(1, 2);
/*
 * vdev_co_park - returns when no queue uses guest memory any more, nor will; its map may change
 * vdev_co_unpark - the queues go on where they stood. Errors: those of vq_co_unpark(); such a
 *                   queue does not go on, the others do.
 */
co_fn void vdev_co_park(VirtioDevice *vdev) NONNULL(1);
co_fn int vdev_co_unpark(VirtioDevice *vdev, Error *err) NONNULL(1) WARN_UNUSED;
/* vdev_co_move_queue - another home context for a queue, started or not; @index is valid. Returns
 * when the old one has nothing to do with it any more, which waits for requests in flight.
 * Errors: -EBUSY a request is held; the queue stays where it is */
co_fn int vdev_co_move_queue(VirtioDevice *vdev, unsigned index, AioContext *ctx)
    NONNULL(1, 3) WARN_UNUSED;
/* VIRTIO_F_RING_RESET (2.6.1): returns when the ring is no longer used */
co_fn void vdev_co_queue_reset(VirtioDevice *vdev, VirtQueue *vq) NONNULL(1, 2);

/* Any range; what lies outside reads 0 and is not written. Multi-part reads are made safe by
 * config_generation. */
void vdev_config_read(VirtioDevice *vdev, size_t offset, void *ret_data, size_t len_bytes)
    NONNULL(1, 3);
co_fn void vdev_co_config_write(VirtioDevice *vdev, size_t offset, const void *data,
                                size_t len_bytes) NONNULL(1, 3);
bool vdev_config_writable(VirtioDevice *vdev, size_t offset, size_t len_bytes) NONNULL(1);
/* vdev_config_changed - the type's configuration changed: new generation, interrupt. Main. */
void vdev_config_changed(VirtioDevice *vdev) NONNULL(1);

/*
 * vdev_pause - no queue pops requests from now on; those that were popped go on. What a queue does
 * at this very moment it ends, so a few more may come.
 * vdev_resume - the queues go on, beginning with what the driver made available meanwhile.
 * They nest, and say nothing about queues being started or stopped. Context: main.
 */
void vdev_pause(VirtioDevice *vdev) NONNULL(1);
void vdev_resume(VirtioDevice *vdev) NONNULL(1);

/* vdev_needs_reset - the guest broke a rule: NEEDS_RESET, configuration interrupt from the main
 * context. Idempotent; any thread. */
void vdev_needs_reset(VirtioDevice *vdev) NONNULL(1);

#endif
