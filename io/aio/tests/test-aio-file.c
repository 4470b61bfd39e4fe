/*
 * test-aio-file.c - disk requests: data, ends of files, many at once, fixed files and buffers
 */
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>

#include "io/aio/aio-file.h"
#include "io/aio/iothread.h"
#include "io/aio/tests/aio-test.h"

#define BLOCK 4096

static int temp_file(uint64_t size_bytes)
{
    char path[] = "/tmp/test-aio-file-XXXXXX";
    int fd = mkstemp(path);

    ASSERT_GE(fd, 0);
    unlink(path);
    ASSERT_EQ(ftruncate(fd, size_bytes), 0);
    return fd;
}

static void fill(uint8_t *buf, size_t len_bytes, unsigned seed)
{
    for (size_t i = 0; i < len_bytes; i++) {
        buf[i] = (uint8_t)(seed * 31 + i * 7 + (i >> 8));
    }
}

static bool filled(const uint8_t *buf, size_t len_bytes, unsigned seed)
{
    for (size_t i = 0; i < len_bytes; i++) {
        if (buf[i] != (uint8_t)(seed * 31 + i * 7 + (i >> 8))) {
            return false;
        }
    }
    return true;
}

/* --- one coroutine --- */

static AioFile file;

static void write_and_read_entry(void *opaque)
{
    static uint8_t out[3 * BLOCK], in[3 * BLOCK];
    struct iovec one = { out, sizeof(out) };
    struct iovec three[] = { { in, 100 }, { in + 100, BLOCK }, { in + 100 + BLOCK, 2000 } };

    assert_in_coroutine();
    fill(out, sizeof(out), 1);
    EXPECT_EQ(aio_co_pwritev(&file, &one, 1, 512, 0), sizeof(out));
    EXPECT_EQ(aio_co_pwritev(&file, &one, 1, 512, RWF_DSYNC), sizeof(out));
    EXPECT_EQ(aio_co_fdatasync(&file), 0);
    EXPECT_EQ(aio_co_preadv(&file, three, 3, 512, 0), 2100 + BLOCK);
    EXPECT_TRUE(filled(in, 2100 + BLOCK, 1));

    /* the end of the file: short, then nothing */
    one = (struct iovec){ in, sizeof(in) };
    EXPECT_EQ(aio_co_preadv(&file, &one, 1, 512 + 2 * BLOCK, 0), BLOCK);
    EXPECT_EQ(aio_co_preadv(&file, &one, 1, 1 << 20, 0), 0);

    /* errors come back as they are */
    EXPECT_EQ(aio_co_preadv(&file, &one, 1, UINT64_MAX - 10, 0), -EINVAL);
    EXPECT_LT(aio_co_fallocate(&file, 0x4000, 0, BLOCK), 0);
    *(bool *)opaque = true;
}

TEST_ON_EACH_RING(aio_file, reads_back_what_it_wrote)
{
    AioContext *ctx = test_context(NULL);
    int fd = temp_file(0);
    bool done = false;

    aio_file_init(&file, fd);
    aio_co_run_sync(ctx, write_and_read_entry, &done);
    EXPECT_TRUE(done);
    aio_file_finish(&file);
    close(fd);
    aio_context_destroy(ctx);
}

static void punch_entry(void *opaque)
{
    static uint8_t buf[2 * BLOCK];
    struct iovec iov = { buf, sizeof(buf) };

    assert_in_coroutine();
    memset(buf, 0xaa, sizeof(buf));
    EXPECT_EQ(aio_co_pwritev(&file, &iov, 1, 0, 0), sizeof(buf));
    *(int *)opaque = aio_co_fallocate(&file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, BLOCK,
                                      BLOCK);
    EXPECT_EQ(aio_co_preadv(&file, &iov, 1, 0, 0), sizeof(buf));
    EXPECT_EQ(buf[BLOCK - 1], 0xaa);
    EXPECT_EQ(buf[BLOCK], *(int *)opaque ? 0xaa : 0);
}

