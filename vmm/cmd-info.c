/*
 * cmd-info.c - `penstock info`: what a disk is, and how much of it is allocated
 *
 * It only reads, and takes no lock of its own, so it may be asked about a disk that a guest uses.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "vmm/cmd.h"
#include "vmm/machine.h"
#include "vmm/tool.h"

#define NB_STATUSES 4 /* all combinations of BLK_STATUS_DATA and BLK_STATUS_ZERO */

typedef struct Info {
    Tool tool;
    const char *text; /* DISK */
    bool json;
    BlockBackend *blk;
    uint64_t bytes[NB_STATUSES], extents[NB_STATUSES];
    int ret;
} Info;

static const struct {
    const char *key, *words;
} statuses[NB_STATUSES] = {
    [0] = { "unknown", "unallocated" },
    [BLK_STATUS_DATA] = { "data", "data" },
    [BLK_STATUS_ZERO] = { "zero", "zero, not allocated" },
    [BLK_STATUS_DATA | BLK_STATUS_ZERO] = { "allocated_zero", "zero, allocated" },
};

/* Neighbours of one status are one extent. */
static co_fn void walk_entry(void *opaque)
{
    Info *info = opaque;
    uint64_t length_bytes = blk_length(info->blk), len_bytes;
    int last = -1;

    for (uint64_t at = 0; at < length_bytes && info->tool.signal_received == 0; at += len_bytes) {
        int status = blk_co_block_status(info->blk, at, length_bytes - at, &len_bytes);

        if (status < 0) {
            info->ret = status;
            return;
        }
        status &= BLK_STATUS_DATA | BLK_STATUS_ZERO;
        info->bytes[status] += len_bytes;
        info->extents[status] += status != last;
        last = status;
    }
}

static const char *cache_name(BlkCache cache)
{
    return cache == BLK_CACHE_NONE ? "none" : cache == BLK_CACHE_WRITETHROUGH ? "writethrough"
                                                                                : "writeback";
}

static void print_text(const Info *info)
{
    const BlockNode *node = blk_node(info->blk);
    const BlockLimits *l = blk_limits(info->blk);
    char text[TOOL_BYTES_TEXT];

    printf("disk       %s\n", node->name);
    printf("driver     %s\n", node->driver->name);
    printf("length     %" PRIu64 " bytes, %s\n", blk_length(info->blk),
           tool_format_bytes(text, (double)blk_length(info->blk)));
    printf("cache      %s\n", cache_name(node->cache));
    printf("blocks     logical %" PRIu32 ", physical %" PRIu32 " bytes\n", l->logical_block_bytes,
           l->physical_block_bytes);
    printf("alignment  requests %" PRIu32 ", memory %" PRIu32 ", discards %" PRIu32 " bytes\n",
           l->request_alignment, l->buffer_alignment, l->discard_alignment);
    printf("at once    %s in %" PRIu32 " segments\n",
           tool_format_bytes(text, l->max_transfer_bytes), l->max_iov);
    for (unsigned i = 0; i < NB_STATUSES; i++) {
        if (info->extents[i] > 0) {
            printf("%-10s %" PRIu64 " bytes, %s, in %" PRIu64 " extent%s\n", statuses[i].key,
                   info->bytes[i], tool_format_bytes(text, (double)info->bytes[i]),
                   info->extents[i], info->extents[i] == 1 ? "" : "s");
        }
    }
}

