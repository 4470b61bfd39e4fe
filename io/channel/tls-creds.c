/*
 * tls-creds.c - loading certificates and keys
 *
 * Every file is looked at before the library gets its name, so that a message can say which one is
 * missing or not readable; the library's own codes do not tell.
 */
#include "io/channel/tls-creds.h"

#include <fcntl.h>
#include <gnutls/x509.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "io/channel/tls-creds-int.h"

#define VERSIONS     "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"
#define PSK_VERSIONS VERSIONS ":+ECDHE-PSK:+DHE-PSK"

typedef struct Paths {
    char ca[PATH_MAX], crl[PATH_MAX], cert[PATH_MAX], key[PATH_MAX];
} Paths;

TlsCreds *tls_creds_ref(TlsCreds *creds)
{
    atomic_fetch_add_explicit(&creds->refs, 1, memory_order_relaxed);
    return creds;
}

void tls_creds_unref(TlsCreds *creds)
{
    if (!creds || atomic_fetch_sub_explicit(&creds->refs, 1, memory_order_acq_rel) > 1) {
        return;
    }
    if (creds->x509) {
        gnutls_certificate_free_credentials(creds->x509);
    }
    if (creds->psk_client) {
        gnutls_psk_free_client_credentials(creds->psk_client);
    }
    if (creds->psk_server) {
        gnutls_psk_free_server_credentials(creds->psk_server);
    }
    if (creds->priority) {
        gnutls_priority_deinit(creds->priority);
    }
    psk_file_finish(&creds->psk);
    free(creds);
}

static int tls_error(Error *err, const char *path, int code)
{
    int ret = code == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EINVAL;

    return error_set(err, ret, "'%s': %s", path, gnutls_strerror(code));
}

static int creds_init(TlsCreds *creds, TlsRole role, const char *priority, Error *err)
{
    int code = gnutls_priority_init(&creds->priority, priority, NULL);

    creds->refs = 1;
    creds->role = role;
    if (code < 0) {
        creds->priority = NULL;
        return error_set(err, -EINVAL, "TLS: '%s': %s", priority, gnutls_strerror(code));
    }
    return 0;
}

/* --- certificates --- */

static int check_readable(const char *path, Error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        return error_set(err, -errno, "'%s': %s", path, error_strerror(errno));
    }
    close(fd);
    return 0;
}

static int join(char path[PATH_MAX], const char *dir, const char *prefix, const char *name,
                Error *err)
{
    if (snprintf(path, PATH_MAX, "%s/%s%s", dir, prefix, name) >= PATH_MAX) {
        return error_set(err, -ENAMETOOLONG, "'%.64s...': %s", dir, error_strerror(ENAMETOOLONG));
    }
    return 0;
}

static int make_paths(Paths *paths, TlsRole role, const char *dir, Error *err)
{
    const char *who = role == TLS_SERVER ? "server-" : "client-";
    int ret = join(paths->ca, dir, "ca-", "cert.pem", err);

    if (ret == 0) {
        ret = join(paths->crl, dir, "ca-", "crl.pem", err);
    }
    if (ret == 0) {
        ret = join(paths->cert, dir, who, "cert.pem", err);
    }
    return ret == 0 ? join(paths->key, dir, who, "key.pem", err) : ret;
}

static int load_ca(TlsCreds *creds, const Paths *paths, Error *err)
{
    int ret = check_readable(paths->ca, err);

    if (ret < 0) {
        return ret;
    }
    int nb = gnutls_certificate_set_x509_trust_file(creds->x509, paths->ca, GNUTLS_X509_FMT_PEM);

    if (nb < 0) {
        return tls_error(err, paths->ca, nb);
    }
    if (nb == 0) {
        return error_set(err, -EINVAL, "'%s' has no certificate", paths->ca);
    }
    if (access(paths->crl, F_OK) < 0) {
        return 0;
    }
    ret = check_readable(paths->crl, err);
    if (ret < 0) {
        return ret;
    }
    nb = gnutls_certificate_set_x509_crl_file(creds->x509, paths->crl, GNUTLS_X509_FMT_PEM);
    return nb < 0 ? tls_error(err, paths->crl, nb) : 0;
}

/* What would otherwise be found by every peer, and told to it alone. */
static int check_validity(TlsCreds *creds, const char *path, Error *err)
{
    gnutls_x509_crt_t *crts;
    unsigned nb;
    int code = gnutls_certificate_get_x509_crt(creds->x509, 0, &crts, &nb);
    time_t now = time(NULL);
    int ret = 0;

    if (code < 0) {
        return tls_error(err, path, code);
    }
    if (nb > 0 && gnutls_x509_crt_get_expiration_time(crts[0]) < now) {
        ret = error_set(err, -EKEYEXPIRED, "'%s': the certificate has expired", path);
    } else if (nb > 0 && gnutls_x509_crt_get_activation_time(crts[0]) > now) {
        ret = error_set(err, -EKEYEXPIRED, "'%s': the certificate is not valid yet", path);
    }
    for (unsigned i = 0; i < nb; i++) {
        gnutls_x509_crt_deinit(crts[i]);
    }
    gnutls_free(crts);
    return ret;
}

