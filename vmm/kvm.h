/*
 * Kvm - the /dev/kvm descriptor and one virtual machine on it
 *
 * Layer:     vmm
 * Threading: set up and torn down by the main thread; the ioctl helpers may be called from any.
 * Lifetime:  kvm_open() .. kvm_close(); kvm_create_vm() in between. Zero-initialise with KVM_INIT.
 * Spec:      Linux Documentation/virt/kvm/api.rst
 */
#ifndef VMM_KVM_H
#define VMM_KVM_H

#include "io/base/error.h"
#include "vmm/vcpu-cpuid.h"

typedef struct Kvm {
    int dev_fd;
    int vm_fd;
    size_t run_bytes;    /* mapping of a vCPU's struct kvm_run */
    unsigned max_vcpus;
    struct kvm_cpuid2 *cpuid; /* what KVM supports on this host; CPUID_LIST_BYTES */
    unsigned nb_slots;   /* memory slots in use */
    bool has_vm_state;   /* the fields below hold the power-on state */
    struct kvm_irqchip irqchip[3];
    struct kvm_pit_state2 pit;
    bool clock_stopped;
    struct kvm_clock_data clock; /* while it is: where it goes on */
} Kvm;

#define KVM_INIT ((Kvm){ .dev_fd = -1, .vm_fd = -1 })

/* An extension that penstock uses, for start-up and `penstock check`. */
typedef struct KvmExtension {
    int cap;
    const char *name;
    const char *purpose;
    bool required;
} KvmExtension;
extern const KvmExtension kvm_extensions[];
extern const unsigned kvm_nb_extensions;

/* kvm_open - open /dev/kvm, check the API version, ask what it supports. Errors: -ENOENT, -EACCES
 * ... with what to do */
int kvm_open(Kvm *kvm, Error *err) NONNULL(1) WARN_UNUSED;
/* kvm_check_extensions - -ENOTSUP naming the first required extension that is missing */
int kvm_check_extensions(Kvm *kvm, Error *err) NONNULL(1) WARN_UNUSED;
/* Value of KVM_CHECK_EXTENSION, 0 when unknown. */
int kvm_extension(const Kvm *kvm, int cap) NONNULL(1);

/* kvm_create_vm - a VM with the interrupt controllers and the PIT in the kernel */
int kvm_create_vm(Kvm *kvm, Error *err) NONNULL(1) WARN_UNUSED;
int kvm_add_memory(Kvm *kvm, uint64_t gpa, uint64_t len_bytes, void *hva, Error *err)
    NONNULL(1, 4) WARN_UNUSED;
/* kvm_reset_vm - interrupt controllers and PIT back to power-on. vCPUs stopped. */
int kvm_reset_vm(Kvm *kvm, Error *err) NONNULL(1) WARN_UNUSED;
/* kvm_stop_clock, kvm_start_clock - the clock that KVM gives the guest (kvmclock) goes on from
 * where it was stopped; where KVM cannot do that it just goes on. vCPUs stopped. */
void kvm_stop_clock(Kvm *kvm) NONNULL(1);
void kvm_start_clock(Kvm *kvm) NONNULL(1);
void kvm_close(Kvm *kvm);

/* ioctl that returns -errno and goes on after EINTR */
int kvm_ioctl(int fd, unsigned long request, void *arg);

#endif
