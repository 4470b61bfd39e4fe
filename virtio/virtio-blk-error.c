/*
 * virtio-blk-error.c - what becomes of a request that the storage has failed
 *
 * As the disk's policy says it is reported to the guest, taken for done, or held: it waits, the
 * owner of the device is told to stop the guest, and when it says so the request is made again. A
 * queue that is halted (a reset of the device, the end of the machine) reports what it holds, so
 * nobody waits for a guest that is stopped. One that is suspended leaves it, and what fails
 * meanwhile, to who starts it next: to the guest all that is still in flight. What that makes fail of
 * other queues (they have the storage in common, and it is told to end what it does) is held until the
 * queue has stopped, and made again.
 *
 * What the guest itself has done wrong, and what the storage cannot do at all, is always reported.
 *
 * Invariants:
 *   (1) A held request is linked in `held`; who unlinks it decides what becomes of it and wakes it,
 *       once.
 *   (2) While a queue is being halted, none of its requests is linked. None is linked for a
 *       suspension while no queue is being suspended.
 */
#include "virtio/virtio-blk-int.h"

typedef enum HeldFor {
    HELD_FOR_OWNER,      /* of the device: virtio_blk_retry() */
    HELD_FOR_SUSPENSION, /* of another queue: its end */
} HeldFor;

typedef struct HeldRequest {
    ListNode link;
    Coroutine *co;
    unsigned queue;
    HeldFor why;
    bool again;
} HeldRequest;

int virtio_blk_errors_init(VirtioBlk *vblk, unsigned nb_queues)
{
    pthread_mutex_init(&vblk->held_lock, NULL);
    list_init(&vblk->held);
    vblk->halting = calloc(nb_queues, sizeof(*vblk->halting));
    return vblk->halting ? 0 : -ENOMEM;
}

void virtio_blk_errors_finish(VirtioBlk *vblk)
{
    assert(list_empty(&vblk->held));
    pthread_mutex_destroy(&vblk->held_lock);
    free(vblk->halting);
}

/* Or what the storage cannot do at all. */
static bool is_guests_fault(int ret)
{
    return ret == -EINVAL || ret == -EPERM || ret == -EOPNOTSUPP;
}

static VirtioBlkOnError policy_for(const VirtioBlk *vblk, bool is_write, int ret)
{
    VirtioBlkOnError policy = is_write ? vblk->on_write_error : vblk->on_read_error;

    if (is_guests_fault(ret)) {
        return VIRTIO_BLK_REPORT;
    }
    if (policy == VIRTIO_BLK_STOP_ENOSPC) {
        return ret == -ENOSPC || ret == -EDQUOT ? VIRTIO_BLK_STOP : VIRTIO_BLK_REPORT;
    }
    return policy;
}

/* Under the lock. False: nobody would wake it. */
static bool link_held(VirtioBlk *vblk, HeldRequest *held)
{
    if (vblk->halting[held->queue] ||
        (held->why == HELD_FOR_SUSPENSION && vblk->nb_suspending == 0)) {
        return false;
    }
    list_push_back(&vblk->held, &held->link);
    return true;
}

/* Wait for what is decided: true = make the request again. */
static co_fn bool co_hold(VirtioBlk *vblk, unsigned queue, HeldFor why, bool is_write, int error)
{
    HeldRequest held = { .co = co_self(), .queue = queue, .why = why };
    bool wait;

    pthread_mutex_lock(&vblk->held_lock);
    wait = link_held(vblk, &held);
    if (wait && why == HELD_FOR_OWNER) {
        vblk->stop_ops->stop(vblk->stop_opaque, is_write, error);
    }
    pthread_mutex_unlock(&vblk->held_lock);
    if (wait) {
        vq_look_for_held(&vblk->vdev.queues[queue]);
        co_yield();
    }
    return held.again;
}

/* Also of a request that was held. */
static bool stays_in_flight(VirtioBlk *vblk, unsigned queue, int *ret)
{
    if (!vq_suspends(&vblk->vdev.queues[queue])) {
        return false;
    }
    *ret = VIRTIO_BLK_SUSPENDED;
    return true;
}

