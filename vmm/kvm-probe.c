/*
 * kvm-probe.c - a page of code in a VM of its own
 *
 * Guest memory, 64 KiB at address 0:
 *     0x1000 PML4, 0x2000 PDPT, 0x3000 PD (one 2 MiB page, identity)
 *     0x4000 GDT   0x5000 IDT: all 32 exceptions go to 0x6000, #BP to 0x6010
 *     0x6000 exception: mov $1, %al; hlt      0x6010 breakpoint: hlt
 *     0x7000 code: the instruction, then hlt  0x8000 data   0xa000 top of the stack
 */
#include "vmm/kvm-probe.h"

#include <cpuid.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>

#define MEMORY_BYTES 0x10000
#define PML4_GPA     0x1000
#define PDPT_GPA     0x2000
#define PD_GPA       0x3000
#define GDT_GPA      0x4000
#define IDT_GPA      0x5000
#define FAULT_GPA    0x6000
#define BREAK_GPA    0x6010
#define CODE_GPA     0x7000
#define DATA_GPA     0x8000
#define STACK_GPA    0xa000

#define CS_SELECTOR 8
#define TIME_LIMIT_MS 500

#define CR0_PE 0x1ull
#define CR0_MP 0x2ull
#define CR0_NE 0x20ull
#define CR0_PG 0x80000000ull
#define CR4_PAE        0x20ull
#define CR4_OSFXSR     0x200ull
#define CR4_OSXMMEXCPT 0x400ull
#define CR4_OSXSAVE    0x40000ull
#define CR4_SMAP       0x200000ull
#define EFER_LME_LMA   0x500ull

typedef struct Telling {
    const char *name;
    uint8_t code[12];
    unsigned code_bytes;
    uint32_t leaf, subleaf; /* CPUID bit that says the processor has it; leaf 0 = always */
    char reg;               /* 'b', 'c', 'd' */
    unsigned bit;
    uint64_t cr4;           /* what it needs */
} Telling;

/* rdi = DATA_GPA, rax = rdx = 0 at the start of each */
static const Telling tellings[] = {
    { "nop", { 0x90 }, 1, 0, 0, 0, 0, 0 },
    { "int3", { 0xcc }, 1, 0, 0, 0, 0, 0 },
    { "cmpxchg16b", { 0x48, 0x0f, 0xc7, 0x0f }, 4, 1, 0, 'c', 13, 0 },
    { "pxor", { 0x66, 0x0f, 0xef, 0xc0 }, 4, 1, 0, 'd', 26, 0 },
    { "popcnt", { 0xf3, 0x0f, 0xb8, 0xc3 }, 4, 1, 0, 'c', 23, 0 },
    { "rdtscp", { 0x0f, 0x01, 0xf9 }, 3, 0x80000001, 0, 'd', 27, 0 },
    { "clac", { 0x0f, 0x01, 0xca }, 3, 7, 0, 'b', 20, CR4_SMAP },
    { "xrstor", { 0x0f, 0xae, 0x2f }, 3, 1, 0, 'c', 26, CR4_OSXSAVE },
};

static_assert(ARRAY_SIZE(tellings) <= KVM_PROBES_MAX, "KvmProbe array too small");

typedef struct ProbeVm {
    int vm_fd, vcpu_fd;
    uint8_t *memory;
    struct kvm_run *run;
    size_t run_bytes;
} ProbeVm;

static bool host_has(const Telling *t)
{
    uint32_t a, b = 0, c = 0, d = 0;

    if (t->leaf == 0) {
        return true;
    }
    if (!__get_cpuid_count(t->leaf, t->subleaf, &a, &b, &c, &d)) {
        return false;
    }
    return (t->reg == 'b' ? b : t->reg == 'c' ? c : d) >> t->bit & 1;
}

static void put64(ProbeVm *vm, unsigned gpa, uint64_t value)
{
    memcpy(vm->memory + gpa, &value, sizeof(value));
}

