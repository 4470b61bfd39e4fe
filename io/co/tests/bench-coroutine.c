/*
 * bench-coroutine - what creating, entering and switching cost, beside swapcontext()
 *
 * Prints the median of several rounds of each, interleaved, in nanoseconds. Tells the compiler's
 * numbers from the machine's noise by showing the fastest round as well.
 */
#include "io/base/compiler.h"
#include "io/co/coroutine.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>
#include <ucontext.h>

#define ROUNDS          15
#define ITERATIONS      200000
#define MANY            64 /* coroutines in flight: a deep queue */
#define SWAP_STACK_BYTES 65536

static int64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

/* --- one coroutine that yields again and again --- */

static bool stop;

static co_fn void yield_entry(void *opaque)
{
    while (!stop) {
        co_yield();
    }
}

static double yield_pair_ns(void)
{
    Coroutine *co = co_create(yield_entry, NULL);

    stop = false;
    co_enter(co);

    int64_t begin = now_ns();

    for (int i = 0; i < ITERATIONS; i++) {
        co_enter(co);
    }

    int64_t end = now_ns();

    stop = true;
    co_enter(co);
    return (double)(end - begin) / ITERATIONS;
}

/* --- many coroutines in turn --- */

static double yield_pair_many_ns(void)
{
    Coroutine *co[MANY];

    stop = false;
    for (int i = 0; i < MANY; i++) {
        co[i] = co_create(yield_entry, NULL);
        co_enter(co[i]);
    }

    int64_t begin = now_ns();

    for (int i = 0; i < ITERATIONS / MANY; i++) {
        for (int j = 0; j < MANY; j++) {
            co_enter(co[j]);
        }
    }

    int64_t end = now_ns();

    stop = true;
    for (int i = 0; i < MANY; i++) {
        co_enter(co[i]);
    }
    return (double)(end - begin) / (ITERATIONS / MANY * MANY);
}

/* --- the life of a request's coroutine: create, enter, end --- */

static void empty_entry(void *opaque)
{
    *(int *)opaque += 1;
}

static double create_ns(void)
{
    int count = 0;
    int64_t begin = now_ns();

    for (int i = 0; i < ITERATIONS; i++) {
        co_enter(co_create(empty_entry, &count));
    }

    int64_t end = now_ns();

    assert(count == ITERATIONS);
    return (double)(end - begin) / ITERATIONS;
}

/* --- the same without a pool: each one maps and unmaps its stack --- */

static double create_unpooled_ns(void)
{
    int count = 0;
    int nb = ITERATIONS / 100;

    co_pool_set_limit(0);

    int64_t begin = now_ns();

    for (int i = 0; i < nb; i++) {
        co_enter(co_create(empty_entry, &count));
    }

    int64_t end = now_ns();

    co_pool_set_limit(1024);
    return (double)(end - begin) / nb;
}

/* --- swapcontext --- */

static ucontext_t swap_outside, swap_inside;

static void swap_entry(void)
{
    for (;;) {
        swapcontext(&swap_inside, &swap_outside);
    }
}

static double swapcontext_pair_ns(void)
{
    static char stack[SWAP_STACK_BYTES];

    getcontext(&swap_inside);
    swap_inside.uc_stack.ss_sp = stack;
    swap_inside.uc_stack.ss_size = sizeof(stack);
    makecontext(&swap_inside, swap_entry, 0);

    int nb = ITERATIONS / 10;
    int64_t begin = now_ns();

    for (int i = 0; i < nb; i++) {
        swapcontext(&swap_outside, &swap_inside);
    }
    return (double)(now_ns() - begin) / nb;
}

/* --- a plain call that is not inlined, for scale --- */

static NOINLINE void call(int *count)
{
    __asm__ __volatile__("" ::: "memory");
    *count += 1;
}

static double call_ns(void)
{
    int count = 0;
    int64_t begin = now_ns();

    for (int i = 0; i < ITERATIONS; i++) {
        call(&count);
    }
    return (double)(now_ns() - begin) / ITERATIONS;
}

typedef struct Bench {
    const char *name;
    double (*run)(void);
    double ns[ROUNDS];
} Bench;

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

int main(void)
{
    static Bench benches[] = {
        { "function call", call_ns },
        { "enter and yield", yield_pair_ns },
        { "enter and yield, 64 in turn", yield_pair_many_ns },
        { "create, enter, end", create_ns },
        { "create, enter, end, no pool", create_unpooled_ns },
        { "swapcontext there and back", swapcontext_pair_ns },
    };

    for (int round = 0; round < ROUNDS; round++) {
        for (size_t i = 0; i < ARRAY_SIZE(benches); i++) {
            benches[i].ns[round] = benches[i].run();
        }
    }
    printf("%-30s %10s %10s\n", "nanoseconds", "median", "fastest");
    for (size_t i = 0; i < ARRAY_SIZE(benches); i++) {
        qsort(benches[i].ns, ROUNDS, sizeof(double), compare);
        printf("%-30s %10.1f %10.1f\n", benches[i].name, benches[i].ns[ROUNDS / 2],
               benches[i].ns[0]);
    }
    co_pool_drain();
    return 0;
}
