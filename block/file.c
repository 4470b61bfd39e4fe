/*
 * file.c - a raw image: a regular file or a block device
 *
 * path=FILE, locking=on|off|auto, and of the common options: cache=none|writeback|writethrough,
 * readonly=on
 *
 * Page cache or not. cache=none opens with O_DIRECT and fails with a hint where that cannot be;
 * when cache= was not given, O_DIRECT is tried and the page cache taken instead, with a log line.
 *
 * Alignment under O_DIRECT comes from statx(2), else from the block device, else from trial reads.
 * A regular file still tells the guest 512-byte logical blocks whatever O_DIRECT needs, because
 * the partition table inside was written for such; block-io.c makes up the difference.
 *
 * The length of a regular file that is no multiple of 512 is rounded up, so that all of its bytes
 * can be read; what lies beyond its end reads as zeroes. A guest that writes its last sector
 * extends the file to the full sector: anything else would lose what the guest wrote. But for that,
 * only blk_truncate() changes a file's size; a device's is changed by others, and blk_truncate() to
 * what it is by now makes the disk that long. Where O_DIRECT needs more than 512 and the length is
 * no multiple of it, the last block could not be written without growing the file further: such an
 * image is opened through the page cache, or read-only.
 *
 * A file may shrink while it is open, behind our back. What was cut off is lost, so reads of it
 * fail with -EIO instead of giving zeroes; writes extend the file again, up to the length that the
 * disk has. So do reads of a device that has become smaller or has gone.
 *
 * When the kernel cannot write its page cache back it says so once, to the next sync, and takes the
 * pages for clean. A later sync that succeeds says nothing of them, so after one that has failed no
 * flush succeeds until the image is opened again: who retries must not be told that all is well.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "block/block-driver.h"
#include "block/file-lock.h"
#include "block/iov.h"
#include "io/aio/aio-file.h"
#include "io/aio/aio-worker.h"
#include "io/base/log.h"

/* The image or its file system will not do, as against an option that is wrong (-EINVAL): callers
 * tell the user's mistakes on the command line from what the host has. */
#define FILE_UNFIT (-EMEDIUMTYPE)

#define SECTOR_BYTES         512
#define LENGTH_BYTES_MAX     ALIGN_DOWN((uint64_t)INT64_MAX, SECTOR_BYTES) /* of a disk */
#define PAGE_BYTES           4096
#define ALIGNMENT_BYTES_MAX  65536 /* BOUNCE_BYTES of block-io.c */
#define TRANSFER_BYTES_MAX   (1u << 30)
#define DEALLOCATE_BYTES_MAX ((uint64_t)1 << 30) /* one discard or write-zeroes */

typedef struct FileState {
    AioFile file;
    int fd;
    bool direct;
    bool is_device;
    FileLocking locking;
    atomic_flag told_short; /* that the file has shrunk, once */
    /* What the storage refused once is not tried again. Any context, only ever set. */
    _Atomic bool no_discard, no_punch_hole, no_zero_range;
    _Atomic int lost; /* -errno of the first sync that failed with the page cache; only ever set */
} FileState;

/* --- open: finding out what the image is --- */

/* Why @mode cannot be a disk, NULL when it can. */
static const char *unfit_type(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
    case S_IFBLK:
        return NULL;
    case S_IFDIR:
        return "is a directory";
    case S_IFCHR:
        return "is a character device";
    case S_IFIFO:
        return "is a FIFO";
    case S_IFSOCK:
        return "is a socket";
    default:
        return "has an unknown type";
    }
}

static int check_type(const char *path, mode_t mode, const char *what, Error *err)
{
    const char *reason = unfit_type(mode);

    if (reason) {
        return error_set(err, FILE_UNFIT, "%s: '%s' %s; a regular file or a block device expected",
                         what, path, reason);
    }
    return 0;
}

static int open_failed(const char *path, bool read_only, int code, const char *what, Error *err)
{
    if (!read_only && (code == -EACCES || code == -EROFS || code == -EPERM) &&
        faccessat(AT_FDCWD, path, R_OK, AT_EACCESS) == 0) {
        return error_set(err, code, "%s: cannot open '%s' for writing: %s; readonly=on would do",
                         what, path, error_strerror(code));
    }
    return error_set(err, code, "%s: cannot open '%s': %s", what, path, error_strerror(code));
}

