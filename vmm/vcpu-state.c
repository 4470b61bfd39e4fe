/*
 * vcpu-state.c - what a vCPU's registers and CPUID are at power-on and at the kernel's entry
 *
 * CPUID is what KVM says it supports on this host, with the topology (each vCPU a core of one
 * package, APIC id = index) and the hypervisor's timing leaf put in. Model-specific registers that
 * a previous boot may have left behind and that matter to the next one are written at each reset:
 * the paravirtual clocks would otherwise go on writing into the new kernel's memory.
 */
#include <cpuid.h>
#include <string.h>

#include "vmm/vcpu-int.h"

#define CPUID_ENTRIES_MAX 256

#define MSR_IA32_SYSENTER_CS   0x174
#define MSR_IA32_SYSENTER_ESP  0x175
#define MSR_IA32_SYSENTER_EIP  0x176
#define MSR_IA32_MISC_ENABLE   0x1a0
#define MSR_MTRR_DEF_TYPE      0x2ff
#define MSR_IA32_TSC_DEADLINE  0x6e0
#define MSR_STAR               0xc0000081
#define MSR_LSTAR              0xc0000082
#define MSR_CSTAR              0xc0000083
#define MSR_SYSCALL_MASK       0xc0000084
#define MSR_KERNEL_GS_BASE     0xc0000102
#define MSR_TSC_AUX            0xc0000103
#define MSR_KVM_WALL_CLOCK     0x11
#define MSR_KVM_SYSTEM_TIME    0x12
#define MSR_KVM_WALL_CLOCK_NEW 0x4b564d00
#define MSR_KVM_SYSTEM_TIME_NEW 0x4b564d01
#define MSR_KVM_ASYNC_PF_EN    0x4b564d02
#define MSR_KVM_STEAL_TIME     0x4b564d03
#define MSR_KVM_PV_EOI_EN      0x4b564d04

#define MISC_ENABLE_FAST_STRING 1ull
#define MTRR_ENABLED_WRITE_BACK 0x806ull

static const struct {
    uint32_t index;
    uint64_t value;
} reset_msrs[] = {
    { MSR_IA32_SYSENTER_CS, 0 },
    { MSR_IA32_SYSENTER_ESP, 0 },
    { MSR_IA32_SYSENTER_EIP, 0 },
    { MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING },
    { MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK },
    { MSR_IA32_TSC_DEADLINE, 0 },
    { MSR_STAR, 0 },
    { MSR_LSTAR, 0 },
    { MSR_CSTAR, 0 },
    { MSR_SYSCALL_MASK, 0 },
    { MSR_KERNEL_GS_BASE, 0 },
    { MSR_TSC_AUX, 0 },
    { MSR_KVM_WALL_CLOCK, 0 },
    { MSR_KVM_SYSTEM_TIME, 0 },
    { MSR_KVM_WALL_CLOCK_NEW, 0 },
    { MSR_KVM_SYSTEM_TIME_NEW, 0 },
    { MSR_KVM_ASYNC_PF_EN, 0 },
    { MSR_KVM_STEAL_TIME, 0 },
    { MSR_KVM_PV_EOI_EN, 0 },
};

/* --- CPUID --- */

static struct kvm_cpuid2 *supported_cpuid(Kvm *kvm, Error *err)
{
    struct kvm_cpuid2 *cpuid =
        calloc(1, sizeof(*cpuid) + CPUID_ENTRIES_MAX * sizeof(cpuid->entries[0]));

    if (!cpuid) {
        error_set(err, -ENOMEM, "CPUID: out of memory");
        return NULL;
    }
    cpuid->nent = CPUID_ENTRIES_MAX - 1; /* one is added below */
    int ret = kvm_ioctl(kvm->dev_fd, KVM_GET_SUPPORTED_CPUID, cpuid);

    if (ret < 0) {
        error_set(err, ret, "KVM_GET_SUPPORTED_CPUID: %s", error_strerror(ret));
        free(cpuid);
        return NULL;
    }
    return cpuid;
}

static struct kvm_cpuid_entry2 *find_leaf(struct kvm_cpuid2 *cpuid, uint32_t function)
{
    for (uint32_t i = 0; i < cpuid->nent; i++) {
        if (cpuid->entries[i].function == function) {
            return &cpuid->entries[i];
        }
    }
    return NULL;
}

/* Bits that hold a number below @count. */
static unsigned bits_for(unsigned count)
{
    return count <= 1 ? 0 : 32 - __builtin_clz(count - 1);
}

