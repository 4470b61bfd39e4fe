/*
 * test-block-file.c - images in files and on block devices
 *
 * The linker puts the __wrap_ functions below between file.c and io/aio, so that a test can make
 * transfers short, refuse operations, and see what was asked for.
 */
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "block/iov.h"
#include "block/tests/block-test.h"
#include "io/aio/aio-file.h"
#include "io/aio/aio-worker.h"

#define KIB 1024u
#define MIB (1024u * KIB)

/* --- between file.c and io/aio --- */

static struct Hook {
    unsigned short_bytes; /* transfers do at most this much at once; 0 = all */
    int fallocate_ret;    /* instead of the call when negative */
    int blocking_ret;     /* likewise */
    int transfer_ret;
    int sync_ret;
    unsigned nb_transfers, nb_fallocates, nb_blocking, nb_syncs;
    int last_mode;
    int last_rw_flags;
} hook;

int64_t __real_aio_co_preadv(AioFile *, const struct iovec *, int, uint64_t, int);
int64_t __real_aio_co_pwritev(AioFile *, const struct iovec *, int, uint64_t, int);
int __real_aio_co_fdatasync(AioFile *);
int __real_aio_co_fallocate(AioFile *, int, uint64_t, uint64_t);
int __real_aio_co_run_blocking(AioBlockingFn *, void *);
int64_t __wrap_aio_co_preadv(AioFile *, const struct iovec *, int, uint64_t, int);
int64_t __wrap_aio_co_pwritev(AioFile *, const struct iovec *, int, uint64_t, int);
int __wrap_aio_co_fdatasync(AioFile *);
int __wrap_aio_co_fallocate(AioFile *, int, uint64_t, uint64_t);
int __wrap_aio_co_run_blocking(AioBlockingFn *, void *);

typedef int64_t TransferFn(AioFile *, const struct iovec *, int, uint64_t, int);

static int64_t transfer(TransferFn *real, AioFile *file, const struct iovec *iov, int niov,
                        uint64_t offset_bytes, int rw_flags)
{
    struct iovec first[64];
    IovCursor cur;
    int nfirst;

    hook.nb_transfers++;
    hook.last_rw_flags = rw_flags;
    if (hook.transfer_ret < 0) {
        return hook.transfer_ret;
    }
    if (hook.short_bytes == 0) {
        return real(file, iov, niov, offset_bytes, rw_flags);
    }
    iov_cursor_init(&cur, iov, niov);
    iov_cursor_slice(&cur, hook.short_bytes, first, ARRAY_SIZE(first), &nfirst);
    return real(file, first, nfirst, offset_bytes, rw_flags);
}

int64_t __wrap_aio_co_preadv(AioFile *file, const struct iovec *iov, int niov,
                             uint64_t offset_bytes, int rw_flags)
{
    return transfer(__real_aio_co_preadv, file, iov, niov, offset_bytes, rw_flags);
}

int64_t __wrap_aio_co_pwritev(AioFile *file, const struct iovec *iov, int niov,
                              uint64_t offset_bytes, int rw_flags)
{
    return transfer(__real_aio_co_pwritev, file, iov, niov, offset_bytes, rw_flags);
}

int __wrap_aio_co_fdatasync(AioFile *file)
{
    hook.nb_syncs++;
    return hook.sync_ret < 0 ? hook.sync_ret : __real_aio_co_fdatasync(file);
}

int __wrap_aio_co_fallocate(AioFile *file, int mode, uint64_t offset_bytes, uint64_t len_bytes)
{
    hook.nb_fallocates++;
    hook.last_mode = mode;
    return hook.fallocate_ret < 0 ? hook.fallocate_ret
                                  : __real_aio_co_fallocate(file, mode, offset_bytes, len_bytes);
}

int __wrap_aio_co_run_blocking(AioBlockingFn *fn, void *opaque)
{
    hook.nb_blocking++;
    return hook.blocking_ret < 0 ? hook.blocking_ret : __real_aio_co_run_blocking(fn, opaque);
}

/* --- files and disks --- */

typedef struct Place {
    Env env;
    char dir[64];
    char path[96];
} Place;

static void place_init(Place *p)
{
    env_init(&p->env, 0);
    strcpy(p->dir, "/var/tmp/penstock-test-XXXXXX");
    ASSERT_TRUE(mkdtemp(p->dir) != NULL);
    snprintf(p->path, sizeof(p->path), "%s/disk", p->dir);
}

static void place_finish(Place *p)
{
    unlink(p->path);
    EXPECT_EQ(rmdir(p->dir), 0); /* nothing else was left in it */
    env_finish(&p->env);
}

static void make_file(const char *path, uint64_t length_bytes, char fill)
{
    AUTO_FD int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    AUTO_FREE char *buf = malloc(length_bytes + 1);

    ASSERT_GE(fd, 0);
    memset(buf, fill, length_bytes);
    ASSERT_EQ(write(fd, buf, length_bytes), (ssize_t)length_bytes);
    ASSERT_EQ(fsync(fd), 0);
}

static uint64_t size_of(const char *path)
{
    struct stat st;

    ASSERT_EQ(stat(path, &st), 0);
    return (uint64_t)st.st_size;
}

