/*
 * listen-socket.c - opening and closing sockets that listen
 *
 * The file of a unix socket outlives the process that made it. When the path is taken by a socket,
 * connecting tells whether anybody listens: -ECONNREFUSED means that nobody does, and the file is
 * removed. The file that bind() makes is remembered by device and inode, and removed at the end
 * only if it is still that one: somebody may have put another in its place.
 */
#include "io/channel/listen-socket.h"

#include <netinet/in.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "io/channel/channel-int.h"
#include "io/channel/resolve.h"

static int listen_socket(int family)
{
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    return fd < 0 ? -errno : fd;
}

/* --- unix --- */

static bool file_is_abandoned_socket(const struct sockaddr_un *un)
{
    struct stat st;

    if (lstat(un->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode)) {
        return false;
    }
    AUTO_FD int fd = listen_socket(AF_UNIX);

    return fd >= 0 && connect(fd, (const struct sockaddr *)un, sizeof(*un)) < 0 &&
           errno == ECONNREFUSED;
}

static int unix_bind(int fd, const struct sockaddr_un *un)
{
    if (bind(fd, (const struct sockaddr *)un, sizeof(*un)) == 0) {
        return 0;
    }
    int ret = -errno;

    if (ret != -EADDRINUSE || !file_is_abandoned_socket(un)) {
        return ret;
    }
    if (unlink(un->sun_path) < 0 && errno != ENOENT) {
        return -errno;
    }
    return bind(fd, (const struct sockaddr *)un, sizeof(*un)) < 0 ? -errno : 0;
}

static int open_unix(const SocketAddress *addr, ListenSockets *sockets)
{
    AUTO_FD int fd = listen_socket(AF_UNIX);
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    struct stat st;

    if (fd < 0) {
        return fd;
    }
    memcpy(un.sun_path, addr->path, sizeof(un.sun_path));
    int ret = unix_bind(fd, &un);

    if (ret < 0) {
        return ret;
    }
    if (lstat(addr->path, &st) == 0) {
        memcpy(sockets->path, addr->path, sizeof(sockets->path));
        sockets->file_dev = st.st_dev;
        sockets->file_ino = st.st_ino;
    }
    if (listen(fd, SOMAXCONN) < 0) {
        return -errno;
    }
    sockets->fds[sockets->nb++] = take_fd(&fd);
    return 0;
}

static void remove_own_file(const ListenSockets *sockets)
{
    struct stat st;

    if (sockets->path[0] && lstat(sockets->path, &st) == 0 &&
        st.st_dev == sockets->file_dev && st.st_ino == sockets->file_ino) {
        unlink(sockets->path);
    }
}

/* --- TCP --- */

static in_port_t *port_of(struct sockaddr *sa)
{
    return sa->sa_family == AF_INET6 ? &((struct sockaddr_in6 *)sa)->sin6_port
                                     : &((struct sockaddr_in *)sa)->sin_port;
}

/* Where the user asked for any port, all sockets get the one that the first one got. */
static void same_port(const ListenSockets *sockets, struct sockaddr *sa)
{
    struct sockaddr_storage first;
    socklen_t len = sizeof(first);

    if (sockets->nb > 0 && *port_of(sa) == 0 &&
        getsockname(sockets->fds[0], (struct sockaddr *)&first, &len) == 0) {
        *port_of(sa) = *port_of((struct sockaddr *)&first);
    }
}

static int open_tcp_one(const struct addrinfo *ai, ListenSockets *sockets)
{
    static const int one = 1;
    AUTO_FD int fd = listen_socket(ai->ai_family);

    if (fd < 0) {
        return fd;
    }
    same_port(sockets, ai->ai_addr);
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
        (ai->ai_family == AF_INET6 &&
         setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one)) < 0) ||
        bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, SOMAXCONN) < 0) {
        return -errno;
    }
    sockets->fds[sockets->nb++] = take_fd(&fd);
    return 0;
}

/* A host file may name an address twice. */
static bool seen_before(const struct addrinfo *list, const struct addrinfo *ai)
{
    for (; list != ai; list = list->ai_next) {
        if (list->ai_addrlen == ai->ai_addrlen &&
            memcmp(list->ai_addr, ai->ai_addr, ai->ai_addrlen) == 0) {
            return true;
        }
    }
    return false;
}

static int open_tcp(const struct addrinfo *list, ListenSockets *sockets)
{
    int missing = -EADDRNOTAVAIL;

    for (const struct addrinfo *ai = list; ai && sockets->nb < LISTEN_SOCKETS_MAX;
         ai = ai->ai_next) {
        if (seen_before(list, ai)) {
            continue;
        }
        int ret = open_tcp_one(ai, sockets);

        if (ret == -EAFNOSUPPORT || ret == -EADDRNOTAVAIL) {
            missing = ret;
        } else if (ret < 0) {
            return ret;
        }
    }
    return sockets->nb > 0 ? 0 : missing;
}

/* --- both --- */

int listen_sockets_open(const SocketAddress *addr, ListenSockets *ret_sockets, Error *err)
{
    char text[SOCKET_ADDRESS_TEXT_BYTES];
    struct addrinfo *list = NULL;
    int ret;

    *ret_sockets = (ListenSockets){ .nb = 0 };
    if (addr->type == SOCKET_ADDRESS_UNIX) {
        ret = open_unix(addr, ret_sockets);
    } else {
        ret = resolve_blocking(addr, AI_PASSIVE, &list, err);
        if (ret < 0) {
            return ret;
        }
        ret = open_tcp(list, ret_sockets);
        freeaddrinfo(list);
    }
    if (ret < 0) {
        listen_sockets_close(ret_sockets);
        return error_set(err, ret, "listening on '%s': %s", socket_address_format(addr, text),
                         error_strerror(ret));
    }
    return 0;
}

int listen_sockets_adopt(int fd, ListenSockets *ret_sockets, Error *err)
{
    int listens = 0;
    socklen_t len = sizeof(listens);
    int ret = 0;

    *ret_sockets = (ListenSockets){ .nb = 0 };
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) < 0) {
        ret = error_set(err, -errno, "descriptor %d: %s", fd, error_strerror(errno));
    } else if (!listens) {
        ret = error_set(err, -EINVAL, "descriptor %d is no socket that listens", fd);
    } else {
        ret = fd_prepare(fd);
        if (ret < 0) {
            error_set(err, ret, "descriptor %d: %s", fd, error_strerror(ret));
        }
    }
    if (ret < 0) {
        if (fd >= 0) {
            close(fd);
        }
        return ret;
    }
    ret_sockets->fds[ret_sockets->nb++] = fd;
    ret_sockets->adopted = true;
    return 0;
}

void listen_sockets_close(ListenSockets *sockets)
{
    remove_own_file(sockets); /* first: nobody shall find it refusing */
    sockets->path[0] = '\0';
    while (sockets->nb > 0) {
        int fd = sockets->fds[--sockets->nb];

        if (!sockets->adopted) {
            /* A poll that is being cancelled keeps it open, but shall not keep it listening. */
            shutdown(fd, SHUT_RDWR);
        }
        close(fd);
    }
}
