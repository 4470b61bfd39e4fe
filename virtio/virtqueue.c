/*
 * virtqueue.c - a queue's life, its elements, and what all ring formats have in common
 *
 * Life of a queue:
 *
 *     stopped --vq_co_start()--> active --vq_break()--> broken
 *        ^                         |                      |
 *        +------ vq_co_stop() -----+----------------------+
 *
 * Life of an element:
 *
 *     free --vq_pop()--> popped --vq_push() or vq_detach()--> free
 *
 * Invariants:
 *   (1) Ring and elements are touched by the home thread only while `started`; the main thread
 *       prepares them before and frees them after, with a hop of the same coroutine in between.
 *   (2) in_flight counts the popped elements; there are `size` elements in all.
 *   (3) vq_co_stop() returns with in_flight 0, everything pushed published, and nothing of the
 *       queue left in its home context: no handler, no bottom half, no deferred call.
 *   (4) `active` is `started` and not `broken`: the one flag that pop and poll look at. It ends, too,
 *       with the first chain that is taken after memory was lost, which may be any.
 *   (5) Nothing is published after memory was lost (gm_is_lost()): whoever made it go has not been
 *       answered what was still in flight. Its owner stops the queue, and so nothing is logged.
 */
#include "virtio/virtqueue-int.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <sys/mman.h>

#include "virtio/virtio-device.h"
#include "virtio/virtqueue-track.h"

#define PACKED_BEGIN (1u << VRING_PACKED_EVENT_F_WRAP_CTR) /* slot 0 in the first lap */

/* --- registers and memory --- */

static void flush_cb(void *opaque)
{
    vq_flush(opaque);
}

int vq_init(VirtQueue *vq, VirtioDevice *vdev, unsigned index, uint16_t max_size, Error *err)
{
    memset(vq, 0, sizeof(*vq));
    vq->vdev = vdev;
    vq->ctx = aio_main();
    vq->gm = vdev->gm;
    vq->index = index;
    vq->max_size = max_size;
    vq->doorbell.fd = -1;
    vq->kick_fd = -1;
    atomic_init(&vq->interrupt.fd, -1);
    aio_defer_init(&vq->flush, flush_cb, vq);
    vq_reset_config(vq);
    return event_notifier_open(&vq->doorbell, err);
}

void vq_finish(VirtQueue *vq)
{
    assert(!vq->started);
    event_notifier_close(&vq->doorbell);
}

void vq_reset_config(VirtQueue *vq)
{
    assert(!vq->started);
    vq->cfg_size = vq->max_size;
    vq->cfg_enabled = false;
    vq->cfg_desc_gpa = vq->cfg_avail_gpa = vq->cfg_used_gpa = 0;
    vq->base_given = false;
    vq->broken = false;
    vq->broken_told = false;
}

void vq_set_base(VirtQueue *vq, VqBase base)
{
    assert(!vq->started);
    vq->base = base;
    vq->base_given = true;
}

VqBase vq_base(const VirtQueue *vq)
{
    assert(!vq->started || vq->parked);
    if (vq->base_given) {
        return vq->base;
    }
    return vdev_has_feature(vq->vdev, VIRTIO_F_RING_PACKED) ? (VqBase){ PACKED_BEGIN, PACKED_BEGIN }
                                                            : (VqBase){ 0 };
}

/* How many different heads there may be. */
static size_t nb_heads(const VirtQueue *vq)
{
    return vq->is_packed ? UINT16_MAX + 1 : vq->size;
}

static size_t iov_memory_bytes(const VirtQueue *vq)
{
    return (size_t)vq->size * VQ_ELEM_IOV_MAX * sizeof(struct iovec);
}

static void elems_destroy(VirtQueue *vq)
{
    free(vq->elem_memory);
    free(vq->head_in_flight);
    if (vq->iov_memory) {
        munmap(vq->iov_memory, iov_memory_bytes(vq));
    }
    vq->elem_memory = NULL;
    vq->head_in_flight = NULL;
    vq->iov_memory = NULL;
    vq->free_elems = NULL;
}

