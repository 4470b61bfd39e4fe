/*
 * test-peer-signal.c - signals for eventfds that a peer can fill
 */
#include "virtio/peer-signal.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io/aio/aio.h"
#include "io/base/test.h"

#define SIGNALS 1000

static AioContext *ctx;

static main_fn void begin(void)
{
    Error err;

    ctx = aio_context_create("main", NULL, &err);
    ASSERT_TRUE(ctx != NULL);
    aio_context_enter(ctx);
}

static uint64_t count_of(int fd)
{
    uint64_t count = 0;

    ASSERT_EQ(read(fd, &count, sizeof(count)), (ssize_t)sizeof(count));
    return count;
}

static void refuse(long call)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { ARRAY_SIZE(filter), filter };

    ASSERT_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    ASSERT_EQ(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

static void expect_all_arrive(void)
{
    int fd = eventfd(0, EFD_CLOEXEC);

    ASSERT_GE(fd, 0);
    for (unsigned i = 0; i < SIGNALS; i++) {
        peer_signal(fd);
    }
    EXPECT_EQ(count_of(fd), SIGNALS);
    close(fd);
}

TEST(peer_signal, all_of_them_arrive)
{
    begin();
    expect_all_arrive();
    aio_context_destroy(ctx);
}

TEST(peer_signal, they_arrive_from_a_thread_without_a_loop)
{
    expect_all_arrive();
}

TEST(peer_signal, they_arrive_where_aio_is_refused)
{
    begin();
    refuse(SYS_io_setup);
    expect_all_arrive();
    aio_context_destroy(ctx);
}

TEST(peer_signal, they_arrive_where_submitting_is_refused)
{
    begin();
    refuse(SYS_io_submit);
    expect_all_arrive();
    aio_context_destroy(ctx);
}

/* Only the kernel takes it so far; a write of ours would have waited. */
TEST(peer_signal, a_counter_that_is_full_holds_up_nobody)
{
    const uint64_t full = UINT64_MAX - 1;
    int fd = eventfd(0, EFD_CLOEXEC);

    begin();
    ASSERT_GE(fd, 0);
    ASSERT_EQ(write(fd, &full, sizeof(full)), (ssize_t)sizeof(full));
    peer_signal(fd);
    peer_signal(fd);
    EXPECT_EQ(count_of(fd), UINT64_MAX);
    close(fd);
    aio_context_destroy(ctx);
}

TEST(peer_signal, what_is_no_eventfd_is_left_alone)
{
    int fds[2];

    begin();
    peer_signal(-1);
    ASSERT_EQ(pipe(fds), 0);
    close(fds[0]);
    close(fds[1]);
    peer_signal(fds[1]);
    aio_context_destroy(ctx);
}

TEST_MAIN()
