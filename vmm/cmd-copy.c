/*
 * cmd-copy.c - `penstock copy`: one disk's contents to another
 *
 *     cursor (block status of the source) --> chunks --> coroutines: read, find zeroes, write
 *
 * Everything runs in the main context. A chunk belongs to one coroutine, so the order in which
 * chunks are written does not matter.
 *
 * Sparse is kept: what the source says is zero is not read, and read zeroes are not written as
 * data. A file that was created for the copy has holes there; any other destination is told to
 * write zeroes, for it may hold something else.
 *
 * No user's file is lost: what exists is overwritten with --force alone, and never made shorter or
 * longer; what is beyond the source's length stays. A file that was created is removed again unless
 * the copy is whole. The result is flushed before it is called whole.
 */
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/aio/co-mutex.h"
#include "vmm/cmd.h"
#include "vmm/machine.h"
#include "vmm/tool.h"

#define CHUNK_BYTES      (1u << 20)
#define ZEROES_BYTES_MAX (64u << 20) /* one write of zeroes: so that progress is seen */
#define ZERO_UNIT_BYTES  (64u << 10) /* zeroes in data are looked for in units of this */
#define BUFFER_ALIGNMENT 4096
#define WORKERS_DEFAULT  16
#define WORKERS_MAX      256
#define PROGRESS_NS      200000000
#define BAR_COLUMNS      24

typedef struct Copy {
    Tool tool;
    const char *src_text, *dst_text;
    bool force, json, show_progress;
    uint64_t nb_workers;
    BlockBackend *src, *dst;
    char *created; /* path of the file that was made for it; NULL = none */
    struct stat created_stat;
    uint64_t length_bytes;
    int ret; /* of what failed first */
    const char *failed; /* what that was */
    uint64_t failed_at_bytes;
    unsigned running;
    CoMutex cursor_lock;
    uint64_t next_bytes, extent_end_bytes; /* cursor: what is before next is given out */
    bool extent_zero;
    uint64_t done_bytes, data_bytes, zero_bytes;
    int64_t start_ns;
    AioTimer progress;
} Copy;

typedef struct Chunk {
    uint64_t offset_bytes, len_bytes;
    bool zero; /* by the source's word */
} Chunk;

/* --- work --- */

static void fail(Copy *copy, int ret, const char *what, uint64_t at_bytes)
{
    if (copy->ret == 0) {
        copy->ret = ret;
        copy->failed = what;
        copy->failed_at_bytes = at_bytes;
    }
}

static bool must_stop(const Copy *copy)
{
    return copy->ret < 0 || copy->tool.signal_received != 0;
}

/* True: @ret_chunk is the caller's. False: there is no more, or the source failed. */
static co_fn bool next_chunk(Copy *copy, Chunk *ret_chunk)
{
    uint64_t len_bytes;
    bool taken = false;

    co_mutex_lock(&copy->cursor_lock);
    if (!must_stop(copy) && copy->next_bytes < copy->length_bytes) {
        if (copy->next_bytes == copy->extent_end_bytes) {
            int status = blk_co_block_status(copy->src, copy->next_bytes,
                                             copy->length_bytes - copy->next_bytes, &len_bytes);

            if (status < 0) {
                fail(copy, status, "block status of the source", copy->next_bytes);
                len_bytes = 0;
            }
            copy->extent_zero = status > 0 && (status & BLK_STATUS_ZERO);
            copy->extent_end_bytes += len_bytes;
        }
        len_bytes = MIN(copy->extent_end_bytes - copy->next_bytes,
                        (uint64_t)(copy->extent_zero ? ZEROES_BYTES_MAX : CHUNK_BYTES));
        taken = len_bytes > 0;
        *ret_chunk = (Chunk){ copy->next_bytes, len_bytes, copy->extent_zero };
        copy->next_bytes += len_bytes;
    }
    co_mutex_unlock(&copy->cursor_lock);
    return taken;
}

static co_fn void put_zeroes(Copy *copy, uint64_t offset_bytes, uint64_t len_bytes)
{
    int ret = 0;

    if (!copy->created) {
        ret = blk_co_pwrite_zeroes(copy->dst, offset_bytes, len_bytes, BLK_MAY_UNMAP);
    }
    if (ret < 0) {
        fail(copy, ret, "writing zeroes", offset_bytes);
        return;
    }
    copy->zero_bytes += len_bytes;
    copy->done_bytes += len_bytes;
}

static co_fn void put_data(Copy *copy, uint64_t offset_bytes, char *data, size_t len_bytes)
{
    struct iovec iov = { data, len_bytes };
    int ret = blk_co_pwritev(copy->dst, offset_bytes, len_bytes, &iov, 1, 0);

    if (ret < 0) {
        fail(copy, ret, "writing", offset_bytes);
        return;
    }
    copy->data_bytes += len_bytes;
    copy->done_bytes += len_bytes;
}

