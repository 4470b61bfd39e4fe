/*
 * co-stack.c - mapping stacks with a guard below
 *
 *     lowest                                          highest
 *     | guard, no access | usable, grows from right to left |
 *
 * Each stack takes two mappings of the process (vm.max_map_count limits them) and, in memory, only
 * the pages that were touched. The guard is larger than a page because a function whose frame is
 * larger than the guard could step over it without touching it.
 */
#include "io/co/co-stack.h"

#include "io/co/coroutine.h"

#include <string.h>
#include <sys/mman.h>

#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#define HAVE_VALGRIND 1
#else
#define HAVE_VALGRIND 0
#endif

#define GUARD_BYTES 16384 /* a multiple of any page size up to 16 KiB; rounded up beyond */

/* The first thing that co_switch() finds on a new stack; in co-switch-*.S. */
void co_switch_first(void);

static size_t guard_bytes(void)
{
    return ALIGN_UP((size_t)GUARD_BYTES, (size_t)sysconf(_SC_PAGESIZE));
}

int co_stack_map(CoStack *ret_stack)
{
    size_t map_bytes = guard_bytes() + CO_STACK_BYTES;
    char *map = mmap(NULL, map_bytes, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);

    if (map == MAP_FAILED) {
        return -errno;
    }

    char *base = map + guard_bytes();

    if (mprotect(base, CO_STACK_BYTES, PROT_READ | PROT_WRITE) < 0) {
        int ret = -errno;

        munmap(map, map_bytes);
        return ret;
    }
    *ret_stack = (CoStack){ .base = base, .size_bytes = CO_STACK_BYTES };
#if HAVE_VALGRIND
    ret_stack->valgrind_id = VALGRIND_STACK_REGISTER(base, base + CO_STACK_BYTES);
#endif
    return 0;
}

void co_stack_unmap(const CoStack *stack)
{
#if HAVE_VALGRIND
    VALGRIND_STACK_DEREGISTER(stack->valgrind_id);
#endif
    int ret = munmap((char *)stack->base - guard_bytes(), guard_bytes() + stack->size_bytes);

    assert(ret == 0);
}

/* The lowest page of the stack that is in memory; a page that was never touched is not. */
static char *lowest_touched(const CoStack *stack)
{
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char in_memory[CO_STACK_BYTES / 4096];

    if (mincore(stack->base, stack->size_bytes, in_memory) < 0) {
        return stack->base;
    }
    size_t i = 0;

    while (i < stack->size_bytes / page_bytes && !(in_memory[i] & 1)) {
        i++;
    }
    return (char *)stack->base + i * page_bytes;
}

/* AddressSanitizer has marked parts of the dead frames. */
__attribute__((no_sanitize("address", "thread"))) size_t co_stack_used(const CoStack *stack)
{
    const char *end = (const char *)stack->base + stack->size_bytes;
    const char *lowest = lowest_touched(stack);

#if HAVE_VALGRIND
    if (RUNNING_ON_VALGRIND) {
        return (size_t)(end - lowest);
    }
#endif
    while (lowest < end && *(const volatile uint64_t *)lowest == 0) {
        lowest += sizeof(uint64_t);
    }
    return (size_t)(end - lowest);
}

#if defined(__x86_64__)

typedef struct SavedStack {
    uint32_t mxcsr;
    uint16_t x87_control;
    uint16_t unused;
    uint64_t r15, r14, r13, r12, rbx, rbp;
    void (*go_on)(void);
    uint64_t above; /* rsp when co_switch_first() begins: 16-byte aligned */
} SavedStack;

static_assert(offsetof(SavedStack, r15) == 8, "known to co-switch-x86_64.S");
static_assert(offsetof(SavedStack, go_on) == 56, "known to co-switch-x86_64.S");

void *co_stack_prepare(void *top, void *co)
{
    /* All exceptions masked, round to nearest, 64-bit x87 precision: what the ABI starts with. */
    SavedStack saved = { .mxcsr = 0x1f80,
                         .x87_control = 0x37f,
                         .rbx = (uintptr_t)co,
                         .go_on = co_switch_first };
    char *sp = (char *)top - 16 - offsetof(SavedStack, above);

    assert((uintptr_t)top % 16 == 0);
    memcpy(sp, &saved, sizeof(saved));
    return sp;
}

#elif defined(__aarch64__)

typedef struct SavedStack {
    uint64_t fpcr;
    uint64_t unused;
    uint64_t x19_to_x28[10];
    uint64_t x29;
    void (*go_on)(void);
    uint64_t d8_to_d15[8];
} SavedStack;

static_assert(offsetof(SavedStack, x19_to_x28) == 16, "known to co-switch-aarch64.S");
static_assert(offsetof(SavedStack, go_on) == 104, "known to co-switch-aarch64.S");
static_assert(sizeof(SavedStack) == 176, "known to co-switch-aarch64.S");

void *co_stack_prepare(void *top, void *co)
{
    SavedStack saved = { .x19_to_x28 = { (uintptr_t)co }, .go_on = co_switch_first };
    char *sp = (char *)top - sizeof(saved);

    assert((uintptr_t)top % 16 == 0);
    memcpy(sp, &saved, sizeof(saved));
    return sp;
}

#else
#error "no coroutine switch for this architecture"
#endif
