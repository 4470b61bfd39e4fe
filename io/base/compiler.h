/*
 * compiler.h - attributes, cleanup helpers and small macros that every file may use
 *
 * Layer:     io/base (bottom; no dependency)
 * Threading: pure.
 */
#ifndef IO_BASE_COMPILER_H
#define IO_BASE_COMPILER_H

#ifdef NDEBUG
#error "penstock keeps its assertions: do not build with NDEBUG"
#endif

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define NONNULL(...)     __attribute__((nonnull(__VA_ARGS__)))
#define WARN_UNUSED      __attribute__((warn_unused_result))
#define PRINTF(a, b)     __attribute__((format(printf, a, b)))
#define NORETURN         __attribute__((noreturn))
#define NOINLINE         __attribute__((noinline))
#define ALWAYS_INLINE    inline __attribute__((always_inline))
#define PACKED           __attribute__((packed))
#define UNUSED           __attribute__((unused))
#define CACHE_LINE_BYTES 64
#define CACHE_ALIGNED    __attribute__((aligned(CACHE_LINE_BYTES)))

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* The counter gives nested uses names of their own. */
#define MIN(a, b) MIN_MAX_(a, <, b, __COUNTER__)
#define MAX(a, b) MIN_MAX_(a, >, b, __COUNTER__)
#define MIN_MAX_(a, op, b, n) MIN_MAX_NAMED_(a, op, b, n)
#define MIN_MAX_NAMED_(a, op, b, n)                                                                \
    ({                                                                                             \
        __typeof__(a) a_##n##_ = (a);                                                              \
        __typeof__(b) b_##n##_ = (b);                                                              \
        a_##n##_ op b_##n##_ ? a_##n##_ : b_##n##_;                                                \
    })

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define IS_POWER_OF_2(x)   ((x) != 0 && ((x) & ((x)-1)) == 0)
#define ALIGN_DOWN(x, pow2) ((x) & ~((__typeof__(x))(pow2)-1))
#define ALIGN_UP(x, pow2)   ALIGN_DOWN((x) + ((__typeof__(x))(pow2)-1), pow2)

/* Overflow-checked size arithmetic: true when the result fits and has been stored. */
#define checked_add(a, b, ret) (!__builtin_add_overflow((a), (b), (ret)))
#define checked_mul(a, b, ret) (!__builtin_mul_overflow((a), (b), (ret)))

/* --- scope-bound cleanup; handlers keep errno --- */

static inline void auto_free_cb(void *p)
{
    int saved = errno;

    free(*(void **)p);
    errno = saved;
}

static inline void auto_fd_cb(int *fd)
{
    if (*fd >= 0) {
        int saved = errno;

        close(*fd);
        errno = saved;
    }
}

#define AUTO_FREE __attribute__((cleanup(auto_free_cb)))
#define AUTO_FD   __attribute__((cleanup(auto_fd_cb)))

/* Hand a pointer or descriptor over: returns it and disarms the local's cleanup. */
#define take_ptr(pp)                                                                               \
    ({                                                                                             \
        __typeof__(*(pp)) taken_ = *(pp);                                                          \
        *(pp) = NULL;                                                                              \
        taken_;                                                                                    \
    })

static inline int take_fd(int *fd)
{
    int taken = *fd;

    *fd = -1;
    return taken;
}

/* A hint to the core that this is a busy-wait loop. */
static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield" ::: "memory");
#endif
}

/* Sanitizers: gcc defines a macro, clang has a feature test. */
#if defined(__SANITIZE_ADDRESS__)
#define HAVE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAVE_ASAN 1
#endif
#endif
#ifndef HAVE_ASAN
#define HAVE_ASAN 0
#endif

#if defined(__SANITIZE_THREAD__)
#define HAVE_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define HAVE_TSAN 1
#endif
#endif
#ifndef HAVE_TSAN
#define HAVE_TSAN 0
#endif

#endif
