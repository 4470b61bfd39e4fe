/*
 * nbd-uri.c - see nbd-uri.h
 */
#include "block/nbd/nbd-uri.h"

#include <ctype.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>

#include "block/nbd/nbd-proto.h"

#define URI_BYTES_MAX 16384
#define USER_BYTES    256

static const struct {
    const char *text;
    bool tls;
    SocketAddressType type;
} schemes[] = {
    { "nbd://", false, SOCKET_ADDRESS_TCP },
    { "nbds://", true, SOCKET_ADDRESS_TCP },
    { "nbd+unix://", false, SOCKET_ADDRESS_UNIX },
    { "nbds+unix://", true, SOCKET_ADDRESS_UNIX },
};

/* What is said before it is checked together; from a URI or from options. */
typedef struct Parts {
    SocketAddressType type;
    bool tls;
    char *host, *port, *socket, *export_name;
    char *username, *hostname, *certificates, *psk_file, *verify_peer, *type_name;
} Parts;

/* The parameters that a URI and a list of options have in common. */
static const struct {
    const char *key;
    size_t part;
} params[] = {
    { "socket", offsetof(Parts, socket) },
    { "tls-certificates", offsetof(Parts, certificates) },
    { "tls-psk-file", offsetof(Parts, psk_file) },
    { "tls-username", offsetof(Parts, username) },
    { "tls-hostname", offsetof(Parts, hostname) },
    { "tls-verify-peer", offsetof(Parts, verify_peer) },
    { "tls-type", offsetof(Parts, type_name) },
};

static char **part(Parts *parts, size_t offset)
{
    return (char **)((char *)parts + offset);
}

static void parts_finish(Parts *parts)
{
    free(parts->host);
    free(parts->port);
    free(parts->export_name);
    for (unsigned i = 0; i < ARRAY_SIZE(params); i++) {
        free(*part(parts, params[i].part));
    }
}

static int no_memory(const char *what, Error *err)
{
    return error_set(err, -ENOMEM, "%s: out of memory", what);
}

/* --- text of a URI --- */

