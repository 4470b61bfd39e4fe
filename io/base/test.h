/*
 * test.h - the harness of every host unit test: guest-tests/harness with a process for each test
 *
 * Layer:     io/base (tests only)
 * Threading: each test runs in a process of its own (fork), so threads and leaks stay apart.
 *
 * A test program is a file of TEST()s (or TEST_F()s) and a closing TEST_MAIN(). It prints TAP
 * version 13 with a plan. Tests run in the main thread. A failed ASSERT ends that test with abort()
 * (never longjmp, which would be wrong on a coroutine's stack); what FIXTURE_TEARDOWN would do then,
 * the end of the process does. A test that outlives its time (30 s, or TEST_TIMEOUT_S in the
 * environment, or what TEST_TIMEOUT() says) is killed and fails.
 *
 *     TEST(vring, chain_longer_than_queue_marks_device_broken)
 *     {
 *         ASSERT_EQ(vq_pop(...), -EPIPE);
 *     }
 *     TEST_MAIN()
 *
 * Arguments of the program: `--list`, `--no-fork` (for a debugger: the first test that skips or
 * aborts ends the program), and substrings of test names to run. The exit status is 1 when a test
 * failed. Diagnostics go to standard error as "# file:line: text", with a backtrace on abort().
 */
#ifndef IO_BASE_TEST_H
#define IO_BASE_TEST_H

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "io/base/compiler.h"
#include "io/base/tsa.h"

#define TEST_FUNCTION main_fn
#include "guest-tests/harness/harness.h"

int test_run_all(int argc, char **argv);

/*
 * Run fn(opaque) in a forked process and fail the test unless signal @signo kills it, with @text
 * somewhere in what it wrote on standard error. Only while the test has one thread.
 */
void test_expect_death(const char *file, int line, void (*fn)(void *), void *opaque, int signo,
                       const char *text) NONNULL(1, 3, 6);

#define EXPECT_DEATH(fn, opaque, signo, text)                                                      \
    test_expect_death(__FILE__, __LINE__, fn, opaque, signo, text)

/* test_count_fds - how many descriptors are open */
unsigned test_count_fds(void);

#define TEST_MAIN()                                                                                \
    int main(int argc, char **argv)                                                                \
    {                                                                                              \
        return test_run_all(argc, argv);                                                           \
    }

#endif
