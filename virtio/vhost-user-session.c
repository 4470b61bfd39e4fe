/*
 * vhost-user-session.c - one client: its requests, one after the other
 *
 * Each request takes effect before it is answered, and before the next one is read. One that
 * cannot be done, or must not be made, ends the session, after a negative answer where one was
 * asked for; but for reading and writing the configuration, which may fail.
 *
 * The device's own states, from a client that does not show them all: SET_FEATURES takes it from
 * reset to DRIVER_OK, with no queue started. The status that the client writes (if it does) is kept
 * and read back; writing 0 resets.
 */
#include "virtio/vhost-user-int.h"

#include <inttypes.h>
#include <linux/vhost_types.h>
#include <linux/virtio_config.h>
#include <string.h>
#include <sys/socket.h>

#define PROTOCOL_BITS (1ull << VHOST_USER_F_PROTOCOL_FEATURES | 1ull << VHOST_F_LOG_ALL)
/* Bits that we would have to be told of in a way that there is not. */
#define UNFIT_BITS (1ull << VIRTIO_F_RING_RESET)

typedef int RequestFn(VhuSession *session, VhuMsg *msg, Error *err);

static uint64_t features_offered(const VhuSession *session)
{
    return (vdev_features_offered(session->server->vdev) & ~UNFIT_BITS) | PROTOCOL_BITS;
}

static co_fn int reply_u64(VhuSession *session, const VhuMsg *msg, uint64_t value)
{
    return vhu_msg_co_reply(session->ch, msg->hdr.request, &value, sizeof(value), -1);
}

/* --- features --- */

static main_fn co_fn int get_features(VhuSession *session, VhuMsg *msg, Error *err)
{
    return reply_u64(session, msg, features_offered(session));
}

/* Rings are stopped. */
static co_fn void reset_device(VhuSession *session)
{
    vdev_co_reset(session->server->vdev);
    session->features_ok = false;
    session->status = 0;
}

/* From reset to DRIVER_OK, as far as the device is content with them. */
static co_fn void negotiate(VhuSession *session, uint64_t features)
{
    const uint8_t steps =
        VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
    VirtioDevice *vdev = session->server->vdev;
    uint8_t status = session->status;

    reset_device(session);
    session->status = status;
    vdev_co_driver_features_write(vdev, 0, (uint32_t)features);
    vdev_co_driver_features_write(vdev, 1, (uint32_t)(features >> 32));
    vdev_co_set_status(vdev, steps);
    if (vdev_status(vdev) & VIRTIO_CONFIG_S_FEATURES_OK) {
        vdev_co_set_status(vdev, steps | VIRTIO_CONFIG_S_DRIVER_OK);
        session->features_ok = true;
    }
}

/* The log begins or ends with them. */
static main_fn co_fn int take_features(VhuSession *session, uint64_t features, Error *err)
{
    int ret;

    vhu_vrings_co_park(session);
    session->features = features;
    ret = vhu_vrings_co_unpark(session, err);
    return ret < 0 ? ret : vhu_vrings_co_update(session, err);
}

static main_fn co_fn int set_features(VhuSession *session, VhuMsg *msg, Error *err)
{
    uint64_t features = msg->payload.u64, device_bits = features & ~PROTOCOL_BITS;

    if (features & ~features_offered(session)) {
        return error_set(err, -EINVAL, "SET_FEATURES 0x%" PRIx64 ", but 0x%" PRIx64 " are offered",
                         features, features_offered(session));
    }
    if (!session->features_ok || device_bits != (session->features & ~PROTOCOL_BITS)) {
        if (vhu_vrings_any_started(session)) {
            return error_set(err, -EBUSY, "SET_FEATURES 0x%" PRIx64 " while queues run", features);
        }
        negotiate(session, device_bits);
    }
    return take_features(session, features, err);
}

static main_fn co_fn int get_protocol_features(VhuSession *session, VhuMsg *msg, Error *err)
{
    return reply_u64(session, msg, VHU_PROTOCOL_FEATURES);
}

static main_fn co_fn int set_protocol_features(VhuSession *session, VhuMsg *msg, Error *err)
{
    if (msg->payload.u64 & ~VHU_PROTOCOL_FEATURES) {
        return error_set(err, -EINVAL,
                         "SET_PROTOCOL_FEATURES 0x%" PRIx64 ", of 0x%" PRIx64 " that are offered",
                         msg->payload.u64, (uint64_t)VHU_PROTOCOL_FEATURES);
    }
    session->protocol_features = msg->payload.u64;
    return 0;
}

static main_fn co_fn int get_queue_num(VhuSession *session, VhuMsg *msg, Error *err)
{
    return reply_u64(session, msg, session->server->vdev->nb_queues);
}

static main_fn co_fn int set_owner(VhuSession *session, VhuMsg *msg, Error *err)
{
    return 0; /* whoever is connected is it */
}

