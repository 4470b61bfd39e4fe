/*
 * test-log-writes.c - the trace of writes, and what a crash may leave
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "block/tests/block-test.h"
#include "block/write-log.h"

#define SECTOR     512
#define NB_SECTORS 128
#define DISK_BYTES (NB_SECTORS * SECTOR)
#define NB_STEPS   150
#define HEAD_BYTES 32

static char folder[64];
static Env env;

static const char *path_of(const char *name)
{
    static char path[2][128];
    static unsigned turn;

    turn ^= 1;
    snprintf(path[turn], sizeof(path[turn]), "%s/%s", folder, name);
    return path[turn];
}

static int make_file(const char *name)
{
    FILE *f = fopen(path_of(name), "w+e");

    ASSERT_TRUE(f != NULL);
    int fd = dup(fileno(f));

    fclose(f);
    ASSERT_GE(fd, 0);
    return fd;
}

static void begin(void)
{
    snprintf(folder, sizeof(folder), "/var/tmp/penstock-log.XXXXXX");
    ASSERT_TRUE(mkdtemp(folder) != NULL);
    env_init(&env, 0);
}

static void end(void)
{
    static const char *const names[] = { "disk", "log", "image" };

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        unlink(path_of(names[i]));
    }
    rmdir(folder);
    env_finish(&env);
}

static BlockBackend *open_disk(const char *cache)
{
    char text[512];
    Opts opts;
    Error err = { 0 };
    BlockBackend *blk;
    int fd = make_file("disk");

    ASSERT_EQ(ftruncate(fd, DISK_BYTES), 0);
    close(fd);
    snprintf(text, sizeof(text), "driver=log-writes,log=%s,file.path=%s,cache=%s", path_of("log"),
             path_of("disk"), cache);
    ASSERT_EQ(opts_parse(&opts, "d", text, "x", &err), 0);
    blk = blk_open("d", &opts, &err);
    opts_finish(&opts);
    if (!blk) {
        test_fail_abort(__FILE__, __LINE__, "%s", err.msg);
    }
    return blk;
}

/* --- crashes --- */

/* What a sector must be, and may be, after a crash: the number of the step that wrote it. */
typedef struct Model {
    uint32_t now[NB_SECTORS];
    uint32_t sure[NB_SECTORS];
    uint64_t entries; /* in the log when that was true */
} Model;

static Model models[NB_STEPS];

static uint64_t nb_entries(int log_fd)
{
    WriteLog log;
    Error err = { 0 };
    uint64_t nb;

    ASSERT_EQ(write_log_read(&log, log_fd, UINT64_MAX, &err), 0);
    nb = log.nb_read;
    write_log_finish(&log);
    return nb;
}

static void random_step(BlockBackend *blk, Model *m, Random *random, uint32_t step, bool through)
{
    char buf[16 * SECTOR] = { 0 };
    unsigned first = random_below(random, NB_SECTORS), nb = 1 + random_below(random, 16);
    bool fua = random_below(random, 5) == 0;

    nb = MIN(nb, NB_SECTORS - first);
    if (random_below(random, 5) == 0) {
        ASSERT_EQ(run_flush(blk), 0);
        memcpy(m->sure, m->now, sizeof(m->sure));
        return;
    }
    for (unsigned i = 0; i < nb; i++) {
        memcpy(buf + i * SECTOR, &step, sizeof(step));
        m->now[first + i] = step;
        if (fua || through) {
            m->sure[first + i] = step;
        }
    }
    ASSERT_EQ(
        run_write(blk, (uint64_t)first * SECTOR, (uint64_t)nb * SECTOR, buf, fua ? BLK_FUA : 0), 0);
}

static uint64_t choose_any(void *opaque, const WriteLogEntry *e)
{
    Random *random = opaque;

    switch (random_below(random, 3)) {
    case 0:
        return 0;
    case 1:
        return e->len_bytes;
    default:
        return random_below(random, (uint32_t)(e->len_bytes / SECTOR) + 1) * (uint64_t)SECTOR;
    }
}

/* Whether the image holds all that was sure, and nothing that was not written by then. */
static bool image_is_possible(int image_fd, const Model *before, const Model *after)
{
    for (unsigned i = 0; i < NB_SECTORS; i++) {
        uint32_t step;

        ASSERT_EQ(pread(image_fd, &step, sizeof(step), (off_t)i * SECTOR), (ssize_t)sizeof(step));
        if (step < before->sure[i] || step > after->now[i]) {
            return false;
        }
    }
    return true;
}

