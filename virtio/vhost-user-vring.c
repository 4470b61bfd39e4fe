/*
 * vhost-user-vring.c - rings: from what the client said of them to a queue that runs
 *
 *     stopped --SET_VRING_KICK--> started, disabled --SET_VRING_ENABLE 1--> running
 *        ^                                          <--SET_VRING_ENABLE 0--
 *        +---- GET_VRING_BASE, from either ---------------------------------------+
 *
 * A ring that stops is drained first: its requests, and what another process had left of it, are
 * done. Or it is suspended, where requests in flight are kept for who comes next: that waits only for
 * what the storage is at, and leaves the rest there, for the next start here or in another process.
 * So it is when the client goes, and, where VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT was agreed
 * on, at GET_VRING_BASE and at SET_VRING_ENABLE 0, which comes before that.
 *
 * A client that did not acknowledge VHOST_USER_F_PROTOCOL_FEATURES knows no enabling: its rings
 * are enabled from the start. The queue itself is started when the ring runs and everything is
 * known that it needs (features, addresses), in whichever order that came; it begins by serving
 * what is there, so a kick that was lost with the process before us is made up for. Likewise it
 * signals the driver once, who may be waiting for an interrupt that that process did not get to.
 *
 * Invariants:
 *   (1) A queue is started exactly while its ring runs: vhu_vrings_co_update() after each request
 *       that may have changed that.
 *   (2) A descriptor is closed when nobody can use it any more: kick_fd while the queue is stopped
 *       or parked, call_fd when the home context knows no other than the next one, err_fd at once.
 *   (3) `base` is where a stopped queue stands; while it is started the queue knows.
 */
#include "virtio/vhost-user-int.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/virtio_config.h>

#include "virtio/peer-signal.h"

/* --- the queue behind a ring --- */

static VirtQueue *queue_of(const VhuSession *session, unsigned index)
{
    return vdev_queue(session->server->vdev, index);
}

void vhu_vrings_init(VhuSession *session)
{
    for (unsigned i = 0; i < session->server->vdev->nb_queues; i++) {
        session->vrings[i] = (VhuVring){
            .size = queue_of(session, i)->max_size, .kick_fd = -1, .call_fd = -1, .err_fd = -1
        };
    }
}

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(take_fd(fd));
    }
}

static void signal_fd(int fd)
{
    if (fd >= 0) {
        peer_signal(fd);
    }
}

static bool ring_runs(const VhuSession *session, const VhuVring *vring)
{
    bool enabling = session->features >> VHOST_USER_F_PROTOCOL_FEATURES & 1;

    return vring->kick_given && (vring->enabled || !enabling) && vring->addr_given &&
           session->features_ok;
}

static int set_part(VhuSession *session, VirtQueue *vq, uint64_t *cfg_gpa, const char *what,
                    uint64_t user_addr, Error *err)
{
    Gpa gpa;

    if (vhu_memory_gpa_of_user(&session->server->memory, user_addr, &gpa) < 0) {
        return error_set(err, -EFAULT,
                         "queue %u: %s at the client's 0x%" PRIx64 ", which is not shared memory",
                         vq->index, what, user_addr);
    }
    *cfg_gpa = gpa.addr;
    return 0;
}

/* Where the ring is in guest memory; the queue is stopped or parked. */
static int set_addresses(VhuSession *session, VirtQueue *vq, const VhuVring *vring, Error *err)
{
    int ret;

    if ((ret = set_part(session, vq, &vq->cfg_desc_gpa, "descriptors", vring->addr.desc_user_addr,
                        err)) < 0 ||
        (ret = set_part(session, vq, &vq->cfg_avail_gpa, "available ring",
                        vring->addr.avail_user_addr, err)) < 0 ||
        (ret = set_part(session, vq, &vq->cfg_used_gpa, "used ring", vring->addr.used_user_addr,
                        err)) < 0) {
        return ret;
    }
    return 0;
}

/* Where a ring begins that the client says nothing of; a packed one in its first lap. */
static void default_base(const VhuSession *session, VhuVring *vring)
{
    uint16_t word = session->features >> VIRTIO_F_RING_PACKED & 1 ? VQ_BASE_PACKED(0, 1) : 0;

    if (!vring->base_given) {
        vring->base = (VqBase){ word, word };
    }
}

