/*
 * Single instructions: ports, the time stamp counter, barriers, device memory
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: any processor, CPL0 and CPL3 alike (boot.c opens the ports).
 * Lifetime:  none.
 *
 * Device memory is reached by plain moves only, because whoever emulates the
 * access has to decode the instruction.
 */
#ifndef GUEST_TESTS_LIB_CPU_H
#define GUEST_TESTS_LIB_CPU_H

#include <stddef.h>
#include <stdint.h>

static inline void cpu_outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void cpu_outl(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void cpu_outw(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t cpu_inb(uint16_t port)
{
    uint8_t value;

    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint16_t cpu_inw(uint16_t port)
{
    uint16_t value;

    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint32_t cpu_inl(uint16_t port)
{
    uint32_t value;

    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint64_t cpu_rdtsc(void)
{
    uint32_t low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static inline void cpu_pause(void)
{
    __asm__ volatile("pause" : : : "memory");
}

/* Full barrier: earlier stores are visible before later loads are done. */
static inline void cpu_mb(void)
{
    __asm__ volatile("lock; addl $0, -4(%%rsp)" : : : "memory", "cc");
}

/* x86 keeps loads and stores each in order; the compiler must as well. */
static inline void cpu_barrier(void)
{
    __asm__ volatile("" : : : "memory");
}

static inline uint8_t mmio_read8(const volatile void *p)
{
    uint8_t value;

    __asm__ volatile("movb (%1), %0" : "=q"(value) : "r"(p) : "memory");
    return value;
}

static inline uint16_t mmio_read16(const volatile void *p)
{
    uint16_t value;

    __asm__ volatile("movw (%1), %0" : "=r"(value) : "r"(p) : "memory");
    return value;
}

static inline uint32_t mmio_read32(const volatile void *p)
{
    uint32_t value;

    __asm__ volatile("movl (%1), %0" : "=r"(value) : "r"(p) : "memory");
    return value;
}

static inline void mmio_write8(volatile void *p, uint8_t value)
{
    __asm__ volatile("movb %1, (%0)" : : "r"(p), "q"(value) : "memory");
}

static inline void mmio_write16(volatile void *p, uint16_t value)
{
    __asm__ volatile("movw %1, (%0)" : : "r"(p), "r"(value) : "memory");
}

static inline void mmio_write32(volatile void *p, uint32_t value)
{
    __asm__ volatile("movl %1, (%0)" : : "r"(p), "r"(value) : "memory");
}

#endif