static uint64_t allocated(const char *path)
{
    struct stat st;

    ASSERT_EQ(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static BlockBackend *open_disk(const char *path, const char *options, Error *err)
{
    char text[256];
    Opts opts;
    BlockBackend *blk;

    snprintf(text, sizeof(text), "path=%s%s%s", path, *options ? "," : "", options);
    ASSERT_EQ(opts_parse(&opts, "--disk", text, "path", err), 0);
    blk = blk_open("d0", &opts, err);
    opts_finish(&opts);
    return blk;
}

static BlockBackend *must_open(const char *path, const char *options)
{
    Error err = { 0 };
    BlockBackend *blk = open_disk(path, options, &err);

    if (!blk) {
        test_fail_abort(__FILE__, __LINE__, "%s", err.msg);
    }
    return blk;
}

static void expect_refused(const char *path, const char *options, int code, const char *word)
{
    Error err = { 0 };
    BlockBackend *blk = open_disk(path, options, &err);

    EXPECT_TRUE(blk == NULL);
    EXPECT_EQ(err.code, code);
    if (strncmp(err.msg, "--disk: ", 8) != 0 || !strstr(err.msg, path) || !strstr(err.msg, word) ||
        strchr(err.msg, '\n')) {
        test_fail(__FILE__, __LINE__, "%s: '%s' is not in: %s", path, word, err.msg);
    }
}

static bool all_bytes(const char *buf, size_t len_bytes, char byte)
{
    for (size_t i = 0; i < len_bytes; i++) {
        if (buf[i] != byte) {
            return false;
        }
    }
    return true;
}

static const char *const caches[] = { "", "cache=none", "cache=writeback", "cache=writethrough" };

/* --- data --- */

#define MODEL_BYTES (256 * KIB)

static void random_requests(BlockBackend *blk, char *expect, unsigned nb)
{
    static char buf[MODEL_BYTES + 4096] __attribute__((aligned(4096)));
    Random random = { 42 };

    for (unsigned i = 0; i < nb; i++) {
        uint32_t unit = random_below(&random, 2) ? 512 : 1;
        uint32_t offset = random_below(&random, MODEL_BYTES) / unit * unit;
        uint32_t len = random_below(&random, MODEL_BYTES - offset) / unit * unit;
        char *at = buf + (random_below(&random, 2) ? 0 : random_below(&random, 4096));

        switch (random_below(&random, 4)) {
        case 0:
            ASSERT_EQ(run_zeroes(blk, offset, len, random_below(&random, 4)), 0);
            memset(expect + offset, 0, len);
            break;
        case 1:
            memset(at, (int)random_below(&random, 256), len);
            ASSERT_EQ(run_write(blk, offset, len, at, random_below(&random, 2)), 0);
            memcpy(expect + offset, at, len);
            break;
        default:
            ASSERT_EQ(run_read(blk, offset, len, at), 0);
            ASSERT_EQ(memcmp(at, expect + offset, len), 0);
        }
    }
    ASSERT_EQ(run_flush(blk), 0);
}

static void compare_file(const char *path, const char *expect, size_t len_bytes)
{
    AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    AUTO_FREE char *buf = malloc(len_bytes);

    ASSERT_EQ(pread(fd, buf, len_bytes, 0), (ssize_t)len_bytes);
    EXPECT_EQ(memcmp(buf, expect, len_bytes), 0);
}

TEST(file, random_requests_match_a_model_in_every_cache_mode)
{
    Place p;
    AUTO_FREE char *expect = malloc(MODEL_BYTES);

    place_init(&p);
    for (unsigned i = 0; i < ARRAY_SIZE(caches); i++) {
        BlockBackend *blk;

        make_file(p.path, MODEL_BYTES, 'a');
        memset(expect, 'a', MODEL_BYTES);
        blk = must_open(p.path, caches[i]);
        EXPECT_EQ(blk_length(blk), MODEL_BYTES);
        EXPECT_EQ(blk_limits(blk)->logical_block_bytes, 512u);
        random_requests(blk, expect, 150);
        EXPECT_EQ(blk_close(blk), 0);
        compare_file(p.path, expect, MODEL_BYTES);
        EXPECT_EQ(size_of(p.path), MODEL_BYTES);
    }
    place_finish(&p);
}

TEST(file, transfers_that_stop_in_the_middle_are_continued)
{
    static const unsigned shorts[] = { 512, 4096, 1536 };
    Place p;
    AUTO_FREE char *expect = malloc(MODEL_BYTES);

    place_init(&p);
    for (unsigned i = 0; i < ARRAY_SIZE(shorts); i++) {
        BlockBackend *blk;

        make_file(p.path, MODEL_BYTES, 'a');
        memset(expect, 'a', MODEL_BYTES);
        hook.short_bytes = 0;
        blk = must_open(p.path, i == 0 ? "cache=none" : "cache=writeback");
        hook.short_bytes = shorts[i] - (i == 2);
        random_requests(blk, expect, 30);
        hook.short_bytes = 0;
        EXPECT_EQ(blk_close(blk), 0);
        compare_file(p.path, expect, MODEL_BYTES);
    }
    place_finish(&p);
}

TEST(file, stable_write_asks_the_kernel_for_it_and_flush_syncs)
{
    Place p;
    BlockBackend *blk;
    char buf[512] = { 0 };

    place_init(&p);
    make_file(p.path, 64 * KIB, 'a');
    blk = must_open(p.path, "cache=writeback");
    EXPECT_EQ(run_write(blk, 0, 512, buf, 0), 0);
    EXPECT_EQ(hook.last_rw_flags, 0);
    EXPECT_EQ(run_write(blk, 0, 512, buf, BLK_FUA), 0);
    EXPECT_EQ(hook.last_rw_flags, RWF_DSYNC);
    EXPECT_EQ(hook.nb_syncs, 0u);
    EXPECT_EQ(run_flush(blk), 0);
    EXPECT_EQ(hook.nb_syncs, 1u);
    EXPECT_EQ(blk_close(blk), 0);
    EXPECT_EQ(hook.nb_syncs, 2u);

    blk = must_open(p.path, "cache=writethrough");
    EXPECT_EQ(run_write(blk, 0, 512, buf, 0), 0);
    EXPECT_EQ(hook.last_rw_flags, RWF_DSYNC);
    EXPECT_EQ(blk_close(blk), 0);

    blk = must_open(p.path, "readonly=on");
    EXPECT_EQ(blk_close(blk), 0);
    EXPECT_EQ(hook.nb_syncs, 3u); /* nothing to flush */
    place_finish(&p);
}

/* The kernel tells of a failed write-back once: a second sync that succeeds says nothing of it. */
TEST(file, flush_of_a_page_cache_that_failed_once_never_succeeds_again)
{
    Place p;
    BlockBackend *blk;
    char buf[512] = { 0 };

    place_init(&p);
    make_file(p.path, 64 * KIB, 'a');
    blk = must_open(p.path, "cache=writeback");
    EXPECT_EQ(run_write(blk, 0, 512, buf, 0), 0);
    hook.sync_ret = -EIO;
    EXPECT_EQ(run_flush(blk), -EIO);
    hook.sync_ret = 0;
    EXPECT_EQ(run_flush(blk), -EIO);
    EXPECT_EQ(run_write(blk, 0, 512, buf, 0), 0); /* what does not need a flush goes on */
    EXPECT_EQ(run_flush(blk), -EIO);
    EXPECT_EQ(blk_close(blk), -EIO);

    blk = must_open(p.path, "cache=writeback"); /* a new beginning */
    EXPECT_EQ(run_flush(blk), 0);
    /* A stable write syncs, too, and may be told what was about others; but not that there is no
     * room, which is about itself. */
    hook.transfer_ret = -ENOSPC;
    EXPECT_EQ(run_write(blk, 0, 512, buf, BLK_FUA), -ENOSPC);
    hook.transfer_ret = -ENODEV;
    EXPECT_EQ(run_write(blk, 0, 512, buf, 0), -ENODEV);
    hook.transfer_ret = 0;
    EXPECT_EQ(run_flush(blk), 0);
    hook.transfer_ret = -EIO;
    EXPECT_EQ(run_write(blk, 0, 512, buf, BLK_FUA), -EIO);
    hook.transfer_ret = 0;
    EXPECT_EQ(run_write(blk, 0, 512, buf, BLK_FUA), 0);
    EXPECT_EQ(run_flush(blk), -EIO);
    EXPECT_EQ(blk_close(blk), -EIO);
    place_finish(&p);
}

/* Without the page cache what was written is with the device, which may be asked again. */
TEST(file, flush_that_failed_may_succeed_later_without_page_cache)
{
    Place p;
    BlockBackend *blk;

    place_init(&p);
    make_file(p.path, 64 * KIB, 'a');
    blk = must_open(p.path, "cache=none");
    hook.sync_ret = -EIO;
    EXPECT_EQ(run_flush(blk), -EIO);
    hook.sync_ret = 0;
    EXPECT_EQ(run_flush(blk), 0);
    EXPECT_EQ(blk_close(blk), 0);
    place_finish(&p);
}

TEST(file, errors_of_the_storage_are_passed_on)
{
    Place p;
    BlockBackend *blk;
    char buf[512] = { 0 };

    place_init(&p);
    make_file(p.path, 64 * KIB, 'a');
    blk = must_open(p.path, "cache=writeback");
    hook.transfer_ret = -ENODEV;
    EXPECT_EQ(run_read(blk, 0, 512, buf), -ENODEV);
    EXPECT_EQ(run_write(blk, 0, 512, buf, 0), -ENODEV);
    hook.transfer_ret = 0;
    hook.fallocate_ret = -EIO;
    EXPECT_EQ(run_zeroes(blk, 0, 4096, 0), -EIO);
    EXPECT_EQ(run_discard(blk, 0, 4096), -EIO);
    hook.fallocate_ret = 0;
    EXPECT_EQ(run_read(blk, 0, 512, buf), 0);
    EXPECT_EQ(blk_close(blk), 0);
    place_finish(&p);
}

TEST(file, requests_do_not_allocate)
{
#if HAVE_ASAN || HAVE_TSAN
    TEST_SKIP("the sanitizers' allocator does not answer mallinfo2()");
#else
    Place p;
    BlockBackend *blk;
    static char buf[4096] __attribute__((aligned(4096)));
    size_t before_bytes;

    place_init(&p);
    make_file(p.path, 64 * KIB, 'a');
    blk = must_open(p.path, "");
    EXPECT_EQ(run_read(blk, 0, 4096, buf), 0);
    EXPECT_EQ(run_write(blk, 0, 4096, buf, 0), 0);
    before_bytes = mallinfo2().uordblks + mallinfo2().hblkhd;
    for (unsigned i = 0; i < 50; i++) {
        EXPECT_EQ(run_read(blk, 0, 4096, buf), 0);
        EXPECT_EQ(run_write(blk, 0, 4096, buf, 0), 0);
    }
    EXPECT_EQ(mallinfo2().uordblks + mallinfo2().hblkhd, before_bytes);
    EXPECT_EQ(blk_close(blk), 0);
    place_finish(&p);
#endif
}

/* --- lengths --- */

TEST(file, unaligned_tail_is_read_whole_and_grows_only_when_it_is_written)
{
    Place p;
    char buf[1024];

    place_init(&p);
    for (unsigned i = 0; i < ARRAY_SIZE(caches); i++) {
        BlockBackend *blk;

        make_file(p.path, 1000, 'a');
        blk = must_open(p.path, caches[i]);
        EXPECT_EQ(blk_length(blk), 1024u);
        memset(buf, 'x', sizeof(buf));
        EXPECT_EQ(run_read(blk, 0, 1024, buf), 0);
        EXPECT_TRUE(all_bytes(buf, 1000, 'a') && all_bytes(buf + 1000, 24, 0));
        memset(buf, 'b', sizeof(buf));
        EXPECT_EQ(run_write(blk, 0, 512, buf, 0), 0);
        EXPECT_EQ(run_discard(blk, 0, 1024), 0);
        EXPECT_EQ(run_flush(blk), 0);
        EXPECT_EQ(size_of(p.path), 1000u);

        EXPECT_EQ(run_write(blk, 512, 512, buf, 0), 0);
        EXPECT_EQ(size_of(p.path), 1024u);
        EXPECT_EQ(run_write(blk, 1024, 512, buf, 0), -EINVAL);
        EXPECT_EQ(run_read(blk, 512, 512, buf + 512), 0);
        EXPECT_TRUE(all_bytes(buf, 1024, 'b'));
        EXPECT_EQ(blk_close(blk), 0);
        EXPECT_EQ(size_of(p.path), 1024u);
    }
    place_finish(&p);
}

TEST(file, zeroes_and_discards_never_change_the_size)
{
    Place p;
    BlockBackend *blk;
    char buf[1024];

    place_init(&p);
    make_file(p.path, 5000, 'a');
    blk = must_open(p.path, "cache=writeback");
    EXPECT_EQ(blk_length(blk), 5120u);
    EXPECT_EQ(run_zeroes(blk, 4096, 1024, BLK_MAY_UNMAP), 0);
    EXPECT_EQ(size_of(p.path), 5000u);
    EXPECT_EQ(run_zeroes(blk, 0, 5120, 0), 0);
    EXPECT_EQ(size_of(p.path), 5000u);
    EXPECT_TRUE(hook.last_mode & FALLOC_FL_KEEP_SIZE);
    EXPECT_EQ(run_discard(blk, 0, 5120), 0);
    EXPECT_EQ(size_of(p.path), 5000u);
    EXPECT_EQ(run_read(blk, 4096, 1024, buf), 0);
    EXPECT_TRUE(all_bytes(buf, 1024, 0));
    EXPECT_EQ(blk_close(blk), 0);
    place_finish(&p);
}

TEST(file, reads_of_what_was_cut_off_fail_and_writes_bring_the_length_back)
{
    Place p;
    static char buf[64 * KIB];
    struct iovec iov[3] = { { buf, 1000 }, { buf + 1000, 3096 }, { buf + 4096, 4096 } };
    Request split = { .kind = REQ_READ, .len_bytes = 8192, .iov = iov, .niov = 3 };

    place_init(&p);
    for (unsigned i = 0; i < ARRAY_SIZE(caches); i++) {
        BlockBackend *blk;
        uint64_t status_bytes;

        make_file(p.path, 64 * KIB, 'a');
        blk = must_open(p.path, caches[i]);
        ASSERT_EQ(truncate(p.path, 5000), 0);
        EXPECT_EQ(run_read(blk, 0, 64 * KIB, buf), -EIO);
        EXPECT_EQ(run_read(blk, 32 * KIB, 4096, buf), -EIO);
        split.blk = blk;
        EXPECT_EQ(request_run(&split), -EIO);
        EXPECT_EQ(run_status(blk, 32 * KIB, 4096, &status_bytes), -EIO);
        EXPECT_EQ(run_read(blk, 0, 4096, buf), 0); /* the rest is there */
        EXPECT_TRUE(all_bytes(buf, 4096, 'a'));

        memset(buf, 'b', 4096); /* a write there makes the file longer again */
        EXPECT_EQ(run_write(blk, 60 * KIB, 4096, buf, 0), 0);
        EXPECT_EQ(size_of(p.path), 64 * KIB);
        memset(buf, 'x', sizeof(buf));
        EXPECT_EQ(run_read(blk, 0, 64 * KIB, buf), 0);
        EXPECT_TRUE(all_bytes(buf, 5000, 'a') && all_bytes(buf + 60 * KIB, 4096, 'b'));
        EXPECT_TRUE(all_bytes(buf + 5000, 60 * KIB - 5000, 0));
        EXPECT_EQ(blk_close(blk), 0);
    }
    place_finish(&p);
}

TEST(file, a_length_that_somebody_else_changed_is_seen_when_asked_for)
{
    Place p;
    BlockBackend *blk;
    char buf[4096];

    place_init(&p);
    make_file(p.path, 64 * KIB, 'a');
    blk = must_open(p.path, "");
    ASSERT_EQ(truncate(p.path, 128 * KIB), 0);
    EXPECT_EQ(run_read(blk, 64 * KIB, 4096, buf), -EINVAL);
    EXPECT_EQ(blk_refresh_length(blk, NULL), 0);
    EXPECT_EQ(blk_length(blk), 128 * KIB);
    EXPECT_EQ(run_read(blk, 124 * KIB, 4096, buf), 0);
    EXPECT_TRUE(all_bytes(buf, 4096, 0));
    ASSERT_EQ(truncate(p.path, 32 * KIB), 0);
    EXPECT_EQ(run_read(blk, 32 * KIB, 4096, buf), -EIO);
    EXPECT_EQ(blk_refresh_length(blk, NULL), 0);
    EXPECT_EQ(blk_length(blk), 32 * KIB);
    EXPECT_EQ(run_read(blk, 32 * KIB, 4096, buf), -EINVAL);
    EXPECT_EQ(blk_close(blk), 0);
    place_finish(&p);
}

/* --- locks --- */

/* A process that locks @path in its own way, until the pipe that it is given is closed. */
static pid_t start_holder(const char *path, int command, short type, int ret_pipe[2])
{
    char ready;
    int done[2];
    pid_t pid;

    ASSERT_EQ(pipe2(ret_pipe, O_CLOEXEC), 0);
    ASSERT_EQ(pipe2(done, O_CLOEXEC), 0);
    pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
        struct flock lock = { .l_type = type, .l_start = 100, .l_len = 1 };
        int fd = open(path, O_RDWR | O_CLOEXEC);

        close(ret_pipe[1]);
        ready = fcntl(fd, command, &lock) == 0;
        (void)!write(done[1], &ready, 1);
        (void)!read(ret_pipe[0], &ready, 1);
        _exit(0);
    }
    close(done[1]);
    ASSERT_EQ(read(done[0], &ready, 1), 1);
    close(done[0]);
    close(ret_pipe[0]);
    ASSERT_EQ(ready, 1);
    return pid;
}

static void end_holder(pid_t pid, const int holder_pipe[2])
{
    close(holder_pipe[1]);
    EXPECT_EQ(waitpid(pid, NULL, 0), pid);
}

TEST(file, an_image_has_one_writer_or_many_readers)
{
    Place p;
    BlockBackend *first, *second;

    place_init(&p);
    make_file(p.path, 64 * KIB, 'a');
    first = must_open(p.path, "");
    expect_refused(p.path, "", -EBUSY, "in use for writing by this process itself");
    expect_refused(p.path, "readonly=on", -EBUSY, "locking=off");
    second = must_open(p.path, "locking=off");
    EXPECT_EQ(blk_close(second), 0);
    expect_refused(p.path, "locking=on", -EBUSY, "in use"); /* that took no lock away */
    EXPECT_EQ(blk_close(first), 0);

    first = must_open(p.path, "readonly=on");
    second = must_open(p.path, "readonly=on,locking=on");
    expect_refused(p.path, "", -EBUSY, "in use for reading");
    EXPECT_EQ(blk_close(first), 0);
    expect_refused(p.path, "", -EBUSY, "in use for reading");
    EXPECT_EQ(blk_close(second), 0);
    for (unsigned i = 0; i < 20; i++) { /* at once, whatever a ring still keeps open */
        static char buf[4096] __attribute__((aligned(4096)));

        first = must_open(p.path, "");
        EXPECT_EQ(run_read(first, 0, 4096, buf), 0);
        EXPECT_EQ(blk_close(first), 0);
    }
    place_finish(&p);
}

TEST(file, another_process_that_has_a_lock_is_named)
{
    static const int commands[] = { F_OFD_SETLK, F_SETLK };
    Place p;
    char words[64];

    place_init(&p);
    make_file(p.path, 64 * KIB, 'a');
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        int holder_pipe[2];
        pid_t pid = start_holder(p.path, commands[i], F_WRLCK, holder_pipe);

        snprintf(words, sizeof(words), "in use for writing by process %d (", (int)pid);
        expect_refused(p.path, "", -EBUSY, words);
        expect_refused(p.path, "readonly=on", -EBUSY, words);
        end_holder(pid, holder_pipe);
        pid = start_holder(p.path, commands[i], F_RDLCK, holder_pipe);
        snprintf(words, sizeof(words), "in use for reading by process %d (", (int)pid);
        expect_refused(p.path, "", -EBUSY, words);
        EXPECT_EQ(blk_close(must_open(p.path, "readonly=on")), 0);
        end_holder(pid, holder_pipe);
        EXPECT_EQ(blk_close(must_open(p.path, "")), 0);
    }
    place_finish(&p);
}

