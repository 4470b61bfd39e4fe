/*
 * Boot - the C half of getting from a kernel's entry to CPL3
 *
 * Only what needs privilege happens at CPL0: the task register, the interrupt
 * table, a few CPUID leaves and the page of the paravirtual clock, which tells
 * the frequency of the time stamp counter.  Then iretq, once for each
 * processor, and never back except for a trap or an interrupt (irq.c).
 *
 * CPL3 may use every I/O port because the bitmap in the task state says so.
 * The I/O privilege level would be shorter, but the KVM that runs CPL3 natively
 * without hardware virtualization does not keep it.
 */
#include "guest-tests/lib/boot.h"

#include "guest-tests/lib/args.h"
#include "guest-tests/lib/console.h"
#include "guest-tests/lib/cpu.h"
#include "guest-tests/lib/layout.h"
#include "guest-tests/lib/mem.h"
#include "guest-tests/lib/smp.h"
#include "guest-tests/lib/str.h"

#include <stdbool.h>

#define RFLAGS_FIXED        0x0002
#define RFLAGS_IF           0x0200
#define NB_VECTORS          256
#define PIC_MASTER_MASK     0x21
#define PIC_SLAVE_MASK      0xa1
#define RSDP_SEARCH_GPA     0xe0000
#define RSDP_SEARCH_END_GPA 0x100000
#define RSDP_ALIGN_BYTES    16
#define GATE_INTERRUPT      0x8e00
#define TSS_AVAILABLE       0x89
#define IOMAP_BYTES         (65536 / 8 + 1)
#define START_INFO_MAGIC    0x336ec578
#define MEMMAP_TYPE_RAM     1
#define USER_STACK_BYTES    65536
#define CPUID_TSC           0x15
#define CPUID_FREQUENCY     0x16
#define CPUID_HV_BASE       0x40000000
#define CPUID_HV_FEATURES   0x40000001
#define CPUID_HV_FREQUENCY  0x40000010
#define KVM_SIGNATURE_EBX   0x4b4d564b
#define KVM_CLOCKSOURCE2    (1u << 3)
#define MSR_KVM_SYSTEM_TIME 0x4b564d01
#define FALLBACK_RAM_BYTES  (64u << 20)

typedef struct {
    uint32_t magic;
    uint32_t version;
    uint32_t flags;
    uint32_t nr_modules;
    uint64_t modlist_gpa;
    uint64_t cmdline_gpa;
    uint64_t rsdp_gpa;
    uint64_t memmap_gpa;
    uint32_t memmap_entries;
    uint32_t reserved;
} StartInfo;

typedef struct {
    uint64_t gpa;
    uint64_t size_bytes;
    uint32_t type;
    uint32_t reserved;
} MemmapEntry;

/* What is used of Linux's struct boot_params, and where it stands there. */
#define PARAMS_EXT_CMDLINE_HIGH 0x0c8
#define PARAMS_RSDP             0x070
#define PARAMS_NB_E820          0x1e8
#define PARAMS_CMDLINE          0x228
#define PARAMS_E820             0x2d0
#define PARAMS_E820_MAX         128

typedef struct {
    uint64_t gpa;
    uint64_t size_bytes;
    uint32_t type;
} __attribute__((packed)) E820Entry;

typedef struct {
    uint32_t version;
    uint32_t pad0;
    uint64_t tsc_timestamp;
    uint64_t system_time_ns;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags;
    uint8_t pad1[2];
} PvClock;

typedef struct {
    uint32_t reserved0;
    uint64_t rsp[3];
    uint64_t reserved1;
    uint64_t ist[7];
    uint64_t reserved2;
    uint16_t reserved3;
    uint16_t iomap_base;
    uint8_t iomap[IOMAP_BYTES]; /* a zero bit allows a port at any CPL */
} __attribute__((packed)) Tss;

