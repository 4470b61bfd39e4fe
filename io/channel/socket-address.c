/*
 * socket-address.c - socket addresses as text
 */
#include "io/channel/socket-address.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

#define UNIX_PREFIX "unix:"

static_assert(SOCKET_PATH_BYTES == sizeof(((struct sockaddr_un *)0)->sun_path), "unix path");

int socket_address_set_unix(SocketAddress *ret_addr, const char *path, Error *err)
{
    if (!path[0]) {
        return error_set(err, -EINVAL, "unix socket: the path is empty");
    }
    if (strlen(path) >= SOCKET_PATH_BYTES) {
        return error_set(err, -ENAMETOOLONG, "unix socket: the path is longer than %d bytes: '%s'",
                         SOCKET_PATH_BYTES - 1, path);
    }
    *ret_addr = (SocketAddress){ .type = SOCKET_ADDRESS_UNIX };
    strcpy(ret_addr->path, path);
    return 0;
}

static bool only_digits(const char *text)
{
    return text[strspn(text, "0123456789")] == '\0';
}

int socket_address_set_tcp(SocketAddress *ret_addr, const char *host, const char *port, Error *err)
{
    if (!host) {
        host = "";
    }
    if (strlen(host) >= SOCKET_HOST_BYTES) {
        return error_set(err, -ENAMETOOLONG, "the host name is longer than %d bytes",
                         SOCKET_HOST_BYTES - 1);
    }
    if (!port[0] || strlen(port) >= SOCKET_PORT_BYTES ||
        (only_digits(port) && (strlen(port) > 5 || atoi(port) > 65535))) {
        return error_set(err, -EINVAL, "port '%.40s' is neither 0 to 65535 nor a service's name",
                         port);
    }
    *ret_addr = (SocketAddress){ .type = SOCKET_ADDRESS_TCP };
    strcpy(ret_addr->host, host);
    strcpy(ret_addr->port, port);
    return 0;
}

/* HOST:PORT or [V6]:PORT */
static int parse_tcp(const char *text, SocketAddress *ret_addr, Error *err)
{
    const char *host = text, *colon = strrchr(text, ':');
    char copy[SOCKET_HOST_BYTES];

    if (!colon) {
        return error_set(err, -EINVAL, "no port: HOST:PORT or unix:PATH is expected");
    }
    size_t len = colon - text;

    if (text[0] == '[') {
        if (len < 3 || colon[-1] != ']') {
            return error_set(err, -EINVAL, "[ADDRESS]:PORT is expected");
        }
        host = text + 1;
        len -= 2;
    } else if (memchr(text, ':', len)) {
        return error_set(err, -EINVAL, "an IPv6 address goes into brackets: [ADDRESS]:PORT");
    }
    if (len >= sizeof(copy)) {
        return error_set(err, -ENAMETOOLONG, "the host name is longer than %zu bytes",
                         sizeof(copy) - 1);
    }
    memcpy(copy, host, len);
    copy[len] = '\0';
    return socket_address_set_tcp(ret_addr, copy, colon + 1, err);
}

int socket_address_parse(const char *text, SocketAddress *ret_addr, Error *err)
{
    static const size_t prefix_bytes = sizeof(UNIX_PREFIX) - 1;
    int ret = strncmp(text, UNIX_PREFIX, prefix_bytes) == 0
                  ? socket_address_set_unix(ret_addr, text + prefix_bytes, err)
                  : parse_tcp(text, ret_addr, err);

    if (ret < 0) {
        error_prefix(err, "socket address '%.64s': ", text);
    }
    return ret;
}

static char *format_tcp(const char *host, const char *port, char buf[SOCKET_ADDRESS_TEXT_BYTES])
{
    snprintf(buf, SOCKET_ADDRESS_TEXT_BYTES, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
    return buf;
}

char *socket_address_format(const SocketAddress *addr, char buf[SOCKET_ADDRESS_TEXT_BYTES])
{
    if (addr->type == SOCKET_ADDRESS_UNIX) {
        snprintf(buf, SOCKET_ADDRESS_TEXT_BYTES, UNIX_PREFIX "%s", addr->path);
        return buf;
    }
    return format_tcp(addr->host, addr->port, buf);
}

char *socket_address_format_sa(const struct sockaddr *sa, socklen_t len_bytes,
                               char buf[SOCKET_ADDRESS_TEXT_BYTES])
{
    char host[INET6_ADDRSTRLEN + IF_NAMESIZE + 1] = "?", port[8];

    if (sa->sa_family == AF_UNIX) {
        const struct sockaddr_un *un = (const struct sockaddr_un *)sa;
        int len = MAX((int)(len_bytes - offsetof(struct sockaddr_un, sun_path)), 0);

        if (len > 0 && !un->sun_path[0]) {
            /* abstract: the first byte is NUL, and the name has no end but its length */
            snprintf(buf, SOCKET_ADDRESS_TEXT_BYTES, UNIX_PREFIX "@%.*s", len - 1,
                     un->sun_path + 1);
        } else {
            snprintf(buf, SOCKET_ADDRESS_TEXT_BYTES, UNIX_PREFIX "%.*s", len, un->sun_path);
        }
        return buf;
    }
    if (sa->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)sa;

        inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host));
        snprintf(port, sizeof(port), "%u", ntohs(in->sin_port));
    } else if (sa->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)sa;
        char scope[IF_NAMESIZE];

        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host));
        if (in6->sin6_scope_id && if_indextoname(in6->sin6_scope_id, scope)) {
            strcat(strcat(host, "%"), scope);
        }
        snprintf(port, sizeof(port), "%u", ntohs(in6->sin6_port));
    } else {
        snprintf(buf, SOCKET_ADDRESS_TEXT_BYTES, "socket of family %d", sa->sa_family);
        return buf;
    }
    return format_tcp(host, port, buf);
}
