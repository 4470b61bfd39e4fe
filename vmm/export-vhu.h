/*
 * VhuExport - a disk as a vhost-user-blk device on a socket
 *
 * Layer:     vmm
 * Threading: main thread; queues run in the contexts that they are given.
 * Lifetime:  vhu_export_create() .. vhu_export_destroy(), when it was stopped or never started.
 */
#ifndef VMM_EXPORT_VHU_H
#define VMM_EXPORT_VHU_H

#include "virtio/vhost-user.h"
#include "virtio/virtio-blk.h"
#include "vmm/export-config.h"

typedef struct VhuExport {
    BlockBackend *blk;
    VirtioBlk *vblk;
    VhuServer *server;
} VhuExport;

/*
 * vhu_export_create - serve @node; the socket is open, nobody is accepted yet
 * @id        the disk's; copied
 * @contexts  one for each of @nb_queues queues
 * Takes over config->fd. vhu_export_destroy() accepts the half-built.
 * Errors: -EINVAL a value of @config; of the socket; -EBUSY another user of the node; -ENOMEM
 */
main_fn int vhu_export_create(VhuExport *export, VhuConfig *config, const char *id, BlockNode *node,
                              AioContext *const *contexts, unsigned nb_queues, Error *err)
    NONNULL(1, 2, 3, 4, 5) WARN_UNUSED;
/* vhu_export_destroy - Returns the result of the last flush. */
main_fn int vhu_export_destroy(VhuExport *export) NONNULL(1);

#endif
