/*
 * KvmPlatform - the Platform that devices see, on KVM: interrupt lines, MSI routes, doorbells
 *
 * Layer:     vmm
 * Threading: as devices/platform.h says for each call. The routing table is under `lock`; it is
 *            changed as a whole by KVM_SET_GSI_ROUTING, which is rare (a vector is set up or
 *            masked).
 * Lifetime:  embedded in the machine; kvm_platform_init() .. kvm_platform_finish().
 */
#ifndef VMM_KVM_PLATFORM_H
#define VMM_KVM_PLATFORM_H

#include <pthread.h>

#include "devices/platform.h"
#include "io/base/log.h"
#include "vmm/kvm.h"

#define KVM_PLATFORM_ROUTES_MAX 2048 /* 24 disks of 64 queues, a vector each and one more a disk */

typedef struct KvmPlatform {
    pthread_mutex_t lock; /* protects routing, msi and log_limit */
    struct kvm_irq_routing *routing; /* the fixed lines first, then the MSI routes in use */
    unsigned nb_fixed;
    struct {
        bool used;
        bool attached; /* the route is in the table and the eventfd is connected */
        uint64_t address;
        uint32_t data;
    } msi[KVM_PLATFORM_ROUTES_MAX]; /* GSI = KVM_PLATFORM_MSI_GSI + index */
    unsigned nb_routes_max;
    LogLimit log_limit; /* of what the kernel refuses: guests ask for it */
    Kvm *kvm;
    AioClock clock;    /* the guest's; stopped at first */
    Platform platform; /* for the devices */
    _Atomic unsigned events; /* bits: 1 << PlatformEvent; taken by the machine's main loop */
} KvmPlatform;

int kvm_platform_init(KvmPlatform *kp, Kvm *kvm, Bus *pio, Bus *mmio, AioContext *main, Error *err)
    NONNULL(1, 2, 3, 4, 5) WARN_UNUSED;
void kvm_platform_finish(KvmPlatform *kp);

/* kvm_platform_take_events - the events since the last call. Main. */
unsigned kvm_platform_take_events(KvmPlatform *kp) NONNULL(1);

#endif
