/*
 * NbdUri - where an NBD export is, and how to speak to its server
 *
 * Layer:     block/nbd (may use io/)
 * Threading: values; pure functions, but for nbd_uri_load_creds().
 * Lifetime:  nbd_uri_parse() or nbd_uri_from_opts() .. nbd_uri_finish()
 * Spec:      NetworkBlockDevice/nbd doc/uri.md, RFC 3986
 *
 *     nbd://HOST[:PORT][/NAME]               TCP; PORT is 10809 unless it is said
 *     nbd+unix:///[NAME]?socket=PATH         a unix socket
 *     nbds://...  nbds+unix://...            the same with TLS, without which they fail
 * All parts may have %XX. Parameters, after `?`, several separated by `&`:
 *     socket=PATH            unix only, and required there
 *     tls-certificates=DIR   certificates: what TlsCreds looks for in a folder
 *     tls-psk-file=FILE      pre-shared keys instead
 *     tls-username=NAME      whose key; also USER@ before the host; default: who we are
 *     tls-hostname=NAME      for which the server's certificate must be, instead of HOST
 *     tls-verify-peer=0|1    default 1
 *     tls-type=x509|psk      says what the above imply, and is checked against it
 * Unlike with some clients nbd: is never encrypted: a peer in between could prevent it, and then
 * nobody would be told.
 *
 * The same as a list of options: host=, port=, socket=, export=, tls=on, and tls-... as above; or
 * uri=URI. A URI in such a list has its commas doubled, or as %2C.
 */
#ifndef BLOCK_NBD_NBD_URI_H
#define BLOCK_NBD_NBD_URI_H

#include "io/base/opts.h"
#include "io/channel/socket-address.h"
#include "io/channel/tls-creds.h"

typedef struct NbdUri {
    SocketAddress addr;
    char *export_name; /* "" = the server's default */
    bool tls;
    bool tls_verify_peer;
    char *tls_certificates; /* this and the following: NULL = not said */
    char *tls_psk_file;
    char *tls_username;
    char *tls_hostname;
} NbdUri;

/* nbd_uri_is_uri - whether @text begins with a scheme of these */
bool nbd_uri_is_uri(const char *text) NONNULL(1);
/* nbd_uri_parse - Errors: -EINVAL, -ENAMETOOLONG, -ENOMEM; the message names what is wrong and
 * @what.
 * @uri is then empty and needs no finish. */
int nbd_uri_parse(const char *what, const char *text, NbdUri *ret_uri, Error *err)
    NONNULL(1, 2, 3) WARN_UNUSED;
/* nbd_uri_from_opts - take the keys above (and path=URI) out of @opts; others are left. As
 * above. */
int nbd_uri_from_opts(Opts *opts, NbdUri *ret_uri, Error *err) NONNULL(1, 2) WARN_UNUSED;
void nbd_uri_finish(NbdUri *uri);

/* nbd_uri_load_creds - what uri->tls, which is true, asks for. Reads files: start-up and open only.
 * Errors: as tls_creds_create_x509() and _psk(); -EINVAL a server without either */
TlsCreds *nbd_uri_load_creds(const NbdUri *uri, TlsRole role, Error *err) NONNULL(1) WARN_UNUSED;
/* nbd_uri_tls_hostname - for which the server's certificate must be; NULL: none is asked for */
const char *nbd_uri_tls_hostname(const NbdUri *uri) NONNULL(1);

/* nbd_uri_describe - "nbd+unix:///name?socket=/run/nbd.sock" for messages, without secrets; to be
 * freed by the caller; NULL when out of memory */
char *nbd_uri_describe(const NbdUri *uri) NONNULL(1) WARN_UNUSED;

#endif
