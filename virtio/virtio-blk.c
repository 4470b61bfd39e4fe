/*
 * virtio-blk.c - the block device: features, configuration space, and the handler of its queues
 *
 * Write cache (5.2.5, 5.2.6.2). `writeback` in the configuration is the backend's own switch: while
 * it is off, blk_co_pwritev() makes every write stable. Who sets it:
 *
 *     created, reset                     as the backend was opened
 *     FEATURES_OK without FLUSH          off: a driver that cannot flush must not need to
 *     driver writes it (CONFIG_WCE)      as told; off also flushes what was written before
 */
#include "virtio/virtio-blk-int.h"

#include <inttypes.h>

#include "io/aio/aio-file.h"
#include "io/base/thread.h"

#define FEATURE(bit) ((uint64_t)1 << (bit))

#define QUEUE_SIZE_DEFAULT 256
#define CHAIN_OVERHEAD     2 /* header and status */
#define SETTLE_ROUNDS      16

static_assert(sizeof(struct virtio_blk_config) <= VIRTIO_CONFIG_BYTES_MAX, "limits.h");
static_assert(offsetof(struct virtio_blk_config, wce) == 32, "VIRTIO 1.2 section 5.2.4");
static_assert(offsetof(struct virtio_blk_config, num_queues) == 34, "VIRTIO 1.2 section 5.2.4");
static_assert(offsetof(struct virtio_blk_config, write_zeroes_may_unmap) == 56,
              "VIRTIO 1.2 section 5.2.4");

static VirtioBlk *to_blk(VirtioDevice *vdev)
{
    return container_of(vdev, VirtioBlk, vdev);
}

/* --- features --- */

static uint64_t blk_features(VirtioDevice *vdev)
{
    VirtioBlk *vblk = to_blk(vdev);
    uint64_t features = FEATURE(VIRTIO_BLK_F_SIZE_MAX) | FEATURE(VIRTIO_BLK_F_SEG_MAX) |
                        FEATURE(VIRTIO_BLK_F_BLK_SIZE) | FEATURE(VIRTIO_BLK_F_TOPOLOGY) |
                        FEATURE(VIRTIO_BLK_F_FLUSH);

    if (vdev->nb_queues > 1) {
        features |= FEATURE(VIRTIO_BLK_F_MQ);
    }
    if (vblk->read_only) {
        return features | FEATURE(VIRTIO_BLK_F_RO);
    }
    features |= FEATURE(VIRTIO_BLK_F_CONFIG_WCE) | FEATURE(VIRTIO_BLK_F_WRITE_ZEROES);
    if (vblk->may_unmap) {
        features |= FEATURE(VIRTIO_BLK_F_DISCARD);
    }
    return features;
}

static void blk_set_features(VirtioDevice *vdev, uint64_t features)
{
    VirtioBlk *vblk = to_blk(vdev);
    bool can_flush = features & FEATURE(VIRTIO_BLK_F_FLUSH);

    vblk->features = features;
    blk_set_write_cache(vblk->blk, vblk->host_write_cache && (can_flush || features == 0));
}

/* --- configuration space --- */

static uint8_t log2_u32(uint32_t pow2)
{
    return (uint8_t)__builtin_ctz(pow2);
}

