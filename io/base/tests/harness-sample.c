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

FIXTURE(glass)
{
    int content;
};

FIXTURE_VARIANT(glass)
{
    int content;
};

FIXTURE_VARIANT_ADD(glass, half_full) { .content = 1 };
FIXTURE_VARIANT_ADD(glass, cracked) { .content = -1 };

FIXTURE_SETUP(glass)
{
    ASSERT_EQ(self->content, 0);
    EXPECT_GE(variant->content, 0);
    self->content = variant->content;
}

FIXTURE_TEARDOWN(glass)
{
    fprintf(stderr, "emptied %d\n", self->content);
}

TEST_F(glass, holds_water)
{
    self->content++;
    EXPECT_EQ(self->content, 2);
}

FIXTURE(plain)
{
    int answer;
};

FIXTURE_SETUP(plain)
{
    self->answer = 42;
}

FIXTURE_TEARDOWN(plain)
{
}

TEST_F(plain, has_no_variant)
{
    EXPECT_EQ(variant, NULL);
    EXPECT_EQ(self->answer, 42);
}

TEST_TIMEOUT(sample, takes_its_time, 2)
{
    usleep(1200 * 1000);
}

TEST_MAIN()
