/*
 * MachineConfig - what a command line asks for, checked as far as it can be without opening
 * anything
 *
 * Layer:     vmm
 * Threading: main thread.
 * Lifetime:  config_init() .. config_finish(); a disk's Opts are consumed when the machine opens
 *            it.
 */
#ifndef VMM_CONFIG_H
#define VMM_CONFIG_H

#include <sched.h>

#include "io/aio/aio.h"
#include "io/base/log.h"
#include "io/base/opts.h"
#include "virtio/virtio-blk.h"
#include "vmm/ram.h"

#define CONFIG_DISKS_MAX     24
#define CONFIG_IOTHREADS_MAX 128
#define CONFIG_QUEUES_MAX    64

typedef struct IOThreadConfig {
    char *id;
    AioParams params;
    bool pinned;    /* to these CPUs, that is; else it runs where penstock may */
    cpu_set_t cpus;
} IOThreadConfig;

typedef struct DiskConfig {
    Opts opts;            /* what is left is for the block layer */
    char *id;
    char *label;          /* "--disk ID": opts.what */
    char *serial;         /* NULL = the id */
    unsigned nb_queues;   /* 0 = one for each vCPU */
    unsigned queue_size;
    unsigned seg_max;     /* 0 = default */
    bool packed;          /* offer packed rings */
    bool mmio;            /* transport=mmio */
    VirtioBlkOnError on_read_error, on_write_error;
    unsigned nb_iothreads; /* queue i runs on iothreads[i % nb]; 0 = one thread for each queue */
    char *iothreads[CONFIG_QUEUES_MAX];
} DiskConfig;

typedef struct MachineConfig {
    char *kernel, *initrd, *append;
    unsigned nb_cpus;
    RamParams ram;
    unsigned nb_iothreads;
    IOThreadConfig iothreads[CONFIG_IOTHREADS_MAX];
    unsigned nb_disks;
    DiskConfig disks[CONFIG_DISKS_MAX];
    unsigned max_workers; /* threads for calls that block */
    bool no_reboot;
    char *stats_path; /* NULL = none, "-" = stderr */
    char *control_path; /* of the control socket; NULL = none */
    LogLevel log_level;
    bool help;
} MachineConfig;

void config_init(MachineConfig *config) NONNULL(1);
void config_finish(MachineConfig *config);

/* config_parse - the arguments after `run`. Errors: -EINVAL naming the option and the value. */
int config_parse(MachineConfig *config, int argc, char **argv, Error *err) NONNULL(1, 3)
    WARN_UNUSED;

/* config_take_iothread - polling, monitor and CPUs of an --iothread list whose id has been taken,
 * and nothing else; -EINVAL */
int config_take_iothread(Opts *opts, IOThreadConfig *iothread, Error *err) NONNULL(1, 2)
    WARN_UNUSED;

/* config_parse_iothread - a whole --iothread list; @ret_iothread->id is the caller's to free. -EINVAL
 */
int config_parse_iothread(const char *text, IOThreadConfig *ret_iothread, Error *err)
    NONNULL(1, 2) WARN_UNUSED;

extern const char config_run_help[];

#endif
