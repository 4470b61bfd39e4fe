/*
 * qmp-block.c - commands: disks
 *
 * Filters that commands put in stand on top of a disk's nodes: above what the command line made of
 * them, the last one uppermost.
 */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "block/faulty.h"
#include "block/throttle.h"
#include "vmm/qmp.h"

/* --- finding --- */

static GRAPH_RD BlockNode *below(const BlockNode *node)
{
    return node->driver->is_filter ? bdrv_filtered(node) : NULL;
}

/* The uppermost of a disk's nodes that has this driver; NULL. */
static BlockNode *find_filter(const QmpDisk *disk, const BlockDriver *driver)
{
    BlockNode *node;

    graph_assert_main();
    for (node = blk_node(disk->blk); node && node->driver != driver; node = below(node)) {
    }
    return node;
}

static bool has_node(const QmpDisk *disk, const char *id)
{
    graph_assert_main();
    for (const BlockNode *node = blk_node(disk->blk); node; node = below(node)) {
        if (strcmp(bdrv_id(node), id) == 0) {
            return true;
        }
    }
    return false;
}

/* By "device", also called "id", or by "node-name", of any of its nodes; one of them. */
static QmpDisk *named_disk(QmpTarget *target, const json_t *args, Error *err)
{
    const char *device = qmp_arg_string(args, "device", qmp_arg_string(args, "id", NULL));
    const char *node = qmp_arg_string(args, "node-name", NULL);

    if (!device == !node) {
        error_set(err, -EINVAL, "one of device and node-name says which disk");
        return NULL;
    }
    if (device) {
        return qmp_find_disk(target, device, err);
    }
    for (unsigned i = 0; i < target->nb_disks; i++) {
        if (has_node(&target->disks[i], node)) {
            return &target->disks[i];
        }
    }
    error_set(err, -ENODEV, "there is no node '%s'", node);
    return NULL;
}

/* --- query-block --- */

/* Owns: both; false: something was not to be had. */
static bool append(json_t *array, json_t *value)
{
    return json_array_append_new(array, value) == 0;
}

static int oom(Error *err)
{
    return error_set(err, -ENOMEM, "out of memory");
}

static json_t *describe_node(const BlockNode *node)
{
    return json_pack("{s:s, s:s, s:o, s:b, s:I}", "node-name", bdrv_id(node), "driver",
                     node->driver->name, "file", qmp_string(node->name), "read-only",
                     node->read_only, "size", (json_int_t)atomic_load(&node->length_bytes));
}

static json_t *describe_nodes(const QmpDisk *disk)
{
    json_t *nodes = json_array();
    bool good = true;

    graph_assert_main();
    for (const BlockNode *node = blk_node(disk->blk); node; node = below(node)) {
        good &= append(nodes, describe_node(node));
    }
    if (!good) {
        json_decref(nodes);
        return NULL;
    }
    return nodes;
}

static json_t *describe_queues(const QmpDisk *disk)
{
    json_t *queues = json_array();
    bool good = true;

    for (unsigned q = 0; q < virtio_blk_device(disk->vblk)->nb_queues; q++) {
        good &= append(queues, json_pack("{s:i, s:s}", "queue", (int)q, "iothread",
                                         iothread_id(disk->iothreads[q])));
    }
    if (!good) {
        json_decref(queues);
        return NULL;
    }
    return queues;
}

static const struct {
    ThrottleKind kind;
    const char *rate, *max, *max_length;        /* QEMU's names */
    const char *opt, *opt_max, *opt_max_length; /* the filter's */
} limits[] = {
#define LIMIT(kind, name, opt)                                                                     \
    {                                                                                              \
        kind, name, name "_max", name "_max_length", opt, opt "-max", opt "-max-length"            \
    }
    LIMIT(THROTTLE_BPS_TOTAL, "bps", "bps-total"),
    LIMIT(THROTTLE_BPS_READ, "bps_rd", "bps-read"),
    LIMIT(THROTTLE_BPS_WRITE, "bps_wr", "bps-write"),
    LIMIT(THROTTLE_IOPS_TOTAL, "iops", "iops-total"),
    LIMIT(THROTTLE_IOPS_READ, "iops_rd", "iops-read"),
    LIMIT(THROTTLE_IOPS_WRITE, "iops_wr", "iops-write"),
#undef LIMIT
};

