/*
 * test-block-faults.c - each step that can fail is made to fail, one after the other
 *
 * The code under test is compiled with its allocations led here (fault-names.h), and the linker
 * leads the system calls of file.c here, too. A step is run with its first fallible call failing,
 * then the second, and so on, until a run meets no failing call any more. Each time it must either
 * succeed all the same or say why not; nothing may be left: no memory, no descriptor, no node, no
 * drained section.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "block/tests/block-test.h"
#include "block/tests/fault-names.h"
#include "block/tests/mem-driver.h"

#undef malloc
#undef calloc
#undef posix_memalign
#undef strdup
#undef strndup
#undef free

#define KIB 1024u

/* --- the calls that fail --- */

static _Atomic unsigned fail_nth; /* counts down; the call that makes it 0 fails; 0 = none */
static _Atomic int nb_live;       /* allocations */

static bool fails(void)
{
    unsigned nth = atomic_load(&fail_nth);

    return nth > 0 && atomic_fetch_sub(&fail_nth, 1) == 1;
}

static void *live(void *p)
{
    atomic_fetch_add(&nb_live, p != NULL);
    return p;
}

void *fault_malloc(size_t bytes)
{
    return fails() ? NULL : live(malloc(bytes));
}

void *fault_calloc(size_t nb, size_t bytes)
{
    return fails() ? NULL : live(calloc(nb, bytes));
}

int fault_posix_memalign(void **ret, size_t alignment, size_t bytes)
{
    int code = fails() ? ENOMEM : posix_memalign(ret, alignment, bytes);

    atomic_fetch_add(&nb_live, code == 0);
    return code;
}

char *fault_strdup(const char *text)
{
    return fails() ? NULL : live(strdup(text));
}

char *fault_strndup(const char *text, size_t bytes)
{
    return fails() ? NULL : live(strndup(text, bytes));
}

void fault_free(void *p)
{
    atomic_fetch_sub(&nb_live, p != NULL);
    free(p);
}

/* Under both names that the C library has for a call with large offsets. */
#define FAULTY_CALL(Type, name, params, ...)                                                       \
    Type __real_##name params;                                                                     \
    Type __wrap_##name params;                                                                     \
    Type __wrap_##name params                                                                      \
    {                                                                                              \
        if (fails()) {                                                                             \
            errno = EIO;                                                                           \
            return -1;                                                                             \
        }                                                                                          \
        return __real_##name(__VA_ARGS__);                                                         \
    }

FAULTY_CALL(int, stat64, (const char *path, struct stat *st), path, st)
FAULTY_CALL(int, fstat64, (int fd, struct stat *st), fd, st)
FAULTY_CALL(int, statx,
            (int fd, const char *path, int flags, unsigned mask, struct statx *ret_stx), fd, path,
            flags, mask, ret_stx)
FAULTY_CALL(ssize_t, pread64, (int fd, void *buf, size_t bytes, off_t at), fd, buf, bytes, at)
FAULTY_CALL(ssize_t, pwrite64, (int fd, const void *buf, size_t bytes, off_t at), fd, buf, bytes,
            at)
FAULTY_CALL(off_t, lseek64, (int fd, off_t at, int whence), fd, at, whence)
FAULTY_CALL(int, ftruncate64, (int fd, off_t bytes), fd, bytes)
/* Without their variable arguments: open() has at most a mode here, and fcntl() one. */
FAULTY_CALL(int, open64, (const char *path, int flags, mode_t mode), path, flags, mode)
FAULTY_CALL(int, fcntl64, (int fd, int command, long arg), fd, command, arg)

/* --- what must not be left --- */

typedef struct Holdings {
    int nb_live, nb_fds, nb_nodes;
} Holdings;

static Holdings holdings(void)
{
    Holdings h = { .nb_live = atomic_load(&nb_live), .nb_fds = test_count_fds() };

    for (BlockNode *node = bdrv_next(NULL); node; node = bdrv_next(node)) {
        EXPECT_FALSE(node->drain.covered);
        h.nb_nodes++;
    }
    return h;
}

/* --- the loop --- */

typedef struct World {
    Env env;
    MemDisk disk;
    BlockBackend *blk; /* what the step has made */
    BlockNode *node;   /* likewise */
    char path[64];
    const char *options;
} World;

typedef int StepFn(World *w, Error *err);
typedef void UndoFn(World *w);

