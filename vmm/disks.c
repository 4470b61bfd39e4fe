/*
 * disks.c - from --disk and --iothread to devices on IOThreads
 *
 * Disk i is PCI slot i + 1, or the next virtio-mmio window. Queue q of a disk runs on the
 * thread that its iothreads= names at q modulo their number, or on a thread of its own.
 */
#include <stdio.h>
#include <string.h>

#include "vmm/layout.h"
#include "vmm/machine-int.h"

#define NS_PER_S 1000000000

static main_fn int create_iothreads(Machine *machine, Error *err)
{
    const MachineConfig *config = machine->config;

    for (unsigned i = 0; i < config->nb_iothreads; i++) {
        const IOThreadConfig *wanted = &config->iothreads[i];
        IOThread *iothread =
            wanted->pinned ? iothread_create_on(wanted->id, &wanted->params, &wanted->cpus, err)
                           : iothread_create(wanted->id, &wanted->params, err);

        if (!iothread) {
            return -EIO;
        }
        machine->iothreads[machine->nb_iothreads++] = iothread;
    }
    return 0;
}

static IOThread *find_iothread(Machine *machine, const char *id)
{
    for (unsigned i = 0; i < machine->nb_iothreads; i++) {
        if (strcmp(iothread_id(machine->iothreads[i]), id) == 0) {
            return machine->iothreads[i];
        }
    }
    return NULL;
}

/* The thread of one queue, with a reference for the disk. */
static main_fn IOThread *thread_for_queue(Machine *machine, const DiskConfig *config,
                                          unsigned queue, Error *err)
{
    char id[64];

    if (config->nb_iothreads > 0) {
        IOThread *named =
            find_iothread(machine, config->iothreads[queue % config->nb_iothreads]);

        assert(named); /* config.c has checked the names */
        return iothread_ref(named);
    }
    AioParams params = AIO_PARAMS_POLLING;

    snprintf(id, sizeof(id), "%s.q%u", config->id, queue);
    if (machine->nb_iothreads == AIO_CONTEXTS_MAX - 1) { /* main has one */
        error_set(err, -EINVAL,
                  "it would be IOThread %u, there are %d at most; queues may share some: "
                  "--iothread id=ID, and iothreads=ID:... of the disk",
                  machine->nb_iothreads + 1, AIO_CONTEXTS_MAX - 1);
        return NULL;
    }
    IOThread *own = iothread_create(id, &params, err);

    if (own) {
        machine->iothreads[machine->nb_iothreads++] = iothread_ref(own);
    }
    return own;
}

static int open_backend(Disk *disk, DiskConfig *config, bool *ret_usage, Error *err)
{
    Error reason;
    int ret;

    disk->blk = blk_open(config->id, &config->opts, &reason);
    if (!disk->blk) {
        *ret_usage = reason.code == -EINVAL; /* a bad value; files fail with other codes */
        return error_set(err, reason.code, "%s", reason.msg);
    }
    if ((ret = opts_check_all_used(&config->opts, &reason)) < 0) {
        *ret_usage = true;
        return error_set(err, ret, "%s", reason.msg);
    }
    return 0;
}

static main_fn int map_queues(Machine *machine, Disk *disk, const DiskConfig *config,
                              unsigned nb_queues, Error *err)
{
    for (unsigned q = 0; q < nb_queues; q++) {
        IOThread *iothread = thread_for_queue(machine, config, q, err);

        if (!iothread) {
            error_prefix(err, "--disk %s: queue %u: ", config->id, q);
            return -EIO;
        }
        disk->iothreads[disk->nb_iothreads++] = iothread;
        vdev_set_queue_context(virtio_blk_device(disk->vblk), q, iothread_context(iothread));
    }
    return 0;
}

