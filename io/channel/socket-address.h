/*
 * SocketAddress - where a stream socket is, as a user writes it
 *
 * Layer:     io/channel
 * Threading: values; pure functions.
 *
 *     unix:PATH     a socket file; PATH is everything that follows, up to 107 bytes
 *     HOST:PORT     a name or an IPv4 address, resolved when it is used
 *     [V6]:PORT     an IPv6 address, with %SCOPE if need be
 *     :PORT         no host: this machine to connect to, all of its addresses to listen on
 * PORT is 0 to 65535 (0 only to listen: the kernel chooses) or a service's name.
 */
#ifndef IO_CHANNEL_SOCKET_ADDRESS_H
#define IO_CHANNEL_SOCKET_ADDRESS_H

#include <sys/socket.h>

#include "io/base/error.h"

#define SOCKET_PATH_BYTES 108  /* with the closing NUL, as struct sockaddr_un has it */
#define SOCKET_HOST_BYTES 256
#define SOCKET_PORT_BYTES 32
#define SOCKET_ADDRESS_TEXT_BYTES (SOCKET_HOST_BYTES + SOCKET_PORT_BYTES + 8)

typedef enum SocketAddressType {
    SOCKET_ADDRESS_UNIX,
    SOCKET_ADDRESS_TCP,
} SocketAddressType;

typedef struct SocketAddress {
    SocketAddressType type;
    char path[SOCKET_PATH_BYTES]; /* unix */
    char host[SOCKET_HOST_BYTES]; /* tcp; "" = none given; no brackets */
    char port[SOCKET_PORT_BYTES]; /* tcp */
} SocketAddress;

/* socket_address_parse - Errors: -EINVAL, -ENAMETOOLONG; the message has @text in it */
int socket_address_parse(const char *text, SocketAddress *ret_addr, Error *err) NONNULL(1, 2)
    WARN_UNUSED;
/* The same from parts that were taken out of a URI. @path, @host NULL-able: see above. */
int socket_address_set_unix(SocketAddress *ret_addr, const char *path, Error *err) NONNULL(1, 2)
    WARN_UNUSED;
int socket_address_set_tcp(SocketAddress *ret_addr, const char *host, const char *port, Error *err)
    NONNULL(1, 3) WARN_UNUSED;

/* socket_address_format - the text that socket_address_parse() takes; returns @buf */
char *socket_address_format(const SocketAddress *addr, char buf[SOCKET_ADDRESS_TEXT_BYTES])
    NONNULL(1, 2);
/* socket_address_format_sa - the same of what the kernel has; "unix:" for a socket without name */
char *socket_address_format_sa(const struct sockaddr *sa, socklen_t len_bytes,
                               char buf[SOCKET_ADDRESS_TEXT_BYTES]) NONNULL(1, 3);

#endif
