/*
 * virtio-notify.c - how driver and device call each other: doorbell, polling, interrupt
 *
 * The driver's kick arrives in one of two ways. Either the doorbell's eventfd becomes readable, or,
 * while the loop's polling window is open, the probe sees the new available index. Whoever is
 * polled for needs no kicks: they are off from poll_begin to poll_end, and while the handler runs.
 *
 * Invariants:
 *   (1) Kicks are on whenever the loop may sleep with the queue active. They are switched on before
 *       the ring is looked at for the last time (vq_enable_notifications() has the barrier), so a
 *       chain that comes at any moment is seen by that look or announced by a kick.
 *   (2) A call of the handler takes at most VQ_BATCH_MAX chains. What is left is taken in the next
 *       pass, which the queue asks for itself; so queues that share a thread take turns.
 *   (3) Interrupts are sent by vq_flush() alone, which runs once at the end of a pass.
 *   (4) A paused queue takes nothing, and kicks that come meanwhile are forgotten. Who ends the
 *       pause rings the doorbell itself afterwards, so what they announced is looked for.
 *   (5) A starved queue, one that the device could not take all of, is served again by whichever
 *       comes first: the end of one of its requests, for which it then asks itself; the retry
 *       timer, armed when it had none in flight; a kick, an end of a pause or a start, all of
 *       which try anew. It takes no part in polling meanwhile and asks for no kicks, so nothing is
 *       tried more often than that.
 *
 * A peer that has memory of ours in common kicks with an eventfd of its own, kick_fd, which nobody
 * here writes to; or it does not kick at all, and the queue spins: a bottom half that looks at the
 * ring in each pass that has nothing else to do, and so keeps the loop from sleeping.
 */
#include <sys/uio.h>

#include "virtio/peer-signal.h"
#include "virtio/virtqueue-int.h"
#include "virtio/virtio-device.h"

#define RETRY_NS 10000000

void vq_starve(VirtQueue *vq)
{
    vq->starved = true;
    if (atomic_load_explicit(&vq->in_flight, memory_order_relaxed) == 0) {
        aio_timer_arm(&vq->retry, aio_now_ns() + RETRY_NS);
    }
}

static void no_longer_starved(VirtQueue *vq)
{
    vq->starved = false;
    aio_timer_disarm(&vq->retry);
}

void vq_serve(VirtQueue *vq)
{
    VirtioDevice *vdev = vq->vdev;

    if (unlikely(vq->starved)) {
        no_longer_starved(vq);
    }
    if (!vq->active || unlikely(atomic_load(&vq->paused))) {
        return;
    }
    if (!vq->polling) {
        vq_disable_notifications(vq);
    }
    vdev->ops->handle_queue(vdev, vq);
    vq_publish(vq);
    if (vq->polling || unlikely(vq->starved)) {
        return; /* the probe sees what is left; (5) */
    }
    if (vq_has_work(vq) || vq_enable_notifications(vq)) {
        aio_bh_schedule(vq->self_kick);
    }
}

static void doorbell_cb(void *opaque)
{
    VirtQueue *vq = opaque;

    if (event_notifier_test_and_clear(&vq->doorbell)) {
        vq_count(&vq->stats.kicks);
        vq_serve(vq);
    }
}

/* The peer may have made its eventfd block, and may be faster to read it than we are. */
static bool kick_test_and_clear(int fd)
{
    uint64_t count;
    struct iovec iov = { &count, sizeof(count) };
    ssize_t ret = preadv2(fd, &iov, 1, -1, RWF_NOWAIT);

    if (ret < 0 && errno == EOPNOTSUPP) { /* an old kernel */
        ret = read(fd, &count, sizeof(count));
    }
    return ret == sizeof(count);
}

static void kick_cb(void *opaque)
{
    VirtQueue *vq = opaque;

    if (kick_test_and_clear(vq->kick_fd)) {
        vq_count(&vq->stats.kicks);
        vq_serve(vq);
    }
}

static void spin_bh(void *opaque)
{
    VirtQueue *vq = opaque;

    if (vq_has_work(vq)) {
        vq_count(&vq->stats.polled);
        vq_serve(vq);
    }
    aio_bh_schedule_idle(vq->spin);
}

static void self_kick_cb(void *opaque)
{
    VirtQueue *vq = opaque;

    vq_count(&vq->stats.self_kicks);
    vq_serve(vq);
}

static bool work_poll(void *opaque)
{
    return vq_has_work(opaque);
}

static void poll_ready_cb(void *opaque)
{
    VirtQueue *vq = opaque;

    vq_count(&vq->stats.polled);
    vq_serve(vq);
}

static void poll_begin_cb(void *opaque)
{
    VirtQueue *vq = opaque;

    vq->polling = true;
    vq_disable_notifications(vq);
}

static void poll_end_cb(void *opaque)
{
    VirtQueue *vq = opaque;

    vq->polling = false;
    /* The loop asks work_poll() once more before it sleeps. */
    bool again UNUSED = vq_enable_notifications(vq);
}

static const AioHandlerOps doorbell_ops = {
    .read = doorbell_cb,
    .poll = work_poll,
    .poll_ready = poll_ready_cb,
    .poll_begin = poll_begin_cb,
    .poll_end = poll_end_cb,
};

void vq_notify_start(VirtQueue *vq)
{
    static const AioHandlerOps kick_ops = { .read = kick_cb };

    aio_timer_init(&vq->retry, vq->ctx, self_kick_cb, vq);
    vq->self_kick = aio_bh_create(vq->ctx, self_kick_cb, vq);
    aio_set_event_notifier(vq->ctx, &vq->doorbell, &doorbell_ops, vq);
    if (vq->kick_fd >= 0) {
        aio_set_fd_handler(vq->ctx, vq->kick_fd, &kick_ops, vq);
    }
    if (vq->spins) {
        vq->spin = aio_bh_create(vq->ctx, spin_bh, vq);
        aio_bh_schedule_idle(vq->spin);
    }
    /* The driver may have made chains available before anybody listened. */
    aio_bh_schedule(vq->self_kick);
}

void vq_notify_stop(VirtQueue *vq)
{
    aio_set_event_notifier(vq->ctx, &vq->doorbell, NULL, NULL);
    if (vq->kick_fd >= 0) {
        aio_set_fd_handler(vq->ctx, vq->kick_fd, NULL, NULL);
    }
    no_longer_starved(vq);
    aio_bh_destroy(take_ptr(&vq->spin));
    aio_bh_destroy(take_ptr(&vq->self_kick));
}

void vq_interrupt(VirtQueue *vq)
{
    static const uint64_t one = 1;
    int fd = atomic_load_explicit(&vq->interrupt.fd, memory_order_relaxed);

    vq_count(&vq->stats.notifications);
    if (fd < 0) {
        vq->vdev->transport->notify_queue(vq->vdev->transport_opaque, vq->index);
        return;
    }
    if (vq->kick_fd >= 0 || vq->spins) {
        peer_signal(fd);
        return;
    }
    /* It can fail only when the counter is full: then the interrupt is pending already. */
    ssize_t written UNUSED = write(fd, &one, sizeof(one));
}