static int attach_transport(Machine *machine, Disk *disk, const DiskConfig *config, unsigned slot,
                            Error *err)
{
    Platform *platform = &machine->platform.platform;
    VirtioDevice *vdev = virtio_blk_device(disk->vblk);

    if (!config->mmio) {
        disk->pci = virtio_pci_create(platform, machine->pci, slot, vdev, err);
        return disk->pci ? 0 : -EIO;
    }
    if (machine->nb_mmio_disks == LAYOUT_VIRTIO_MMIO_MAX) {
        return error_set(err, -EINVAL, "--disk %s: more than %d disks with transport=mmio",
                         config->id, LAYOUT_VIRTIO_MMIO_MAX);
    }
    disk->mmio_index = machine->nb_mmio_disks++;
    disk->mmio = virtio_mmio_create(platform, layout_virtio_mmio_gpa(disk->mmio_index),
                                    layout_virtio_mmio_gsi(disk->mmio_index), vdev, err);
    return disk->mmio ? 0 : -EIO;
}

/* In the queue's thread. */
static void note_failure(Disk *disk, bool is_write, DiskFailure failure, int error)
{
    atomic_store(&disk->failed[is_write][failure].error, error);
    if (!atomic_exchange(&disk->machine->disk_failed, true)) {
        aio_notify(disk->machine->main);
    }
}

static void stop_cb(void *opaque, bool is_write, int error)
{
    note_failure(opaque, is_write, DISK_FAILURE_STOP, error);
}

static void failed_cb(void *opaque, bool is_write, bool ignored, int error)
{
    note_failure(opaque, is_write, ignored ? DISK_FAILURE_IGNORE : DISK_FAILURE_REPORT, error);
}

static const VirtioBlkStopOps stop_ops = { .stop = stop_cb, .failed = failed_cb };

static main_fn int create_disk(Machine *machine, DiskConfig *config, unsigned slot,
                               bool *ret_usage, Error *err)
{
    Disk *disk = &machine->disks[machine->nb_disks++];
    int ret;

    disk->machine = machine;
    disk->id = config->id;
    ret = open_backend(disk, config, ret_usage, err);

    if (ret < 0) {
        return ret;
    }
    VirtioBlkParams params = {
        .id = config->id,
        .serial = config->serial,
        .nb_queues = config->nb_queues ? config->nb_queues : machine->config->nb_cpus,
        .queue_size = config->queue_size,
        .seg_max = config->seg_max,
        .packed = config->packed,
        .read_only = blk_read_only(disk->blk),
        .on_read_error = config->on_read_error,
        .on_write_error = config->on_write_error,
        .stop_ops = &stop_ops,
        .stop_opaque = disk,
    };

    disk->vblk = virtio_blk_create(&params, disk->blk, &machine->gm, err);
    if (!disk->vblk) {
        *ret_usage = err->code == -EINVAL;
        error_prefix(err, "--disk %s: ", config->id);
        return -EIO;
    }
    vdev_pause(virtio_blk_device(disk->vblk)); /* until disks_go() */
    if ((ret = map_queues(machine, disk, config, params.nb_queues, err)) < 0 ||
        (ret = attach_transport(machine, disk, config, slot, err)) < 0) {
        *ret_usage = err->code == -EINVAL;
        return ret;
    }
    return 0;
}

int disks_create(Machine *machine, bool *ret_usage, Error *err)
{
    int ret = create_iothreads(machine, err);

    for (unsigned i = 0; ret == 0 && i < machine->config->nb_disks; i++) {
        ret = create_disk(machine, &machine->config->disks[i], i + 1, ret_usage, err);
    }
    return ret;
}

static co_fn void reset_entry(void *opaque)
{
    Disk *disk = opaque;

    if (disk->pci) {
        virtio_pci_co_reset(disk->pci);
    } else if (disk->mmio) {
        virtio_mmio_co_reset(disk->mmio);
    }
}

void disks_reset(Machine *machine)
{
    for (unsigned i = 0; i < machine->nb_disks; i++) {
        aio_co_run_sync(machine->main, reset_entry, &machine->disks[i]);
    }
}

static void say_failure(const Disk *disk, bool is_write, int error)
{
    log_error("machine",
              "disk %s: a %s failed: %s; the guest is stopped; remedy it, then SIGCONT "
              "(or Ctrl-A c, or penstock ctl cont) makes the guest go on, and the request again",
              disk->id, is_write ? "write" : "read", error_strerror(error));
}