static bool is_zero(const char *data, size_t len_bytes)
{
    return data[0] == 0 && memcmp(data, data + 1, len_bytes - 1) == 0;
}

/* What was read, in runs of units that are zero or are not. */
static co_fn void put_runs(Copy *copy, const Chunk *chunk, char *buffer)
{
    size_t at = 0;

    while (at < chunk->len_bytes && !must_stop(copy)) {
        size_t unit = MIN(chunk->len_bytes - at, (size_t)ZERO_UNIT_BYTES);
        bool zero = is_zero(buffer + at, unit);
        size_t end = at + unit;

        while (end < chunk->len_bytes) {
            unit = MIN(chunk->len_bytes - end, (size_t)ZERO_UNIT_BYTES);
            if (is_zero(buffer + end, unit) != zero) {
                break;
            }
            end += unit;
        }
        if (zero) {
            put_zeroes(copy, chunk->offset_bytes + at, end - at);
        } else {
            put_data(copy, chunk->offset_bytes + at, buffer + at, end - at);
        }
        at = end;
    }
}

static co_fn void copy_data(Copy *copy, const Chunk *chunk, char *buffer)
{
    struct iovec iov = { buffer, chunk->len_bytes };
    int ret = blk_co_preadv(copy->src, chunk->offset_bytes, chunk->len_bytes, &iov, 1, 0);

    if (ret < 0) {
        fail(copy, ret, "reading", chunk->offset_bytes);
        return;
    }
    put_runs(copy, chunk, buffer);
}

static co_fn void worker_entry(void *opaque)
{
    Copy *copy = opaque;
    void *buffer = NULL;
    Chunk chunk;

    if (posix_memalign(&buffer, BUFFER_ALIGNMENT, CHUNK_BYTES) != 0) {
        buffer = NULL;
        fail(copy, -ENOMEM, "starting", 0);
    } else {
        memset(buffer, 0, CHUNK_BYTES); /* a null disk leaves it as it is */
    }
    while (buffer && next_chunk(copy, &chunk)) {
        if (chunk.zero) {
            put_zeroes(copy, chunk.offset_bytes, chunk.len_bytes);
        } else {
            copy_data(copy, &chunk, buffer);
        }
    }
    free(buffer);
    copy->running--;
    aio_notify(copy->tool.main);
}

static co_fn void flush_entry(void *opaque)
{
    Copy *copy = opaque;
    int ret = blk_co_flush(copy->dst);

    if (ret < 0) {
        fail(copy, ret, "the flush", copy->length_bytes);
    }
}

/* --- progress --- */

static void print_progress(const Copy *copy)
{
    double seconds = (double)(aio_now_ns() - copy->start_ns) / 1e9;
    double rate = seconds > 0 ? (double)copy->done_bytes / seconds : 0;
    uint64_t left_s = rate > 0 ? (uint64_t)((double)(copy->length_bytes - copy->done_bytes) / rate)
                               : 0;
    double part = (double)copy->done_bytes / (double)copy->length_bytes;
    char bar[BAR_COLUMNS + 1], done[TOOL_BYTES_TEXT], all[TOOL_BYTES_TEXT], per_s[TOOL_BYTES_TEXT];

    for (unsigned i = 0; i < BAR_COLUMNS; i++) {
        bar[i] = i < part * BAR_COLUMNS ? '#' : '-';
    }
    bar[BAR_COLUMNS] = '\0';
    fprintf(stderr, "\r\033[K[%s] %3.0f %%  %s of %s  %s/s  %" PRIu64 ":%02" PRIu64 " left", bar,
            part * 100, tool_format_bytes(done, (double)copy->done_bytes),
            tool_format_bytes(all, (double)copy->length_bytes), tool_format_bytes(per_s, rate),
            left_s / 60, left_s % 60);
    fflush(stderr);
}

static void progress_cb(void *opaque)
{
    Copy *copy = opaque;

    print_progress(copy);
    aio_timer_arm(&copy->progress, aio_now_ns() + PROGRESS_NS);
}

static main_fn void run_workers(Copy *copy)
{
    copy->start_ns = aio_now_ns();
    aio_timer_init(&copy->progress, copy->tool.main, progress_cb, copy);
    if (copy->show_progress) {
        progress_cb(copy);
    }
    for (unsigned i = 0; i < copy->nb_workers; i++) {
        Coroutine *co = co_create(worker_entry, copy);

        if (!co) {
            fail(copy, -ENOMEM, "starting", 0);
            break;
        }
        copy->running++;
        co_enter(co);
    }
    AIO_WAIT_WHILE(copy->tool.main, copy->running > 0);
    if (!must_stop(copy)) {
        aio_co_run_sync(copy->tool.main, flush_entry, copy);
    }
    aio_timer_disarm(&copy->progress);
    if (copy->show_progress) {
        print_progress(copy);
        fputc('\n', stderr);
    }
}