/* --- discard and write-zeroes --- */

/* A descriptor of a FUSE file system that nobody serves; -1 where there cannot be one. */
static int open_stuck(void)
{
    char folder[] = "/tmp/penstock-stuck.XXXXXX", options[96];
    int fuse_fd = open("/dev/fuse", O_RDWR | O_CLOEXEC), fd = -1;

    snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse_fd);
    if (fuse_fd >= 0 && unshare(CLONE_NEWNS) == 0 &&
        mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 && mkdtemp(folder)) {
        if (mount("none", folder, "fuse", 0, options) == 0) {
            fd = open(folder, O_PATH | O_CLOEXEC);
            umount2(folder, MNT_DETACH);
        }
        rmdir(folder);
    }
    return fd;
}

/* A process that has one, until the pipe that it is given is closed. */
static pid_t start_stuck(int ret_pipe[2])
{
    int done[2];
    char ready;
    pid_t pid;

    ASSERT_EQ(pipe2(ret_pipe, O_CLOEXEC), 0);
    ASSERT_EQ(pipe2(done, O_CLOEXEC), 0);
    pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
        close(ret_pipe[1]);
        ready = open_stuck() >= 0;
        (void)!write(done[1], &ready, 1);
        (void)!read(ret_pipe[0], &ready, 1);
        _exit(0);
    }
    close(done[1]);
    ASSERT_EQ(read(done[0], &ready, 1), 1);
    close(done[0]);
    close(ret_pipe[0]);
    if (!ready) {
        close(ret_pipe[1]);
        TEST_SKIP("needs the right to mount a FUSE file system");
    }
    return pid;
}