TEST(aio_file, punched_hole_reads_as_zeroes)
{
    AioContext *ctx = test_context(NULL);
    int fd = temp_file(2 * BLOCK);
    int ret = -1;

    aio_file_init(&file, fd);
    aio_co_run_sync(ctx, punch_entry, &ret);
    aio_file_finish(&file);
    close(fd);
    aio_context_destroy(ctx);
    if (ret == -EOPNOTSUPP) {
        TEST_SKIP("this file system punches no holes");
    }
    EXPECT_EQ(ret, 0);
}

/* --- many --- */

#define REQUESTS 3000

static unsigned running;

static void one_read_entry(void *opaque)
{
    uint8_t buf[512];
    struct iovec iov = { buf, sizeof(buf) };
    uint64_t block = (uintptr_t)opaque;

    assert_in_coroutine();
    EXPECT_EQ(aio_co_preadv(&file, &iov, 1, block * 512, 0), 512);
    EXPECT_TRUE(filled(buf, 512, block));
    running--;
}

static int numbered_file(unsigned blocks)
{
    int fd = temp_file(0);

    for (unsigned i = 0; i < blocks; i++) {
        uint8_t buf[512];

        fill(buf, sizeof(buf), i);
        ASSERT_EQ(pwrite(fd, buf, sizeof(buf), i * 512), 512);
    }
    return fd;
}

static void start_reads(unsigned n)
{
    running = n;
    for (unsigned i = 0; i < n; i++) {
        Coroutine *co = co_create(one_read_entry, (void *)(uintptr_t)i);

        ASSERT_TRUE(co != NULL);
        co_enter(co);
    }
}

TEST(aio_file, one_system_call_submits_all_requests_of_a_pass)
{
    AioContext *ctx = test_context(NULL);
    int fd = numbered_file(64);

    aio_file_init(&file, fd);
    start_reads(1); /* registers the file; arms the wake-up */
    AIO_WAIT_WHILE(ctx, running > 0);

    AioStats before = test_stats(ctx);

    start_reads(64);
    AIO_WAIT_WHILE(ctx, running > 0);
    AioStats after = test_stats(ctx);

    EXPECT_EQ(after.requests - before.requests, 64);
    EXPECT_LE(after.enters - before.enters, after.passes - before.passes);
    EXPECT_LE(after.enters - before.enters, 3);
    aio_file_finish(&file);
    close(fd);
    aio_context_destroy(ctx);
}

TEST_ON_EACH_RING(aio_file, more_requests_than_the_queue_and_the_completion_ring_hold)
{
    AioParams params = { .ring_entries = 4 }; /* 16 completions */
    AioContext *ctx = test_context(&params);
    int fd = numbered_file(REQUESTS);

    aio_file_init(&file, fd);
    start_reads(REQUESTS);
    AIO_WAIT_WHILE(ctx, running > 0);
    EXPECT_EQ(test_stats(ctx).requests, REQUESTS);
    aio_file_finish(&file);
    close(fd);
    aio_context_destroy(ctx);
}

/*
 * The kernel keeps what finds the ring full and says so in the flag word. Submitting or sleeping
 * would fetch it by the way; here no pass does either, the last ones that count do nothing else.
 */
TEST_ON_EACH_RING(aio_file, completions_that_found_the_ring_full_need_no_sleep_to_be_fetched)
{
    AioParams params = { .ring_entries = 4 }; /* 16 completions */
    AioContext *ctx = test_ring_context(&params);
    int fd = numbered_file(64);

    aio_file_init(&file, fd);
    start_reads(64); /* from the page cache: each completes when it is submitted */
    if (!(*ctx->uring.ring.sq.kflags & IORING_SQ_CQ_OVERFLOW)) {
        TEST_SKIP("the reads took their time and did not fill the ring");
    }
    while (running > 0) {
        aio_poll(ctx, false);
    }
    aio_file_finish(&file);
    close(fd);
    aio_context_destroy(ctx);
}

/* --- how much of what has completed a pass takes --- */

/* Pipes are a device that has done what was asked of it when the test says so. */
#define PIPES 8

