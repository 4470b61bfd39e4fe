/*
 * test-aio-monitor.c - which monitor a context gets, and what is special about epoll
 */
#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>

#include "io/aio/aio-file.h"
#include "io/aio/iothread.h"
#include "io/aio/tests/aio-test.h"
#include "io/aio/tests/refuse.h"
#include "io/base/log.h"

#define MS 1000000LL

/* What is written on standard error from now on. */
static int catch_stderr(int *ret_saved)
{
    int fds[2];

    ASSERT_EQ(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
    *ret_saved = dup(STDERR_FILENO);
    dup2(fds[1], STDERR_FILENO);
    close(fds[1]);
    return fds[0];
}

static void caught(int fd, int saved, char *ret_text, size_t size_bytes)
{
    dup2(saved, STDERR_FILENO);
    close(saved);
    ssize_t n = read(fd, ret_text, size_bytes - 1);

    ret_text[MAX(n, 0)] = '\0';
    close(fd);
}

static unsigned count_lines(const char *text)
{
    unsigned lines = 0;

    for (; (text = strchr(text, '\n')); text++) {
        lines++;
    }
    return lines;
}

static void need_the_choice(void)
{
    if (monitor_auto != AIO_MONITOR_AUTO) {
        TEST_SKIP("the monitor has been chosen for this run");
    }
}

/* --- work to be done on either --- */

static AioFile file;

static co_fn void file_entry(void *opaque)
{
    static char out[8192], in[8192];
    struct iovec iov = { out, sizeof(out) };
    struct iovec two[] = { { in, 100 }, { in + 100, sizeof(in) - 100 } };

    memset(out, 'p', sizeof(out));
    EXPECT_EQ(aio_co_pwritev(&file, &iov, 1, 0, 0), sizeof(out));
    EXPECT_EQ(aio_co_fdatasync(&file), 0);
    EXPECT_EQ(aio_co_preadv(&file, two, 2, 0, 0), sizeof(in));
    EXPECT_EQ(memcmp(in, out, sizeof(in)), 0);
    *(bool *)opaque = true;
}

static void timer_cb(void *opaque)
{
    ++*(int *)opaque;
}

/* Requests, a timer, and another thread's wake-ups. */
static main_fn void work_in(AioContext *ctx)
{
    char path[] = "/tmp/test-aio-monitor-XXXXXX";
    int fd = mkstemp(path);
    IOThread *iot = iothread_create("other", NULL, NULL);
    AioTimer timer;
    int fired = 0;
    bool done = false;

    ASSERT_GE(fd, 0);
    ASSERT_TRUE(iot != NULL);
    unlink(path);
    aio_file_init(&file, fd);
    for (int i = 0; i < 3; i++) {
        done = false;
        aio_co_run_sync(ctx, file_entry, &done);
        EXPECT_TRUE(done);
        done = false;
        aio_co_run_sync(iothread_context(iot), file_entry, &done);
        EXPECT_TRUE(done);
    }
    aio_timer_init(&timer, ctx, timer_cb, &fired);
    int64_t start_ns = aio_now_ns();

    aio_timer_arm(&timer, start_ns + 3 * MS);
    AIO_WAIT_WHILE(ctx, !fired);
    EXPECT_GE(aio_now_ns() - start_ns, 3 * MS);
    aio_file_finish(&file);
    close(fd);
    iothread_unref(iot);
}

/* --- the choice --- */

static main_fn void expect_fall_back(long refused_call, int code, const char *hint)
{
    char text[1024];
    int saved;

    need_the_choice();
    refuse(refused_call, code);
    int fd = catch_stderr(&saved);
    AioContext *ctx = test_context(NULL);
    AioContext *second = aio_context_create("second", NULL, NULL);

    caught(fd, saved, text, sizeof(text));
    EXPECT_STREQ(aio_context_monitor(ctx), "epoll");
    EXPECT_STREQ(aio_context_monitor(second), "epoll");
    EXPECT_EQ(count_lines(text), 1); /* once, not once a context */
    EXPECT_TRUE(strstr(text, "io_uring") && strstr(text, "epoll"));
    EXPECT_TRUE(strstr(text, hint) != NULL);
    work_in(ctx);
    aio_context_destroy(second);

    /* who insists is refused with the reason */
    AioParams params = { .monitor = AIO_MONITOR_IO_URING };
    Error err = { 0 };

    EXPECT_TRUE(aio_context_create("stubborn", &params, &err) == NULL);
    EXPECT_EQ(err.code, -code);
    EXPECT_TRUE(strstr(err.msg, "stubborn") && strstr(err.msg, hint));
    aio_context_destroy(ctx);
}

TEST(aio_monitor, epoll_serves_where_seccomp_refuses_the_ring)
{
    expect_fall_back(SYS_io_uring_setup, EPERM, "kernel.io_uring_disabled");
}

TEST(aio_monitor, epoll_serves_where_the_kernel_has_no_ring)
{
    expect_fall_back(SYS_io_uring_setup, ENOSYS, "the kernel lacks it");
}

TEST(aio_monitor, epoll_serves_where_only_entering_the_ring_is_refused)
{
    expect_fall_back(SYS_io_uring_enter, EPERM, "seccomp");
}

TEST(aio_monitor, epoll_serves_where_only_registering_with_the_ring_is_refused)
{
    expect_fall_back(SYS_io_uring_register, ENOSYS, "seccomp");
}

TEST(aio_monitor, passing_shortage_is_no_reason_to_fall_back)
{
    Error err = { 0 };

    need_the_choice();
    refuse(SYS_io_uring_setup, EMFILE);
    EXPECT_TRUE(aio_context_create("short", NULL, &err) == NULL);
    EXPECT_EQ(err.code, -EMFILE);
}

TEST(aio_monitor, choice_is_the_caller_s)
{
    AioParams params = { .monitor = AIO_MONITOR_EPOLL };
    AioContext *ctx = test_context(&params);

    EXPECT_STREQ(aio_context_monitor(ctx), "epoll");
    work_in(ctx);
    aio_context_destroy(ctx);
    ctx = test_ring_context(NULL);
    EXPECT_STREQ(aio_context_monitor(ctx), "io_uring");
    aio_context_destroy(ctx);
}

static void *notify_thread(void *opaque)
{
    aio_notify(opaque);
    return NULL;
}

TEST(aio_monitor, wake_up_ends_one_sleep_and_not_the_next)
{
    AioContext *ctx = test_context(NULL);
    AioTimer timer;
    int fired = 0;

    aio_timer_init(&timer, ctx, timer_cb, &fired);
    for (int i = 1; i <= 5; i++) {
        uint64_t notifies = test_stats(ctx).notifies;
        pthread_t thread;

        while (test_stats(ctx).notifies == notifies) { /* until one of them finds it asleep */
            ASSERT_EQ(pthread_create(&thread, NULL, notify_thread, ctx), 0);
            aio_poll(ctx, true);
            pthread_join(thread, NULL);
        }
        uint64_t passes = test_stats(ctx).passes;

        aio_timer_arm(&timer, aio_now_ns() + 5 * MS);
        AIO_WAIT_WHILE(ctx, fired < i);
        EXPECT_LE(test_stats(ctx).passes - passes, 20);
    }
    aio_context_destroy(ctx);
}

/* --- what is special about epoll --- */

static AioContext *epoll_context(void)
{
    AioParams params = { .monitor = AIO_MONITOR_EPOLL };

    return test_context(&params);
}

TEST(aio_monitor, epoll_goes_on_without_nanoseconds)
{
    AioContext *ctx;

    refuse(SYS_epoll_pwait2, ENOSYS);
    ctx = epoll_context();
    work_in(ctx);
    EXPECT_TRUE(ctx->epoll.no_pwait2);

    /* milliseconds are rounded up: it sleeps rather than spins */
    uint64_t passes = test_stats(ctx).passes;
    AioTimer timer;
    int fired = 0;

    aio_timer_init(&timer, ctx, timer_cb, &fired);
    aio_timer_arm(&timer, aio_now_ns() + MS * 5 / 2);
    AIO_WAIT_WHILE(ctx, !fired);
    EXPECT_LE(test_stats(ctx).passes - passes, 20);
    aio_context_destroy(ctx);
}

static void count_read(void *opaque)
{
    ++*(int *)opaque;
}

static void remove_both(void *opaque)
{
    int *fds = opaque;

    fds[2]++;
    aio_set_fd_handler(aio_current(), fds[0], NULL, NULL);
    aio_set_fd_handler(aio_current(), fds[1], NULL, NULL);
}

/* The terminal of a program that is run with `< file` or `< /dev/null`. */
TEST(aio_monitor, descriptor_that_is_always_ready_is_served_with_the_others)
{
    static const AioHandlerOps ops = { .read = count_read };
    static const AioHandlerOps remove_ops = { .read = remove_both };
    AioContext *ctx = test_context(NULL);
    int file_fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    int pair[2], file_calls = 0, null_calls = 0, pair_calls = 0, fired = 0;
    AioTimer timer;

    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    aio_timer_init(&timer, ctx, timer_cb, &fired);
    aio_timer_arm(&timer, aio_now_ns() + MS);
    aio_set_fd_handler(ctx, file_fd, &ops, &file_calls);
    aio_set_fd_handler(ctx, null_fd, &ops, &null_calls);
    aio_set_fd_handler(ctx, pair[0], &ops, &pair_calls);
    ASSERT_EQ(write(pair[1], "x", 1), 1);
    AIO_WAIT_WHILE(ctx, file_calls < 5 || null_calls < 5 || pair_calls < 5 || !fired);

    int fds[] = { file_fd, null_fd, 0 };

    aio_set_fd_handler(ctx, file_fd, &remove_ops, fds);
    aio_set_fd_handler(ctx, null_fd, &remove_ops, fds);
    aio_set_fd_handler(ctx, pair[0], NULL, NULL);
    AIO_WAIT_WHILE(ctx, fds[2] == 0);
    for (int i = 0; i < 5; i++) {
        aio_poll(ctx, false);
    }
    EXPECT_EQ(fds[2], 1); /* the first one called removed both */
    close(file_fd);
    close(null_fd);
    close(pair[0]);
    close(pair[1]);
    aio_context_destroy(ctx);
}

#define CROWD (3 * EPOLL_EVENTS_MAX)

static AioContext *nesting_ctx;
static unsigned crowd_calls;

static void crowd_read(void *opaque)
{
    int *fds = opaque;
    char byte;

    EXPECT_EQ(read(fds[0], &byte, 1), 1);
    if (++crowd_calls % 10 == 0) {
        aio_poll(nesting_ctx, false);
    }
    aio_set_fd_handler(nesting_ctx, fds[0], NULL, NULL);
}

/* Inner passes go on with the outer one's events, and take new ones only when those are done. */
TEST(aio_monitor, events_are_called_once_though_passes_are_nested)
{
    static const AioHandlerOps ops = { .read = crowd_read };
    static int fds[CROWD][2];
    AioContext *ctx = test_context(NULL);

    nesting_ctx = ctx;
    for (unsigned i = 0; i < CROWD; i++) {
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds[i]), 0);
        aio_set_fd_handler(ctx, fds[i][0], &ops, fds[i]);
        ASSERT_EQ(write(fds[i][1], "x", 1), 1);
    }
    AIO_WAIT_WHILE(ctx, crowd_calls < CROWD);
    EXPECT_FALSE(aio_poll(ctx, false));
    for (unsigned i = 0; i < CROWD; i++) {
        close(fds[i][0]);
        close(fds[i][1]);
    }
    aio_context_destroy(ctx);
}

