/*
 * kvm-probe - can this host's KVM carry the kernel-mode code of a stock kernel?
 *
 * Layer:     vmm
 * Threading: main thread; takes SIGALRM for its time limit while it runs.
 * Lifetime:  a throw-away VM for each instruction; nothing is kept.
 *
 * Where there is hardware virtualization every instruction below just works. A KVM without it
 * emulates the guest's kernel mode and stops at what its emulator lacks. So each telling
 * instruction is executed at CPL0 in long mode, followed by HLT: reaching HLT is the proof.
 */
#ifndef VMM_KVM_PROBE_H
#define VMM_KVM_PROBE_H

#include "vmm/kvm.h"

typedef enum KvmProbeResult {
    KVM_PROBE_OK,
    KVM_PROBE_NOT_EMULATED, /* KVM_EXIT_INTERNAL_ERROR */
    KVM_PROBE_EXCEPTION,    /* the guest got an exception instead */
    KVM_PROBE_TIMEOUT,
    KVM_PROBE_SKIPPED,      /* this processor does not have it */
    KVM_PROBE_FAILED,       /* the probe itself could not be made */
} KvmProbeResult;

#define KVM_PROBES_MAX 16

typedef struct KvmProbe {
    const char *instruction;
    KvmProbeResult result;
} KvmProbe;

/* kvm_probe_kernel_mode - run all; returns the number filled in, -errno when no VM can be made */
int kvm_probe_kernel_mode(const Kvm *kvm, KvmProbe *ret_probes, Error *err) NONNULL(1, 2)
    WARN_UNUSED;
bool kvm_probe_is_good(KvmProbeResult result);
const char *kvm_probe_result_name(KvmProbeResult result);

#endif