static int elems_create(VirtQueue *vq, size_t elem_bytes, Error *err)
{
    /* A mapping of its own: pages that no large request has touched cost nothing. */
    void *iov_memory = mmap(NULL, iov_memory_bytes(vq), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    assert(elem_bytes >= sizeof(VqElem));
    vq->elem_bytes = ALIGN_UP(elem_bytes, CACHE_LINE_BYTES);
    vq->iov_memory = iov_memory == MAP_FAILED ? NULL : iov_memory;
    vq->elem_memory = aligned_alloc(CACHE_LINE_BYTES, vq->size * vq->elem_bytes);
    vq->head_in_flight = calloc(nb_heads(vq), 1);
    if (!vq->iov_memory || !vq->elem_memory || !vq->head_in_flight) {
        elems_destroy(vq);
        return error_set(err, -ENOMEM, "queue %u: out of memory for %u requests", vq->index,
                         vq->size);
    }
    memset(vq->elem_memory, 0, vq->size * vq->elem_bytes);
    for (unsigned i = vq->size; i-- > 0;) {
        VqElem *elem = (VqElem *)((char *)vq->elem_memory + i * vq->elem_bytes);

        elem->vq = vq;
        elem->iov_large = vq->iov_memory + (size_t)i * VQ_ELEM_IOV_MAX;
        elem->next_free = vq->free_elems;
        vq->free_elems = elem;
    }
    return 0;
}

/* --- start and stop --- */

/* Find the ring; the next thing that is done with it is to serve what is there. */
static int ring_open(VirtQueue *vq, Error *err)
{
    int ret = vring_setup(vq, err);

    if (ret < 0) {
        return ret;
    }
    vq->used_published = vq->used_signalled = vq->used_idx;
    /* Another device may have left the ring as it liked; a fresh one asks for kicks. */
    vq->notifications_on = !vq->base_given;
    vq->polling = false;
    return 0;
}

co_fn int vq_co_start(VirtQueue *vq, size_t elem_bytes, Error *err)
{
    int ret;

    assert(!vq->started && vq->in_flight == 0);
    vq->is_packed = vdev_has_feature(vq->vdev, VIRTIO_F_RING_PACKED);
    vq->event_idx = vdev_has_feature(vq->vdev, VIRTIO_RING_F_EVENT_IDX);
    vq->indirect = vdev_has_feature(vq->vdev, VIRTIO_RING_F_INDIRECT_DESC);
    if ((ret = ring_open(vq, err)) < 0 || (ret = elems_create(vq, elem_bytes, err)) < 0) {
        return ret;
    }
    vq->parked = false;
    vq->broken = false;
    vq->broken_told = false;

    aio_co_reschedule_self(vq->ctx);
    vq->started = vq->active = true;
    vq_notify_start(vq);
    aio_co_reschedule_self(aio_main());
    return 0;
}

/* In the home context: until all that was popped has been pushed and told to the driver. Nobody
 * pops meanwhile. False: @unless_held, and a request waits for somebody outside. */
static co_fn bool become_idle(VirtQueue *vq, bool unless_held)
{
    const VirtioDeviceOps *ops = vq->vdev->ops;

    while (vq->in_flight > 0) {
        if (unless_held && ops->holds && ops->holds(vq->vdev, vq)) {
            return false;
        }
        vq->idle_waiter = co_self();
        co_yield();
    }
    vq_flush(vq);
    aio_defer_flush(vq->ctx);
    assert(!vq->flush.queued);
    return true;
}

void vq_look_for_held(VirtQueue *vq)
{
    if (unlikely(vq->idle_waiter)) {
        aio_co_wake(take_ptr(&vq->idle_waiter));
    }
}

co_fn void vq_co_take_left(VirtQueue *vq)
{
    if (!vq->started || vq->parked || !vq->tracker) {
        return;
    }
    aio_co_reschedule_self(vq->ctx);
    vq->takes_left = true;
    for (unsigned i = 0; i < VQ_SIZE_MAX && vq_tracker_has_work(vq->tracker); i++) {
        vq_serve(vq);
    }
    vq->takes_left = false;
    aio_co_reschedule_self(aio_main());
}

co_fn void vq_co_stop(VirtQueue *vq)
{
    if (!vq->started) {
        return;
    }
    if (!vq->parked) {
        aio_co_reschedule_self(vq->ctx);
        vq_notify_stop(vq);
        bool idle UNUSED = become_idle(vq, false);
    }
    event_notifier_test_and_clear(&vq->doorbell);
    vq->active = false;
    vq->started = false;
    aio_co_reschedule_self(aio_main());
    vq_set_base(vq, vring_base(vq));
    elems_destroy(vq);
}

co_fn int vq_co_move(VirtQueue *vq, AioContext *ctx)
{
    assert(vq->started);
    if (vq->parked) {
        vq->ctx = ctx;
        return 0;
    }
    aio_co_reschedule_self(vq->ctx);
    vq_notify_stop(vq);
    bool idle = become_idle(vq, true);

    if (idle) {
        vq->ctx = ctx;
        aio_co_reschedule_self(ctx);
    }
    vq_notify_start(vq);
    aio_co_reschedule_self(aio_main());
    return idle ? 0 : -EBUSY;
}

co_fn void vq_co_park(VirtQueue *vq)
{
    assert(vq->started && !vq->parked);
    aio_co_reschedule_self(vq->ctx);
    vq_notify_stop(vq);
    bool idle UNUSED = become_idle(vq, false);

    aio_co_reschedule_self(aio_main());
    vq->parked = true;
}

co_fn int vq_co_unpark(VirtQueue *vq, Error *err)
{
    assert(vq->parked);
    vq->base = vring_base(vq);
    vq->base_given = true;
    int ret = ring_open(vq, err);

    if (ret < 0) {
        return ret;
    }
    vq->parked = false;
    aio_co_reschedule_self(vq->ctx);
    vq_notify_start(vq);
    aio_co_reschedule_self(aio_main());
    return 0;
}

void vq_break(VirtQueue *vq, const char *fmt, ...)
{
    va_list ap;

    vq->active = false;
    if (atomic_load_explicit(&vq->broken, memory_order_relaxed) || gm_is_lost(vq->gm)) {
        return;
    }
    va_start(ap, fmt);
    vsnprintf(vq->broken_reason, sizeof(vq->broken_reason), fmt, ap);
    va_end(ap);
    /* release: pairs with the main thread, which tells the reason */
    atomic_store_explicit(&vq->broken, true, memory_order_release);
    vdev_needs_reset(vq->vdev);
}

/* --- elements --- */

/* One writer: no locked instruction is needed. */
static inline unsigned in_flight_set(VirtQueue *vq, unsigned nb)
{
    atomic_store_explicit(&vq->in_flight, nb, memory_order_relaxed);
    return nb;
}

static inline unsigned in_flight(const VirtQueue *vq)
{
    return atomic_load_explicit(&vq->in_flight, memory_order_relaxed);
}

static inline bool ring_has_work(VirtQueue *vq)
{
    return vring_has_work(vq) || (unlikely(vq->tracker) && vq_tracker_has_work(vq->tracker));
}

/* What is not tracked pays a branch; so the two are compiled apart. */
static ALWAYS_INLINE VqElem *pop(VirtQueue *vq, bool tracked)
{
    VqElem *elem = vq->free_elems;

    if (unlikely(!vq->active)) {
        return NULL;
    }
    if (unlikely(!elem)) {
        if (ring_has_work(vq)) {
            vq_break(vq, "more chains made available than the queue holds");
        }
        return NULL;
    }
    if ((tracked ? vq_tracker_pop(vq, elem) : vring_pop(vq, elem)) <= 0) {
        return NULL;
    }
    if (unlikely(gm_is_lost(vq->gm))) {
        vq->active = false;
        return NULL;
    }
    vq->free_elems = elem->next_free;
    elem->in_use = true;
    vq->head_in_flight[elem->head] = 1;
    in_flight_set(vq, in_flight(vq) + 1);
    vq_count(&vq->stats.requests);
    return elem;
}

static NOINLINE VqElem *pop_tracked(VirtQueue *vq)
{
    return pop(vq, true);
}

VqElem *vq_pop(VirtQueue *vq)
{
    return unlikely(vq->tracker) ? pop_tracked(vq) : pop(vq, false);
}

static inline void elem_free(VirtQueue *vq, VqElem *elem)
{
    elem->in_use = false;
    vq->head_in_flight[elem->head] = 0;
    elem->next_free = vq->free_elems;
    vq->free_elems = elem;
    if (in_flight_set(vq, in_flight(vq) - 1) == 0 && unlikely(vq->idle_waiter)) {
        aio_co_wake(take_ptr(&vq->idle_waiter));
    }
    if (unlikely(vq->starved)) {
        aio_bh_schedule(vq->self_kick);
    }
}

static ALWAYS_INLINE void publish(VirtQueue *vq, bool tracked)
{
    if (tracked) {
        vq_tracker_publish(vq);
    } else if (!gm_is_lost(vq->gm)) {
        vring_publish(vq);
    }
    vq->used_published = vq->used_idx;
    vq_count(&vq->stats.batches);
}

static ALWAYS_INLINE void push(VirtQueue *vq, VqElem *elem, uint32_t written_bytes, bool tracked)
{
    assert(elem->in_use);
    if (tracked) {
        vq_tracker_push(vq, elem);
    }
    vring_push(vq, elem, written_bytes);
    vq->used_idx++;
    if ((uint16_t)(vq->used_idx - vq->used_published) >= VQ_PUBLISH_MAX) {
        publish(vq, tracked);
    }
    if (!vq->flush.queued) {
        aio_defer(vq->ctx, &vq->flush);
    }
    elem_free(vq, elem);
}

static NOINLINE void push_tracked(VirtQueue *vq, VqElem *elem, uint32_t written_bytes)
{
    push(vq, elem, written_bytes, true);
}

void vq_push(VirtQueue *vq, VqElem *elem, uint32_t written_bytes)
{
    if (unlikely(vq->tracker)) {
        push_tracked(vq, elem, written_bytes);
    } else {
        push(vq, elem, written_bytes, false);
    }
}

void vq_detach(VirtQueue *vq, VqElem *elem)
{
    assert(elem->in_use);
    elem_free(vq, elem);
}

bool vq_suspends(const VirtQueue *vq)
{
    return vq->tracker && atomic_load(&vq->tracker->suspending);
}

void vq_leave(VirtQueue *vq, VqElem *elem)
{
    assert(elem->in_use && vq_suspends(vq));
    vq_tracker_leave(vq, elem);
    elem_free(vq, elem);
}

void vq_publish(VirtQueue *vq)
{
    if (vq->used_idx != vq->used_published) {
        publish(vq, vq->tracker);
    }
}

void vq_flush(VirtQueue *vq)
{
    uint16_t from = vq->used_signalled;

    vq_publish(vq);
    vq->used_signalled = vq->used_published;
    if (vq->used_published != from && !gm_is_lost(vq->gm) &&
        vring_wants_signal(vq, from, vq->used_published)) {
        vq_interrupt(vq);
    }
}

bool vq_has_work(VirtQueue *vq)
{
    return vq->active && !vq->starved && !atomic_load_explicit(&vq->paused, memory_order_relaxed) &&
           ring_has_work(vq);
}

bool vq_enable_notifications(VirtQueue *vq)
{
    if (!vq->active) {
        return false;
    }
    if (!vq->notifications_on) {
        vq->notifications_on = true;
        vring_ask_kicks(vq, true);
        /* pairs with the driver's barrier between what it offers and its decision to kick */
        vq_store_load_barrier();
    }
    return ring_has_work(vq);
}

void vq_disable_notifications(VirtQueue *vq)
{
    if (vq->active && vq->notifications_on) {
        vq->notifications_on = false;
        vring_ask_kicks(vq, false);
    }
}

/* --- copies --- */

static size_t iov_copy(const struct iovec *iov, unsigned nb_iov, size_t offset_bytes, void *to,
                       const void *from, size_t len_bytes)
{
    size_t done = 0;

    for (unsigned i = 0; i < nb_iov && done < len_bytes; i++) {
        if (offset_bytes >= iov[i].iov_len) {
            offset_bytes -= iov[i].iov_len;
            continue;
        }
        size_t piece = MIN(iov[i].iov_len - offset_bytes, len_bytes - done);
        char *guest = (char *)iov[i].iov_base + offset_bytes;

        if (to) {
            memcpy((char *)to + done, guest, piece);
        } else {
            memcpy(guest, (const char *)from + done, piece);
        }
        done += piece;
        offset_bytes = 0;
    }
    return done;
}

/* Zeroes instead of a part of it would be a request as any other. */
size_t vq_elem_copy_out(const VqElem *elem, size_t offset_bytes, void *buf, size_t len_bytes)
{
    size_t done = iov_copy(elem->iov, elem->nb_out, offset_bytes, buf, NULL, len_bytes);

    if (gm_is_lost(elem->vq->gm)) {
        memset(buf, 0xff, done);
    }
    return done;
}

size_t vq_elem_copy_in(const VqElem *elem, size_t offset_bytes, const void *buf, size_t len_bytes)
{
    return iov_copy(elem->iov + elem->nb_out, elem->nb_in, offset_bytes, NULL, buf, len_bytes);
}