/* A queue with nothing to note has no tracker. Stopped or parked. */
static void set_tracker(VhuSession *session, unsigned index)
{
    VqTracker *tracker = &session->vrings[index].tracker;
    bool used = tracker->split || tracker->packed || tracker->log;

    queue_of(session, index)->tracker = used ? tracker : NULL;
}

/* It is stopped: nothing of the client's stays with it. */
static void forget_queue(VhuSession *session, unsigned index)
{
    VirtQueue *vq = queue_of(session, index);

    vq->kick_fd = -1;
    vq->tracker = NULL;
    atomic_store(&vq->interrupt.fd, -1);
    vq_tracker_finish(&session->vrings[index].tracker);
}

static co_fn int start_queue(VhuSession *session, unsigned index, Error *err)
{
    VirtioDevice *vdev = session->server->vdev;
    VirtQueue *vq = queue_of(session, index);
    VhuVring *vring = &session->vrings[index];
    int ret = set_addresses(session, vq, vring, err);

    default_base(session, vring);
    if (ret < 0 || (ret = vhu_inflight_begin(session, index, vq, err)) < 0) {
        return ret;
    }
    vhu_log_apply(session, index);
    set_tracker(session, index);
    vdev_queue_set_size(vdev, vq, (uint16_t)vring->size);
    vq_set_base(vq, vring->base);
    vq->kick_fd = vring->kick_fd;
    vq->spins = vring->kick_fd < 0;
    atomic_store(&vq->interrupt.fd, vring->call_fd);
    ret = vdev_co_queue_start(vdev, vq, err);
    if (ret < 0) {
        forget_queue(session, index);
        return ret;
    }
    signal_fd(vring->call_fd);
    return 0;
}

/* @suspend  if requests in flight are kept */
static co_fn void stop_queue(VhuSession *session, unsigned index, bool suspend)
{
    VirtQueue *vq = queue_of(session, index);
    VhuVring *vring = &session->vrings[index];

    if (!vq->started) {
        return;
    }
    if (suspend && (vring->tracker.split || vring->tracker.packed)) {
        vdev_co_queue_suspend(session->server->vdev, vq);
    } else {
        vdev_co_queue_stop(session->server->vdev, vq);
    }
    vring->base = vq_base(vq);
    vring->base_given = true;
    /* The region tells what was left, be it that the queue was paused. */
    vring->base_ours = atomic_load(&vq->broken) || !vq_tracker_keeps(&vring->tracker);
    forget_queue(session, index);
}

static bool suspends_rings(const VhuSession *session)
{
    return vhu_session_has(session, VHOST_USER_PROTOCOL_F_GET_VRING_BASE_INFLIGHT);
}

co_fn int vhu_vrings_co_update(VhuSession *session, Error *err)
{
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < session->server->vdev->nb_queues; i++) {
        bool runs = ring_runs(session, &session->vrings[i]);
        bool started = queue_of(session, i)->started;

        if (runs && !started) {
            ret = start_queue(session, i, err);
        } else if (!runs && started) {
            stop_queue(session, i, suspends_rings(session));
        }
    }
    return ret;
}

static co_fn void reset_rings(VhuSession *session, bool suspend)
{
    for (unsigned i = 0; i < session->server->vdev->nb_queues; i++) {
        VhuVring *vring = &session->vrings[i];

        stop_queue(session, i, suspend);
        close_fd(&vring->kick_fd);
        /* QEMU asks for the base after it has reset the device; another start begins anew. */
        *vring = (VhuVring){ .size = queue_of(session, i)->max_size,
                             .base = vring->base,
                             .base_ours = true,
                             .kick_fd = -1,
                             .call_fd = vring->call_fd,
                             .err_fd = vring->err_fd };
    }
}

co_fn void vhu_vrings_co_reset(VhuSession *session)
{
    reset_rings(session, false);
}

co_fn int vhu_vrings_co_disable(VhuSession *session, Error *err)
{
    for (unsigned i = 0; i < session->server->vdev->nb_queues; i++) {
        session->vrings[i].enabled = false;
    }
    return vhu_vrings_co_update(session, err);
}

