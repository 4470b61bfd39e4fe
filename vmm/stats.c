/*
 * stats.c - counters of threads and queues as JSON, for `--stats`
 *
 * The words are read while their owners may still run: each is right, together they are not a
 * snapshot. Names are ids (letters, digits, '-', '_', '.'), so nothing needs escaping. What the
 * words mean is said in penstock(1).
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "io/base/cpu-list.h"
#include "vmm/machine-int.h"

static void write_counters(FILE *f, const AioContext *ctx, const AioStats *s)
{
    fprintf(f,
            "\"name\": \"%s\", \"monitor\": \"%s\", \"passes\": %" PRIu64 ", \"enters\": %" PRIu64
            ", \"sqes\": %" PRIu64 ", \"requests\": %" PRIu64 ", \"notifies\": %" PRIu64
            ", \"bhs\": %" PRIu64 ", \"polls\": %" PRIu64 ", \"polls_paid\": %" PRIu64
            ", \"poll_ns\": %" PRId64,
            aio_context_name(ctx), aio_context_monitor(ctx), s->passes, s->enters, s->sqes,
            s->requests, s->notifies, s->bhs, s->polls, s->polls_paid, s->poll_ns);
}

static void write_main(FILE *f, const AioContext *ctx)
{
    AioStats stats;

    aio_context_stats(ctx, &stats);
    fprintf(f, "\n    {");
    write_counters(f, ctx, &stats);
    fprintf(f, "}");
}

static main_fn void write_iothread(FILE *f, const IOThread *iothread, bool first)
{
    char cpus[CPU_LIST_BYTES];
    IOThreadInfo info;

    iothread_query(iothread, &info);
    fprintf(f, "%s\n    {\"tid\": %d, \"cpus\": \"%s\", ", first ? "" : ",", (int)info.tid,
            cpu_list_format(&info.cpus, cpus, sizeof(cpus)));
    write_counters(f, iothread_context(iothread), &info.stats);
    fprintf(f, "}");
}

static main_fn void write_iothreads(FILE *f, const Machine *machine)
{
    for (unsigned i = 0; i < machine->nb_iothreads; i++) {
        write_iothread(f, machine->iothreads[i], i == 0);
    }
}

/* Requests by kind, as members of an object that has others before. */
static void write_requests(FILE *f, const BlkAcctTotals *totals, const char *indent)
{
    for (unsigned i = 0; i < BLK_ACCT_NB_OPS; i++) {
        const BlkAcctOpTotals *op = &totals->op[i];

        fprintf(f,
                ",\n%s\"%s\": {\"requests\": %" PRIu64 ", \"bytes\": %" PRIu64
                ", \"errors\": %" PRIu64 ", \"merges\": 0, \"mean_ns\": %" PRIu64,
                indent, blk_acct_op_names[i], op->requests, op->bytes, op->errors,
                op->requests > 0 ? op->sum_ns / op->requests : 0);
        fprintf(f,
                ", \"p50_ns\": %" PRId64 ", \"p90_ns\": %" PRId64 ", \"p99_ns\": %" PRId64
                ", \"p99_9_ns\": %" PRId64 ", \"p99_99_ns\": %" PRId64 "}",
                blk_acct_percentile_ns(op, 5000), blk_acct_percentile_ns(op, 9000),
                blk_acct_percentile_ns(op, 9900), blk_acct_percentile_ns(op, 9990),
                blk_acct_percentile_ns(op, 9999));
    }
}

static void write_queue(FILE *f, const Disk *disk, const VirtQueue *vq, BlkAcctTotals *disk_totals)
{
    const VqStats *s = &vq->stats;
    const BlkAcct *acct = virtio_blk_acct(disk->vblk, vq->index);
    BlkAcctTotals totals = { 0 };

    blk_acct_add(acct, &totals);
    blk_acct_add(acct, disk_totals);
    fprintf(f,
            "%s\n       {\"index\": %u, \"iothread\": \"%s\", \"requests\": %" PRIu64
            ", \"kicks\": %" PRIu64 ", \"polled\": %" PRIu64 ", \"batches\": %" PRIu64
            ", \"notifications\": %" PRIu64 ", \"in_flight\": %u",
            vq->index == 0 ? "" : ",", vq->index, iothread_id(disk->iothreads[vq->index]),
            s->requests, s->kicks, s->polled, s->batches, s->notifications,
            atomic_load(&vq->in_flight));
    write_requests(f, &totals, "        ");
    fprintf(f, "}");
}

static void write_disk(FILE *f, const Disk *disk, const char *id)
{
    const VirtioDevice *vdev = virtio_blk_device(disk->vblk);
    BlkAcctTotals totals = { 0 };
    unsigned in_flight = 0;

    fprintf(f, "\n    {\"id\": \"%s\", \"queues\": [", id);
    for (unsigned q = 0; q < vdev->nb_queues; q++) {
        write_queue(f, disk, &vdev->queues[q], &totals);
        in_flight += atomic_load(&vdev->queues[q].in_flight);
    }
    fprintf(f, "],\n     \"in_flight\": %u", in_flight);
    write_requests(f, &totals, "     ");
    fprintf(f, "}");
}

static void write_disks(FILE *f, const Machine *machine)
{
    for (unsigned d = 0; d < machine->nb_disks; d++) {
        fputs(d == 0 ? "" : ",", f);
        write_disk(f, &machine->disks[d], machine->config->disks[d].id);
    }
}

int machine_check_stats(const char *path, Error *err)
{
    const char *slash = strrchr(path, '/');
    AUTO_FREE char *folder = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    AUTO_FD int fd = -1;
    int ret = 0;

    if (strcmp(path, "-") == 0) {
        return 0;
    }
    fd = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC); /* changes nothing */
    if (fd < 0) {
        ret = -errno;
    }
    if (ret == -ENXIO || /* a FIFO, whose reader may come later */
        (ret == -ENOENT && *path && folder && access(folder, W_OK | X_OK) == 0)) {
        return 0;
    }
    return ret < 0 ? error_set(err, ret, "--stats '%s': %s", path, error_strerror(ret)) : 0;
}

int machine_write_stats(Machine *machine, const char *path, Error *err)
{
    FILE *f = strcmp(path, "-") == 0 ? stderr : fopen(path, "we");

    if (!f) {
        int ret = -errno;

        return error_set(err, ret, "--stats '%s': %s", path, error_strerror(ret));
    }
    fprintf(f, "{\"run_ns\": %" PRId64 ",\n \"main\":[", aio_now_ns() - machine->started_ns);
    write_main(f, machine->main);
    fprintf(f, "],\n \"iothreads\": [");
    write_iothreads(f, machine);
    fprintf(f, "],\n \"disks\": [");
    write_disks(f, machine);
    fprintf(f, "]}\n");
    bool bad = ferror(f) != 0;

    if (f == stderr) {
        bad |= fflush(f) != 0;
    } else {
        bad |= fclose(f) != 0;
    }
    return bad ? error_set(err, -EIO, "--stats '%s': write failed", path) : 0;
}