TEST(file, who_looks_for_a_lock_s_holder_waits_for_no_other_file_system)
{
    int stuck_pipe[2], holder_pipe[2];
    pid_t stuck = start_stuck(stuck_pipe), holder;
    char words[64];
    Place p;

    place_init(&p);
    make_file(p.path, 64 * KIB, 'a');
    holder = start_holder(p.path, F_OFD_SETLK, F_WRLCK, holder_pipe);
    snprintf(words, sizeof(words), "in use for writing by process %d (", (int)holder);
    expect_refused(p.path, "", -EBUSY, words);
    end_holder(holder, holder_pipe);
    end_holder(stuck, stuck_pipe);
    place_finish(&p);
}

TEST(file, truncating_changes_the_file_and_what_is_new_reads_as_zeroes)
{
    Place p;
    BlockBackend *blk;
    char buf[4096];
    Error err = { 0 };

    place_init(&p);
    make_file(p.path, 64 * KIB, 'a');
    blk = must_open(p.path, "");
    EXPECT_EQ(blk_truncate(blk, 16 * KIB, NULL), 0);
    EXPECT_EQ(size_of(p.path), 16 * KIB);
    EXPECT_EQ(blk_truncate(blk, 32 * KIB, NULL), 0);
    EXPECT_EQ(size_of(p.path), 32 * KIB);
    EXPECT_EQ(run_read(blk, 12 * KIB, 4096, buf), 0);
    EXPECT_TRUE(all_bytes(buf, sizeof(buf), 'a'));
    EXPECT_EQ(run_read(blk, 16 * KIB, 4096, buf), 0);
    EXPECT_TRUE(all_bytes(buf, sizeof(buf), 0));
    EXPECT_EQ(run_read(blk, 32 * KIB, 512, buf), -EINVAL);
    ASSERT_EQ(truncate(p.path, 40 * KIB), 0); /* by somebody else */
    EXPECT_EQ(blk_truncate(blk, 40 * KIB, NULL), 0);
    EXPECT_EQ(run_read(blk, 40 * KIB - 512, 512, buf), 0);
    EXPECT_EQ(blk_truncate(blk, 32 * KIB, NULL), 0);
    EXPECT_TRUE(blk_truncate(blk, (uint64_t)1 << 63, &err) == -EFBIG);
    EXPECT_TRUE(strstr(err.msg, "9223372036854775808 bytes are more than a file can have") != NULL);
    EXPECT_EQ(blk_length(blk), 32 * KIB);
    EXPECT_EQ(blk_close(blk), 0);
    place_finish(&p);
}

