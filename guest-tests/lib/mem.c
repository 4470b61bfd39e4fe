/*
 * Mem - memory for rings and buffers, handed out once
 */
#include "guest-tests/lib/mem.h"

#include "guest-tests/lib/boot.h"
#include "guest-tests/lib/console.h"
#include "guest-tests/lib/layout.h"
#include "guest-tests/lib/str.h"

/* Beyond the memory of any machine that these payloads are given. */
#define HOLE_DISTANCE_BYTES (64ull << 30)
#define FOUR_GIB            (4ull << 30)
#define DEVICE_PAGE_BYTES   (2ull << 20)

/* From boot.S: a page directory, and CPL3 may write to it. */
extern volatile uint64_t device_directory[DEVICE_WINDOW_PAGES];

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

/* An entry that was empty was never cached, so nothing needs flushing. */
volatile void *mem_map_device(uint64_t gpa)
{
    uint64_t page_gpa = gpa & ~(DEVICE_PAGE_BYTES - 1);
    unsigned i = 0;

    if (gpa < FOUR_GIB) {
        return (volatile void *)(uintptr_t)gpa;
    }
    while (i < DEVICE_WINDOW_PAGES && device_directory[i] &&
           device_directory[i] != (page_gpa | PTE_DEVICE)) {
        i++;
    }
    if (i == DEVICE_WINDOW_PAGES) {
        con_printf("Bail out! too many devices to map\n");
        con_reset_machine();
    }
    device_directory[i] = page_gpa | PTE_DEVICE;
    return (volatile void *)(uintptr_t)(DEVICE_WINDOW + i * DEVICE_PAGE_BYTES +
                                        (gpa - page_gpa));
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

uint64_t mem_high_gpa(void)
{
    for (unsigned i = 0; i < boot_info.nb_ram; i++) {
        if (boot_info.ram[i].start_gpa >= FOUR_GIB) {
            return boot_info.ram[i].start_gpa;
        }
    }
    return 0;
}

uint64_t mem_ram_end_gpa(void)
{
    return mem_end_gpa;
}