/* Run @step with each of its calls failing; how many those are. */
static unsigned fail_each(World *w, StepFn *step, UndoFn *undo)
{
    Error err;
    Holdings before;

    ASSERT_EQ(step(w, &err), 0); /* what is kept from the first time on is there now */
    undo(w);
    env_settle(&w->env);
    before = holdings();
    for (unsigned nth = 1;; nth++) {
        bool fired;
        int ret;

        err = (Error){ 0 };
        atomic_store(&fail_nth, nth);
        ret = step(w, &err);
        fired = atomic_exchange(&fail_nth, 0) == 0;
        if (ret == 0) {
            undo(w);
        } else {
            EXPECT_TRUE(fired && ret < 0);
            EXPECT_EQ(err.code, ret);
            EXPECT_TRUE(err.msg[0] != '\0');
        }
        env_settle(&w->env);
        Holdings after = holdings();

        EXPECT_EQ(after.nb_live, before.nb_live);
        EXPECT_EQ(after.nb_fds, before.nb_fds);
        EXPECT_EQ(after.nb_nodes, before.nb_nodes);
        if (!fired) {
            EXPECT_EQ(ret, 0);
            return nth - 1;
        }
    }
}

static void world_init(World *w)
{
    int fd;

    *w = (World){ 0 };
    snprintf(w->path, sizeof(w->path), "/tmp/test-block-faults-XXXXXX");
    fd = mkstemp(w->path);
    ASSERT_TRUE(fd >= 0);
    ASSERT_EQ(ftruncate(fd, 1 << 20), 0);
    close(fd);
    env_init(&w->env, 0);
    mem_open(&w->disk, &(MemConfig){ .length_bytes = 64 * KIB, .options = "node-name=mem" });
}

static void world_finish(World *w)
{
    mem_close(&w->disk);
    EXPECT_EQ(atomic_load(&nb_live), 0);
    env_finish(&w->env);
    unlink(w->path);
}

/* --- opening --- */

static int open_step(World *w, Error *err)
{
    Opts opts;
    char text[256];
    int ret;

    snprintf(text, sizeof(text), w->options, w->path);
    ret = opts_parse(&opts, "--disk", text, "path", err);
    if (ret < 0) {
        return ret;
    }
    w->blk = blk_open("d", &opts, err);
    opts_finish(&opts);
    return w->blk ? 0 : err->code;
}

static void open_undo(World *w)
{
    EXPECT_EQ(blk_close(take_ptr(&w->blk)), 0);
}

static unsigned fail_each_open(const char *options)
{
    World w;
    unsigned nb;

    world_init(&w);
    w.options = options;
    nb = fail_each(&w, open_step, open_undo);
    world_finish(&w);
    return nb;
}

TEST(faults, opening_a_file_past_the_page_cache)
{
    EXPECT_TRUE(fail_each_open("path=%s") > 15);
}

TEST(faults, opening_a_file_through_the_page_cache)
{
    EXPECT_TRUE(fail_each_open("path=%s,cache=writeback,node-name=n") > 15);
}

TEST(faults, opening_a_filter_on_a_file)
{
    EXPECT_TRUE(fail_each_open("driver=throttle,iops-total=100,group=g,readonly=on,file.path=%s") >
                30);
}

TEST(faults, opening_filters_on_each_other)
{
    EXPECT_TRUE(fail_each_open("driver=faulty,seed=3,rule0.op=write,rule0.error=EIO,"
                               "rule3.delay-ns=5,file.driver=throttle,file.iops-read=9,"
                               "file.file.path=%s") > 50);
}

/* The trace is made when the disk is opened, and not left behind when that fails. */
static int open_logged_step(World *w, Error *err)
{
    char text[128];
    int ret;

    snprintf(text, sizeof(text), "driver=log-writes,log=%s.log,file.path=%%s", w->path);
    w->options = text;
    ret = open_step(w, err);
    w->options = NULL;
    return ret;
}

static void open_logged_undo(World *w)
{
    char log[sizeof(w->path) + 4];

    open_undo(w);
    snprintf(log, sizeof(log), "%s.log", w->path);
    EXPECT_EQ(unlink(log), 0);
}

TEST(faults, opening_a_trace_of_writes)
{
    World w;

    world_init(&w);
    EXPECT_TRUE(fail_each(&w, open_logged_step, open_logged_undo) > 20);
    world_finish(&w);
}

TEST(faults, opening_null)
{
    EXPECT_TRUE(fail_each_open("driver=null,size=1M") > 10);
}

/* --- the graph --- */

static int reader_step(World *w, Error *err)
{
    w->blk = blk_create("r", w->disk.node, BLK_PERM_READ, BLK_PERM_ALL, err);
    return w->blk ? 0 : err->code;
}

static int insert_step(World *w, Error *err)
{
    Opts opts;
    int ret = opts_parse(&opts, "insert", "driver=throttle,bps-total=1M", NULL, err);

    if (ret < 0) {
        return ret;
    }
    w->node = bdrv_insert_filter(w->disk.node, &opts, err);
    opts_finish(&opts);
    EXPECT_TRUE(blk_node(w->disk.blk) == (w->node ? w->node : w->disk.node));
    return w->node ? 0 : err->code;
}

