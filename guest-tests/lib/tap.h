/*
 * Tap - test cases that report in the Test Anything Protocol
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: the first processor.
 * Lifetime:  a case is a function; what it leaves behind is its own business.
 */
#ifndef GUEST_TESTS_LIB_TAP_H
#define GUEST_TESTS_LIB_TAP_H

#include <stddef.h>

typedef struct {
    const char *name; /* a sentence in words joined by '_' */
    void (*run)(void);
} TapCase;

#define TAP_CASE(fn) { #fn, fn }

/* tap_plan - say how many cases are to come */
void tap_plan(size_t nb_cases);

/* tap_run - run cases and report each; only= selects by a part of the name */
void tap_run(const TapCase *cases, size_t nb_cases);

/* For use in a case; the first failure or skip is what is reported. */
void tap_fail(const char *file, int line, const char *what);
void tap_skip(const char *why);

/* Leave the case unless the condition holds. */
#define CHECK(cond)                                 \
    do {                                            \
        if (!(cond)) {                              \
            tap_fail(__FILE__, __LINE__, #cond);    \
            return;                                 \
        }                                           \
    } while (0)

#define SKIP_IF(cond, why) \
    do {                   \
        if (cond) {        \
            tap_skip(why); \
            return;        \
        }                  \
    } while (0)

/* tap_note - a line of diagnostics */
void tap_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