typedef struct Pipe {
    AioFile file;
    int fd[2];
} Pipe;

static Pipe pipes[PIPES];
static unsigned nb_read; /* bytes, from all pipes */

static void read_twice_entry(void *opaque)
{
    Pipe *pipe = opaque;
    char byte;
    struct iovec iov = { &byte, 1 };

    assert_in_coroutine();
    for (unsigned i = 0; i < 2; i++) {
        EXPECT_EQ(aio_co_preadv(&pipe->file, &iov, 1, 0, 0), 1);
        nb_read++;
    }
    running--;
}

static void make_pipes(void)
{
    running = PIPES;
    for (unsigned i = 0; i < PIPES; i++) {
        ASSERT_EQ(pipe(pipes[i].fd), 0);
        aio_file_init(&pipes[i].file, pipes[i].fd[0]);
    }
}

static void start_pipe(Pipe *pipe)
{
    Coroutine *co = co_create(read_twice_entry, pipe);

    ASSERT_TRUE(co != NULL);
    co_enter(co);
}

static void start_pipes(void)
{
    make_pipes();
    for (unsigned i = 0; i < PIPES; i++) {
        start_pipe(&pipes[i]);
    }
}

/* One read of each of the first @nb pipes completes, all before the next pass. */
static void complete(AioContext *ctx, unsigned nb)
{
    for (unsigned i = 0; i < nb; i++) {
        ASSERT_EQ(write(pipes[i].fd[1], "x", 1), 1);
    }
    while (io_uring_cq_ready(&ctx->uring.ring) < nb) {
        ASSERT_GE(io_uring_enter(ctx->uring.ring.ring_fd, 0, 0, IORING_ENTER_GETEVENTS, NULL), 0);
    }
}

static main_fn void finish_pipes(AioContext *ctx)
{
    AIO_WAIT_WHILE(ctx, running > 0);
    for (unsigned i = 0; i < PIPES; i++) {
        aio_file_finish(&pipes[i].file);
        close(pipes[i].fd[0]);
        close(pipes[i].fd[1]);
    }
    aio_context_destroy(ctx);
}

TEST_ON_EACH_RING(aio_file, idle_device_gets_new_requests_before_all_it_has_done_is_looked_at)
{
    static const unsigned expected[] = { 1, 2, 4, 8 };
    AioContext *ctx = test_ring_context(NULL);

    start_pipes();
    aio_poll(ctx, false);
    complete(ctx, PIPES);
    for (unsigned i = 0; i < ARRAY_SIZE(expected); i++) {
        AioStats before = test_stats(ctx);

        aio_poll(ctx, false);
        ASSERT_EQ(nb_read, expected[i]);
        EXPECT_LE(test_stats(ctx).enters - before.enters, 1);
    }
    aio_poll(ctx, false);
    complete(ctx, PIPES);
    finish_pipes(ctx);
    EXPECT_EQ(nb_read, 2 * PIPES);
}

TEST_ON_EACH_RING(aio_file, device_with_enough_to_do_gets_all_that_follows_together)
{
    AioContext *ctx = test_ring_context(NULL);

    start_pipes();
    aio_poll(ctx, false);
    complete(ctx, PIPES / 2);
    aio_poll(ctx, false);
    ASSERT_EQ(nb_read, PIPES / 2);

    AioStats before = test_stats(ctx);

    aio_poll(ctx, false);
    EXPECT_EQ(test_stats(ctx).enters - before.enters, 1);
    EXPECT_EQ(test_stats(ctx).sqes - before.sqes, PIPES / 2);
    complete(ctx, PIPES);
    for (unsigned i = PIPES / 2; i < PIPES; i++) {
        ASSERT_EQ(write(pipes[i].fd[1], "x", 1), 1);
    }
    finish_pipes(ctx);
}