static void crash_often(const char *cache)
{
    bool through = strcmp(cache, "writethrough") == 0;
    Random random = { 11 };
    BlockBackend *blk;
    int log_fd, image_fd;

    begin();
    blk = open_disk(cache);
    log_fd = open(path_of("log"), O_RDONLY | O_CLOEXEC);
    image_fd = make_file("image");
    for (uint32_t i = 0; i < NB_STEPS; i++) {
        models[i] = i > 0 ? models[i - 1] : (Model){ .entries = 0 };
        if (i > 0) {
            random_step(blk, &models[i], &random, i, through);
        }
        models[i].entries = nb_entries(log_fd);
    }
    for (uint32_t i = 0; i + 1 < NB_STEPS; i++) {
        for (uint64_t cut = models[i].entries; cut <= models[i + 1].entries; cut++) {
            WriteLog log;
            Error err = { 0 };

            ASSERT_EQ(write_log_read(&log, log_fd, cut, &err), 0);
            for (unsigned k = 0; k < 4; k++) {
                ASSERT_EQ(
                    write_log_replay(&log, log_fd, image_fd, k == 0 ? NULL : choose_any, &random),
                    0);
                ASSERT_TRUE(image_is_possible(image_fd, &models[i], &models[i + 1]));
            }
            write_log_finish(&log);
        }
    }
    close(log_fd);
    close(image_fd);
    blk_close(blk);
    end();
}

TEST(log_writes, every_crash_keeps_what_was_flushed_past_the_page_cache)
{
    crash_often("none");
}

TEST(log_writes, every_crash_keeps_what_was_flushed_through_the_page_cache)
{
    crash_often("writeback");
}

TEST(log_writes, every_crash_keeps_every_write_when_writing_through)
{
    crash_often("writethrough");
}

TEST(log_writes, the_whole_trace_replayed_is_the_disk)
{
    static char disk[DISK_BYTES], image[DISK_BYTES], buf[8192];
    Random random = { 4 };
    BlockBackend *blk;
    WriteLog log;
    Error err = { 0 };
    int log_fd, image_fd;

    begin();
    blk = open_disk("writeback");
    for (unsigned i = 0; i < 60; i++) {
        random_fill(&random, buf, sizeof(buf));
        uint64_t offset_bytes = random_below(&random, NB_SECTORS - 16) * (uint64_t)SECTOR;

        ASSERT_EQ(run_write(blk, offset_bytes, sizeof(buf), buf, 0), 0);
        ASSERT_EQ(run_zeroes(blk, random_below(&random, NB_SECTORS) * (uint64_t)SECTOR, SECTOR, 0),
                  0);
    }
    ASSERT_EQ(run_flush(blk), 0);
    ASSERT_EQ(run_read(blk, 0, DISK_BYTES, disk), 0);
    log_fd = open(path_of("log"), O_RDONLY | O_CLOEXEC);
    image_fd = make_file("image");
    ASSERT_EQ(write_log_read(&log, log_fd, UINT64_MAX, &err), 0);
    EXPECT_EQ(log.nb_flushes, 1);
    EXPECT_EQ(log.nb_requests, 121);
    ASSERT_EQ(write_log_replay(&log, log_fd, image_fd, NULL, NULL), 0);
    ASSERT_EQ(pread(image_fd, image, DISK_BYTES, 0), DISK_BYTES);
    EXPECT_EQ(memcmp(disk, image, DISK_BYTES), 0);
    write_log_finish(&log);
    close(log_fd);
    close(image_fd);
    blk_close(blk);
    end();
}

/* --- many in flight --- */

/* When a request began and ended for who made it, in the test's own time. */
typedef struct Span {
    Request req;
    unsigned begun, ended; /* ended: 0 = not yet */
} Span;

static Span spans[NB_SECTORS]; /* request i writes sector i, or flushes when i % 8 == 7 */

static bool is_flush(unsigned i)
{
    return i % 8 == 7;
}