co_fn void vhu_vrings_co_stop(VhuSession *session)
{
    reset_rings(session, true);
    for (unsigned i = 0; i < session->server->vdev->nb_queues; i++) {
        close_fd(&session->vrings[i].call_fd);
        close_fd(&session->vrings[i].err_fd);
    }
}

bool vhu_vrings_any_started(const VhuSession *session)
{
    for (unsigned i = 0; i < session->server->vdev->nb_queues; i++) {
        if (queue_of(session, i)->started) {
            return true;
        }
    }
    return false;
}

void vhu_vring_broken(VhuSession *session, unsigned index)
{
    signal_fd(session->vrings[index].err_fd);
}

co_fn void vhu_vrings_co_park(VhuSession *session)
{
    vdev_co_park(session->server->vdev);
}

co_fn int vhu_vrings_co_unpark(VhuSession *session, Error *err)
{
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < session->server->vdev->nb_queues; i++) {
        VirtQueue *vq = queue_of(session, i);

        if (vq->started) {
            ret = set_addresses(session, vq, &session->vrings[i], err);
            vhu_log_apply(session, i);
            set_tracker(session, i);
        }
    }
    /* Those that stay parked are stopped with the session. */
    return ret < 0 ? ret : vdev_co_unpark(session->server->vdev, err);
}

/* --- requests --- */

/* The ring that @index names, and its queue. */
static int find_vring(VhuSession *session, const VhuMsg *msg, uint32_t index, VhuVring **ret_vring,
                      VirtQueue **ret_vq, Error *err)
{
    if (index >= session->server->vdev->nb_queues) {
        return error_set(err, -EINVAL, "%s for queue %u of %u", vhu_request_name(msg->hdr.request),
                         index, session->server->vdev->nb_queues);
    }
    *ret_vring = &session->vrings[index];
    *ret_vq = queue_of(session, index);
    return 0;
}

static int find_stopped(VhuSession *session, const VhuMsg *msg, VhuVring **ret_vring,
                        VirtQueue **ret_vq, Error *err)
{
    uint32_t index = msg->payload.state.index;
    int ret = find_vring(session, msg, index, ret_vring, ret_vq, err);

    if (ret == 0 && (*ret_vq)->started) {
        return error_set(err, -EBUSY, "%s for queue %u, which runs",
                         vhu_request_name(msg->hdr.request), index);
    }
    return ret;
}

co_fn int vhu_vring_co_set_num(VhuSession *session, VhuMsg *msg, Error *err)
{
    uint32_t size = msg->payload.state.num;
    VhuVring *vring = NULL;
    VirtQueue *vq = NULL;
    int ret = find_stopped(session, msg, &vring, &vq, err);

    if (ret < 0) {
        return ret;
    }
    if (size == 0 || size > vq->max_size) {
        return error_set(err, -EINVAL, "queue %u: %u is no size for it (1 to %u)", vq->index, size,
                         vq->max_size);
    }
    vring->size = size;
    return 0;
}

co_fn int vhu_vring_co_set_addr(VhuSession *session, VhuMsg *msg, Error *err)
{
    VhuVring *vring = NULL;
    VirtQueue *vq = NULL;
    int ret = find_vring(session, msg, msg->payload.addr.index, &vring, &vq, err);

    if (ret < 0) {
        return ret;
    }
    if (vq->started) {
        vhu_vrings_co_park(session);
    }
    vring->addr = msg->payload.addr;
    vring->addr_given = true;
    return vq->started ? vhu_vrings_co_unpark(session, err) : vhu_vrings_co_update(session, err);
}

co_fn int vhu_vring_co_set_base(VhuSession *session, VhuMsg *msg, Error *err)
{
    uint32_t num = msg->payload.state.num;
    VhuVring *vring = NULL;
    VirtQueue *vq = NULL;
    int ret = find_stopped(session, msg, &vring, &vq, err);

    if (ret == 0) {
        vring->base = (VqBase){ .avail = (uint16_t)num, .used = (uint16_t)(num >> 16) };
        vring->base_given = true;
    }
    return ret;
}

