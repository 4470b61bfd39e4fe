/*
 * vcpu-int.h - shared by vcpu.c (threads, exits), vcpu-state.c (registers) and vcpu-report.c
 *
 * Layer:     vmm, private
 */
#ifndef VMM_VCPU_INT_H
#define VMM_VCPU_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "vmm/vcpu.h"

#define VCPU_REPORT_BYTES 2048

/* State right after creation, for reset. */
typedef struct VcpuPowerOn {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_fpu fpu;
    struct kvm_lapic_state lapic;
    struct kvm_vcpu_events events;
    struct kvm_debugregs debugregs;
    uint32_t xsave[sizeof(struct kvm_xsave) / sizeof(uint32_t)]; /* the struct has no fixed end */
    struct kvm_xcrs xcrs;
    bool has_debugregs, has_xsave, has_xcrs;
} VcpuPowerOn;

typedef struct Vcpu {
    Vcpus *vcpus;
    unsigned index;
    int fd;
    struct kvm_run *run; /* shared with the kernel; NULL until mapped */
    pthread_t thread;
    bool thread_started;
    VcpuPowerOn power_on;
} Vcpu;

struct Vcpus {
    pthread_mutex_t lock; /* protects pause, stop, nb_running, report */
    pthread_cond_t resumed;
    bool pause;
    bool stop;
    _Atomic unsigned nb_running; /* written under lock, polled by vcpus_pause() */
    _Atomic bool failed; /* then `report` is complete and does not change */
    char report[VCPU_REPORT_BYTES];

    Kvm *kvm;
    Platform *platform;
    const GuestImage *image;
    unsigned nb_vcpus;
    Vcpu vcpu[VCPUS_MAX];
};

/* vcpu-state.c */
int vcpu_setup_cpuid(Vcpu *vcpu, Error *err) NONNULL(1) WARN_UNUSED;
int vcpu_save_power_on(Vcpu *vcpu, Error *err) NONNULL(1) WARN_UNUSED;
int vcpu_load_power_on(Vcpu *vcpu, Error *err) NONNULL(1) WARN_UNUSED;
int vcpu_load_entry(Vcpu *vcpu, const BootEntry *entry, Error *err) NONNULL(1, 2) WARN_UNUSED;

/* vcpu-report.c: says in words why this vCPU cannot go on; called in its own thread */
void vcpu_report_failure(Vcpu *vcpu, int run_result, char *ret_report, size_t report_bytes)
    NONNULL(1, 3);

#endif
