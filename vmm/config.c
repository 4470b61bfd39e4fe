/*
 * config.c - the options of `penstock run`
 *
 * An option that stands twice is an error unless it makes a list (--disk, --iothread). A disk's
 * list is taken apart here for what the machine decides (queues, threads, transport); the rest is
 * left in its Opts for the block layer, and the machine refuses what nobody asked for.
 */
#include "vmm/config.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "io/aio/aio-worker.h"
#include "io/base/cpu-list.h"
#include "vmm/vcpu.h"

#define RAM_DEFAULT_BYTES (512ull << 20)
#define POLL_MAX_NS_LIMIT 1000000000ull
#define QUEUE_SIZE_MIN    4 /* header, data and status fit */
#define QUEUE_SIZE_LIMIT  1024

const char config_run_help[] =
    "usage: penstock run --kernel FILE [options]\n"
    "\n"
    "  --kernel FILE         bzImage, 64-bit vmlinux, or an ELF file with a PVH entry\n"
    "  --initrd FILE         initial RAM disk\n"
    "  --append STRING       kernel command line\n"
    "  --cpus N              vCPUs, 1 to 64 (default 1)\n"
    "  --memory SIZE[,hugepages=on][,prealloc=on]\n"
    "                        guest RAM with K, M, G or T (default 512M)\n"
    "  --iothread id=ID[,poll-max-ns=N][,poll-grow=N][,poll-shrink=N]\n"
    "            [,poll-weight=N][,monitor=auto|io_uring|epoll][,cpu-affinity=CPUS]\n"
    "                        a thread for disk queues; polls up to 32768 ns before it sleeps;\n"
    "                        without io_uring, files are read and written by worker threads;\n"
    "                        it runs on the host's CPUS only, as in 0-3:8\n"
    "  --disk path=FILE|path=NBD-URI|driver=null,size=SIZE[,...]\n"
    "      id=ID             name in messages and thread names (default d0, d1, ...)\n"
    "      queues=N          virtqueues, 1 to 64 (default: one a vCPU)\n"
    "      queue-size=N      ring entries, a power of 2, 4 to 1024 (default 256)\n"
    "      seg-max=N         data segments a request\n"
    "      packed=on|off     offer packed rings, which the guest may choose (default off)\n"
    "      iothreads=A:B:... queue i runs on thread i modulo their number\n"
    "                        (default: a thread for each queue)\n"
    "      transport=pci|mmio\n"
    "      cache=none|writeback|writethrough, readonly=on, discard=unmap|ignore, serial=TEXT\n"
    "      locking=on|off|auto   (path=) one writer or many readers (default: where files have "
    "locks)\n"
    "      rerror=report|ignore|stop, werror=report|ignore|stop|enospc\n"
    "                        when the storage fails: tell the guest (default), do not, or stop it\n"
    "                        and try again at SIGCONT or Ctrl-A c\n"
    "      latency-ns=N, read-zeroes=on|off   (driver=null)\n"
    "      connections=N, reconnect-delay=S, open-timeout=S, drain-timeout=S   (NBD)\n"
    "      driver=nbd,host=HOST,port=PORT or socket=PATH, export=NAME, tls=on,\n"
    "      tls-certificates=DIR, tls-psk-file=FILE, tls-username=NAME, tls-hostname=NAME,\n"
    "      tls-verify-peer=0|1   the same without a URI\n"
    "      driver=throttle,file.path=FILE[,group=NAME], requests or bytes a second:\n"
    "      iops-total=N, iops-read=N, iops-write=N, bps-total=SIZE, bps-read=SIZE,\n"
    "      bps-write=SIZE; of each, for bursts: iops-total-max=N, iops-total-max-length=S\n"
    "      driver=faulty,file.path=FILE[,seed=N],rule0.op=OP,rule0.error=ERRNO,...\n"
    "                        a disk with errors and delays; see the manual\n"
    "      driver=log-writes,file.path=FILE,log=NEWFILE   writes down all that is written\n"
    "  --workers N           most worker threads, 1 to 1024 (default 64)\n"
    "  --no-reboot           a guest reset ends the run\n"
    "  --control PATH        a unix socket for penstock ctl and QMP clients\n"
    "  --stats FILE          write counters as JSON at the end (- is stderr)\n"
    "  --log-level error|warn|info|debug\n"
    "  --help\n"
    "\n"
    "The guest's first serial port is the terminal; Ctrl-A x quits, Ctrl-A c continues a guest\n"
    "that a disk error has stopped, Ctrl-A Ctrl-A sends Ctrl-A.\n"
    "\n"
    "exit status: 0 guest powered off, 1 host failure, 2 bad command line, 3 guest panic,\n"
    "4 guest reset with --no-reboot, 5 KVM could not run the guest, 128+N ended by signal N\n";