static void insert_undo(World *w)
{
    EXPECT_EQ(bdrv_remove_filter(take_ptr(&w->node), NULL), 0);
}

TEST(faults, another_user_of_a_node)
{
    World w;

    world_init(&w);
    EXPECT_TRUE(fail_each(&w, reader_step, open_undo) >= 3);
    world_finish(&w);
}

TEST(faults, inserting_a_filter)
{
    World w;

    world_init(&w);
    EXPECT_TRUE(fail_each(&w, insert_step, insert_undo) > 15);
    EXPECT_TRUE(blk_node(w.disk.blk) == w.disk.node);
    EXPECT_EQ(run_flush(w.disk.blk), 0);
    world_finish(&w);
}

/* --- an open file --- */

static int truncate_step(World *w, Error *err)
{
    return blk_truncate(w->disk.blk, 2 << 20, err);
}

static void truncate_undo(World *w)
{
    EXPECT_EQ(blk_truncate(w->disk.blk, 1 << 20, NULL), 0);
}

static int refresh_step(World *w, Error *err)
{
    return blk_refresh_length(w->disk.blk, err);
}

static int status_step(World *w, Error *err)
{
    uint64_t len;
    int ret = run_status(w->disk.blk, 0, 1 << 20, &len);

    return ret < 0 ? error_set(err, ret, "block status") : 0;
}

static void nothing_to_undo(World *w)
{
}

TEST(faults, length_and_block_status_of_a_file)
{
    World w, file;

    world_init(&w);
    file = w;
    file.options = "path=%s";
    ASSERT_EQ(open_step(&file, NULL), 0);
    file.disk.blk = file.blk;
    EXPECT_TRUE(fail_each(&file, truncate_step, truncate_undo) >= 1);
    EXPECT_TRUE(fail_each(&file, refresh_step, nothing_to_undo) >= 1);
    EXPECT_TRUE(fail_each(&file, status_step, nothing_to_undo) >= 1);
    EXPECT_EQ(blk_length(file.blk), 1u << 20);
    open_undo(&file);
    world_finish(&w);
}

/* --- requests --- */

/* Each request, whole and with edges, with the nth call of the driver failing. */
TEST(faults, each_step_of_each_request)
{
    static char buf[40 * KIB];
    World w;
    MemDisk disk;
    unsigned nb_failed = 0;

    world_init(&w);
    mem_open(&disk, &(MemConfig){ .length_bytes = 64 * KIB,
                                  .no_zeroes = true,
                                  .limits = { .request_alignment = 512,
                                              .buffer_alignment = 512,
                                              .max_transfer_bytes = 8 * KIB } });
    for (RequestKind kind = REQ_READ; kind <= REQ_ZEROES; kind++) {
        for (unsigned misaligned = 0; misaligned <= 1; misaligned++) {
            Request req = { .blk = disk.blk,
                            .kind = kind,
                            .offset_bytes = 4096 + 100 * misaligned,
                            .len_bytes = 33 * KIB + 100 * misaligned,
                            .buf = buf + 100 * misaligned,
                            .flags = kind == REQ_WRITE || kind == REQ_ZEROES ? BLK_FUA : 0 };

            for (int nth = 1;; nth++) {
                atomic_store(&disk.fail_nth, nth);
                int ret = request_run(&req);

                if (atomic_exchange(&disk.fail_nth, 0) > 0) {
                    EXPECT_EQ(ret, 0);
                    break;
                }
                EXPECT_EQ(ret, -EIO);
                EXPECT_EQ(blk_in_flight(disk.blk), 0u);
                EXPECT_EQ(disk.stats.active, 0);
                nb_failed++;
            }
        }
    }
    EXPECT_TRUE(nb_failed > 30);
    EXPECT_EQ(disk.stats.violations, 0u);
    mem_close(&disk);
    world_finish(&w);
}

TEST(faults, no_memory_for_a_bounce_buffer)
{
    World w;
    MemDisk disk;
    char buf[100];

    world_init(&w);
    mem_open(&disk,
             &(MemConfig){ .length_bytes = 64 * KIB, .limits.request_alignment = 512 });
    for (unsigned i = 0; i < 3; i++) {
        atomic_store(&fail_nth, 1);
        EXPECT_EQ(i == 0   ? run_read(disk.blk, 100, 100, buf)
                  : i == 1 ? run_write(disk.blk, 100, 100, buf, 0)
                           : run_zeroes(disk.blk, 100, 100, 0),
                  -ENOMEM);
        EXPECT_EQ(atomic_load(&fail_nth), 0u);
        EXPECT_EQ(blk_in_flight(disk.blk), 0u);
    }
    EXPECT_EQ(run_write(disk.blk, 100, 100, buf, 0), 0);
    mem_close(&disk);
    world_finish(&w);
}

TEST_MAIN()
