/*
 * vhost-user-inflight.c - the memory that keeps requests in flight for who comes after us
 *
 * We make it, the client keeps it and gives it to each session anew. One region a queue, in the
 * layout of the ring's format.
 *
 * Which to believe, the region or the client's SET_VRING_BASE? Where this very session has stopped
 * the queue (or reset the device), the base: the ring was drained then, and may be another one by
 * now. Else the region, if anybody has used it: a client cannot know what a process that was killed
 * had taken. Else the base.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <sys/mman.h>

#include "virtio/vhost-user-int.h"

static uint64_t region_bytes(bool packed, unsigned queue_size)
{
    uint64_t bytes =
        packed ? sizeof(VhostUserQueuePacked) + (uint64_t)queue_size * sizeof(VhostUserDescPacked)
               : sizeof(VhostUserQueueSplit) + (uint64_t)queue_size * sizeof(VhostUserDescSplit);

    return ALIGN_UP(bytes, VHOST_USER_INFLIGHT_ALIGN);
}

static bool is_packed(const VhuSession *session)
{
    return session->features >> VIRTIO_F_RING_PACKED & 1;
}

/* --- requests --- */

static int check_numbers(const VhuSession *session, const VhuMsg *msg, Error *err)
{
    const VhostUserInflight *wire = &msg->payload.inflight;
    unsigned nb_queues = session->server->vdev->nb_queues;

    if (wire->nb_queues == 0 || wire->nb_queues > nb_queues || wire->queue_size == 0 ||
        wire->queue_size > VQ_SIZE_MAX) {
        return error_set(err, -EINVAL, "%s for %u queues of %u", vhu_request_name(msg->hdr.request),
                         wire->nb_queues, wire->queue_size);
    }
    return 0;
}

/* Nobody can make it shorter, so it never hurts whoever maps it. */
static int create_memory(uint64_t len_bytes, int *ret_fd, Error *err)
{
    AUTO_FD int fd = memfd_create("vhost-user-inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || ftruncate(fd, (off_t)len_bytes) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0) {
        return error_set(err, -errno, "GET_INFLIGHT_FD: memfd: %s", error_strerror(errno));
    }
    *ret_fd = take_fd(&fd);
    return 0;
}

co_fn int vhu_inflight_co_get(VhuSession *session, VhuMsg *msg, Error *err)
{
    VhostUserInflight *wire = &msg->payload.inflight;
    AUTO_FD int fd = -1;
    int ret = check_numbers(session, msg, err);

    if (ret < 0) {
        return ret;
    }
    wire->mmap_offset = 0;
    wire->mmap_size = wire->nb_queues * region_bytes(is_packed(session), wire->queue_size);
    if ((ret = create_memory(wire->mmap_size, &fd, err)) < 0) {
        return ret;
    }
    return vhu_msg_co_reply(session->ch, msg->hdr.request, wire, msg->hdr.size, fd);
}

co_fn int vhu_inflight_co_set(VhuSession *session, VhuMsg *msg, Error *err)
{
    const VhostUserInflight *wire = &msg->payload.inflight;
    uint64_t len_bytes = wire->nb_queues * region_bytes(is_packed(session), wire->queue_size);
    SharedMap map;
    int ret = check_numbers(session, msg, err);

    if (ret < 0) {
        return ret;
    }
    if (vhu_vrings_any_started(session)) {
        return error_set(err, -EBUSY, "SET_INFLIGHT_FD while queues run");
    }
    if (wire->mmap_size < len_bytes) {
        return error_set(err, -EINVAL, "SET_INFLIGHT_FD of 0x%" PRIx64 " bytes for %u queues of %u",
                         wire->mmap_size, wire->nb_queues, wire->queue_size);
    }
    ret = shared_map_open(&map, msg->fds.fds[0], wire->mmap_offset, len_bytes,
                          session->server->lost_bh, err);
    if (ret < 0) {
        error_prefix(err, "SET_INFLIGHT_FD: ");
        return ret;
    }
    shared_map_close(&session->inflight.map);
    session->inflight =
        (VhuInflight){ .map = map, .nb_queues = wire->nb_queues, .queue_size = wire->queue_size };
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) {
        session->vrings[i].base_ours = false;
    }
    return 0;
}

void vhu_inflight_close(VhuSession *session)
{
    shared_map_close(&session->inflight.map);
    session->inflight = (VhuInflight){ .nb_queues = 0 };
}