typedef struct {
    uint16_t limit;
    uint64_t base;
} __attribute__((packed)) TablePointer;

typedef struct {
    uint64_t vector;
    uint64_t error_code;
    uint64_t rip;
    uint64_t cs;
    uint64_t rflags;
    uint64_t rsp;
    uint64_t ss;
} TrapFrame;

_Static_assert(sizeof(StartInfo) == 56, "PVH start info version 1");
_Static_assert(sizeof(MemmapEntry) == 24, "PVH memory map entry");
_Static_assert(sizeof(E820Entry) == 20, "boot_params.e820_table");
_Static_assert(sizeof(PvClock) == 32, "pvclock ABI");
_Static_assert(offsetof(Tss, iomap) == 104, "64-bit TSS");

/* From and for boot.S and payload.lds. */
extern uint64_t gdt[];
extern const uint8_t trap_stubs[];
extern const uint8_t irq_stubs[];
extern void (*const init_array_start[])(void);
extern void (*const init_array_end[])(void);
extern const uint8_t payload_image_end[];
uint32_t boot_start_info_gpa; /* PVH, or */
uint32_t boot_params_gpa;     /* Linux */
void boot_enter_user(uint32_t cpu) __attribute__((noreturn));
void boot_report_trap(const TrapFrame *frame) __attribute__((noreturn));

BootInfo boot_info;

static Tss cpu_tss[MAX_CPUS];
static uint64_t idt[2 * NB_VECTORS] __attribute__((aligned(16)));
static uint8_t trap_stacks[MAX_CPUS][4096] __attribute__((aligned(16)));
static uint8_t user_stacks[MAX_CPUS][USER_STACK_BYTES]
    __attribute__((aligned(16)));
static PvClock pv_clock __attribute__((aligned(64)));

typedef struct {
    uint32_t eax, ebx, ecx, edx;
} CpuidLeaf;

static CpuidLeaf cpuid(uint32_t leaf)
{
    CpuidLeaf r;

    __asm__ volatile("cpuid"
                     : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
                     : "a"(leaf), "c"(0));
    return r;
}

static void wrmsr(uint32_t msr, uint64_t value)
{
    __asm__ volatile("wrmsr"
                     :
                     : "c"(msr), "a"((uint32_t)value),
                       "d"((uint32_t)(value >> 32))
                     : "memory");
}

/* The clock page turns cycles to ns: ((cycles << shift) * mul) >> 32. */
static uint64_t tsc_khz_from_pvclock(void)
{
    uint64_t khz;

    wrmsr(MSR_KVM_SYSTEM_TIME, (uintptr_t)&pv_clock | 1);
    cpu_barrier();
    if (pv_clock.tsc_to_system_mul == 0) {
        return 0;
    }
    khz = (1000000ull << 32) / pv_clock.tsc_to_system_mul;
    return pv_clock.tsc_shift < 0 ? khz << -pv_clock.tsc_shift
                                  : khz >> pv_clock.tsc_shift;
}

static uint64_t tsc_khz_from_hypervisor(void)
{
    CpuidLeaf base = cpuid(CPUID_HV_BASE);

    if (base.eax >= CPUID_HV_FREQUENCY && base.eax < CPUID_HV_BASE + 256 &&
        cpuid(CPUID_HV_FREQUENCY).eax) {
        return cpuid(CPUID_HV_FREQUENCY).eax;
    }
    if (base.ebx == KVM_SIGNATURE_EBX &&
        (cpuid(CPUID_HV_FEATURES).eax & KVM_CLOCKSOURCE2)) {
        return tsc_khz_from_pvclock();
    }
    return 0;
}