static void set_gate(ProbeVm *vm, unsigned vector, uint64_t handler)
{
    put64(vm, IDT_GPA + vector * 16, (handler & 0xffff) | CS_SELECTOR << 16 | 0x8e00ull << 32);
    put64(vm, IDT_GPA + vector * 16 + 8, handler >> 32);
}

static void fill_memory(ProbeVm *vm, const Telling *t)
{
    static const uint8_t fault[] = { 0xb0, 0x01, 0xf4 };

    put64(vm, PML4_GPA, PDPT_GPA | 3);
    put64(vm, PDPT_GPA, PD_GPA | 3);
    put64(vm, PD_GPA, 0x83);
    put64(vm, GDT_GPA + CS_SELECTOR, 0x00af9b000000ffffull);
    put64(vm, GDT_GPA + CS_SELECTOR + 8, 0x00cf93000000ffffull);
    for (unsigned i = 0; i < 32; i++) {
        set_gate(vm, i, i == 3 ? BREAK_GPA : FAULT_GPA);
    }
    memcpy(vm->memory + FAULT_GPA, fault, sizeof(fault));
    vm->memory[BREAK_GPA] = 0xf4;
    memcpy(vm->memory + CODE_GPA, t->code, t->code_bytes);
    vm->memory[CODE_GPA + t->code_bytes] = 0xf4;
}

static void close_vm(ProbeVm *vm)
{
    if (vm->run) {
        munmap(vm->run, vm->run_bytes);
    }
    if (vm->vcpu_fd >= 0) {
        close(vm->vcpu_fd);
    }
    if (vm->vm_fd >= 0) {
        close(vm->vm_fd);
    }
    if (vm->memory) {
        munmap(vm->memory, MEMORY_BYTES);
    }
}

static int set_registers(ProbeVm *vm, const Telling *t)
{
    struct kvm_sregs s;
    struct kvm_regs r = {
        .rip = CODE_GPA, .rsp = STACK_GPA, .rdi = DATA_GPA, .rflags = 2
    };
    struct kvm_segment flat = {
        .limit = 0xffffffff, .present = 1, .s = 1, .g = 1
    };
    int ret = kvm_ioctl(vm->vcpu_fd, KVM_GET_SREGS, &s);

    if (ret < 0) {
        return ret;
    }
    s.cs = s.ds = flat;
    s.cs.selector = CS_SELECTOR;
    s.cs.type = 0xb;
    s.cs.l = 1;
    s.ds.selector = CS_SELECTOR + 8;
    s.ds.type = 3;
    s.ds.db = 1;
    s.es = s.fs = s.gs = s.ss = s.ds;
    s.gdt = (struct kvm_dtable){ .base = GDT_GPA, .limit = 23 };
    s.idt = (struct kvm_dtable){ .base = IDT_GPA, .limit = 32 * 16 - 1 };
    s.cr0 = CR0_PE | CR0_MP | CR0_NE | CR0_PG;
    s.cr3 = PML4_GPA;
    s.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | t->cr4;
    s.efer = EFER_LME_LMA;
    ret = kvm_ioctl(vm->vcpu_fd, KVM_SET_SREGS, &s);
    return ret < 0 ? ret : kvm_ioctl(vm->vcpu_fd, KVM_SET_REGS, &r);
}

static int open_vm(const Kvm *kvm, ProbeVm *vm, const Telling *t)
{
    int ret;

    *vm = (ProbeVm){ .vm_fd = -1, .vcpu_fd = -1, .run_bytes = kvm->run_bytes };
    void *memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                        -1, 0);

    if (memory == MAP_FAILED) {
        return -errno;
    }
    vm->memory = memory;
    fill_memory(vm, t);
    if ((vm->vm_fd = kvm_ioctl(kvm->dev_fd, KVM_CREATE_VM, NULL)) < 0) {
        return vm->vm_fd;
    }
    struct kvm_userspace_memory_region region = {
        .memory_size = MEMORY_BYTES, .userspace_addr = (uintptr_t)memory
    };

    kvm_ioctl(vm->vm_fd, KVM_SET_TSS_ADDR, (void *)0xfeffd000ul);
    if ((ret = kvm_ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &region)) < 0 ||
        (ret = vm->vcpu_fd = kvm_ioctl(vm->vm_fd, KVM_CREATE_VCPU, NULL)) < 0) {
        return ret;
    }
    void *run = mmap(NULL, vm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu_fd, 0);

    if (run == MAP_FAILED) {
        return -errno;
    }
    vm->run = run;
    ret = kvm_ioctl(vm->vcpu_fd, KVM_SET_CPUID2, kvm->cpuid);
    return ret < 0 ? ret : set_registers(vm, t);
}