/* --- a queue --- */

static void *region_of(const VhuSession *session, unsigned index, bool packed)
{
    const VhuInflight *inflight = &session->inflight;
    uint64_t bytes = region_bytes(packed, inflight->queue_size);

    return (index + 1) * bytes <= inflight->map.len_bytes
               ? (char *)inflight->map.addr + index * bytes
               : NULL;
}

static int keep_split(VhuVring *vring, VhostUserQueueSplit *region, unsigned nb_entries,
                      uint16_t used_idx, Error *err)
{
    if (vring->base_ours || __atomic_load_n(&region->version, __ATOMIC_RELAXED) == 0) {
        return vq_tracker_begin_split(&vring->tracker, region, nb_entries, used_idx, err);
    }
    return vq_tracker_resume_split(&vring->tracker, region, nb_entries, vring->size, used_idx,
                                   &vring->base, err);
}

static int keep_packed(const VhuSession *session, VhuVring *vring, const VirtQueue *vq,
                       VhostUserQueuePacked *region, unsigned nb_entries, Error *err)
{
    struct vring_packed_desc *desc;

    if (vring->base_ours || __atomic_load_n(&region->version, __ATOMIC_RELAXED) == 0) {
        return vq_tracker_begin_packed(&vring->tracker, region, nb_entries, vring->base, err);
    }
    desc = gm_translate(&session->server->memory.gm, GPA(vq->cfg_desc_gpa),
                        vring->size * sizeof(*desc));
    if (!desc || (uintptr_t)desc % sizeof(*desc) != 0) {
        return error_set(err, -EINVAL, "the descriptor ring is not in one piece of shared memory");
    }
    return vq_tracker_resume_packed(&vring->tracker, region, nb_entries, desc, vring->size,
                                    &vring->base, err);
}

/* What the driver has been given back is done, whatever the client believes. */
static int check_base(VhuVring *vring, uint16_t used_idx, Error *err)
{
    uint16_t ahead = (uint16_t)(vring->base.avail - used_idx);

    if ((int16_t)ahead < 0 && (uint16_t)-ahead <= vring->size) {
        vring->base.avail = used_idx;
    } else if (ahead > vring->size) {
        return error_set(err, -EINVAL, "the base %u is too far from the used index %u",
                         vring->base.avail, used_idx);
    }
    return 0;
}

static int read_used_idx(const VhuSession *session, const VirtQueue *vq, uint16_t *ret_idx,
                         Error *err)
{
    const le16 *idx =
        gm_translate(&session->server->memory.gm,
                     GPA(vq->cfg_used_gpa + offsetof(struct vring_used, idx)), sizeof(*idx));

    if (!idx || (uintptr_t)idx % sizeof(*idx) != 0) {
        return error_set(err, -EINVAL, "the used ring is not in shared memory");
    }
    *ret_idx = le16_load(idx);
    return 0;
}

static int begin(const VhuSession *session, unsigned index, const VirtQueue *vq, Error *err)
{
    VhuVring *vring = (VhuVring *)&session->vrings[index];
    const VhuInflight *inflight = &session->inflight;
    bool packed = is_packed(session), kept = index < inflight->nb_queues;
    void *region = kept ? region_of(session, index, packed) : NULL;
    uint16_t used_idx = 0;
    int ret = packed ? 0 : read_used_idx(session, vq, &used_idx, err);

    if (ret < 0) {
        return ret;
    }
    if (kept && (!region || vring->size > inflight->queue_size)) {
        return error_set(err, -EINVAL, "the region of requests in flight is too small");
    }
    if (kept && packed) {
        return keep_packed(session, vring, vq, region, inflight->queue_size, err);
    }
    if (kept) {
        ret = keep_split(vring, region, inflight->queue_size, used_idx, err);
    }
    return ret < 0 || packed ? ret : check_base(vring, used_idx, err);
}

int vhu_inflight_begin(VhuSession *session, unsigned index, VirtQueue *vq, Error *err)
{
    VhuVring *vring = &session->vrings[index];
    int ret = vq_tracker_init(&vring->tracker, vring->size, err);

    if (ret < 0 || (ret = begin(session, index, vq, err)) < 0) {
        error_prefix(err, "queue %u: ", index);
        vq_tracker_finish(&vring->tracker);
        return ret;
    }
    return 0;
}