static void blk_config_read(VirtioDevice *vdev, void *ret_config)
{
    VirtioBlk *vblk = to_blk(vdev);
    const BlockLimits *limits = blk_limits(vblk->blk);
    uint32_t physical = MAX(limits->physical_block_bytes, vblk->block_bytes);
    uint32_t discard_bytes = MAX(limits->discard_alignment, vblk->block_bytes);
    uint32_t size_max = MIN(limits->max_transfer_bytes, VIRTIO_BLK_SEG_BYTES_MAX);
    struct virtio_blk_config config = {
        .capacity = htole64(virtio_blk_capacity_sectors(vblk)),
        .size_max = htole32(MAX(ALIGN_DOWN(size_max, vblk->block_bytes), vblk->block_bytes)),
        .seg_max = htole32(vblk->seg_max),
        .blk_size = htole32(vblk->block_bytes),
        .physical_block_exp = log2_u32(physical / vblk->block_bytes),
        .min_io_size = htole16((uint16_t)MIN(physical / vblk->block_bytes, UINT16_MAX)),
        .opt_io_size = htole32(limits->optimal_io_bytes / vblk->block_bytes),
        .wce = blk_write_cache(vblk->blk),
        .num_queues = htole16((uint16_t)vdev->nb_queues),
    };

    if (!vblk->read_only) {
        config.max_discard_sectors = htole32(vblk->max_discard_sectors);
        config.max_discard_seg = htole32(VIRTIO_BLK_RANGES_MAX);
        config.discard_sector_alignment = htole32(discard_bytes / SECTOR_BYTES);
        config.max_write_zeroes_sectors = htole32(vblk->max_write_zeroes_sectors);
        config.max_write_zeroes_seg = htole32(VIRTIO_BLK_RANGES_MAX);
        config.write_zeroes_may_unmap = vblk->may_unmap;
    }
    memcpy(ret_config, &config, sizeof(config));
}

static bool blk_config_writable(VirtioDevice *vdev, size_t offset, size_t len_bytes)
{
    return virtio_blk_has_feature(to_blk(vdev), VIRTIO_BLK_F_CONFIG_WCE) &&
           offset == offsetof(struct virtio_blk_config, wce) && len_bytes == 1;
}

static co_fn void blk_co_config_write(VirtioDevice *vdev, size_t offset, const void *data,
                                      size_t len_bytes)
{
    VirtioBlk *vblk = to_blk(vdev);
    const size_t wce = offsetof(struct virtio_blk_config, wce);

    if (!virtio_blk_has_feature(vblk, VIRTIO_BLK_F_CONFIG_WCE) || offset > wce ||
        len_bytes <= wce - offset) {
        return; /* the rest is read-only */
    }
    bool on = ((const uint8_t *)data)[wce - offset] != 0;
    bool was_on = blk_write_cache(vblk->blk);

    blk_set_write_cache(vblk->blk, on);
    if (was_on && !on) {
        int ret = blk_co_flush(vblk->blk);

        if (ret < 0) {
            log_limited(&vdev->log_limit, LOG_LEVEL_WARN, "virtio-blk",
                        "%s: flush after the write cache was switched off: %s", vdev->name,
                        error_strerror(ret));
        }
    }
}

/* --- queues --- */

/* A chain is popped when there is a coroutine for its request, so that none has to be refused. */
static void blk_handle_queue(VirtioDevice *vdev, VirtQueue *vq)
{
    BlkAcct *acct = &to_blk(vdev)->acct[vq->index];
    VqElem *elem;

    for (unsigned i = 0; i < VQ_BATCH_MAX; i++) {
        Coroutine *co = co_create_request(virtio_blk_req_entry, &elem, vq_nb_others(vq));

        if (unlikely(!co)) {
            if (vq_has_work(vq)) {
                vq_starve(vq);
            }
            break;
        }
        elem = vq_pop(vq);
        if (!elem) {
            co_discard(co);
            break;
        }
        if (i == 0) {
            blk_acct_begin_batch(acct);
        }
        co_enter(co);
        if (i == 0 && !vq_has_work(vq)) {
            break; /* as it is most often: no coroutine is made to find that out */
        }
        /* Disks that have nothing to do get one request, then one, two, four ... */
        if (IS_POWER_OF_2(i + 1) && aio_should_submit(vq->ctx)) {
            break;
        }
    }
}

/* What the queue was at when it was paused, or when a section ended, has been done; while it is
 * suspended, what that made fail of the other queues is held. */
static co_fn void pass_through_homes(VirtioDevice *vdev, VirtQueue *vq)
{
    for (unsigned i = 0; i < vdev->nb_queues; i++) {
        if (i == vq->index || vq_suspends(vq)) {
            aio_co_reschedule_self(vdev->queues[i].ctx);
        }
    }
    aio_co_reschedule_self(aio_main());
}

