/*
 * vhost-user-msg.h - a message of a vhost-user client, received whole and checked for its form
 *
 * Layer:     virtio/ (may use io/)
 * Threading: pure, or in the caller's context.
 * Lifetime:  a received message owns the descriptors that are left in `fds`; close them by
 *            channel_fds_close().
 *
 * Whatever is not of the form that a request has is refused here: an unknown request, a wrong
 * version, a payload that is longer or shorter, descriptors too many or too few. Requests that the
 * protocol knows but this back end did not offer count as unknown. What the numbers mean is for the
 * session to check.
 */
#ifndef VIRTIO_VHOST_USER_MSG_H
#define VIRTIO_VHOST_USER_MSG_H

#include "io/channel/channel.h"
#include "virtio/vhost-user-proto.h"

typedef struct VhuMsg {
    VhostUserHeader hdr;
    VhostUserPayload payload; /* zeroes beyond hdr.size */
    ChannelFds fds;
} VhuMsg;

/*
 * vhu_msg_co_receive - the next message
 * Returns 1, 0 when the client has closed the connection, -EPROTO when it is not of the right form,
 *         another -errno when the connection has failed.
 */
co_fn int vhu_msg_co_receive(Channel *ch, VhuMsg *msg, Error *err) NONNULL(1, 2) WARN_UNUSED;
/* vhu_msg_check_header - before the payload is read: -EPROTO */
int vhu_msg_check_header(const VhostUserHeader *hdr, Error *err) NONNULL(1) WARN_UNUSED;
/* vhu_msg_check - a message that is there whole: -EPROTO */
int vhu_msg_check(const VhuMsg *msg, Error *err) NONNULL(1) WARN_UNUSED;

/* vhu_msg_co_reply - answer @request with @size_bytes of @payload, and perhaps a descriptor (-1 =
 * none), which stays the caller's. Errors: of the channel */
co_fn int vhu_msg_co_reply(Channel *ch, uint32_t request, const void *payload, size_t size_bytes,
                           int fd) NONNULL(1) WARN_UNUSED;

/* vhu_msg_wants_ack - the client has asked for an answer to a request that has none of its own */
bool vhu_msg_wants_ack(const VhuMsg *msg) NONNULL(1);

/*
 * vhu_msg_take_eventfd - the only descriptor that came with @msg, which has to be an eventfd; it is
 * the caller's from here on
 * Errors: -EINVAL it is something else
 */
int vhu_msg_take_eventfd(VhuMsg *msg, int *ret_fd, Error *err) NONNULL(1, 2) WARN_UNUSED;

/* vhu_request_name - for messages; "request" when it is unknown */
const char *vhu_request_name(uint32_t request);

#endif