/* O_NONBLOCK only for the open itself: a path that has become a FIFO must not block it. */
static int open_path(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

    return fd < 0 ? -errno : fd;
}

/* O_DIRECT cannot be had: an error when the user insists, else the page cache, with a word. */
static int give_up_direct(BlockNode *node, FileState *s, const char *reason, const char *what,
                          Error *err)
{
    if (node->cache == BLK_CACHE_NONE) {
        return error_set(err, FILE_UNFIT, "%s: '%s': cache=none: %s; cache=writeback would do",
                         what, node->name, reason);
    }
    log_info("block", "'%s': %s: using the page cache (cache=writeback)", node->name, reason);
    s->direct = false;
    return 0;
}

static int open_image(BlockNode *node, FileState *s, const char *what, Error *err)
{
    int flags = node->read_only ? O_RDONLY : O_RDWR;
    struct stat st;
    int ret;

    if (stat(node->name, &st) < 0) {
        return error_set(err, -errno, "%s: cannot open '%s': %s", what, node->name,
                         error_strerror(errno));
    }
    ret = check_type(node->name, st.st_mode, what, err);
    if (ret < 0) {
        return ret;
    }
    ret = open_path(node->name, flags | (s->direct ? O_DIRECT : 0));
    if (ret == -EINVAL && s->direct) {
        ret = give_up_direct(node, s, "the file system has no O_DIRECT", what, err);
        if (ret < 0) {
            return ret;
        }
        ret = open_path(node->name, flags);
    }
    if (ret < 0) {
        return open_failed(node->name, node->read_only, ret, what, err);
    }
    s->fd = ret;
    return file_lock(s->fd, node->name, !node->read_only, s->locking, what, err);
}

/* Of the disk, from that of the file. */
static uint64_t disk_bytes(uint64_t file_bytes)
{
    return ALIGN_UP(MIN(file_bytes, LENGTH_BYTES_MAX), (uint64_t)SECTOR_BYTES);
}

static int get_length(const FileState *s, uint64_t *ret_bytes)
{
    struct stat st;

    if (s->is_device) {
        return ioctl(s->fd, BLKGETSIZE64, ret_bytes) < 0 ? -errno : 0;
    }
    if (fstat(s->fd, &st) < 0) {
        return -errno;
    }
    *ret_bytes = (uint64_t)st.st_size;
    return 0;
}

/* Type again, now of what was opened; length as it is. */
static int measure(const BlockNode *node, FileState *s, struct stat *st, uint64_t *ret_bytes,
                   const char *what, Error *err)
{
    uint64_t bytes;
    int ret;

    if (fstat(s->fd, st) < 0) {
        return error_set(err, -errno, "%s: '%s': fstat: %s", what, node->name,
                         error_strerror(errno));
    }
    ret = check_type(node->name, st->st_mode, what, err);
    if (ret < 0) {
        return ret;
    }
    s->is_device = S_ISBLK(st->st_mode);
    ret = get_length(s, &bytes);
    if (ret < 0) {
        return error_set(err, ret, "%s: '%s': cannot get the device's size: %s", what, node->name,
                         error_strerror(ret));
    }
    if (bytes == 0) {
        return error_set(err, FILE_UNFIT, "%s: '%s' is empty; a disk has at least %d bytes", what,
                         node->name, SECTOR_BYTES);
    }
    if (bytes < SECTOR_BYTES) {
        return error_set(err, FILE_UNFIT, "%s: '%s' has %" PRIu64 " bytes; a disk has at least %d",
                         what, node->name, bytes, SECTOR_BYTES);
    }
    *ret_bytes = bytes;
    return 0;
}

/* --- open: alignment --- */

/* What O_DIRECT needs, both 0 when it does not work on this file after all. */
typedef struct DirectAlignment {
    uint32_t offset_bytes;
    uint32_t memory_bytes;
} DirectAlignment;

static bool alignment_by_statx(int fd, DirectAlignment *ret_a)
{
#ifdef STATX_DIOALIGN
    struct statx stx;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
        (stx.stx_mask & STATX_DIOALIGN)) {
        ret_a->offset_bytes = stx.stx_dio_offset_align;
        ret_a->memory_bytes = stx.stx_dio_mem_align;
        return true;
    }