/* What is below ends its requests in a drained section, be it that a server does not answer them or
 * that a limit holds them back for long. A request that was popped and had not arrived there is
 * queued until the section's end, so there may have to be another. */
static co_fn void blk_co_settle(VirtioDevice *vdev, VirtQueue *vq)
{
    VirtioBlk *vblk = to_blk(vdev);

    assert_main();
    for (unsigned i = 0; vq->started && i < SETTLE_ROUNDS; i++) {
        pass_through_homes(vdev, vq);
        if (atomic_load(&vq->in_flight) == 0) {
            break;
        }
        blk_drained_begin(vblk->blk);
        blk_drained_end(vblk->blk);
    }
}

static const VirtioDeviceOps blk_ops = {
    .device_id = 2,
    .elem_bytes = sizeof(VqElem),
    .config_bytes = sizeof(struct virtio_blk_config),
    .features = blk_features,
    .set_features = blk_set_features,
    .config_read = blk_config_read,
    .config_writable = blk_config_writable,
    .co_config_write = blk_co_config_write,
    .handle_queue = blk_handle_queue,
    .halting = virtio_blk_halting,
    .co_settle = blk_co_settle,
    .holds = virtio_blk_holds,
};

/* --- what the backend tells --- */

static void blk_drained_begin_cb(void *opaque)
{
    VirtioBlk *vblk = opaque;

    vdev_pause(&vblk->vdev);
}

static void blk_drained_end_cb(void *opaque)
{
    VirtioBlk *vblk = opaque;

    vdev_resume(&vblk->vdev);
}

static void blk_resized_cb(void *opaque)
{
    VirtioBlk *vblk = opaque;

    vdev_config_changed(&vblk->vdev);
}

static const BlkUserOps user_ops = {
    .drained_begin = blk_drained_begin_cb,
    .drained_end = blk_drained_end_cb,
    .resized = blk_resized_cb,
};

/* --- creation --- */

static int choose_block_bytes(VirtioBlk *vblk, const VirtioBlkParams *params, Error *err)
{
    uint32_t bytes = params->block_bytes;

    if (bytes == 0) {
        bytes = MAX(blk_limits(vblk->blk)->logical_block_bytes, SECTOR_BYTES);
    }
    if (!IS_POWER_OF_2(bytes) || bytes < SECTOR_BYTES || bytes > 32768) {
        return error_set(err, -EINVAL,
                         "%s: block size: %u is not a power of 2 between 512 and 32768", params->id,
                         bytes);
    }
    vblk->block_bytes = bytes;
    return 0;
}

static int choose_seg_max(VirtioBlk *vblk, const VirtioBlkParams *params, unsigned queue_size,
                          Error *err)
{
    uint32_t most = MIN(queue_size, (uint32_t)VQ_ELEM_IOV_MAX) - CHAIN_OVERHEAD;

    if (params->seg_max > most) {
        return error_set(err, -EINVAL, "%s: seg-max: %u is more than %u, what a queue of %u holds",
                         params->id, params->seg_max, most, queue_size);
    }
    vblk->seg_max =
        params->seg_max ? params->seg_max : MIN(most, (uint32_t)VIRTIO_BLK_SEG_MAX_DEFAULT);
    return 0;
}

/* Sectors of one range; whole blocks, so that a driver that splits stays aligned. */
static uint32_t range_sectors(const VirtioBlk *vblk, uint64_t max_bytes)
{
    uint64_t sectors = max_bytes / SECTOR_BYTES;
    uint32_t block_sectors = vblk->block_bytes / SECTOR_BYTES;

    sectors = MIN(sectors, (uint64_t)VIRTIO_BLK_RANGE_SECTORS_MAX);
    return MAX(ALIGN_DOWN((uint32_t)sectors, block_sectors), block_sectors);
}