static int add_limits(json_t *object, const QmpDisk *disk)
{
    const BlockNode *node = find_filter(disk, &bdrv_throttle);
    ThrottleConfig config = node ? throttle_query(node) : (ThrottleConfig){ 0 };
    int ret = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(limits); i++) {
        const ThrottleRate *rate = &config.kind[limits[i].kind];

        ret |= json_object_set_new(object, limits[i].rate, json_integer((json_int_t)rate->rate));
        if (rate->max > 0) {
            ret |= json_object_set_new(object, limits[i].max, json_integer((json_int_t)rate->max));
            ret |= json_object_set_new(object, limits[i].max_length,
                                       json_integer((json_int_t)rate->max_seconds));
        }
    }
    return ret;
}

static json_t *describe_inserted(const QmpDisk *disk)
{
    const BlockNode *node = blk_node(disk->blk);
    json_t *inserted = json_pack(
        "{s:s, s:s, s:o, s:b, s:{s:b, s:b, s:b}, s:{s:o, s:s, s:I}}", "node-name", bdrv_id(node),
        "drv", node->driver->name, "file", qmp_string(node->name), "ro", blk_read_only(disk->blk),
        "cache", "writeback", blk_write_cache(disk->blk), "direct", node->cache == BLK_CACHE_NONE,
        "no-flush", false, "image", "filename", qmp_string(node->name), "format", "raw",
        "virtual-size", (json_int_t)blk_length(disk->blk));

    if (inserted && add_limits(inserted, disk) != 0) {
        json_decref(inserted);
        return NULL;
    }
    return inserted;
}

static json_t *describe_disk(const QmpDisk *disk)
{
    json_t *object = json_pack("{s:s, s:b, s:b, s:s, s:o, s:o}", "device", blk_id(disk->blk),
                               "locked", false, "removable", false, "type", "unknown", "inserted",
                               describe_inserted(disk), "x-nodes", describe_nodes(disk));

    if (object && disk->vblk &&
        json_object_set_new(object, "x-queues", describe_queues(disk)) < 0) {
        json_decref(object);
        return NULL;
    }
    return object;
}

static int describe_disks(QmpTarget *target, bool with_device,
                          json_t *(*describe)(const QmpDisk *disk), json_t **ret_result, Error *err)
{
    json_t *disks = json_array();

    for (unsigned i = 0; i < target->nb_disks; i++) {
        bool wanted = target->disks[i].vblk || !with_device;

        if (wanted && !append(disks, describe(&target->disks[i]))) {
            json_decref(disks);
            return oom(err);
        }
    }
    *ret_result = disks;
    return disks ? 0 : oom(err);
}

static co_fn int co_query_block(QmpTarget *target, const json_t *args, json_t **ret_result,
                                Error *err)
{
    return describe_disks(target, false, describe_disk, ret_result, err);
}

/* --- query-blockstats --- */

static json_t *describe_op(const BlkAcctOpTotals *op)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "requests",
                     (json_int_t)op->requests, "bytes", (json_int_t)op->bytes, "errors",
                     (json_int_t)op->errors, "mean_ns",
                     (json_int_t)(op->requests ? op->sum_ns / op->requests : 0), "p50_ns",
                     (json_int_t)blk_acct_percentile_ns(op, 5000), "p90_ns",
                     (json_int_t)blk_acct_percentile_ns(op, 9000), "p99_ns",
                     (json_int_t)blk_acct_percentile_ns(op, 9900), "p99_9_ns",
                     (json_int_t)blk_acct_percentile_ns(op, 9990), "p99_99_ns",
                     (json_int_t)blk_acct_percentile_ns(op, 9999));
}

/* Kinds of requests that there have been. */
static int add_ops(json_t *object, const BlkAcctTotals *totals)
{
    int ret = 0;

    for (unsigned i = 0; i < BLK_ACCT_NB_OPS; i++) {
        if (totals->op[i].requests > 0) {
            ret |= json_object_set_new(object, blk_acct_op_names[i], describe_op(&totals->op[i]));
        }
    }
    return ret;
}

