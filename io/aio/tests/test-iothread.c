/*
 * test-iothread.c - threads with a context of their own: start, calls into them, stop
 */
#include <dirent.h>
#include <pthread.h>
#include <sys/syscall.h>

#include "io/aio/aio-worker.h"
#include "io/aio/iothread.h"
#include "io/aio/tests/aio-test.h"
#include "io/aio/tests/refuse.h"
#include "io/base/thread.h"

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

/* --- CPUs --- */

/* What this process may use; a test that needs more of them is skipped. */
static void allowed_cpus(cpu_set_t *ret_cpus, int nb_needed)
{
    ASSERT_EQ(sched_getaffinity(0, sizeof(*ret_cpus), ret_cpus), 0);
    if (CPU_COUNT(ret_cpus) < nb_needed) {
        TEST_SKIP("needs %d CPUs", nb_needed);
    }
}

static int nth_cpu(const cpu_set_t *cpus, int n)
{
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, cpus) && n-- == 0) {
            return cpu;
        }
    }
    return -1;
}

static void affinity_cb(void *opaque)
{
    ASSERT_EQ(sched_getaffinity(0, sizeof(cpu_set_t), opaque), 0);
}

TEST(iothread, runs_on_the_cpus_it_was_given_and_nowhere_else)
{
    cpu_set_t allowed, wanted, seen;
    IOThreadInfo info;
    Error err = { 0 };

    allowed_cpus(&allowed, 2);
    CPU_ZERO(&wanted);
    CPU_SET(nth_cpu(&allowed, 1), &wanted);
    IOThread *iot = iothread_create_on("pinned", NULL, &wanted, &err);

    ASSERT_TRUE(iot != NULL);
    aio_run_sync(iothread_context(iot), affinity_cb, &seen);
    EXPECT_TRUE(CPU_EQUAL(&seen, &wanted));
    iothread_query(iot, &info);
    EXPECT_TRUE(CPU_EQUAL(&info.cpus, &wanted));
    iothread_unref(iot);
    affinity_cb(&seen); /* we ourselves stay where we were */
    EXPECT_TRUE(CPU_EQUAL(&seen, &allowed));
}

TEST(iothread, cpu_that_is_not_allowed_is_named_and_nothing_is_left)
{
    cpu_set_t allowed, wanted;
    Error err = { 0 };
    int first_free = dup(0);

    close(first_free);
    allowed_cpus(&allowed, 1);
    if (CPU_ISSET(CPU_SETSIZE - 1, &allowed)) {
        TEST_SKIP("CPU %d exists", CPU_SETSIZE - 1);
    }
    CPU_ZERO(&wanted);
    CPU_SET(CPU_SETSIZE - 1, &wanted);
    EXPECT_TRUE(iothread_create_on("none", NULL, &wanted, &err) == NULL);
    EXPECT_EQ(err.code, -EINVAL);
    EXPECT_TRUE(strstr(err.msg, "'none': CPU 1023 is") != NULL);
    CPU_SET(nth_cpu(&allowed, 0), &wanted); /* the kernel takes this set, and leaves one out */
    EXPECT_TRUE(iothread_create_on("some", NULL, &wanted, &err) == NULL);
    EXPECT_EQ(err.code, -EINVAL);
    EXPECT_TRUE(strstr(err.msg, "'some': CPU 1023 is") != NULL);
    EXPECT_EQ(iothreads_alive(), 0);
    int fd = dup(0);

    EXPECT_EQ(fd, first_free);
    close(fd);
}

static int affinity_blocking(void *opaque)
{
    affinity_cb(opaque);
    return 0;
}

static void blocking_entry(void *opaque)
{
    assert_in_coroutine();
    EXPECT_EQ(aio_co_run_blocking(affinity_blocking, opaque), 0);
}

