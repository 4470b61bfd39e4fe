/*
 * listen-socket - sockets that listen, and the file of a unix one
 *
 * Layer:     io/channel, private
 * Threading: values; the owner's. Opening may block (name resolution).
 */
#ifndef IO_CHANNEL_LISTEN_SOCKET_H
#define IO_CHANNEL_LISTEN_SOCKET_H

#include <sys/types.h>

#include "io/channel/socket-address.h"

#define LISTEN_SOCKETS_MAX 8 /* addresses of one host name */

typedef struct ListenSockets {
    unsigned nb;
    int fds[LISTEN_SOCKETS_MAX];
    bool adopted; /* somebody else may listen on it, too */
    char path[SOCKET_PATH_BYTES]; /* of the file that is ours to remove; "" = none */
    dev_t file_dev;
    ino_t file_ino;
} ListenSockets;

/* All or nothing: on failure *ret_sockets is empty. */
int listen_sockets_open(const SocketAddress *addr, ListenSockets *ret_sockets, Error *err)
    NONNULL(1, 2) WARN_UNUSED;
/* Owns: @fd, on failure, too. */
int listen_sockets_adopt(int fd, ListenSockets *ret_sockets, Error *err) NONNULL(2) WARN_UNUSED;
void listen_sockets_close(ListenSockets *sockets) NONNULL(1);

#endif
