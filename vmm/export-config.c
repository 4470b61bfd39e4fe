/*
 * export-config.c - the options of `penstock export`
 *
 * A vhost-user socket serves the disk that it names or, if it names none, the only one, or the last
 * one before it. Names are looked up when the whole command line is known: the options that
 * management programs give to vhost-user back ends come in any order.
 */
#include "vmm/export-config.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "block/nbd/nbd-server.h"
#include "io/aio/aio-worker.h"

#define STOP_TIMEOUT_S 30
#define TIMEOUT_S_MAX  86400
#define ID_BYTES_MAX   32

const char export_help[] =
    "usage: penstock export --disk LIST [--nbd URI] [--vhost-user LIST] [options]\n"
    "\n"
    "Serves disks to other programs until SIGTERM or SIGINT; what is in flight then is finished,\n"
    "a second signal ends that.\n"
    "\n"
    "  --disk path=FILE|driver=NAME[,...]\n"
    "      name=NAME         of the export (default: the URI's; of several disks, their ids)\n"
    "      description=TEXT  what clients that list the exports are told\n"
    "      id=ID             name in messages (default d0, d1, ...)\n"
    "      cache=none|writeback|writethrough, readonly=on, discard=unmap|ignore\n"
    "  --nbd URI             where to listen; may be given several times:\n"
    "      nbd+unix:///[NAME]?socket=PATH   nbd://HOST[:PORT][/NAME]\n"
    "      nbds+unix:... nbds:...           clients have to use TLS;\n"
    "                        ?tls-certificates=DIR or ?tls-psk-file=FILE; tls-verify-peer=0: a\n"
    "                        client needs no certificate\n"
    "                        Sockets that a service manager passes (LISTEN_FDS) take the URIs' "
    "place.\n"
    "  --vhost-user socket-path=PATH|fd=N[,...]\n"
    "      a disk for hypervisors, as vhost-user-blk; may be given several times\n"
    "      disk=ID           which one (default: the last --disk before)\n"
    "      queues=N          most queues (default: one a CPU, at most 16)\n"
    "      iothreads=A:B:... queue i runs on thread i modulo their number\n"
    "      packed=on|off     offer packed rings as well (default on)\n"
    "      queue-size=N, seg-max=N, serial=TEXT\n"
    "  --socket-path PATH, --fd N, --blk-file PATH, --read-only, --print-capabilities\n"
    "                        the same in the words that management programs use\n"
    "  --iothread id=ID[,...]\n"
    "                        a thread, as in penstock run; with any, there are no others\n"
    "  --tls-optional        clients may do without TLS though the URI is nbds:\n"
    "  --iothreads N         io0, io1, ...: threads that share connections and queues\n"
    "                        (default: one a queue, but one a CPU, at most 4, for connections)\n"
    "  --max-connections N   at once (default 64)\n"
    "  --max-requests N      of a connection at once (default 64)\n"
    "  --connection-memory SIZE\n"
    "                        for data of a connection's requests, at least 1M (default 64M)\n"
    "  --handshake-timeout S seconds for a client to choose its export (default 10)\n"
    "  --stop-timeout S      seconds for clients to take their last answers (default 30)\n"
    "  --workers N           most worker threads, 1 to 1024 (default 64)\n"
    "  --fork                go to the background once clients can connect\n"
    "  --pid-file FILE       written before that, removed at the end\n"
    "  --control PATH        a unix socket for penstock ctl and QMP clients\n"
    "  --log-level error|warn|info|debug\n"
    "  --help\n"
    "\n"
    "exit status: 0 ended by a signal, 1 failure, 2 bad command line\n";

enum {
    OPT_DISK = 256,
    OPT_NBD,
    OPT_TLS_OPTIONAL,
    OPT_IOTHREADS,
    OPT_MAX_CONNECTIONS,
    OPT_MAX_REQUESTS,
    OPT_CONNECTION_MEMORY,
    OPT_HANDSHAKE_TIMEOUT,
    OPT_STOP_TIMEOUT,
    OPT_WORKERS,
    OPT_FORK,
    OPT_PID_FILE,
    OPT_CONTROL,
    OPT_LOG_LEVEL,
    OPT_HELP,
    OPT_VHOST_USER,
    OPT_IOTHREAD,
    OPT_SOCKET_PATH,
    OPT_FD,
    OPT_BLK_FILE,
    OPT_READ_ONLY,
    OPT_PRINT_CAPABILITIES,
};