#endif
    return false;
}

static bool alignment_by_device(int fd, DirectAlignment *ret_a)
{
    int block_bytes;

    if (ioctl(fd, BLKSSZGET, &block_bytes) < 0) {
        return false;
    }
    ret_a->offset_bytes = ret_a->memory_bytes = (uint32_t)block_bytes;
    return true;
}

/* The smallest read that is not refused; memory first, with the longest read. */
static void alignment_by_trial(int fd, DirectAlignment *ret_a)
{
    AUTO_FREE void *buffer = NULL;
    uint32_t a;

    *ret_a = (DirectAlignment){ 0 };
    if (posix_memalign(&buffer, ALIGNMENT_BYTES_MAX, 2 * ALIGNMENT_BYTES_MAX) != 0) {
        return;
    }
    for (a = SECTOR_BYTES; a <= ALIGNMENT_BYTES_MAX && ret_a->memory_bytes == 0; a *= 2) {
        if (pread(fd, (char *)buffer + a, ALIGNMENT_BYTES_MAX, 0) >= 0) {
            ret_a->memory_bytes = a;
        }
    }
    for (a = SECTOR_BYTES; a <= ALIGNMENT_BYTES_MAX && ret_a->offset_bytes == 0; a *= 2) {
        if (pread(fd, buffer, a, 0) >= 0) {
            ret_a->offset_bytes = a;
        }
    }
}

static bool alignment_usable(const DirectAlignment *a)
{
    return IS_POWER_OF_2(a->offset_bytes) && a->offset_bytes <= ALIGNMENT_BYTES_MAX &&
           IS_POWER_OF_2(a->memory_bytes) && a->memory_bytes <= ALIGNMENT_BYTES_MAX;
}

/* Settles s->direct; @ret_a is what requests must keep to. */
static int probe_alignment(BlockNode *node, FileState *s, uint64_t length_bytes,
                           DirectAlignment *ret_a, const char *what, Error *err)
{
    DirectAlignment a = { 0 };

    *ret_a = (DirectAlignment){ .offset_bytes = 1, .memory_bytes = 1 };
    if (s->is_device) {
        /* Through the page cache, too: discard and write-zeroes take whole blocks only. */
        if (!alignment_by_device(s->fd, &a) || !alignment_usable(&a)) {
            return error_set(err, FILE_UNFIT, "%s: '%s': cannot get the device's block size", what,
                             node->name);
        }
        ret_a->offset_bytes = a.offset_bytes;
    }
    if (!s->direct) {
        return 0;
    }
    if (!alignment_by_statx(s->fd, &a) && !s->is_device) {
        alignment_by_trial(s->fd, &a);
    }
    if (!alignment_usable(&a)) {
        return give_up_direct(node, s, "O_DIRECT does not work on this file", what, err);
    }
    /* Not below the memory's: a transfer that stopped at a multiple of it can then go on there. */
    a.offset_bytes = MAX(MAX(a.offset_bytes, a.memory_bytes), (uint32_t)SECTOR_BYTES);
    if (!node->read_only && disk_bytes(length_bytes) % a.offset_bytes != 0) {
        char reason[128];

        snprintf(reason, sizeof(reason),
                 "O_DIRECT needs multiples of %" PRIu32 " bytes here, the length is %" PRIu64,
                 a.offset_bytes, length_bytes);
        return give_up_direct(node, s, reason, what, err);
    }
    *ret_a = a;
    return 0;
}

/* --- open: the rest --- */

static uint32_t physical_block_bytes(const FileState *s, const struct stat *st, uint32_t logical)
{
    unsigned bytes = 0;

    if (!s->is_device) {
        bytes = st->st_blksize >= PAGE_BYTES ? PAGE_BYTES : SECTOR_BYTES;
    } else if (ioctl(s->fd, BLKPBSZGET, &bytes) < 0 || !IS_POWER_OF_2(bytes)) {
        bytes = logical;
    }
    return MAX(MIN(bytes, (unsigned)PAGE_BYTES), logical);
}

static uint32_t optimal_io_bytes(const FileState *s)
{
    unsigned bytes = 0;

    if (s->is_device && ioctl(s->fd, BLKIOOPT, &bytes) < 0) {
        bytes = 0;
    }
    return bytes;
}

