/*
 * test-iothread.c - threads with a context of their own: start, calls into them, stop
 */
#include <dirent.h>
#include <pthread.h>
#include <sys/syscall.h>

#include "io/aio/iothread.h"
#include "io/aio/tests/aio-test.h"

static main_fn IOThread *test_iothread(const char *id)
{
    Error err = { 0 };
    IOThread *iot = iothread_create(id, NULL, &err);

    if (!iot) {
        TEST_SKIP("%s", err.msg);
    }
    return iot;
}

/* Threads of this process whose name begins with "io:" (sanitizers have others of their own). */
static unsigned iothreads_alive(void)
{
    DIR *dir = opendir("/proc/self/task");
    unsigned n = 0;

    ASSERT_TRUE(dir != NULL);
    for (struct dirent *entry; (entry = readdir(dir));) {
        char path[300], name[32] = "";
        snprintf(path, sizeof(path), "/proc/self/task/%s/comm", entry->d_name);
        FILE *comm = fopen(path, "r");

        if (comm) {
            n += fgets(name, sizeof(name), comm) && strncmp(name, "io:", 3) == 0;
            fclose(comm);
        }
    }
    closedir(dir);
    return n;
}

typedef struct Seen {
    AioContext *ctx;
    char name[32];
    pid_t tid;
    int calls;
} Seen;

static void look_around(void *opaque)
{
    Seen *seen = opaque;

    seen->ctx = aio_current();
    seen->tid = gettid();
    seen->calls++;
    pthread_getname_np(pthread_self(), seen->name, sizeof(seen->name));
}

TEST(iothread, runs_calls_in_its_own_context_under_its_own_name)
{
    IOThread *iot = test_iothread("disk0.q1");
    Seen seen = { 0 };

    aio_run_sync(iothread_context(iot), look_around, &seen);
    EXPECT_TRUE(seen.ctx == iothread_context(iot));
    EXPECT_NE(seen.tid, gettid());
    EXPECT_STREQ(seen.name, "io:disk0.q1");
    EXPECT_STREQ(iothread_id(iot), "disk0.q1");
    EXPECT_TRUE(aio_current() == NULL);
    iothread_unref(iot);
    EXPECT_EQ(seen.calls, 1);
}

TEST(iothread, long_name_is_cut_not_refused)
{
    IOThread *iot = test_iothread("a-name-that-is-much-too-long-for-a-thread");
    Seen seen = { 0 };

    aio_run_sync(iothread_context(iot), look_around, &seen);
    EXPECT_STREQ(seen.name, "io:a-name-that-");
    iothread_unref(iot);
}

TEST(iothread, last_unref_ends_the_thread_and_leaves_no_descriptor)
{
    IOThread *iot[8];
    Seen seen = { 0 };
    int first_free = dup(0);

    close(first_free);
    for (unsigned i = 0; i < ARRAY_SIZE(iot); i++) {
        iot[i] = test_iothread("x");
        aio_run_sync(iothread_context(iot[i]), look_around, &seen);
    }
    EXPECT_EQ(iothreads_alive(), ARRAY_SIZE(iot));
    EXPECT_TRUE(iothread_ref(iot[0]) == iot[0]);
    iothread_unref(iot[0]);
    EXPECT_EQ(iothreads_alive(), ARRAY_SIZE(iot));
    for (unsigned i = 0; i < ARRAY_SIZE(iot); i++) {
        iothread_unref(iot[i]);
    }
    iothread_unref(NULL);
    EXPECT_EQ(iothreads_alive(), 0);
    int fd = dup(0);

    EXPECT_EQ(fd, first_free);
    close(fd);
}

TEST(iothread, contexts_have_distinct_small_indices_and_main_is_told)
{
    AioContext *ctx = test_context(NULL);
    IOThread *a = test_iothread("a");
    IOThread *b = test_iothread("b");

    EXPECT_TRUE(aio_main() == NULL);
    aio_context_set_main(ctx);
    EXPECT_TRUE(aio_main() == ctx);
    EXPECT_NE(aio_context_index(iothread_context(a)), aio_context_index(iothread_context(b)));
    EXPECT_NE(aio_context_index(iothread_context(a)), aio_context_index(ctx));
    EXPECT_LT(aio_context_index(iothread_context(b)), AIO_CONTEXTS_MAX);
    iothread_unref(a);
    iothread_unref(b);
    aio_context_destroy(ctx);
    EXPECT_TRUE(aio_main() == NULL);
}

static void count_bh(void *opaque)
{
    ++*(int *)opaque;
}

TEST(iothread, what_was_scheduled_before_the_end_is_run)
{
    for (int round = 0; round < 20; round++) {
        IOThread *iot = test_iothread("end");
        int runs = 0;

        for (int i = 0; i < 100; i++) {
            aio_bh_schedule_oneshot(iothread_context(iot), count_bh, &runs);
        }
        iothread_unref(iot);
        EXPECT_EQ(runs, 100);
    }
}

TEST(iothread, call_into_it_wakes_it_every_time)
{
    IOThread *iot = test_iothread("ping");
    Seen seen = { 0 };

    for (int i = 0; i < 2000; i++) {
        aio_run_sync(iothread_context(iot), look_around, &seen);
    }
    EXPECT_EQ(seen.calls, 2000);
    iothread_unref(iot);
}

static void sleeping_entry(void *opaque)
{
    assert_in_coroutine();
    for (int i = 0; i < 3; i++) {
        aio_co_sleep_ns(1000000);
    }
    look_around(opaque);
}

TEST(iothread, coroutine_runs_in_it_to_its_end)
{
    IOThread *iot = test_iothread("co");
    AioContext *ctx = test_context(NULL);
    Seen seen = { 0 };

    /* with a context of our own, which is polled meanwhile, ... */
    aio_co_run_sync(iothread_context(iot), sleeping_entry, &seen);
    EXPECT_TRUE(seen.ctx == iothread_context(iot));
    /* ... in our own context, ... */
    aio_co_run_sync(ctx, sleeping_entry, &seen);
    EXPECT_TRUE(seen.ctx == ctx);
    /* ... and from a thread without one */
    aio_context_destroy(ctx);
    aio_co_run_sync(iothread_context(iot), sleeping_entry, &seen);
    EXPECT_TRUE(seen.ctx == iothread_context(iot));
    EXPECT_EQ(seen.calls, 3);
    iothread_unref(iot);
}

TEST_MAIN()
