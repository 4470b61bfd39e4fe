/*
 * tls-files - certificates and keys made for a test
 *
 * Layer: io/channel tests
 */
#ifndef IO_CHANNEL_TESTS_TLS_FILES_H
#define IO_CHANNEL_TESTS_TLS_FILES_H

/*
 * tls_files_make - an empty folder under /tmp, filled: a CA in ca-cert.pem; server-cert.pem, for
 * "localhost", "server.test" and 127.0.0.1, and client-cert.pem, signed by it, with their keys;
 * keys.psk with the users alice and bob. Returns its path, static storage.
 */
const char *tls_files_make(void);
/* tls_files_remove - what tls_files_make() and the test put there */
void tls_files_remove(void);
/* tls_files_path - of a file in that folder; static storage, two at a time */
const char *tls_files_path(const char *name);
/* tls_files_write - replace a file's contents */
void tls_files_write(const char *name, const char *text);
/* tls_files_expire_server - put a server certificate of yesterday in the place of the other */
void tls_files_expire_server(void);

#endif