static void fill_limits(BlockNode *node, const FileState *s, const struct stat *st,
                        const DirectAlignment *a)
{
    uint32_t logical = s->is_device ? MAX(a->offset_bytes, (uint32_t)SECTOR_BYTES) : SECTOR_BYTES;

    node->limits = (BlockLimits){
        .request_alignment = a->offset_bytes,
        .buffer_alignment = a->memory_bytes,
        .optimal_io_bytes = optimal_io_bytes(s),
        .max_transfer_bytes = TRANSFER_BYTES_MAX,
        .max_iov = IOV_MAX,
        .max_discard_bytes = DEALLOCATE_BYTES_MAX,
        .max_write_zeroes_bytes = DEALLOCATE_BYTES_MAX,
        .logical_block_bytes = logical,
        .physical_block_bytes = physical_block_bytes(s, st, logical),
    };
    node->limits.discard_alignment =
        s->is_device ? logical : MAX((uint32_t)PAGE_BYTES, a->offset_bytes);
}

static int prepare(BlockNode *node, FileState *s, const char *what, Error *err)
{
    struct stat st;
    DirectAlignment a = { 0 };
    uint64_t length_bytes = 0;
    int flags;
    int ret = open_image(node, s, what, err);

    if (ret < 0) {
        return ret;
    }
    ret = measure(node, s, &st, &length_bytes, what, err);
    if (ret < 0) {
        return ret;
    }
    ret = probe_alignment(node, s, length_bytes, &a, what, err);
    if (ret < 0) {
        return ret;
    }
    flags = node->read_only ? O_RDONLY : O_RDWR;
    if (fcntl(s->fd, F_SETFL, flags | (s->direct ? O_DIRECT : 0)) < 0) {
        return error_set(err, -errno, "%s: '%s': fcntl: %s", what, node->name,
                         error_strerror(errno));
    }
    fill_limits(node, s, &st, &a);
    atomic_store(&node->length_bytes, disk_bytes(length_bytes));
    if (node->cache == BLK_CACHE_AUTO) {
        node->cache = s->direct ? BLK_CACHE_NONE : BLK_CACHE_WRITEBACK;
    }
    return 0;
}

static int file_open(BlockNode *node, Opts *opts, Error *err)
{
    static const char *const lockings[] = { "auto", "on", "off", NULL };
    FileState *s = node->state;
    const char *path = opts_get(opts, "path");
    int locking = FILE_LOCKING_AUTO;
    int ret;

    if (!path) {
        return error_set(err, -EINVAL, "%s: driver=file needs path=FILE", opts->what);
    }
    ret = opts_get_enum(opts, "locking", lockings, &locking, err);
    if (ret < 0) {
        return ret;
    }
    node->name = strdup(path);
    if (!node->name) {
        return error_set(err, -ENOMEM, "%s: out of memory", opts->what);
    }
    s->fd = -1;
    s->locking = (FileLocking)locking;
    atomic_flag_clear(&s->told_short);
    s->direct = node->cache == BLK_CACHE_AUTO || node->cache == BLK_CACHE_NONE;
    ret = prepare(node, s, opts->what, err);
    if (ret < 0) {
        if (s->fd >= 0) {
            close(s->fd);
        }
        return ret;
    }
    aio_file_init(&s->file, s->fd);
    return 0;
}

static void file_close(BlockNode *node)
{
    FileState *s = node->state;

    aio_file_finish(&s->file);
    if (s->locking != FILE_LOCKING_OFF) {
        file_unlock(s->fd);
    }
    close(s->fd);
}

/* --- reads and writes --- */

typedef int64_t TransferFn(AioFile *file, const struct iovec *iov, int niov, uint64_t offset_bytes,
                           int rw_flags);

/*
 * Go on after a transfer that stopped in the middle: first the rest of the segment that it stopped
 * in, then the segments after it, so that no list needs to be copied.
 */
static co_fn int64_t transfer_rest(FileState *s, TransferFn *transfer, uint64_t offset_bytes,
                                   uint64_t done_bytes, const struct iovec *iov, int niov,
                                   int rw_flags)
{
    IovCursor cur;
    struct iovec first;
    int one;

    iov_cursor_init(&cur, iov, niov);
    iov_cursor_advance(&cur, done_bytes);
    if (cur.skip_bytes == 0) {
        return transfer(&s->file, cur.iov, cur.niov, offset_bytes + done_bytes, rw_flags);
    }
    iov_cursor_slice(&cur, UINT64_MAX, &first, 1, &one);
    return transfer(&s->file, &first, one, offset_bytes + done_bytes, rw_flags);
}