/* --- status and resets --- */

/* Deprecated. Some took it for the end of all that was said, which clients do not expect. */
static main_fn co_fn int reset_owner(VhuSession *session, VhuMsg *msg, Error *err)
{
    return vhu_vrings_co_disable(session, err);
}

/* What the client shares stays, and its eventfds that we write to. */
static main_fn co_fn int reset(VhuSession *session, VhuMsg *msg, Error *err)
{
    vhu_vrings_co_reset(session);
    reset_device(session);
    return 0;
}

static main_fn co_fn int set_status(VhuSession *session, VhuMsg *msg, Error *err)
{
    if (msg->payload.u64 > UINT8_MAX) {
        return error_set(err, -EINVAL, "SET_STATUS 0x%" PRIx64, msg->payload.u64);
    }
    if (msg->payload.u64 == 0) {
        return reset(session, msg, err);
    }
    session->status = (uint8_t)msg->payload.u64;
    return 0;
}

static main_fn co_fn int get_status(VhuSession *session, VhuMsg *msg, Error *err)
{
    uint8_t status = session->status;

    if (!session->features_ok) {
        status &= (uint8_t)~VIRTIO_CONFIG_S_FEATURES_OK;
    }
    status |= vdev_status(session->server->vdev) & VIRTIO_CONFIG_S_NEEDS_RESET;
    return reply_u64(session, msg, status);
}

/* --- configuration --- */

static main_fn co_fn int get_config(VhuSession *session, VhuMsg *msg, Error *err)
{
    VhostUserConfig *config = &msg->payload.config;
    uint64_t end = (uint64_t)config->offset + config->size;

    if (end > VHOST_USER_CONFIG_BYTES_MAX) {
        return vhu_msg_co_reply(session->ch, msg->hdr.request, NULL, 0, -1); /* an error, that is */
    }
    vdev_config_read(session->server->vdev, config->offset, config->data, config->size);
    return vhu_msg_co_reply(session->ch, msg->hdr.request, config, msg->hdr.size, -1);
}

/* 1: refused, and nothing worse. */
static main_fn co_fn int set_config(VhuSession *session, VhuMsg *msg, Error *err)
{
    const VhostUserConfig *config = &msg->payload.config;
    VirtioDevice *vdev = session->server->vdev;

    if (config->flags != VHOST_USER_CONFIG_WRITABLE &&
        config->flags != VHOST_USER_CONFIG_MIGRATION) {
        return 1;
    }
    if (config->flags == VHOST_USER_CONFIG_WRITABLE &&
        !vdev_config_writable(vdev, config->offset, config->size)) {
        return 1;
    }
    vdev_co_config_write(vdev, config->offset, config->data, config->size);
    return 0;
}

/* Connected, to a process of this machine; one of TCP might take its time to close. */
static bool is_unix_connection(int fd)
{
    int domain = AF_UNSPEC, listens = 1;
    socklen_t domain_len = sizeof(domain), listens_len = sizeof(listens);

    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &domain_len) == 0 &&
           getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &listens_len) == 0 &&
           domain == AF_UNIX && !listens;
}

static main_fn co_fn int set_backend_req_fd(VhuSession *session, VhuMsg *msg, Error *err)
{
    if (!is_unix_connection(msg->fds.fds[0])) {
        return error_set(err, -EINVAL, "SET_BACKEND_REQ_FD with what is no unix connection");
    }
    Channel *ch = channel_socket_adopt(take_fd(&msg->fds.fds[0]), err);

    if (!ch) {
        error_prefix(err, "SET_BACKEND_REQ_FD: ");
        return -EINVAL;
    }
    vhu_notice_co_set_channel(session, ch);
    return 0;
}

/* --- memory --- */

/* The queues are parked while it changes. Those that cannot go on afterwards end the session. */
static main_fn co_fn int set_mem_table(VhuSession *session, VhuMsg *msg, Error *err)
{
    const VhostUserMemory *wire = &msg->payload.memory;
    VhuServer *server = session->server;
    VhuMemory memory;
    int ret = vhu_memory_init(&memory, server->lost_bh, &server->memory_lost, err);

    for (unsigned i = 0; ret == 0 && i < wire->nb_regions; i++) {
        ret = vhu_memory_add(&memory, &wire->regions[i], msg->fds.fds[i], err);
    }
    if (ret == 0) {
        vhu_vrings_co_park(session);
        vhu_memory_swap(&server->memory, &memory);
        ret = vhu_vrings_co_unpark(session, err);
    }
    vhu_memory_finish(&memory);
    return ret;
}

static main_fn co_fn int get_max_mem_slots(VhuSession *session, VhuMsg *msg, Error *err)
{
    return reply_u64(session, msg, GUEST_MEMORY_REGIONS_MAX);
}

