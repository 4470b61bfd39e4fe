/*
 * Machine - a whole virtual machine: RAM, KVM, vCPUs, devices, disks and their IOThreads
 *
 * Layer:     vmm
 * Threading: main thread; the main AioContext is its own.
 * Lifetime:  machine_create() opens and connects everything the configuration names and loads
 *            the kernel; machine_run() runs it to its end; machine_destroy() gives all back, in
 *            reverse order, whatever the state.
 *
 * Who waits for whom: vCPU threads wait for the main context (register writes), the main context
 * waits for IOThreads (starting and stopping queues) and, while it polls, for vCPU threads
 * (pausing). IOThreads wait for nobody.
 */
#ifndef VMM_MACHINE_H
#define VMM_MACHINE_H

#include "vmm/config.h"

typedef struct Machine Machine;

/* Exit statuses of `penstock run`; documented in penstock(1). A signal adds 128 to its number. */
typedef enum MachineExit {
    MACHINE_EXIT_POWER_OFF = 0,
    MACHINE_EXIT_HOST_FAILURE = 1,
    MACHINE_EXIT_USAGE = 2,
    MACHINE_EXIT_PANIC = 3,
    MACHINE_EXIT_RESET = 4,
    MACHINE_EXIT_GUEST_STUCK = 5,
    MACHINE_EXIT_SIGNAL = 128,
} MachineExit;

/* @ret_usage  set when the failure is the command line's fault (an unknown disk option) */
main_fn Machine *machine_create(MachineConfig *config, bool *ret_usage, Error *err) NONNULL(1, 2)
    WARN_UNUSED;

/* machine_run - returns an exit status; @err is set when that is MACHINE_EXIT_HOST_FAILURE */
int machine_run(Machine *machine, Error *err) NONNULL(1);
/* Several lines about why the guest could not go on; NULL when it is not so. */
const char *machine_report(Machine *machine) NONNULL(1);

/* machine_check_stats - whether @path could be written at the end of the run, as far as can be told
 * without making it */
int machine_check_stats(const char *path, Error *err) NONNULL(1, 2) WARN_UNUSED;
/* Counters as JSON. */
main_fn int machine_write_stats(Machine *machine, const char *path, Error *err) NONNULL(1, 2)
    WARN_UNUSED;

/* Returns 0, or -errno when a disk's last flush failed: what the guest wrote may be lost. */
main_fn int machine_destroy(Machine *machine, Error *err);

#endif