/* A device may have done all of it meanwhile. */
TEST_ON_EACH_RING(aio_file, what_has_completed_after_a_sleep_is_looked_at_by_degrees)
{
    AioContext *ctx = test_ring_context(NULL);

    start_pipes();
    for (unsigned i = 0; i < PIPES; i++) {
        ASSERT_EQ(write(pipes[i].fd[1], "xx", 2), 2);
    }
    ctx->monitor->enter(ctx, true, false, -1);
    ASSERT_EQ(io_uring_cq_ready(&ctx->uring.ring), PIPES);
    ctx->monitor->reap(ctx);
    ASSERT_EQ(nb_read, 1);
    finish_pipes(ctx);
    EXPECT_EQ(nb_read, 2 * PIPES);
}

/* As a queue's handler does. */
TEST_ON_EACH_RING(aio_file, idle_device_gets_what_waits_for_it_by_degrees)
{
    static const unsigned expected[] = { 1, 1, 2, 4 };
    AioContext *ctx = test_ring_context(NULL);
    unsigned nb_started = 0;

    make_pipes();
    EXPECT_FALSE(aio_should_submit(ctx));
    for (unsigned i = 0; i < ARRAY_SIZE(expected); i++) {
        unsigned before = nb_started;

        while (nb_started < PIPES && (nb_started == before || !aio_should_submit(ctx))) {
            start_pipe(&pipes[nb_started++]);
        }
        EXPECT_EQ(nb_started - before, expected[i]);
        aio_poll(ctx, false);
        EXPECT_FALSE(aio_should_submit(ctx));
    }
    complete(ctx, PIPES);
    AIO_WAIT_WHILE(ctx, nb_read < PIPES);
    aio_poll(ctx, false);
    complete(ctx, PIPES);
    finish_pipes(ctx);
}

#define ROUNDS 20

static void read_often_entry(void *opaque)
{
    uint8_t buf[512];
    struct iovec iov = { buf, sizeof(buf) };

    assert_in_coroutine();
    for (unsigned i = 0; i < ROUNDS; i++) {
        EXPECT_EQ(aio_co_preadv(&file, &iov, 1, 0, 0), 512);
    }
    running--;
}

static void start_reader(void)
{
    Coroutine *co = co_create(read_often_entry, NULL);

    ASSERT_TRUE(co != NULL);
    running++;
    co_enter(co);
}

TEST_ON_EACH_RING(aio_file, what_completes_while_it_is_submitted_is_not_split)
{
    AioContext *ctx = test_ring_context(NULL);
    int fd = numbered_file(1);

    aio_file_init(&file, fd);
    running = 0;
    for (unsigned i = 0; i < 32; i++) {
        start_reader();
    }
    ctx->monitor->enter(ctx, false, false, 0);
    if (io_uring_cq_ready(&ctx->uring.ring) != 32) {
        TEST_SKIP("the reads took their time");
    }
    AIO_WAIT_WHILE(ctx, running > 0);
    /* One that hands over all and would sleep, one that tells that it need not have. */
    EXPECT_LE(test_stats(ctx).enters, 2 * ROUNDS + 2);
    aio_file_finish(&file);
    close(fd);
    aio_context_destroy(ctx);
}

TEST_ON_EACH_RING(aio_file, what_completed_while_it_was_submitted_is_remembered_over_a_rest)
{
    AioContext *ctx = test_ring_context(NULL);
    int fd = numbered_file(1);

    aio_file_init(&file, fd);
    running = 0;
    start_reader();
    EXPECT_TRUE(aio_should_submit(ctx));
    ctx->monitor->enter(ctx, false, false, 0);
    if (io_uring_cq_ready(&ctx->uring.ring) != 1) {
        TEST_SKIP("the read took its time");
    }
    while (running > 0) {
        aio_poll(ctx, false);
    }
    aio_poll(ctx, false);
    start_reader();
    EXPECT_FALSE(aio_should_submit(ctx));
    AIO_WAIT_WHILE(ctx, running > 0);
    aio_file_finish(&file);
    close(fd);
    aio_context_destroy(ctx);
}

/* --- fixed files --- */

static void read_first_block_entry(void *opaque)
{
    uint8_t buf[512];
    struct iovec iov = { buf, sizeof(buf) };

    assert_in_coroutine();
    EXPECT_EQ(aio_co_preadv(&file, &iov, 1, 0, 0), 512);
    *(int *)opaque = buf[0];
}

