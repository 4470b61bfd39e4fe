/*
 * endian.h - integers of a wire or ring format, which cannot be used without converting them
 *
 * Layer:     io/base
 * Threading: pure; the _load/_store forms are single accesses for memory shared with a guest.
 */
#ifndef IO_BASE_ENDIAN_H
#define IO_BASE_ENDIAN_H

#include <endian.h>
#include <string.h>

#include "io/base/compiler.h"

typedef struct le16 {
    uint16_t raw;
} le16;
typedef struct le32 {
    uint32_t raw;
} le32;
typedef struct le64 {
    uint64_t raw;
} le64;
typedef struct be16 {
    uint16_t raw;
} be16;
typedef struct be32 {
    uint32_t raw;
} be32;
typedef struct be64 {
    uint64_t raw;
} be64;

#define ENDIAN_DEFINE(order, bits, from, to)                                                       \
    static inline uint##bits##_t order##bits##_get(order##bits value)                              \
    {                                                                                              \
        return from(value.raw);                                                                    \
    }                                                                                              \
    static inline order##bits order##bits##_make(uint##bits##_t value)                             \
    {                                                                                              \
        return (order##bits){ to(value) };                                                         \
    }                                                                                              \
    /* one relaxed load of shared memory: the value cannot be read twice by the compiler */        \
    static inline uint##bits##_t order##bits##_load(const order##bits *p)                          \
    {                                                                                              \
        return from(__atomic_load_n(&p->raw, __ATOMIC_RELAXED));                                   \
    }                                                                                              \
    static inline void order##bits##_store(order##bits *p, uint##bits##_t value)                   \
    {                                                                                              \
        __atomic_store_n(&p->raw, to(value), __ATOMIC_RELAXED);                                    \
    }

ENDIAN_DEFINE(le, 16, le16toh, htole16)
ENDIAN_DEFINE(le, 32, le32toh, htole32)
ENDIAN_DEFINE(le, 64, le64toh, htole64)
ENDIAN_DEFINE(be, 16, be16toh, htobe16)
ENDIAN_DEFINE(be, 32, be32toh, htobe32)
ENDIAN_DEFINE(be, 64, be64toh, htobe64)

#undef ENDIAN_DEFINE

#endif
