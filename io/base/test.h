/*
 * test.h - the harness of every host unit test, in the manner of the kernel's kselftest
 *
 * Layer:     io/base (tests only)
 * Threading: each test runs in a process of its own (fork), so threads and leaks stay apart.
 *
 * A test program is a file of TEST()s and a closing TEST_MAIN(). It prints TAP version 13 with a
 * plan. Tests run in the main thread. A failed EXPECT prints both values and goes on; a failed
 * ASSERT ends that test with abort() (never longjmp, which would be wrong on a coroutine's stack).
 * A test that outlives its time (30 s, or TEST_TIMEOUT_S in the environment) is killed and fails.
 * TEST_SKIP ends it as skipped.
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

typedef struct TestCase {
    const char *name;
    void (*fn)(void);
    struct TestCase *next;
} TestCase;

void test_register(TestCase *test);
int test_run_all(int argc, char **argv);

/* Marks the running test failed; prints "# file:line: message". */
void test_fail(const char *file, int line, const char *fmt, ...) PRINTF(3, 4);
void test_fail_abort(const char *file, int line, const char *fmt, ...) PRINTF(3, 4) NORETURN;
void test_skip(const char *fmt, ...) PRINTF(1, 2) NORETURN;
/*
 * Run fn(opaque) in a forked process and fail the test unless signal @signo kills it, with @text
 * somewhere in what it wrote on standard error. Only while the test has one thread.
 */
void test_expect_death(const char *file, int line, void (*fn)(void *), void *opaque, int signo,
                       const char *text) NONNULL(1, 3, 6);

#define TEST(group, sentence)                                                                      \
    static main_fn void test_##group##_##sentence(void);                                           \
    static TestCase test_case_##group##_##sentence = { #group ": " #sentence,                      \
                                                       test_##group##_##sentence, NULL };          \
    static void __attribute__((constructor)) test_register_##group##_##sentence(void)              \
    {                                                                                              \
        test_register(&test_case_##group##_##sentence);                                            \
    }                                                                                              \
    static void test_##group##_##sentence(void)

#define TEST_MAIN()                                                                                \
    int main(int argc, char **argv)                                                                \
    {                                                                                              \
        return test_run_all(argc, argv);                                                           \
    }

#define TEST_SKIP(...) test_skip(__VA_ARGS__)

#define TEST_COMPARE_(fail, a, op, b)                                                              \
    do {                                                                                           \
        __typeof__(1 ? (a) : (a)) va_ = (a); /* not an array, a bit-field or qualified */          \
        __typeof__(1 ? (b) : (b)) vb_ = (b);                                                       \
        if (!(va_ op vb_)) {                                                                       \
            fail(__FILE__, __LINE__, "%s %s %s: left is %lld (0x%llx), right is %lld (0x%llx)",    \
                 #a, #op, #b, (long long)va_, (unsigned long long)va_, (long long)vb_,             \
                 (unsigned long long)vb_);                                                         \
        }                                                                                          \
    } while (0)
#define TEST_TRUE_(fail, cond)                                                                     \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fail(__FILE__, __LINE__, "%s is false", #cond);                                        \
        }                                                                                          \
    } while (0)
#define TEST_STR_(fail, a, b)                                                                      \
    do {                                                                                           \
        const char *sa_ = (a), *sb_ = (b);                                                         \
        if (!sa_ || !sb_ || strcmp(sa_, sb_) != 0) {                                               \
            fail(__FILE__, __LINE__, "%s == %s: left is \"%s\", right is \"%s\"", #a, #b,          \
                 sa_ ? sa_ : "(null)", sb_ ? sb_ : "(null)");                                      \
        }                                                                                          \
    } while (0)

#define EXPECT_EQ(a, b)     TEST_COMPARE_(test_fail, a, ==, b)
#define EXPECT_NE(a, b)     TEST_COMPARE_(test_fail, a, !=, b)
#define EXPECT_LT(a, b)     TEST_COMPARE_(test_fail, a, <, b)
#define EXPECT_LE(a, b)     TEST_COMPARE_(test_fail, a, <=, b)
#define EXPECT_GT(a, b)     TEST_COMPARE_(test_fail, a, >, b)
#define EXPECT_GE(a, b)     TEST_COMPARE_(test_fail, a, >=, b)
#define EXPECT_TRUE(c)      TEST_TRUE_(test_fail, c)
#define EXPECT_FALSE(c)     TEST_TRUE_(test_fail, !(c))
#define EXPECT_STREQ(a, b)  TEST_STR_(test_fail, a, b)
#define EXPECT_DEATH(fn, opaque, signo, text)                                                      \
    test_expect_death(__FILE__, __LINE__, fn, opaque, signo, text)
#define ASSERT_EQ(a, b)     TEST_COMPARE_(test_fail_abort, a, ==, b)
#define ASSERT_NE(a, b)     TEST_COMPARE_(test_fail_abort, a, !=, b)
#define ASSERT_LT(a, b)     TEST_COMPARE_(test_fail_abort, a, <, b)
#define ASSERT_LE(a, b)     TEST_COMPARE_(test_fail_abort, a, <=, b)
#define ASSERT_GT(a, b)     TEST_COMPARE_(test_fail_abort, a, >, b)
#define ASSERT_GE(a, b)     TEST_COMPARE_(test_fail_abort, a, >=, b)
#define ASSERT_TRUE(c)      TEST_TRUE_(test_fail_abort, c)
#define ASSERT_FALSE(c)     TEST_TRUE_(test_fail_abort, !(c))
#define ASSERT_STREQ(a, b)  TEST_STR_(test_fail_abort, a, b)

#endif
