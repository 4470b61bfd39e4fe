/*
 * ExportControl - the control socket of `penstock export`
 *
 * Layer:     vmm
 * Threading: main thread.
 * Lifetime:  export_control_create() .. export_control_end(), before the disks close; all zero is
 *            one that does not exist, which start and end accept.
 */
#ifndef VMM_EXPORT_CONTROL_H
#define VMM_EXPORT_CONTROL_H

#include "vmm/control.h"

typedef struct ExportControl {
    QmpTarget target;
    Control *control; /* NULL = none */
} ExportControl;

/* What `quit` calls; it must not wait. */
typedef void ExportQuitFn(void *opaque);

/* export_control_create - listen on @path; @iothreads are borrowed. Then disks are added. */
int export_control_create(ExportControl *control, const char *path, IOThread *const *iothreads,
                          unsigned nb_iothreads, ExportQuitFn *quit, void *opaque, Error *err)
    NONNULL(1, 2, 3, 5) WARN_UNUSED;
/* export_control_add_disk - @vblk: the device that has it, whose queues run on some of the
 * iothreads; NULL = none. -ENOMEM */
main_fn int export_control_add_disk(ExportControl *control, BlockBackend *blk, VirtioBlk *vblk,
                                    Error *err) NONNULL(1, 2) WARN_UNUSED;
void export_control_start(ExportControl *control) NONNULL(1);
main_fn void export_control_end(ExportControl *control) NONNULL(1);

#endif