/* Extended topology (0xb and 0x1f): level 0 threads (one a core), level 1 cores. */
static void set_topology_level(struct kvm_cpuid_entry2 *entry, unsigned apic_id, unsigned nb_cpus)
{
    entry->edx = apic_id;
    entry->ecx = entry->index;
    entry->eax = entry->ebx = 0;
    if (entry->index == 0) {
        entry->ebx = 1;
        entry->ecx |= 1 << 8;
    } else if (entry->index == 1) {
        entry->eax = bits_for(nb_cpus);
        entry->ebx = nb_cpus;
        entry->ecx |= 2 << 8;
    }
}

static void fix_leaf(Vcpu *vcpu, struct kvm_cpuid_entry2 *entry)
{
    unsigned nb_cpus = vcpu->vcpus->nb_vcpus;
    unsigned apic_id = vcpu->index;

    switch (entry->function) {
    case 1:
        entry->ebx = (entry->ebx & 0x0000ffff) | apic_id << 24 | nb_cpus << 16;
        entry->edx = nb_cpus > 1 ? entry->edx | 1u << 28 : entry->edx & ~(1u << 28);
        entry->ecx |= 1u << 31; /* running under a hypervisor */
        if (kvm_extension(vcpu->vcpus->kvm, KVM_CAP_TSC_DEADLINE_TIMER)) {
            entry->ecx |= 1u << 24;
        }
        break;
    case 4: /* one thread shares a cache; cores in the package */
        entry->eax = (entry->eax & 0x00003fff) | ((1u << bits_for(nb_cpus)) - 1) << 26;
        break;
    case 0xb:
    case 0x1f:
        set_topology_level(entry, apic_id, nb_cpus);
        break;
    case 0x80000008:
        entry->ecx = bits_for(nb_cpus) << 12 | (nb_cpus - 1);
        break;
    case 0x8000001e:
        entry->eax = apic_id;
        entry->ebx = apic_id; /* core id, one thread a core */
        entry->ecx = 0;
        break;
    default:
        break;
    }
}

/* Leaf 0x40000010: TSC and bus clock in kHz, which saves the guest its calibration. */
static void add_timing_leaf(Vcpu *vcpu, struct kvm_cpuid2 *cpuid)
{
    struct kvm_cpuid_entry2 *base = find_leaf(cpuid, 0x40000000);
    int tsc_khz = kvm_ioctl(vcpu->fd, KVM_GET_TSC_KHZ, NULL);

    if (!base || tsc_khz <= 0 || find_leaf(cpuid, 0x40000010)) {
        return;
    }
    base->eax = MAX(base->eax, 0x40000010u);
    cpuid->entries[cpuid->nent++] = (struct kvm_cpuid_entry2){
        .function = 0x40000010,
        .eax = tsc_khz,
        .ebx = 1000000, /* KVM's APIC timer counts nanoseconds */
    };
}

int vcpu_setup_cpuid(Vcpu *vcpu, Error *err)
{
    struct kvm_cpuid2 *cpuid = supported_cpuid(vcpu->vcpus->kvm, err);

    if (!cpuid) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < cpuid->nent; i++) {
        fix_leaf(vcpu, &cpuid->entries[i]);
    }
    add_timing_leaf(vcpu, cpuid);
    int ret = kvm_ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid);

    free(cpuid);
    return ret < 0 ? error_set(err, ret, "KVM_SET_CPUID2: %s", error_strerror(ret)) : 0;
}

unsigned vcpus_phys_bits(Kvm *kvm)
{
    AUTO_FREE struct kvm_cpuid2 *cpuid = supported_cpuid(kvm, NULL);
    struct kvm_cpuid_entry2 *leaf = cpuid ? find_leaf(cpuid, 0x80000008) : NULL;

    return leaf ? leaf->eax & 0xff : 36;
}

/* --- registers --- */

static int vcpu_ioctl(Vcpu *vcpu, unsigned long request, void *arg, const char *name, Error *err)
{
    int ret = kvm_ioctl(vcpu->fd, request, arg);

    return ret < 0 ? error_set(err, ret, "vcpu%u: %s: %s", vcpu->index, name, error_strerror(ret))
                   : 0;
}

#define VCPU_IOCTL(vcpu, request, arg, err) vcpu_ioctl(vcpu, request, arg, #request, err)

/* Local interrupt pins as after firmware: LINT0 = ExtINT (the PICs), LINT1 = NMI. */
static void set_lvt(struct kvm_lapic_state *lapic, unsigned offset, uint32_t delivery_mode)
{
    uint32_t value;

    memcpy(&value, lapic->regs + offset, sizeof(value));
    value = (value & ~0x10700u) | delivery_mode << 8;
    memcpy(lapic->regs + offset, &value, sizeof(value));
}

