/*
 * cmd-bench.c - `penstock bench`: load on a disk through the block layer, without a guest
 *
 * Each queue is an IOThread with --depth coroutines, each of which makes one request after the
 * other. A driver that answers at once never lets the second coroutine of a queue run: there is no
 * depth then. A sequential queue has a part of the disk of its own.
 *
 * Each request reads the clock once, when it begins; ends are told together, at the end of the pass
 * of the event loop (block-acct.h), so a latency has what its neighbours took as well.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "block/block-acct.h"
#include "io/aio/iothread.h"
#include "vmm/cmd.h"
#include "vmm/config.h"
#include "vmm/machine.h"
#include "vmm/tool.h"

#define DEPTH_MAX        1024
#define SIZE_BYTES_MAX   (64u << 20)
#define MEMORY_BYTES_MAX (4ull << 30)
#define RUNTIME_S_MAX    86400
#define BUFFER_ALIGNMENT 4096

typedef enum Operation {
    OP_READ,
    OP_WRITE,
    OP_RANDRW, /* as many reads as writes, in random places */
} Operation;

typedef struct Bench Bench;

typedef struct Queue {
    Bench *bench;
    IOThread *iothread;
    char *buffers; /* what each coroutine reads into, then what all of them write */
    uint64_t first_slot, nb_slots, next_slot; /* sequential: its part of the disk */
    uint64_t random;
    unsigned started, running; /* coroutines */
    BlkAcct acct;
} Queue;

struct Bench {
    Tool tool;
    const char *text; /* DISK */
    Operation op;
    bool sequential, may_write, json;
    uint64_t size_bytes, depth, nb_queues, runtime_s;
    IOThreadConfig iothread;
    BlockBackend *blk;
    uint64_t nb_slots; /* places for a request */
    Queue *queues;
    _Atomic bool stop;
    _Atomic unsigned busy;  /* queues that have not ended */
    _Atomic int first_error;
    int64_t elapsed_ns, cpu_ns;
    BlkAcctTotals totals;
};

static const char *const op_names[] = { "read", "write", "randrw", NULL };

/* --- load --- */

/* xorshift64*: cheap beside a request; the seed is not 0 */
static uint64_t next_random(Queue *q)
{
    q->random ^= q->random >> 12;
    q->random ^= q->random << 25;
    q->random ^= q->random >> 27;
    return q->random * 0x2545F4914F6CDD1DULL;
}

static uint64_t next_slot(Queue *q)
{
    if (!q->bench->sequential) {
        return (uint64_t)((unsigned __int128)next_random(q) * q->bench->nb_slots >> 64);
    }
    uint64_t slot = q->next_slot++;

    q->next_slot = q->next_slot == q->nb_slots ? 0 : q->next_slot;
    return q->first_slot + slot;
}

static void end_queue(Queue *q)
{
    AioContext *main = q->bench->tool.main;

    blk_acct_flush(&q->acct);
    atomic_fetch_sub(&q->bench->busy, 1);
    aio_notify(main);
}

static void fail(Bench *bench, int ret)
{
    int none = 0;

    atomic_compare_exchange_strong(&bench->first_error, &none, ret);
    atomic_store(&bench->stop, true);
    aio_notify(bench->tool.main);
}

static size_t stride_bytes(const Bench *bench)
{
    return ALIGN_UP(bench->size_bytes, BUFFER_ALIGNMENT);
}

static co_fn int one_request(Queue *q, bool write, char *read_buffer)
{
    const Bench *bench = q->bench;
    uint64_t offset_bytes = next_slot(q) * bench->size_bytes;
    char *buffer = write ? q->buffers + bench->depth * stride_bytes(bench) : read_buffer;
    struct iovec iov = { buffer, bench->size_bytes };

    return write ? blk_co_pwritev(bench->blk, offset_bytes, iov.iov_len, &iov, 1, 0)
                 : blk_co_preadv(bench->blk, offset_bytes, iov.iov_len, &iov, 1, 0);
}

