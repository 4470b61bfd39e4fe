/*
 * vhost-user-client.c - messages over a socket, memory as memfds, rings in it
 */
#include "virtio/tests/vhost-user-client.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#define FEATURES_KNOWN                                                                             \
    (FEATURE(VIRTIO_F_VERSION_1) | FEATURE(VIRTIO_RING_F_INDIRECT_DESC) |                          \
     FEATURE(VIRTIO_RING_F_EVENT_IDX) | FEATURE(VIRTIO_BLK_F_SEG_MAX) |                            \
     FEATURE(VIRTIO_BLK_F_SIZE_MAX) | FEATURE(VIRTIO_BLK_F_BLK_SIZE) |                             \
     FEATURE(VIRTIO_BLK_F_TOPOLOGY) | FEATURE(VIRTIO_BLK_F_FLUSH) |                                \
     FEATURE(VIRTIO_BLK_F_CONFIG_WCE) | FEATURE(VIRTIO_BLK_F_MQ) | FEATURE(VIRTIO_BLK_F_DISCARD) | \
     FEATURE(VIRTIO_BLK_F_WRITE_ZEROES) | FEATURE(VIRTIO_BLK_F_RO) |                               \
     FEATURE(VHOST_USER_F_PROTOCOL_FEATURES))

#define PROTOCOL_KNOWN                                                                             \
    (FEATURE(VHOST_USER_PROTOCOL_F_MQ) | FEATURE(VHOST_USER_PROTOCOL_F_LOG_SHMFD) |                \
     FEATURE(VHOST_USER_PROTOCOL_F_REPLY_ACK) | FEATURE(VHOST_USER_PROTOCOL_F_BACKEND_REQ) |       \
     FEATURE(VHOST_USER_PROTOCOL_F_CONFIG) | FEATURE(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD) |       \
     FEATURE(VHOST_USER_PROTOCOL_F_RESET_DEVICE) |                                                 \
     FEATURE(VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS) | FEATURE(VHOST_USER_PROTOCOL_F_STATUS))

/* --- messages --- */

int vfe_connect(const char *path)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    AUTO_FD int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert(strlen(path) < sizeof(addr.sun_path));
    strcpy(addr.sun_path, path);
    if (sock < 0 || connect(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        return -errno;
    }
    return take_fd(&sock);
}

int vfe_send_bytes(int sock, const void *bytes, size_t len_bytes, const int *fds, unsigned nb_fds)
{
    size_t done_bytes = 0;

    do {
        _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * 64)] = { 0 };
        struct iovec iov = { (char *)bytes + done_bytes, len_bytes - done_bytes };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

        if (nb_fds > 0) {
            msg.msg_control = control;
            msg.msg_controllen = CMSG_SPACE(sizeof(int) * nb_fds);
            assert(msg.msg_controllen <= sizeof(control));
            struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

            cmsg->cmsg_level = SOL_SOCKET;
            cmsg->cmsg_type = SCM_RIGHTS;
            cmsg->cmsg_len = CMSG_LEN(sizeof(int) * nb_fds);
            memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * nb_fds);
        }
        ssize_t n = sendmsg(sock, &msg, MSG_NOSIGNAL);

        if (n < 0) {
            return -errno;
        }
        done_bytes += (size_t)n;
        nb_fds = 0;
    } while (done_bytes < len_bytes);
    return 0;
}

int vfe_send(int sock, uint32_t request, uint32_t flags, const void *payload, uint32_t size,
             const int *fds, unsigned nb_fds)
{
    uint8_t bytes[sizeof(VhostUserMsg)];
    VhostUserHeader hdr = { request, flags | VHOST_USER_VERSION, size };

    assert(size <= sizeof(VhostUserPayload));
    memcpy(bytes, &hdr, sizeof(hdr));
    if (size > 0) {
        memcpy(bytes + sizeof(hdr), payload, size);
    }
    return vfe_send_bytes(sock, bytes, sizeof(hdr) + size, fds, nb_fds);
}

void vfe_reply_close_fds(VfeReply *reply)
{
    for (unsigned i = 0; i < reply->nb_fds; i++) {
        close(reply->fds[i]);
    }
    reply->nb_fds = 0;
}

