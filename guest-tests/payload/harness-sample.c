/*
 * harness-sample - tests that end in every way there is, for tests/test-run to look at
 *
 * Command line: splat=on has a line printed that belongs to no healthy guest; trap=on ends in an
 * exception; only= as everywhere.
 */
#include "guest-tests/lib/args.h"
#include "guest-tests/lib/boot.h"
#include "guest-tests/lib/console.h"
#include "guest-tests/lib/cpu.h"
#include "guest-tests/lib/harness-serial.h"

TEST(sample, passes)
{
    EXPECT_EQ(2 + 2, 4);
    ASSERT_STREQ("same", "same");
}

TEST(sample, expectation_fails_and_goes_on)
{
    EXPECT_EQ(2 + 2, 5);
    harness_note("went on");
}

static void __attribute__((noinline)) deep_assertion(int value)
{
    ASSERT_EQ(value, 1);
    harness_note("not reached");
}

TEST(sample, assertion_leaves_from_deep_below)
{
    deep_assertion(2);
    harness_note("not reached");
}

TEST(sample, skips)
{
    TEST_SKIP("needs %s", "a unicorn");
}

TEST_TIMEOUT(sample, hangs, 1)
{
    for (;;) {
        cpu_pause();
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

FIXTURE_VARIANT_ADD(glass, half_full){ .content = 1 };
FIXTURE_VARIANT_ADD(glass, cracked){ .content = -1 };

FIXTURE_SETUP(glass)
{
    ASSERT_GE(variant->content, 0);
    self->content = variant->content;
}

FIXTURE_TEARDOWN(glass)
{
    harness_note("emptied %d", self->content);
}

TEST_F(glass, holds_water)
{
    ASSERT_EQ(self->content, 1);
}

static void prepare(void)
{
    if (arg_is("splat", "on")) {
        con_printf("BUG: this is how a kernel says it\n");
    }
    if (arg_is("trap", "on")) {
        __asm__ volatile("ud2");
    }
}

void payload_main(void)
{
    harness_run(prepare);
}
