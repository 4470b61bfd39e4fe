/*
 * export-vhu.c - see export-vhu.h
 */
#include "vmm/export-vhu.h"

#include <string.h>

#include "block/block-driver.h"

static main_fn int create_device(VhuExport *export, const VhuConfig *config, const char *id,
                                 unsigned nb_queues, Error *err)
{
    VirtioBlkParams params = {
        .id = id,
        .serial = config->serial,
        .nb_queues = nb_queues,
        /* A client chooses; it has no way to ask what the most is. */
        .queue_size = config->queue_size ? config->queue_size : VQ_SIZE_MAX,
        .packed = config->packed,
        .seg_max = config->seg_max,
        .read_only = blk_read_only(export->blk),
    };

    export->vblk = virtio_blk_create(&params, export->blk, vhu_server_memory(export->server), err);
    if (!export->vblk) {
        return -EINVAL;
    }
    vhu_server_set_device(export->server, virtio_blk_device(export->vblk));
    return 0;
}

static main_fn int open_socket(VhuExport *export, VhuConfig *config, Error *err)
{
    SocketAddress addr;
    int ret;

    if (config->fd >= 0) {
        return vhu_server_adopt(export->server, take_fd(&config->fd), err);
    }
    ret = socket_address_set_unix(&addr, config->socket_path, err);
    return ret < 0 ? ret : vhu_server_listen(export->server, &addr, err);
}

int vhu_export_create(VhuExport *export, VhuConfig *config, const char *id, BlockNode *node,
                      AioContext *const *contexts, unsigned nb_queues, Error *err)
{
    int ret;

    export->blk = blk_create(id, node, blk_default_perm(node), BLK_PERM_ALL, err);
    if (!export->blk) {
        return -EBUSY;
    }
    export->server = vhu_server_create(id, err);
    if (!export->server) {
        return -ENOMEM;
    }
    if ((ret = create_device(export, config, id, nb_queues, err)) < 0) {
        return ret;
    }
    for (unsigned i = 0; i < nb_queues; i++) {
        vdev_set_queue_context(virtio_blk_device(export->vblk), i, contexts[i]);
    }
    return open_socket(export, config, err);
}

int vhu_export_destroy(VhuExport *export)
{
    vhu_server_destroy(export->server);
    virtio_blk_destroy(export->vblk);
    return blk_close(export->blk);
}