void config_init(MachineConfig *config)
{
    memset(config, 0, sizeof(*config));
    config->nb_cpus = 1;
    config->ram.len_bytes = RAM_DEFAULT_BYTES;
    config->log_level = LOG_LEVEL_WARN;
    config->max_workers = AIO_WORKERS_MAX_DEFAULT;
}

static void disk_finish(DiskConfig *disk)
{
    opts_finish(&disk->opts);
    free(disk->id);
    free(disk->label);
    free(disk->serial);
    for (unsigned i = 0; i < disk->nb_iothreads; i++) {
        free(disk->iothreads[i]);
    }
}

void config_finish(MachineConfig *config)
{
    if (!config) {
        return;
    }
    free(config->kernel);
    free(config->initrd);
    free(config->append);
    free(config->stats_path);
    free(config->control_path);
    for (unsigned i = 0; i < config->nb_iothreads; i++) {
        free(config->iothreads[i].id);
    }
    for (unsigned i = 0; i < config->nb_disks; i++) {
        disk_finish(&config->disks[i]);
    }
    memset(config, 0, sizeof(*config));
}

static int copy_string(char **ret_copy, const char *text, Error *err)
{
    *ret_copy = strdup(text);
    return *ret_copy ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static int set_once(char **slot, const char *option, const char *value, Error *err)
{
    if (*slot) {
        return error_set(err, -EINVAL, "--%s is given twice: '%s' and '%s'", option, *slot, value);
    }
    return copy_string(slot, value, err);
}

static bool is_valid_id(const char *id)
{
    return id[0] != '\0' && strlen(id) <= 32 &&
           strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") ==
               strlen(id);
}

static int check_id(const char *option, const char *id, Error *err)
{
    return is_valid_id(id) ? 0
                           : error_set(err, -EINVAL,
                                       "%s: id '%s' is not 1 to 32 letters, digits, '-', '_' or "
                                       "'.'",
                                       option, id);
}

/* --- --memory --- */

static int parse_memory(MachineConfig *config, const char *text, Error *err)
{
    Opts opts;
    int ret = opts_parse(&opts, "--memory", text, "size", err);

    if (ret < 0) {
        return ret;
    }
    if ((ret = opts_get_size(&opts, "size", RAM_MIN_BYTES, RAM_MAX_BYTES, &config->ram.len_bytes,
                             err)) == 0 &&
        (ret = opts_get_bool(&opts, "hugepages", &config->ram.hugepages, err)) == 0 &&
        (ret = opts_get_bool(&opts, "prealloc", &config->ram.prealloc, err)) == 0) {
        ret = opts_check_all_used(&opts, err);
    }
    if (ret == 0 && config->ram.len_bytes % 4096 != 0) {
        ret = error_set(err, -EINVAL, "--memory: %" PRIu64 " is not a multiple of 4096 bytes",
                        config->ram.len_bytes);
    }
    opts_finish(&opts);
    return ret;
}

/* --- --iothread --- */

static const IOThreadConfig *find_iothread(const MachineConfig *config, const char *id)
{
    for (unsigned i = 0; i < config->nb_iothreads; i++) {
        if (strcmp(config->iothreads[i].id, id) == 0) {
            return &config->iothreads[i];
        }
    }
    return NULL;
}

static int take_polling(Opts *opts, AioParams *params, Error *err)
{
    uint64_t max_ns = params->poll_max_ns, grow = params->poll_grow, shrink = params->poll_shrink;
    uint64_t weight = params->poll_weight;
    int ret;

    if ((ret = opts_get_u64(opts, "poll-max-ns", 0, POLL_MAX_NS_LIMIT, &max_ns, err)) < 0 ||
        (ret = opts_get_u64(opts, "poll-grow", 0, 1000, &grow, err)) < 0 ||
        (ret = opts_get_u64(opts, "poll-shrink", 0, 1000, &shrink, err)) < 0 ||
        (ret = opts_get_u64(opts, "poll-weight", 0, 16, &weight, err)) < 0) {
        return ret;
    }
    params->poll_max_ns = max_ns;
    params->poll_grow = grow;
    params->poll_shrink = shrink;
    params->poll_weight = weight;
    return 0;
}

static int take_monitor(Opts *opts, AioParams *params, Error *err)
{
    static const char *const names[] = { "auto", "io_uring", "epoll", NULL };
    static const AioMonitorKind kinds[] = { AIO_MONITOR_AUTO, AIO_MONITOR_IO_URING,
                                            AIO_MONITOR_EPOLL };
    int choice = 0;
    int ret = opts_get_enum(opts, "monitor", names, &choice, err);

    params->monitor = kinds[choice];
    return ret;
}

static int take_affinity(Opts *opts, IOThreadConfig *iothread, Error *err)
{
    const char *list = opts_get(opts, "cpu-affinity");

    iothread->pinned = list;
    return list ? cpu_list_parse("--iothread: cpu-affinity", list, &iothread->cpus, err) : 0;
}

int config_take_iothread(Opts *opts, IOThreadConfig *iothread, Error *err)
{
    int ret;

    iothread->params = (AioParams)AIO_PARAMS_POLLING;
    if ((ret = take_polling(opts, &iothread->params, err)) < 0 ||
        (ret = take_monitor(opts, &iothread->params, err)) < 0 ||
        (ret = take_affinity(opts, iothread, err)) < 0) {
        return ret;
    }
    return opts_check_all_used(opts, err);
}

static int fill_iothread(IOThreadConfig *iothread, Opts *opts, Error *err)
{
    const char *id = opts_get(opts, "id");
    int ret;

    if (!id) {
        return error_set(err, -EINVAL, "--iothread: id=ID is missing");
    }
    if ((ret = check_id("--iothread", id, err)) < 0) {
        return ret;
    }
    ret = config_take_iothread(opts, iothread, err);
    if (ret < 0) {
        return ret;
    }
    return copy_string(&iothread->id, id, err);
}

int config_parse_iothread(const char *text, IOThreadConfig *ret_iothread, Error *err)
{
    IOThreadConfig iothread = { .id = NULL };
    Opts opts;
    int ret = opts_parse(&opts, "--iothread", text, "id", err);

    if (ret < 0) {
        return ret;
    }
    ret = fill_iothread(&iothread, &opts, err);
    if (ret == 0) {
        *ret_iothread = iothread;
    }
    opts_finish(&opts);
    return ret;
}

static int parse_iothread(MachineConfig *config, const char *text, Error *err)
{
    IOThreadConfig *iothread = &config->iothreads[config->nb_iothreads];

    if (config->nb_iothreads == CONFIG_IOTHREADS_MAX) {
        return error_set(err, -EINVAL, "--iothread: more than %d", CONFIG_IOTHREADS_MAX);
    }
    int ret = config_parse_iothread(text, iothread, err);

    if (ret == 0 && find_iothread(config, iothread->id)) {
        ret = error_set(err, -EINVAL, "--iothread: id '%s' is given twice", iothread->id);
        free(take_ptr(&iothread->id));
    }
    if (ret == 0) {
        config->nb_iothreads++;
    }
    return ret;
}

/* --- --disk --- */

static int take_iothreads(DiskConfig *disk, const char *list, Error *err)
{
    AUTO_FREE char *copy = strdup(list);
    char *rest = copy, *name;

    if (!copy) {
        return error_set(err, -ENOMEM, "out of memory");
    }
    while ((name = strsep(&rest, ":")) != NULL) {
        if (disk->nb_iothreads == CONFIG_QUEUES_MAX) {
            return error_set(err, -EINVAL, "--disk: iothreads= names more than %d",
                             CONFIG_QUEUES_MAX);
        }
        int ret = check_id("--disk: iothreads=", name, err);

        if (ret == 0) {
            ret = copy_string(&disk->iothreads[disk->nb_iothreads], name, err);
        }
        if (ret < 0) {
            return ret;
        }
        disk->nb_iothreads++;
    }
    return 0;
}

static int take_disk_id(MachineConfig *config, DiskConfig *disk, Error *err)
{
    const char *id = opts_get(&disk->opts, "id");
    char default_id[16];

    snprintf(default_id, sizeof(default_id), "d%u", config->nb_disks);
    id = id ? id : default_id;
    int ret = check_id("--disk", id, err);

    for (unsigned i = 0; ret == 0 && i < config->nb_disks; i++) {
        if (strcmp(config->disks[i].id, id) == 0) {
            ret = error_set(err, -EINVAL, "--disk: id '%s' is given twice", id);
        }
    }
    if (ret == 0) {
        ret = copy_string(&disk->id, id, err);
    }
    if (ret == 0 && asprintf(&disk->label, "--disk %s", disk->id) < 0) {
        disk->label = NULL;
        ret = error_set(err, -ENOMEM, "out of memory");
    }
    if (ret == 0) {
        disk->opts.what = disk->label; /* from here on messages say which one */
    }
    return ret;
}

static int take_queues(DiskConfig *disk, Error *err)
{
    uint64_t queues = 0, size = 256, seg_max = 0;
    int ret;

    if ((ret = opts_get_u64(&disk->opts, "queues", 1, CONFIG_QUEUES_MAX, &queues, err)) < 0 ||
        (ret = opts_get_u64(&disk->opts, "queue-size", QUEUE_SIZE_MIN, QUEUE_SIZE_LIMIT, &size,
                            err)) < 0 ||
        (ret = opts_get_u64(&disk->opts, "seg-max", 1, QUEUE_SIZE_LIMIT - 2, &seg_max, err)) < 0 ||
        (ret = opts_get_bool(&disk->opts, "packed", &disk->packed, err)) < 0) {
        return ret;
    }
    if (!IS_POWER_OF_2(size)) {
        return error_set(err, -EINVAL, "--disk: queue-size=%" PRIu64 " is not a power of 2", size);
    }
    disk->nb_queues = queues;
    disk->queue_size = size;
    disk->seg_max = seg_max;
    return 0;
}

static int take_error_policies(DiskConfig *disk, Error *err)
{
    static const char *const policies[] = { "report", "ignore", "stop", "enospc", NULL };
    static const char *const read_policies[] = { "report", "ignore", "stop", NULL };
    int on_read = VIRTIO_BLK_REPORT, on_write = VIRTIO_BLK_REPORT;
    int ret = opts_get_enum(&disk->opts, "rerror", read_policies, &on_read, err);

    if (ret == 0) {
        ret = opts_get_enum(&disk->opts, "werror", policies, &on_write, err);
    }
    static_assert(VIRTIO_BLK_REPORT == 0 && VIRTIO_BLK_STOP_ENOSPC == 3, "index of policies[]");
    disk->on_read_error = (VirtioBlkOnError)on_read;
    disk->on_write_error = (VirtioBlkOnError)on_write;
    return ret;
}

static int fill_disk(MachineConfig *config, DiskConfig *disk, Error *err)
{
    static const char *const transports[] = { "pci", "mmio", NULL };
    int transport = 0;
    int ret;

    if ((ret = take_disk_id(config, disk, err)) < 0 || (ret = take_queues(disk, err)) < 0 ||
        (ret = opts_get_enum(&disk->opts, "transport", transports, &transport, err)) < 0 ||
        (ret = take_error_policies(disk, err)) < 0) {
        return ret;
    }
    disk->mmio = transport == 1;
    const char *list = opts_get(&disk->opts, "iothreads");

    if (list && (ret = take_iothreads(disk, list, err)) < 0) {
        return ret;
    }
    const char *serial = opts_get(&disk->opts, "serial");

    if (serial && strlen(serial) > 20) {
        return error_set(err, -EINVAL, "--disk: serial '%s' is longer than 20 bytes", serial);
    }
    return serial ? copy_string(&disk->serial, serial, err) : 0;
}

static int parse_disk(MachineConfig *config, const char *text, Error *err)
{
    if (config->nb_disks == CONFIG_DISKS_MAX) {
        return error_set(err, -EINVAL, "--disk: more than %d", CONFIG_DISKS_MAX);
    }
    DiskConfig *disk = &config->disks[config->nb_disks];
    int ret = opts_parse(&disk->opts, "--disk", text, "path", err);

    if (ret < 0) {
        return ret;
    }
    ret = fill_disk(config, disk, err);
    if (ret < 0) {
        disk_finish(disk);
        memset(disk, 0, sizeof(*disk));
        return ret;
    }
    config->nb_disks++;
    return 0;
}

/* --- the whole line --- */

enum {
    OPT_KERNEL = 256,
    OPT_INITRD,
    OPT_APPEND,
    OPT_CPUS,
    OPT_MEMORY,
    OPT_IOTHREAD,
    OPT_DISK,
    OPT_WORKERS,
    OPT_NO_REBOOT,
    OPT_STATS,
    OPT_CONTROL,
    OPT_LOG_LEVEL,
    OPT_HELP,
};

static const struct option run_options[] = {
    { "kernel", required_argument, NULL, OPT_KERNEL },
    { "initrd", required_argument, NULL, OPT_INITRD },
    { "append", required_argument, NULL, OPT_APPEND },
    { "cpus", required_argument, NULL, OPT_CPUS },
    { "memory", required_argument, NULL, OPT_MEMORY },
    { "iothread", required_argument, NULL, OPT_IOTHREAD },
    { "disk", required_argument, NULL, OPT_DISK },
    { "workers", required_argument, NULL, OPT_WORKERS },
    { "no-reboot", no_argument, NULL, OPT_NO_REBOOT },
    { "stats", required_argument, NULL, OPT_STATS },
    { "control", required_argument, NULL, OPT_CONTROL },
    { "log-level", required_argument, NULL, OPT_LOG_LEVEL },
    { "help", no_argument, NULL, OPT_HELP },
    { NULL, 0, NULL, 0 },
};

typedef struct Seen {
    bool cpus, memory, log_level, workers;
} Seen;

static int once(bool *seen, const char *option, Error *err)
{
    if (*seen) {
        return error_set(err, -EINVAL, "--%s is given twice", option);
    }
    *seen = true;
    return 0;
}

static int parse_cpus(MachineConfig *config, Error *err)
{
    uint64_t cpus = 0;
    int ret = opts_parse_u64("--cpus", optarg, 1, VCPUS_MAX, &cpus, err);

    config->nb_cpus = ret < 0 ? config->nb_cpus : cpus;
    return ret;
}

static int parse_workers(MachineConfig *config, Error *err)
{
    uint64_t workers = 0;
    int ret = opts_parse_u64("--workers", optarg, 1, AIO_WORKERS_MAX_LIMIT, &workers, err);

    config->max_workers = ret < 0 ? config->max_workers : workers;
    return ret;
}

static int parse_log_level(MachineConfig *config, Error *err)
{
    return log_level_parse(optarg, &config->log_level) < 0
               ? error_set(err, -EINVAL, "--log-level: '%s' is not error, warn, info or debug",
                           optarg)
               : 0;
}

static int parse_option(MachineConfig *config, int option, Seen *seen, Error *err)
{
    int ret;

    switch (option) {
    case OPT_KERNEL:
        return set_once(&config->kernel, "kernel", optarg, err);
    case OPT_INITRD:
        return set_once(&config->initrd, "initrd", optarg, err);
    case OPT_APPEND:
        return set_once(&config->append, "append", optarg, err);
    case OPT_STATS:
        return set_once(&config->stats_path, "stats", optarg, err);
    case OPT_CONTROL:
        return set_once(&config->control_path, "control", optarg, err);
    case OPT_CPUS:
        ret = once(&seen->cpus, "cpus", err);
        return ret < 0 ? ret : parse_cpus(config, err);
    case OPT_MEMORY:
        ret = once(&seen->memory, "memory", err);
        return ret < 0 ? ret : parse_memory(config, optarg, err);
    case OPT_WORKERS:
        ret = once(&seen->workers, "workers", err);
        return ret < 0 ? ret : parse_workers(config, err);
    case OPT_LOG_LEVEL:
        ret = once(&seen->log_level, "log-level", err);
        return ret < 0 ? ret : parse_log_level(config, err);
    case OPT_IOTHREAD:
        return parse_iothread(config, optarg, err);
    case OPT_DISK:
        return parse_disk(config, optarg, err);
    case OPT_NO_REBOOT:
        config->no_reboot = true;
        return 0;
    default:
        config->help = true;
        return 0;
    }
}

/* What can only be said once the whole line is known. */
static int check_whole(const MachineConfig *config, Error *err)
{
    if (!config->kernel) {
        return error_set(err, -EINVAL, "--kernel FILE is missing; see penstock run --help");
    }
    for (unsigned i = 0; i < config->nb_disks; i++) {
        const DiskConfig *disk = &config->disks[i];

        for (unsigned t = 0; t < disk->nb_iothreads; t++) {
            if (!find_iothread(config, disk->iothreads[t])) {
                return error_set(err, -EINVAL,
                                 "--disk %s: iothreads=%s: there is no --iothread id=%s", disk->id,
                                 disk->iothreads[t], disk->iothreads[t]);
            }
        }
    }
    return 0;
}

int config_parse(MachineConfig *config, int argc, char **argv, Error *err)
{
    Seen seen = { 0 };
    int option, ret;

    optind = 0; /* getopt_long starts afresh; argv[0] is passed over */
    opterr = 0;
    while ((option = getopt_long(argc, argv, "+:h", run_options, NULL)) != -1) {
        if (option == ':') {
            return error_set(err, -EINVAL, "%s needs a value", argv[optind - 1]);
        }
        if (option == '?') {
            return error_set(err, -EINVAL, "unknown option %s; see penstock run --help",
                             argv[optind - 1]);
        }
        if ((ret = parse_option(config, option == 'h' ? OPT_HELP : option, &seen, err)) < 0) {
            return ret;
        }
    }
    if (config->help) {
        return 0;
    }
    if (optind < argc) {
        return error_set(err, -EINVAL, "'%s' is not an option; see penstock run --help",
                         argv[optind]);
    }
    return check_whole(config, err);
}
