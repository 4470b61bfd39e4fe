/*
 * Mem - memory for rings and buffers, handed out once
 */
#include "guest-tests/lib/mem.h"

#include "guest-tests/lib/boot.h"
#include "guest-tests/lib/console.h"
#include "guest-tests/lib/str.h"

/* Beyond the memory of any machine that these payloads are given. */
#define HOLE_DISTANCE_BYTES (64ull << 30)
#define FOUR_GIB            (4ull << 30)

static uint64_t mem_next_gpa;
static uint64_t mem_end_gpa;

void mem_init(uint64_t start_gpa)
{
    mem_next_gpa = start_gpa;
    mem_end_gpa = start_gpa;
    for (unsigned i = 0; i < boot_info.nb_ram; i++) {
        if (boot_info.ram[i].start_gpa <= start_gpa &&
            start_gpa < boot_info.ram[i].end_gpa) {
            mem_end_gpa = boot_info.ram[i].end_gpa;
        }
    }
}

void *mem_alloc(size_t size_bytes, size_t align_bytes)
{
    uint64_t gpa = (mem_next_gpa + align_bytes - 1) & ~(align_bytes - 1);

    if (gpa > mem_end_gpa || size_bytes > mem_end_gpa - gpa) {
        con_printf("Bail out! no memory for %zu bytes (RAM ends at %lx)\n",
                   size_bytes, mem_end_gpa);
        con_reset_machine();
    }
    mem_next_gpa = gpa + size_bytes;
    return memset((void *)(uintptr_t)gpa, 0, size_bytes);
}

uint64_t mem_mark(void)
{
    return mem_next_gpa;
}

void mem_release(uint64_t mark)
{
    mem_next_gpa = mark;
}

uint64_t mem_hole_gpa(void)
{
    uint64_t end_gpa = FOUR_GIB;

    for (unsigned i = 0; i < boot_info.nb_ram; i++) {
        if (boot_info.ram[i].end_gpa > end_gpa) {
            end_gpa = boot_info.ram[i].end_gpa;
        }
    }
    return (end_gpa + HOLE_DISTANCE_BYTES) & ~4095ull;
}

uint64_t mem_ram_end_gpa(void)
{
    return mem_end_gpa;
}
