/*
 * vhost-user-msg.c - see vhost-user-msg.h
 */
#include "virtio/vhost-user-msg.h"

#include <stdio.h>
#include <string.h>

typedef struct RequestForm {
    const char *name; /* NULL: unknown */
    uint16_t size_min, size_max; /* of the payload */
    uint8_t fds_min, fds_max;
    bool has_reply; /* one of its own */
} RequestForm;

#define STATE_BYTES  sizeof(struct vhost_vring_state)
#define CONFIG_BYTES offsetof(VhostUserConfig, data)

#define FORM(request, min, max, fds_least, fds_most, reply)                                        \
    [VHOST_USER_##request] = { .name = #request, .size_min = (min), .size_max = (max),             \
                               .fds_min = (fds_least), .fds_max = (fds_most),                      \
                               .has_reply = (reply) }

/* Payloads of a size that depends on what is in them, and descriptors that depend on it, are looked
 * at once more in vhu_msg_check(). */
static const RequestForm forms[VHOST_USER_REQUEST_MAX] = {
    FORM(GET_FEATURES, 0, 0, 0, 0, true),
    FORM(SET_FEATURES, 8, 8, 0, 0, false),
    FORM(SET_OWNER, 0, 0, 0, 0, false),
    FORM(RESET_OWNER, 0, 0, 0, 0, false),
    FORM(SET_MEM_TABLE, offsetof(VhostUserMemory, regions), sizeof(VhostUserMemory), 0,
         VHOST_USER_TABLE_REGIONS_MAX, false),
    FORM(SET_LOG_BASE, sizeof(VhostUserLog), sizeof(VhostUserLog), 1, 1, true),
    FORM(SET_LOG_FD, 0, 8, 1, 1, false),
    FORM(SET_VRING_NUM, STATE_BYTES, STATE_BYTES, 0, 0, false),
    FORM(SET_VRING_ADDR, sizeof(struct vhost_vring_addr), sizeof(struct vhost_vring_addr), 0, 0,
         false),
    FORM(SET_VRING_BASE, STATE_BYTES, STATE_BYTES, 0, 0, false),
    FORM(GET_VRING_BASE, STATE_BYTES, STATE_BYTES, 0, 0, true),
    FORM(SET_VRING_KICK, 8, 8, 0, 1, false),
    FORM(SET_VRING_CALL, 8, 8, 0, 1, false),
    FORM(SET_VRING_ERR, 8, 8, 0, 1, false),
    FORM(GET_PROTOCOL_FEATURES, 0, 0, 0, 0, true),
    FORM(SET_PROTOCOL_FEATURES, 8, 8, 0, 0, false),
    FORM(GET_QUEUE_NUM, 0, 0, 0, 0, true),
    FORM(SET_VRING_ENABLE, STATE_BYTES, STATE_BYTES, 0, 0, false),
    FORM(SET_BACKEND_REQ_FD, 0, 8, 1, 1, false),
    FORM(GET_CONFIG, CONFIG_BYTES, sizeof(VhostUserConfig), 0, 0, true),
    FORM(SET_CONFIG, CONFIG_BYTES, sizeof(VhostUserConfig), 0, 0, false),
    FORM(GET_INFLIGHT_FD, VHOST_USER_INFLIGHT_BYTES_MIN, sizeof(VhostUserInflight), 0, 0, true),
    FORM(SET_INFLIGHT_FD, VHOST_USER_INFLIGHT_BYTES_MIN, sizeof(VhostUserInflight), 1, 1, false),
    FORM(RESET_DEVICE, 0, 0, 0, 0, false),
    FORM(GET_MAX_MEM_SLOTS, 0, 0, 0, 0, true),
    FORM(ADD_MEM_REG, sizeof(VhostUserMemReg), sizeof(VhostUserMemReg), 1, 1, false),
    /* Some front ends send the descriptor once more. */
    FORM(REM_MEM_REG, sizeof(VhostUserMemReg), sizeof(VhostUserMemReg), 0, 1, false),
    FORM(SET_STATUS, 8, 8, 0, 0, false),
    FORM(GET_STATUS, 0, 0, 0, 0, true),
};

static const RequestForm *form_of(uint32_t request)
{
    return request < VHOST_USER_REQUEST_MAX && forms[request].name ? &forms[request] : NULL;
}

const char *vhu_request_name(uint32_t request)
{
    const RequestForm *form = form_of(request);

    return form ? form->name : "request";
}

bool vhu_msg_wants_ack(const VhuMsg *msg)
{
    const RequestForm *form = form_of(msg->hdr.request);

    return (msg->hdr.flags & VHOST_USER_FLAG_NEED_REPLY) && !(form && form->has_reply);
}

/* --- checks --- */

