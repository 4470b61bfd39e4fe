/*
 * vcpu-state.c - what a vCPU's registers and CPUID are at power-on and at the kernel's entry
 *
 * CPUID is what KVM says it supports on this host, with what vcpu-cpuid.c puts in. Model-specific
 * registers that a previous boot may have left behind and that matter to the next one are written
 * at each reset: the paravirtual clocks would otherwise go on writing into the new kernel's memory.
 */
#include <string.h>

#include "vmm/vcpu-int.h"

#define MSR_IA32_TSC_ADJUST    0x3b
#define MSR_IA32_SPEC_CTRL     0x48
#define MSR_IA32_SYSENTER_CS   0x174
#define MSR_IA32_SYSENTER_ESP  0x175
#define MSR_IA32_SYSENTER_EIP  0x176
#define MSR_IA32_MISC_ENABLE   0x1a0
#define MSR_IA32_DEBUGCTL      0x1d9
#define MSR_IA32_PAT           0x277
#define MSR_MTRR_DEF_TYPE      0x2ff
#define MSR_IA32_TSC_DEADLINE  0x6e0
#define MSR_IA32_XSS           0xda0
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
#define MSR_KVM_POLL_CONTROL   0x4b564d05
#define MSR_KVM_ASYNC_PF_INT   0x4b564d06

#define MISC_ENABLE_FAST_STRING 1ull
#define MTRR_ENABLED_WRITE_BACK 0x806ull
#define PAT_OF_POWER_ON         0x0007040600070406ull
#define KVM_POLL_ENABLED        1ull

static const struct {
    uint32_t index;
    uint64_t value;
} reset_msrs[] = {
    { MSR_IA32_TSC_ADJUST, 0 },
    { MSR_IA32_SPEC_CTRL, 0 },
    { MSR_IA32_SYSENTER_CS, 0 },
    { MSR_IA32_SYSENTER_ESP, 0 },
    { MSR_IA32_SYSENTER_EIP, 0 },
    { MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING },
    { MSR_IA32_DEBUGCTL, 0 },
    { MSR_IA32_PAT, PAT_OF_POWER_ON },
    { MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK },
    { MSR_IA32_TSC_DEADLINE, 0 },
    { MSR_IA32_XSS, 0 },
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
    { MSR_KVM_POLL_CONTROL, KVM_POLL_ENABLED },
    { MSR_KVM_ASYNC_PF_INT, 0 },
};

/* --- CPUID --- */

int vcpu_setup_cpuid(Vcpu *vcpu, Error *err)
{
    Kvm *kvm = vcpu->vcpus->kvm;
    AUTO_FREE struct kvm_cpuid2 *cpuid = malloc(CPUID_LIST_BYTES);
    int tsc_khz = kvm_ioctl(vcpu->fd, KVM_GET_TSC_KHZ, NULL);
    CpuidVcpu params = {
        .index = vcpu->index,
        .nb_cpus = vcpu->vcpus->nb_vcpus,
        .tsc_khz = MAX(tsc_khz, 0),
        .tsc_deadline = kvm_extension(kvm, KVM_CAP_TSC_DEADLINE_TIMER) != 0,
    };

    if (!cpuid) {
        return error_set(err, -ENOMEM, "CPUID: out of memory");
    }
    memcpy(cpuid, kvm->cpuid, CPUID_LIST_BYTES);
    cpuid_set_vcpu(cpuid, &params);
    int ret = kvm_ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid);

    return ret < 0 ? error_set(err, ret, "KVM_SET_CPUID2: %s", error_strerror(ret)) : 0;
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
    p->has_xsave = kvm_ioctl(vcpu->fd, KVM_GET_XSAVE, p->xsave) == 0;
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
    if (p->has_xsave) {
        kvm_ioctl(vcpu->fd, KVM_SET_XSAVE, p->xsave);
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