static co_fn void load_entry(void *opaque)
{
    Queue *q = opaque;
    Bench *bench = q->bench;
    char *read_buffer = q->buffers + q->started++ * stride_bytes(bench);

    while (!atomic_load_explicit(&bench->stop, memory_order_relaxed)) {
        bool write = bench->op == OP_WRITE || (bench->op == OP_RANDRW && next_random(q) >> 63);

        blk_acct_begin_batch(&q->acct);
        int64_t start_ns = blk_acct_batch_ns(&q->acct);
        int ret = one_request(q, write, read_buffer);

        blk_acct_end(&q->acct, write ? BLK_ACCT_WRITE : BLK_ACCT_READ, start_ns,
                     bench->size_bytes, ret < 0);
        if (ret < 0) {
            fail(bench, ret);
        }
    }
    if (--q->running == 0) {
        end_queue(q);
    }
}

/* In the queue's thread. */
static void start_queue_bh(void *opaque)
{
    Queue *q = opaque;
    unsigned nb = 0;

    q->running = 1; /* until all have been created */
    for (; nb < q->bench->depth; nb++) {
        Coroutine *co = co_create(load_entry, q);

        if (!co) {
            fail(q->bench, -ENOMEM);
            break;
        }
        q->running++;
        co_enter(co);
    }
    if (--q->running == 0) {
        end_queue(q);
    }
}

static void timeout_cb(void *opaque)
{
    Bench *bench = opaque;

    atomic_store(&bench->stop, true);
}

static int64_t cpu_now_ns(void)
{
    struct rusage ru;

    getrusage(RUSAGE_SELF, &ru);
    return (ru.ru_utime.tv_sec + ru.ru_stime.tv_sec) * INT64_C(1000000000) +
           (ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) * INT64_C(1000);
}

static main_fn void run_load(Bench *bench)
{
    AioTimer timer;
    int64_t start_cpu_ns = cpu_now_ns();
    int64_t start_ns = aio_now_ns();

    aio_timer_init(&timer, bench->tool.main, timeout_cb, bench);
    aio_timer_arm(&timer, start_ns + (int64_t)bench->runtime_s * 1000000000);
    atomic_store(&bench->busy, bench->nb_queues);
    for (unsigned i = 0; i < bench->nb_queues; i++) {
        aio_bh_schedule_oneshot(iothread_context(bench->queues[i].iothread), start_queue_bh,
                                &bench->queues[i]);
    }
    while (atomic_load(&bench->busy) > 0) {
        aio_poll(bench->tool.main, true);
        if (bench->tool.signal_received) {
            atomic_store(&bench->stop, true);
        }
    }
    bench->elapsed_ns = aio_now_ns() - start_ns;
    bench->cpu_ns = cpu_now_ns() - start_cpu_ns;
    aio_timer_disarm(&timer);
}

/* --- queues --- */

static main_fn int init_queue(Bench *bench, unsigned index, Error *err)
{
    Queue *q = &bench->queues[index];
    size_t all_bytes = stride_bytes(bench) * (bench->depth + 1);
    char id[16];

    q->bench = bench;
    q->random = 0x9E3779B97F4A7C15ULL * (index + 1);
    q->nb_slots = bench->nb_slots / bench->nb_queues;
    q->first_slot = index * q->nb_slots;
    blk_acct_init(&q->acct);
    if (posix_memalign((void **)&q->buffers, BUFFER_ALIGNMENT, all_bytes) != 0) {
        q->buffers = NULL;
        return error_set(err, -ENOMEM, "out of memory for the buffers");
    }
    for (size_t at = 0; at < all_bytes; at += sizeof(uint64_t)) {
        uint64_t word = next_random(q);

        memcpy(q->buffers + at, &word, sizeof(word));
    }
    snprintf(id, sizeof(id), "bench%u", index);
    q->iothread = bench->iothread.pinned
                      ? iothread_create_on(id, &bench->iothread.params, &bench->iothread.cpus, err)
                      : iothread_create(id, &bench->iothread.params, err);
    return q->iothread ? 0 : -EIO;
}

static main_fn void finish_queues(Bench *bench)
{
    for (unsigned i = 0; bench->queues && i < bench->nb_queues; i++) {
        Queue *q = &bench->queues[i];

        if (q->iothread) {
            iothread_unref(q->iothread); /* its last pass is over */
        }
        if (q->bench) {
            blk_acct_add(&q->acct, &bench->totals);
            blk_acct_finish(&q->acct);
        }
        free(q->buffers);
    }
    free(bench->queues);
    bench->queues = NULL;
}

