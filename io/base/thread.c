/*
 * thread.c - which thread this is, and its name
 */
#include "io/base/thread.h"

#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>

#include "io/base/error.h"

#define NAME_BYTES 16 /* TASK_COMM_LEN of the kernel, with the terminator */

bool thread_is_main(void)
{
    return gettid() == getpid();
}

void assert_main(void)
{
    assert(thread_is_main());
}

void thread_use_main_cpus(void)
{
    cpu_set_t cpus;

    if (sched_getaffinity(getpid(), sizeof(cpus), &cpus) == 0) {
        (void)sched_setaffinity(0, sizeof(cpus), &cpus); /* nothing depends on it */
    }
}

void thread_block_signals(sigset_t *ret_saved)
{
    static const int own[] = { SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP };
    sigset_t set;

    sigfillset(&set);
    for (unsigned i = 0; i < ARRAY_SIZE(own); i++) {
        sigdelset(&set, own[i]);
    }
    pthread_sigmask(SIG_BLOCK, &set, ret_saved);
}

const char *thread_strerror(int code)
{
    return code == -EAGAIN ? "there may be no more; raise ulimit -u, or pids.max of the cgroup"
                           : error_strerror(code);
}

void thread_set_name(const char *fmt, ...)
{
    char name[NAME_BYTES];
    va_list args;

    va_start(args, fmt);
    vsnprintf(name, sizeof(name), fmt, args);
    va_end(args);
    pthread_setname_np(pthread_self(), name);
}
