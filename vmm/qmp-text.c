/*
 * qmp-text.c - tables of what queries answer
 */
#include "vmm/qmp-text.h"

#include <inttypes.h>
#include <string.h>

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "-";
}

static int64_t number_of(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

static void print_status(FILE *f, const json_t *result)
{
    fprintf(f, "%s\n", text_of(result, "status"));
}

static void print_version(FILE *f, const json_t *result)
{
    fprintf(f, "%s\n", text_of(result, "package"));
}

static void print_names(FILE *f, const json_t *result)
{
    for (size_t i = 0; i < json_array_size(result); i++) {
        fprintf(f, "%s\n", text_of(json_array_get(result, i), "name"));
    }
}

/* --- query-block --- */

static void print_nodes(FILE *f, const json_t *nodes)
{
    for (size_t i = 0; i < json_array_size(nodes); i++) {
        const json_t *node = json_array_get(nodes, i);

        fprintf(f, "%s%s (%s)", i == 0 ? "  nodes   " : " > ", text_of(node, "node-name"),
                text_of(node, "driver"));
    }
    fputc('\n', f);
}

static void print_limits(FILE *f, const json_t *inserted)
{
    static const char *const names[] = { "bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr" };
    bool first = true;

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        int64_t value = number_of(inserted, names[i]);

        if (value > 0) {
            fprintf(f, "%s%s=%" PRId64, first ? "  limits  " : " ", names[i], value);
            first = false;
        }
    }
    if (!first) {
        fputc('\n', f);
    }
}

static void print_queues(FILE *f, const json_t *queues)
{
    for (size_t i = 0; i < json_array_size(queues); i++) {
        const json_t *queue = json_array_get(queues, i);

        fprintf(f, "%s%" PRId64 ":%s", i == 0 ? "  queues  " : " ", number_of(queue, "queue"),
                text_of(queue, "iothread"));
    }
    if (json_array_size(queues) > 0) {
        fputc('\n', f);
    }
}

static void print_disks(FILE *f, const json_t *result)
{
    for (size_t i = 0; i < json_array_size(result); i++) {
        const json_t *disk = json_array_get(result, i);
        const json_t *inserted = json_object_get(disk, "inserted");

        fprintf(f, "%s: %s, %" PRId64 " bytes%s\n", text_of(disk, "device"),
                text_of(inserted, "file"),
                number_of(json_object_get(inserted, "image"), "virtual-size"),
                json_is_true(json_object_get(inserted, "ro")) ? ", read-only" : "");
        print_nodes(f, json_object_get(disk, "x-nodes"));
        print_limits(f, inserted);
        print_queues(f, json_object_get(disk, "x-queues"));
    }
}

/* --- query-blockstats --- */

static double us_of(const json_t *op, const char *key)
{
    return (double)number_of(op, key) / 1000;
}

static void print_ops(FILE *f, const char *what, const json_t *ops)
{
    static const char *const names[] = { "read", "write", "flush", "discard", "write_zeroes" };

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        const json_t *op = json_object_get(ops, names[i]);

        if (op) {
            fprintf(f,
                    "%-16s %-12s %10" PRId64 " %14" PRId64 " %6" PRId64
                    " %9.1f %9.1f %9.1f %9.1f %9.1f\n",
                    what, names[i], number_of(op, "requests"), number_of(op, "bytes"),
                    number_of(op, "errors"), us_of(op, "mean_ns"), us_of(op, "p50_ns"),
                    us_of(op, "p99_ns"), us_of(op, "p99_9_ns"), us_of(op, "p99_99_ns"));
        }
    }
}

static void print_disks_stats(FILE *f, const json_t *result)
{
    fprintf(f, "%-16s %-12s %10s %14s %6s %9s %9s %9s %9s %9s\n", "disk, queue", "kind", "requests",
            "bytes", "errors", "mean us", "p50", "p99", "p99.9", "p99.99");
    for (size_t i = 0; i < json_array_size(result); i++) {
        const json_t *disk = json_array_get(result, i);
        const json_t *queues = json_object_get(disk, "x-queues");

        print_ops(f, text_of(disk, "device"), json_object_get(disk, "x-latency"));
        for (size_t q = 0; q < json_array_size(queues); q++) {
            const json_t *queue = json_array_get(queues, q);
            char what[64];

            snprintf(what, sizeof(what), "  %" PRId64 " on %.40s", number_of(queue, "queue"),
                     text_of(queue, "iothread"));
            print_ops(f, what, queue);
        }
    }
}

/* --- query-iothreads --- */

static void print_iothreads(FILE *f, const json_t *result)
{
    fprintf(f, "%-16s %8s %11s %5s %6s %6s %-9s %-8s %s\n", "iothread", "tid", "poll-max-ns",
            "grow", "shrink", "weight", "monitor", "cpus", "queues");
    for (size_t i = 0; i < json_array_size(result); i++) {
        const json_t *thread = json_array_get(result, i);
        const json_t *queues = json_object_get(thread, "x-queues");

        fprintf(f,
                "%-16s %8" PRId64 " %11" PRId64 " %5" PRId64 " %6" PRId64 " %6" PRId64 " %-9s %-8s",
                text_of(thread, "id"), number_of(thread, "thread-id"),
                number_of(thread, "poll-max-ns"), number_of(thread, "poll-grow"),
                number_of(thread, "poll-shrink"), number_of(thread, "poll-weight"),
                text_of(thread, "x-monitor"), text_of(thread, "x-cpus"));
        for (size_t q = 0; q < json_array_size(queues); q++) {
            const json_t *queue = json_array_get(queues, q);

            fprintf(f, " %s.%" PRId64, text_of(queue, "device"), number_of(queue, "queue"));
        }
        fputc('\n', f);
    }
}

static const struct {
    const char *name;
    void (*print)(FILE *f, const json_t *result);
} forms[] = {
    { "query-status", print_status },          { "query-version", print_version },
    { "query-commands", print_names },         { "query-block", print_disks },
    { "query-blockstats", print_disks_stats }, { "query-iothreads", print_iothreads },
};

bool qmp_text_print(FILE *f, const char *name, const json_t *result)
{
    for (unsigned i = 0; i < ARRAY_SIZE(forms); i++) {
        if (strcmp(forms[i].name, name) == 0) {
            forms[i].print(f, result);
            return true;
        }
    }
    return false;
}
