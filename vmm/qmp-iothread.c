/*
 * qmp-iothread.c - commands: IOThreads, and which queue runs on which
 */
#include <inttypes.h>

#include "io/base/cpu-list.h"
#include "io/base/thread.h"
#include "vmm/qmp.h"

#define POLL_MAX_NS_LIMIT 1000000000
#define POLL_FACTOR_LIMIT 1000
#define POLL_WEIGHT_LIMIT 16

/* --- query-iothreads --- */

static bool append(json_t *array, json_t *value)
{
    return json_array_append_new(array, value) == 0;
}

static json_t *describe_queues(const QmpTarget *target, const IOThread *iothread)
{
    json_t *queues = json_array();
    bool good = true;

    for (unsigned d = 0; d < target->nb_disks; d++) {
        const QmpDisk *disk = &target->disks[d];
        unsigned nb_queues = disk->vblk ? virtio_blk_device(disk->vblk)->nb_queues : 0;

        for (unsigned q = 0; q < nb_queues; q++) {
            if (disk->iothreads[q] == iothread) {
                good &= append(
                    queues, json_pack("{s:s, s:i}", "device", blk_id(disk->blk), "queue", (int)q));
            }
        }
    }
    if (!good) {
        json_decref(queues);
        return NULL;
    }
    return queues;
}

static json_t *describe_stats(const AioStats *s)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "passes",
                     (json_int_t)s->passes, "enters", (json_int_t)s->enters, "sqes",
                     (json_int_t)s->sqes, "requests", (json_int_t)s->requests, "notifies",
                     (json_int_t)s->notifies, "bhs", (json_int_t)s->bhs, "polls",
                     (json_int_t)s->polls, "polls_paid", (json_int_t)s->polls_paid, "poll_ns",
                     (json_int_t)s->poll_ns);
}

static main_fn json_t *describe_iothread(const QmpTarget *target, const IOThread *iothread)
{
    char cpus[CPU_LIST_BYTES];
    IOThreadInfo info;

    iothread_query(iothread, &info);
    return json_pack("{s:s, s:i, s:I, s:I, s:I, s:I, s:s, s:s, s:s, s:o, s:o}", "id", info.id,
                     "thread-id", (int)info.tid, "poll-max-ns", (json_int_t)info.params.poll_max_ns,
                     "poll-grow", (json_int_t)info.params.poll_grow, "poll-shrink",
                     (json_int_t)info.params.poll_shrink, "poll-weight",
                     (json_int_t)info.params.poll_weight, "x-name", info.name, "x-cpus",
                     cpu_list_format(&info.cpus, cpus, sizeof(cpus)), "x-monitor",
                     aio_context_monitor(iothread_context(iothread)), "x-queues",
                     describe_queues(target, iothread), "x-stats", describe_stats(&info.stats));
}

static co_fn int co_query_iothreads(QmpTarget *target, const json_t *args, json_t **ret_result,
                                    Error *err)
{
    json_t *iothreads = json_array();

    assert_main();
    for (unsigned i = 0; i < target->nb_iothreads; i++) {
        if (!append(iothreads, describe_iothread(target, target->iothreads[i]))) {
            json_decref(iothreads);
            return error_set(err, -ENOMEM, "out of memory");
        }
    }
    *ret_result = iothreads;
    return 0;
}

/* --- iothread-set --- */

static int take_number(const json_t *args, const char *name, uint64_t max, int64_t *value,
                       Error *err)
{
    uint64_t wanted = qmp_arg_number(args, name, (uint64_t)*value);

    if (wanted > max) {
        return error_set(err, -EINVAL, "iothread-set: %s=%" PRIu64 " is above %" PRIu64, name,
                         wanted, max);
    }
    *value = (int64_t)wanted;
    return 0;
}

static co_fn int co_iothread_set(QmpTarget *target, const json_t *args, json_t **ret_result,
                                 Error *err)
{
    IOThread *iothread = qmp_find_iothread(target, qmp_arg_string(args, "id", ""), err);
    IOThreadInfo info;
    int ret;

    assert_main();
    if (!iothread) {
        return err->code;
    }
    iothread_query(iothread, &info);
    if ((ret = take_number(args, "poll-max-ns", POLL_MAX_NS_LIMIT, &info.params.poll_max_ns, err)) <
            0 ||
        (ret = take_number(args, "poll-grow", POLL_FACTOR_LIMIT, &info.params.poll_grow, err)) <
            0 ||
        (ret = take_number(args, "poll-shrink", POLL_FACTOR_LIMIT, &info.params.poll_shrink, err)) <
            0 ||
        (ret = take_number(args, "poll-weight", POLL_WEIGHT_LIMIT, &info.params.poll_weight, err)) <
            0) {
        return ret;
    }
    iothread_set_polling(iothread, &info.params);
    return 0;
}

/* --- x-queue-move --- */

static co_fn int co_queue_move(QmpTarget *target, const json_t *args, json_t **ret_result,
                               Error *err)
{
    QmpDisk *disk = qmp_find_disk(target, qmp_arg_string(args, "device", ""), err);
    IOThread *to =
        disk ? qmp_find_iothread(target, qmp_arg_string(args, "iothread", ""), err) : NULL;
    uint64_t queue = qmp_arg_number(args, "queue", 0);

    assert_main();
    if (!to) {
        return err->code;
    }
    if (!disk->vblk) {
        return error_set(err, -EINVAL, "disk '%s' has no queues", blk_id(disk->blk));
    }
    VirtioDevice *vdev = virtio_blk_device(disk->vblk);

    if (queue >= vdev->nb_queues) {
        return error_set(err, -EINVAL,
                         "disk '%s' has %u queues, from 0; there is no queue %" PRIu64,
                         blk_id(disk->blk), vdev->nb_queues, queue);
    }
    int ret = vdev_co_move_queue(vdev, (unsigned)queue, iothread_context(to));

    if (ret < 0) {
        return error_set(err, ret,
                         "disk '%s', queue %" PRIu64 ": a failed request is held; remedy "
                         "that, and let the guest go on, before you move the queue",
                         blk_id(disk->blk), queue);
    }
    assert_main();
    iothread_ref(to);
    iothread_unref(disk->iothreads[queue]);
    disk->iothreads[queue] = to;
    return 0;
}

const QmpCommand qmp_iothread_commands[] = {
    { .name = "query-iothreads",
      .help = "IOThreads: polling, CPUs, queues, counters",
      .co_run = co_query_iothreads },
    { .name = "iothread-set",
      .help = "change how an IOThread polls; what is not given stays",
      .flags = QMP_CHANGES,
      .co_run = co_iothread_set,
      .args = { { "id", QMP_STRING },
                { "poll-max-ns", QMP_NUMBER, true },
                { "poll-grow", QMP_NUMBER, true },
                { "poll-shrink", QMP_NUMBER, true },
                { "poll-weight", QMP_NUMBER, true } } },
    { .name = "x-queue-move",
      .help = "let another IOThread serve a queue",
      .flags = QMP_CHANGES,
      .co_run = co_queue_move,
      .args = { { "device", QMP_STRING }, { "queue", QMP_NUMBER }, { "iothread", QMP_STRING } } },
    { .name = NULL },
};