static int check_fit(Bench *bench, Error *err)
{
    bench->nb_slots = blk_length(bench->blk) / bench->size_bytes;
    if (bench->nb_slots < bench->nb_queues) {
        return error_set(err, -EINVAL, "'%s': %" PRIu64 " bytes are too few for %" PRIu64
                         " queue(s) with requests of %" PRIu64,
                         bench->text, blk_length(bench->blk), bench->nb_queues, bench->size_bytes);
    }
    if (bench->op != OP_READ && blk_read_only(bench->blk)) {
        return error_set(err, -EROFS, "'%s' is read-only", bench->text);
    }
    return 0;
}

static main_fn int measure_open(Bench *bench, Error *err)
{
    int ret = check_fit(bench, err);

    if (ret < 0) {
        return ret;
    }
    bench->queues = calloc(bench->nb_queues, sizeof(*bench->queues));
    if (!bench->queues) {
        return error_set(err, -ENOMEM, "out of memory");
    }
    for (unsigned i = 0; ret == 0 && i < bench->nb_queues; i++) {
        ret = init_queue(bench, i, err);
    }
    if (ret == 0) {
        run_load(bench);
        ret = atomic_load(&bench->first_error);
        if (ret < 0) {
            error_set(err, ret, "'%s': a request failed: %s", bench->text, error_strerror(ret));
        }
    }
    finish_queues(bench);
    return ret;
}

static main_fn int measure(Bench *bench, Error *err)
{
    Opts opts;
    int ret = tool_parse_disk(&bench->tool, &opts, "DISK", bench->text, err);

    if (ret < 0) {
        return ret;
    }
    ret = tool_init(&bench->tool, err);
    if (ret == 0) {
        bench->blk = tool_open_disk(&bench->tool, "disk", &opts, bench->op != OP_READ, err);
        ret = bench->blk ? measure_open(bench, err) : -EIO;
    }
    opts_finish(&opts);
    return ret;
}

/* --- results --- */

static const unsigned percentiles[] = { 5000, 9000, 9900, 9990, 9999 };

static uint64_t sum_requests(const Bench *bench)
{
    return bench->totals.op[BLK_ACCT_READ].requests + bench->totals.op[BLK_ACCT_WRITE].requests;
}

static uint64_t sum_bytes(const Bench *bench)
{
    return bench->totals.op[BLK_ACCT_READ].bytes + bench->totals.op[BLK_ACCT_WRITE].bytes;
}

static void print_text(const Bench *bench)
{
    double seconds = (double)bench->elapsed_ns / 1e9;
    uint64_t requests = sum_requests(bench);
    char text[TOOL_BYTES_TEXT];

    printf("%s, %s, %s, depth %" PRIu64 ", %" PRIu64 " queue%s, %.2f s\n", op_names[bench->op],
           bench->sequential ? "sequential" : "random",
           tool_format_bytes(text, (double)bench->size_bytes), bench->depth, bench->nb_queues,
           bench->nb_queues == 1 ? "" : "s", seconds);
    printf("rate     %s/s, %.0f requests/s\n",
           tool_format_bytes(text, (double)sum_bytes(bench) / seconds), (double)requests / seconds);
    printf("CPU      %.0f ns/request\n", requests ? (double)bench->cpu_ns / (double)requests : 0);
    printf("latency  %10s %10s %10s %10s %10s %10s  us\n", "mean", "p50", "p90", "p99", "p99.9",
           "p99.99");
    for (unsigned i = 0; i < BLK_ACCT_NB_OPS; i++) {
        const BlkAcctOpTotals *op = &bench->totals.op[i];

        if (op->requests == 0) {
            continue;
        }
        printf("  %-6s %10.1f", blk_acct_op_names[i],
               (double)op->sum_ns / (double)op->requests / 1e3);
        for (unsigned p = 0; p < ARRAY_SIZE(percentiles); p++) {
            printf(" %10.1f", (double)blk_acct_percentile_ns(op, percentiles[p]) / 1e3);
        }
        putchar('\n');
    }
}

