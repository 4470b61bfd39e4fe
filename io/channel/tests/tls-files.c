/*
 * tls-files.c - certificates and keys made for a test, with the library that reads them
 */
#include "io/channel/tests/tls-files.h"

#include <dirent.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <limits.h>
#include <stdio.h>
#include <time.h>

#include "io/base/test.h"

#define DAY_S 86400

typedef struct Identity {
    gnutls_x509_privkey_t key;
    gnutls_x509_crt_t crt;
} Identity;

static char folder[] = "/tmp/penstock-tls-XXXXXX";
static Identity ca;

const char *tls_files_path(const char *name)
{
    static char paths[2][PATH_MAX];
    static int turn;
    char *path = paths[turn++ % 2];

    snprintf(path, PATH_MAX, "%s/%s", folder, name);
    return path;
}

void tls_files_write(const char *name, const char *text)
{
    FILE *file = fopen(tls_files_path(name), "w");

    ASSERT_TRUE(file);
    fputs(text, file);
    ASSERT_EQ(fclose(file), 0);
}

static void write_datum(const char *prefix, const char *suffix, gnutls_datum_t *text)
{
    char name[64];

    snprintf(name, sizeof(name), "%s-%s.pem", prefix, suffix);
    tls_files_write(name, (const char *)text->data);
    gnutls_free(text->data);
}

static void identity_write(const Identity *id, const char *prefix)
{
    gnutls_datum_t text;

    ASSERT_EQ(gnutls_x509_crt_export2(id->crt, GNUTLS_X509_FMT_PEM, &text), 0);
    write_datum(prefix, "cert", &text);
    ASSERT_EQ(gnutls_x509_privkey_export2(id->key, GNUTLS_X509_FMT_PEM, &text), 0);
    write_datum(prefix, "key", &text);
}

static void identity_free(Identity *id)
{
    gnutls_x509_crt_deinit(id->crt);
    gnutls_x509_privkey_deinit(id->key);
}

/* A key, and a certificate that is not signed yet; valid until @end, which may have passed. */
static Identity identity_new(const char *dn, unsigned char serial, time_t end)
{
    Identity id;

    gnutls_x509_privkey_init(&id.key);
    ASSERT_EQ(gnutls_x509_privkey_generate(id.key, GNUTLS_PK_ECDSA,
                                           GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0),
              0);
    gnutls_x509_crt_init(&id.crt);
    gnutls_x509_crt_set_version(id.crt, 3);
    gnutls_x509_crt_set_serial(id.crt, &serial, 1);
    gnutls_x509_crt_set_activation_time(id.crt, end - 9 * DAY_S);
    gnutls_x509_crt_set_expiration_time(id.crt, end);
    ASSERT_EQ(gnutls_x509_crt_set_dn(id.crt, dn, NULL), 0);
    ASSERT_EQ(gnutls_x509_crt_set_key(id.crt, id.key), 0);
    return id;
}

static void san(Identity *id, gnutls_x509_subject_alt_name_t type, const void *data, unsigned size)
{
    ASSERT_EQ(gnutls_x509_crt_set_subject_alt_name(id->crt, type, data, size, GNUTLS_FSAN_APPEND),
              0);
}

static void make_server(time_t end)
{
    static const unsigned char ip[4] = { 127, 0, 0, 1 };
    Identity id = identity_new("CN=server", 2, end);

    san(&id, GNUTLS_SAN_DNSNAME, "localhost", 9);
    san(&id, GNUTLS_SAN_DNSNAME, "server.test", 11);
    san(&id, GNUTLS_SAN_IPADDRESS, ip, sizeof(ip));
    gnutls_x509_crt_set_key_purpose_oid(id.crt, GNUTLS_KP_TLS_WWW_SERVER, 0);
    ASSERT_EQ(gnutls_x509_crt_sign2(id.crt, ca.crt, ca.key, GNUTLS_DIG_SHA256, 0), 0);
    identity_write(&id, "server");
    identity_free(&id);
}

static void make_client(void)
{
    Identity id = identity_new("CN=client", 3, time(NULL) + 8 * DAY_S);

    gnutls_x509_crt_set_key_purpose_oid(id.crt, GNUTLS_KP_TLS_WWW_CLIENT, 0);
    ASSERT_EQ(gnutls_x509_crt_sign2(id.crt, ca.crt, ca.key, GNUTLS_DIG_SHA256, 0), 0);
    identity_write(&id, "client");
    identity_free(&id);
}

const char *tls_files_make(void)
{
    ASSERT_TRUE(mkdtemp(folder));
    ca = identity_new("CN=test CA", 1, time(NULL) + 8 * DAY_S);
    gnutls_x509_crt_set_basic_constraints(ca.crt, 1, -1);
    gnutls_x509_crt_set_key_usage(ca.crt, GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN);
    ASSERT_EQ(gnutls_x509_crt_sign2(ca.crt, ca.crt, ca.key, GNUTLS_DIG_SHA256, 0), 0);
    identity_write(&ca, "ca");
    make_server(time(NULL) + 8 * DAY_S);
    make_client();
    tls_files_write("keys.psk", "# users\nalice:00112233445566778899aabbccddeeff\n\n"
                                "bob:ffeeddccbbaa99887766554433221100\n");
    return folder;
}

void tls_files_expire_server(void)
{
    make_server(time(NULL) - DAY_S);
}

void tls_files_remove(void)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;

    ASSERT_TRUE(dir);
    while ((entry = readdir(dir))) {
        if (entry->d_name[0] != '.') {
            unlink(tls_files_path(entry->d_name));
        }
    }
    closedir(dir);
    rmdir(folder);
    identity_free(&ca);
}
