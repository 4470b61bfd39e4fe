/*
 * vcpu-cpuid - what the guest's processors say of themselves
 *
 * Layer:     vmm (KVM's structures, no system call: a test builds lists of its own)
 * Threading: the main thread.
 * Lifetime:  works in the caller's list.
 * Spec:      Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E;
 *            Linux Documentation/virt/kvm/x86/cpuid.rst
 */
#ifndef VMM_VCPU_CPUID_H
#define VMM_VCPU_CPUID_H

#include <linux/kvm.h>

#include "io/base/compiler.h"

/* Room of every list, and how much of it cpuid_set_vcpu() wants for leaves that it adds. */
#define CPUID_ENTRIES_MAX   256
#define CPUID_ENTRIES_ADDED 8
#define CPUID_LIST_BYTES                                                                           \
    (sizeof(struct kvm_cpuid2) + CPUID_ENTRIES_MAX * sizeof(struct kvm_cpuid_entry2))

typedef struct CpuidVcpu {
    unsigned index;    /* is the APIC id */
    unsigned nb_cpus;
    uint32_t tsc_khz;  /* 0: not known */
    bool tsc_deadline; /* the local APIC's timer takes a deadline */
} CpuidVcpu;

/* cpuid_set_vcpu - turn what KVM supports on this host into what one vCPU says; @cpuid has
 * CPUID_LIST_BYTES */
void cpuid_set_vcpu(struct kvm_cpuid2 *cpuid, const CpuidVcpu *vcpu) NONNULL(1, 2);

/* cpuid_phys_bits - the width of the guest's physical addresses */
unsigned cpuid_phys_bits(const struct kvm_cpuid2 *cpuid) NONNULL(1);

#endif