static void print_json(const Bench *bench)
{
    static const char *const keys[] = { "p50_ns", "p90_ns", "p99_ns", "p99_9_ns", "p99_99_ns" };
    double seconds = (double)bench->elapsed_ns / 1e9;
    uint64_t requests = sum_requests(bench);

    printf("{\"disk\": ");
    tool_put_json_string(bench->text);
    printf(", \"op\": \"%s\", \"pattern\": \"%s\", \"size_bytes\": %" PRIu64 ", \"depth\": %" PRIu64
           ", \"queues\": %" PRIu64 ",\n",
           op_names[bench->op], bench->sequential ? "seq" : "rand", bench->size_bytes, bench->depth,
           bench->nb_queues);
    printf(" \"elapsed_ns\": %" PRId64 ", \"requests\": %" PRIu64 ", \"requests_per_s\": %.1f"
           ", \"bytes_per_s\": %.0f, \"cpu_ns_per_request\": %.1f",
           bench->elapsed_ns, requests, (double)requests / seconds,
           (double)sum_bytes(bench) / seconds,
           requests ? (double)bench->cpu_ns / (double)requests : 0);
    for (unsigned i = 0; i < BLK_ACCT_NB_OPS; i++) {
        const BlkAcctOpTotals *op = &bench->totals.op[i];

        if (op->requests == 0) {
            continue;
        }
        printf(",\n \"%s\": {\"requests\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"mean_ns\": %.0f",
               blk_acct_op_names[i], op->requests, op->bytes,
               (double)op->sum_ns / (double)op->requests);
        for (unsigned p = 0; p < ARRAY_SIZE(percentiles); p++) {
            printf(", \"%s\": %" PRId64, keys[p], blk_acct_percentile_ns(op, percentiles[p]));
        }
        putchar('}');
    }
    puts("}");
}

static main_fn int run_bench(Bench *bench)
{
    Error err = { 0 };
    int status = 0;

    if (measure(bench, &err) < 0) {
        status = tool_fail(&bench->tool, err.msg);
    } else {
        status =
            bench->tool.signal_received ? MACHINE_EXIT_SIGNAL + bench->tool.signal_received : 0;
        if (bench->json) {
            print_json(bench);
        } else {
            print_text(bench);
        }
    }
    int ret = bench->blk ? blk_close(bench->blk) : 0;

    if (ret < 0) {
        cmd_complain("bench: '%s': the last flush failed: %s", bench->text, error_strerror(ret));
        status = status ? status : MACHINE_EXIT_HOST_FAILURE;
    }
    tool_finish(&bench->tool);
    return status;
}

/* --- command line --- */

static const char bench_help[] =
    "usage: penstock bench [options] DISK\n"
    "\n"
    "Measures a disk through penstock's block layer, without a guest. DISK is what penstock run\n"
    "takes for --disk: a path, an NBD URI, or a list such as disk.img,cache=none.\n"
    "\n"
    "  --op read|write|randrw  (default read) randrw: as many writes as reads\n"
    "  --allow-write           needed for write and randrw: what is on DISK is overwritten\n"
    "  --pattern rand|seq      (default rand) seq: each queue in its own part of the disk\n"
    "  --size SIZE             of a request, a multiple of 512 up to 64M (default 4K)\n"
    "  --depth N               requests in flight a queue, 1 to 1024 (default 32)\n"
    "  --queues N              threads with a queue each, 1 to 64 (default 1)\n"
    "  --iothread poll-max-ns=N,...\n"
    "                          what these threads are like: all that penstock run's --iothread\n"
    "                          takes, but for id=\n"
    "  --runtime S             seconds (default 5)\n"
    "  --json                  results for a program\n"
    "  --help\n"
    "\n"
    "exit status: 0, 1 the disk or the host failed, 2 bad command line, 128+N ended by signal N\n"
    "(with results so far)\n";

static int take_choice(const char *option, const char *value, const char *const *names, int *choice,
                       Error *err)
{
    for (int i = 0; names[i]; i++) {
        if (strcmp(names[i], value) == 0) {
            *choice = i;
            return 0;
        }
    }
    return error_set(err, -EINVAL, "%s: '%s' is unknown; see penstock bench --help", option, value);
}

static int take_iothread(Bench *bench, const char *text, Error *err)
{
    Opts opts;
    int ret = opts_parse(&opts, "--iothread", text, NULL, err);

    if (ret == 0) {
        ret = config_take_iothread(&opts, &bench->iothread, err);
        opts_finish(&opts);
    }
    return ret;
}

