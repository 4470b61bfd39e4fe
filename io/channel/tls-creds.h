/*
 * TlsCreds - who we are and whom we trust: certificates or pre-shared keys, loaded once
 *
 * Layer:     io/channel
 * Threading: immutable after creation; any thread, any number of sessions at once.
 * Lifetime:  reference counted; sessions hold references.
 *
 * Creating reads files and may block: start-up and open only. Messages name the file. A folder of
 * certificates has the names that nbdkit, libnbd and QEMU use: ca-cert.pem, ca-crl.pem (optional),
 * server-cert.pem, server-key.pem, client-cert.pem, client-key.pem. A file of keys is what psktool
 * writes: lines NAME:HEX.
 */
#ifndef IO_CHANNEL_TLS_CREDS_H
#define IO_CHANNEL_TLS_CREDS_H

#include "io/base/error.h"

typedef struct TlsCreds TlsCreds;

typedef enum TlsRole {
    TLS_CLIENT,
    TLS_SERVER,
} TlsRole;

/*
 * tls_creds_create_x509 - certificates from a folder
 * @dir          a client may pass NULL: it trusts what the system trusts, and shows no certificate
 * @verify_peer  server: require a certificate of the client signed by the CA; client: check the
 *               server's certificate and host name (false: encrypted, but with whom is not known)
 * A server needs its certificate and key; a client may have them. Who verifies needs the CA.
 * Errors: -ENOENT, -EACCES, -EINVAL (not parseable, key does not match), -EKEYEXPIRED
 */
TlsCreds *tls_creds_create_x509(TlsRole role, const char *dir, bool verify_peer, Error *err)
    WARN_UNUSED;
/*
 * tls_creds_create_psk - pre-shared keys from a file
 * @username  client: whose key to use; server: NULL, any that the file has
 * Errors: -ENOENT (also: no such user), -EACCES, -EINVAL, -EFBIG
 */
TlsCreds *tls_creds_create_psk(TlsRole role, const char *path, const char *username, Error *err)
    NONNULL(2) WARN_UNUSED;

TlsCreds *tls_creds_ref(TlsCreds *creds) NONNULL(1);
void tls_creds_unref(TlsCreds *creds);

#endif
