/*
 * test-harness - does the harness tell failures, skips, hangs and crashes from passes?
 *
 * Runs harness-sample, whose path is in the environment, and reads what it prints.
 */
#include "io/base/test.h"

#include <sys/wait.h>

typedef struct Output {
    char text[4096];   /* standard output */
    char errors[8192]; /* standard error */
    int status;
} Output;

static void read_file(FILE *file, char *text, size_t size_bytes)
{
    size_t len = fread(text, 1, size_bytes - 1, file);

    text[len] = '\0';
}

/* Run the sample with @arguments, a piece of shell command line. */
static void run_sample(Output *output, const char *arguments)
{
    const char *program = getenv("HARNESS_SAMPLE");
    FILE *errors = tmpfile();
    char command[1024];

    if (!program) {
        TEST_SKIP("HARNESS_SAMPLE does not name the program to run");
    }
    ASSERT_NE(errors, NULL);
    snprintf(command, sizeof(command), "exec '%s' %s 2>&%d", program, arguments, fileno(errors));

    FILE *pipe = popen(command, "re");

    ASSERT_NE(pipe, NULL);
    read_file(pipe, output->text, sizeof(output->text));
    output->status = pclose(pipe);
    rewind(errors);
    read_file(errors, output->errors, sizeof(output->errors));
    fclose(errors);
}

static void expect_said(const Output *output, const char *said)
{
    if (!strstr(output->errors, said)) {
        test_fail(__FILE__, __LINE__, "\"%s\" is not in \"%s\"", said, output->errors);
    }
}

/* The sample's one test of that name gives @line; what it wrote on standard error has @said. */
static void expect(const char *name, const char *line, int status, const char *said)
{
    Output output;
    char expected[256];

    run_sample(&output, name);
    snprintf(expected, sizeof(expected), "TAP version 13\n1..1\n%s\n", line);
    EXPECT_STREQ(output.text, expected);
    EXPECT_EQ(WEXITSTATUS(output.status), status);
    expect_said(&output, said);
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
    Output output;

    setenv("TEST_TIMEOUT_S", "1", true);
    run_sample(&output, "hangs");
    EXPECT_STREQ(output.text, "TAP version 13\n1..1\nnot ok 1 - sample: hangs\n");
    expect_said(&output, "# caught a fatal signal, backtrace:\n");
    expect_said(&output, "sample: hangs: no end after 1 s");
}

TEST(harness, a_test_may_have_more_time_than_others)
{
    setenv("TEST_TIMEOUT_S", "1", true);
    expect("takes_its", "ok 1 - sample: takes_its_time", 0, "");
}

TEST(harness, a_fixture_is_set_up_and_torn_down_for_each_variant)
{
    expect("glass.half", "ok 1 - glass.half_full: holds_water", 0, "emptied 2\n");
    expect("has_no_variant", "ok 1 - plain: has_no_variant", 0, "");
}

TEST(harness, a_test_whose_set_up_fails_has_no_body)
{
    expect("glass.cracked", "not ok 1 - glass.cracked: holds_water", 1,
           "left is -1 (0xffffffffffffffff), right is 0 (0x0)\nemptied -1\n");
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
    run_sample(&output, "passes dies_as_expected");
    EXPECT_STREQ(output.text, "TAP version 13\n1..2\nok 1 - sample: passes\n"
                              "ok 2 - sample: dies_as_expected\n");
    run_sample(&output, "no_such_test");
    EXPECT_STREQ(output.text, "TAP version 13\n1..0\n");
    EXPECT_EQ(WEXITSTATUS(output.status), 1);
    run_sample(&output, "--no-such-option");
    EXPECT_EQ(WEXITSTATUS(output.status), 2);
}

TEST(harness, no_fork_runs_in_the_same_process)
{
    Output output;

    run_sample(&output, "--no-fork passes goes_on");
    EXPECT_STREQ(output.text, "TAP version 13\n1..2\nok 1 - sample: passes\n"
                              "not ok 2 - sample: expectation_fails_and_goes_on\n");
    EXPECT_EQ(WEXITSTATUS(output.status), 1);
    run_sample(&output, "--no-fork skips");
    EXPECT_STREQ(output.text,
                 "TAP version 13\n1..1\nok 1 - sample: skips # SKIP needs a unicorn\n");
}

TEST_MAIN()