static void print_json(const Info *info)
{
    const BlockNode *node = blk_node(info->blk);
    const BlockLimits *l = blk_limits(info->blk);

    printf("{\"disk\": ");
    tool_put_json_string(node->name);
    printf(", \"driver\": \"%s\", \"length_bytes\": %" PRIu64 ", \"cache\": \"%s\",\n",
           node->driver->name, blk_length(info->blk), cache_name(node->cache));
    printf(" \"limits\": {\"request_alignment\": %" PRIu32 ", \"buffer_alignment\": %" PRIu32
           ", \"discard_alignment\": %" PRIu32 ", \"optimal_io_bytes\": %" PRIu32
           ", \"max_transfer_bytes\": %" PRIu32 ", \"max_iov\": %" PRIu32,
           l->request_alignment, l->buffer_alignment, l->discard_alignment, l->optimal_io_bytes,
           l->max_transfer_bytes, l->max_iov);
    printf(", \"max_discard_bytes\": %" PRIu64 ", \"max_write_zeroes_bytes\": %" PRIu64
           ", \"logical_block_bytes\": %" PRIu32 ", \"physical_block_bytes\": %" PRIu32 "},\n",
           l->max_discard_bytes, l->max_write_zeroes_bytes, l->logical_block_bytes,
           l->physical_block_bytes);
    printf(" \"status\": {");
    for (unsigned i = 0; i < NB_STATUSES; i++) {
        printf("%s\"%s\": {\"bytes\": %" PRIu64 ", \"extents\": %" PRIu64 "}", i ? ", " : "",
               statuses[i].key, info->bytes[i], info->extents[i]);
    }
    printf("}}\n");
}

/* A disk in use may be looked at. */
static int open_disk(Info *info, Opts *opts, Error *err)
{
    int ret = 0;

    if (bdrv_find_driver(opts, NULL) == &bdrv_file && !opts_has(opts, "locking")) {
        ret = opts_add(opts, "locking", "off", err);
    }
    if (ret == 0) {
        assert_main();
        info->blk = tool_open_disk(&info->tool, "disk", opts, false, err);
    }
    return info->blk ? 0 : -EIO;
}

static main_fn int look(Info *info, Error *err)
{
    Opts opts;
    int ret = tool_parse_disk(&info->tool, &opts, "DISK", info->text, err);

    if (ret < 0) {
        return ret;
    }
    ret = tool_init(&info->tool, err);
    if (ret == 0) {
        ret = open_disk(info, &opts, err);
    }
    if (ret == 0) {
        aio_co_run_sync(info->tool.main, walk_entry, info);
        ret = info->ret < 0 ? error_set(err, info->ret, "'%s': block status: %s", info->text,
                                        error_strerror(info->ret))
                            : 0;
    }
    opts_finish(&opts);
    return ret;
}

static main_fn int run_info(Info *info)
{
    Error err = { 0 };
    int status = 0;

    if (look(info, &err) < 0) {
        status = tool_fail(&info->tool, err.msg);
    } else if (info->tool.signal_received) {
        status = MACHINE_EXIT_SIGNAL + info->tool.signal_received;
    } else if (info->json) {
        print_json(info);
    } else {
        print_text(info);
    }
    if (info->blk && blk_close(info->blk) < 0) {
        status = status ? status : MACHINE_EXIT_HOST_FAILURE;
    }
    tool_finish(&info->tool);
    return status;
}

static const char info_help[] =
    "usage: penstock info [--json] DISK\n"
    "\n"
    "Tells the driver, length and limits of a disk and how much of it is allocated. DISK is what\n"
    "penstock run takes for --disk: a path, an NBD URI, or a list such as driver=null,size=1G. It\n"
    "may be in use: nothing is written, and no lock is taken.\n"
    "\n"
    "  --json    the same for a program\n"
    "  --help\n"
    "\n"
    "exit status: 0, 1 the disk cannot be opened or read, 2 bad command line\n";

int cmd_info(int argc, char **argv)
{
    static const struct option options[] = { { "json", no_argument, NULL, 'j' },
                                             { "help", no_argument, NULL, 'h' },
                                             { NULL, 0, NULL, 0 } };
    Info info = { .tool = TOOL_INIT("info") };
    int option;

    assert_main();
    optind = 0;
    opterr = 0;
    while ((option = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        if (option == 'h') {
            fputs(info_help, stdout);
            return 0;
        }
        if (option != 'j') {
            cmd_complain("info: unknown option %s; see penstock info --help", argv[optind - 1]);
            return MACHINE_EXIT_USAGE;
        }
        info.json = true;
    }
    if (argc - optind != 1) {
        cmd_complain("info: one DISK expected, not %d; see penstock info --help", argc - optind);
        return MACHINE_EXIT_USAGE;
    }
    info.text = argv[optind];
    return run_info(&info);
}
