/*
 * virtqueue-int.h - what virtqueue.c, vring-split.c and virtio-notify.c share
 *
 * Layer:     virtio/, private
 * Threading: home context of the queue, except vring_split_setup() (main, while stopped).
 */
#ifndef VIRTIO_VIRTQUEUE_INT_H
#define VIRTIO_VIRTQUEUE_INT_H

#include "virtio/virtqueue.h"

/* One writer: no locked instruction is needed. */
static inline void vq_count(_Atomic uint64_t *counter)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

/*
 * A full barrier: stores before it are visible before loads after it are made. Not the C11 fence,
 * which ThreadSanitizer does not know; no data is handed over by it alone.
 */
static inline void vq_store_load_barrier(void)
{
    __sync_synchronize();
}

/* --- ring format: split (vring-split.c) --- */

/* vring_split_setup - find the ring of the configured addresses in guest memory, stand where base
 * says; -EINVAL */
int vring_split_setup(VirtQueue *vq, Error *err) NONNULL(1) WARN_UNUSED;
VqBase vring_split_base(const VirtQueue *vq) NONNULL(1);
/* vring_split_pop - fill @elem with the next chain: 1 done, 0 ring empty, -EPIPE queue now
 * broken */
int vring_split_pop(VirtQueue *vq, VqElem *elem) NONNULL(1, 2) WARN_UNUSED;
/* vring_split_push - fill used entry number used_idx; the driver does not see it yet */
void vring_split_push(VirtQueue *vq, const VqElem *elem, uint32_t written_bytes) NONNULL(1, 2);
/* vring_split_publish - let the driver see the used entries up to used_idx */
void vring_split_publish(VirtQueue *vq) NONNULL(1);
/* vring_split_wants_signal - does the driver want an interrupt for the used entries published from
 * number @from to before number @to? */
bool vring_split_wants_signal(VirtQueue *vq, uint16_t from, uint16_t to) NONNULL(1);
bool vring_split_has_work(VirtQueue *vq) NONNULL(1);
void vring_split_ask_kicks(VirtQueue *vq, bool on) NONNULL(1);

/* --- doorbell, polling, interrupt (virtio-notify.c) --- */

/* vq_notify_start - attach the doorbell; whatever is available already is served next pass */
void vq_notify_start(VirtQueue *vq) NONNULL(1);
void vq_notify_stop(VirtQueue *vq) NONNULL(1);
void vq_interrupt(VirtQueue *vq) NONNULL(1);

#endif