static json_t *describe_ops(const BlkAcctTotals *totals)
{
    json_t *object = json_object();

    if (add_ops(object, totals) != 0) {
        json_decref(object);
        return NULL;
    }
    return object;
}

/* NOINLINE here and below: histograms are large, a coroutine's stack is not. */
static NOINLINE json_t *describe_queue_stats(const QmpDisk *disk, unsigned q)
{
    const VirtQueue *vq = &virtio_blk_device(disk->vblk)->queues[q];
    BlkAcctTotals *totals = calloc(1, sizeof(*totals));
    json_t *object = NULL;

    if (totals) {
        blk_acct_add(virtio_blk_acct(disk->vblk, q), totals);
        object = json_pack(
            "{s:i, s:s, s:I, s:I, s:I, s:I, s:I, s:i}", "queue", (int)q, "iothread",
            iothread_id(disk->iothreads[q]), "requests", (json_int_t)vq->stats.requests, "kicks",
            (json_int_t)vq->stats.kicks, "polled", (json_int_t)vq->stats.polled, "batches",
            (json_int_t)vq->stats.batches, "notifications", (json_int_t)vq->stats.notifications,
            "in-flight", (int)atomic_load(&vq->in_flight));
    }
    if (object && add_ops(object, totals) != 0) {
        json_decref(take_ptr(&object));
    }
    free(totals);
    return object;
}

static json_t *describe_queues_stats(const QmpDisk *disk)
{
    json_t *queues = json_array();
    bool good = true;

    for (unsigned q = 0; q < virtio_blk_device(disk->vblk)->nb_queues; q++) {
        good &= append(queues, describe_queue_stats(disk, q));
    }
    if (!good) {
        json_decref(queues);
        return NULL;
    }
    return queues;
}

/* In QEMU's words; those that have failed are counted by themselves. */
static int add_words(json_t *stats, const char *prefix, const BlkAcctOpTotals *op)
{
    const struct {
        const char *before, *after;
        uint64_t value;
    } words[] = {
        { "", "_operations", op->requests - op->errors },
        { "failed_", "_operations", op->errors },
        { "", "_total_time_ns", op->sum_ns },
        { "", "_bytes", op->bytes }, /* from here on not of flushes */
        { "", "_merged", 0 },
    };
    unsigned nb_words = strcmp(prefix, "flush") == 0 ? 3 : ARRAY_SIZE(words);
    int ret = 0;

    for (unsigned i = 0; i < nb_words; i++) {
        char name[48];

        snprintf(name, sizeof(name), "%s%s%s", words[i].before, prefix, words[i].after);
        ret |= json_object_set_new(stats, name, json_integer((json_int_t)words[i].value));
    }
    return ret;
}

static json_t *describe_words(const BlkAcctTotals *totals)
{
    json_t *stats = json_object();

    if (add_words(stats, "rd", &totals->op[BLK_ACCT_READ]) != 0 ||
        add_words(stats, "wr", &totals->op[BLK_ACCT_WRITE]) != 0 ||
        add_words(stats, "flush", &totals->op[BLK_ACCT_FLUSH]) != 0 ||
        add_words(stats, "unmap", &totals->op[BLK_ACCT_DISCARD]) != 0) {
        json_decref(stats);
        return NULL;
    }
    return stats;
}

static json_t *describe_stats(const QmpDisk *disk)
{
    BlkAcctTotals *totals = calloc(1, sizeof(*totals));
    json_t *object = NULL;

    if (totals) {
        for (unsigned q = 0; q < virtio_blk_device(disk->vblk)->nb_queues; q++) {
            blk_acct_add(virtio_blk_acct(disk->vblk, q), totals);
        }
        object =
            json_pack("{s:s, s:s, s:o, s:i, s:o, s:o}", "device", blk_id(disk->blk), "node-name",
                      bdrv_id(blk_node(disk->blk)), "stats", describe_words(totals), "x-in-flight",
                      (int)blk_in_flight(disk->blk), "x-latency", describe_ops(totals), "x-queues",
                      describe_queues_stats(disk));
        free(totals);
    }
    return object;
}