/* --- the destination --- */

static int refuse_existing(Copy *copy, Error *err)
{
    copy->tool.usage = true;
    return error_set(err, -EEXIST, "'%s' exists; --force overwrites it", copy->dst_text);
}

static int create_file(Copy *copy, const char *path, Error *err)
{
    AUTO_FD int fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);

    if (fd < 0) {
        int ret = -errno;

        if (ret == -EEXIST) {
            return copy->force ? 0 : refuse_existing(copy, err);
        }
        return error_set(err, ret, "cannot create '%s': %s", path, error_strerror(ret));
    }
    copy->created = strdup(path);
    if (!copy->created || fstat(fd, &copy->created_stat) < 0) {
        unlink(path);
        free(copy->created);
        copy->created = NULL;
        return error_set(err, -ENOMEM, "out of memory");
    }
    copy->tool.begun = true;
    if (ftruncate(fd, (off_t)copy->length_bytes) < 0) {
        return error_set(err, -errno, "cannot make '%s' %" PRIu64 " bytes long: %s", path,
                         copy->length_bytes, error_strerror(errno));
    }
    return 0;
}

/* Unless somebody has put another file there meanwhile. */
static void remove_created(Copy *copy)
{
    struct stat st;

    if (copy->created && stat(copy->created, &st) == 0 &&
        st.st_ino == copy->created_stat.st_ino && st.st_dev == copy->created_stat.st_dev &&
        unlink(copy->created) == 0 && copy->done_bytes > 0) {
        cmd_complain("copy: '%s', of which a part was there, has been removed", copy->created);
    }
}

static main_fn int open_destination(Copy *copy, Opts *opts, Error *err)
{
    const BlockDriver *driver = bdrv_find_driver(opts, err);
    int ret = 0;

    if (!driver) {
        copy->tool.usage = true;
        return -EINVAL;
    }
    if (driver == &bdrv_file && opts_has(opts, "path")) {
        ret = create_file(copy, opts_get(opts, "path"), err);
    } else if (!copy->force && driver != &bdrv_null) {
        ret = refuse_existing(copy, err);
    }
    if (ret < 0) {
        return ret;
    }
    copy->dst = tool_open_disk(&copy->tool, "dst", opts, true, err);
    if (!copy->dst) {
        return -EIO;
    }
    if (blk_read_only(copy->dst)) {
        return error_set(err, -EROFS, "'%s' is read-only", copy->dst_text);
    }
    if (blk_length(copy->dst) < copy->length_bytes) {
        return error_set(err, -ENOSPC,
                         "'%s' has %" PRIu64 " bytes, too few for the %" PRIu64 " of '%s'",
                         copy->dst_text, blk_length(copy->dst), copy->length_bytes, copy->src_text);
    }
    return 0;
}

/* --- all of it --- */

static main_fn int copy_open(Copy *copy, Opts *src, Opts *dst, Error *err)
{
    int ret = tool_init(&copy->tool, err);

    if (ret < 0) {
        return ret;
    }
    copy->src = tool_open_disk(&copy->tool, "src", src, false, err);
    if (!copy->src) {
        return -EIO;
    }
    copy->length_bytes = blk_length(copy->src);
    ret = open_destination(copy, dst, err);
    if (ret < 0) {
        return ret;
    }
    run_workers(copy);
    if (copy->ret < 0) {
        return error_set(err, copy->ret, "'%s' to '%s': %s failed at byte %" PRIu64 ": %s",
                         copy->src_text, copy->dst_text, copy->failed, copy->failed_at_bytes,
                         error_strerror(copy->ret));
    }
    return 0;
}

static main_fn int copy_disks(Copy *copy, Error *err)
{
    Opts src, dst;
    int ret = tool_parse_disk(&copy->tool, &src, "SRC", copy->src_text, err);

    if (ret < 0) {
        return ret;
    }
    ret = tool_parse_disk(&copy->tool, &dst, "DST", copy->dst_text, err);
    if (ret == 0) {
        ret = copy_open(copy, &src, &dst, err);
        opts_finish(&dst);
    }
    opts_finish(&src);
    return ret;
}