static int file_with_byte(uint8_t byte)
{
    uint8_t buf[512];
    int fd = temp_file(0);

    memset(buf, byte, sizeof(buf));
    ASSERT_EQ(pwrite(fd, buf, sizeof(buf), 0), 512);
    return fd;
}

TEST(aio_file, slot_of_a_closed_file_serves_the_next_one)
{
    AioContext *ctx = test_context(NULL);

    for (int i = 1; i <= 3 * AIO_FILES_MAX; i++) {
        int fd = file_with_byte(i);
        int first = -1;

        aio_file_init(&file, fd);
        EXPECT_EQ(file.slot, 0);
        aio_co_run_sync(ctx, read_first_block_entry, &first);
        EXPECT_EQ(first, (uint8_t)i);
        aio_file_finish(&file);
        close(fd);
    }
    aio_context_destroy(ctx);
}

TEST(aio_file, more_files_than_slots_work_without_one)
{
    AioContext *ctx = test_context(NULL);
    AioFile files[AIO_FILES_MAX + 2];

    for (unsigned i = 0; i < ARRAY_SIZE(files); i++) {
        aio_file_init(&files[i], file_with_byte(i));
    }
    EXPECT_EQ(files[AIO_FILES_MAX].slot, -1);
    for (unsigned i = 0; i < ARRAY_SIZE(files); i++) {
        int first = -1;

        file = files[i];
        aio_co_run_sync(ctx, read_first_block_entry, &first);
        EXPECT_EQ(first, (uint8_t)i);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(files); i++) {
        aio_file_finish(&files[i]);
        close(files[i].fd);
    }
    aio_context_destroy(ctx);
}

static void write_byte_entry(void *opaque)
{
    char byte = 'x';
    struct iovec iov = { &byte, 1 };

    assert_in_coroutine();
    *(int64_t *)opaque = aio_co_pwritev(&file, &iov, 1, 0, 0);
}

/* A pipe tells when the last reference to its writing end is gone. */
TEST(aio_file, finished_file_is_let_go_by_every_ring)
{
    AioContext *ctx = test_ring_context(NULL);
    IOThread *iot = iothread_create("other", NULL, NULL);
    int64_t ret = -1;
    int fds[2];
    char buf[8];

    ASSERT_TRUE(iot != NULL);
    ASSERT_EQ(pipe(fds), 0);
    aio_file_init(&file, fds[1]);
    aio_co_run_sync(ctx, write_byte_entry, &ret);
    EXPECT_EQ(ret, 1);
    aio_co_run_sync(iothread_context(iot), write_byte_entry, &ret);
    EXPECT_EQ(ret, 1);
    EXPECT_TRUE(ctx->fixed.files_on); /* else this test shows nothing */
    EXPECT_EQ(read(fds[0], buf, sizeof(buf)), 2);
    aio_file_finish(&file);
    close(fds[1]);
    aio_poll(ctx, false);
    EXPECT_EQ(read(fds[0], buf, sizeof(buf)), 0); /* waits for the other ring */
    close(fds[0]);
    iothread_unref(iot);
    aio_context_destroy(ctx);
}

static void impatient_entry(void *opaque)
{
    char byte;
    struct iovec iov = { &byte, 1 };

    assert_in_coroutine();
    *(int64_t *)opaque = aio_co_preadv(&file, &iov, 1, 0, RWF_NOWAIT);
}

TEST(aio_file, request_that_must_not_wait_is_refused_and_not_sent_again)
{
    AioContext *ctx = test_ring_context(NULL);
    int64_t ret = 0;
    int fds[2];

    ASSERT_EQ(pipe(fds), 0);
    aio_file_init(&file, fds[0]);
    aio_co_run_sync(ctx, impatient_entry, &ret);
    EXPECT_EQ(ret, -EAGAIN);
    EXPECT_EQ(test_stats(ctx).requests, 1);
    aio_file_finish(&file);
    close(fds[0]);
    close(fds[1]);
    aio_context_destroy(ctx);
}

