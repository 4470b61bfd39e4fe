/*
 * channel-listener.c - accepting connections, a coroutine for each
 *
 *     created --start--> watching --at the limit--> full --a connection ends [ended_bh]--> watching
 *                        watching --accept() is short of something--> paused --[timer]--> watching
 *                        any --stop--> stopped
 * The handlers are in the context only while watching, so a queue of peers that cannot be served
 * now does not keep the loop busy.
 *
 * Invariants:
 *   (1) Everything in a listener belongs to its home thread. A connection that ends, in whichever
 *       thread, schedules ended_bh there and does not touch the listener after that; so a count of
 *       none says that nobody will.
 */
#include "io/channel/channel-listener.h"

#include <stdio.h>
#include <string.h>

#include "io/base/log.h"
#include "io/channel/channel-int.h"
#include "io/channel/listen-socket.h"

#define ACCEPT_BATCH    16        /* connections in one go, then others get their turn */
#define ACCEPT_PAUSE_NS 200000000 /* after a shortage */

struct ChannelListener {
    AioContext *ctx;
    ChannelListenerParams params;
    ListenSockets sockets;
    AioTimer pause;
    bool started, watching, stopped;
    LogLimit log_limit;
    unsigned refs;
    _Atomic unsigned nb_connections; /* written by the home thread, read by any */
    WaitSlot idle;
    char name[CHANNEL_NAME_BYTES];
};

typedef struct Connection {
    ChannelListener *listener;
    Channel *ch;
} Connection;

/* --- references --- */

static void listener_unref(ChannelListener *listener)
{
    if (--listener->refs == 0) {
        free(listener);
    }
}

/* --- watching --- */

static void accept_cb(void *opaque);

static void listener_watch(ChannelListener *listener)
{
    static const AioHandlerOps ops = { .read = accept_cb };
    bool on = listener->started && !listener->stopped && !listener->pause.heap_index &&
              atomic_load(&listener->nb_connections) < listener->params.connections_max;

    if (on == listener->watching) {
        return;
    }
    listener->watching = on;
    for (unsigned i = 0; i < listener->sockets.nb; i++) {
        aio_set_fd_handler(listener->ctx, listener->sockets.fds[i], on ? &ops : NULL, listener);
    }
}

static void pause_timer_cb(void *opaque)
{
    listener_watch(opaque);
}

/* --- connections --- */

static void ended_bh(void *opaque)
{
    ChannelListener *listener = opaque;

    if (atomic_fetch_sub(&listener->nb_connections, 1) == 1) {
        wait_slot_wake(&listener->idle);
    }
    listener_watch(listener);
    listener_unref(listener);
}

static co_fn void connection_entry(void *opaque)
{
    Connection conn = *(Connection *)opaque;

    free(opaque);
    conn.listener->params.connection(conn.ch, conn.listener->params.opaque);
    aio_bh_schedule_oneshot(conn.listener->ctx, ended_bh, conn.listener);
}

/* Begin to serve @fd, which is ours now; -ENOMEM when there is no stack for it. */
static int connection_start(ChannelListener *listener, int fd)
{
    Channel *ch = channel_socket_adopt(fd, NULL);

    if (!ch) {
        return 0; /* the peer has gone again */
    }
    Connection *conn = malloc(sizeof(*conn));
    Coroutine *co = conn ? co_create(connection_entry, conn) : NULL;

    if (!co) {
        free(conn);
        channel_unref(ch);
        return -ENOMEM;
    }
    *conn = (Connection){ listener, ch };
    listener->refs++;
    atomic_fetch_add(&listener->nb_connections, 1);
    co_enter(co);
    return 0;
}

/* --- accepting --- */

/* Those after which the next connection may well be accepted. */
static bool is_of_one_connection(int code)
{
    switch (code) {
    case -EINTR:
    case -ECONNABORTED:
    case -EPROTO:
    case -EPERM:
    case -ENETDOWN:
    case -ENETUNREACH:
    case -EHOSTDOWN:
    case -EHOSTUNREACH:
    case -ENOPROTOOPT:
    case -EOPNOTSUPP:
        return true;
    default:
        return false;
    }
}

/* 1 = one was accepted or has failed alone, 0 = nobody is there, -errno = a shortage. */
static int accept_one(ChannelListener *listener, int listen_fd)
{
    int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    int ret = fd < 0 ? -errno : 0;

    if (ret == -EAGAIN) {
        return 0;
    }
    if (ret == 0) {
        ret = connection_start(listener, fd);
    }
    return ret == 0 || is_of_one_connection(ret) ? 1 : ret;
}