static void keep_fds(VfeReply *reply, struct msghdr *msg)
{
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
        if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS) {
            size_t len_bytes = cmsg->cmsg_len - CMSG_LEN(0);

            assert(reply->nb_fds * sizeof(int) + len_bytes <= sizeof(reply->fds));
            memcpy(reply->fds + reply->nb_fds, CMSG_DATA(cmsg), len_bytes);
            reply->nb_fds += (unsigned)(len_bytes / sizeof(int));
        }
    }
}

/* At least one byte of @len_bytes. */
static ssize_t receive_some(int sock, void *buf, size_t len_bytes, VfeReply *reply)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * VFE_REPLY_FDS_MAX)];
    struct iovec iov = { buf, len_bytes };
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)
    };
    struct pollfd poller = { .fd = sock, .events = POLLIN };
    int ready = poll(&poller, 1, VFE_ANSWER_MS);

    if (ready <= 0) {
        return ready < 0 ? -errno : -ETIMEDOUT;
    }
    ssize_t n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);

    if (n <= 0) {
        return n < 0 ? -errno : -ECONNRESET;
    }
    keep_fds(reply, &msg);
    return n;
}

static int receive_all(int sock, void *buf, size_t len_bytes, VfeReply *reply)
{
    for (size_t done_bytes = 0; done_bytes < len_bytes;) {
        ssize_t n = receive_some(sock, (char *)buf + done_bytes, len_bytes - done_bytes, reply);

        if (n < 0) {
            return (int)n;
        }
        done_bytes += (size_t)n;
    }
    return 0;
}

int vfe_receive(int sock, VfeReply *ret_reply)
{
    memset(ret_reply, 0, sizeof(*ret_reply));
    int ret = receive_all(sock, &ret_reply->hdr, sizeof(ret_reply->hdr), ret_reply);

    if (ret == 0 && ret_reply->hdr.size > sizeof(ret_reply->payload)) {
        ret = -EPROTO;
    }
    if (ret == 0) {
        ret = receive_all(sock, &ret_reply->payload, ret_reply->hdr.size, ret_reply);
    }
    if (ret < 0) {
        vfe_reply_close_fds(ret_reply);
    }
    return ret;
}

int vfe_await_close(int sock)
{
    VfeReply reply = { 0 };
    char byte;
    ssize_t n = receive_some(sock, &byte, 1, &reply);

    vfe_reply_close_fds(&reply);
    return n > 0 ? -EPROTO : n == -ECONNRESET ? 0 : (int)n;
}

/* --- a client's messages --- */

bool vfe_has_protocol(const VfeClient *client, unsigned bit)
{
    return client->protocol & FEATURE(bit);
}

static int send_message(VfeClient *client, uint32_t request, uint32_t flags, const void *payload,
                        uint32_t size, const int *fds, unsigned nb_fds)
{
    if (client->on_message) {
        client->on_message(client->opaque, request, false);
    }
    if (client->sock < 0) {
        return -ENOTCONN;
    }
    int ret = vfe_send(client->sock, request, flags, payload, size, fds, nb_fds);

    if (client->on_message) {
        client->on_message(client->opaque, request, true);
    }
    return ret;
}

/* The answer to @request, of exactly @size bytes (any size: 0) and @nb_fds descriptors. */
static int receive_answer(VfeClient *client, uint32_t request, uint32_t size, unsigned nb_fds,
                          VfeReply *ret_reply)
{
    int ret = vfe_receive(client->sock, ret_reply);

    if (ret < 0) {
        return ret;
    }
    if (ret_reply->hdr.request != request ||
        ret_reply->hdr.flags != (VHOST_USER_VERSION | VHOST_USER_FLAG_REPLY) ||
        (size > 0 && ret_reply->hdr.size != size) || ret_reply->nb_fds != nb_fds) {
        vfe_reply_close_fds(ret_reply);
        return -EPROTO;
    }
    return 0;
}

