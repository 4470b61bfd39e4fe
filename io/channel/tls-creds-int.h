/*
 * tls-creds-int.h - the insides of TlsCreds, for sessions
 *
 * Layer:     io/channel, private
 */
#ifndef IO_CHANNEL_TLS_CREDS_INT_H
#define IO_CHANNEL_TLS_CREDS_INT_H

#include <gnutls/gnutls.h>
#include <stdatomic.h>

#include "io/channel/psk-file.h"
#include "io/channel/tls-creds.h"

struct TlsCreds {
    _Atomic unsigned refs;
    TlsRole role;
    bool verify_peer;
    gnutls_priority_t priority;
    gnutls_certificate_credentials_t x509; /* one of these three is set */
    gnutls_psk_client_credentials_t psk_client;
    gnutls_psk_server_credentials_t psk_server;
    PskFile psk; /* server: its keys */
};

#endif
