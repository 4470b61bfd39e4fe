/*
 * harness-backend.h - between harness.c and what runs a test: a process, or a bare machine
 *
 * Layer:     guest-tests/harness (freestanding; for the two back ends alone)
 * Threading: as harness.h.
 * Lifetime:  as harness.h.
 */
#ifndef GUEST_TESTS_HARNESS_HARNESS_BACKEND_H
#define GUEST_TESTS_HARNESS_HARNESS_BACKEND_H

#include <stdarg.h>

#include "guest-tests/harness/harness.h"

#define TEST_NAME_BYTES   256
#define TEST_REASON_BYTES 256

/* A test together with one variant of its fixture. */
typedef struct TestRun {
    const TestCase *test;
    const void *variant;
    char name[TEST_NAME_BYTES]; /* "group: sentence" or "fixture.variant: sentence" */
} TestRun;

/* What a test says of itself. On a host this memory is shared with the test's process. */
typedef struct TestOutcome {
    bool failed; /* atomic: any thread sets it */
    bool skipped;
    char skip_reason[TEST_REASON_BYTES];
} TestOutcome;

/* --- for a back end's main --- */

/* test_use_outcome - where outcomes are kept; before anything else */
void test_use_outcome(TestOutcome *outcome);
/* test_plan - count the tests that are wanted, print the plan; or with @list only their names */
unsigned test_plan(bool list);
/* test_run_wanted - run and report each; returns how many failed */
unsigned test_run_wanted(void);

/* --- what a back end implements --- */

bool backend_wants(const char *name);
/* A piece of TAP. */
void backend_print(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* A line of diagnostics from @file, @line. */
void backend_print_failure(const char *file, int line, const char *fmt, va_list args)
    __attribute__((format(printf, 3, 0)));
void backend_format(char *buffer, size_t size_bytes, const char *fmt, va_list args)
    __attribute__((format(printf, 3, 0)));
/* backend_leave - end the running test; the outcome says why */
void backend_leave(void) __attribute__((noreturn));
/*
 * backend_run - run a test and then its finish(), neither for longer than the test's time
 * Returns whether it came to its end; an outcome that says "failed" counts beside it.
 */
bool backend_run(const TestRun *run);

#endif