/* After a short transfer of @done_bytes; O_DIRECT stops inside a block only at the end of the
 * file. */
static bool may_go_on(const BlockNode *node, uint64_t done_bytes)
{
    return done_bytes % node->limits.request_alignment == 0;
}

/* Whether the storage may end at @end_bytes: in the last sector, which a file need not fill. */
static bool may_end_at(const BlockNode *node, uint64_t end_bytes)
{
    return end_bytes + SECTOR_BYTES > atomic_load(&node->length_bytes);
}

/* What was there has been cut off. */
static int shrunk(const BlockNode *node, FileState *s)
{
    if (!atomic_flag_test_and_set(&s->told_short)) {
        log_warn("block", "'%s' has become shorter than the %" PRIu64 " bytes of the disk",
                 node->name, atomic_load(&node->length_bytes));
    }
    return -EIO;
}

static NOINLINE co_fn int read_rest(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                    const struct iovec *iov, int niov, int64_t done)
{
    FileState *s = node->state;
    uint64_t done_bytes = 0;

    while (done > 0) {
        done_bytes += (uint64_t)done;
        if (done_bytes == len_bytes || !may_go_on(node, done_bytes)) {
            break;
        }
        done = transfer_rest(s, aio_co_preadv, offset_bytes, done_bytes, iov, niov, 0);
    }
    if (done < 0) {
        return (int)done;
    }
    if (done_bytes < len_bytes && !may_end_at(node, offset_bytes + done_bytes)) {
        return shrunk(node, s);
    }
    iov_zero(iov, niov, done_bytes);
    return 0;
}

static co_fn int file_co_preadv(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                const struct iovec *iov, int niov, BlkFlags flags)
{
    FileState *s = node->state;
    int64_t done = aio_co_preadv(&s->file, iov, niov, offset_bytes, 0);

    if (likely(done == (int64_t)len_bytes)) {
        return 0;
    }
    return read_rest(node, offset_bytes, len_bytes, iov, niov, done);
}

static NOINLINE co_fn int write_rest(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                     const struct iovec *iov, int niov, int rw_flags, int64_t done)
{
    FileState *s = node->state;
    uint64_t done_bytes = 0;

    while (done > 0) {
        done_bytes += (uint64_t)done;
        if (done_bytes == len_bytes) {
            return 0;
        }
        if (!may_go_on(node, done_bytes)) {
            return -EIO;
        }
        done = transfer_rest(s, aio_co_pwritev, offset_bytes, done_bytes, iov, niov, rw_flags);
    }
    return done < 0 ? (int)done : -ENOSPC; /* nothing written and no reason given: no room */
}

/* A sync gave @ret < 0. */
static void sync_failed(const BlockNode *node, FileState *s, int ret)
{
    int none = 0;

    if (!s->direct && atomic_compare_exchange_strong(&s->lost, &none, ret)) {
        log_warn("block",
                 "'%s': writing the page cache back failed: %s; what was written may be lost, so "
                 "no flush succeeds from now on",
                 node->name, error_strerror(ret));
    }
}

/* What a write fails with before anything is synced. */
static bool is_no_room(int ret)
{
    return ret == -ENOSPC || ret == -EDQUOT || ret == -EFBIG;
}

static co_fn int file_co_pwritev(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                 const struct iovec *iov, int niov, BlkFlags flags)
{
    FileState *s = node->state;
    int rw_flags = (flags & BLK_FUA) ? RWF_DSYNC : 0;
    int64_t done = aio_co_pwritev(&s->file, iov, niov, offset_bytes, rw_flags);

    if (likely(done == (int64_t)len_bytes)) {
        return 0;
    }
    int ret = write_rest(node, offset_bytes, len_bytes, iov, niov, rw_flags, done);

    if (ret < 0 && rw_flags && !is_no_room(ret)) {
        sync_failed(node, s, ret);
    }
    return ret;
}

static co_fn int file_co_flush(BlockNode *node)
{
    FileState *s = node->state;
    int ret = aio_co_fdatasync(&s->file);

    if (ret < 0) {
        sync_failed(node, s, ret);
    }
    return ret < 0 ? ret : atomic_load(&s->lost);
}