/* --- fixed buffers --- */

#define RANGE_BYTES (1 << 20)

static uint8_t *range;

static void fixed_buffers_entry(void *opaque)
{
    AioContext *ctx = aio_current();
    static uint8_t outside[BLOCK];
    struct iovec iov = { range + RANGE_BYTES - BLOCK, BLOCK };

    assert_in_coroutine();
    fill(iov.iov_base, BLOCK, 3);
    EXPECT_EQ(aio_co_pwritev(&file, &iov, 1, 0, 0), BLOCK);
    EXPECT_EQ(ctx->fixed.buffers_on, *(bool *)opaque);
    memset(iov.iov_base, 0, BLOCK);
    EXPECT_EQ(aio_co_preadv(&file, &iov, 1, 0, 0), BLOCK);
    EXPECT_TRUE(filled(iov.iov_base, BLOCK, 3));

    /* neither what lies outside nor what begins inside and ends outside may use it */
    iov = (struct iovec){ outside, BLOCK };
    EXPECT_EQ(aio_co_preadv(&file, &iov, 1, 0, 0), BLOCK);
    EXPECT_TRUE(filled(outside, BLOCK, 3));
    iov = (struct iovec){ range + RANGE_BYTES - 100, BLOCK };
    EXPECT_EQ(aio_co_preadv(&file, &iov, 1, 0, 0), BLOCK);
    EXPECT_TRUE(filled(iov.iov_base, BLOCK, 3));
}

TEST_ON_EACH_RING(aio_file, fixed_buffers_are_used_inside_their_ranges_only)
{
    AioContext *ctx = test_ring_context(NULL);
    int fd = temp_file(0);
    bool on = true;

    range = mmap(NULL, RANGE_BYTES + 2 * BLOCK, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_TRUE(range != MAP_FAILED);
    struct iovec ranges[] = { { range, BLOCK }, { range + BLOCK, RANGE_BYTES - BLOCK } };
    Error err;
    int ret = aio_buffers_register(ranges, 2, &err);

    if (ret == -ENOMEM) {
        TEST_SKIP("%s", err.msg);
    }
    ASSERT_EQ(ret, 0);
    EXPECT_EQ(aio_buffers_register(ranges, 2, &err), -EBUSY);
    aio_file_init(&file, fd);
    aio_co_run_sync(ctx, fixed_buffers_entry, &on);

    aio_buffers_unregister();
    aio_poll(ctx, false);
    EXPECT_FALSE(ctx->fixed.buffers_on);
    on = false;
    aio_co_run_sync(ctx, fixed_buffers_entry, &on);
    aio_file_finish(&file);
    close(fd);
    aio_context_destroy(ctx);
}

TEST(aio_file, too_large_a_set_of_fixed_buffers_is_refused_with_the_reason)
{
    char byte;
    struct iovec huge = { &byte, (size_t)1 << 40 };
    Error err = { 0 };

    EXPECT_EQ(aio_buffers_register(&huge, 1, &err), -E2BIG);
    EXPECT_TRUE(strstr(err.msg, "256 GiB") != NULL);
}

TEST(aio_file, ring_that_is_refused_its_buffers_goes_on_without)
{
    AioContext *ctx = test_ring_context(NULL);
    int fd = temp_file(0);
    bool on = false;

    /* the second range cannot be pinned: nobody may write there */
    range = mmap(NULL, RANGE_BYTES + 2 * BLOCK, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_TRUE(range != MAP_FAILED);
    void *hole = mmap(NULL, BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct iovec ranges[] = { { range, RANGE_BYTES }, { hole, BLOCK } };

    ASSERT_TRUE(hole != MAP_FAILED);
    ASSERT_EQ(aio_buffers_register(ranges, 2, NULL), 0);
    aio_file_init(&file, fd);
    aio_co_run_sync(ctx, fixed_buffers_entry, &on);
    aio_buffers_unregister();
    aio_file_finish(&file);
    close(fd);
    aio_context_destroy(ctx);
}

TEST_MAIN()
