/*
 * cmd-export.c - `penstock export`: open disks, serve them, end when told to
 *
 *     signal --> stop coroutine: no new connections, what is in flight is finished --> disks close
 *     second signal --> connections are cut
 */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>

#include "block/nbd/nbd-server.h"
#include "io/aio/aio-worker.h"
#include "io/aio/iothread.h"
#include "io/base/thread.h"
#include "vmm/cmd.h"
#include "vmm/export-config.h"
#include "vmm/machine.h"
#include "vmm/service.h"

#define DEFAULT_IOTHREADS_MAX 4

typedef struct Export {
    ExportConfig config;
    Service service;
    int socket_fds[SERVICE_FDS_MAX]; /* that were passed; -1 = taken over */
    int nb_sockets;
    AioContext *main;
    int signal_fd;
    IOThread *iothreads[EXPORT_IOTHREADS_MAX];
    unsigned nb_iothreads;
    BlockBackend *blks[EXPORT_DISKS_MAX];
    NbdServer *server;
    bool usage; /* a failure is the command line's fault */
    bool stopping, stopped;
} Export;

/* --- the end --- */

static co_fn void stop_entry(void *opaque)
{
    Export *export = opaque;

    assert_main();
    int64_t deadline_ns = aio_now_ns() + (int64_t) export->config.stop_timeout_s * 1000000000;

    if (nbd_server_co_stop(export->server, deadline_ns) < 0) {
        cmd_complain("export: not all clients have taken their last answers");
    }
    export->stopped = true;
}

static void signal_cb(void *opaque)
{
    Export *export = opaque;
    struct signalfd_siginfo info;

    assert_main();
    if (read(export->signal_fd, &info, sizeof(info)) != sizeof(info)) {
        return;
    }
    if (export->stopping) {
        nbd_server_abort(export->server);
        return;
    }
    export->stopping = true;
    service_stopping();
    Coroutine *co = co_create(stop_entry, export);

    if (co) {
        co_enter(co);
    } else {
        cmd_complain("export: out of memory");
        export->stopping = false; /* the next signal tries again */
    }
}

/* --- the beginning --- */

static int open_signals(Export *export, Error *err)
{
    static const AioHandlerOps ops = { .read = signal_cb };
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL); /* before the first thread, so that none gets them */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    export->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (export->signal_fd < 0) {
        return error_set(err, -errno, "signalfd: %s", error_strerror(errno));
    }
    aio_set_fd_handler(export->main, export->signal_fd, &ops, export);
    return 0;
}

static int open_main_context(Export *export, Error *err)
{
    export->main = aio_context_create("main", NULL, err);
    if (!export->main) {
        return -EIO;
    }
    aio_context_enter(export->main);
    aio_context_set_main(export->main);
    return 0;
}

static unsigned default_iothreads(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) < 0) {
        return 1;
    }
    return MIN((unsigned)CPU_COUNT(&set), (unsigned)DEFAULT_IOTHREADS_MAX);
}

static main_fn int create_iothreads(Export *export, Error *err)
{
    unsigned nb = export->config.nb_iothreads ? export->config.nb_iothreads : default_iothreads();
    AioParams params = AIO_PARAMS_POLLING;

    for (unsigned i = 0; i < nb; i++) {
        char id[16];

        snprintf(id, sizeof(id), "nbd%u", i);
        export->iothreads[i] = iothread_create(id, &params, err);
        if (!export->iothreads[i]) {
            return -EIO;
        }
        export->nb_iothreads++;
    }
    return 0;
}

static int open_disk(Export *export, unsigned index, Error *err)
{
    ExportDisk *disk = &export->config.disks[index];
    Error reason;
    int ret;

    export->blks[index] = blk_open(disk->id, &disk->opts, &reason);
    if (!export->blks[index]) {
        export->usage = reason.code == -EINVAL; /* a bad value; files fail with other codes */
        return error_set(err, reason.code, "--disk %s: %s", disk->id, reason.msg);
    }
    if ((ret = opts_check_all_used(&disk->opts, &reason)) < 0) {
        export->usage = true;
        return error_set(err, ret, "%s", reason.msg);
    }
    return 0;
}

static main_fn int add_exports(Export *export, Error *err)
{
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < export->config.nb_disks; i++) {
        NbdExportParams params = {
            .name = export_config_name(&export->config, i),
            .description = export->config.disks[i].description,
        };

        ret = open_disk(export, i, err);
        if (ret == 0) {
            params.blk = export->blks[i];
            ret = nbd_server_add_export(export->server, &params, err);
            export->usage |= ret == -EINVAL || ret == -EEXIST;
        }
    }
    return ret;
}