/* A request without an answer of its own. */
static int send_and_confirm(VfeClient *client, uint32_t request, const void *payload, uint32_t size,
                            const int *fds, unsigned nb_fds)
{
    bool asks = vfe_has_protocol(client, VHOST_USER_PROTOCOL_F_REPLY_ACK);
    int ret = send_message(client, request, asks ? VHOST_USER_FLAG_NEED_REPLY : 0, payload, size,
                           fds, nb_fds);
    VfeReply reply;

    if (ret < 0 || !asks) {
        return ret;
    }
    ret = receive_answer(client, request, sizeof(uint64_t), 0, &reply);
    return ret < 0 ? ret : reply.payload.u64 == 0 ? 0 : -EREMOTEIO;
}

int vfe_request(VfeClient *client, uint32_t request)
{
    return send_and_confirm(client, request, NULL, 0, NULL, 0);
}

int vfe_get_u64(VfeClient *client, uint32_t request, uint64_t *ret_value)
{
    VfeReply reply;
    int ret = send_message(client, request, 0, NULL, 0, NULL, 0);

    if (ret < 0 || (ret = receive_answer(client, request, sizeof(uint64_t), 0, &reply)) < 0) {
        return ret;
    }
    *ret_value = reply.payload.u64;
    return 0;
}

int vfe_set_u64(VfeClient *client, uint32_t request, uint64_t value)
{
    return send_and_confirm(client, request, &value, sizeof(value), NULL, 0);
}

int vfe_set_vring_state(VfeClient *client, uint32_t request, unsigned index, uint32_t num)
{
    struct vhost_vring_state state = { .index = index, .num = num };

    return send_and_confirm(client, request, &state, sizeof(state), NULL, 0);
}

int vfe_set_vring_fd(VfeClient *client, uint32_t request, unsigned index, int fd)
{
    uint64_t value = index | (fd < 0 ? VHOST_USER_VRING_NOFD_MASK : 0);

    return send_and_confirm(client, request, &value, sizeof(value), &fd, fd < 0 ? 0 : 1);
}

int vfe_get_vring_base(VfeClient *client, unsigned index, uint32_t *ret_base)
{
    struct vhost_vring_state state = { .index = index };
    VfeReply reply;
    int ret = send_message(client, VHOST_USER_GET_VRING_BASE, 0, &state, sizeof(state), NULL, 0);

    if (ret < 0 ||
        (ret = receive_answer(client, VHOST_USER_GET_VRING_BASE, sizeof(state), 0, &reply)) < 0) {
        return ret;
    }
    *ret_base = reply.payload.state.num;
    return reply.payload.state.index == index ? 0 : -EPROTO;
}

/* Where the RAM at @gpa is in this process: what the protocol calls a user address. */
static uint64_t user_address(const VfeClient *client, uint64_t gpa)
{
    return (uint64_t)(uintptr_t)guest_ptr(&client->guest, gpa);
}

int vfe_set_vring_addr(VfeClient *client, unsigned index, uint32_t flags)
{
    const RingDriver *ring = &client->queues[index].ring;
    struct vhost_vring_addr addr = {
        .index = index,
        .flags = flags,
        .desc_user_addr = user_address(client, ring->desc_gpa),
        .avail_user_addr = user_address(client, ring->avail_gpa),
        .used_user_addr = user_address(client, ring->used_gpa),
        .log_guest_addr = ring->used_gpa,
    };

    return send_and_confirm(client, VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr), NULL, 0);
}

int vfe_set_mem_table(VfeClient *client)
{
    int fds[VHOST_USER_TABLE_REGIONS_MAX];
    uint32_t size = (uint32_t)(offsetof(VhostUserMemory, regions) +
                               client->memory.nb_regions * sizeof(VhostUserRegion));

    for (unsigned i = 0; i < client->memory.nb_regions; i++) {
        fds[i] = client->guest.fd;
    }
    return send_and_confirm(client, VHOST_USER_SET_MEM_TABLE, &client->memory, size, fds,
                            client->memory.nb_regions);
}

int vfe_add_region(VfeClient *client, const VhostUserRegion *region, int fd)
{
    VhostUserMemReg reg = { .region = *region };

    return send_and_confirm(client, VHOST_USER_ADD_MEM_REG, &reg, sizeof(reg), &fd, 1);
}