typedef struct Probed {
    EventNotifier en;
    int probes;
    int peer; /* written to in the midst of the window */
} Probed;

static bool never_ready(void *opaque)
{
    Probed *probed = opaque;

    if (++probed->probes == 1000) {
        EXPECT_EQ(write(probed->peer, "x", 1), 1);
    }
    return false;
}

static void probed_read(void *opaque)
{
    event_notifier_test_and_clear(&((Probed *)opaque)->en);
}

/* The window here is longer than the test may take. */
TEST(aio_monitor, descriptor_without_a_probe_is_seen_while_others_are_polled_for)
{
    static const AioHandlerOps probed_ops = { .read = probed_read, .poll = never_ready };
    static const AioHandlerOps ops = { .read = count_read };
    AioParams params = { .poll_max_ns = 3600 * 1000 * MS };
    AioContext *ctx = test_context(&params);
    Probed probed = { .probes = 0 };
    int pair[2], calls = 0;

    ASSERT_EQ(event_notifier_open(&probed.en, NULL), 0);
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    probed.peer = pair[1];
    aio_set_event_notifier(ctx, &probed.en, &probed_ops, &probed);
    aio_set_fd_handler(ctx, pair[0], &ops, &calls);
    aio_poll(ctx, false);
    test_open_window(ctx, params.poll_max_ns);
    AIO_WAIT_WHILE(ctx, calls == 0);
    EXPECT_GE(probed.probes, 1000);
    aio_set_fd_handler(ctx, pair[0], NULL, NULL);
    aio_set_event_notifier(ctx, &probed.en, NULL, NULL);
    event_notifier_close(&probed.en);
    close(pair[0]);
    close(pair[1]);
    aio_context_destroy(ctx);
}

TEST_MAIN()
