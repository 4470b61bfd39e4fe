/*
 * cmd-export.c - `penstock export`: open disks, serve them, end when told to
 *
 *     signal --> stop coroutine: no new connections, what is in flight is finished --> disks close
 *     second signal --> NBD connections are cut; while a vhost-user client's requests wait for a disk
 *                       that has not answered for a while, the process ends at once
 *
 * A disk has a node, and each server a backend on it. NBD has all disks; a vhost-user socket has
 * one. Without a socket that listens the program ends when its clients have gone.
 */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>

#include "block/block-driver.h"
#include "block/nbd/nbd-server.h"
#include "io/aio/aio-worker.h"
#include "io/aio/iothread.h"
#include "io/base/thread.h"
#include "vmm/cmd.h"
#include "vmm/ending-signals.h"
#include "vmm/export-config.h"
#include "vmm/export-control.h"
#include "vmm/export-vhu.h"
#include "vmm/machine.h"
#include "vmm/service.h"

#define SIGNAL_PATIENCE_NS 1000000000

#define DEFAULT_IOTHREADS_MAX 4  /* for connections */
#define DEFAULT_QUEUES_MAX    16 /* of a vhost-user device */

typedef struct Export {
    ExportConfig config;
    Service service;
    int socket_fds[SERVICE_FDS_MAX]; /* that were passed; -1 = taken over */
    int nb_sockets;
    AioContext *main;
    int signal_fd;
    IOThread *iothreads[EXPORT_IOTHREADS_MAX];
    unsigned nb_iothreads;
    AioContext *contexts[EXPORT_IOTHREADS_MAX];
    unsigned next_iothread; /* for queues that nobody has mapped */
    BlockNode *nodes[EXPORT_DISKS_MAX];
    BlockBackend *blks[EXPORT_DISKS_MAX]; /* the NBD server's */
    NbdServer *server;                    /* NULL: no NBD */
    VhuExport vhus[EXPORT_VHUS_MAX];
    ExportControl control;
    bool usage; /* a failure is the command line's fault */
    bool stopping, stopped;
    int64_t stopping_ns; /* since when */
} Export;

/* --- the end --- */

static co_fn void stop_entry(void *opaque)
{
    Export *export = opaque;

    assert_main();
    for (unsigned i = 0; i < export->config.nb_vhus; i++) {
        vhu_server_stop(export->vhus[i].server); /* one that takes long delays no other */
    }
    for (unsigned i = 0; i < export->config.nb_vhus; i++) {
        vhu_server_co_stop(export->vhus[i].server);
    }
    int64_t deadline_ns = aio_now_ns() + (int64_t) export->config.stop_timeout_s * 1000000000;

    if (export->server && nbd_server_co_stop(export->server, deadline_ns) < 0) {
        cmd_complain("export: not all clients have taken their last answers");
    }
    export->stopped = true;
}

static void begin_to_stop(Export *export)
{
    export->stopping = true;
    export->stopping_ns = aio_now_ns();
    service_stopping();
    Coroutine *co = co_create(stop_entry, export);

    if (co) {
        co_enter(co);
    } else {
        cmd_complain("export: out of memory");
        export->stopping = false; /* the next signal tries again */
    }
}

static void quit_cb(void *opaque)
{
    Export *export = opaque;

    if (!export->stopping) {
        begin_to_stop(export);
    }
}

/* To stop, memory of a client's must not be in use any more: that cannot be cut short. */
static void end_by_signal(const Export *export, int signo)
{
    sigset_t set;

    if (export->config.nb_vhus > 0 &&
        aio_now_ns() - export->stopping_ns > SIGNAL_PATIENCE_NS) {
        sigemptyset(&set);
        sigaddset(&set, signo);
        pthread_sigmask(SIG_UNBLOCK, &set, NULL);
        raise(signo);
    }
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
        if (export->server) {
            nbd_server_abort(export->server);
        }
        end_by_signal(export, (int)info.ssi_signo);
        return;
    }
    begin_to_stop(export);
}

/* The other way to an end: all clients there ever will be have gone. */
static bool is_over(const Export *export)
{
    for (unsigned i = 0; i < export->config.nb_vhus; i++) {
        if (!vhu_server_is_over(export->vhus[i].server)) {
            return false;
        }
    }
    return export->config.nb_vhus > 0 && !export->server;
}

/* --- the beginning --- */

static main_fn int open_signals(Export *export, Error *err)
{
    static const AioHandlerOps ops = { .read = signal_cb };
    sigset_t set;

    ending_signals_fill(&set);
    ending_signals_block(); /* before the first thread, so that none gets them */
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

static unsigned nb_cpus(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof(set), &set) < 0 ? 1 : (unsigned)CPU_COUNT(&set);
}