/* --- discard and write-zeroes --- */

/* An ioctl on a range of a block device, in a worker thread. */
typedef struct RangeIoctl {
    int fd;
    unsigned long request;
    uint64_t range[2]; /* offset, length in bytes */
} RangeIoctl;

static int range_ioctl_blocking(void *opaque)
{
    RangeIoctl *r = opaque;

    return ioctl(r->fd, r->request, r->range) < 0 ? -errno : 0;
}

/* The ways in which storage says that it does not know an operation. */
static bool is_refusal(int ret)
{
    return ret == -EOPNOTSUPP || ret == -ENOSYS || ret == -ENOTTY;
}

/* Remember a refusal, so that the way that does not work is tried once. */
static int remember(int ret, _Atomic bool *refused)
{
    if (is_refusal(ret)) {
        atomic_store(refused, true);
        return -EOPNOTSUPP;
    }
    return ret;
}

static co_fn int try_ioctl(FileState *s, unsigned long request, _Atomic bool *refused,
                           uint64_t offset_bytes, uint64_t len_bytes)
{
    RangeIoctl r = { .fd = s->fd, .request = request, .range = { offset_bytes, len_bytes } };

    if (atomic_load_explicit(refused, memory_order_relaxed)) {
        return -EOPNOTSUPP;
    }
    return remember(aio_co_run_blocking(range_ioctl_blocking, &r), refused);
}

static co_fn int try_fallocate(FileState *s, int mode, _Atomic bool *refused, uint64_t offset_bytes,
                               uint64_t len_bytes)
{
    if (atomic_load_explicit(refused, memory_order_relaxed)) {
        return -EOPNOTSUPP;
    }
    return remember(aio_co_fallocate(&s->file, mode | FALLOC_FL_KEEP_SIZE, offset_bytes, len_bytes),
                    refused);
}

static co_fn int file_co_pdiscard(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes)
{
    FileState *s = node->state;

    if (s->is_device) {
        return try_ioctl(s, BLKDISCARD, &s->no_discard, offset_bytes, len_bytes);
    }
    return try_fallocate(s, FALLOC_FL_PUNCH_HOLE, &s->no_punch_hole, offset_bytes, len_bytes);
}

static co_fn int file_co_pwrite_zeroes(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                       BlkFlags flags)
{
    FileState *s = node->state;

    if (flags & BLK_MAY_UNMAP) {
        int ret =
            try_fallocate(s, FALLOC_FL_PUNCH_HOLE, &s->no_punch_hole, offset_bytes, len_bytes);

        if (ret != -EOPNOTSUPP) {
            return ret;
        }
    }
    if (s->is_device && (flags & BLK_NO_FALLBACK)) {
        return -EOPNOTSUPP; /* the kernel would write them without telling */
    }
    if (s->is_device) {
        return try_ioctl(s, BLKZEROOUT, &s->no_zero_range, offset_bytes, len_bytes);
    }
    return try_fallocate(s, FALLOC_FL_ZERO_RANGE, &s->no_zero_range, offset_bytes, len_bytes);
}

/* --- block status --- */

typedef struct SeekCall {
    int fd;
    uint64_t offset_bytes;
    off_t data_bytes; /* next data, -1 = none any more */
    off_t hole_bytes; /* the first hole from there on when that is here, else not set */
    off_t end_bytes;  /* when there is no data any more, the file's length, else not set */
} SeekCall;

static int seek_blocking(void *opaque)
{
    SeekCall *s = opaque;
    struct stat st;

    s->data_bytes = lseek(s->fd, (off_t)s->offset_bytes, SEEK_DATA);
    if (s->data_bytes < 0) {
        if (errno != ENXIO || fstat(s->fd, &st) < 0) {
            return -errno;
        }
        s->end_bytes = st.st_size;
        return 0;
    }
    if ((uint64_t)s->data_bytes > s->offset_bytes) {
        return 0;
    }
    s->hole_bytes = lseek(s->fd, (off_t)s->offset_bytes, SEEK_HOLE);
    return s->hole_bytes < 0 ? -errno : 0;
}

