/*
 * connect.c - connecting a stream socket, address by address
 *
 * A unix socket whose listener has a full queue gives EAGAIN and cannot be polled for room, so that
 * is tried again after a pause that doubles. With TCP the kernel tries for minutes; as long as
 * there is another address, one gets ATTEMPT_MAX_NS.
 */
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/un.h>

#include "io/channel/channel-socket.h"
#include "io/channel/resolve.h"

#define ATTEMPT_MAX_NS 3000000000
#define PAUSE_MIN_NS   1000000
#define PAUSE_MAX_NS   100000000

typedef struct Connecting {
    int64_t deadline_ns;
    ChannelCancel *cancel;
} Connecting;

static int64_t earlier(int64_t deadline_ns, int64_t other_ns)
{
    return deadline_ns < 0 ? other_ns : MIN(deadline_ns, other_ns);
}

/* 0 = something is to be looked at, perhaps by the next call: -ECANCELED; or -ETIMEDOUT. @fd -1:
 * only let time pass. */
static co_fn int connect_wait(Connecting *c, int fd, int64_t until_ns)
{
    WaitSlot *slot = &c->cancel->slot;
    bool woken;

    wait_slot_prepare(slot);
    if (channel_cancelled(c->cancel)) {
        wait_slot_abandon(slot);
        return -ECANCELED;
    }
    if (fd >= 0) {
        woken = wait_slot_yield_fd(slot, fd, POLLOUT, until_ns);
    } else {
        woken = wait_slot_yield(slot, until_ns);
    }
    return woken ? 0 : -ETIMEDOUT;
}

static co_fn int await_connected(Connecting *c, int fd, int64_t until_ns)
{
    struct pollfd pfd = { .fd = fd, .events = POLLOUT };
    int error = 0;
    socklen_t len = sizeof(error);

    /* A cancelled and re-used slot may still get a late wake-up: ask the socket itself. */
    while (poll(&pfd, 1, 0) <= 0) {
        int ret = connect_wait(c, fd, until_ns);

        if (ret < 0) {
            return ret;
        }
    }
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0) {
        return -errno;
    }
    return -error;
}

/* One address; a socket or -errno. */
static co_fn int connect_one(Connecting *c, const struct sockaddr *sa, socklen_t len,
                             int64_t until_ns)
{
    AUTO_FD int fd = socket(sa->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int64_t pause_ns = PAUSE_MIN_NS;
    int ret;

    if (fd < 0) {
        return -errno;
    }
    for (;;) {
        ret = connect(fd, sa, len) < 0 ? -errno : 0;
        if (ret != -EAGAIN || sa->sa_family != AF_UNIX) {
            break;
        }
        int64_t now_ns = aio_now_ns();

        if (until_ns >= 0 && now_ns >= until_ns) {
            return -ETIMEDOUT;
        }
        ret = connect_wait(c, -1, earlier(until_ns, now_ns + pause_ns));
        if (ret == -ECANCELED) {
            return ret;
        }
        pause_ns = MIN(2 * pause_ns, PAUSE_MAX_NS);
    }
    if (ret == -EINPROGRESS || ret == -EINTR) {
        ret = await_connected(c, fd, until_ns);
    }
    return ret < 0 ? ret : take_fd(&fd);
}

static co_fn int connect_unix(Connecting *c, const SocketAddress *addr)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };

    memcpy(un.sun_path, addr->path, sizeof(un.sun_path));
    return connect_one(c, (struct sockaddr *)&un, sizeof(un), c->deadline_ns);
}

static co_fn int connect_tcp(Connecting *c, const struct addrinfo *list)
{
    int ret = -ENOENT;

    for (const struct addrinfo *ai = list; ai; ai = ai->ai_next) {
        int64_t until_ns = c->deadline_ns;

        if (ai->ai_next) {
            until_ns = earlier(until_ns, aio_now_ns() + ATTEMPT_MAX_NS);
        }
        ret = connect_one(c, ai->ai_addr, ai->ai_addrlen, until_ns);
        if (ret >= 0 || ret == -ECANCELED ||
            (c->deadline_ns >= 0 && aio_now_ns() >= c->deadline_ns)) {
            break;
        }
    }
    return ret;
}

Channel *channel_co_connect(const SocketAddress *addr, int64_t deadline_ns, ChannelCancel *cancel,
                            Error *err)
{
    ChannelCancel own = { .cancelled = false };
    Connecting c = { deadline_ns, cancel ? cancel : &own };
    char text[SOCKET_ADDRESS_TEXT_BYTES];
    int fd;

    if (addr->type == SOCKET_ADDRESS_UNIX) {
        fd = connect_unix(&c, addr);
    } else {
        struct addrinfo *list;

        if (resolve_co(addr, deadline_ns, c.cancel, &list, err) < 0) {
            return NULL;
        }
        fd = connect_tcp(&c, list);
        freeaddrinfo(list);
    }
    if (fd < 0) {
        error_set(err, fd, "connecting to '%s': %s", socket_address_format(addr, text),
                  error_strerror(fd));
        return NULL;
    }
    return channel_socket_adopt(fd, err);
}
