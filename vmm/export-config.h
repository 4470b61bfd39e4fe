/*
 * ExportConfig - what a command line of `penstock export` asks for
 *
 * Layer:     vmm
 * Threading: main thread.
 * Lifetime:  export_config_parse() .. export_config_finish(), when it failed, too; a disk's Opts
 *            are consumed when it is opened. Descriptors that nobody has taken over are closed.
 */
#ifndef VMM_EXPORT_CONFIG_H
#define VMM_EXPORT_CONFIG_H

#include "block/nbd/nbd-uri.h"
#include "io/base/log.h"
#include "io/base/opts.h"
#include "vmm/config.h"

#define EXPORT_DISKS_MAX     64
#define EXPORT_VHUS_MAX      64
#define EXPORT_URIS_MAX      16
#define EXPORT_IOTHREADS_MAX 64

typedef struct ExportDisk {
    Opts opts; /* what is left is for the block layer */
    char *id;
    char *label;       /* "--disk ID", where opts.what is that */
    char *name;        /* NULL = not said */
    char *description; /* NULL = none */
} ExportDisk;

/* A disk that is served on a vhost-user socket. */
typedef struct VhuConfig {
    char *disk_id;      /* NULL = not said */
    unsigned nb_before; /* disks on the command line before it */
    unsigned disk;      /* which one it is: its index */
    char *socket_path;  /* NULL: fd */
    int fd;             /* that was passed; -1 = none, or taken over */
    unsigned nb_queues; /* 0 = not said, likewise: */
    unsigned queue_size;
    unsigned seg_max;
    bool packed; /* offer packed rings */
    char *serial;          /* NULL = the disk's id */
    char *iothread_ids;    /* NULL = whichever threads there are; else, with colons between them: */
    unsigned nb_iothreads; /* queue i runs on iothreads[i % nb] */
    unsigned iothreads[CONFIG_QUEUES_MAX];
} VhuConfig;

typedef struct ExportConfig {
    unsigned nb_disks;
    ExportDisk disks[EXPORT_DISKS_MAX];
    unsigned nb_vhus;
    VhuConfig vhus[EXPORT_VHUS_MAX];
    unsigned nb_uris;
    NbdUri uris[EXPORT_URIS_MAX];
    bool tls_optional;
    unsigned nb_iothreads;    /* 0 = not said */
    unsigned nb_named_iothreads; /* if any, these are all */
    IOThreadConfig iothreads[EXPORT_IOTHREADS_MAX];
    unsigned max_connections; /* likewise */
    unsigned max_requests;
    uint64_t connection_memory_bytes;
    uint64_t handshake_timeout_s;
    uint64_t stop_timeout_s;
    unsigned max_workers;
    bool read_only; /* all disks */
    bool fork;
    char *pid_file;     /* NULL = none */
    char *control_path; /* likewise */
    LogLevel log_level;
    bool help;
    bool print_capabilities; /* and nothing else matters */
} ExportConfig;

/* export_config_parse - @argv[0] is passed over. Errors: -EINVAL naming the option and the value */
int export_config_parse(ExportConfig *config, int argc, char **argv, Error *err)
    NONNULL(1, 3) WARN_UNUSED;
void export_config_finish(ExportConfig *config);
/* export_config_name - what the export of disk @index is called */
const char *export_config_name(const ExportConfig *config, unsigned index) NONNULL(1);

extern const char export_help[];
/* What a vhost-user back end tells of itself. */
extern const char export_capabilities[];

#endif