/* Random numbers of requests at once until all have ended. */
static void run_spans(BlockBackend *blk, Random *random)
{
    static char buf[SECTOR];
    unsigned time = 0, nb_begun = 0, nb_running = 0;

    while (nb_begun < NB_SECTORS || nb_running > 0) {
        unsigned more = random_below(random, 5);

        for (; more > 0 && nb_running < 6 && nb_begun < NB_SECTORS; more--) {
            Span *s = &spans[nb_begun];

            *s = (Span){ .req = { .blk = blk,
                                  .kind = is_flush(nb_begun) ? REQ_FLUSH : REQ_WRITE,
                                  .offset_bytes = (uint64_t)nb_begun * SECTOR,
                                  .len_bytes = is_flush(nb_begun) ? 0 : SECTOR,
                                  .flags = nb_begun % 16 == 0 ? BLK_FUA : 0,
                                  .buf = buf },
                         .begun = ++time };
            request_start(&s->req, env.main);
            nb_begun++;
            nb_running++;
        }
        aio_poll(env.main, nb_running > 0);
        time++;
        for (unsigned i = 0; i < nb_begun; i++) {
            if (spans[i].ended == 0 && atomic_load(&spans[i].req.done)) {
                ASSERT_EQ(spans[i].req.ret, 0);
                spans[i].ended = time;
                nb_running--;
            }
        }
    }
}

/* Which of the trace's requests each span is; the n-th flush began as the n-th. */
static void find_entries(const WriteLog *log, const WriteLogEntry **found)
{
    unsigned flush = 7;

    for (unsigned i = 0; i < log->nb_requests; i++) {
        const WriteLogEntry *e = &log->requests[i];

        if (e->type == WRITE_LOG_FLUSH) {
            ASSERT_LT(flush, NB_SECTORS);
            found[flush] = e;
            flush += 8;
        } else {
            ASSERT_TRUE(found[e->offset_bytes / SECTOR] == NULL);
            found[e->offset_bytes / SECTOR] = e;
        }
    }
}

static void check_spans(const WriteLog *log)
{
    const WriteLogEntry *found[NB_SECTORS] = { NULL };
    unsigned nb_sure = 0, last_flush = 0;

    find_entries(log, found);
    for (unsigned i = 7; i < NB_SECTORS; i += 8) {
        last_flush = MAX(last_flush, spans[i].ended);
    }
    for (unsigned a = 0; a < NB_SECTORS; a++) {
        ASSERT_TRUE(found[a] && found[a]->done);
        bool sure = found[a]->fua;

        for (unsigned b = 0; b < NB_SECTORS; b++) {
            if (spans[a].ended < spans[b].begun) {
                EXPECT_LT(found[a]->done_at, found[b]->begun_at);
                sure |= is_flush(b);
            }
        }
        EXPECT_TRUE(found[a]->stable || !sure);
        EXPECT_TRUE(!found[a]->stable || sure || spans[a].begun <= last_flush);
        nb_sure += sure && !is_flush(a);
    }
    EXPECT_GT(nb_sure, NB_SECTORS / 2);
}

TEST(log_writes, the_trace_tells_of_requests_at_once_in_the_order_of_who_made_them)
{
    static const char *const modes[] = { "none", "writeback" };
    Random random = { 8 };

    for (unsigned i = 0; i < 10; i++) {
        WriteLog log;
        Error err = { 0 };
        int log_fd;

        begin();
        BlockBackend *blk = open_disk(modes[i % 2]);

        run_spans(blk, &random);
        log_fd = open(path_of("log"), O_RDONLY | O_CLOEXEC);
        ASSERT_EQ(write_log_read(&log, log_fd, UINT64_MAX, &err), 0);
        ASSERT_EQ(log.nb_requests, NB_SECTORS);
        check_spans(&log);
        write_log_finish(&log);
        close(log_fd);
        blk_close(blk);
        end();
    }
}

/* --- a file that is not trusted --- */