TEST(file, a_file_that_others_make_longer_or_shorter_is_seen_when_looked_at)
{
    Place p;
    BlockBackend *blk;
    char buf[512];
    Error err;

    place_init(&p);
    make_file(p.path, 64 * KIB, 'a');
    blk = must_open(p.path, "readonly=on");
    ASSERT_EQ(truncate(p.path, 128 * KIB + 1), 0);
    EXPECT_EQ(blk_length(blk), 64 * KIB);
    EXPECT_EQ(blk_refresh_length(blk, NULL), 0);
    EXPECT_EQ(blk_length(blk), 128 * KIB + 512);
    EXPECT_EQ(run_read(blk, 128 * KIB, 512, buf), 0);
    ASSERT_EQ(truncate(p.path, 4 * KIB), 0);
    EXPECT_EQ(blk_refresh_length(blk, NULL), 0);
    EXPECT_EQ(run_read(blk, 4 * KIB, 512, buf), -EINVAL);
    ASSERT_EQ(truncate(p.path, 0), 0);
    EXPECT_EQ(blk_refresh_length(blk, &err), -EMEDIUMTYPE);
    EXPECT_TRUE(strstr(err.msg, "nothing is left of it") != NULL);
    EXPECT_EQ(blk_length(blk), 4 * KIB);
    EXPECT_EQ(run_read(blk, 0, 512, buf), -EIO);
    EXPECT_EQ(blk_close(blk), 0);
    place_finish(&p);
}

TEST(file, block_status_tells_holes_from_data)
{
    Place p;
    BlockBackend *blk;
    uint64_t len;

    place_init(&p);
    make_file(p.path, 64 * KIB, 'a');
    ASSERT_EQ(truncate(p.path, 256 * KIB), 0);
    blk = must_open(p.path, "");
    EXPECT_EQ(run_status(blk, 0, 256 * KIB, &len), BLK_STATUS_DATA);
    if (len == 256 * KIB) {
        blk_close(blk);
        unlink(p.path);
        TEST_SKIP("this file system does not tell holes");
    }
    EXPECT_EQ(len, 64 * KIB);
    EXPECT_EQ(run_status(blk, 4 * KIB + 512, 8 * KIB, &len), BLK_STATUS_DATA);
    EXPECT_EQ(len, 8 * KIB);
    EXPECT_EQ(run_status(blk, 64 * KIB, 192 * KIB, &len), BLK_STATUS_ZERO);
    EXPECT_EQ(len, 192 * KIB);
    EXPECT_EQ(run_status(blk, 256 * KIB, 512, &len), -EINVAL);
    ASSERT_EQ(truncate(p.path, 128 * KIB), 0); /* behind our back */
    EXPECT_EQ(run_status(blk, 64 * KIB, 192 * KIB, &len), BLK_STATUS_ZERO);
    EXPECT_EQ(len, 64 * KIB);
    EXPECT_EQ(run_status(blk, 192 * KIB, 512, &len), -EIO); /* like a read there */
    hook.blocking_ret = -EIO;
    EXPECT_EQ(run_status(blk, 0, 512, &len), -EIO);
    hook.blocking_ret = -EINVAL; /* the file system knows nothing of it */
    EXPECT_EQ(run_status(blk, 0, 512, &len), BLK_STATUS_DATA);
    hook.blocking_ret = 0;
    EXPECT_EQ(blk_close(blk), 0);
    place_finish(&p);
}

TEST(file, discard_gives_the_space_back_unless_it_is_ignored)
{
    Place p;
    BlockBackend *blk;

    place_init(&p);
    make_file(p.path, MIB, 'a');
    ASSERT_GE(allocated(p.path), MIB);
    blk = must_open(p.path, "discard=ignore");
    EXPECT_EQ(run_discard(blk, 0, MIB), 0);
    EXPECT_EQ(blk_close(blk), 0);
    EXPECT_EQ(hook.nb_fallocates, 0u);

    blk = must_open(p.path, "");
    EXPECT_EQ(run_discard(blk, 512, MIB - 512), 0); /* shrunk to 4096 .. 1 MiB */
    EXPECT_EQ(hook.nb_fallocates, 1u);
    EXPECT_EQ(blk_close(blk), 0);
    if (allocated(p.path) >= MIB) {
        TEST_SKIP("the file system does not punch holes");
    }
    EXPECT_LT(allocated(p.path), 64 * KIB);
    EXPECT_EQ(size_of(p.path), MIB);
    place_finish(&p);
}

TEST(file, zeroes_deallocate_only_when_they_may)
{
    Place p;
    BlockBackend *blk;
    static char buf[MIB];

    place_init(&p);
    make_file(p.path, MIB, 'a');
    blk = must_open(p.path, "cache=writeback");
    EXPECT_EQ(run_zeroes(blk, 0, MIB, 0), 0);
    EXPECT_GE(allocated(p.path), MIB);
    EXPECT_EQ(run_read(blk, 0, MIB, buf), 0);
    EXPECT_TRUE(all_bytes(buf, MIB, 0));
    EXPECT_EQ(run_zeroes(blk, 0, MIB, BLK_MAY_UNMAP), 0);
    EXPECT_TRUE(hook.last_mode & FALLOC_FL_PUNCH_HOLE);
    EXPECT_EQ(blk_close(blk), 0);
    place_finish(&p);
}

TEST(file, refused_operation_is_tried_once_and_replaced)
{
    Place p;
    BlockBackend *blk;
    static char buf[64 * KIB];

    place_init(&p);
    make_file(p.path, 64 * KIB, 'a');
    blk = must_open(p.path, "cache=writeback");
    hook.fallocate_ret = -EOPNOTSUPP;
    EXPECT_EQ(run_zeroes(blk, 0, 64 * KIB, BLK_MAY_UNMAP), 0);
    EXPECT_EQ(hook.nb_fallocates, 2u); /* a hole, then a range */
    EXPECT_EQ(run_read(blk, 0, 64 * KIB, buf), 0);
    EXPECT_TRUE(all_bytes(buf, 64 * KIB, 0));
    EXPECT_EQ(run_zeroes(blk, 0, 64 * KIB, BLK_MAY_UNMAP), 0);
    EXPECT_EQ(run_zeroes(blk, 0, 64 * KIB, 0), 0);
    EXPECT_EQ(run_discard(blk, 0, 64 * KIB), 0);
    EXPECT_EQ(hook.nb_fallocates, 2u);
    EXPECT_EQ(blk_close(blk), 0);
    place_finish(&p);
}

/* --- a full file system --- */

/* Mount a small file system in a mount namespace of this process alone, over @dir. */
static void mount_tmpfs(const char *dir, const char *options)
{
    if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("tmpfs", dir, "tmpfs", 0, options) < 0) {
        rmdir(dir);
        TEST_SKIP("needs the right to mount a tmpfs: %s", error_strerror(errno));
    }
}