int vhu_msg_check_header(const VhostUserHeader *hdr, Error *err)
{
    const RequestForm *form = form_of(hdr->request);

    if ((hdr->flags & VHOST_USER_VERSION_MASK) != VHOST_USER_VERSION ||
        (hdr->flags & VHOST_USER_FLAG_REPLY)) {
        return error_set(err, -EPROTO, "a message with the flags 0x%x, which is no request",
                         hdr->flags);
    }
    if (!form) {
        return error_set(err, -EPROTO, "request %u, which is unknown here", hdr->request);
    }
    if (hdr->size < form->size_min || hdr->size > form->size_max) {
        return error_set(err, -EPROTO, "%s with a payload of %u bytes", form->name, hdr->size);
    }
    return 0;
}

/* What the payload says of its own length. */
static uint64_t size_said(const VhuMsg *msg)
{
    switch (msg->hdr.request) {
    case VHOST_USER_SET_MEM_TABLE:
        return offsetof(VhostUserMemory, regions) +
               (uint64_t)msg->payload.memory.nb_regions * sizeof(VhostUserRegion);
    case VHOST_USER_GET_CONFIG:
    case VHOST_USER_SET_CONFIG:
        return CONFIG_BYTES + (uint64_t)msg->payload.config.size;
    default:
        return msg->hdr.size;
    }
}

static unsigned fds_said(const VhuMsg *msg)
{
    switch (msg->hdr.request) {
    case VHOST_USER_SET_MEM_TABLE:
        return msg->payload.memory.nb_regions;
    case VHOST_USER_SET_VRING_KICK:
    case VHOST_USER_SET_VRING_CALL:
    case VHOST_USER_SET_VRING_ERR:
        return msg->payload.u64 & VHOST_USER_VRING_NOFD_MASK ? 0 : 1;
    default:
        return msg->fds.nb;
    }
}

int vhu_msg_check(const VhuMsg *msg, Error *err)
{
    const char *name = vhu_request_name(msg->hdr.request);
    int ret = vhu_msg_check_header(&msg->hdr, err);

    if (ret < 0) {
        return ret;
    }
    if (size_said(msg) != msg->hdr.size) {
        return error_set(err, -EPROTO, "%s with a payload of %u bytes that says it has %llu", name,
                         msg->hdr.size, (unsigned long long)size_said(msg));
    }
    const RequestForm *form = form_of(msg->hdr.request);

    if (msg->fds.nb < form->fds_min || msg->fds.nb > form->fds_max ||
        msg->fds.nb != fds_said(msg)) {
        return error_set(err, -EPROTO, "%s with %u descriptors", name, msg->fds.nb);
    }
    return 0;
}

/* --- descriptors --- */

static bool is_eventfd(int fd)
{
    char path[40], target[32];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    ssize_t len = readlink(path, target, sizeof(target));

    return len == (ssize_t)strlen("anon_inode:[eventfd]") &&
           memcmp(target, "anon_inode:[eventfd]", (size_t)len) == 0;
}

int vhu_msg_take_eventfd(VhuMsg *msg, int *ret_fd, Error *err)
{
    if (!is_eventfd(msg->fds.fds[0])) {
        return error_set(err, -EINVAL, "%s with what is no eventfd",
                         vhu_request_name(msg->hdr.request));
    }
    *ret_fd = take_fd(&msg->fds.fds[0]);
    return 0;
}

/* --- on the socket --- */

static co_fn int receive(Channel *ch, VhuMsg *msg, Error *err)
{
    struct iovec header = { &msg->hdr, sizeof(msg->hdr) };
    int ret = channel_co_readv_full(ch, &header, 1, &msg->fds);

    if (ret <= 0) {
        return ret < 0 ? error_set(err, ret, "%s", error_strerror(ret)) : 0;
    }
    if ((ret = vhu_msg_check_header(&msg->hdr, err)) < 0) {
        return ret;
    }
    if (msg->hdr.size > 0) {
        struct iovec payload = { &msg->payload, msg->hdr.size };

        ret = channel_co_readv_full(ch, &payload, 1, &msg->fds);
        if (ret <= 0) {
            return error_set(err, ret < 0 ? ret : -EPROTO, "%s: %s",
                             vhu_request_name(msg->hdr.request),
                             ret < 0 ? error_strerror(ret) : "the connection ended in the middle");
        }
    }
    ret = vhu_msg_check(msg, err);
    return ret < 0 ? ret : 1;
}

int vhu_msg_co_receive(Channel *ch, VhuMsg *msg, Error *err)
{
    memset(msg, 0, sizeof(*msg));
    int ret = receive(ch, msg, err);

    if (ret <= 0) {
        channel_fds_close(&msg->fds);
    }
    return ret;
}

int vhu_msg_co_reply(Channel *ch, uint32_t request, const void *payload, size_t size_bytes, int fd)
{
    VhostUserHeader hdr = { .request = request,
                            .flags = VHOST_USER_VERSION | VHOST_USER_FLAG_REPLY,
                            .size = (uint32_t)size_bytes };
    ChannelFds fds = { .nb = 1, .fds = { fd } };
    struct iovec iov[2] = { { &hdr, sizeof(hdr) }, { (void *)payload, size_bytes } };

    return channel_co_writev_full(ch, iov, size_bytes > 0 ? 2 : 1, fd >= 0 ? &fds : NULL);
}