static int blk_configure(VirtioBlk *vblk, const VirtioBlkParams *params, const GuestMemory *gm,
                         Error *err)
{
    unsigned queue_size = params->queue_size ? params->queue_size : QUEUE_SIZE_DEFAULT;
    const char *serial = params->serial ? params->serial : params->id;
    const BlockLimits *limits = blk_limits(vblk->blk);
    int ret = vdev_init(&vblk->vdev, &blk_ops, params->id, gm, params->nb_queues, queue_size, err);

    if (ret < 0) {
        return ret;
    }
    if (queue_size <= CHAIN_OVERHEAD) {
        return error_set(err, -EINVAL, "%s: queue-size: %u has no room for header, data and status",
                         params->id, queue_size);
    }
    if (params->packed) {
        vdev_offer_packed(&vblk->vdev);
    }
    if ((ret = choose_block_bytes(vblk, params, err)) < 0 ||
        (ret = choose_seg_max(vblk, params, queue_size, err)) < 0) {
        return ret;
    }
    if (params->serial && strlen(serial) > VIRTIO_BLK_ID_BYTES) {
        return error_set(err, -EINVAL, "%s: serial: '%s' has more than %d bytes", params->id,
                         serial, VIRTIO_BLK_ID_BYTES);
    }
    memcpy(vblk->serial, serial, strnlen(serial, VIRTIO_BLK_ID_BYTES));
    vblk->read_only = params->read_only || blk_read_only(vblk->blk);
    vblk->may_unmap = !vblk->read_only && blk_node(vblk->blk)->discard_unmaps;
    vblk->host_write_cache = blk_write_cache(vblk->blk);
    vblk->max_discard_sectors = range_sectors(vblk, limits->max_discard_bytes);
    vblk->max_write_zeroes_sectors = range_sectors(vblk, limits->max_write_zeroes_bytes);
    return 0;
}

static int create_acct(VirtioBlk *vblk, unsigned nb_queues)
{
    vblk->acct = aligned_alloc(CACHE_LINE_BYTES, nb_queues * sizeof(*vblk->acct));
    if (!vblk->acct) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < nb_queues; i++) {
        blk_acct_init(&vblk->acct[i]);
    }
    return 0;
}

VirtioBlk *virtio_blk_create(const VirtioBlkParams *params, BlockBackend *blk,
                             const GuestMemory *gm, Error *err)
{
    VirtioBlk *vblk = calloc(1, sizeof(*vblk));

    if (!vblk) {
        error_set(err, -ENOMEM, "%s: out of memory", params->id);
        return NULL;
    }
    vblk->blk = blk;
    vblk->on_read_error = params->on_read_error;
    vblk->on_write_error = params->on_write_error;
    vblk->stop_ops = params->stop_ops;
    vblk->stop_opaque = params->stop_opaque;
    if (virtio_blk_errors_init(vblk, params->nb_queues) < 0 ||
        create_acct(vblk, params->nb_queues) < 0) {
        error_set(err, -ENOMEM, "%s: out of memory", params->id);
        virtio_blk_destroy(vblk);
        return NULL;
    }
    if (blk_configure(vblk, params, gm, err) < 0) {
        virtio_blk_destroy(vblk);
        return NULL;
    }
    blk_set_user(blk, &user_ops, vblk);
    return vblk;
}

void virtio_blk_destroy(VirtioBlk *vblk)
{
    if (vblk) {
        blk_set_user(vblk->blk, NULL, NULL);
        for (unsigned i = 0; i < vblk->vdev.nb_queues; i++) {
            blk_acct_finish(&vblk->acct[i]);
        }
        vdev_finish(&vblk->vdev);
        virtio_blk_errors_finish(vblk);
        free(vblk->acct);
        free(vblk);
    }
}

const BlkAcct *virtio_blk_acct(const VirtioBlk *vblk, unsigned queue)
{
    return &vblk->acct[queue];
}

VirtioDevice *virtio_blk_device(VirtioBlk *vblk)
{
    return &vblk->vdev;
}