static co_fn int co_query_blockstats(QmpTarget *target, const json_t *args, json_t **ret_result,
                                     Error *err)
{
    return describe_disks(target, true, describe_stats, ret_result, err);
}

/* --- block_resize --- */

static co_fn int co_block_resize(QmpTarget *target, const json_t *args, json_t **ret_result,
                                 Error *err)
{
    QmpDisk *disk = named_disk(target, args, err);

    if (!disk) {
        return -ENODEV;
    }
    return qmp_arg_given(args, "size")
               ? blk_truncate(disk->blk, qmp_arg_number(args, "size", 0), err)
               : blk_refresh_length(disk->blk, err);
}

/* --- filters --- */

static int begin_opts(Opts *opts, const char *what, const char *key, const char *value, Error *err)
{
    *opts = (Opts){ .what = what };
    int ret = opts_add(opts, key, value, err);

    if (ret < 0) {
        opts_finish(opts);
    }
    return ret;
}

/* Put a filter on top of a disk's nodes; *slot keeps a reference. Consumes @opts. */
static BlockNode *insert_filter(QmpDisk *disk, BlockNode **slot, Opts *opts, Error *err)
{
    BlockNode *filter = bdrv_insert_filter(blk_node(disk->blk), opts, err);

    if (filter) {
        *slot = bdrv_ref(filter);
    }
    return filter;
}

static int remove_filter(BlockNode **slot, Error *err)
{
    int ret = bdrv_remove_filter(*slot, err);

    if (ret == 0) {
        bdrv_unref(take_ptr(slot));
    }
    return ret;
}

/* --- block_set_io_throttle --- */

static int add_number(Opts *opts, const char *key, uint64_t value, Error *err)
{
    char text[24];

    snprintf(text, sizeof(text), "%" PRIu64, value);
    return opts_add(opts, key, text, err);
}

/* All limits: what is not given is none. */
static int add_limit_opts(Opts *opts, const json_t *args, bool *ret_any, Error *err)
{
    int ret = 0;

    *ret_any = false;
    for (unsigned i = 0; ret == 0 && i < ARRAY_SIZE(limits); i++) {
        uint64_t rate = qmp_arg_number(args, limits[i].rate, 0);
        uint64_t max = qmp_arg_number(args, limits[i].max, 0);

        *ret_any |= rate > 0 || max > 0;
        if ((ret = add_number(opts, limits[i].opt, rate, err)) == 0 &&
            (ret = add_number(opts, limits[i].opt_max, max, err)) == 0 &&
            qmp_arg_given(args, limits[i].max_length)) {
            ret = add_number(opts, limits[i].opt_max_length,
                             qmp_arg_number(args, limits[i].max_length, 0), err);
        }
    }
    return ret;
}

static BlockNode *insert_throttle(QmpDisk *disk, const char *group, Error *err)
{
    BlockNode *filter = NULL;
    Opts opts;

    if (begin_opts(&opts, "block_set_io_throttle", "driver", "throttle", err) < 0) {
        return NULL;
    }
    if (!group || opts_add(&opts, "group", group, err) == 0) {
        filter = insert_filter(disk, &disk->throttle, &opts, err);
    }
    opts_finish(&opts);
    return filter;
}

/* The filter that is to have the limits; one more if there is none, or when a group is named. */
static BlockNode *choose_throttle(QmpDisk *disk, const char *group, bool *ret_new, Error *err)
{
    BlockNode *filter = find_filter(disk, &bdrv_throttle);

    *ret_new = false;
    if (group && filter) {
        if (filter != disk->throttle) {
            error_set(err, -EINVAL,
                      "the throttle of disk '%s', node '%s', was not put in by this "
                      "command, and keeps its group",
                      blk_id(disk->blk), bdrv_id(filter));
            return NULL;
        }
        if (remove_filter(&disk->throttle, err) < 0) {
            return NULL;
        }
        filter = NULL;
    }
    if (filter) {
        return filter;
    }
    *ret_new = true;
    return insert_throttle(disk, group, err);
}