int vfe_remove_region(VfeClient *client, const VhostUserRegion *region)
{
    VhostUserMemReg reg = { .region = *region };

    return send_and_confirm(client, VHOST_USER_REM_MEM_REG, &reg, sizeof(reg), NULL, 0);
}

int vfe_get_config(VfeClient *client, uint32_t offset, void *ret_data, uint32_t len_bytes)
{
    VhostUserConfig config = { .offset = offset, .size = len_bytes };
    uint32_t size = (uint32_t)offsetof(VhostUserConfig, data) + len_bytes;
    VfeReply reply;
    int ret = send_message(client, VHOST_USER_GET_CONFIG, 0, &config, size, NULL, 0);

    if (ret < 0 || (ret = receive_answer(client, VHOST_USER_GET_CONFIG, 0, 0, &reply)) < 0) {
        return ret;
    }
    if (reply.hdr.size == 0) {
        return -EREMOTEIO;
    }
    if (reply.hdr.size != size || reply.payload.config.size != len_bytes) {
        return -EPROTO;
    }
    memcpy(ret_data, reply.payload.config.data, len_bytes);
    return 0;
}

int vfe_set_config(VfeClient *client, uint32_t offset, const void *data, uint32_t len_bytes,
                   uint32_t flags)
{
    VhostUserConfig config = { .offset = offset, .size = len_bytes, .flags = flags };

    memcpy(config.data, data, len_bytes);
    return send_and_confirm(client, VHOST_USER_SET_CONFIG, &config,
                            (uint32_t)offsetof(VhostUserConfig, data) + len_bytes, NULL, 0);
}

static void forget_inflight(VfeClient *client)
{
    if (client->inflight_map) {
        munmap(client->inflight_map, client->inflight.mmap_size);
        close(client->inflight_fd);
    }
    client->inflight_map = NULL;
    client->inflight_fd = -1;
}

int vfe_get_inflight(VfeClient *client)
{
    VhostUserInflight wish = { .nb_queues = (uint16_t)client->params.nb_queues,
                               .queue_size = client->params.queue_size };
    VfeReply reply;
    int ret = send_message(client, VHOST_USER_GET_INFLIGHT_FD, 0, &wish, sizeof(wish), NULL, 0);

    if (ret < 0 || (ret = receive_answer(client, VHOST_USER_GET_INFLIGHT_FD, 0, 1, &reply)) < 0) {
        return ret;
    }
    VhostUserInflight *got = &reply.payload.inflight;

    if (reply.hdr.size != sizeof(*got) || got->nb_queues != wish.nb_queues ||
        got->queue_size != wish.queue_size || got->mmap_size == 0) {
        vfe_reply_close_fds(&reply);
        return -EPROTO;
    }
    void *map = mmap(NULL, got->mmap_size, PROT_READ | PROT_WRITE, MAP_SHARED, reply.fds[0],
                     (off_t)got->mmap_offset);

    if (map == MAP_FAILED) {
        vfe_reply_close_fds(&reply);
        return -EPROTO;
    }
    forget_inflight(client);
    client->inflight = *got;
    client->inflight_fd = reply.fds[0];
    client->inflight_map = map;
    return 0;
}

int vfe_set_inflight(VfeClient *client)
{
    return send_and_confirm(client, VHOST_USER_SET_INFLIGHT_FD, &client->inflight,
                            sizeof(client->inflight), &client->inflight_fd, 1);
}

int vfe_set_backend_fd(VfeClient *client)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        return -errno;
    }
    AUTO_FD int theirs = pair[1];

    if (client->backend_sock >= 0) {
        close(client->backend_sock);
    }
    client->backend_sock = pair[0];
    return send_and_confirm(client, VHOST_USER_SET_BACKEND_REQ_FD, NULL, 0, &theirs, 1);
}

int vfe_set_log_base(VfeClient *client, int fd, uint64_t len_bytes, uint64_t offset)
{
    VhostUserLog log = { .mmap_size = len_bytes, .mmap_offset = offset };
    VfeReply reply;
    int ret = send_message(client, VHOST_USER_SET_LOG_BASE, 0, &log, sizeof(log), &fd, 1);

    return ret < 0 ? ret : receive_answer(client, VHOST_USER_SET_LOG_BASE, 0, 0, &reply);
}