static uint64_t find_tsc_khz(void)
{
    uint32_t max_leaf = cpuid(0).eax;

    if (max_leaf >= CPUID_TSC) {
        CpuidLeaf r = cpuid(CPUID_TSC);

        if (r.eax && r.ebx && r.ecx) {
            return (uint64_t)r.ecx * r.ebx / r.eax / 1000;
        }
    }
    if (cpuid(1).ecx >> 31) {
        uint64_t khz = tsc_khz_from_hypervisor();

        if (khz) {
            return khz;
        }
    }
    if (max_leaf >= CPUID_FREQUENCY) {
        return (cpuid(CPUID_FREQUENCY).eax & 0xffff) * 1000ull;
    }
    return 0;
}

static void set_gate(unsigned vector, uint64_t stub)
{
    idt[2 * vector] = (stub & 0xffff) | (uint64_t)SEL_KERNEL_CODE64 << 16 |
                      (uint64_t)GATE_INTERRUPT << 32 |
                      (stub >> 16 & 0xffff) << 48;
    idt[2 * vector + 1] = stub >> 32;
}

static void set_gates(void)
{
    for (unsigned i = 0; i < TRAP_COUNT; i++) {
        set_gate(i, (uintptr_t)trap_stubs + i * TRAP_STUB_STRIDE);
    }
    for (unsigned i = IRQ_STUB_FIRST; i < NB_VECTORS; i++) {
        set_gate(i, (uintptr_t)irq_stubs +
                        (i - IRQ_STUB_FIRST) * TRAP_STUB_STRIDE);
    }
}

static void load_tables(uint32_t cpu)
{
    TablePointer idtr = { sizeof(idt) - 1, (uintptr_t)idt };
    uint64_t base = (uintptr_t)&cpu_tss[cpu];
    uint64_t *desc = &gdt[SEL_TSS / 8 + 2 * cpu];

    cpu_tss[cpu].rsp[0] = (uintptr_t)&trap_stacks[cpu + 1];
    cpu_tss[cpu].iomap_base = offsetof(Tss, iomap);
    desc[0] = (sizeof(Tss) - 1) | (base & 0xffffff) << 16 |
              (uint64_t)TSS_AVAILABLE << 40 | (base >> 24 & 0xff) << 56;
    desc[1] = base >> 32;
    __asm__ volatile("lidt %0" : : "m"(idtr));
    __asm__ volatile("ltr %w0" : : "r"(SEL_TSS + 16 * cpu));
}

static void copy_cmdline(uint64_t gpa)
{
    const volatile char *from = (const char *)(uintptr_t)gpa;

    for (size_t i = 0; gpa && i < BOOT_CMDLINE_BYTES - 1 && from[i]; i++) {
        boot_info.cmdline[i] = from[i];
    }
}

static void add_ram(uint64_t gpa, uint64_t size_bytes, uint32_t type)
{
    if (type == MEMMAP_TYPE_RAM && boot_info.nb_ram < BOOT_MAX_RAM_REGIONS) {
        boot_info.ram[boot_info.nb_ram].start_gpa = gpa;
        boot_info.ram[boot_info.nb_ram].end_gpa = gpa + size_bytes;
        boot_info.nb_ram++;
    }
}

static void read_start_info(const StartInfo *info)
{
    const MemmapEntry *map = (const MemmapEntry *)(uintptr_t)info->memmap_gpa;

    boot_info.entry = BOOT_ENTRY_PVH;
    boot_info.rsdp_gpa = info->rsdp_gpa;
    copy_cmdline(info->cmdline_gpa);
    if (info->version < 1 || !info->memmap_gpa) {
        add_ram(0, (uintptr_t)payload_image_end + FALLBACK_RAM_BYTES,
                MEMMAP_TYPE_RAM);
        return;
    }
    for (uint32_t i = 0; i < info->memmap_entries; i++) {
        add_ram(map[i].gpa, map[i].size_bytes, map[i].type);
    }
}

