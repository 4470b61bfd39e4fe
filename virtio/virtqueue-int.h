/*
 * virtqueue-int.h - what virtqueue.c, the ring formats and virtio-notify.c share
 *
 * Layer:     virtio/, private
 * Threading: home context of the queue, except vring_setup() and vring_base() (main, while
 *            stopped).
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

/* --- ring formats: vring-split.c, vring-packed.c --- */

int vring_split_setup(VirtQueue *vq, Error *err) NONNULL(1) WARN_UNUSED;
VqBase vring_split_base(const VirtQueue *vq) NONNULL(1);
int vring_split_pop(VirtQueue *vq, VqElem *elem) NONNULL(1, 2) WARN_UNUSED;
/* vring_split_pop_left - the chain of @head, which was taken before the queue was started */
int vring_split_pop_left(VirtQueue *vq, VqElem *elem, uint16_t head) NONNULL(1, 2) WARN_UNUSED;
void vring_split_push(VirtQueue *vq, const VqElem *elem, uint32_t written_bytes) NONNULL(1, 2);
void vring_split_publish(VirtQueue *vq) NONNULL(1);
bool vring_split_wants_signal(VirtQueue *vq, uint16_t from, uint16_t to) NONNULL(1);
bool vring_split_has_work(VirtQueue *vq) NONNULL(1);
void vring_split_ask_kicks(VirtQueue *vq, bool on) NONNULL(1);

int vring_packed_setup(VirtQueue *vq, Error *err) NONNULL(1) WARN_UNUSED;
VqBase vring_packed_base(const VirtQueue *vq) NONNULL(1);
int vring_packed_pop(VirtQueue *vq, VqElem *elem) NONNULL(1, 2) WARN_UNUSED;
/* vring_packed_pop_left - the chain of these @nb descriptors, of our own memory, which was taken
 * before the queue was started */
int vring_packed_pop_left(VirtQueue *vq, VqElem *elem, const struct vring_packed_desc *desc,
                          unsigned nb) NONNULL(1, 2, 3) WARN_UNUSED;
void vring_packed_push(VirtQueue *vq, const VqElem *elem, uint32_t written_bytes) NONNULL(1, 2);
void vring_packed_publish(VirtQueue *vq) NONNULL(1);
bool vring_packed_wants_signal(VirtQueue *vq) NONNULL(1);
bool vring_packed_has_work(VirtQueue *vq) NONNULL(1);
void vring_packed_ask_kicks(VirtQueue *vq, bool on) NONNULL(1);

/* vring_setup - find the ring of the configured addresses in guest memory, stand where base says;
 * -EINVAL */
static inline int vring_setup(VirtQueue *vq, Error *err)
{
    return vq->is_packed ? vring_packed_setup(vq, err) : vring_split_setup(vq, err);
}

/* vring_base - where it stands now */
static inline VqBase vring_base(const VirtQueue *vq)
{
    return vq->is_packed ? vring_packed_base(vq) : vring_split_base(vq);
}

/* vring_pop - fill @elem with the next chain: 1 done, 0 ring empty, -EPIPE queue now broken */
static inline int vring_pop(VirtQueue *vq, VqElem *elem)
{
    return vq->is_packed ? vring_packed_pop(vq, elem) : vring_split_pop(vq, elem);
}

/* vring_push - fill the used entry that used_idx counts next; the driver does not see it yet */
static inline void vring_push(VirtQueue *vq, const VqElem *elem, uint32_t written_bytes)
{
    if (vq->is_packed) {
        vring_packed_push(vq, elem, written_bytes);
    } else {
        vring_split_push(vq, elem, written_bytes);
    }
}

/* vring_publish - let the driver see the used entries, of which there is a new one */
static inline void vring_publish(VirtQueue *vq)
{
    if (vq->is_packed) {
        vring_packed_publish(vq);
    } else {
        vring_split_publish(vq);
    }
}

/* vring_wants_signal - does the driver want an interrupt for the used entries published since the
 * last call, numbered from @from to before @to? */
static inline bool vring_wants_signal(VirtQueue *vq, uint16_t from, uint16_t to)
{
    return vq->is_packed ? vring_packed_wants_signal(vq) : vring_split_wants_signal(vq, from, to);
}

static inline bool vring_has_work(VirtQueue *vq)
{
    return vq->is_packed ? vring_packed_has_work(vq) : vring_split_has_work(vq);
}

static inline void vring_ask_kicks(VirtQueue *vq, bool on)
{
    if (vq->is_packed) {
        vring_packed_ask_kicks(vq, on);
    } else {
        vring_split_ask_kicks(vq, on);
    }
}

/* --- doorbell, polling, interrupt (virtio-notify.c) --- */

/* vq_notify_start - attach the doorbell; whatever is available already is served next pass */
void vq_notify_start(VirtQueue *vq) NONNULL(1);
void vq_notify_stop(VirtQueue *vq) NONNULL(1);
void vq_interrupt(VirtQueue *vq) NONNULL(1);

#endif