static int set_limits(QmpDisk *disk, const char *group, Opts *opts, Error *err)
{
    bool is_new;
    BlockNode *filter = choose_throttle(disk, group, &is_new, err);

    if (!filter) {
        return err->code;
    }
    int ret = bdrv_reconfigure(filter, opts, err);

    if (ret < 0 && is_new) {
        int undone UNUSED = remove_filter(&disk->throttle, NULL);
    }
    return ret;
}

/* No limits: the filter goes that this command has put in; one of the command line stays. */
static int clear_limits(QmpDisk *disk, Opts *opts, Error *err)
{
    BlockNode *filter = find_filter(disk, &bdrv_throttle);

    if (disk->throttle) {
        return remove_filter(&disk->throttle, err);
    }
    return filter ? bdrv_reconfigure(filter, opts, err) : 0;
}

static co_fn int co_set_io_throttle(QmpTarget *target, const json_t *args, json_t **ret_result,
                                    Error *err)
{
    QmpDisk *disk = named_disk(target, args, err);
    const char *group = qmp_arg_string(args, "group", NULL);
    Opts opts = { .what = "block_set_io_throttle" };
    bool any;

    if (!disk) {
        return err->code;
    }
    int ret = add_limit_opts(&opts, args, &any, err);

    if (ret == 0) {
        ret = any ? set_limits(disk, group, &opts, err) : clear_limits(disk, &opts, err);
    }
    opts_finish(&opts);
    return ret;
}

/* --- x-fault-... --- */

/* All arguments but the disk's name, as the filter's options. */
static int add_rule_opts(Opts *opts, const json_t *args, Error *err)
{
    const char *name;
    json_t *value;
    int ret = 0;

    json_object_foreach((json_t *)args, name, value)
    {
        if (ret < 0 || strcmp(name, "device") == 0) {
            continue;
        }
        ret = json_is_string(value)
                  ? opts_add(opts, name, json_string_value(value), err)
                  : add_number(opts, name, (uint64_t)json_integer_value(value), err);
    }
    return ret;
}

static BlockNode *choose_faulty(QmpDisk *disk, Error *err)
{
    BlockNode *filter = find_filter(disk, &bdrv_faulty);
    Opts opts;

    if (!filter && begin_opts(&opts, "x-fault-add", "driver", "faulty", err) == 0) {
        filter = insert_filter(disk, &disk->faulty, &opts, err);
        opts_finish(&opts);
    }
    return filter;
}

static bool has_rules(const BlockNode *filter)
{
    FaultyCounts counts;

    for (unsigned i = 0; i < FAULTY_RULES_MAX; i++) {
        if (faulty_query(filter, i, &counts)) {
            return true;
        }
    }
    return false;
}

/* What this command has put in goes with its last rule. */
static int tidy_faulty(QmpDisk *disk, Error *err)
{
    return disk->faulty && !has_rules(disk->faulty) ? remove_filter(&disk->faulty, err) : 0;
}

static co_fn int co_fault_add(QmpTarget *target, const json_t *args, json_t **ret_result,
                              Error *err)
{
    QmpDisk *disk = named_disk(target, args, err);
    Opts opts = { .what = "x-fault-add" };
    int ret = disk ? add_rule_opts(&opts, args, err) : err->code;
    BlockNode *filter = ret == 0 ? choose_faulty(disk, err) : NULL;

    if (filter) {
        ret = faulty_add_rule(filter, &opts, err);
        int tidied UNUSED = tidy_faulty(disk, NULL);
    } else if (ret == 0) {
        ret = err->code;
    }
    opts_finish(&opts);
    if (ret < 0) {
        return ret;
    }
    *ret_result = json_pack("{s:i}", "rule", ret);
    return *ret_result ? 0 : oom(err);
}

