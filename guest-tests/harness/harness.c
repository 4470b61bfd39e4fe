/*
 * harness.c - registered tests, their names, their results
 *
 * Lists keep the order of registration, which is that of the source within a file.
 */
#include "guest-tests/harness/harness-backend.h"

static TestCase *first_test, *last_test;
static TestOutcome *outcome;

void test_register(TestCase *test)
{
    if (last_test) {
        last_test->next = test;
    } else {
        first_test = test;
    }
    last_test = test;
}

void test_register_variant(TestFixture *fixture, TestVariant *variant)
{
    if (fixture->last_variant) {
        fixture->last_variant->next = variant;
    } else {
        fixture->first_variant = variant;
    }
    fixture->last_variant = variant;
}

void test_use_outcome(TestOutcome *new_outcome)
{
    outcome = new_outcome;
}

/* --- what a test says --- */

static void fail(const char *file, int line, const char *fmt, va_list args)
{
    backend_print_failure(file, line, fmt, args);
    __atomic_store_n(&outcome->failed, true, __ATOMIC_SEQ_CST);
}

void test_fail(const char *file, int line, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fail(file, line, fmt, args);
    va_end(args);
}

void test_fail_abort(const char *file, int line, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fail(file, line, fmt, args);
    va_end(args);
    backend_leave();
}

void test_skip(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    backend_format(outcome->skip_reason, sizeof(outcome->skip_reason), fmt, args);
    va_end(args);
    __atomic_store_n(&outcome->skipped, true, __ATOMIC_SEQ_CST);
    backend_leave();
}

bool test_has_failed(void)
{
    return __atomic_load_n(&outcome->failed, __ATOMIC_SEQ_CST);
}

bool test_strings_equal(const char *a, const char *b)
{
    while (a && b && *a && *a == *b) {
        a++;
        b++;
    }
    return a && b && *a == *b;
}

/* --- names --- */

static size_t append(char *to, size_t at, const char *text)
{
    while (*text && at < TEST_NAME_BYTES - 1) {
        to[at++] = *text++;
    }
    to[at] = '\0';
    return at;
}

static void set_run(TestRun *run, const TestCase *test, const TestVariant *variant)
{
    size_t at = append(run->name, 0, test->group);

    run->test = test;
    run->variant = variant ? variant->data : NULL;
    if (variant) {
        at = append(run->name, at, ".");
        at = append(run->name, at, variant->name);
    }
    at = append(run->name, at, ": ");
    append(run->name, at, test->sentence);
}

/* The wanted run after *run; the very first for a run without a test. False at the end. */
static bool next_wanted(TestRun *run, const TestCase **test, const TestVariant **variant)
{
    do {
        if (*variant && (*variant)->next) {
            *variant = (*variant)->next;
        } else {
            *test = *test ? (*test)->next : first_test;
            *variant = *test && (*test)->fixture ? (*test)->fixture->first_variant : NULL;
        }
        if (!*test) {
            return false;
        }
        set_run(run, *test, *variant);
    } while (!backend_wants(run->name));
    return true;
}

/* --- the program --- */

unsigned test_plan(bool list)
{
    const TestCase *test = NULL;
    const TestVariant *variant = NULL;
    unsigned nb_wanted = 0;
    TestRun run;

    while (next_wanted(&run, &test, &variant)) {
        nb_wanted++;
        if (list) {
            backend_print("%s\n", run.name);
        }
    }
    if (!list) {
        backend_print("TAP version 13\n1..%u\n", nb_wanted);
    }
    return nb_wanted;
}

static bool run_one(const TestRun *run, unsigned number)
{
    __atomic_store_n(&outcome->failed, false, __ATOMIC_SEQ_CST);
    __atomic_store_n(&outcome->skipped, false, __ATOMIC_SEQ_CST);

    bool passed = backend_run(run) && !test_has_failed();
    bool skipped = passed && __atomic_load_n(&outcome->skipped, __ATOMIC_SEQ_CST);

    backend_print("%s %u - %s%s%s\n", passed ? "ok" : "not ok", number, run->name,
                  skipped ? " # SKIP " : "", skipped ? outcome->skip_reason : "");
    return passed;
}

unsigned test_run_wanted(void)
{
    const TestCase *test = NULL;
    const TestVariant *variant = NULL;
    unsigned number = 0, nb_failed = 0;
    TestRun run;

    while (next_wanted(&run, &test, &variant)) {
        nb_failed += !run_one(&run, ++number);
    }
    return nb_failed;
}
