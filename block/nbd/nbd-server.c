/*
 * nbd-server.c - exports, listeners, and which connections there are
 *
 * Stopping (nbd_server_co_stop()): listeners close; `stopping` is set; connections that are still
 * in the handshake are shut down; the others end by themselves when nothing is in flight on them
 * any more (nbd-server-conn.c). At the deadline all are shut down.
 */
#include "block/nbd/nbd-server-int.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define CLOSING_NS 1000000000ll /* for the last bytes of a connection that is over */

/* --- create and destroy --- */

static unsigned or_default(unsigned value, unsigned value_default)
{
    return value ? value : value_default;
}

static int take_params(NbdServer *server, const NbdServerParams *params, Error *err)
{
    server->connections_max = or_default(params->connections_max, NBD_SERVER_CONNECTIONS_DEFAULT);
    server->requests_max = or_default(params->requests_max, NBD_SERVER_REQUESTS_DEFAULT);
    server->memory_bytes = params->memory_bytes ? params->memory_bytes : NBD_SERVER_MEMORY_DEFAULT;
    server->handshake_ns = params->handshake_ns ? params->handshake_ns : NBD_SERVER_HANDSHAKE_NS;
    server->tls = params->tls ? tls_creds_ref(params->tls) : NULL;
    server->tls_required = params->tls_required;
    if (server->requests_max > NBD_SERVER_REQUESTS_LIMIT) {
        return error_set(err, -EINVAL, "NBD server: more than %d requests at once",
                         NBD_SERVER_REQUESTS_LIMIT);
    }
    if (server->memory_bytes < NBD_SERVER_MEMORY_MIN || server->memory_bytes > SIZE_MAX / 2) {
        return error_set(err, -EINVAL, "NBD server: memory of less than %llu bytes a connection",
                         NBD_SERVER_MEMORY_MIN);
    }
    if (server->tls_required && !server->tls) {
        return error_set(err, -EINVAL, "NBD server: TLS is required, but there are no credentials");
    }
    server->nb_contexts = params->nb_contexts;
    server->contexts = calloc(or_default(params->nb_contexts, 1), sizeof(*server->contexts));
    if (!server->contexts) {
        return error_set(err, -ENOMEM, "NBD server: out of memory");
    }
    for (unsigned i = 0; i < params->nb_contexts; i++) {
        server->contexts[i] = params->contexts[i];
    }
    return 0;
}

NbdServer *nbd_server_create(const NbdServerParams *params, Error *err)
{
    NbdServer *server = calloc(1, sizeof(*server));

    if (!server) {
        error_set(err, -ENOMEM, "NBD server: out of memory");
        return NULL;
    }
    pthread_mutex_init(&server->lock, NULL);
    list_init(&server->connections);
    if (take_params(server, params, err) < 0) {
        nbd_server_destroy(server);
        return NULL;
    }
    return server;
}

void nbd_server_destroy(NbdServer *server)
{
    if (!server) {
        return;
    }
    for (unsigned i = 0; i < server->nb_listeners; i++) {
        channel_listener_unref(server->listeners[i]);
    }
    assert(list_empty(&server->connections));
    for (unsigned i = 0; i < server->nb_exports; i++) {
        free(server->exports[i].name);
        free(server->exports[i].description);
    }
    tls_creds_unref(server->tls);
    free(server->contexts);
    pthread_mutex_destroy(&server->lock);
    free(server);
}

/* --- exports --- */

static NbdBlockSizes export_sizes(const NbdServer *server, BlockBackend *blk)
{
    const BlockLimits *limits = blk_limits(blk);
    uint32_t preferred_bytes = MAX(limits->physical_block_bytes, limits->request_alignment);
    uint64_t max_bytes = MIN((uint64_t)NBD_PAYLOAD_BYTES_DEFAULT, server->memory_bytes);

    if (IS_POWER_OF_2(limits->optimal_io_bytes)) {
        preferred_bytes = MAX(preferred_bytes, limits->optimal_io_bytes);
    }
    preferred_bytes = MAX(preferred_bytes, NBD_BLOCK_BYTES_PREFERRED_DEFAULT);
    while (preferred_bytes > max_bytes) {
        preferred_bytes /= 2; /* a power of two, as it has to be */
    }
    return (NbdBlockSizes){
        .min_bytes = 1, /* the block layer takes care of the edges */
        .preferred_bytes = preferred_bytes,
        .max_payload_bytes = max_bytes,
    };
}