co_fn int vhu_vring_co_get_base(VhuSession *session, VhuMsg *msg, Error *err)
{
    struct vhost_vring_state state = { .index = msg->payload.state.index };
    VhuVring *vring = NULL;
    VirtQueue *vq = NULL;
    int ret = find_vring(session, msg, state.index, &vring, &vq, err);

    if (ret < 0) {
        return ret;
    }
    stop_queue(session, state.index, suspends_rings(session));
    vring->kick_given = false;
    close_fd(&vring->kick_fd);
    state.num = vring->base.avail;
    if (session->features >> VIRTIO_F_RING_PACKED & 1) {
        state.num |= (uint32_t)vring->base.used << 16;
    }
    return vhu_msg_co_reply(session->ch, msg->hdr.request, &state, sizeof(state), -1);
}

co_fn int vhu_vring_co_set_enable(VhuSession *session, VhuMsg *msg, Error *err)
{
    struct vhost_vring_state state = msg->payload.state;
    VhuVring *vring = NULL;
    VirtQueue *vq = NULL;
    int ret = find_vring(session, msg, state.index, &vring, &vq, err);

    if (ret < 0) {
        return ret;
    }
    if (state.num > 1) {
        return error_set(err, -EINVAL, "SET_VRING_ENABLE of queue %u with %u", state.index,
                         state.num);
    }
    vring->enabled = state.num == 1;
    return vhu_vrings_co_update(session, err);
}

/* --- descriptors --- */

/* The eventfd of a request, or -1 when the client says that there is none. */
static int take_eventfd(VhuMsg *msg, int *ret_fd, Error *err)
{
    if (msg->payload.u64 & VHOST_USER_VRING_NOFD_MASK) {
        *ret_fd = -1;
        return 0;
    }
    return vhu_msg_take_eventfd(msg, ret_fd, err);
}

static int find_and_take(VhuSession *session, VhuMsg *msg, VhuVring **ret_vring, VirtQueue **ret_vq,
                         int *ret_fd, Error *err)
{
    unsigned index = msg->payload.u64 & VHOST_USER_VRING_INDEX_MASK;
    int ret = find_vring(session, msg, index, ret_vring, ret_vq, err);

    return ret < 0 ? ret : take_eventfd(msg, ret_fd, err);
}

co_fn int vhu_vring_co_set_kick(VhuSession *session, VhuMsg *msg, Error *err)
{
    VhuVring *vring = NULL;
    VirtQueue *vq = NULL;
    int fd = -1, ret = find_and_take(session, msg, &vring, &vq, &fd, err);

    if (ret < 0) {
        return ret;
    }
    if (fd >= 0) {
        fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK); /* for the client, too, which only writes it */
    }
    if (vq->started) {
        vhu_vrings_co_park(session);
        vq->kick_fd = fd;
        vq->spins = fd < 0;
    }
    close_fd(&vring->kick_fd);
    vring->kick_fd = fd;
    vring->kick_given = true;
    return vq->started ? vhu_vrings_co_unpark(session, err) : vhu_vrings_co_update(session, err);
}

co_fn int vhu_vring_co_set_call(VhuSession *session, VhuMsg *msg, Error *err)
{
    VhuVring *vring = NULL;
    VirtQueue *vq = NULL;
    int fd = -1, ret = find_and_take(session, msg, &vring, &vq, &fd, err);

    if (ret < 0) {
        return ret;
    }
    if (vq->started) {
        vdev_co_queue_set_interrupt(session->server->vdev, vq, fd);
        signal_fd(fd);
    }
    close_fd(&vring->call_fd);
    vring->call_fd = fd;
    return 0;
}

co_fn int vhu_vring_co_set_err(VhuSession *session, VhuMsg *msg, Error *err)
{
    VhuVring *vring = NULL;
    VirtQueue *vq = NULL;
    int fd = -1, ret = find_and_take(session, msg, &vring, &vq, &fd, err);

    if (ret < 0) {
        return ret;
    }
    close_fd(&vring->err_fd);
    vring->err_fd = fd;
    if (atomic_load(&vq->broken)) {
        signal_fd(fd);
    }
    return 0;
}
