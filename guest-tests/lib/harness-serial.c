/*
 * harness-serial.c - the harness's back end in a payload
 *
 * leave_test() is the one way out of a test that has not returned.  The timer's
 * handler, at CPL0, sends a test whose time is up there by changing where its
 * interrupt goes back to.  The payload is built without a red zone, so below
 * the stack pointer there is nothing to save.
 */
#include "guest-tests/lib/harness-serial.h"

#include "guest-tests/harness/harness-backend.h"
#include "guest-tests/lib/args.h"
#include "guest-tests/lib/console.h"
#include "guest-tests/lib/cpu.h"
#include "guest-tests/lib/format.h"
#include "guest-tests/lib/irq.h"
#include "guest-tests/lib/str.h"
#include "guest-tests/lib/tsc.h"

#define TIMEOUT_S_DEFAULT 30
#define WATCH_PERIOD_MS   100

static TestOutcome outcome;
static const TestRun *running;
static void *way_out[5]; /* of __builtin_setjmp */
static volatile bool inside;
static volatile uint64_t end_tsc;

/* --- output --- */

void backend_print(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    con_vprintf(fmt, args);
    va_end(args);
}

void backend_print_failure(const char *file, int line, const char *fmt,
                           va_list args)
{
    con_printf("# %s:%d: ", file, line);
    con_vprintf(fmt, args);
    con_printf("\n");
}

void backend_format(char *buffer, size_t size_bytes, const char *fmt,
                    va_list args)
{
    format_string(buffer, size_bytes, fmt, args);
}

void harness_note(const char *fmt, ...)
{
    va_list args;

    con_printf("# ");
    va_start(args, fmt);
    con_vprintf(fmt, args);
    va_end(args);
    con_printf("\n");
}

/* --- one test --- */

static void __attribute__((noreturn)) leave_test(void)
{
    inside = false;
    __builtin_longjmp(way_out, 1);
}

void backend_leave(void)
{
    leave_test();
}

static unsigned timeout_s(const TestCase *test)
{
    return test->timeout_s ? test->timeout_s : TIMEOUT_S_DEFAULT;
}

static void __attribute__((noreturn)) time_is_up(void)
{
    test_fail(__FILE__, __LINE__, "%s: no end after %u s", running->name,
              timeout_s(running->test));
    leave_test();
}

static void watch(void *opaque, IrqFrame *frame)
{
    if (inside && (frame->cs & 3) && (int64_t)(cpu_rdtsc() - end_tsc) > 0) {
        inside = false;
        frame->rip = (uintptr_t)time_is_up;
        frame->rsp = (frame->rsp & ~15ull) - 8; /* as after a call */
    }
}

/* Returns whether @part returned by itself. */
static bool __attribute__((noinline)) run_part(void (*part)(const void *variant))
{
    if (__builtin_setjmp(way_out)) {
        return false;
    }
    end_tsc = cpu_rdtsc() + tsc_from_ms(1000ull * timeout_s(running->test));
    inside = true;
    part(running->variant);
    inside = false;
    return true;
}

/* Anew for each test, because a test may have used the timer itself. */
static void start_watch(void)
{
    if (irq_works()) {
        irq_set_handler(IRQ_VECTOR_TIMER, watch, NULL);
        irq_start_timer(WATCH_PERIOD_MS);
    }
}

bool backend_run(const TestRun *run)
{
    running = run;
    start_watch();
    run_part(run->test->run);
    if (run->test->finish) {
        run_part(run->test->finish);
    }
    return true; /* whoever leaves early has said why in the outcome */
}

/* --- the program --- */

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

bool backend_wants(const char *name)
{
    const char *word;
    size_t left;

    if (!arg_get_str("only", &word, &left)) {
        return true;
    }
    while (left > 0) {
        size_t len = 0;

        while (len < left && word[len] != ',') {
            len++;
        }
        if (len > 0 && contains(name, word, len)) {
            return true;
        }
        len += len < left; /* the comma */
        word += len;
        left -= len;
    }
    return false;
}

void harness_run(void (*prepare)(void))
{
    test_use_outcome(&outcome);
    irq_init();
    test_plan(false);
    prepare();
    test_run_wanted();
}
