/*
 * harness-sample - tests that end in every way there is; run by test-harness, not by itself
 */
#include "io/base/test.h"

#include <pthread.h>
#include <unistd.h>

TEST(sample, passes)
{
    EXPECT_EQ(2 + 2, 4);
    ASSERT_TRUE(true);
}

TEST(sample, expectation_fails_and_goes_on)
{
    EXPECT_EQ(2 + 2, 5);
    fprintf(stderr, "went on\n");
}

static NOINLINE void deep_assertion(int value)
{
    ASSERT_EQ(value, 1);
    fprintf(stderr, "not reached\n");
}

TEST(sample, assertion_fails_and_aborts)
{
    deep_assertion(2);
}

TEST(sample, string_differs)
{
    EXPECT_STREQ("left text", "right text");
}

TEST(sample, skips)
{
    TEST_SKIP("needs %s", "a unicorn");
}

TEST(sample, hangs)
{
    for (;;) {
        pause();
    }
}

TEST(sample, exits_with_a_status)
{
    _exit(3);
}

TEST(sample, crashes)
{
    int *volatile nowhere = (int *)8;

    *nowhere = 0;
}

static void *failing_thread(void *opaque)
{
    EXPECT_TRUE(opaque);
    return NULL;
}

TEST(sample, another_thread_fails_it)
{
    pthread_t thread;

    pthread_create(&thread, NULL, failing_thread, NULL);
    pthread_join(thread, NULL);
}

static void abort_now(void *opaque)
{
    fprintf(stderr, "last words\n");
    abort();
}

static void live(void *opaque)
{
}

TEST(sample, dies_as_expected)
{
    EXPECT_DEATH(abort_now, NULL, SIGABRT, "last words");
}

TEST(sample, dies_with_other_words)
{
    EXPECT_DEATH(abort_now, NULL, SIGABRT, "first words");
}

TEST(sample, lives_on)
{
    EXPECT_DEATH(live, NULL, SIGABRT, "");
}

/* A process that outlives the test would keep the pipe of test-harness open. */
TEST(sample, leaves_a_process_behind)
{
    if (fork() == 0) {
        sleep(1000);
        _exit(0);
    }
}

TEST_MAIN()