static void read_boot_params(const uint8_t *params)
{
    const E820Entry *map = (const E820Entry *)(params + PARAMS_E820);
    uint32_t low, high;

    boot_info.entry = BOOT_ENTRY_LINUX64;
    memcpy(&boot_info.rsdp_gpa, params + PARAMS_RSDP, 8);
    memcpy(&low, params + PARAMS_CMDLINE, 4);
    memcpy(&high, params + PARAMS_EXT_CMDLINE_HIGH, 4);
    copy_cmdline((uint64_t)high << 32 | low);
    for (unsigned i = 0; i < params[PARAMS_NB_E820] && i < PARAMS_E820_MAX;
         i++) {
        add_ram(map[i].gpa, map[i].size_bytes, map[i].type);
    }
}

/* Where firmware puts the RSDP of a loader that says nothing of it. */
static uint64_t search_rsdp(void)
{
    for (uint64_t gpa = RSDP_SEARCH_GPA; gpa < RSDP_SEARCH_END_GPA;
         gpa += RSDP_ALIGN_BYTES) {
        if (memcmp((const void *)(uintptr_t)gpa, "RSD PTR ", 8) == 0) {
            return gpa;
        }
    }
    return 0;
}

static void first_processor_main(void)
{
    const StartInfo *info = (const StartInfo *)(uintptr_t)boot_start_info_gpa;

    con_init();
    if (boot_params_gpa) {
        read_boot_params((const uint8_t *)(uintptr_t)boot_params_gpa);
    } else if (info->magic == START_INFO_MAGIC) {
        read_start_info(info);
    } else {
        con_printf("Bail out! no PVH start info at %x\n", boot_start_info_gpa);
        con_reset_machine();
    }
    if (!boot_info.rsdp_gpa) {
        boot_info.rsdp_gpa = search_rsdp();
    }
    mem_init((uintptr_t)payload_image_end);

    uint64_t khz;
    if (arg_get_u64("tsc_khz", &khz)) {
        boot_info.tsc_khz = khz;
    }
    for (size_t i = 0; &init_array_start[i] < init_array_end; i++) {
        init_array_start[i]();
    }
    payload_main();
    con_reset_machine();
}

static void __attribute__((noreturn)) user_start(uint32_t cpu)
{
    if (cpu == 0) {
        first_processor_main();
    }
    smp_run_processor(cpu);
}

void boot_enter_user(uint32_t cpu)
{
    if (cpu == 0) {
        boot_info.tsc_khz = find_tsc_khz();
        set_gates();
        /* Interrupts are on at CPL3; those of the 8259s have our traps' vectors. */
        cpu_outb(PIC_MASTER_MASK, 0xff);
        cpu_outb(PIC_SLAVE_MASK, 0xff);
    }
    load_tables(cpu);

    /* As after a call: the stack is 8 off a multiple of 16. */
    uint64_t rsp = (uintptr_t)&user_stacks[cpu + 1] - 8;

    __asm__ volatile("pushq %0\n\t"
                     "pushq %1\n\t"
                     "pushq %2\n\t"
                     "pushq %3\n\t"
                     "pushq %4\n\t"
                     "movl %k0, %%ds\n\t"
                     "movl %k0, %%es\n\t"
                     "iretq"
                     :
                     : "r"((uint64_t)(SEL_USER_DATA | 3)), "r"(rsp),
                       "r"((uint64_t)(RFLAGS_FIXED | RFLAGS_IF)),
                       "r"((uint64_t)(SEL_USER_CODE64 | 3)), "r"(user_start),
                       "D"(cpu)
                     : "memory");
    __builtin_unreachable();
}

void boot_report_trap(const TrapFrame *frame)
{
    uint64_t cr2;

    __asm__ volatile("movq %%cr2, %0" : "=r"(cr2));
    con_printf("\nBail out! trap %lu error %lx rip %lx cs %lx rflags %lx "
               "rsp %lx cr2 %lx\n",
               frame->vector, frame->error_code, frame->rip, frame->cs,
               frame->rflags, frame->rsp, cr2);
    con_reset_machine();
}