static void tell(VirtioBlk *vblk, bool is_write, bool ignored, int error)
{
    if (vblk->stop_ops && vblk->stop_ops->failed && !is_guests_fault(error)) {
        vblk->stop_ops->failed(vblk->stop_opaque, is_write, ignored, error);
    }
}

co_fn bool virtio_blk_co_again(VirtioBlk *vblk, unsigned queue, bool is_write, int *ret)
{
    if (!is_guests_fault(*ret)) {
        if (co_hold(vblk, queue, HELD_FOR_SUSPENSION, is_write, *ret)) {
            return true;
        }
        if (stays_in_flight(vblk, queue, ret)) {
            return false;
        }
    }
    switch (policy_for(vblk, is_write, *ret)) {
    case VIRTIO_BLK_IGNORE:
        tell(vblk, is_write, true, *ret);
        *ret = 0;
        return false;
    case VIRTIO_BLK_STOP:
        if (co_hold(vblk, queue, HELD_FOR_OWNER, is_write, *ret)) {
            return true;
        }
        stays_in_flight(vblk, queue, ret);
        return false;
    default:
        tell(vblk, is_write, false, *ret);
        return false;
    }
}

/* Let the requests in the list go on. */
static void let_go(List *go, bool again)
{
    ListNode *node;

    while ((node = list_pop_front(go))) {
        HeldRequest *held = list_entry(node, HeldRequest, link);

        held->again = again;
        aio_co_schedule(co_home(held->co), held->co);
    }
}

static void take_all(VirtioBlk *vblk, HeldFor why, List *go)
{
    list_for_each_safe(it, &vblk->held) {
        if (list_entry(it, HeldRequest, link)->why == why) {
            list_remove(it);
            list_push_back(go, it);
        }
    }
}

static void take_queue(VirtioBlk *vblk, unsigned queue, List *go)
{
    list_for_each_safe(it, &vblk->held) {
        if (list_entry(it, HeldRequest, link)->queue == queue) {
            list_remove(it);
            list_push_back(go, it);
        }
    }
}

void virtio_blk_retry(VirtioBlk *vblk)
{
    List go = LIST_INIT(go);

    pthread_mutex_lock(&vblk->held_lock);
    take_all(vblk, HELD_FOR_OWNER, &go);
    pthread_mutex_unlock(&vblk->held_lock);
    let_go(&go, true);
}

bool virtio_blk_holds_requests(VirtioBlk *vblk)
{
    bool any;

    pthread_mutex_lock(&vblk->held_lock);
    any = !list_empty(&vblk->held);
    pthread_mutex_unlock(&vblk->held_lock);
    return any;
}

bool virtio_blk_holds(VirtioDevice *vdev, VirtQueue *vq)
{
    VirtioBlk *vblk = container_of(vdev, VirtioBlk, vdev);
    bool any = false;

    pthread_mutex_lock(&vblk->held_lock);
    list_for_each(it, &vblk->held) {
        any |= list_entry(it, HeldRequest, link)->queue == vq->index;
    }
    pthread_mutex_unlock(&vblk->held_lock);
    return any;
}

void virtio_blk_halting(VirtioDevice *vdev, VirtQueue *vq, bool on)
{
    VirtioBlk *vblk = container_of(vdev, VirtioBlk, vdev);
    List go = LIST_INIT(go);

    pthread_mutex_lock(&vblk->held_lock);
    vblk->halting[vq->index] = on;
    vblk->nb_suspending += vq_suspends(vq) ? (on ? 1 : -1) : 0;
    if (on) {
        take_queue(vblk, vq->index, &go);
    } else if (vblk->nb_suspending == 0) {
        take_all(vblk, HELD_FOR_SUSPENSION, &go);
    }
    pthread_mutex_unlock(&vblk->held_lock);
    let_go(&go, !on);
}