static void accept_pause(ChannelListener *listener, int code)
{
    log_limited(&listener->log_limit, LOG_LEVEL_WARN, "channel", "listening on '%s': accept: %s",
                listener->name, error_strerror(code));
    aio_timer_arm(&listener->pause, aio_now_ns() + ACCEPT_PAUSE_NS);
}

static void accept_cb(void *opaque)
{
    ChannelListener *listener = opaque;
    int ret = 1;

    listener->refs++; /* a connection may stop it and drop the last other one */
    for (unsigned i = 0; ret >= 0 && i < listener->sockets.nb; i++) {
        ret = 1;
        for (unsigned n = 0; ret > 0 && n < ACCEPT_BATCH; n++) {
            ret = listener->watching ? accept_one(listener, listener->sockets.fds[i]) : 0;
            if (atomic_load(&listener->nb_connections) >= listener->params.connections_max) {
                listener_watch(listener);
            }
        }
    }
    if (ret < 0 && !listener->stopped) {
        accept_pause(listener, ret);
        listener_watch(listener);
    }
    listener_unref(listener);
}

/* --- public --- */

static ChannelListener *listener_create(const ChannelListenerParams *params, Error *err)
{
    ChannelListener *listener = calloc(1, sizeof(*listener));

    assert(aio_current());
    if (!listener) {
        error_set(err, -ENOMEM, "listener: out of memory");
        return NULL;
    }
    listener->refs = 1;
    listener->ctx = aio_current();
    listener->params = *params;
    if (!listener->params.connections_max) {
        listener->params.connections_max = CHANNEL_CONNECTIONS_MAX_DEFAULT;
    }
    aio_timer_init(&listener->pause, listener->ctx, pause_timer_cb, listener);
    return listener;
}

/* The sockets are open, or @ret says why not. */
static ChannelListener *listener_opened(ChannelListener *listener, int ret)
{
    struct sockaddr_storage sa;
    socklen_t len = sizeof(sa);

    if (ret == 0 && getsockname(listener->sockets.fds[0], (struct sockaddr *)&sa, &len) == 0) {
        socket_address_format_sa((struct sockaddr *)&sa, len, listener->name);
    }
    if (ret < 0) {
        listener_unref(listener);
        return NULL;
    }
    return listener;
}

ChannelListener *channel_listener_create(const SocketAddress *addr,
                                         const ChannelListenerParams *params, Error *err)
{
    ChannelListener *listener = listener_create(params, err);

    return listener
               ? listener_opened(listener, listen_sockets_open(addr, &listener->sockets, err))
               : NULL;
}

ChannelListener *channel_listener_adopt(int fd, const ChannelListenerParams *params, Error *err)
{
    ChannelListener *listener = listener_create(params, err);

    if (!listener) {
        close(fd);
        return NULL;
    }
    return listener_opened(listener, listen_sockets_adopt(fd, &listener->sockets, err));
}

void channel_listener_start(ChannelListener *listener)
{
    assert(aio_current() == listener->ctx);
    listener->started = true;
    listener_watch(listener);
}

void channel_listener_stop(ChannelListener *listener)
{
    assert(aio_current() == listener->ctx);
    listener->stopped = true;
    listener_watch(listener);
    aio_timer_disarm(&listener->pause);
    listen_sockets_close(&listener->sockets);
}

int channel_listener_co_wait_idle(ChannelListener *listener, int64_t deadline_ns)
{
    bool woken = true;

    assert(aio_current() == listener->ctx);
    while (woken) {
        wait_slot_prepare(&listener->idle);
        if (channel_listener_nb_connections(listener) == 0) {
            wait_slot_abandon(&listener->idle);
            return 0;
        }
        woken = wait_slot_yield(&listener->idle, deadline_ns);
    }
    return -ETIMEDOUT;
}

void channel_listener_unref(ChannelListener *listener)
{
    if (listener) {
        channel_listener_stop(listener);
        listener_unref(listener);
    }
}

unsigned channel_listener_nb_connections(const ChannelListener *listener)
{
    return atomic_load(&listener->nb_connections);
}

const char *channel_listener_name(const ChannelListener *listener)
{
    return listener->name;
}