/* --- a client --- */

static void describe_memory(VfeClient *client)
{
    unsigned nb = client->params.nb_regions ? client->params.nb_regions : 1;
    uint64_t piece_bytes = ALIGN_DOWN(client->params.ram_bytes / nb, 4096);

    assert(nb <= VHOST_USER_TABLE_REGIONS_MAX && piece_bytes > 0);
    client->memory.nb_regions = nb;
    for (unsigned i = 0; i < nb; i++) {
        uint64_t offset = i * piece_bytes;

        client->memory.regions[i] = (VhostUserRegion){
            .gpa = GUEST_BASE_GPA + offset,
            .len_bytes = i + 1 < nb ? piece_bytes : client->params.ram_bytes - offset,
            .user_addr = user_address(client, GUEST_BASE_GPA + offset),
            .mmap_offset = offset,
        };
    }
}

void vfe_client_init(VfeClient *client, const VfeClientParams *params)
{
    assert(params->nb_queues <= VFE_QUEUES_MAX);
    memset(client, 0, sizeof(*client));
    client->params = *params;
    client->sock = client->backend_sock = client->inflight_fd = -1;
    guest_init(&client->guest, params->ram_bytes);
    describe_memory(client);
    for (unsigned i = 0; i < params->nb_queues; i++) {
        VfeQueue *queue = &client->queues[i];

        ring_place(&queue->ring, &client->guest, params->queue_size);
        queue->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        queue->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        queue->err_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        assert(queue->kick_fd >= 0 && queue->call_fd >= 0 && queue->err_fd >= 0);
    }
}

void vfe_client_finish(VfeClient *client)
{
    vfe_client_disconnect(client);
    forget_inflight(client);
    for (unsigned i = 0; i < client->params.nb_queues; i++) {
        VfeQueue *queue = &client->queues[i];

        ring_finish(&queue->ring);
        close(queue->kick_fd);
        close(queue->call_fd);
        close(queue->err_fd);
    }
    guest_finish(&client->guest);
}

int vfe_client_connect(VfeClient *client, const char *path)
{
    int sock = vfe_connect(path);

    if (sock < 0) {
        return sock;
    }
    client->sock = sock;
    client->protocol = 0; /* nothing is agreed on yet */
    return 0;
}

void vfe_client_disconnect(VfeClient *client)
{
    if (client->sock >= 0) {
        close(client->sock);
    }
    if (client->backend_sock >= 0) {
        close(client->backend_sock);
    }
    client->sock = client->backend_sock = -1;
}

/* --- bringing it up --- */

static int negotiate_protocol(VfeClient *client)
{
    uint64_t wanted =
        client->params.protocol_features ? client->params.protocol_features : PROTOCOL_KNOWN;
    int ret = vfe_get_u64(client, VHOST_USER_GET_PROTOCOL_FEATURES, &client->protocol_offered);
    uint64_t agreed = client->protocol_offered & wanted;

    if (ret < 0 || (ret = vfe_set_u64(client, VHOST_USER_SET_PROTOCOL_FEATURES, agreed)) < 0) {
        return ret;
    }
    client->protocol = agreed;
    return 0;
}

static int negotiate(VfeClient *client)
{
    uint64_t wanted = client->params.features ? client->params.features : FEATURES_KNOWN;
    int ret = vfe_request(client, VHOST_USER_SET_OWNER);

    if (ret < 0 ||
        (ret = vfe_get_u64(client, VHOST_USER_GET_FEATURES, &client->features_offered)) < 0) {
        return ret;
    }
    wanted |= client->params.packed ? FEATURE(VIRTIO_F_RING_PACKED) : 0;
    client->features = client->features_offered & wanted;
    if ((client->features & FEATURE(VHOST_USER_F_PROTOCOL_FEATURES)) &&
        (ret = negotiate_protocol(client)) < 0) {
        return ret;
    }
    return vfe_set_u64(client, VHOST_USER_SET_FEATURES, client->features);
}

/* Ask whether there are as many queues, open the other channel, get or give back what was in
 * flight. */
