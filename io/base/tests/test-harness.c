/*
 * test-harness - does the harness tell failures, skips, hangs and crashes from passes?
 *
 * Runs harness-sample, whose path is in the environment, and reads what it prints.
 */
#include <sys/wait.h>

#include "io/base/test.h"

typedef struct Output {
    char text[16384];
    int status;
} Output;

/* Run the sample with @arguments, a piece of shell command line. */
static void run_sample(Output *output, const char *arguments)
{
    const char *program = getenv("HARNESS_SAMPLE");
    char command[1024];

    if (!program) {
        TEST_SKIP("HARNESS_SAMPLE does not name the program to run");
    }
    snprintf(command, sizeof(command), "TEST_TIMEOUT_S=%d '%s' %s", HAVE_ASAN || HAVE_TSAN ? 4 : 1,
             program, arguments);

    FILE *pipe = popen(command, "re");

    ASSERT_NE(pipe, NULL);
    size_t len = fread(output->text, 1, sizeof(output->text) - 1, pipe);

    output->text[len] = '\0';
    output->status = pclose(pipe);
}

/* The sample's one test of that name gives @line; what it wrote on standard error has @said. */
static void expect(const char *name, const char *line, int status, const char *said)
{
    Output output;
    char arguments[128], expected[256];

    snprintf(arguments, sizeof(arguments), "%s 2>/dev/null", name);
    run_sample(&output, arguments);
    snprintf(expected, sizeof(expected), "TAP version 13\n1..1\n%s\n", line);
    EXPECT_STREQ(output.text, expected);
    EXPECT_EQ(WEXITSTATUS(output.status), status);

    snprintf(arguments, sizeof(arguments), "%s 2>&1 >/dev/null", name);
    run_sample(&output, arguments);
    if (!strstr(output.text, said)) {
        test_fail(__FILE__, __LINE__, "%s: \"%s\" is not in \"%s\"", name, said, output.text);
    }
}

TEST(harness, passes)
{
    expect("passes", "ok 1 - sample: passes", 0, "");
}

TEST(harness, expectation_prints_both_values_and_goes_on)
{
    expect("goes_on", "not ok 1 - sample: expectation_fails_and_goes_on", 1,
           "harness-sample.c:17: 2 + 2 == 5: left is 4 (0x4), right is 5 (0x5)\nwent on\n");
}

TEST(harness, assertion_aborts_with_a_backtrace)
{
    expect("aborts", "not ok 1 - sample: assertion_fails_and_aborts", 1,
           "value == 1: left is 2 (0x2), right is 1 (0x1)\n# caught a fatal signal, backtrace:\n");
    expect("aborts", "not ok 1 - sample: assertion_fails_and_aborts", 1, "killed by signal 6");
}

TEST(harness, strings_are_printed)
{
    expect("string_differs", "not ok 1 - sample: string_differs", 1,
           "left is \"left text\", right is \"right text\"");
}

TEST(harness, a_skip_gives_its_reason)
{
    expect("skips", "ok 1 - sample: skips # SKIP needs a unicorn", 0, "");
}

TEST(harness, a_hanging_test_is_killed_after_a_backtrace)
{
    expect("hangs", "not ok 1 - sample: hangs", 1, "# caught a fatal signal, backtrace:\n");
    expect("hangs", "not ok 1 - sample: hangs", 1, "hangs: no end after ");
}

TEST(harness, an_exit_status_is_a_failure)
{
    expect("exits", "not ok 1 - sample: exits_with_a_status", 1, "exit status 3");
}

TEST(harness, a_crash_is_a_failure)
{
    expect("crashes", "not ok 1 - sample: crashes", 1, "sample: crashes: ");
}

TEST(harness, any_thread_can_fail_a_test)
{
    expect("another_thread", "not ok 1 - sample: another_thread_fails_it", 1,
           "opaque is false");
}

TEST(harness, an_expected_death_passes_only_with_its_signal_and_text)
{
    expect("dies_as", "ok 1 - sample: dies_as_expected", 0, "");
    expect("dies_with", "not ok 1 - sample: dies_with_other_words", 1,
           "expected \"first words\" on standard error, got \"last words");
    expect("lives_on", "not ok 1 - sample: lives_on", 1, "expected death by signal 6");
}

TEST(harness, nothing_a_test_started_outlives_it)
{
    expect("leaves", "ok 1 - sample: leaves_a_process_behind", 0, "");
}

TEST(harness, filters_choose_and_list_lists)
{
    Output output;

    run_sample(&output, "--list lives dies_as");
    EXPECT_STREQ(output.text, "sample: dies_as_expected\nsample: lives_on\n");
    run_sample(&output, "passes dies_as_expected 2>/dev/null");
    EXPECT_STREQ(output.text, "TAP version 13\n1..2\nok 1 - sample: passes\n"
                              "ok 2 - sample: dies_as_expected\n");
    run_sample(&output, "no_such_test 2>/dev/null");
    EXPECT_STREQ(output.text, "TAP version 13\n1..0\n");
    EXPECT_EQ(WEXITSTATUS(output.status), 1);
    run_sample(&output, "--no-such-option 2>/dev/null");
    EXPECT_EQ(WEXITSTATUS(output.status), 2);
}

TEST(harness, no_fork_runs_in_the_same_process)
{
    Output output;

    run_sample(&output, "--no-fork passes goes_on 2>/dev/null");
    EXPECT_STREQ(output.text, "TAP version 13\n1..2\nok 1 - sample: passes\n"
                              "not ok 2 - sample: expectation_fails_and_goes_on\n");
    EXPECT_EQ(WEXITSTATUS(output.status), 1);
    run_sample(&output, "--no-fork skips 2>/dev/null");
    EXPECT_STREQ(output.text,
                 "TAP version 13\n1..1\nok 1 - sample: skips # SKIP needs a unicorn\n");
}

TEST_MAIN()
