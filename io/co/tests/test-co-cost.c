/*
 * test-co-cost - a coroutine that is started, yields, is woken and ends within one context makes no
 * system call and allocates nothing
 *
 * System calls are counted by a seccomp filter that turns each into a signal; allocations by
 * standing in for malloc() and its kind. Sanitizers do both on their own account, so these tests
 * are skipped.
 */
#include "io/aio/aio.h"
#include "io/base/test.h"
#include "io/co/coroutine-int.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define ROUNDS 1000

static volatile sig_atomic_t nb_syscalls;
static bool counting;
static unsigned nb_allocations;

/* --- counting --- */

#if !HAVE_ASAN && !HAVE_TSAN
void *__libc_malloc(size_t size_bytes);
void *__libc_calloc(size_t nb, size_t size_bytes);
void *__libc_realloc(void *ptr, size_t size_bytes);
void *__libc_memalign(size_t align_bytes, size_t size_bytes);

void *malloc(size_t size_bytes)
{
    nb_allocations += counting;
    return __libc_malloc(size_bytes);
}

void *calloc(size_t nb, size_t size_bytes)
{
    nb_allocations += counting;
    return __libc_calloc(nb, size_bytes);
}

void *realloc(void *ptr, size_t size_bytes)
{
    nb_allocations += counting;
    return __libc_realloc(ptr, size_bytes);
}

int posix_memalign(void **ret_ptr, size_t align_bytes, size_t size_bytes)
{
    nb_allocations += counting;
    *ret_ptr = __libc_memalign(align_bytes, size_bytes);
    return *ret_ptr ? 0 : ENOMEM;
}
#endif

static void syscall_trapped(int signo)
{
    nb_syscalls++;
}

/* From here on each system call but those that the harness ends with is counted and not made. */
static void trap_syscalls(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_write, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_exit_group, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_rt_sigreturn, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { ARRAY_SIZE(filter), filter };
    struct sigaction action = { .sa_handler = syscall_trapped };

    if (HAVE_ASAN || HAVE_TSAN) {
        TEST_SKIP("a sanitizer makes system calls of its own");
    }
    sigaction(SIGSYS, &action, NULL);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0) {
        TEST_SKIP("seccomp: %s", strerror(errno));
    }
    counting = true;
}

static void expect_nothing_counted(void)
{
    unsigned allocations = nb_allocations;
    int syscalls = nb_syscalls;

    /* Both counters see one more. A compiler may leave out an allocation that nobody can see. */
    void *volatile allocation = malloc(1);

    free(allocation);
    syscall(SYS_getppid);
    counting = false;
    EXPECT_EQ(allocations, 0);
    EXPECT_EQ(nb_allocations, 1);
    EXPECT_EQ(syscalls, 0);
    EXPECT_EQ(nb_syscalls, 1);
}

/* --- what is counted --- */

static co_fn void yield_entry(void *opaque)
{
    co_yield();
    ++*(unsigned *)opaque;
}

TEST(co_cost, create_enter_yield_and_end_are_free)
{
    unsigned nb_ended = 0;

    co_enter(co_create(yield_entry, &nb_ended)); /* fills the pool when it has ended */

    Coroutine *co = co_create(yield_entry, &nb_ended);

    co_enter(co);
    co_enter(co);
    trap_syscalls();
    for (unsigned i = 0; i < ROUNDS; i++) {
        co = co_create(yield_entry, &nb_ended);
        co_enter(co);
        co_enter(co);
    }
    expect_nothing_counted();
    EXPECT_EQ(nb_ended, ROUNDS + 1);
}

static co_fn void wake_entry(void *opaque)
{
    aio_co_wake(opaque); /* from inside a coroutine */
}

TEST(co_cost, waking_in_its_own_context_is_free)
{
    Error err = { 0 };
    AioContext *ctx = aio_context_create("test", NULL, &err);
    unsigned nb_ended = 0;

    if (!ctx) {
        TEST_SKIP("%s", err.msg);
    }
    aio_context_enter(ctx);
    for (unsigned i = 0; i < ROUNDS; i++) {
        Coroutine *co = co_create(yield_entry, &nb_ended);

        if (i == 1) {
            trap_syscalls();
        }
        co_enter(co);
        if (i % 2 == 0) {
            co_enter(co_create(wake_entry, co));
        } else {
            aio_co_wake(co);
        }
    }
    expect_nothing_counted();
    EXPECT_EQ(nb_ended, ROUNDS);
}

static co_fn void rescheduled_entry(void *opaque)
{
    unsigned *nb_left = opaque;

    while (--*nb_left > 0) {
        aio_co_schedule(aio_current(), co_self());
        co_yield();
    }
}

TEST(co_cost, scheduling_in_its_own_context_is_free)
{
    Error err = { 0 };
    AioContext *ctx = aio_context_create("test", NULL, &err);
    unsigned nb_left = ROUNDS;

    if (!ctx) {
        TEST_SKIP("%s", err.msg);
    }
    aio_context_enter(ctx);
    co_enter(co_create(rescheduled_entry, &(unsigned){ 1 })); /* ends at once: the pool is there */
    co_enter(co_create(rescheduled_entry, &nb_left));
    trap_syscalls();
    while (nb_left > 0) {
        aio_poll(ctx, true);
    }
    expect_nothing_counted();
}

TEST_MAIN()
