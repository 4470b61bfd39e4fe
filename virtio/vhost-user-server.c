/*
 * vhost-user-server.c - sockets, one client after the other, and the end
 *
 * Invariants:
 *   (1) At most one session. Between two of them the device is as after a reset, guest memory is
 *       empty, and no descriptor of the last client is open.
 *   (2) A session ends in this order: queues stop (requests in flight are finished, and told to the
 *       client, whose memory is still there), the device is reset, notices end, memory goes.
 */
#include <string.h>
#include <sys/socket.h>

#include "virtio/vhost-user-int.h"

/* --- transport --- */

/* The queue knows the client's eventfds already (vhost-user-vring.c). */
static int transport_attach_doorbell(void *opaque, unsigned index, EventNotifier *en)
{
    return 0;
}

static void transport_detach_doorbell(void *opaque, unsigned index, EventNotifier *en)
{
}

/* The client wants no interrupts: it polls. */
static void transport_notify_queue(void *opaque, unsigned index)
{
}

static void transport_notify_config(void *opaque)
{
    VhuServer *server = opaque;

    if (server->session) {
        vhu_notice_config(server->session);
    }
}

static void transport_queue_broken(void *opaque, unsigned index)
{
    VhuServer *server = opaque;

    if (server->session) {
        vhu_vring_broken(server->session, index);
    }
}

static const VirtioTransportOps transport_ops = {
    .attach_doorbell = transport_attach_doorbell,
    .detach_doorbell = transport_detach_doorbell,
    .notify_queue = transport_notify_queue,
    .notify_config = transport_notify_config,
    .queue_broken = transport_queue_broken,
};

/* --- a session's life --- */

/* Memory has gone from below us. */
static void lost_bh(void *opaque)
{
    VhuServer *server = opaque;

    if (server->session) {
        server->session->lost = true;
        channel_shutdown(server->session->ch, CHANNEL_READ | CHANNEL_WRITE);
    }
}

static void log_end(VhuServer *server, const VhuSession *session, int ret, const Error *err)
{
    if (session->lost) {
        log_limited(&server->log_limit, LOG_LEVEL_WARN, "vhost-user",
                    "%s: the client has gone: it has cut off memory that it shared", server->name);
    } else if (ret < 0 && !server->stopping) {
        log_limited(&server->log_limit, LOG_LEVEL_WARN, "vhost-user",
                    "%s: the client was sent away: %s", server->name, err->msg);
    } else {
        log_debug("vhost-user", "%s: the client has gone", server->name);
    }
}

static main_fn co_fn void session_end(VhuServer *server, VhuSession *session)
{
    channel_shutdown(session->ch, CHANNEL_READ | CHANNEL_WRITE);
    vhu_vrings_co_stop(session);
    aio_bh_cancel(server->lost_bh); /* nobody uses the memory any more */
    atomic_store(&server->memory_lost, false);
    vdev_co_reset(server->vdev);
    vhu_notice_co_set_channel(session, NULL);
    vhu_inflight_close(session);
    vhu_log_close(session);
    vhu_memory_clear(&server->memory);
}

co_fn void vhu_server_co_serve(VhuServer *server, Channel *ch)
{
    VhuSession *session = calloc(1, sizeof(*session));
    Error err;

    assert(!server->session);
    if (session && !server->stopping) {
        *session = (VhuSession){ .server = server, .ch = ch };
        atomic_init(&session->log.log.fd, -1);
        vhu_vrings_init(session);
        server->session = session;
        log_debug("vhost-user", "%s: a client", server->name);
        int ret = vhu_session_co_run(session, &err);

        log_end(server, session, ret, &err);
        session_end(server, session);
        server->session = NULL;
    }
    free(session);
    channel_unref(ch);
    server->over = server->only_one;
    if (server->stopper) {
        aio_co_wake(take_ptr(&server->stopper));
    }
}

static co_fn void connection_entry(Channel *ch, void *opaque)
{
    assert_main();
    vhu_server_co_serve(opaque, ch);
}

/* --- create and destroy --- */

VhuServer *vhu_server_create(const char *name, Error *err)
{
    VhuServer *server = calloc(1, sizeof(*server));

    if (!server) {
        error_set(err, -ENOMEM, "%s: out of memory", name);
        return NULL;
    }
    server->name = strdup(name);
    server->lost_bh = aio_bh_create(aio_main(), lost_bh, server);
    if (!server->name ||
        vhu_memory_init(&server->memory, server->lost_bh, &server->memory_lost, err) < 0) {
        error_set(err, -ENOMEM, "%s: out of memory", name);
        vhu_server_destroy(server);
        return NULL;
    }
    return server;
}

void vhu_server_destroy(VhuServer *server)
{
    if (!server) {
        return;
    }
    assert(!server->session);
    channel_listener_unref(server->listener);
    channel_unref(server->connected);
    vhu_memory_finish(&server->memory);
    aio_bh_destroy(server->lost_bh);
    free(server->name);
    free(server);
}

const GuestMemory *vhu_server_memory(const VhuServer *server)
{
    return &server->memory.gm;
}

void vhu_server_set_device(VhuServer *server, VirtioDevice *vdev)
{
    assert(!server->vdev && vdev->gm == &server->memory.gm);
    server->vdev = vdev;
    vdev_set_transport(vdev, &transport_ops, server);
}

/* --- sockets --- */

static ChannelListenerParams listener_params(VhuServer *server)
{
    return (ChannelListenerParams){ .connection = connection_entry,
                                    .opaque = server,
                                    .connections_max = 1 };
}

int vhu_server_listen(VhuServer *server, const SocketAddress *addr, Error *err)
{
    ChannelListenerParams params = listener_params(server);
    Error reason;

    assert(!server->listener && !server->only_one);
    server->listener = channel_listener_create(addr, &params, &reason);
    return server->listener ? 0 : error_set(err, reason.code, "%s", reason.msg);
}

int vhu_server_adopt(VhuServer *server, int fd, Error *err)
{
    ChannelListenerParams params = listener_params(server);
    int listens = 0;
    socklen_t len = sizeof(listens);
    Error reason;

    assert(!server->listener && !server->only_one);
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) == 0 && listens) {
        server->listener = channel_listener_adopt(fd, &params, &reason);
    } else {
        server->connected = channel_socket_adopt(fd, &reason);
        server->only_one = server->connected != NULL;
    }
    return server->listener || server->connected ? 0
                                                 : error_set(err, reason.code, "%s", reason.msg);
}

static co_fn void connected_entry(void *opaque)
{
    VhuServer *server = opaque;

    assert_main();
    vhu_server_co_serve(server, take_ptr(&server->connected));
}

void vhu_server_start(VhuServer *server)
{
    assert(server->vdev);
    if (server->listener) {
        channel_listener_start(server->listener);
    }
    if (server->connected) {
        Coroutine *co = co_create(connected_entry, server);

        if (co) {
            co_enter(co);
        } else {
            server->over = true;
        }
    }
}

void vhu_server_stop(VhuServer *server)
{
    server->stopping = true;
    if (server->listener) {
        channel_listener_stop(server->listener);
    }
    if (server->session) {
        channel_shutdown(server->session->ch, CHANNEL_READ | CHANNEL_WRITE);
    }
}

co_fn void vhu_server_co_stop(VhuServer *server)
{
    vhu_server_stop(server);
    if (server->session) {
        server->stopper = co_self();
        co_yield();
    }
    if (server->listener) {
        int ret UNUSED = channel_listener_co_wait_idle(server->listener, -1);
    }
}

bool vhu_server_is_over(const VhuServer *server)
{
    return server->over;
}
