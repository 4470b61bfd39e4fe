/*
 * channel-test.h - what the tests of this folder share
 *
 * Layer: io/channel tests
 */
#ifndef IO_CHANNEL_TESTS_CHANNEL_TEST_H
#define IO_CHANNEL_TESTS_CHANNEL_TEST_H

#include "io/aio/iothread.h"
#include "io/aio/tests/aio-test.h"
#include "io/channel/channel-buffer.h"
#include "io/channel/channel-int.h"
#include "io/channel/channel-socket.h"
#include "io/channel/channel-tls.h"

/* Two connected channels of some kind; the test unrefs both. */
typedef void PairFn(Channel *ends[2]);

PairFn pair_unix, pair_tcp, pair_buffer, pair_pipes;
/* TLS with a pre-shared key over unix sockets; polls the current context meanwhile. */
PairFn pair_tls;
/* What a read gives when the peer has gone without a closing message. */
ssize_t pair_cut_off(PairFn *pair_fn);

/* The two ends of a TLS connection, each in its handshake as a coroutine. */
typedef struct TlsEnd {
    Channel *lower; /* given up once there is a channel over it */
    TlsCreds *creds;
    const char *hostname;
    int64_t deadline_ns;
    Channel *ch;
    Error err;
    bool done;
} TlsEnd;

void tls_end_start(TlsEnd *end);
/* Both to their end, whatever that is. */
void tls_handshake(AioContext *ctx, TlsEnd *client, TlsEnd *server);

void test_spawn(CoroutineEntry *entry, void *opaque);
/* Stay in the pass until nothing is left to be done without waiting. */
void test_settle(AioContext *ctx);
/* Fill with what only depends on the place in the stream, so that a shift shows. */
void test_pattern(char *buf, uint64_t offset, size_t len_bytes);
bool test_pattern_matches(const char *buf, uint64_t offset, size_t len_bytes);

/* One operation as a coroutine: set up, spawned, looked at. */
typedef struct Op {
    Channel *ch;
    char *buf;
    size_t len_bytes;
    ssize_t ret;
    bool done;
} Op;

void op_read(Op *op);      /* channel_co_read() */
void op_read_full(Op *op); /* channel_co_read_full() */
void op_write_full(Op *op);
void op_half_close(Op *op);
void op_wait_readable(Op *op);

/* A body that is run on each kind of channel. */
#define TEST_ON_EACH_KIND(group, sentence)                                                         \
    static main_fn void body_##group##_##sentence(PairFn *pair_fn);                                \
    TEST(group, sentence##_on_unix_sockets)                                                        \
    {                                                                                              \
        body_##group##_##sentence(pair_unix);                                                      \
    }                                                                                              \
    TEST(group, sentence##_on_tcp_sockets)                                                         \
    {                                                                                              \
        body_##group##_##sentence(pair_tcp);                                                       \
    }                                                                                              \
    TEST(group, sentence##_on_buffers)                                                             \
    {                                                                                              \
        body_##group##_##sentence(pair_buffer);                                                    \
    }                                                                                              \
    TEST(group, sentence##_on_pipes)                                                               \
    {                                                                                              \
        body_##group##_##sentence(pair_pipes);                                                     \
    }                                                                                              \
    TEST(group, sentence##_on_tls)                                                                 \
    {                                                                                              \
        body_##group##_##sentence(pair_tls);                                                       \
    }                                                                                              \
    static void body_##group##_##sentence(PairFn *pair_fn)

#endif