static int hex_value(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* A copy of @len bytes with %XX replaced. NUL is refused: nothing here can have it in it. */
static int decode(const char *what, const char *text, size_t len, char **ret_text, Error *err)
{
    AUTO_FREE char *copy = malloc(len + 1);
    size_t at = 0;

    if (!copy) {
        return no_memory(what, err);
    }
    for (size_t i = 0; i < len; i++) {
        if (text[i] != '%') {
            copy[at++] = text[i];
            continue;
        }
        int high = i + 2 < len ? hex_value(text[i + 1]) : -1;
        int low = i + 2 < len ? hex_value(text[i + 2]) : -1;

        if (high < 0 || low < 0 || (high == 0 && low == 0)) {
            return error_set(err, -EINVAL,
                             "%s: '%.*s': '%%' needs two hexadecimal digits, and not 00", what,
                             (int)MIN(len, (size_t)128), text);
        }
        copy[at++] = (char)(high * 16 + low);
        i += 2;
    }
    copy[at] = '\0';
    *ret_text = take_ptr(&copy);
    return 0;
}

/* [USER@]HOST[:PORT] */
static int parse_authority(const char *what, const char *text, size_t len, Parts *parts, Error *err)
{
    const char *end = text + len;
    const char *at = memchr(text, '@', len);
    const char *host, *host_end, *colon;
    int ret = 0;

    if (at) {
        ret = decode(what, text, (size_t)(at - text), &parts->username, err);
        text = at + 1;
    }
    host = text;
    if (host < end && *host == '[') {
        host_end = memchr(host, ']', (size_t)(end - host));
        if (!host_end || (host_end + 1 < end && host_end[1] != ':')) {
            return error_set(err, -EINVAL, "%s: '[' without ']' in the host's address", what);
        }
        host++;
        colon = host_end + 1 < end ? host_end + 1 : NULL;
    } else {
        colon = memchr(host, ':', (size_t)(end - host));
        host_end = colon ? colon : end;
    }
    if (ret == 0 && host_end > host) {
        ret = decode(what, host, (size_t)(host_end - host), &parts->host, err);
    }
    if (ret == 0 && colon && colon + 1 < end) {
        ret = decode(what, colon + 1, (size_t)(end - colon - 1), &parts->port, err);
    }
    return ret;
}

static int parse_param(const char *what, const char *text, size_t len, Parts *parts, Error *err)
{
    const char *eq = memchr(text, '=', len);
    size_t key_len = eq ? (size_t)(eq - text) : len;

    for (unsigned i = 0; i < ARRAY_SIZE(params); i++) {
        char **value = part(parts, params[i].part);

        if (strlen(params[i].key) != key_len || strncmp(params[i].key, text, key_len) != 0) {
            continue;
        }
        if (*value) {
            return error_set(err, -EINVAL, "%s: %s is given twice in the URI", what, params[i].key);
        }
        if (!eq) {
            return error_set(err, -EINVAL, "%s: %s has no value in the URI", what, params[i].key);
        }
        return decode(what, eq + 1, len - key_len - 1, value, err);
    }
    return error_set(err, -EINVAL, "%s: a URI of NBD has no parameter '%.*s'", what,
                     (int)MIN(key_len, (size_t)64), text);
}

static int parse_query(const char *what, const char *text, Parts *parts, Error *err)
{
    int ret = 0;

    while (ret == 0 && *text) {
        size_t len = strcspn(text, "&");

        if (len > 0) {
            ret = parse_param(what, text, len, parts, err);
        }
        text += len;
        text += *text == '&';
    }
    return ret;
}

static int scheme_of(const char *text)
{
    for (unsigned i = 0; i < ARRAY_SIZE(schemes); i++) {
        if (strncasecmp(text, schemes[i].text, strlen(schemes[i].text)) == 0) {
            return (int)i;
        }
    }
    return -1;
}

bool nbd_uri_is_uri(const char *text)
{
    return scheme_of(text) >= 0;
}

static int parse_text(const char *what, const char *text, Parts *parts, Error *err)
{
    int scheme = scheme_of(text);
    size_t len;
    int ret;

    if (scheme < 0) {
        return error_set(err, -EINVAL,
                         "%s: '%.128s' is no URI of NBD: nbd://HOST/NAME or "
                         "nbd+unix:///NAME?socket=PATH expected",
                         what, text);
    }
    if (strlen(text) > URI_BYTES_MAX || strchr(text, '#')) {
        return error_set(err, -EINVAL, "%s: a URI of NBD has no '#', and %d bytes at most", what,
                         URI_BYTES_MAX);
    }
    parts->type = schemes[scheme].type;
    parts->tls = schemes[scheme].tls;
    text += strlen(schemes[scheme].text);
    len = strcspn(text, "/?");
    ret = parse_authority(what, text, len, parts, err);
    text += len;
    if (ret == 0 && *text == '/') {
        len = strcspn(++text, "?");
        ret = decode(what, text, len, &parts->export_name, err);
        text += len;
    }
    return ret == 0 && *text == '?' ? parse_query(what, text + 1, parts, err) : ret;
}

/* --- what the parts say together --- */

static int check_tls(const char *what, const Parts *parts, NbdUri *uri, Error *err)
{
    bool psk = parts->psk_file != NULL;

    if (!parts->tls && (parts->certificates || parts->psk_file || parts->username ||
                        parts->hostname || parts->verify_peer || parts->type_name)) {
        return error_set(err, -EINVAL,
                         "%s: parameters of TLS without TLS: nbds://, nbds+unix:// or tls=on",
                         what);
    }
    if (psk && parts->certificates) {
        return error_set(err, -EINVAL, "%s: tls-psk-file and tls-certificates exclude each other",
                         what);
    }
    if (parts->type_name && strcmp(parts->type_name, psk ? "psk" : "x509") != 0) {
        return error_set(err, -EINVAL, "%s: tls-type=%s does not go with %s", what,
                         parts->type_name, psk ? "tls-psk-file" : "what else is said");
    }
    uri->tls = parts->tls;
    uri->tls_verify_peer = true;
    if (parts->verify_peer) {
        if (strcmp(parts->verify_peer, "0") != 0 && strcmp(parts->verify_peer, "1") != 0) {
            return error_set(err, -EINVAL, "%s: tls-verify-peer: '%s' is not 0 or 1", what,
                             parts->verify_peer);
        }
        uri->tls_verify_peer = parts->verify_peer[0] == '1';
    }
    return 0;
}

static int check_address(const char *what, const Parts *parts, NbdUri *uri, Error *err)
{
    Error reason;
    int ret;

    if (parts->type == SOCKET_ADDRESS_UNIX) {
        if (!parts->socket || parts->host || parts->port) {
            return error_set(err, -EINVAL, "%s: a unix socket is %s", what,
                             parts->socket ? "on no host and port" : "named by socket=PATH");
        }
        ret = socket_address_set_unix(&uri->addr, parts->socket, &reason);
    } else if (parts->socket) {
        return error_set(err, -EINVAL, "%s: socket=%s goes with nbd+unix://, not with a host", what,
                         parts->socket);
    } else {
        ret = socket_address_set_tcp(&uri->addr, parts->host, parts->port ? parts->port : NBD_PORT,
                                     &reason);
    }
    return ret < 0 ? error_set(err, ret, "%s: %s", what, reason.msg) : 0;
}

static int settle(const char *what, Parts *parts, NbdUri *ret_uri, Error *err)
{
    NbdUri uri = { 0 };
    int ret = check_address(what, parts, &uri, err);

    if (ret == 0) {
        ret = check_tls(what, parts, &uri, err);
    }
    if (ret < 0) {
        return ret;
    }
    if (!parts->export_name && !(parts->export_name = strdup(""))) {
        return no_memory(what, err);
    }
    if (strlen(parts->export_name) > NBD_STRING_BYTES) {
        return error_set(err, -ENAMETOOLONG, "%s: the export's name is longer than %d bytes", what,
                         NBD_STRING_BYTES);
    }
    uri.export_name = take_ptr(&parts->export_name);
    uri.tls_certificates = take_ptr(&parts->certificates);
    uri.tls_psk_file = take_ptr(&parts->psk_file);
    uri.tls_username = take_ptr(&parts->username);
    uri.tls_hostname = take_ptr(&parts->hostname);
    *ret_uri = uri;
    return 0;
}

int nbd_uri_parse(const char *what, const char *text, NbdUri *ret_uri, Error *err)
{
    Parts parts = { 0 };
    int ret = parse_text(what, text, &parts, err);

    if (ret == 0) {
        ret = settle(what, &parts, ret_uri, err);
    }
    parts_finish(&parts);
    return ret;
}

/* --- options --- */

static int take_part(Opts *opts, const char *key, char **ret_value, Error *err)
{
    const char *value = opts_get(opts, key);

    if (!value) {
        return 0;
    }
    *ret_value = strdup(value);
    return *ret_value ? 0 : no_memory(opts->what, err);
}

static int take_parts(Opts *opts, Parts *parts, Error *err)
{
    int ret = take_part(opts, "host", &parts->host, err);

    if (ret == 0) {
        ret = take_part(opts, "port", &parts->port, err);
    }
    if (ret == 0) {
        ret = take_part(opts, "export", &parts->export_name, err);
    }
    if (ret == 0) {
        ret = opts_get_bool(opts, "tls", &parts->tls, err);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(params) && ret == 0; i++) {
        ret = take_part(opts, params[i].key, part(parts, params[i].part), err);
    }
    if (ret == 0 && !parts->host && !parts->socket) {
        ret = error_set(err, -EINVAL,
                        "%s: no server is named: uri=URI, host=HOST or socket=PATH expected",
                        opts->what);
    }
    parts->type = parts->socket ? SOCKET_ADDRESS_UNIX : SOCKET_ADDRESS_TCP;
    return ret;
}

int nbd_uri_from_opts(Opts *opts, NbdUri *ret_uri, Error *err)
{
    const char *text = opts_get(opts, "path");
    const char *uri = opts_get(opts, "uri");
    Parts parts = { 0 };
    int ret;

    if (text && uri) {
        return error_set(err, -EINVAL, "%s: uri= and path= exclude each other", opts->what);
    }
    if (text || uri) {
        return nbd_uri_parse(opts->what, text ? text : uri, ret_uri, err);
    }
    ret = take_parts(opts, &parts, err);
    if (ret == 0) {
        ret = settle(opts->what, &parts, ret_uri, err);
    }
    parts_finish(&parts);
    return ret;
}

void nbd_uri_finish(NbdUri *uri)
{
    if (uri) {
        free(uri->export_name);
        free(uri->tls_certificates);
        free(uri->tls_psk_file);
        free(uri->tls_username);
        free(uri->tls_hostname);
        *uri = (NbdUri){ 0 };
    }
}

/* --- what it is used for --- */

/* Who this process belongs to, as the URI's text wants it. */
static bool own_username(char name[USER_BYTES])
{
    struct passwd pw, *found = NULL;
    char buf[4096];

    if (getpwuid_r(geteuid(), &pw, buf, sizeof(buf), &found) != 0 || !found) {
        return false;
    }
    return snprintf(name, USER_BYTES, "%s", found->pw_name) < USER_BYTES;
}

TlsCreds *nbd_uri_load_creds(const NbdUri *uri, TlsRole role, Error *err)
{
    const char *username = uri->tls_username;
    char own[USER_BYTES];

    assert(uri->tls);
    if (!uri->tls_psk_file) {
        if (role == TLS_SERVER && !uri->tls_certificates) {
            error_set(err, -EINVAL,
                      "TLS: a server needs tls-certificates=DIR or tls-psk-file=FILE");
            return NULL;
        }
        return tls_creds_create_x509(role, uri->tls_certificates, uri->tls_verify_peer, err);
    }
    if (role == TLS_CLIENT && !username) {
        if (!own_username(own)) {
            error_set(err, -EINVAL, "TLS: who we are is not known; tls-username=NAME would do");
            return NULL;
        }
        username = own;
    }
    return tls_creds_create_psk(role, uri->tls_psk_file, role == TLS_CLIENT ? username : NULL, err);
}

const char *nbd_uri_tls_hostname(const NbdUri *uri)
{
    if (uri->tls_hostname) {
        return uri->tls_hostname;
    }
    return uri->addr.type == SOCKET_ADDRESS_TCP && uri->addr.host[0] ? uri->addr.host : NULL;
}

/* Percent-encode what a path or a query cannot have; returns where @at goes on. */
static char *encode(char *at, const char *text)
{
    static const char digits[] = "0123456789ABCDEF";

    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;

        if (isalnum(c) || strchr("-._~/:", c)) {
            *at++ = (char)c;
        } else {
            *at++ = '%';
            *at++ = digits[c >> 4];
            *at++ = digits[c & 15];
        }
    }
    *at = '\0';
    return at;
}

char *nbd_uri_describe(const NbdUri *uri)
{
    bool is_unix = uri->addr.type == SOCKET_ADDRESS_UNIX;
    size_t size =
        3 * (strlen(uri->export_name) + SOCKET_PATH_BYTES) + SOCKET_ADDRESS_TEXT_BYTES + 64;
    char *text = malloc(size);
    char *at = text;

    if (!text) {
        return NULL;
    }
    at += snprintf(at, size, "nbd%s%s://", uri->tls ? "s" : "", is_unix ? "+unix" : "");
    if (!is_unix) {
        socket_address_format(&uri->addr, at);
        at += strlen(at);
    }
    *at++ = '/';
    at = encode(at, uri->export_name);
    if (is_unix) {
        at += sprintf(at, "?socket=");
        encode(at, uri->addr.path);
    }
    return text;
}
