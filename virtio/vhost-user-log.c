/*
 * vhost-user-log.c - the client's log of pages that we write, while it moves its guest elsewhere
 *
 * Queues are parked while the log begins, ends or changes: so each request is either logged from
 * its beginning to its end or, if it ended before, not at all.
 */
#include <inttypes.h>
#include <linux/vhost_types.h>

#include "virtio/vhost-user-int.h"

bool vhu_log_is_on(const VhuSession *session)
{
    return (session->features >> VHOST_F_LOG_ALL & 1) && session->log.map.addr;
}

void vhu_log_apply(VhuSession *session, unsigned index)
{
    VhuVring *vring = &session->vrings[index];

    vring->tracker.log = vhu_log_is_on(session) ? &session->log.log : NULL;
    vring->tracker.log_ring = vring->addr.flags & (1u << VHOST_VRING_F_LOG);
    vring->tracker.ring_log_gpa = vring->addr.log_guest_addr;
}

co_fn int vhu_log_co_set_base(VhuSession *session, VhuMsg *msg, Error *err)
{
    const VhostUserLog *wire = &msg->payload.log;
    uint64_t zero = 0;
    SharedMap map;
    int ret;

    if (wire->mmap_size > VHU_LOG_BYTES_MAX) {
        return error_set(err, -EINVAL, "SET_LOG_BASE of 0x%" PRIx64 " bytes; at most 0x%llx",
                         wire->mmap_size, VHU_LOG_BYTES_MAX);
    }
    ret = shared_map_open(&map, msg->fds.fds[0], wire->mmap_offset, wire->mmap_size,
                              session->server->lost_bh, err);

    if (ret < 0) {
        error_prefix(err, "SET_LOG_BASE: ");
        return ret;
    }
    vhu_vrings_co_park(session);
    shared_map_close(&session->log.map);
    session->log.map = map;
    session->log.log.words = map.addr; /* in whole pages */
    session->log.log.nb_pages = map.len_bytes * 8;
    ret = vhu_vrings_co_unpark(session, err);
    return ret < 0 ? ret : vhu_msg_co_reply(session->ch, msg->hdr.request, &zero, sizeof(zero), -1);
}

co_fn int vhu_log_co_set_fd(VhuSession *session, VhuMsg *msg, Error *err)
{
    int fd, ret = vhu_msg_take_eventfd(msg, &fd, err);

    if (ret < 0) {
        return ret;
    }
    vhu_vrings_co_park(session);
    int before = atomic_exchange(&session->log.log.fd, fd);

    if (before >= 0) {
        close(before);
    }
    return vhu_vrings_co_unpark(session, err);
}

void vhu_log_close(VhuSession *session)
{
    int fd = atomic_exchange(&session->log.log.fd, -1);

    if (fd >= 0) {
        close(fd);
    }
    shared_map_close(&session->log.map);
}
