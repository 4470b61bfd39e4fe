/*
 * Vcpus - the guest's processors, a thread each, that only run KVM_RUN and answer exits
 *
 * Layer:     vmm
 * Threading: vcpus_* functions: main thread. A vCPU thread touches the buses, the platform's events
 *            and its own KVM descriptor; a register write that belongs to the main context is
 *            handed over by the device (aio_co_run_sync), so the main thread must keep polling
 *            its context while it waits for vCPUs (vcpus_pause does).
 * Lifetime:  vcpus_create() makes the vCPUs and their threads, paused. vcpus_destroy() ends both.
 *
 * Thread states, changed under `lock`:
 *
 *     PAUSED --vcpus_resume--> RUNNING --vcpus_pause--> (exit is finished) --> PAUSED
 *        \                        \--guest crashed: reports, then waits as PAUSED
 *         \--vcpus_destroy--> gone
 *
 * A thread parks only after a KVM_RUN that returned -EINTR: by then the previous exit (a port or
 * memory read, say) is complete in the kernel, and registers may be replaced.
 */
#ifndef VMM_VCPU_H
#define VMM_VCPU_H

#include "devices/platform.h"
#include "vmm/kvm.h"
#include "vmm/loader.h"

#define VCPUS_MAX 64

typedef struct Vcpus Vcpus;

/*
 * @image  guest RAM, for the instruction bytes of a failure report; borrowed
 * Errors: the failing ioctl, with its name
 */
Vcpus *vcpus_create(Kvm *kvm, Platform *platform, const GuestImage *image, unsigned nb_vcpus,
                    Error *err) NONNULL(1, 2, 3) WARN_UNUSED;
void vcpus_destroy(Vcpus *vcpus);

/* Power-on state everywhere, @entry in the first vCPU; the others wait for INIT. vCPUs paused. */
int vcpus_reset(Vcpus *vcpus, const BootEntry *entry, Error *err) NONNULL(1, 2) WARN_UNUSED;
void vcpus_resume(Vcpus *vcpus) NONNULL(1);
/* vcpus_tell_paused - have KVM tell the guest that it was stopped, so that its watchdogs do not
 * take the pause for a hang. vCPUs paused. */
void vcpus_tell_paused(Vcpus *vcpus) NONNULL(1);
/* Returns when every thread is parked; polls the main context meanwhile. */
void vcpus_pause(Vcpus *vcpus) NONNULL(1);

/* vcpus_failure - why a vCPU could not go on (several lines: reason, registers, instruction bytes,
 * hint); NULL while all can. The main context is notified when that changes. */
const char *vcpus_failure(Vcpus *vcpus) NONNULL(1);

#endif
