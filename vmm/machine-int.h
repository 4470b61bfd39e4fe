/*
 * machine-int.h - shared by machine.c, disks.c and stats.c
 *
 * Layer:     vmm, private
 */
#ifndef VMM_MACHINE_INT_H
#define VMM_MACHINE_INT_H

#include "block/block-backend.h"
#include "devices/legacy.h"
#include "devices/serial.h"
#include "devices/virtio-mmio.h"
#include "devices/virtio-pci.h"
#include "io/aio/iothread.h"
#include "virtio/virtio-blk.h"
#include "vmm/control.h"
#include "vmm/kvm-platform.h"
#include "vmm/machine.h"
#include "vmm/vcpu.h"

/* What became of a request that the storage has failed. */
typedef enum DiskFailure {
    DISK_FAILURE_REPORT, /* the guest was told */
    DISK_FAILURE_IGNORE,
    DISK_FAILURE_STOP, /* it is held, the guest is to be stopped */
    DISK_NB_FAILURES,
} DiskFailure;

typedef struct Disk {
    Machine *machine;
    const char *id; /* of its configuration */
    struct {
        _Atomic int error; /* -errno that has not been told yet; 0 = none */
        int64_t told_ns;   /* main */
    } failed[2][DISK_NB_FAILURES]; /* reads and writes */
    BlockBackend *blk;
    VirtioBlk *vblk;
    VirtioPci *pci;   /* one of these two */
    VirtioMmio *mmio;
    unsigned mmio_index;
    unsigned nb_iothreads;
    IOThread *iothreads[CONFIG_QUEUES_MAX]; /* of each queue, a reference each */
} Disk;

struct Machine {
    MachineConfig *config; /* borrowed */
    AioContext *main;
    GuestMemory gm;
    Ram ram;
    bool ram_pinned; /* registered with the rings */
    Kvm kvm;
    KvmPlatform platform;
    Bus pio, mmio;
    Rtc *rtc;
    AcpiPm *pm;
    I8042 *i8042;
    Pvpanic *pvpanic;
    Serial *serial;
    PciHost *pci;
    unsigned nb_mmio_disks;
    unsigned nb_iothreads;
    IOThread *iothreads[AIO_CONTEXTS_MAX]; /* those that the command line names, then those that
                                              queues were given for themselves */
    unsigned nb_disks;
    Disk disks[CONFIG_DISKS_MAX];
    Vcpus *vcpus;
    int signal_fd;
    int signal_received; /* 0 = none */
    int64_t signal_ns;   /* when */
    bool at_rest;        /* the main loop waits for nothing in particular */
    bool end_asked; /* it ends because a client said so */
    RunState run;
    QmpTarget target; /* what the control socket's commands work on */
    Control *control; /* NULL = none */
    _Atomic bool disk_failed; /* somebody is to look at the disks */
    int64_t started_ns;
};

/* disks.c */
main_fn int disks_create(Machine *machine, bool *ret_usage, Error *err) NONNULL(1, 2) WARN_UNUSED;
/* Device, queues and transport back to power-on. vCPUs paused. */
void disks_reset(Machine *machine) NONNULL(1);
/* Tell of requests that have failed since the last call; of what is not to stop the guest, at most
 * once a second. True: a disk holds a request, which is to stop the guest. */
bool disks_take_failure(Machine *machine) NONNULL(1);
/* disks_halt - nothing is taken from a queue, and what was taken has ended, or is held because of
 * an error, and the guest's memory is written no more; vCPUs are parked. disks_go - the reverse;
 * held requests are made again. At first they are halted. Main, not in a coroutine: the first
 * one polls. */
main_fn void disks_halt(Machine *machine) NONNULL(1);
void disks_go(Machine *machine) NONNULL(1);
/* Returns the first error of the final flushes. */
main_fn int disks_destroy(Machine *machine, Error *err) NONNULL(1);

#endif