static void send_failure(const Disk *disk, bool is_write, DiskFailure failure, int error)
{
    static const char *const actions[DISK_NB_FAILURES] = { "report", "ignore", "stop" };

    control_event(disk->machine->control, "BLOCK_IO_ERROR",
                  json_pack("{s:s, s:s, s:s, s:s, s:b, s:s}", "device", disk->id, "node-name",
                            bdrv_id(blk_node(disk->blk)), "operation",
                            is_write ? "write" : "read", "action", actions[failure], "nospace",
                            error == -ENOSPC || error == -EDQUOT, "reason",
                            error_strerror(error)));
}

static void tell_failures(Disk *disk)
{
    int64_t now_ns = aio_now_ns();

    for (unsigned i = 0; i < 2 * DISK_NB_FAILURES; i++) {
        bool is_write = i / DISK_NB_FAILURES;
        DiskFailure failure = (DiskFailure)(i % DISK_NB_FAILURES);
        int error = atomic_exchange(&disk->failed[is_write][failure].error, 0);
        int64_t *told_ns = &disk->failed[is_write][failure].told_ns;

        if (error == 0) {
            continue;
        }
        if (failure == DISK_FAILURE_STOP) {
            say_failure(disk, is_write, error);
        } else if (*told_ns != 0 && now_ns - *told_ns < NS_PER_S) {
            continue;
        }
        *told_ns = now_ns;
        send_failure(disk, is_write, failure, error);
    }
}

bool disks_take_failure(Machine *machine)
{
    bool any = false;

    if (!atomic_exchange(&machine->disk_failed, false)) {
        return false;
    }
    for (unsigned i = 0; i < machine->nb_disks; i++) {
        tell_failures(&machine->disks[i]);
        any |= virtio_blk_holds_requests(machine->disks[i].vblk);
    }
    return any;
}

/* --- halt --- */

static void nothing_cb(void *opaque)
{
}

/* Returns when each IOThread has ended the pass that it is in. */
static void pass_threads(Machine *machine)
{
    for (unsigned i = 0; i < machine->nb_iothreads; i++) {
        aio_run_sync(iothread_context(machine->iothreads[i]), nothing_cb, NULL);
    }
}

/*
 * A handler that was in the middle of a ring when the pause began has left it after one pass, so
 * all that is taken is with the backend, which the section waits for. What ended there is pushed
 * in the same pass, and told to the guest at its end.
 */
void disks_halt(Machine *machine)
{
    for (unsigned i = 0; i < machine->nb_disks; i++) {
        vdev_pause(virtio_blk_device(machine->disks[i].vblk));
    }
    pass_threads(machine);
    for (unsigned i = 0; i < machine->nb_disks; i++) {
        blk_drained_begin(machine->disks[i].blk);
        blk_drained_end(machine->disks[i].blk);
    }
    pass_threads(machine);
}

void disks_go(Machine *machine)
{
    for (unsigned i = 0; i < machine->nb_disks; i++) {
        virtio_blk_retry(machine->disks[i].vblk);
        vdev_resume(virtio_blk_device(machine->disks[i].vblk));
    }
}

int disks_destroy(Machine *machine, Error *err)
{
    int first = 0;

    if (machine->main) {
        disks_reset(machine);
    }
    for (unsigned i = 0; i < machine->nb_disks; i++) {
        Disk *disk = &machine->disks[i];

        virtio_pci_destroy(disk->pci);
        virtio_mmio_destroy(disk->mmio);
        virtio_blk_destroy(disk->vblk);
        int ret = blk_close(disk->blk);

        if (ret < 0 && first == 0) {
            first = error_set(err, ret, "disk %s: the last flush failed: %s; what the guest wrote "
                              "last may be lost",
                              machine->config->disks[i].id, error_strerror(ret));
        }
        for (unsigned q = 0; q < disk->nb_iothreads; q++) {
            iothread_unref(disk->iothreads[q]);
        }
    }
    machine->nb_disks = 0;
    for (unsigned i = 0; i < machine->nb_iothreads; i++) {
        iothread_unref(machine->iothreads[i]);
    }
    machine->nb_iothreads = 0;
    return first;
}
