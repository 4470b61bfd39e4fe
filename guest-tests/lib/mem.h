/*
 * Mem - memory for rings and buffers, handed out once
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: the first processor.
 * Lifetime:  nothing is ever given back; mem_mark() and mem_release() drop
 *            everything handed out in between.
 */
#ifndef GUEST_TESTS_LIB_MEM_H
#define GUEST_TESTS_LIB_MEM_H

#include <stddef.h>
#include <stdint.h>

/* mem_init - take the RAM from @start_gpa to the end of its region */
void mem_init(uint64_t start_gpa);

/* mem_alloc - zeroed memory, touched; ends the payload if there is none */
void *mem_alloc(size_t size_bytes, size_t align_bytes);

uint64_t mem_mark(void);
void mem_release(uint64_t mark);

/* mem_gpa - the physical address of something in memory */
static inline uint64_t mem_gpa(const volatile void *p)
{
    return (uintptr_t)p;
}

/*
 * mem_map_device - where to reach the registers at @gpa, up to 2 MiB of them
 *
 * Below 4 GiB that is @gpa itself.  A mapping is never undone.
 */
volatile void *mem_map_device(uint64_t gpa);

/* mem_hole_gpa - a page-aligned address with neither RAM nor a device */
uint64_t mem_hole_gpa(void);

/* mem_high_gpa - RAM above 4 GiB, which is not mapped; 0 if there is none */
uint64_t mem_high_gpa(void);

/* mem_ram_end_gpa - the end of the region that memory is taken from */
uint64_t mem_ram_end_gpa(void);

#endif