static void alarm_cb(int sig)
{
    (void)sig; /* interrupts KVM_RUN */
}

/* One KVM_RUN, interrupted after the time limit and, should the signal come before the call, again
 * and again. */
static KvmProbeResult run_vm(ProbeVm *vm)
{
    struct itimerval limit = { .it_value.tv_usec = TIME_LIMIT_MS * 1000,
                               .it_interval.tv_usec = TIME_LIMIT_MS * 1000 };
    struct itimerval off = { 0 };

    setitimer(ITIMER_REAL, &limit, NULL);
    int ret = ioctl(vm->vcpu_fd, KVM_RUN, NULL) < 0 ? -errno : 0;

    setitimer(ITIMER_REAL, &off, NULL);
    if (ret == -EINTR) {
        return KVM_PROBE_TIMEOUT;
    }
    if (ret < 0) {
        return KVM_PROBE_FAILED;
    }
    switch (vm->run->exit_reason) {
    case KVM_EXIT_HLT: {
        struct kvm_regs regs;

        if (kvm_ioctl(vm->vcpu_fd, KVM_GET_REGS, &regs) < 0) {
            return KVM_PROBE_FAILED;
        }
        return regs.rip > FAULT_GPA && regs.rip < BREAK_GPA ? KVM_PROBE_EXCEPTION : KVM_PROBE_OK;
    }
    case KVM_EXIT_INTERNAL_ERROR:
        return KVM_PROBE_NOT_EMULATED;
    default:
        return KVM_PROBE_EXCEPTION; /* triple fault and the like */
    }
}

int kvm_probe_kernel_mode(const Kvm *kvm, KvmProbe *ret_probes, Error *err)
{
    struct sigaction action = { .sa_handler = alarm_cb }, old;

    sigaction(SIGALRM, &action, &old);
    for (unsigned i = 0; i < ARRAY_SIZE(tellings); i++) {
        ProbeVm vm;
        const Telling *t = &tellings[i];

        ret_probes[i] = (KvmProbe){ t->name, KVM_PROBE_SKIPPED };
        if (!host_has(t)) {
            continue;
        }
        int ret = open_vm(kvm, &vm, t);

        ret_probes[i].result = ret < 0 ? KVM_PROBE_FAILED : run_vm(&vm);
        close_vm(&vm);
        if (ret < 0 && i == 0) {
            sigaction(SIGALRM, &old, NULL);
            return error_set(err, ret, "a throw-away VM cannot be made: %s", error_strerror(ret));
        }
    }
    sigaction(SIGALRM, &old, NULL);
    return ARRAY_SIZE(tellings);
}

bool kvm_probe_is_good(KvmProbeResult result)
{
    return result == KVM_PROBE_OK || result == KVM_PROBE_SKIPPED;
}

const char *kvm_probe_result_name(KvmProbeResult result)
{
    static const char *const names[] = {
        [KVM_PROBE_OK] = "ok",
        [KVM_PROBE_NOT_EMULATED] = "cannot be emulated",
        [KVM_PROBE_EXCEPTION] = "raises an exception",
        [KVM_PROBE_TIMEOUT] = "does not end",
        [KVM_PROBE_SKIPPED] = "not on this processor",
        [KVM_PROBE_FAILED] = "could not be tried",
    };

    return names[result];
}