static void print_result(const Copy *copy)
{
    double seconds = (double)(aio_now_ns() - copy->start_ns) / 1e9;
    char length[TOOL_BYTES_TEXT], data[TOOL_BYTES_TEXT], rate[TOOL_BYTES_TEXT];

    if (copy->json) {
        printf("{\"length_bytes\": %" PRIu64 ", \"data_bytes\": %" PRIu64
               ", \"zero_bytes\": %" PRIu64 ", \"elapsed_s\": %.3f, \"bytes_per_s\": %.0f}\n",
               copy->length_bytes, copy->data_bytes, copy->zero_bytes, seconds,
               (double)copy->length_bytes / seconds);
    } else {
        printf("copied %s, %s of it data, in %.2f s: %s/s\n",
               tool_format_bytes(length, (double)copy->length_bytes),
               tool_format_bytes(data, (double)copy->data_bytes), seconds,
               tool_format_bytes(rate, (double)copy->length_bytes / seconds));
    }
}

/* The disks are closed before a partial file is removed. Returns the exit status. */
static main_fn int close_disks(Copy *copy, int status)
{
    int ret = copy->dst ? blk_close(copy->dst) : 0;

    if (ret < 0 && status == 0) {
        cmd_complain("copy: '%s': the last flush failed: %s", copy->dst_text, error_strerror(ret));
        status = MACHINE_EXIT_HOST_FAILURE;
    }
    if (copy->src && blk_close(copy->src) < 0) {
        cmd_complain("copy: '%s' was not closed well", copy->src_text);
    }
    if (status != 0 && copy->created) {
        remove_created(copy);
    } else if (status != 0 && copy->data_bytes + copy->zero_bytes > 0) {
        cmd_complain("copy: a part of '%s' has been overwritten", copy->dst_text);
    }
    free(copy->created);
    return status;
}

static main_fn int run_copy(Copy *copy)
{
    Error err = { 0 };
    int status = 0;

    if (copy_disks(copy, &err) < 0) {
        status = tool_fail(&copy->tool, err.msg);
    } else if (copy->tool.signal_received) {
        cmd_complain("copy: ended by signal %d", copy->tool.signal_received);
        status = MACHINE_EXIT_SIGNAL + copy->tool.signal_received;
    }
    status = close_disks(copy, status);
    if (status == 0) {
        print_result(copy);
    }
    tool_finish(&copy->tool);
    return status;
}

static const char copy_help[] =
    "usage: penstock copy [options] SRC DST\n"
    "\n"
    "Copies a disk's contents. SRC and DST are what penstock run takes for --disk: a path, an NBD\n"
    "URI, or a list such as disk.img,cache=none. A DST that does not exist is created, as a file\n"
    "of SRC's length with holes where SRC has zeroes; it is removed again if the copy does not\n"
    "succeed.\n"
    "\n"
    "  --force       overwrite a DST that exists; it must be long enough, and keeps its length\n"
    "  --parallel N  requests at once, 1 to 256 (default 16)\n"
    "  --json        the result for a program\n"
    "  --help\n"
    "\n"
    "exit status: 0 all is copied and flushed, 1 a disk failed, 2 bad command line or DST exists,\n"
    "128+N ended by signal N\n";

static int parse(Copy *copy, int argc, char **argv, bool *help, Error *err)
{
    static const struct option options[] = {
        { "force", no_argument, NULL, 'f' }, { "parallel", required_argument, NULL, 'p' },
        { "json", no_argument, NULL, 'j' },  { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 },
    };
    int option, ret;

    optind = 0;
    opterr = 0;
    while ((option = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        switch (option) {
        case 'f':
            copy->force = true;
            break;
        case 'j':
            copy->json = true;
            break;
        case 'p':
            ret = opts_parse_u64("--parallel", optarg, 1, WORKERS_MAX, &copy->nb_workers, err);
            if (ret < 0) {
                return ret;
            }
            break;
        case 'h':
            *help = true;
            return 0;
        case ':':
            return error_set(err, -EINVAL, "%s needs a value", argv[optind - 1]);
        default:
            return error_set(err, -EINVAL, "unknown option %s; see penstock copy --help",
                             argv[optind - 1]);
        }
    }
    if (argc - optind != 2) {
        return error_set(err, -EINVAL, "SRC and DST expected; see penstock copy --help");
    }
    copy->src_text = argv[optind];
    copy->dst_text = argv[optind + 1];
    return 0;
}

int cmd_copy(int argc, char **argv)
{
    Copy copy = { .tool = TOOL_INIT("copy"), .nb_workers = WORKERS_DEFAULT };
    bool help = false;
    Error err;

    assert_main();
    if (parse(&copy, argc, argv, &help, &err) < 0) {
        cmd_complain("copy: %s", err.msg);
        return MACHINE_EXIT_USAGE;
    }
    if (help) {
        fputs(copy_help, stdout);
        return 0;
    }
    copy.show_progress = isatty(STDERR_FILENO);
    co_mutex_init(&copy.cursor_lock);
    int status = run_copy(&copy);

    co_mutex_finish(&copy.cursor_lock);
    return status;
}