static int use_protocol_features(VfeClient *client)
{
    uint64_t nb_queues;
    int ret = 0;

    if (vfe_has_protocol(client, VHOST_USER_PROTOCOL_F_MQ)) {
        ret = vfe_get_u64(client, VHOST_USER_GET_QUEUE_NUM, &nb_queues);
        if (ret == 0 && nb_queues < client->params.nb_queues) {
            return -ERANGE;
        }
    }
    if (ret == 0 && vfe_has_protocol(client, VHOST_USER_PROTOCOL_F_BACKEND_REQ)) {
        ret = vfe_set_backend_fd(client);
    }
    if (ret == 0 && vfe_has_protocol(client, VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)) {
        if (!client->inflight_map) {
            ret = vfe_get_inflight(client);
        }
        ret = ret < 0 ? ret : vfe_set_inflight(client);
    }
    return ret;
}

int vfe_start_queue(VfeClient *client, unsigned index, uint32_t base)
{
    VfeQueue *queue = &client->queues[index];
    int call_fd = client->params.polls ? -1 : queue->call_fd;
    int ret = client->params.without_size ? 0
                                          : vfe_set_vring_state(client, VHOST_USER_SET_VRING_NUM,
                                                                index, queue->ring.size);

    if (ret < 0 ||
        (!client->params.without_base &&
         (ret = vfe_set_vring_state(client, VHOST_USER_SET_VRING_BASE, index, base)) < 0) ||
        (ret = vfe_set_vring_addr(client, index, 0)) < 0 ||
        (ret = vfe_set_vring_fd(client, VHOST_USER_SET_VRING_ERR, index, queue->err_fd)) < 0 ||
        (ret = vfe_set_vring_fd(client, VHOST_USER_SET_VRING_CALL, index, call_fd)) < 0 ||
        (ret = vfe_set_vring_fd(client, VHOST_USER_SET_VRING_KICK, index, queue->kick_fd)) < 0) {
        return ret;
    }
    return client->features & FEATURE(VHOST_USER_F_PROTOCOL_FEATURES)
               ? vfe_set_vring_state(client, VHOST_USER_SET_VRING_ENABLE, index, 1)
               : 0;
}

/* Slot @pos of a packed ring, as the next one both for the device to take and to use. */
static uint32_t packed_base(const RingDriver *ring, uint64_t pos)
{
    uint32_t name = ring_packed_name(&ring->packed, pos);

    return name | name << 16;
}

/* Where a device goes on that finds no more than the ring. */
static uint32_t used_base(const RingDriver *ring)
{
    return ring->is_packed ? packed_base(ring, ring_packed_used_pos(&ring->packed))
                           : ring_used_index(ring);
}

/* What was offered to a server that has died may not have been noticed: kick once more. */
static int start_queues(VfeClient *client)
{
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < client->params.nb_queues; i++) {
        VfeQueue *queue = &client->queues[i];

        ring_set_features(&queue->ring, client->features);
        ret = vfe_start_queue(client, i, used_base(&queue->ring));
        eventfd_write(queue->kick_fd, 1);
    }
    return ret;
}

int vfe_client_start(VfeClient *client)
{
    uint64_t driver_ok = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
                         VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
    int ret = negotiate(client);

    if (ret < 0 || (ret = use_protocol_features(client)) < 0 ||
        (ret = vfe_set_mem_table(client)) < 0 || (ret = start_queues(client)) < 0) {
        return ret;
    }
    return vfe_has_protocol(client, VHOST_USER_PROTOCOL_F_STATUS)
               ? vfe_set_u64(client, VHOST_USER_SET_STATUS, driver_ok)
               : 0;
}

/* All that was offered has been used. */
static uint32_t final_base(const RingDriver *ring)
{
    return ring->is_packed ? packed_base(ring, ring->packed.next_avail) : ring->avail_idx;
}

int vfe_client_stop(VfeClient *client)
{
    uint32_t base;
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < client->params.nb_queues; i++) {
        ret = vfe_get_vring_base(client, i, &base);
        if (ret == 0 && base != final_base(&client->queues[i].ring)) {
            ret = -EPROTO;
        }
    }
    return ret;
}

/* --- queues --- */