int vcpu_save_power_on(Vcpu *vcpu, Error *err)
{
    VcpuPowerOn *p = &vcpu->power_on;
    int ret;

    if ((ret = VCPU_IOCTL(vcpu, KVM_GET_REGS, &p->regs, err)) < 0 ||
        (ret = VCPU_IOCTL(vcpu, KVM_GET_SREGS, &p->sregs, err)) < 0 ||
        (ret = VCPU_IOCTL(vcpu, KVM_GET_FPU, &p->fpu, err)) < 0 ||
        (ret = VCPU_IOCTL(vcpu, KVM_GET_LAPIC, &p->lapic, err)) < 0 ||
        (ret = VCPU_IOCTL(vcpu, KVM_GET_VCPU_EVENTS, &p->events, err)) < 0) {
        return ret;
    }
    p->has_debugregs = kvm_ioctl(vcpu->fd, KVM_GET_DEBUGREGS, &p->debugregs) == 0;
    p->has_xcrs = kvm_ioctl(vcpu->fd, KVM_GET_XCRS, &p->xcrs) == 0;
    set_lvt(&p->lapic, 0x350, 7);
    set_lvt(&p->lapic, 0x360, 4);
    return 0;
}

/* One at a time: a register that this processor does not have is passed over. */
static void reset_model_specific(Vcpu *vcpu)
{
    union {
        struct kvm_msrs msrs;
        uint8_t bytes[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)];
    } one = { .msrs.nmsrs = 1 };

    for (unsigned i = 0; i < ARRAY_SIZE(reset_msrs); i++) {
        one.msrs.entries[0].index = reset_msrs[i].index;
        one.msrs.entries[0].data = reset_msrs[i].value;
        kvm_ioctl(vcpu->fd, KVM_SET_MSRS, &one.msrs);
    }
}

int vcpu_load_power_on(Vcpu *vcpu, Error *err)
{
    VcpuPowerOn *p = &vcpu->power_on;
    struct kvm_mp_state mp = {
        .mp_state = vcpu->index == 0 ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_UNINITIALIZED
    };
    int ret;

    if ((ret = VCPU_IOCTL(vcpu, KVM_SET_SREGS, &p->sregs, err)) < 0 ||
        (ret = VCPU_IOCTL(vcpu, KVM_SET_REGS, &p->regs, err)) < 0 ||
        (ret = VCPU_IOCTL(vcpu, KVM_SET_FPU, &p->fpu, err)) < 0 ||
        (ret = VCPU_IOCTL(vcpu, KVM_SET_VCPU_EVENTS, &p->events, err)) < 0 ||
        (ret = VCPU_IOCTL(vcpu, KVM_SET_LAPIC, &p->lapic, err)) < 0 ||
        (ret = VCPU_IOCTL(vcpu, KVM_SET_MP_STATE, &mp, err)) < 0) {
        return ret;
    }
    if (p->has_debugregs) {
        kvm_ioctl(vcpu->fd, KVM_SET_DEBUGREGS, &p->debugregs);
    }
    if (p->has_xcrs) {
        kvm_ioctl(vcpu->fd, KVM_SET_XCRS, &p->xcrs);
    }
    reset_model_specific(vcpu);
    return 0;
}

static struct kvm_segment flat_segment(uint16_t selector, uint8_t type, bool code64)
{
    return (struct kvm_segment){
        .selector = selector,
        .limit = 0xffffffff,
        .type = type,
        .present = 1,
        .s = 1,
        .db = !code64,
        .l = code64,
        .g = 1,
    };
}

int vcpu_load_entry(Vcpu *vcpu, const BootEntry *entry, Error *err)
{
    struct kvm_sregs sregs = vcpu->power_on.sregs;
    struct kvm_regs regs = {
        .rip = entry->rip, .rsi = entry->rsi, .rbx = entry->rbx, .rflags = 2
    };

    sregs.cs = flat_segment(BOOT_CS_SELECTOR, 0xb, entry->mode == BOOT_LONG_MODE);
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss =
        flat_segment(BOOT_DS_SELECTOR, 0x3, false);
    sregs.tr = (struct kvm_segment){
        .selector = BOOT_TR_SELECTOR, .limit = 0x67, .type = 0xb, .present = 1
    };
    sregs.ldt = (struct kvm_segment){ .unusable = 1 };
    sregs.gdt = (struct kvm_dtable){ .base = entry->gdt_gpa, .limit = entry->gdt_limit };
    sregs.idt = (struct kvm_dtable){ .base = 0, .limit = 0 };
    sregs.cr0 = entry->cr0;
    sregs.cr3 = entry->cr3;
    sregs.cr4 = entry->cr4;
    sregs.efer = entry->efer;
    int ret = VCPU_IOCTL(vcpu, KVM_SET_SREGS, &sregs, err);

    return ret < 0 ? ret : VCPU_IOCTL(vcpu, KVM_SET_REGS, &regs, err);
}