int nbd_server_add_export(NbdServer *server, const NbdExportParams *params, Error *err)
{
    NbdExport *export = &server->exports[server->nb_exports];
    const char *description = params->description ? params->description : "";

    if (server->nb_exports == NBD_SERVER_EXPORTS_MAX) {
        return error_set(err, -ENOSPC, "NBD server: more than %d exports", NBD_SERVER_EXPORTS_MAX);
    }
    if (strlen(params->name) > NBD_STRING_BYTES || strlen(description) > NBD_STRING_BYTES) {
        return error_set(err, -EINVAL,
                         "export '%.40s...': name or description longer than %d bytes",
                         params->name, NBD_STRING_BYTES);
    }
    for (unsigned i = 0; i < server->nb_exports; i++) {
        if (strcmp(server->exports[i].name, params->name) == 0) {
            return error_set(err, -EEXIST, "there are two exports called '%s'", params->name);
        }
    }
    *export = (NbdExport){
        .name = strdup(params->name),
        .description = strdup(description),
        .blk = params->blk,
        .read_only = params->read_only || blk_read_only(params->blk),
        .multi_conn = server->connections_max > 1,
        .sizes = export_sizes(server, params->blk),
    };
    if (!export->name || !export->description) {
        free(export->name);
        free(export->description);
        return error_set(err, -ENOMEM, "NBD server: out of memory");
    }
    server->nb_exports++;
    return 0;
}

uint16_t nbd_export_flags(const NbdExport *export, NbdHeaders headers)
{
    uint16_t flags =
        NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;

    flags |= export->multi_conn ? NBD_FLAG_CAN_MULTI_CONN : 0;
    flags |= headers != NBD_HEADERS_SIMPLE ? NBD_FLAG_SEND_DF : 0;
    return export->read_only
               ? flags | NBD_FLAG_READ_ONLY
               : flags | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
}

/* --- listeners --- */

static co_fn void connection_entry(Channel *ch, void *opaque)
{
    nbd_server_co_serve(opaque, ch);
}

static int add_listener(NbdServer *server, const SocketAddress *addr, int fd, Error *err)
{
    ChannelListenerParams params = {
        .connection = connection_entry,
        .opaque = server,
        .connections_max = server->connections_max,
    };

    if (server->nb_listeners == NBD_SERVER_LISTENERS_MAX) {
        if (!addr) {
            close(fd);
        }
        return error_set(err, -ENOSPC, "NBD server: more than %d sockets to listen on",
                         NBD_SERVER_LISTENERS_MAX);
    }
    Error reason;
    ChannelListener *listener = addr ? channel_listener_create(addr, &params, &reason)
                                     : channel_listener_adopt(fd, &params, &reason);

    if (!listener) {
        return error_set(err, reason.code, "%s", reason.msg);
    }
    server->listeners[server->nb_listeners++] = listener;
    return 0;
}

int nbd_server_listen(NbdServer *server, const SocketAddress *addr, Error *err)
{
    return add_listener(server, addr, -1, err);
}

int nbd_server_adopt(NbdServer *server, int fd, Error *err)
{
    return add_listener(server, NULL, fd, err);
}

const char *nbd_server_listener_name(const NbdServer *server, unsigned index)
{
    return index < server->nb_listeners ? channel_listener_name(server->listeners[index]) : NULL;
}

void nbd_server_start(NbdServer *server)
{
    for (unsigned i = 0; i < server->nb_listeners; i++) {
        channel_listener_start(server->listeners[i]);
    }
}

/* --- a connection --- */

int nbd_conn_broke_rules(NbdConn *conn, const char *fmt, ...)
{
    NbdServer *server = conn->server;
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    pthread_mutex_lock(&server->lock);
    log_limited(&server->log_limit, LOG_LEVEL_WARN, "nbd-server", "client %s: %s",
                channel_name(conn->ch), text);
    pthread_mutex_unlock(&server->lock);
    return -EPROTO;
}

