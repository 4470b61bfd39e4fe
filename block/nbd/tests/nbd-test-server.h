/*
 * nbd-test-server.h - a server that does what a test tells it, right or wrong
 *
 * Layer:     block/nbd tests
 * Threading: its connections are coroutines of the main context; so is whatever it calls.
 *
 * It listens on a unix socket, greets and negotiates as `server` says, and answers requests
 * properly, but for the first `nb_special` ones, which go to `special`. All of a disk reads 'd'.
 */
#ifndef BLOCK_NBD_TESTS_NBD_TEST_SERVER_H
#define BLOCK_NBD_TESTS_NBD_TEST_SERVER_H

#include <limits.h>

#include "block/nbd/nbd-proto.h"
#include "block/nbd/tests/nbd-test.h"
#include "io/channel/channel-listener.h"
#include "io/channel/tls-creds.h"

#define SERVER_LENGTH_BYTES (1u << 20)
#define SERVER_SEEN_MAX     512
#define SERVER_NO_CUT       UINT_MAX

/* Answer @req, or not; false: the connection is to be closed. */
typedef bool SpecialFn(Channel *ch, const NbdRequest *req);

typedef enum ServerContext {
    CONTEXT_GIVEN,
    CONTEXT_LEFT_OUT, /* acknowledged, without base:allocation in it */
    CONTEXT_OTHER,    /* another one, that nobody asked for */
    CONTEXT_REFUSED,
} ServerContext;

typedef struct ServerSeen {
    unsigned connection; /* from 0 in order of connecting */
    NbdRequest req;
} ServerSeen;

typedef struct TestServer {
    ChannelListener *listener;

    /* The handshake */
    const char *greeting; /* instead of all else; NULL = none */
    size_t greeting_bytes;
    unsigned silent_from; /* connections from that number on are not greeted */
    TlsCreds *creds;      /* TLS is required; NULL = not there */
    const char *injected; /* in the clear behind the answer to STARTTLS */
    size_t injected_bytes;
    NbdHeaders headers;
    ServerContext context;
    uint32_t go_option_bytes; /* GO is answered with this claimed length; 0 = properly */
    uint32_t go_error;        /* or with that: NBD_REP_ERR_... */
    uint16_t flags;           /* NBD_FLAG_..., HAS_FLAGS is added */
    NbdBlockSizes sizes;      /* min_bytes 0: not told */
    uint64_t length_bytes;

    /* Requests */
    SpecialFn *special;
    unsigned nb_special;
    bool silent; /* no request is answered */

    /* Writing */
    bool dribble;       /* one byte at a time */
    unsigned cut_bytes; /* after so many bytes from now on the connection is closed */

    /* What happened */
    unsigned nb_connections, nb_open;
    unsigned nb_options, nb_requests; /* the latter with good-byes */
    ServerSeen seen[SERVER_SEEN_MAX];
} TestServer;

extern TestServer server;

/* The main context, in which it listens. Options may be set until a client comes. */
main_fn AioContext *server_start(NbdHeaders headers, SpecialFn *special);
main_fn void server_stop(AioContext *main);
/* Not to listen any more, and again. */
main_fn void server_hide(void);
main_fn void server_show(void);
/* The socket's path. */
const char *server_path(void);

/* Answers, and parts of some. False: the connection is of no more use. */
co_fn bool put(Channel *ch, const void *buf, size_t len_bytes);
co_fn bool put_simple(Channel *ch, uint64_t cookie, uint32_t error);
/* @payload  NULL: it is the caller's to send */
co_fn bool put_chunk(Channel *ch, const NbdRequest *req, uint16_t flags, uint16_t type,
                     const void *payload, uint64_t len_bytes);
co_fn bool put_data(Channel *ch, const NbdRequest *req, uint16_t flags, uint64_t offset_bytes,
                    uint32_t len_bytes);
co_fn bool put_hole(Channel *ch, const NbdRequest *req, uint16_t flags, uint64_t offset_bytes,
                    uint32_t len_bytes);
co_fn bool put_status(Channel *ch, const NbdRequest *req, uint16_t flags, uint32_t context,
                      uint64_t len_bytes);
/* As it should be. */
co_fn bool answer(Channel *ch, const NbdRequest *req);

#endif
