/*
 * export-config.c - the options of `penstock export`
 */
#include "vmm/export-config.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "block/nbd/nbd-server.h"
#include "io/aio/aio-worker.h"

#define STOP_TIMEOUT_S 30
#define TIMEOUT_S_MAX  86400
#define ID_BYTES_MAX   32

const char export_help[] =
    "usage: penstock export --disk LIST [--disk LIST]... --nbd URI [options]\n"
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
    "  --tls-optional        clients may do without TLS though the URI is nbds:\n"
    "  --iothreads N         threads that share the connections (default: one a CPU, at most 4)\n"
    "  --max-connections N   at once (default 64)\n"
    "  --max-requests N      of a connection at once (default 64)\n"
    "  --connection-memory SIZE\n"
    "                        for data of a connection's requests, at least 1M (default 64M)\n"
    "  --handshake-timeout S seconds for a client to choose its export (default 10)\n"
    "  --stop-timeout S      seconds for clients to take their last answers (default 30)\n"
    "  --workers N           most worker threads, 1 to 1024 (default 64)\n"
    "  --fork                go to the background once clients can connect\n"
    "  --pid-file FILE       written before that, removed at the end\n"
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
    OPT_LOG_LEVEL,
    OPT_HELP,
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
    { "log-level", required_argument, NULL, OPT_LOG_LEVEL },
    { "help", no_argument, NULL, OPT_HELP },
    { NULL, 0, NULL, 0 },
};

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
    free(disk->name);
    free(disk->description);
    memset(disk, 0, sizeof(*disk));
}

static int parse_disk(ExportConfig *config, const char *text, Error *err)
{
    if (config->nb_disks == EXPORT_DISKS_MAX) {
        return error_set(err, -EINVAL, "--disk: more than %d", EXPORT_DISKS_MAX);
    }
    ExportDisk *disk = &config->disks[config->nb_disks];
    int ret = opts_parse(&disk->opts, "--disk", text, "path", err);

    if (ret < 0) {
        return ret;
    }
    if ((ret = take_id(config, disk, err)) < 0 ||
        (ret = take_text(disk, "name", &disk->name, err)) < 0 ||
        (ret = take_text(disk, "description", &disk->description, err)) < 0) {
        disk_finish(disk);
        return ret;
    }
    config->nb_disks++;
    return 0;
}

/* --- the others --- */

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

static int check_whole(const ExportConfig *config, Error *err)
{
    if (config->nb_disks == 0) {
        return error_set(err, -EINVAL, "--disk is missing; see penstock export --help");
    }
    return check_uris(config, err);
}

int export_config_parse(ExportConfig *config, int argc, char **argv, Error *err)
{
    int option, ret;

    memset(config, 0, sizeof(*config));
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
    free(config->pid_file);
    memset(config, 0, sizeof(*config));
}