static int load_own(TlsCreds *creds, const Paths *paths, Error *err)
{
    int ret = check_readable(paths->cert, err);

    if (ret == 0) {
        ret = check_readable(paths->key, err);
    }
    if (ret < 0) {
        return ret;
    }
    int code = gnutls_certificate_set_x509_key_file(creds->x509, paths->cert, paths->key,
                                                    GNUTLS_X509_FMT_PEM);

    if (code < 0) {
        ret = tls_error(err, paths->cert, code);
        error_prefix(err, "with key '%s': ", paths->key);
        return ret;
    }
    return check_validity(creds, paths->cert, err);
}

static int load_dir(TlsCreds *creds, const char *dir, Error *err)
{
    AUTO_FREE Paths *paths = malloc(sizeof(*paths));
    int ret = paths ? make_paths(paths, creds->role, dir, err)
                    : error_set(err, -ENOMEM, "TLS: out of memory");

    if (ret == 0 && creds->verify_peer) {
        ret = load_ca(creds, paths, err);
    }
    if (ret == 0 && (creds->role == TLS_SERVER || access(paths->cert, F_OK) == 0)) {
        ret = load_own(creds, paths, err);
    }
    return ret;
}

static int load_system_trust(TlsCreds *creds, Error *err)
{
    int nb = gnutls_certificate_set_x509_system_trust(creds->x509);

    return nb < 0 ? tls_error(err, "the system's certificates", nb) : 0;
}

TlsCreds *tls_creds_create_x509(TlsRole role, const char *dir, bool verify_peer, Error *err)
{
    TlsCreds *creds = calloc(1, sizeof(*creds));

    assert(dir || role == TLS_CLIENT);
    if (!creds) {
        error_set(err, -ENOMEM, "TLS: out of memory");
        return NULL;
    }
    int ret = creds_init(creds, role, VERSIONS, err);

    creds->verify_peer = verify_peer;
    if (ret == 0 && gnutls_certificate_allocate_credentials(&creds->x509) < 0) {
        ret = error_set(err, -ENOMEM, "TLS: out of memory");
    }
    if (ret == 0) {
        ret = dir ? load_dir(creds, dir, err) : load_system_trust(creds, err);
    }
    if (ret < 0) {
        error_prefix(err, "TLS: ");
        tls_creds_unref(creds);
        return NULL;
    }
    return creds;
}

/* --- pre-shared keys --- */

/*
 * The library asks for the key of @username; it frees key->data. 1 says that there is no such user:
 * it goes on with a key of its own, so that the peer does not learn which of the two was wrong.
 */
static int psk_server_cb(gnutls_session_t session, const char *username, gnutls_datum_t *key)
{
    const TlsCreds *creds = gnutls_session_get_ptr(session);
    const PskKey *found = username ? psk_file_find(&creds->psk, username) : NULL;

    if (!found) {
        return 1;
    }
    key->data = gnutls_malloc(found->len_bytes);
    if (!key->data) {
        return -1;
    }
    memcpy(key->data, found->key, found->len_bytes);
    key->size = (unsigned)found->len_bytes;
    return 0;
}

static int load_psk_client(TlsCreds *creds, const char *path, const char *username, Error *err)
{
    const PskKey *found = psk_file_find(&creds->psk, username);

    if (!found) {
        return error_set(err, -ENOENT, "'%s' has no key of '%s'", path, username);
    }
    gnutls_datum_t key = { (unsigned char *)found->key, (unsigned)found->len_bytes };
    int code = gnutls_psk_allocate_client_credentials(&creds->psk_client);

    if (code >= 0) {
        code = gnutls_psk_set_client_credentials(creds->psk_client, username, &key,
                                                 GNUTLS_PSK_KEY_RAW);
    }
    psk_file_finish(&creds->psk); /* the library has its copy */
    return code < 0 ? tls_error(err, path, code) : 0;
}

static int load_psk_server(TlsCreds *creds, const char *path, Error *err)
{
    int code = gnutls_psk_allocate_server_credentials(&creds->psk_server);

    if (code < 0) {
        return tls_error(err, path, code);
    }
    gnutls_psk_set_server_credentials_function(creds->psk_server, psk_server_cb);
    return 0;
}

TlsCreds *tls_creds_create_psk(TlsRole role, const char *path, const char *username, Error *err)
{
    TlsCreds *creds = calloc(1, sizeof(*creds));

    assert(username || role == TLS_SERVER);
    if (!creds) {
        error_set(err, -ENOMEM, "TLS: out of memory");
        return NULL;
    }
    int ret = creds_init(creds, role, PSK_VERSIONS, err);

    if (ret == 0) {
        ret = psk_file_load(&creds->psk, path, err);
    }
    if (ret == 0) {
        ret = role == TLS_CLIENT ? load_psk_client(creds, path, username, err)
                                 : load_psk_server(creds, path, err);
    }
    if (ret < 0) {
        error_prefix(err, "TLS: ");
        tls_creds_unref(creds);
        return NULL;
    }
    return creds;
}