static main_fn co_fn int add_mem_reg(VhuSession *session, VhuMsg *msg, Error *err)
{
    Error later;

    vhu_vrings_co_park(session);
    int ret = vhu_memory_add(&session->server->memory, &msg->payload.mem_reg.region,
                             msg->fds.fds[0], err);
    int released = vhu_vrings_co_unpark(session, ret < 0 ? &later : err);

    return ret < 0 ? ret : released;
}

static main_fn co_fn int rem_mem_reg(VhuSession *session, VhuMsg *msg, Error *err)
{
    VhuMemory *memory = &session->server->memory;
    int index = vhu_memory_find(memory, &msg->payload.mem_reg.region, err);

    if (index < 0) {
        return index;
    }
    vhu_vrings_co_park(session);
    vhu_memory_remove(memory, (unsigned)index);
    return vhu_vrings_co_unpark(session, err);
}

/* --- all of them --- */

typedef struct Request {
    RequestFn *handle co_fn_ptr; /* NULL: not offered */
} Request;

static const Request requests[VHOST_USER_REQUEST_MAX] = {
    [VHOST_USER_GET_FEATURES] = { get_features },
    [VHOST_USER_SET_FEATURES] = { set_features },
    [VHOST_USER_SET_OWNER] = { set_owner },
    [VHOST_USER_RESET_OWNER] = { reset_owner },
    [VHOST_USER_SET_MEM_TABLE] = { set_mem_table },
    [VHOST_USER_SET_LOG_BASE] = { vhu_log_co_set_base },
    [VHOST_USER_SET_LOG_FD] = { vhu_log_co_set_fd },
    [VHOST_USER_SET_VRING_NUM] = { vhu_vring_co_set_num },
    [VHOST_USER_SET_VRING_ADDR] = { vhu_vring_co_set_addr },
    [VHOST_USER_SET_VRING_BASE] = { vhu_vring_co_set_base },
    [VHOST_USER_GET_VRING_BASE] = { vhu_vring_co_get_base },
    [VHOST_USER_SET_VRING_KICK] = { vhu_vring_co_set_kick },
    [VHOST_USER_SET_VRING_CALL] = { vhu_vring_co_set_call },
    [VHOST_USER_SET_VRING_ERR] = { vhu_vring_co_set_err },
    [VHOST_USER_GET_PROTOCOL_FEATURES] = { get_protocol_features },
    [VHOST_USER_SET_PROTOCOL_FEATURES] = { set_protocol_features },
    [VHOST_USER_GET_QUEUE_NUM] = { get_queue_num },
    [VHOST_USER_SET_VRING_ENABLE] = { vhu_vring_co_set_enable },
    [VHOST_USER_SET_BACKEND_REQ_FD] = { set_backend_req_fd },
    [VHOST_USER_GET_CONFIG] = { get_config },
    [VHOST_USER_SET_CONFIG] = { set_config },
    [VHOST_USER_GET_INFLIGHT_FD] = { vhu_inflight_co_get },
    [VHOST_USER_SET_INFLIGHT_FD] = { vhu_inflight_co_set },
    [VHOST_USER_RESET_DEVICE] = { reset },
    [VHOST_USER_GET_MAX_MEM_SLOTS] = { get_max_mem_slots },
    [VHOST_USER_ADD_MEM_REG] = { add_mem_reg },
    [VHOST_USER_REM_MEM_REG] = { rem_mem_reg },
    [VHOST_USER_SET_STATUS] = { set_status },
    [VHOST_USER_GET_STATUS] = { get_status },
};

/* 0 done, 1 refused, -errno: the client has to go. */
static main_fn co_fn int handle(VhuSession *session, VhuMsg *msg, Error *err)
{
    const Request *request = &requests[msg->hdr.request];

    if (!request->handle) {
        return error_set(err, -EPROTO, "%s, which is not offered",
                         vhu_request_name(msg->hdr.request));
    }
    int ret = request->handle(session, msg, err);

    if (vhu_msg_wants_ack(msg) && vhu_session_has(session, VHOST_USER_PROTOCOL_F_REPLY_ACK)) {
        int sent = reply_u64(session, msg, ret != 0);

        if (ret >= 0 && sent < 0) {
            return error_set(err, sent, "%s", error_strerror(sent));
        }
    }
    return ret;
}

co_fn int vhu_session_co_run(VhuSession *session, Error *err)
{
    VhuMsg msg;
    int ret;

    while ((ret = vhu_msg_co_receive(session->ch, &msg, err)) > 0) {
        log_debug("vhost-user", "%s: %s", session->server->name, vhu_request_name(msg.hdr.request));
        ret = handle(session, &msg, err);
        channel_fds_close(&msg.fds);
        if (ret < 0) {
            return ret;
        }
    }
    return ret;
}