static bool serves_nbd(const Export *export)
{
    return export->config.nb_uris > 0 || export->nb_sockets > 0;
}

static unsigned queues_of(const VhuConfig *vhu)
{
    return vhu->nb_queues ? vhu->nb_queues : MIN(nb_cpus(), (unsigned)DEFAULT_QUEUES_MAX);
}

static unsigned default_iothreads(const Export *export)
{
    unsigned nb = serves_nbd(export) ? MIN(nb_cpus(), (unsigned)DEFAULT_IOTHREADS_MAX) : 1;
    unsigned nb_queues = 0;

    for (unsigned i = 0; i < export->config.nb_vhus; i++) {
        nb_queues += queues_of(&export->config.vhus[i]);
    }
    return MIN(MAX(nb, nb_queues), (unsigned)EXPORT_IOTHREADS_MAX);
}

static main_fn IOThread *create_iothread(const Export *export, unsigned index, Error *err)
{
    AioParams params = AIO_PARAMS_POLLING;
    char id[16];

    if (export->config.nb_named_iothreads > 0) {
        const IOThreadConfig *config = &export->config.iothreads[index];

        return config->pinned
                   ? iothread_create_on(config->id, &config->params, &config->cpus, err)
                   : iothread_create(config->id, &config->params, err);
    }
    snprintf(id, sizeof(id), "io%u", index);
    return iothread_create(id, &params, err);
}

static main_fn int create_iothreads(Export *export, Error *err)
{
    const ExportConfig *config = &export->config;
    unsigned nb = config->nb_named_iothreads;

    if (nb == 0) {
        nb = config->nb_iothreads ? config->nb_iothreads : default_iothreads(export);
    }
    for (unsigned i = 0; i < nb; i++) {
        export->iothreads[i] = create_iothread(export, i, err);
        if (!export->iothreads[i]) {
            return -EIO;
        }
        export->contexts[i] = iothread_context(export->iothreads[i]);
        export->nb_iothreads++;
    }
    return 0;
}

static int open_disk(Export *export, unsigned index, Error *err)
{
    ExportDisk *disk = &export->config.disks[index];
    Error reason;
    int ret;

    export->nodes[index] = bdrv_open(&disk->opts, &reason);
    if (!export->nodes[index]) {
        export->usage = reason.code == -EINVAL; /* a bad value; files fail with other codes */
        return error_set(err, reason.code, "%s", reason.msg);
    }
    if ((ret = opts_check_all_used(&disk->opts, &reason)) < 0) {
        export->usage = true;
        return error_set(err, ret, "%s", reason.msg);
    }
    return 0;
}

static main_fn int add_nbd_export(Export *export, unsigned index, Error *err)
{
    BlockNode *node = export->nodes[index];
    NbdExportParams params = {
        .name = export_config_name(&export->config, index),
        .description = export->config.disks[index].description,
    };

    params.blk = blk_create(export->config.disks[index].id, node, blk_default_perm(node),
                            BLK_PERM_ALL, err);
    export->blks[index] = params.blk;
    if (!params.blk) {
        return -EBUSY;
    }
    int ret = nbd_server_add_export(export->server, &params, err);

    export->usage |= ret == -EINVAL || ret == -EEXIST;
    return ret;
}

static main_fn int open_disks(Export *export, Error *err)
{
    int ret = 0;

    ending_signals_release(); /* nobody is served yet */
    for (unsigned i = 0; ret == 0 && i < export->config.nb_disks; i++) {
        ret = open_disk(export, i, err);
        if (ret == 0 && export->server) {
            ret = add_nbd_export(export, i, err);
        }
    }
    ending_signals_block();
    return ret;
}

static AioContext *context_for_queue(Export *export, const VhuConfig *config, unsigned queue)
{
    return export->contexts[config->nb_iothreads > 0
                                ? config->iothreads[queue % config->nb_iothreads]
                                : export->next_iothread++ % export->nb_iothreads];
}

static main_fn int create_vhu(Export *export, unsigned index, Error *err)
{
    VhuConfig *config = &export->config.vhus[index];
    AioContext *contexts[CONFIG_QUEUES_MAX];
    unsigned nb_queues = queues_of(config);

    for (unsigned i = 0; i < nb_queues; i++) {
        contexts[i] = context_for_queue(export, config, i);
    }
    int ret = vhu_export_create(&export->vhus[index], config,
                                export->config.disks[config->disk].id,
                                export->nodes[config->disk], contexts, nb_queues, err);

    export->usage |= ret == -EINVAL;
    if (ret < 0) {
        error_prefix(err, "--vhost-user: ");
    }
    return ret;
}

