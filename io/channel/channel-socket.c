/*
 * channel-socket.c - stream sockets, and the descriptors that unix ones carry
 *
 * Descriptors come attached to bytes: recvmsg() stops at the first byte that has some, so what
 * comes with one call belongs to the bytes of that call or those before them in the same message.
 * The control buffer has room for as many as there can be, whether anybody wants them or not: what
 * the kernel drops it closes in our thread, which may take time (foreign-fd.h). More than the
 * caller can take end the stream. So no descriptor is ever in our table without being in the
 * caller's list or about to be closed. The kernel still drops those that our table has no room for,
 * and says MSG_CTRUNC.
 */
#include "io/channel/channel-socket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/ioctl.h>

#include "io/channel/channel-int.h"
#include "io/channel/foreign-fd.h"

#define SCM_FDS_MAX      253 /* of a message; the kernel's SCM_MAX_FD */
#define SCM_OTHERS_BYTES 128 /* for what else a socket may be made to tell */

typedef struct SocketChannel {
    Channel base;
    int fd;
    bool is_unix;
} SocketChannel;

typedef union FdControl {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int) * CHANNEL_FDS_MAX)];
} FdControl;

typedef union ReadControl {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int) * SCM_FDS_MAX) + SCM_OTHERS_BYTES];
} ReadControl;

static SocketChannel *socket_of(Channel *ch)
{
    return container_of(ch, SocketChannel, base);
}

/* --- reading --- */

/* @fds  NULL: nobody wants them. False: they are more than it has room for. */
static bool fds_take(struct msghdr *msg, ChannelFds *fds)
{
    bool all = true;

    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        unsigned nb = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        for (unsigned i = 0; i < nb; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(fd), sizeof(fd));
            if (fds && fds->nb < CHANNEL_FDS_MAX) {
                fds->fds[fds->nb++] = fd;
            } else {
                fd_close_foreign(fd);
                all = false;
            }
        }
    }
    return all;
}

static ssize_t socket_co_readv(Channel *ch, const struct iovec *iov, int niov, ChannelFds *fds)
{
    struct msghdr msg = { .msg_iov = (struct iovec *)iov, .msg_iovlen = niov };
    ReadControl control;
    ssize_t ret;

    if (socket_of(ch)->is_unix) {
        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control);
    }
    do {
        ret = recvmsg(socket_of(ch)->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (ret < 0 && errno == EINTR);
    if (ret < 0) {
        return -errno;
    }
    bool all = fds_take(&msg, fds);

    if (fds && (!all || (msg.msg_flags & MSG_CTRUNC))) {
        channel_fds_close(fds);
        return all ? -EMFILE : -EMSGSIZE;
    }
    return ret;
}

/* --- writing --- */

static void fds_put(struct msghdr *msg, FdControl *control, const ChannelFds *fds)
{
    size_t len_bytes = sizeof(int) * fds->nb;

    memset(control, 0, sizeof(*control));
    msg->msg_control = control;
    msg->msg_controllen = CMSG_SPACE(len_bytes);
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg);

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(len_bytes);
    memcpy(CMSG_DATA(cmsg), fds->fds, len_bytes);
}

static ssize_t socket_co_writev(Channel *ch, const struct iovec *iov, int niov,
                                const ChannelFds *fds)
{
    SocketChannel *sock = socket_of(ch);
    struct msghdr msg = { .msg_iov = (struct iovec *)iov, .msg_iovlen = niov };
    FdControl control;
    ssize_t ret;

    if (fds) {
        if (!sock->is_unix) {
            return -EINVAL;
        }
        fds_put(&msg, &control, fds);
    }
    do {
        ret = sendmsg(sock->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : ret;
}

/* --- the rest --- */

static void socket_watch(Channel *ch, ChannelCondition condition, bool on)
{
    channel_watch_fd(ch, condition, socket_of(ch)->fd, true, on);
}

static void socket_shutdown(Channel *ch, unsigned directions)
{
    /* -ENOTCONN when the peer was faster: the same to us */
    shutdown(socket_of(ch)->fd, directions == CHANNEL_READ    ? SHUT_RD
                                : directions == CHANNEL_WRITE ? SHUT_WR
                                                              : SHUT_RDWR);
}

/* What is still to be read of a unix socket ends with it, and may have descriptors. Nothing more
 * comes once it is shut. */
static void socket_destroy(Channel *ch)
{
    const SocketChannel *sock = socket_of(ch);
    int unread_bytes = 0;

    if (sock->is_unix && (shutdown(sock->fd, SHUT_RD) < 0 ||
                          ioctl(sock->fd, FIONREAD, &unread_bytes) < 0 || unread_bytes > 0)) {
        fd_close_foreign(sock->fd);
    } else {
        close(sock->fd);
    }
    free(ch);
}

static const ChannelOps socket_ops = {
    .co_readv = socket_co_readv,
    .co_writev = socket_co_writev,
    .watch = socket_watch,
    .shutdown = socket_shutdown,
    .destroy = socket_destroy,
};

/* The peer's address; that of this side when the peer has none, as clients of unix sockets do. */
static int socket_text(int fd, char text[SOCKET_ADDRESS_TEXT_BYTES], int *ret_family)
{
    struct sockaddr_storage sa;
    socklen_t len = sizeof(sa);

    if (getpeername(fd, (struct sockaddr *)&sa, &len) < 0) {
        return -errno;
    }
    if (sa.ss_family == AF_UNIX && len <= offsetof(struct sockaddr, sa_data)) {
        len = sizeof(sa);
        if (getsockname(fd, (struct sockaddr *)&sa, &len) < 0) {
            return -errno;
        }
    }
    *ret_family = sa.ss_family;
    socket_address_format_sa((struct sockaddr *)&sa, len, text);
    return 0;
}

static void tcp_tune(int fd)
{
    static const int one = 1;

    /* Both only make things better; a stream that has neither still works. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
}

static int check_stream(int fd, Error *err)
{
    int type = 0;
    socklen_t len = sizeof(type);

    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0) {
        return error_set(err, -errno, "descriptor %d: %s", fd, error_strerror(errno));
    }
    if (type != SOCK_STREAM) {
        return error_set(err, -EPROTOTYPE, "descriptor %d is no stream socket", fd);
    }
    return 0;
}

Channel *channel_socket_adopt(int fd, Error *err)
{
    char text[SOCKET_ADDRESS_TEXT_BYTES];
    AUTO_FD int owned = fd;
    int family = AF_UNSPEC;

    if (check_stream(fd, err) < 0) {
        return NULL;
    }
    int ret = socket_text(fd, text, &family);

    if (ret == 0) {
        ret = fd_prepare(fd);
    }
    if (ret < 0) {
        error_set(err, ret, "socket %d: %s", fd, error_strerror(ret));
        return NULL;
    }
    SocketChannel *sock = channel_alloc(sizeof(*sock));

    if (!sock) {
        error_set(err, -ENOMEM, "socket '%s': out of memory", text);
        return NULL;
    }
    channel_init(&sock->base, &socket_ops, "%s", text);
    sock->fd = take_fd(&owned);
    sock->is_unix = family == AF_UNIX;
    if (family == AF_INET || family == AF_INET6) {
        tcp_tune(sock->fd);
    }
    return &sock->base;
}