TEST(log_writes, a_damaged_trace_is_refused_or_cut_but_does_no_harm)
{
    static char good[65536], bad[65536];
    static char buf[2048];
    Random random = { 9 };
    BlockBackend *blk;
    unsigned nb_refused = 0;
    ssize_t len;
    int fd, image_fd;

    begin();
    blk = open_disk("writeback");
    for (unsigned i = 0; i < 6; i++) {
        ASSERT_EQ(run_write(blk, i * 1024, sizeof(buf), buf, i % 2 ? BLK_FUA : 0), 0);
        ASSERT_EQ(run_discard(blk, i * 1024, 512), 0);
        ASSERT_EQ(run_flush(blk), 0);
    }
    blk_close(blk);
    fd = open(path_of("log"), O_RDWR | O_CLOEXEC);
    image_fd = make_file("image");
    len = pread(fd, good, sizeof(good), 0);
    ASSERT_TRUE(len > HEAD_BYTES && len < (ssize_t)sizeof(good));
    for (unsigned i = 0; i < 4000; i++) {
        uint32_t cut =
            random_below(&random, 8) == 0 ? random_below(&random, (uint32_t)len) : (uint32_t)len;
        WriteLog log;
        Error err = { 0 };
        int ret;

        memcpy(bad, good, (size_t)len);
        for (unsigned n = 1 + random_below(&random, 3); n > 0; n--) {
            bad[random_below(&random, (uint32_t)len)] = (char)random_below(&random, 256);
        }
        ASSERT_EQ(ftruncate(fd, 0), 0);
        ASSERT_EQ(pwrite(fd, bad, cut, 0), (ssize_t)cut);
        ret = write_log_read(&log, fd, UINT64_MAX, &err);
        if (ret == 0) {
            ret = write_log_replay(&log, fd, image_fd, choose_any, &random);
            write_log_finish(&log);
        } else {
            nb_refused++;
            EXPECT_TRUE(strncmp(err.msg, "write log: ", 11) == 0);
        }
        EXPECT_TRUE(ret == 0 || ret == -EINVAL || ret == -EFBIG);
    }
    EXPECT_TRUE(nb_refused > 100);
    close(fd);
    close(image_fd);
    end();
}

TEST(log_writes, what_cannot_be_traced_fails_as_does_all_that_follows)
{
    static char buf[8192], back[512];
    struct rlimit limit;
    Random random = { 6 };
    BlockBackend *blk;
    WriteLog log;
    Error err = { 0 };
    unsigned nb = 0;
    int ret, log_fd;

    begin();
    blk = open_disk("writeback");
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = DISK_BYTES + 20000;
    signal(SIGXFSZ, SIG_IGN);
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    do {
        random_fill(&random, buf, sizeof(buf));
        ret = run_write(blk, 0, sizeof(buf), buf, 0);
    } while (ret == 0 && nb++ < 100);
    EXPECT_EQ(ret, -EFBIG);
    EXPECT_EQ(nb, 10);
    limit.rlim_cur = limit.rlim_max;
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    EXPECT_EQ(run_write(blk, 0, 512, buf, 0), -EFBIG);
    EXPECT_EQ(run_zeroes(blk, 0, 512, 0), -EFBIG);
    EXPECT_EQ(run_discard(blk, 0, 4096), -EFBIG);
    EXPECT_EQ(run_flush(blk), -EFBIG);
    EXPECT_EQ(run_read(blk, 0, 512, back), 0);
    EXPECT_TRUE(memcmp(back, buf, 512) != 0); /* what was not traced was not written */

    log_fd = open(path_of("log"), O_RDONLY | O_CLOEXEC);
    ASSERT_EQ(write_log_read(&log, log_fd, UINT64_MAX, &err), 0);
    EXPECT_EQ(log.nb_requests, nb); /* the next one is cut off within its data */
    write_log_finish(&log);
    close(log_fd);
    EXPECT_EQ(blk_close(blk), -EFBIG);
    end();
}

TEST(log_writes, a_log_is_named_and_never_overwritten)
{
    Opts opts;
    Error err = { 0 };

    begin();
    ASSERT_EQ(opts_parse(&opts, "d", "driver=log-writes,file.driver=null,file.size=1M", "x", &err),
              0);
    EXPECT_TRUE(blk_open("d", &opts, &err) == NULL);
    EXPECT_TRUE(strstr(err.msg, "log=PATH") != NULL);
    opts_finish(&opts);
    close(make_file("log"));
    char text[256];

    snprintf(text, sizeof(text), "driver=log-writes,file.driver=null,file.size=1M,log=%s",
             path_of("log"));
    ASSERT_EQ(opts_parse(&opts, "d", text, "x", &err), 0);
    EXPECT_TRUE(blk_open("d", &opts, &err) == NULL);
    EXPECT_EQ(err.code, -EEXIST);
    opts_finish(&opts);
    end();
}

TEST_MAIN()