static main_fn int create_vhus(Export *export, Error *err)
{
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < export->config.nb_vhus; i++) {
        ret = create_vhu(export, i, err);
    }
    return ret;
}

/* The device that serves a disk first; NULL. */
static const VhuExport *find_vhu(const Export *export, unsigned disk)
{
    for (unsigned i = 0; i < export->config.nb_vhus; i++) {
        if (export->config.vhus[i].disk == disk) {
            return &export->vhus[i];
        }
    }
    return NULL;
}

static main_fn int create_control(Export *export, Error *err)
{
    int ret;

    if (!export->config.control_path) {
        return 0;
    }
    ret = export_control_create(&export->control, export->config.control_path, export->iothreads,
                                export->nb_iothreads, quit_cb, export, err);
    for (unsigned i = 0; ret == 0 && i < export->config.nb_disks; i++) {
        const VhuExport *vhu = find_vhu(export, i);
        BlockBackend *blk = export->blks[i] ? export->blks[i] : vhu ? vhu->blk : NULL;

        if (blk) {
            ret = export_control_add_disk(&export->control, blk, vhu ? vhu->vblk : NULL, err);
        }
    }
    return ret;
}

static main_fn int create_server(Export *export, Error *err)
{
    const ExportConfig *config = &export->config;
    NbdServerParams params = {
        .tls_required = !config->tls_optional,
        .contexts = export->contexts,
        .nb_contexts = export->nb_iothreads,
        .connections_max = config->max_connections,
        .requests_max = config->max_requests,
        .memory_bytes = config->connection_memory_bytes,
        .handshake_ns = (int64_t)config->handshake_timeout_s * 1000000000,
    };

    if (!serves_nbd(export)) {
        return 0;
    }
    if (config->nb_uris > 0 && config->uris[0].tls) {
        params.tls = nbd_uri_load_creds(&config->uris[0], TLS_SERVER, err);
        if (!params.tls) {
            export->usage = err->code == -EINVAL;
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
        (ret = open_disks(export, err)) < 0 || (ret = create_vhus(export, err)) < 0 ||
        (ret = listen_everywhere(export, err)) < 0 || (ret = create_control(export, err)) < 0) {
        return ret;
    }
    return config->pid_file ? service_write_pid(&export->service, config->pid_file, err) : 0;
}

/* --- all of it --- */

static void say_flush_failed(const Export *export, unsigned disk, int error)
{
    cmd_complain("disk %s: the last flush failed: %s; what clients wrote last may be lost",
                 export->config.disks[disk].id, error_strerror(error));
}

static main_fn int close_disks(Export *export)
{
    int first = 0;

    for (unsigned i = 0; i < export->config.nb_vhus; i++) {
        int ret = vhu_export_destroy(&export->vhus[i]);

        if (ret < 0) {
            say_flush_failed(export, export->config.vhus[i].disk, ret);
            first = first ? first : ret;
        }
    }
    for (unsigned i = 0; i < export->config.nb_disks; i++) {
        int ret = blk_close(export->blks[i]);

        if (ret < 0) {
            say_flush_failed(export, i, ret);
            first = first ? first : ret;
        }
        bdrv_unref(export->nodes[i]);
    }
    return first;
}

static main_fn int finish(Export *export)
{
    int ret = 0;

    if (export->main) {
        export_control_end(&export->control);
    }
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

static main_fn void start_servers(Export *export)
{
    if (export->server) {
        nbd_server_start(export->server);
    }
    for (unsigned i = 0; i < export->config.nb_vhus; i++) {
        vhu_server_start(export->vhus[i].server);
    }
    export_control_start(&export->control);
}

static main_fn int serve(Export *export)
{
    Error err;
    int status = 0;

    if (build(export, &err) < 0) {
        cmd_complain("%s", err.msg);
        status = export->usage ? MACHINE_EXIT_USAGE : MACHINE_EXIT_HOST_FAILURE;
    } else {
        start_servers(export);
        service_ready(&export->service);
        AIO_WAIT_WHILE(export->main, !export->stopped && !is_over(export));
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
    if (export->config.nb_vhus == 0 && !serves_nbd(export)) {
        cmd_complain("--nbd or --vhost-user is missing; see penstock export --help");
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
    } else if (export->config.print_capabilities) {
        fputs(export_capabilities, stdout);
        status = 0;
    } else {
        status = export_disks(export);
    }
    export_config_finish(&export->config);
    free(export);
    return status;
}