/* Where holes cannot be found all is data; lseek(2) also says so for a file system without them. */
static co_fn int file_co_block_status(BlockNode *node, uint64_t offset_bytes, uint64_t len_bytes,
                                      uint64_t *ret_len_bytes)
{
    FileState *s = node->state;
    SeekCall call = { .fd = s->fd, .offset_bytes = offset_bytes };
    int ret = s->is_device ? -EINVAL : aio_co_run_blocking(seek_blocking, &call);
    bool zero;

    if (ret < 0) {
        *ret_len_bytes = len_bytes;
        return ret == -EINVAL ? BLK_STATUS_DATA : ret;
    }
    zero = call.data_bytes < 0 || (uint64_t)call.data_bytes > offset_bytes;
    if (call.data_bytes < 0) {
        uint64_t end_bytes = (uint64_t)call.end_bytes;

        if (may_end_at(node, end_bytes)) {
            *ret_len_bytes = len_bytes;
        } else if (offset_bytes < end_bytes) {
            *ret_len_bytes = MIN(len_bytes, end_bytes - offset_bytes);
        } else {
            return shrunk(node, s);
        }
    } else {
        off_t end_bytes = zero ? call.data_bytes : call.hole_bytes;

        *ret_len_bytes = MIN(len_bytes, (uint64_t)end_bytes - offset_bytes);
    }
    /* A file that changes under us may put a hole where data was just now. */
    *ret_len_bytes = MAX(*ret_len_bytes, (uint64_t)1);
    return zero ? BLK_STATUS_ZERO : BLK_STATUS_DATA;
}

/* --- length --- */

typedef struct LengthCall {
    const FileState *s;
    uint64_t length_bytes;
} LengthCall;

static int truncate_blocking(void *opaque)
{
    const LengthCall *call = opaque;

    return ftruncate(call->s->fd, (off_t)call->length_bytes) < 0 ? -errno : 0;
}

static int length_blocking(void *opaque)
{
    LengthCall *call = opaque;

    return get_length(call->s, &call->length_bytes);
}

/* Others change a device's length; to be told the new one is how we may come to see it. */
static co_fn int truncate_device(BlockNode *node, uint64_t length_bytes, Error *err)
{
    LengthCall call = { .s = node->state };
    int ret = aio_co_run_blocking(length_blocking, &call);

    if (ret < 0) {
        return error_set(err, ret, "'%s': cannot get the device's size: %s", node->name,
                         error_strerror(ret));
    }
    if (call.length_bytes != length_bytes) {
        return error_set(err, -EOPNOTSUPP, "'%s': the length of a device, %" PRIu64
                         " bytes, cannot be changed",
                         node->name, call.length_bytes);
    }
    return 0;
}

static co_fn int file_co_truncate(BlockNode *node, uint64_t length_bytes, Error *err)
{
    LengthCall call = { .s = node->state, .length_bytes = length_bytes };
    int ret;

    if (call.s->is_device) {
        return truncate_device(node, length_bytes, err);
    }
    if (length_bytes > INT64_MAX) {
        return error_set(err, -EFBIG, "'%s': %" PRIu64 " bytes are more than a file can have",
                         node->name, length_bytes);
    }
    ret = aio_co_run_blocking(truncate_blocking, &call);
    if (ret < 0) {
        return error_set(err, ret, "'%s': cannot make it %" PRIu64 " bytes long: %s", node->name,
                         length_bytes, error_strerror(ret));
    }
    return 0;
}

static co_fn int file_co_get_length(BlockNode *node, uint64_t *ret_length_bytes)
{
    LengthCall call = { .s = node->state };
    int ret = aio_co_run_blocking(length_blocking, &call);

    if (ret == 0) {
        *ret_length_bytes = disk_bytes(call.length_bytes);
    }
    return ret;
}

const BlockDriver bdrv_file = {
    .name = "file",
    .instance_bytes = sizeof(FileState),
    .write_flags = BLK_FUA,
    .open = file_open,
    .close = file_close,
    .co_preadv = file_co_preadv,
    .co_pwritev = file_co_pwritev,
    .co_flush = file_co_flush,
    .co_pdiscard = file_co_pdiscard,
    .co_pwrite_zeroes = file_co_pwrite_zeroes,
    .co_block_status = file_co_block_status,
    .co_truncate = file_co_truncate,
    .co_get_length = file_co_get_length,
};