static int take_option(Bench *bench, int option, bool *help, Error *err)
{
    static const char *const patterns[] = { "rand", "seq", NULL };
    int choice = 0, ret;

    switch (option) {
    case 'o':
        ret = take_choice("--op", optarg, op_names, &choice, err);
        bench->op = (Operation)choice;
        return ret;
    case 'p':
        ret = take_choice("--pattern", optarg, patterns, &choice, err);
        bench->sequential = choice == 1;
        return ret;
    case 's':
        return opts_parse_size("--size", optarg, 512, SIZE_BYTES_MAX, &bench->size_bytes, err);
    case 'd':
        return opts_parse_u64("--depth", optarg, 1, DEPTH_MAX, &bench->depth, err);
    case 'q':
        return opts_parse_u64("--queues", optarg, 1, CONFIG_QUEUES_MAX, &bench->nb_queues, err);
    case 'r':
        return opts_parse_u64("--runtime", optarg, 1, RUNTIME_S_MAX, &bench->runtime_s, err);
    case 'i':
        return take_iothread(bench, optarg, err);
    case 'w':
        bench->may_write = true;
        return 0;
    case 'j':
        bench->json = true;
        return 0;
    default:
        *help = true;
        return 0;
    }
}

static int check_whole(const Bench *bench, Error *err)
{
    if (bench->size_bytes % 512 != 0) {
        return error_set(err, -EINVAL, "--size: %" PRIu64 " is not a multiple of 512",
                         bench->size_bytes);
    }
    if (bench->size_bytes * bench->depth * bench->nb_queues > MEMORY_BYTES_MAX) {
        return error_set(err, -EINVAL, "--size, --depth and --queues: buffers of more than 4 GiB");
    }
    if (bench->op == OP_RANDRW && bench->sequential) {
        return error_set(err, -EINVAL, "--op randrw is random; --pattern seq does not go with it");
    }
    if (bench->op != OP_READ && !bench->may_write) {
        return error_set(err, -EINVAL, "--op %s overwrites '%s'; --allow-write says that it may",
                         op_names[bench->op], bench->text);
    }
    return 0;
}

static int parse(Bench *bench, int argc, char **argv, bool *help, Error *err)
{
    static const struct option options[] = {
        { "op", required_argument, NULL, 'o' },     { "pattern", required_argument, NULL, 'p' },
        { "size", required_argument, NULL, 's' },   { "depth", required_argument, NULL, 'd' },
        { "queues", required_argument, NULL, 'q' }, { "runtime", required_argument, NULL, 'r' },
        { "iothread", required_argument, NULL, 'i' }, { "allow-write", no_argument, NULL, 'w' },
        { "json", no_argument, NULL, 'j' },         { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 },
    };
    int option, ret;

    optind = 0;
    opterr = 0;
    while ((option = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        if (option == ':') {
            return error_set(err, -EINVAL, "%s needs a value", argv[optind - 1]);
        }
        if (option == '?') {
            return error_set(err, -EINVAL, "unknown option %s; see penstock bench --help",
                             argv[optind - 1]);
        }
        if ((ret = take_option(bench, option, help, err)) < 0 || *help) {
            return ret;
        }
    }
    if (argc - optind != 1) {
        return error_set(err, -EINVAL, "one DISK expected, not %d; see penstock bench --help",
                         argc - optind);
    }
    bench->text = argv[optind];
    return check_whole(bench, err);
}

int cmd_bench(int argc, char **argv)
{
    Bench *bench = calloc(1, sizeof(*bench));
    bool help = false;
    Error err;
    int status = 0;

    assert_main();
    if (!bench) {
        cmd_complain("out of memory");
        return MACHINE_EXIT_HOST_FAILURE;
    }
    bench->tool = (Tool)TOOL_INIT("bench");
    bench->size_bytes = 4096;
    bench->depth = 32;
    bench->nb_queues = 1;
    bench->runtime_s = 5;
    bench->iothread.params = (AioParams)AIO_PARAMS_POLLING;
    if (parse(bench, argc, argv, &help, &err) < 0) {
        cmd_complain("bench: %s", err.msg);
        status = MACHINE_EXIT_USAGE;
    } else if (help) {
        fputs(bench_help, stdout);
    } else {
        status = run_bench(bench);
    }
    free(bench);
    return status;
}