TEST(file, full_file_system_is_an_error_and_nothing_else)
{
    Place p;
    BlockBackend *blk;
    static char buf[2 * MIB];
    int ret = 0;

    place_init(&p);
    mount_tmpfs(p.dir, "size=1M");
    make_file(p.path, 0, 0);
    ASSERT_EQ(truncate(p.path, 2 * MIB), 0);
    blk = must_open(p.path, "cache=writeback");
    memset(buf, 'a', sizeof(buf));
    EXPECT_EQ(run_write(blk, 0, 2 * MIB, buf, 0), -ENOSPC);
    EXPECT_EQ(run_write(blk, 2 * MIB - 4096, 4096, buf, 0), -ENOSPC);
    EXPECT_EQ(run_read(blk, 0, 2 * MIB, buf), 0); /* what fitted was written */
    EXPECT_EQ(buf[0], 'a');
    EXPECT_EQ(buf[2 * MIB - 1], 0);
    EXPECT_EQ(run_discard(blk, 0, MIB), 0);
    ret = run_write(blk, 2 * MIB - 4096, 4096, buf, 0); /* there is room again */
    EXPECT_EQ(ret, 0);
    EXPECT_EQ(blk_close(blk), 0);
    EXPECT_EQ(size_of(p.path), 2 * MIB);
    unlink(p.path);
    ASSERT_EQ(umount2(p.dir, MNT_DETACH), 0); /* a ring may hold the file a little longer */
    place_finish(&p);
}

/* A disk has no byte that an off_t cannot name, though rounding up would give it one. */
TEST(file, longest_file_there_can_be_is_a_disk_up_to_its_last_whole_sector)
{
    const uint64_t length_bytes = (uint64_t)INT64_MAX - 511;
    Place p;
    char buf[1024], back[1024];

    place_init(&p);
    mount_tmpfs(p.dir, "size=1M");
    make_file(p.path, 0, 0);
    ASSERT_EQ(truncate(p.path, INT64_MAX), 0);
    memset(buf, 'e', sizeof(buf));
    for (unsigned i = 0; i < ARRAY_SIZE(caches); i++) {
        BlockBackend *blk = must_open(p.path, caches[i]);

        EXPECT_EQ(blk_length(blk), length_bytes);
        EXPECT_EQ(run_write(blk, length_bytes - 1000, 1000, buf, 0), 0);
        EXPECT_EQ(run_read(blk, length_bytes - 1000, 1000, back), 0);
        EXPECT_TRUE(memcmp(buf, back, 1000) == 0);
        EXPECT_EQ(run_write(blk, length_bytes - 500, 501, buf, 0), -EINVAL);
        EXPECT_EQ(run_zeroes(blk, length_bytes - 1000, 1000, 0), 0);
        EXPECT_EQ(blk_refresh_length(blk, NULL), 0);
        EXPECT_EQ(blk_length(blk), length_bytes);
        EXPECT_EQ(blk_close(blk), 0);
    }
    unlink(p.path);
    ASSERT_EQ(umount2(p.dir, MNT_DETACH), 0);
    place_finish(&p);
}

TEST(file, file_size_limit_of_the_process_is_an_error_and_nothing_else)
{
    Place p;
    BlockBackend *blk;
    char buf[4096] = { 0 };
    struct rlimit limit = { .rlim_cur = 64 * KIB, .rlim_max = RLIM_INFINITY };

    place_init(&p);
    make_file(p.path, 0, 0);
    ASSERT_EQ(truncate(p.path, 128 * KIB), 0);
    blk = must_open(p.path, "cache=writeback");
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = 64 * KIB;
    signal(SIGXFSZ, SIG_IGN);
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    EXPECT_EQ(run_write(blk, 60 * KIB, 4096, buf, 0), 0);
    EXPECT_EQ(run_write(blk, 64 * KIB, 4096, buf, 0), -EFBIG);
    EXPECT_EQ(run_read(blk, 64 * KIB, 4096, buf), 0);
    EXPECT_EQ(blk_close(blk), 0);
    place_finish(&p);
}

/* --- what is no disk --- */

