/*
 * Tap - test cases that report in the Test Anything Protocol
 */
#include "guest-tests/lib/tap.h"

#include "guest-tests/lib/args.h"
#include "guest-tests/lib/console.h"
#include "guest-tests/lib/str.h"

#include <stdbool.h>

static unsigned tap_number;
static const char *fail_file;
static const char *fail_what;
static const char *skip_why;
static int fail_line;

void tap_plan(size_t nb_cases)
{
    con_printf("TAP version 13\n1..%zu\n", nb_cases);
}

static bool contains(const char *s, const char *part, size_t part_len)
{
    size_t len = strlen(s);

    for (size_t i = 0; i + part_len <= len; i++) {
        if (memcmp(s + i, part, part_len) == 0) {
            return true;
        }
    }
    return false;
}

static bool is_selected(const char *name)
{
    const char *part;
    size_t len;

    return !arg_get_str("only", &part, &len) || contains(name, part, len);
}

void tap_run(const TapCase *cases, size_t nb_cases)
{
    for (size_t i = 0; i < nb_cases; i++) {
        fail_what = NULL;
        skip_why = NULL;
        if (is_selected(cases[i].name)) {
            cases[i].run();
        } else {
            skip_why = "not selected by only=";
        }
        tap_number++;
        if (fail_what) {
            con_printf("not ok %u - %s\n# %s:%d: %s\n", tap_number,
                       cases[i].name, fail_file, fail_line, fail_what);
        } else if (skip_why) {
            con_printf("ok %u - %s # SKIP %s\n", tap_number, cases[i].name,
                       skip_why);
        } else {
            con_printf("ok %u - %s\n", tap_number, cases[i].name);
        }
    }
}

void tap_fail(const char *file, int line, const char *what)
{
    if (!fail_what) {
        fail_file = file;
        fail_line = line;
        fail_what = what;
    }
}

void tap_skip(const char *why)
{
    skip_why = why;
}

void tap_note(const char *fmt, ...)
{
    va_list ap;

    con_printf("# ");
    va_start(ap, fmt);
    con_vprintf(fmt, ap);
    va_end(ap);
    con_printf("\n");
}
