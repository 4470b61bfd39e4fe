/*
 * Fuzzer of the NBD server: the input is what a client sends
 *
 * With libFuzzer, in a build folder made by clang with -Db_sanitize=address,undefined:
 *     clang -fsanitize=fuzzer,address,undefined -g -D_GNU_SOURCE -I. -Iblock/nbd/tests \
 *         -o fuzz-nbd-server block/nbd/tests/fuzz-nbd-server.c BUILD/block/libpenstock-block.a \
 *         BUILD/io/libpenstock-io.a -luring -lgnutls -lpthread
 *     ./fuzz-nbd-server -max_len=4096 block/nbd/tests/corpus-nbd-server
 *
 * The first byte of the input says how: bit 0 the client begins after a good handshake (bits 1 and
 * 2: with which headers), bit 3 the channel carries 3 bytes at a time, bit 4 the export is
 * read-only. With FUZZ_CORPUS_DIR defined it is an ordinary test: it replays that corpus, every
 * file as it is, cut off at each length, and with each byte changed in two ways.
 *
 * What has to hold, whatever the input:
 * 1. The connection ends once the client has no more to say, without help: nothing waits for ever.
 * 2. No more memory is held for it than the server's bound (AddressSanitizer sees the rest).
 * 3. What is answered is a greeting, options' replies and replies to requests, as long as the
 * server
 *    has something to say: the server's bytes parse.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/nbd/nbd-proto.h"
#include "block/nbd/nbd-server.h"
#include "io/base/log.h"
#include "io/base/thread.h"
#include "io/channel/channel-buffer.h"

#define DISK_TEXT    "driver=null,size=64K,read-zeroes=on"
#define PASSES_MAX   2000000u /* of the loop, for one input */
#define ANSWER_BYTES (1u << 20)

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "fuzz-nbd-server: %s does not hold\n", #condition);                    \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

enum { MODE_ENTERED = 1, MODE_HEADERS_SHIFT = 1, MODE_DRIBBLE = 8, MODE_READ_ONLY = 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes);

typedef struct Session {
    NbdServer *server;
    Channel *server_end, *client_end;
    uint8_t head[256]; /* a good handshake */
    size_t head_bytes;
    const uint8_t *data;
    size_t len_bytes;
    bool served, sent, received;
    uint8_t *answer;
    size_t answer_bytes;
} Session;

static AioContext *ctx;
static BlockBackend *blk;

static void setup_once(void)
{
    Error err;
    Opts opts;

    if (ctx) {
        return;
    }
    assert_main();
    log_set_level(LOG_LEVEL_ERROR);
    ctx = aio_context_create("main", NULL, &err);
    CHECK(ctx);
    aio_context_enter(ctx);
    aio_context_set_main(ctx);
    CHECK(opts_parse(&opts, "--disk", DISK_TEXT, NULL, &err) == 0);
    blk = blk_open("d", &opts, &err);
    CHECK(blk);
    opts_finish(&opts);
}

/* --- the three coroutines of a session --- */

static co_fn void serve_entry(void *opaque)
{
    Session *s = opaque;

    nbd_server_co_serve(s->server, s->server_end);
    s->served = true;
}

static co_fn void send_entry(void *opaque)
{
    Session *s = opaque;

    if (channel_co_write_full(s->client_end, s->head, s->head_bytes) == 0 &&
        channel_co_write_full(s->client_end, s->data, s->len_bytes) == 0) {
        channel_co_half_close(s->client_end);
    }
    s->sent = true;
}

static co_fn void receive_entry(void *opaque)
{
    Session *s = opaque;
    uint8_t buf[4096];
    ssize_t ret;

    while ((ret = channel_co_read(s->client_end, buf, sizeof(buf))) > 0) {
        size_t part_bytes = MIN((size_t)ret, ANSWER_BYTES - s->answer_bytes);

        memcpy(s->answer + s->answer_bytes, buf, part_bytes);
        s->answer_bytes += part_bytes;
    }
    s->received = true;
}

static void start(CoroutineEntry *entry, void *opaque)
{
    Coroutine *co = co_create(entry, opaque);

    CHECK(co);
    co_enter(co);
}

/* --- what it looks like --- */