static void make_socket(const char *path)
{
    struct sockaddr_un sa = { .sun_family = AF_UNIX };
    AUTO_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
    ASSERT_EQ(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
}

TEST(file, what_is_no_disk_is_refused_with_the_reason)
{
    Place p;

    place_init(&p);
    expect_refused(p.path, "", -ENOENT, "No such file");
    EXPECT_EQ(access(p.path, F_OK), -1); /* not created */
    expect_refused(p.dir, "", -EMEDIUMTYPE, "is a directory");
    expect_refused("/dev/null", "", -EMEDIUMTYPE, "is a character device");
    expect_refused("/dev/null/x", "", -ENOTDIR, "Not a directory");

    ASSERT_EQ(mkfifo(p.path, 0600), 0);
    expect_refused(p.path, "", -EMEDIUMTYPE, "is a FIFO"); /* at once, not when somebody opens it */
    unlink(p.path);
    make_socket(p.path);
    expect_refused(p.path, "", -EMEDIUMTYPE, "is a socket");
    unlink(p.path);

    make_file(p.path, 0, 0);
    expect_refused(p.path, "", -EMEDIUMTYPE, "is empty");
    make_file(p.path, 100, 'a');
    expect_refused(p.path, "", -EMEDIUMTYPE, "has 100 bytes");
    EXPECT_EQ(size_of(p.path), 100u);
    make_file(p.path, 511, 'a');
    expect_refused(p.path, "readonly=on", -EMEDIUMTYPE, "has 511 bytes");
    make_file(p.path, 512, 'a');
    EXPECT_EQ(blk_close(must_open(p.path, "")), 0);
    unlink(p.path);
    ASSERT_EQ(symlink(p.path, p.path), 0);
    expect_refused(p.path, "", -ELOOP, "symbolic links");
    place_finish(&p);
}

TEST(file, driver_without_a_path_is_refused)
{
    Opts opts;
    Error err = { 0 };

    ASSERT_EQ(opts_parse(&opts, "--disk", "driver=file", "path", &err), 0);
    EXPECT_TRUE(blk_open("d0", &opts, &err) == NULL);
    EXPECT_TRUE(strstr(err.msg, "path=FILE") != NULL);
    opts_finish(&opts);
}

TEST(file, missing_permission_is_refused_with_a_hint_where_there_is_one)
{
    Place p;
    BlockBackend *blk;
    char buf[512];

    place_init(&p);
    make_file(p.path, 4096, 'a');
    ASSERT_EQ(chmod(p.dir, 0755), 0);
    ASSERT_EQ(chmod(p.path, 0444), 0);
    if (geteuid() == 0) {
        ASSERT_EQ(setresuid((uid_t)-1, 65534, 0), 0);
    }
    expect_refused(p.path, "", -EACCES, "readonly=on");
    blk = must_open(p.path, "readonly=on");
    EXPECT_TRUE(blk_read_only(blk));
    EXPECT_EQ(run_read(blk, 0, 512, buf), 0);
    EXPECT_EQ(buf[0], 'a');
    EXPECT_EQ(blk_close(blk), 0);
    ASSERT_EQ(setresuid((uid_t)-1, getuid(), (uid_t)-1), 0);

    ASSERT_EQ(chmod(p.path, 0), 0);
    if (geteuid() == 0) {
        ASSERT_EQ(setresuid((uid_t)-1, 65534, 0), 0);
    }
    Error err = { 0 };

    EXPECT_TRUE(open_disk(p.path, "", &err) == NULL);
    EXPECT_EQ(err.code, -EACCES);
    EXPECT_TRUE(strstr(err.msg, "readonly") == NULL);
    ASSERT_EQ(setresuid((uid_t)-1, getuid(), (uid_t)-1), 0);
    place_finish(&p);
}

TEST(file, every_failure_to_open_closes_what_it_opened)
{
    Place p;
    int before, after;

    place_init(&p);
    make_file(p.path, 100, 'a');
    before = dup(0);
    expect_refused(p.path, "", -EMEDIUMTYPE, "has 100 bytes");
    expect_refused(p.path, "cache=none", -EMEDIUMTYPE, "has 100 bytes");
    after = dup(0);
    EXPECT_EQ(after, before + 1);
    close(before);
    close(after);
    place_finish(&p);
}

TEST(file, without_o_direct_the_page_cache_is_taken_unless_none_was_asked_for)
{
    static const char path[] = "/sys/kernel/uevent_seqnum"; /* sysfs has no O_DIRECT */
    AUTO_FD int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    Env env;
    BlockBackend *blk;

    if (access(path, R_OK) < 0 || fd >= 0) {
        TEST_SKIP("no file without O_DIRECT at %s", path);
    }
    env_init(&env, 0);
    expect_refused(path, "readonly=on,cache=none", -EMEDIUMTYPE, "cache=writeback would do");
    blk = must_open(path, "readonly=on");
    EXPECT_EQ(blk_node(blk)->cache, BLK_CACHE_WRITEBACK);
    EXPECT_EQ(blk_limits(blk)->request_alignment, 1u);
    EXPECT_EQ(blk_close(blk), 0);
    env_finish(&env);
}

TEST(file, default_is_o_direct_where_it_works)
{
    Place p;
    BlockBackend *blk;
    int fd;

    place_init(&p);
    make_file(p.path, 64 * KIB, 'a');
    fd = open(p.path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    blk = must_open(p.path, "");
    EXPECT_EQ(blk_node(blk)->cache, fd < 0 ? BLK_CACHE_WRITEBACK : BLK_CACHE_NONE);
    if (fd >= 0) {
        EXPECT_GE(blk_limits(blk)->request_alignment, 512u);
        close(fd);
    }
    EXPECT_EQ(blk_close(blk), 0);
    place_finish(&p);
}

/* --- block devices --- */

/* A loop device on @path that goes away when it is closed; its descriptor keeps it. */
static int make_loop(const char *path, uint32_t block_bytes, char *ret_device, size_t room)
{
    struct loop_config config = { .block_size = block_bytes,
                                  .info = { .lo_flags = LO_FLAGS_AUTOCLEAR } };
    AUTO_FD int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    AUTO_FD int backing = open(path, O_RDWR | O_CLOEXEC);

    for (unsigned i = 0; control >= 0 && i < 10; i++) { /* another process may be faster */
        int nr = ioctl(control, LOOP_CTL_GET_FREE);
        int fd;

        snprintf(ret_device, room, "/dev/loop%d", nr);
        fd = nr < 0 ? -1 : open(ret_device, O_RDWR | O_CLOEXEC);
        config.fd = (uint32_t)backing;
        if (fd >= 0 && ioctl(fd, LOOP_CONFIGURE, &config) == 0) {
            return fd;
        }
        if (fd >= 0) {
            close(fd);
        }
    }
    return -1;
}

static void device_requests(BlockBackend *blk, const char *backing)
{
    AUTO_FREE char *expect = malloc(MODEL_BYTES);
    char buf[8192];

    EXPECT_EQ(blk_length(blk), MODEL_BYTES);
    EXPECT_EQ(blk_limits(blk)->logical_block_bytes, 4096u);
    EXPECT_EQ(blk_limits(blk)->request_alignment, 4096u);
    memset(expect, 'a', MODEL_BYTES);
    EXPECT_EQ(run_write(blk, 0, MODEL_BYTES, expect, 0), 0);
    random_requests(blk, expect, 100);
    EXPECT_EQ(run_zeroes(blk, 0, MODEL_BYTES, 0), 0);
    EXPECT_GT(hook.nb_blocking, 0u);
    EXPECT_EQ(run_discard(blk, 0, MODEL_BYTES), 0);
    EXPECT_EQ(run_read(blk, 4096, 8192, buf), 0);
    EXPECT_TRUE(all_bytes(buf, 8192, 0));
    EXPECT_EQ(run_flush(blk), 0);
    EXPECT_LT(allocated(backing), MODEL_BYTES);
}

TEST(file, block_device_with_large_blocks_takes_small_requests)
{
    Place p;
    char device[32];
    int loop;

    place_init(&p);
    make_file(p.path, MODEL_BYTES, 'a');
    loop = make_loop(p.path, 4096, device, sizeof(device));
    if (loop < 0) {
        unlink(p.path);
        rmdir(p.dir);
        TEST_SKIP("no loop device can be set up: %s", error_strerror(errno));
    }
    for (unsigned i = 0; i < ARRAY_SIZE(caches); i++) {
        BlockBackend *blk = must_open(device, caches[i]);

        hook.nb_blocking = 0;
        device_requests(blk, p.path);
        EXPECT_EQ(blk_close(blk), 0);
    }
    close(loop);
    place_finish(&p);
}

TEST(file, a_device_that_becomes_smaller_gives_errors_and_nothing_else)
{
    Place p;
    char device[32], buf[4096];
    int loop;

    place_init(&p);
    make_file(p.path, MODEL_BYTES, 'a');
    loop = make_loop(p.path, 4096, device, sizeof(device));
    if (loop < 0) {
        unlink(p.path);
        rmdir(p.dir);
        TEST_SKIP("no loop device can be set up: %s", error_strerror(errno));
    }
    for (unsigned i = 0; i < ARRAY_SIZE(caches); i++) {
        BlockBackend *blk;

        make_file(p.path, MODEL_BYTES, 'a');
        ASSERT_EQ(ioctl(loop, LOOP_SET_CAPACITY, 0), 0);
        blk = must_open(device, caches[i]);
        ASSERT_EQ(truncate(p.path, 64 * KIB), 0);
        ASSERT_EQ(ioctl(loop, LOOP_SET_CAPACITY, 0), 0);
        EXPECT_EQ(run_read(blk, 128 * KIB, 4096, buf), -EIO);
        memset(buf, 'b', sizeof(buf));
        EXPECT_LT(run_write(blk, 128 * KIB, 4096, buf, 0), 0);
        EXPECT_LT(run_zeroes(blk, 128 * KIB, 4096, 0), 0);
        EXPECT_EQ(run_write(blk, 4096, 4096, buf, 0), 0); /* the rest is there */
        EXPECT_EQ(run_read(blk, 0, 4096, buf), 0);
        EXPECT_TRUE(all_bytes(buf, 4096, 'a'));
        EXPECT_EQ(blk_refresh_length(blk, NULL), 0);
        EXPECT_EQ(blk_length(blk), 64 * KIB);
        EXPECT_EQ(run_flush(blk), 0);
        EXPECT_EQ(blk_close(blk), 0);
    }
    close(loop);
    place_finish(&p);
}

TEST(file, a_device_that_becomes_larger_is_seen_when_its_new_length_is_named)
{
    Place p;
    char device[32], buf[4096];
    Error err = { 0 };
    int loop;

    place_init(&p);
    make_file(p.path, MODEL_BYTES, 'a');
    loop = make_loop(p.path, 4096, device, sizeof(device));
    if (loop < 0) {
        unlink(p.path);
        rmdir(p.dir);
        TEST_SKIP("no loop device can be set up: %s", error_strerror(errno));
    }
    BlockBackend *blk = must_open(device, "");

    EXPECT_EQ(blk_truncate(blk, 2 * MODEL_BYTES, &err), -EOPNOTSUPP);
    EXPECT_TRUE(strstr(err.msg, "the length of a device") != NULL);
    ASSERT_EQ(truncate(p.path, 2 * MODEL_BYTES), 0);
    ASSERT_EQ(ioctl(loop, LOOP_SET_CAPACITY, 0), 0);
    EXPECT_EQ(blk_length(blk), MODEL_BYTES);
    EXPECT_EQ(run_read(blk, MODEL_BYTES, 4096, buf), -EINVAL);
    EXPECT_EQ(blk_truncate(blk, MODEL_BYTES, NULL), -EOPNOTSUPP);
    EXPECT_EQ(blk_truncate(blk, 2 * MODEL_BYTES, NULL), 0);
    EXPECT_EQ(blk_length(blk), 2 * MODEL_BYTES);
    EXPECT_EQ(run_read(blk, 2 * MODEL_BYTES - 4096, 4096, buf), 0);
    EXPECT_TRUE(all_bytes(buf, 4096, 0));
    EXPECT_EQ(blk_close(blk), 0);
    close(loop);
    place_finish(&p);
}

/* The file of a loop device without a byte left: no request finds any storage. */
TEST(file, a_device_that_is_gone_gives_errors_and_nothing_else)
{
    Place p;
    char device[32], buf[4096] = { 0 };
    int loop;

    place_init(&p);
    make_file(p.path, MODEL_BYTES, 'a');
    loop = make_loop(p.path, 4096, device, sizeof(device));
    if (loop < 0) {
        unlink(p.path);
        rmdir(p.dir);
        TEST_SKIP("no loop device can be set up: %s", error_strerror(errno));
    }
    for (unsigned i = 0; i < ARRAY_SIZE(caches); i++) {
        uint64_t len_bytes;

        make_file(p.path, MODEL_BYTES, 'a');
        ASSERT_EQ(ioctl(loop, LOOP_SET_CAPACITY, 0), 0);
        BlockBackend *blk = must_open(device, caches[i]);

        ASSERT_EQ(truncate(p.path, 0), 0);
        ASSERT_EQ(ioctl(loop, LOOP_SET_CAPACITY, 0), 0);
        for (uint64_t at = 0; at < MODEL_BYTES; at += MODEL_BYTES / 2) {
            EXPECT_EQ(run_read(blk, at, 4096, buf), -EIO);
            EXPECT_LT(run_write(blk, at, 4096, buf, 0), 0);
            EXPECT_LT(run_write(blk, at, 4096, buf, BLK_FUA), 0);
            EXPECT_LT(run_zeroes(blk, at, 4096, 0), 0);
            EXPECT_LE(run_discard(blk, at, 4096), 0);
            EXPECT_LE(run_status(blk, at, 4096, &len_bytes), BLK_STATUS_DATA);
        }
        EXPECT_LE(run_flush(blk), 0);
        EXPECT_EQ(blk_in_flight(blk), 0u);

        make_file(p.path, MODEL_BYTES, 'b'); /* and back again */
        ASSERT_EQ(ioctl(loop, LOOP_SET_CAPACITY, 0), 0);
        EXPECT_EQ(run_read(blk, 0, 4096, buf), 0);
        EXPECT_TRUE(all_bytes(buf, 4096, 'b'));
        EXPECT_EQ(blk_close(blk), 0);
    }
    close(loop);
    place_finish(&p);
}

/* A file system whose O_DIRECT needs 4096: ext4 on such a device, mounted for this process
 * alone. */
static bool mount_ext4(const char *device, const char *dir)
{
    pid_t pid = fork();
    int status;

    if (pid == 0) {
        int null = open("/dev/null", O_WRONLY);

        dup2(null, 1);
        dup2(null, 2);
        execlp("mkfs.ext4", "mkfs.ext4", "-q", "-F", device, (char *)NULL);
        _exit(127);
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0 && unshare(CLONE_NEWNS) == 0 &&
           mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount(device, dir, "ext4", 0, NULL) == 0;
}

static void small_image_requests(const char *path)
{
    BlockBackend *blk;
    char buf[1024];

    /* 9 sectors: the last block would have to be written past the end. */
    make_file(path, 9 * 512, 'a');
    expect_refused(path, "cache=none", -EMEDIUMTYPE, "O_DIRECT needs multiples of 4096");
    blk = must_open(path, "");
    EXPECT_EQ(blk_node(blk)->cache, BLK_CACHE_WRITEBACK);
    memset(buf, 'b', sizeof(buf));
    EXPECT_EQ(run_write(blk, 8 * 512, 512, buf, 0), 0);
    EXPECT_EQ(blk_close(blk), 0);
    EXPECT_EQ(size_of(path), 9u * 512);

    blk = must_open(path, "cache=none,readonly=on");
    EXPECT_EQ(blk_limits(blk)->request_alignment, 4096u);
    EXPECT_EQ(blk_length(blk), 9u * 512);
    EXPECT_EQ(run_read(blk, 7 * 512, 1024, buf), 0);
    EXPECT_TRUE(all_bytes(buf, 512, 'a') && all_bytes(buf + 512, 512, 'b'));
    EXPECT_EQ(blk_close(blk), 0);

    make_file(path, 16 * 512, 'a');
    blk = must_open(path, "");
    EXPECT_EQ(blk_node(blk)->cache, BLK_CACHE_NONE);
    EXPECT_EQ(blk_limits(blk)->logical_block_bytes, 512u);
    EXPECT_EQ(run_write(blk, 9 * 512, 512, buf + 512, 0), 0);
    EXPECT_EQ(run_read(blk, 8 * 512, 1024, buf), 0);
    EXPECT_TRUE(all_bytes(buf, 512, 'a') && all_bytes(buf + 512, 512, 'b'));
    EXPECT_EQ(blk_close(blk), 0);
}

TEST(file, image_with_a_partial_last_block_is_not_grown_for_o_direct)
{
    Place p;
    char device[32], mounted[128], inside[160];
    int loop;

    place_init(&p);
    make_file(p.path, 8 * MIB, 0);
    snprintf(mounted, sizeof(mounted), "%s/mnt", p.dir);
    snprintf(inside, sizeof(inside), "%s/image", mounted);
    ASSERT_EQ(mkdir(mounted, 0700), 0);
    loop = make_loop(p.path, 4096, device, sizeof(device));
    if (loop < 0 || !mount_ext4(device, mounted)) {
        if (loop >= 0) {
            close(loop);
        }
        rmdir(mounted);
        unlink(p.path);
        rmdir(p.dir);
        TEST_SKIP("needs a loop device, mkfs.ext4 and the right to mount");
    }
    small_image_requests(inside);
    EXPECT_EQ(umount2(mounted, MNT_DETACH), 0);
    close(loop);
    EXPECT_EQ(rmdir(mounted), 0);
    place_finish(&p);
}

TEST_MAIN()