static const struct option options[] = {
    { "disk", required_argument, NULL, OPT_DISK },
    { "nbd", required_argument, NULL, OPT_NBD },
    { "tls-optional", no_argument, NULL, OPT_TLS_OPTIONAL },
    { "iothreads", required_argument, NULL, OPT_IOTHREADS },
    { "max-connections", required_argument, NULL, OPT_MAX_CONNECTIONS },
    { "max-requests", required_argument, NULL, OPT_MAX_REQUESTS },
    { "connection-memory", required_argument, NULL, OPT_CONNECTION_MEMORY },
    { "handshake-timeout", required_argument, NULL, OPT_HANDSHAKE_TIMEOUT },
    { "stop-timeout", required_argument, NULL, OPT_STOP_TIMEOUT },
    { "workers", required_argument, NULL, OPT_WORKERS },
    { "fork", no_argument, NULL, OPT_FORK },
    { "pid-file", required_argument, NULL, OPT_PID_FILE },
    { "control", required_argument, NULL, OPT_CONTROL },
    { "log-level", required_argument, NULL, OPT_LOG_LEVEL },
    { "help", no_argument, NULL, OPT_HELP },
    { "vhost-user", required_argument, NULL, OPT_VHOST_USER },
    { "iothread", required_argument, NULL, OPT_IOTHREAD },
    { "socket-path", required_argument, NULL, OPT_SOCKET_PATH },
    { "fd", required_argument, NULL, OPT_FD },
    { "blk-file", required_argument, NULL, OPT_BLK_FILE },
    { "read-only", no_argument, NULL, OPT_READ_ONLY },
    { "print-capabilities", no_argument, NULL, OPT_PRINT_CAPABILITIES },
    { NULL, 0, NULL, 0 },
};

const char export_capabilities[] =
    "{\n  \"type\": \"block\",\n  \"features\": [\n    \"read-only\",\n    \"blk-file\"\n  ]\n}\n";

/* --- --disk --- */