static size_t put_option(uint8_t *buf, uint32_t option, const void *data, size_t len_bytes)
{
    NbdOptionHeader header = { option, (uint32_t)len_bytes };

    nbd_option_encode(buf, &header);
    memcpy(buf + NBD_OPTION_BYTES, data, len_bytes);
    return NBD_OPTION_BYTES + len_bytes;
}

static void put_handshake(Session *s, unsigned headers)
{
    uint8_t *at = s->head;

    nbd_put_be32(at, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    at += 4;
    if (headers > 0) {
        at += put_option(at, headers == 1 ? NBD_OPT_STRUCTURED_REPLY : NBD_OPT_EXTENDED_HEADERS, "",
                         0);
        at += put_option(at, NBD_OPT_SET_META_CONTEXT, "\0\0\0\0\0\0\0\1\0\0\0\17base:allocation",
                         27);
    }
    at += put_option(at, NBD_OPT_GO, "\0\0\0\0\0\0", 6);
    s->head_bytes = (size_t)(at - s->head);
}

/* Options' replies from the greeting on: each has the form, until one that leads further. */
static void check_answer(const Session *s)
{
    size_t at = NBD_GREETING_BYTES;
    uint16_t flags;

    if (s->answer_bytes < NBD_GREETING_BYTES) {
        return;
    }
    CHECK(nbd_greeting_decode(s->answer, &flags) == 0);
    while (s->head_bytes > 0 && s->answer_bytes - at >= NBD_OPTION_REPLY_BYTES) {
        NbdOptionReply reply;

        CHECK(nbd_option_reply_decode(s->answer + at, &reply) == 0);
        at += NBD_OPTION_REPLY_BYTES;
        CHECK(reply.len_bytes <= s->answer_bytes - at);
        at += reply.len_bytes;
        if (reply.option == NBD_OPT_GO && reply.type == NBD_REP_ACK) {
            return;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes)
{
    Channel *ends[2];
    Error err;
    Session s = { 0 };

    setup_once();
    assert_main();
    if (len_bytes < 1) {
        return 0;
    }
    unsigned mode = data[0];
    NbdServerParams params = { .requests_max = 4, .memory_bytes = NBD_SERVER_MEMORY_MIN };
    NbdExportParams export = { .name = "", .blk = blk, .read_only = mode & MODE_READ_ONLY };

    s.server = nbd_server_create(&params, &err);
    CHECK(s.server);
    CHECK(nbd_server_add_export(s.server, &export, &err) == 0);
    CHECK(channel_buffer_pair(65536, mode & MODE_DRIBBLE ? 3 : 0, ends, &err) == 0);
    s.server_end = ends[0];
    s.client_end = ends[1];
    s.data = data + 1;
    s.len_bytes = len_bytes - 1;
    s.answer = malloc(ANSWER_BYTES);
    CHECK(s.answer);
    if (mode & MODE_ENTERED) {
        put_handshake(&s, MIN((mode >> MODE_HEADERS_SHIFT) & 3, 2u));
    }
    start(serve_entry, &s);
    start(receive_entry, &s);
    start(send_entry, &s);
    for (unsigned pass = 0; !(s.served && s.sent && s.received); pass++) {
        CHECK(pass < PASSES_MAX);
        aio_poll(ctx, true);
    }
    CHECK(nbd_server_nb_connections(s.server) == 0);
    check_answer(&s);
    channel_unref(s.client_end);
    nbd_server_destroy(s.server);
    free(s.answer);
    return 0;
}

#ifdef FUZZ_CORPUS_DIR

#include "io/base/tests/fuzz-replay.h"
#include "io/base/test.h"

static int replay(const uint8_t *data, size_t len_bytes)
{
    static uint8_t changed[FUZZ_INPUT_MAX_BYTES];

    LLVMFuzzerTestOneInput(data, len_bytes);
    for (size_t cut = 0; cut < len_bytes; cut++) {
        LLVMFuzzerTestOneInput(data, cut);
    }
    for (size_t i = 0; i < len_bytes; i++) {
        memcpy(changed, data, len_bytes);
        changed[i] ^= 0x01;
        LLVMFuzzerTestOneInput(changed, len_bytes);
        changed[i] = (uint8_t)~data[i];
        LLVMFuzzerTestOneInput(changed, len_bytes);
    }
    return 0;
}

TEST(nbd_server, gets_through_whatever_a_client_sends)
{
    fuzz_replay_corpus(replay, FUZZ_CORPUS_DIR, 10);
}

TEST_MAIN()

#endif