/* False: it must not be served. */
static bool connection_enter(NbdConn *conn)
{
    NbdServer *server = conn->server;
    bool stopping, full;

    pthread_mutex_lock(&server->lock);
    stopping = atomic_load(&server->stopping);
    full = atomic_load(&server->nb_connections) >= server->connections_max;
    if (!stopping && !full) {
        atomic_fetch_add(&server->nb_connections, 1);
        list_push_back(&server->connections, &conn->link);
        if (server->nb_contexts > 0) {
            conn->ctx = server->contexts[server->next_context++ % server->nb_contexts];
        }
    }
    pthread_mutex_unlock(&server->lock);
    if (full && !stopping) {
        nbd_conn_broke_rules(conn, "turned away, there are %u connections already",
                             server->connections_max);
    }
    return !stopping && !full;
}

static void connection_leave(NbdConn *conn)
{
    NbdServer *server = conn->server;

    pthread_mutex_lock(&server->lock);
    list_remove(&conn->link);
    pthread_mutex_unlock(&server->lock);
    atomic_fetch_sub(&server->nb_connections, 1); /* the server may go when that says 0 */
}

void nbd_conn_set_channel(NbdConn *conn, Channel *ch)
{
    Channel *old;

    pthread_mutex_lock(&conn->server->lock);
    old = conn->ch;
    conn->ch = ch;
    if (atomic_load(&conn->server->stopping)) {
        channel_shutdown(ch, CHANNEL_READ | CHANNEL_WRITE);
    }
    pthread_mutex_unlock(&conn->server->lock);
    channel_unref(old);
}

bool nbd_conn_set_transmits(NbdConn *conn)
{
    pthread_mutex_lock(&conn->server->lock);
    conn->transmits = !atomic_load(&conn->server->stopping);
    pthread_mutex_unlock(&conn->server->lock);
    return conn->transmits;
}

static co_fn void connection_serve(NbdConn *conn)
{
    int ret = nbd_conn_co_handshake(conn);

    if (ret > 0) {
        ret = nbd_conn_set_transmits(conn) ? nbd_conn_co_transmit(conn) : 0;
    }
    if (ret < 0 && ret != -EPROTO) { /* the reason of that has been logged */
        log_debug("nbd-server", "client %s: %s", channel_name(conn->ch), error_strerror(ret));
    }
    channel_set_deadline(conn->ch, CHANNEL_WRITE, aio_now_ns() + CLOSING_NS);
    channel_co_half_close(conn->ch);
}

void nbd_server_co_serve(NbdServer *server, Channel *ch)
{
    NbdConn *conn = calloc(1, sizeof(*conn));

    if (!conn) {
        channel_unref(ch);
        return;
    }
    conn->server = server;
    conn->ch = ch;
    conn->ctx = aio_current();
    if (connection_enter(conn)) {
        aio_co_reschedule_self(conn->ctx);
        connection_serve(conn);
        connection_leave(conn);
    }
    channel_unref(conn->ch);
    free(conn);
}

/* --- stopping --- */

/* Those for which there is nothing to wait, or all. Pairs with slot_begin() and slot_end(). */
static void shut_down_connections(NbdServer *server, bool all)
{
    pthread_mutex_lock(&server->lock);
    atomic_store(&server->stopping, true);
    list_for_each(node, &server->connections) {
        NbdConn *conn = list_entry(node, NbdConn, link);

        if (all || !conn->transmits) {
            channel_shutdown(conn->ch, CHANNEL_READ | CHANNEL_WRITE);
        } else if (atomic_load(&conn->nb_in_flight) == 0) {
            channel_shutdown(conn->ch, CHANNEL_READ);
        }
    }
    pthread_mutex_unlock(&server->lock);
}

static co_fn int wait_idle(NbdServer *server, int64_t deadline_ns)
{
    int ret = 0;

    for (unsigned i = 0; ret == 0 && i < server->nb_listeners; i++) {
        ret = channel_listener_co_wait_idle(server->listeners[i], deadline_ns);
    }
    return ret;
}

int nbd_server_co_stop(NbdServer *server, int64_t deadline_ns)
{
    for (unsigned i = 0; i < server->nb_listeners; i++) {
        channel_listener_stop(server->listeners[i]);
    }
    shut_down_connections(server, false);
    int ret = wait_idle(server, deadline_ns);

    if (ret < 0) {
        nbd_server_abort(server);
        (void)wait_idle(server, -1);
    }
    return ret;
}

void nbd_server_abort(NbdServer *server)
{
    shut_down_connections(server, true);
}

unsigned nbd_server_nb_connections(const NbdServer *server)
{
    return atomic_load(&server->nb_connections);
}