static int copy_string(char **ret_copy, const char *text, Error *err)
{
    *ret_copy = strdup(text);
    return *ret_copy ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static int take_id(ExportConfig *config, ExportDisk *disk, Error *err)
{
    const char *id = opts_get(&disk->opts, "id");
    char default_id[16];

    snprintf(default_id, sizeof(default_id), "d%u", config->nb_disks);
    id = id ? id : default_id;
    if (id[0] == '\0' || strlen(id) > ID_BYTES_MAX) {
        return error_set(err, -EINVAL, "--disk: id '%s' is not 1 to %d bytes", id, ID_BYTES_MAX);
    }
    for (unsigned i = 0; i < config->nb_disks; i++) {
        if (strcmp(config->disks[i].id, id) == 0) {
            return error_set(err, -EINVAL, "--disk: id '%s' is given twice", id);
        }
    }
    return copy_string(&disk->id, id, err);
}

static int take_text(ExportDisk *disk, const char *key, char **ret_text, Error *err)
{
    const char *text = opts_get(&disk->opts, key);

    return text ? copy_string(ret_text, text, err) : 0;
}

static void disk_finish(ExportDisk *disk)
{
    opts_finish(&disk->opts);
    free(disk->id);
    free(disk->label);
    free(disk->name);
    free(disk->description);
    memset(disk, 0, sizeof(*disk));
}

static int add_disk(ExportConfig *config, ExportDisk *disk, Error *err)
{
    int ret;

    if ((ret = take_id(config, disk, err)) < 0 ||
        (ret = take_text(disk, "name", &disk->name, err)) < 0 ||
        (ret = take_text(disk, "description", &disk->description, err)) < 0) {
        disk_finish(disk);
        return ret;
    }
    config->nb_disks++;
    return 0;
}

static int parse_disk(ExportConfig *config, const char *text, Error *err)
{
    if (config->nb_disks == EXPORT_DISKS_MAX) {
        return error_set(err, -EINVAL, "--disk: more than %d", EXPORT_DISKS_MAX);
    }
    ExportDisk *disk = &config->disks[config->nb_disks];
    int ret = opts_parse(&disk->opts, "--disk", text, "path", err);

    if (ret < 0 || (ret = add_disk(config, disk, err)) < 0) {
        return ret;
    }
    if (asprintf(&disk->label, "--disk %s", disk->id) < 0) {
        disk->label = NULL;
        return error_set(err, -ENOMEM, "out of memory");
    }
    disk->opts.what = disk->label; /* from here on messages say which one */
    return 0;
}

/* The path as it stands, commas and all. */
static int parse_blk_file(ExportConfig *config, const char *path, Error *err)
{
    if (config->nb_disks == EXPORT_DISKS_MAX) {
        return error_set(err, -EINVAL, "--blk-file: more than %d disks", EXPORT_DISKS_MAX);
    }
    ExportDisk *disk = &config->disks[config->nb_disks];

    disk->opts.what = "--blk-file";
    int ret = opts_add(&disk->opts, "path", path, err);

    return ret < 0 ? ret : add_disk(config, disk, err);
}

/* --- --vhost-user --- */

static void vhu_finish(VhuConfig *vhu)
{
    free(vhu->disk_id);
    free(vhu->socket_path);
    free(vhu->serial);
    free(vhu->iothread_ids);
    if (vhu->fd >= 0) {
        close(vhu->fd);
    }
    *vhu = (VhuConfig){ .fd = -1 };
}

static int take_copy(Opts *opts, const char *key, char **ret_text, Error *err)
{
    const char *text = opts_get(opts, key);

    return text ? copy_string(ret_text, text, err) : 0;
}

static int take_number(Opts *opts, const char *key, uint64_t max, unsigned *ret_value, Error *err)
{
    uint64_t value = 0;
    int ret = opts_get_u64(opts, key, 1, max, &value, err);

    *ret_value = ret < 0 ? 0 : (unsigned)value;
    return ret;
}

/* It is ours from here on, so nobody that we start gets it. */
static int take_socket(VhuConfig *vhu, uint64_t fd, Error *err)
{
    if (fcntl((int)fd, F_SETFD, FD_CLOEXEC) < 0) {
        return error_set(err, -EINVAL, "--vhost-user: descriptor %d: %s", (int)fd,
                         error_strerror(errno));
    }
    vhu->fd = (int)fd;
    return 0;
}

static int fill_vhu(VhuConfig *vhu, Opts *opts, Error *err)
{
    uint64_t fd = UINT64_MAX;
    int ret;

    if ((ret = take_copy(opts, "socket-path", &vhu->socket_path, err)) < 0 ||
        (ret = opts_get_u64(opts, "fd", 0, INT32_MAX, &fd, err)) < 0 ||
        (ret = take_copy(opts, "disk", &vhu->disk_id, err)) < 0 ||
        (ret = take_number(opts, "queues", CONFIG_QUEUES_MAX, &vhu->nb_queues, err)) < 0 ||
        (ret = take_number(opts, "queue-size", VQ_SIZE_MAX, &vhu->queue_size, err)) < 0 ||
        (ret = take_number(opts, "seg-max", UINT16_MAX, &vhu->seg_max, err)) < 0 ||
        (ret = opts_get_bool(opts, "packed", &vhu->packed, err)) < 0 ||
        (ret = take_copy(opts, "serial", &vhu->serial, err)) < 0 ||
        (ret = take_copy(opts, "iothreads", &vhu->iothread_ids, err)) < 0 ||
        (ret = opts_check_all_used(opts, err)) < 0) {
        return ret;
    }
    if ((vhu->socket_path != NULL) == (fd != UINT64_MAX)) {
        return error_set(err, -EINVAL, "--vhost-user: either socket-path=PATH or fd=N is needed");
    }
    return fd == UINT64_MAX ? 0 : take_socket(vhu, fd, err);
}

static VhuConfig *new_vhu(ExportConfig *config, Error *err)
{
    VhuConfig *vhu = &config->vhus[config->nb_vhus];

    if (config->nb_vhus == EXPORT_VHUS_MAX) {
        error_set(err, -EINVAL, "--vhost-user: more than %d", EXPORT_VHUS_MAX);
        return NULL;
    }
    *vhu = (VhuConfig){ .fd = -1, .nb_before = config->nb_disks, .packed = true };
    config->nb_vhus++;
    return vhu;
}

static int parse_vhu(ExportConfig *config, const char *text, Error *err)
{
    VhuConfig *vhu = new_vhu(config, err);
    Opts opts;
    int ret = vhu ? opts_parse(&opts, "--vhost-user", text, "socket-path", err) : -EINVAL;

    if (ret == 0) {
        ret = fill_vhu(vhu, &opts, err);
        opts_finish(&opts);
    }
    return ret;
}

static int parse_socket_path(ExportConfig *config, const char *path, Error *err)
{
    VhuConfig *vhu = new_vhu(config, err);

    return vhu ? copy_string(&vhu->socket_path, path, err) : -EINVAL;
}

static int parse_fd(ExportConfig *config, const char *text, Error *err)
{
    VhuConfig *vhu = new_vhu(config, err);
    uint64_t fd;
    int ret = vhu ? opts_parse_u64("--fd", text, 0, INT32_MAX, &fd, err) : -EINVAL;

    return ret < 0 ? ret : take_socket(vhu, fd, err);
}

/* --- the others --- */

static int parse_iothread(ExportConfig *config, const char *text, Error *err)
{
    IOThreadConfig *iothread = &config->iothreads[config->nb_named_iothreads];

    if (config->nb_named_iothreads == EXPORT_IOTHREADS_MAX) {
        return error_set(err, -EINVAL, "--iothread: more than %d", EXPORT_IOTHREADS_MAX);
    }
    int ret = config_parse_iothread(text, iothread, err);

    if (ret < 0) {
        return ret;
    }
    config->nb_named_iothreads++;
    for (unsigned i = 0; i + 1 < config->nb_named_iothreads; i++) {
        if (strcmp(config->iothreads[i].id, iothread->id) == 0) {
            return error_set(err, -EINVAL, "--iothread: id '%s' is given twice", iothread->id);
        }
    }
    return 0;
}

static int parse_uri(ExportConfig *config, const char *text, Error *err)
{
    if (config->nb_uris == EXPORT_URIS_MAX) {
        return error_set(err, -EINVAL, "--nbd: more than %d", EXPORT_URIS_MAX);
    }
    int ret = nbd_uri_parse("--nbd", text, &config->uris[config->nb_uris], err);

    if (ret == 0) {
        config->nb_uris++;
    }
    return ret;
}

static int parse_unsigned(const char *option, const char *text, unsigned max, unsigned *slot,
                          Error *err)
{
    uint64_t value = 0;
    int ret = opts_parse_u64(option, text, 1, max, &value, err);

    *slot = ret < 0 ? *slot : (unsigned)value;
    return ret;
}

static int parse_option(ExportConfig *config, int option, const char *text, Error *err)
{
    switch (option) {
    case OPT_DISK:
        return parse_disk(config, text, err);
    case OPT_NBD:
        return parse_uri(config, text, err);
    case OPT_IOTHREADS:
        return parse_unsigned("--iothreads", text, EXPORT_IOTHREADS_MAX, &config->nb_iothreads,
                              err);
    case OPT_MAX_CONNECTIONS:
        return parse_unsigned("--max-connections", text, 65536, &config->max_connections, err);
    case OPT_MAX_REQUESTS:
        return parse_unsigned("--max-requests", text, NBD_SERVER_REQUESTS_LIMIT,
                              &config->max_requests, err);
    case OPT_CONNECTION_MEMORY:
        return opts_parse_size("--connection-memory", text, NBD_SERVER_MEMORY_MIN, 1ull << 40,
                               &config->connection_memory_bytes, err);
    case OPT_HANDSHAKE_TIMEOUT:
        return opts_parse_u64("--handshake-timeout", text, 1, TIMEOUT_S_MAX,
                              &config->handshake_timeout_s, err);
    case OPT_STOP_TIMEOUT:
        return opts_parse_u64("--stop-timeout", text, 0, TIMEOUT_S_MAX, &config->stop_timeout_s,
                              err);
    case OPT_WORKERS:
        return parse_unsigned("--workers", text, AIO_WORKERS_MAX_LIMIT, &config->max_workers, err);
    case OPT_PID_FILE:
        return config->pid_file ? error_set(err, -EINVAL, "--pid-file is given twice")
                                : copy_string(&config->pid_file, text, err);
    case OPT_CONTROL:
        return config->control_path ? error_set(err, -EINVAL, "--control is given twice")
                                    : copy_string(&config->control_path, text, err);
    case OPT_LOG_LEVEL:
        return log_level_parse(text, &config->log_level) < 0
                   ? error_set(err, -EINVAL, "--log-level: '%s' is not error, warn, info or debug",
                               text)
                   : 0;
    case OPT_TLS_OPTIONAL:
        config->tls_optional = true;
        return 0;
    case OPT_FORK:
        config->fork = true;
        return 0;
    case OPT_VHOST_USER:
        return parse_vhu(config, text, err);
    case OPT_IOTHREAD:
        return parse_iothread(config, text, err);
    case OPT_SOCKET_PATH:
        return parse_socket_path(config, text, err);
    case OPT_FD:
        return parse_fd(config, text, err);
    case OPT_BLK_FILE:
        return parse_blk_file(config, text, err);
    case OPT_READ_ONLY:
        config->read_only = true;
        return 0;
    default:
        config->help = true;
        return 0;
    }
}

const char *export_config_name(const ExportConfig *config, unsigned index)
{
    const ExportDisk *disk = &config->disks[index];

    if (disk->name) {
        return disk->name;
    }
    if (config->nb_disks > 1) {
        return disk->id;
    }
    return config->nb_uris > 0 ? config->uris[0].export_name : "";
}

static int check_uris(const ExportConfig *config, Error *err)
{
    for (unsigned i = 0; i < config->nb_uris; i++) {
        const NbdUri *uri = &config->uris[i];

        if (uri->tls != config->uris[0].tls) {
            return error_set(err, -EINVAL,
                             "--nbd: some URIs have TLS and some do not; see "
                             "--tls-optional");
        }
        if (uri->export_name[0] && (config->nb_disks > 1 || config->disks[0].name ||
                                    strcmp(uri->export_name, config->uris[0].export_name) != 0)) {
            return error_set(err, -EINVAL,
                             "--nbd: the URI names an export, '%s', but so does "
                             "another option; see --disk name=",
                             uri->export_name);
        }
    }
    if (config->tls_optional && (config->nb_uris == 0 || !config->uris[0].tls)) {
        return error_set(err, -EINVAL, "--tls-optional needs a URI that begins with nbds");
    }
    return 0;
}

static int find_disk(const ExportConfig *config, VhuConfig *vhu, Error *err)
{
    for (unsigned i = 0; vhu->disk_id && i < config->nb_disks; i++) {
        if (strcmp(config->disks[i].id, vhu->disk_id) == 0) {
            vhu->disk = i;
            return 0;
        }
    }
    if (vhu->disk_id) {
        return error_set(err, -EINVAL, "--vhost-user: there is no disk '%s'", vhu->disk_id);
    }
    if (vhu->nb_before == 0 && config->nb_disks > 1) {
        return error_set(err, -EINVAL,
                         "--vhost-user: which disk? It comes before the first one and has no "
                         "disk=ID");
    }
    vhu->disk = vhu->nb_before > 0 ? vhu->nb_before - 1 : 0;
    return 0;
}

/* io0, io1, ... are the ids of threads that have no other. */
static int find_iothread(const ExportConfig *config, const char *id)
{
    unsigned nb = config->nb_named_iothreads ? config->nb_named_iothreads : config->nb_iothreads;
    char default_id[16];

    for (unsigned i = 0; i < nb; i++) {
        snprintf(default_id, sizeof(default_id), "io%u", i);
        if (strcmp(config->nb_named_iothreads ? config->iothreads[i].id : default_id, id) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static int find_iothreads(const ExportConfig *config, VhuConfig *vhu, Error *err)
{
    char *rest = vhu->iothread_ids, *id;

    while ((id = strsep(&rest, ":")) != NULL) {
        int index = find_iothread(config, id);

        if (index < 0) {
            return error_set(err, -EINVAL, "--vhost-user: iothreads: there is no thread '%s'", id);
        }
        if (vhu->nb_iothreads == CONFIG_QUEUES_MAX) {
            return error_set(err, -EINVAL, "--vhost-user: iothreads= names more than %d",
                             CONFIG_QUEUES_MAX);
        }
        vhu->iothreads[vhu->nb_iothreads++] = (unsigned)index;
    }
    return 0;
}

static int check_vhus(ExportConfig *config, Error *err)
{
    for (unsigned i = 0; i < config->nb_vhus; i++) {
        int ret = find_disk(config, &config->vhus[i], err);

        if (ret < 0 || (ret = find_iothreads(config, &config->vhus[i], err)) < 0) {
            return ret;
        }
    }
    return 0;
}

static int set_read_only(ExportConfig *config, Error *err)
{
    int ret = 0;

    for (unsigned i = 0; config->read_only && ret == 0 && i < config->nb_disks; i++) {
        Opts *opts = &config->disks[i].opts;

        if (!opts_has(opts, "readonly")) {
            ret = opts_add(opts, "readonly", "on", err);
        }
    }
    return ret;
}

static int check_whole(ExportConfig *config, Error *err)
{
    int ret;

    if (config->nb_disks == 0) {
        return error_set(err, -EINVAL, "--disk is missing; see penstock export --help");
    }
    if (config->nb_named_iothreads > 0 && config->nb_iothreads > 0) {
        return error_set(err, -EINVAL, "--iothreads and --iothread do not go together");
    }
    if ((ret = set_read_only(config, err)) < 0 || (ret = check_vhus(config, err)) < 0) {
        return ret;
    }
    return check_uris(config, err);
}

/* Whatever else is on the command line, by convention. */
static bool asks_for_capabilities(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--print-capabilities") == 0) {
            return true;
        }
    }
    return false;
}

int export_config_parse(ExportConfig *config, int argc, char **argv, Error *err)
{
    int option, ret;

    memset(config, 0, sizeof(*config));
    config->print_capabilities = asks_for_capabilities(argc, argv);
    if (config->print_capabilities) {
        return 0;
    }
    config->log_level = LOG_LEVEL_WARN;
    config->max_workers = AIO_WORKERS_MAX_DEFAULT;
    config->stop_timeout_s = STOP_TIMEOUT_S;
    optind = 0; /* getopt_long starts afresh; argv[0] is passed over */
    opterr = 0;
    while ((option = getopt_long(argc, argv, "+:h", options, NULL)) != -1) {
        if (option == ':' || option == '?') {
            return error_set(err, -EINVAL,
                             option == ':' ? "%s needs a value"
                                           : "unknown option %s; see penstock export "
                                             "--help",
                             argv[optind - 1]);
        }
        if ((ret = parse_option(config, option, optarg, err)) < 0) {
            return ret;
        }
    }
    if (config->help) {
        return 0;
    }
    if (optind < argc) {
        return error_set(err, -EINVAL, "'%s' is not an option; see penstock export --help",
                         argv[optind]);
    }
    return check_whole(config, err);
}

void export_config_finish(ExportConfig *config)
{
    for (unsigned i = 0; i < config->nb_disks; i++) {
        disk_finish(&config->disks[i]);
    }
    for (unsigned i = 0; i < config->nb_uris; i++) {
        nbd_uri_finish(&config->uris[i]);
    }
    for (unsigned i = 0; i < config->nb_vhus; i++) {
        vhu_finish(&config->vhus[i]);
    }
    for (unsigned i = 0; i < config->nb_named_iothreads; i++) {
        free(config->iothreads[i].id);
    }
    free(config->pid_file);
    free(config->control_path);
    memset(config, 0, sizeof(*config));
}