static co_fn int co_fault_remove(QmpTarget *target, const json_t *args, json_t **ret_result,
                                 Error *err)
{
    QmpDisk *disk = named_disk(target, args, err);
    BlockNode *filter = disk ? find_filter(disk, &bdrv_faulty) : NULL;
    uint64_t rule = qmp_arg_number(args, "rule", 0);

    if (!disk) {
        return err->code;
    }
    if (!filter) {
        return error_set(err, -EINVAL, "disk '%s' has no rules", blk_id(disk->blk));
    }
    int ret = faulty_remove_rule(filter, (unsigned)MIN(rule, (uint64_t)UINT_MAX), err);

    return ret < 0 ? ret : tidy_faulty(disk, err);
}

static co_fn int co_query_faults(QmpTarget *target, const json_t *args, json_t **ret_result,
                                 Error *err)
{
    QmpDisk *disk = named_disk(target, args, err);
    const BlockNode *filter = disk ? find_filter(disk, &bdrv_faulty) : NULL;
    json_t *rules = json_array();
    FaultyCounts counts;
    bool good = disk != NULL;

    for (unsigned i = 0; filter && i < FAULTY_RULES_MAX; i++) {
        if (faulty_query(filter, i, &counts)) {
            good &= append(rules, json_pack("{s:i, s:I, s:I}", "rule", (int)i, "matched",
                                            (json_int_t)counts.matched, "struck",
                                            (json_int_t)counts.struck));
        }
    }
    if (!good) {
        json_decref(rules);
        return disk ? oom(err) : err->code;
    }
    *ret_result = rules;
    return 0;
}

/* --- the table --- */

#define LIMIT_ARGS(name)                                                                           \
    { name, QMP_SIZE, true }, { name "_max", QMP_SIZE, true },                                     \
    {                                                                                              \
        name "_max_length", QMP_NUMBER, true                                                       \
    }

const QmpCommand qmp_block_commands[] = {
    { .name = "query-block",
      .help = "disks, their nodes from the guest downwards, and the thread of each queue",
      .co_run = co_query_block },
    { .name = "query-blockstats",
      .help = "requests and latencies of each disk that is a device, and its queues",
      .co_run = co_query_blockstats },
    { .name = "block_resize",
      .help = "make a disk longer or shorter, without size as long as its image is now; the guest "
              "is told",
      .flags = QMP_CHANGES,
      .co_run = co_block_resize,
      .args = { { "device", QMP_STRING, true },
                { "node-name", QMP_STRING, true },
                { "size", QMP_SIZE, true } } },
    { .name = "block_set_io_throttle",
      .help = "limit bytes and requests a second; what is not given, or 0, is no limit",
      .flags = QMP_CHANGES,
      .co_run = co_set_io_throttle,
      .args = { { "device", QMP_STRING, true },
                { "id", QMP_STRING, true },
                LIMIT_ARGS("bps"),
                LIMIT_ARGS("bps_rd"),
                LIMIT_ARGS("bps_wr"),
                LIMIT_ARGS("iops"),
                LIMIT_ARGS("iops_rd"),
                LIMIT_ARGS("iops_wr"),
                { "group", QMP_STRING, true } } },
    { .name = "x-fault-add",
      .help = "let requests fail, late or in part, by a rule (see penstock(1), driver=faulty)",
      .flags = QMP_CHANGES,
      .co_run = co_fault_add,
      .args = { { "device", QMP_STRING },
                { "op", QMP_STRING, true },
                { "offset", QMP_SIZE, true },
                { "len", QMP_SIZE, true },
                { "after", QMP_NUMBER, true },
                { "every", QMP_NUMBER, true },
                { "probability", QMP_STRING, true },
                { "count", QMP_NUMBER, true },
                { "error", QMP_STRING, true },
                { "short", QMP_SIZE, true },
                { "torn", QMP_SIZE, true },
                { "delay-ns", QMP_NUMBER, true } } },
    { .name = "x-fault-remove",
      .help = "take a rule back",
      .flags = QMP_CHANGES,
      .co_run = co_fault_remove,
      .args = { { "device", QMP_STRING }, { "rule", QMP_NUMBER } } },
    { .name = "x-query-faults",
      .help = "how often each rule was met, and has struck",
      .co_run = co_query_faults,
      .args = { { "device", QMP_STRING } } },
    { .name = NULL },
};