TEST(iothread, thread_that_the_system_refuses_is_told_with_the_limits)
{
    Error err = { 0 };

    if (HAVE_TSAN || HAVE_ASAN) {
        TEST_SKIP("the sanitizer reports the failure of pthread_create() itself");
    }
    refuse(SYS_clone, EAGAIN);
    refuse(SYS_clone3, EAGAIN);
    EXPECT_FALSE(iothread_create("one", NULL, &err));
    EXPECT_EQ(err.code, -EAGAIN);
    EXPECT_TRUE(strstr(err.msg, "ulimit -u") != NULL);
}

TEST(iothread, workers_that_a_bound_thread_starts_are_not_bound)
{
    cpu_set_t allowed, wanted, seen;
    Error err = { 0 };

    allowed_cpus(&allowed, 2);
    CPU_ZERO(&wanted);
    CPU_SET(nth_cpu(&allowed, 1), &wanted);
    IOThread *iot = iothread_create_on("pinned", NULL, &wanted, &err);

    ASSERT_TRUE(iot != NULL);
    aio_co_run_sync(iothread_context(iot), blocking_entry, &seen);
    EXPECT_TRUE(CPU_EQUAL(&seen, &allowed));
    iothread_unref(iot);
}

/* --- query --- */

static void poll_max_cb(void *opaque)
{
    *(int64_t *)opaque = aio_current()->poll.max_ns;
}

TEST(iothread, query_tells_names_cpus_polling_and_counters)
{
    AioParams params = { .poll_max_ns = 5000, .poll_grow = 3, .ring_entries = 16 };
    IOThreadInfo info;
    Error err = { 0 };
    cpu_set_t allowed;
    Seen seen = { 0 };
    IOThread *iot = iothread_create("a-rather-long-name", &params, &err);

    ASSERT_TRUE(iot != NULL);
    aio_run_sync(iothread_context(iot), look_around, &seen);
    iothread_query(iot, &info);
    EXPECT_STREQ(info.id, "a-rather-long-name");
    EXPECT_STREQ(info.name, seen.name);
    EXPECT_EQ(info.tid, seen.tid);
    EXPECT_EQ(info.params.poll_max_ns, 5000);
    EXPECT_EQ(info.params.poll_grow, 3);
    EXPECT_EQ(info.params.ring_entries, 16);
    EXPECT_GE(info.stats.bhs, 1);
    allowed_cpus(&allowed, 1);
    EXPECT_TRUE(CPU_EQUAL(&info.cpus, &allowed)); /* inherited */
    iothread_unref(iot);
}

TEST(iothread, polling_is_set_while_it_runs)
{
    AioParams params = { .poll_max_ns = 7000, .poll_grow = 4, .poll_shrink = 5, .poll_weight = 6 };
    IOThread *iot = test_iothread("poll");
    IOThreadInfo info;
    int64_t max_ns = -1;

    aio_run_sync(iothread_context(iot), poll_max_cb, &max_ns);
    EXPECT_EQ(max_ns, 0);
    iothread_set_polling(iot, &params);
    aio_run_sync(iothread_context(iot), poll_max_cb, &max_ns);
    EXPECT_EQ(max_ns, 7000);
    iothread_query(iot, &info);
    EXPECT_EQ(info.params.poll_max_ns, 7000);
    EXPECT_EQ(info.params.poll_grow, 4);
    EXPECT_EQ(info.params.poll_shrink, 5);
    EXPECT_EQ(info.params.poll_weight, 6);
    params.poll_max_ns = 0;
    iothread_set_polling(iot, &params); /* and stopped before it may have looked */
    iothread_unref(iot);
}

/* --- the main thread --- */

static void *not_the_main_thread(void *opaque)
{
    EXPECT_FALSE(thread_is_main());
    assert_main();
    return NULL;
}

static void assert_elsewhere(void *opaque)
{
    pthread_t thread;

    assert_main();
    ASSERT_EQ(pthread_create(&thread, NULL, not_the_main_thread, NULL), 0);
    pthread_join(thread, NULL);
}

TEST(iothread, main_thread_is_told_from_others)
{
    EXPECT_TRUE(thread_is_main());
    EXPECT_DEATH(assert_elsewhere, NULL, SIGABRT, "thread_is_main()");
}

TEST_MAIN()