static main_fn int create_server(Export *export, Error *err)
{
    const ExportConfig *config = &export->config;
    AioContext *contexts[EXPORT_IOTHREADS_MAX];
    NbdServerParams params = {
        .tls_required = !config->tls_optional,
        .contexts = contexts,
        .nb_contexts = export->nb_iothreads,
        .connections_max = config->max_connections,
        .requests_max = config->max_requests,
        .memory_bytes = config->connection_memory_bytes,
        .handshake_ns = (int64_t)config->handshake_timeout_s * 1000000000,
    };

    for (unsigned i = 0; i < export->nb_iothreads; i++) {
        contexts[i] = iothread_context(export->iothreads[i]);
    }
    if (config->nb_uris > 0 && config->uris[0].tls) {
        params.tls = nbd_uri_load_creds(&config->uris[0], TLS_SERVER, err);
        if (!params.tls) {
            return -EIO;
        }
    }
    params.tls_required &= params.tls != NULL;
    export->server = nbd_server_create(&params, err);
    tls_creds_unref(params.tls);
    return export->server ? 0 : -EIO;
}

static main_fn int listen_everywhere(Export *export, Error *err)
{
    int ret = 0;

    for (int i = 0; ret == 0 && i < export->nb_sockets; i++) {
        ret = nbd_server_adopt(export->server, take_fd(&export->socket_fds[i]), err);
    }
    for (unsigned i = 0; ret == 0 && export->nb_sockets == 0 && i < export->config.nb_uris; i++) {
        ret = nbd_server_listen(export->server, &export->config.uris[i].addr, err);
    }
    return ret;
}

static main_fn int build(Export *export, Error *err)
{
    const ExportConfig *config = &export->config;
    int ret;

    if ((config->fork && (ret = service_fork(&export->service, err)) < 0) ||
        (ret = open_main_context(export, err)) < 0 || (ret = open_signals(export, err)) < 0 ||
        (ret = create_iothreads(export, err)) < 0 || (ret = create_server(export, err)) < 0 ||
        (ret = add_exports(export, err)) < 0 || (ret = listen_everywhere(export, err)) < 0) {
        return ret;
    }
    return config->pid_file ? service_write_pid(&export->service, config->pid_file, err) : 0;
}

/* --- all of it --- */

static main_fn int close_disks(Export *export)
{
    int first = 0;

    for (unsigned i = 0; i < export->config.nb_disks; i++) {
        int ret = blk_close(export->blks[i]);

        if (ret < 0) {
            cmd_complain("disk %s: the last flush failed: %s; what clients wrote last may be lost",
                         export->config.disks[i].id, error_strerror(ret));
            first = first ? first : ret;
        }
    }
    return first;
}

static main_fn int finish(Export *export)
{
    int ret = 0;

    nbd_server_destroy(export->server);
    if (export->main) {
        ret = close_disks(export);
    }
    for (unsigned i = 0; i < export->nb_iothreads; i++) {
        iothread_unref(export->iothreads[i]);
    }
    if (export->signal_fd >= 0) {
        aio_set_fd_handler(export->main, export->signal_fd, NULL, NULL);
        close(export->signal_fd);
    }
    if (export->main) {
        aio_context_enter(NULL);
        aio_context_set_main(NULL);
        aio_context_destroy(export->main);
    }
    for (int i = 0; i < export->nb_sockets; i++) {
        if (export->socket_fds[i] >= 0) {
            close(export->socket_fds[i]);
        }
    }
    return ret;
}

static main_fn int serve(Export *export)
{
    Error err;
    int status = 0;

    if (build(export, &err) < 0) {
        cmd_complain("%s", err.msg);
        status = export->usage ? MACHINE_EXIT_USAGE : MACHINE_EXIT_HOST_FAILURE;
    } else {
        nbd_server_start(export->server);
        service_ready(&export->service);
        AIO_WAIT_WHILE(export->main, !export->stopped);
    }
    if (finish(export) < 0) {
        status = status ? status : MACHINE_EXIT_HOST_FAILURE;
    }
    service_finish(&export->service, status);
    return status;
}

static main_fn int export_disks(Export *export)
{
    Error err;

    log_set_level(export->config.log_level);
    aio_workers_set_max(export->config.max_workers);
    export->nb_sockets = service_take_sockets(export->socket_fds, &err);
    if (export->nb_sockets < 0) {
        cmd_complain("%s", err.msg);
        return MACHINE_EXIT_HOST_FAILURE;
    }
    if (export->nb_sockets == 0 && export->config.nb_uris == 0) {
        cmd_complain("--nbd is missing; see penstock export --help");
        return MACHINE_EXIT_USAGE;
    }
    return serve(export);
}

int cmd_export(int argc, char **argv)
{
    Export *export = calloc(1, sizeof(*export));
    Error err;
    int status;

    assert_main();
    if (!export) {
        cmd_complain("out of memory");
        return MACHINE_EXIT_HOST_FAILURE;
    }
    export->service = (Service)SERVICE_INIT;
    export->signal_fd = -1;
    if (export_config_parse(&export->config, argc, argv, &err) < 0) {
        cmd_complain("%s", err.msg);
        status = MACHINE_EXIT_USAGE;
    } else if (export->config.help) {
        fputs(export_help, stdout);
        status = 0;
    } else {
        status = export_disks(export);
    }
    export_config_finish(&export->config);
    free(export);
    return status;
}