VhostUserQueueSplit *vfe_inflight_split(VfeClient *client, unsigned index)
{
    if (!client->inflight_map) {
        return NULL;
    }
    size_t queue_bytes = ALIGN_UP(sizeof(VhostUserQueueSplit) +
                                      client->inflight.queue_size * sizeof(VhostUserDescSplit),
                                  VHOST_USER_INFLIGHT_ALIGN);

    assert((index + 1) * queue_bytes <= client->inflight.mmap_size);
    return (VhostUserQueueSplit *)((char *)client->inflight_map + index * queue_bytes);
}

void vfe_queue_submit(VfeQueue *queue)
{
    ring_publish(&queue->ring);
    if (ring_wants_kick(&queue->ring)) {
        eventfd_write(queue->kick_fd, 1);
    }
}

static bool has_used(const VfeQueue *queue)
{
    return ring_used_index(&queue->ring) != queue->ring.used_seen;
}

int vfe_queue_await(VfeQueue *queue, int timeout_ms)
{
    struct pollfd poller = { .fd = queue->call_fd, .events = POLLIN };
    eventfd_t count;

    /* pairs with the device's barrier between used index and used_event */
    ring_want_interrupt(&queue->ring, true);
    while (!has_used(queue)) {
        int ready = poll(&poller, 1, timeout_ms);

        if (ready <= 0) {
            return ready < 0 ? -errno : -ETIMEDOUT;
        }
        eventfd_read(queue->call_fd, &count);
    }
    return 0;
}

/* --- block requests --- */

void vfe_slot_init(VfeSlot *slot, Guest *guest, uint32_t data_bytes_max)
{
    slot->header_gpa = guest_alloc(guest, sizeof(struct virtio_blk_outhdr), 16);
    slot->status_gpa = guest_alloc(guest, 1, 1);
    slot->table_gpa = guest_alloc(guest, 3 * sizeof(struct vring_desc), 16);
    slot->data_gpa = guest_alloc(guest, data_bytes_max, 4096);
    slot->data_bytes_max = data_bytes_max;
}

void vfe_slot_add(VfeSlot *slot, RingDriver *ring, uint32_t type, uint64_t sector,
                  uint32_t data_bytes, bool indirect)
{
    struct virtio_blk_outhdr *header = guest_ptr(ring->guest, slot->header_gpa);
    bool to_guest = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;
    RingBuf bufs[3] = { { slot->header_gpa, sizeof(*header), false } };
    unsigned nb_bufs = 1;

    assert(data_bytes <= slot->data_bytes_max);
    header->type = htole32(type);
    header->ioprio = 0;
    header->sector = htole64(sector);
    *(uint8_t *)guest_ptr(ring->guest, slot->status_gpa) = 0xee;
    if (data_bytes > 0) {
        bufs[nb_bufs++] = (RingBuf){ slot->data_gpa, data_bytes, to_guest };
    }
    bufs[nb_bufs++] = (RingBuf){ slot->status_gpa, 1, true };
    slot->head = indirect ? ring_add_indirect(ring, slot->table_gpa, bufs, nb_bufs)
                          : ring_add(ring, bufs, nb_bufs);
}

uint8_t vfe_slot_status(const VfeSlot *slot, const Guest *guest)
{
    return __atomic_load_n((uint8_t *)guest_ptr(guest, slot->status_gpa), __ATOMIC_RELAXED);
}

void *vfe_slot_data(const VfeSlot *slot, const Guest *guest)
{
    return guest_ptr(guest, slot->data_gpa);
}

int vfe_do_block(VfeClient *client, unsigned queue, VfeSlot *slot, uint32_t type, uint64_t sector,
                 uint32_t data_bytes)
{
    VfeQueue *q = &client->queues[queue];
    uint32_t head, len;

    vfe_slot_add(slot, &q->ring, type, sector, data_bytes, false);
    vfe_queue_submit(q);
    int ret = vfe_queue_await(q, VFE_ANSWER_MS);

    if (ret < 0) {
        return ret;
    }
    if (!ring_next_used(&q->ring, &head, &len) || head != slot->head) {
        return -EPROTO;
    }
    ring_free(&q->ring, slot->head);
    return vfe_slot_status(slot, &client->guest);
}
