/*
 * export-control.c - see export-control.h
 */
#include "vmm/export-control.h"

int export_control_create(ExportControl *control, const char *path, IOThread *const *iothreads,
                          unsigned nb_iothreads, ExportQuitFn *quit, void *opaque, Error *err)
{
    qmp_target_init(&control->target);
    control->target.quit = quit;
    control->target.opaque = opaque;
    control->target.iothreads = iothreads;
    control->target.nb_iothreads = nb_iothreads;
    control->control = control_create(path, &control->target, err);
    return control->control ? 0 : -EIO;
}

static main_fn IOThread *thread_of(const ExportControl *control, const AioContext *ctx)
{
    unsigned i = 0;

    while (iothread_context(control->target.iothreads[i]) != ctx) {
        i++;
        assert(i < control->target.nb_iothreads);
    }
    return iothread_ref(control->target.iothreads[i]);
}

int export_control_add_disk(ExportControl *control, BlockBackend *blk, VirtioBlk *vblk, Error *err)
{
    QmpDisk *disk = qmp_target_add_disk(&control->target, blk);

    if (!vblk) {
        return 0;
    }
    VirtioDevice *vdev = virtio_blk_device(vblk);
    IOThread **iothreads = calloc(vdev->nb_queues, sizeof(*iothreads));

    if (!iothreads) {
        return error_set(err, -ENOMEM, "--control: out of memory");
    }
    for (unsigned q = 0; q < vdev->nb_queues; q++) {
        iothreads[q] = thread_of(control, vdev->queues[q].ctx);
    }
    disk->vblk = vblk;
    disk->iothreads = iothreads;
    return 0;
}

void export_control_start(ExportControl *control)
{
    if (control->control) {
        control_start(control->control);
    }
}

static main_fn void drop_threads(QmpDisk *disk)
{
    for (unsigned q = 0; disk->iothreads && q < virtio_blk_device(disk->vblk)->nb_queues; q++) {
        iothread_unref(disk->iothreads[q]);
    }
    free(take_ptr(&disk->iothreads));
}

void export_control_end(ExportControl *control)
{
    if (control->control) {
        control_event(control->control, "SHUTDOWN", NULL);
        control_stop(control->control);
        control_destroy(take_ptr(&control->control));
    }
    for (unsigned i = 0; i < control->target.nb_disks; i++) {
        drop_threads(&control->target.disks[i]);
    }
    qmp_target_finish(&control->target);
}
