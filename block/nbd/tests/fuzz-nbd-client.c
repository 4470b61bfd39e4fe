/*
 * fuzz-nbd-client.c - a server that sends anything
 *
 * The input is what the server sends from the first byte on, whatever the client says, and then
 * ends. Cookies are predictable, so that inputs get through the handshake and answer requests.
 * What has to hold: the disk is opened or not, and each request ends.
 *
 * With libFuzzer:
 *     clang -fsanitize=fuzzer,address,undefined -g -D_GNU_SOURCE -I. -o fuzz-nbd-client \
 *         block/nbd/tests/{fuzz-nbd-client,nbd-test}.c block/tests/block-test.c io/base/test.c \
 *         guest-tests/harness/harness.c \
 *         $(find block io -maxdepth 2 -name '*.[cS]' ! -path '*tests*' ! -name 'test.c' \
 *         ! -name '*aarch64*') -luring -lgnutls -lpthread
 *     ./fuzz-nbd-client -max_len=4096 block/nbd/tests/corpus-nbd-client
 *
 * With FUZZ_CORPUS_DIR defined it is an ordinary test: it replays that corpus, and each input with
 * MUTATIONS changes, the same ones on every run.
 */
#include "block/nbd/tests/nbd-test.h"
#include "io/base/tests/fuzz-replay.h"
#include "io/base/log.h"
#include "io/base/thread.h"
#include "io/channel/channel-listener.h"

#define MUTATIONS 100

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes);

static AioContext *main_ctx;
static ChannelListener *listener;
static const uint8_t *input;
static size_t input_bytes;
static unsigned nb_reads; /* that have succeeded: inputs get that far */

static void connection_entry(Channel *ch, void *opaque)
{
    char buf[4096];

    assert_in_coroutine();
    if (channel_co_write_full(ch, input, input_bytes) == 0) {
        (void)channel_co_half_close(ch);
    }
    while (channel_co_read(ch, buf, sizeof(buf)) > 0) { /* whatever the client says */
    }
    channel_unref(ch);
}

static const char *sock(void)
{
    return test_text("%s/sock", test_dir());
}

static main_fn void start(void)
{
    ChannelListenerParams params = { .connection = connection_entry };
    SocketAddress addr;
    Error err;

    log_set_level(LOG_LEVEL_ERROR);
    main_ctx = main_start();
    ASSERT_EQ(socket_address_set_unix(&addr, sock(), &err), 0);
    listener = channel_listener_create(&addr, &params, &err);
    ASSERT_TRUE(listener != NULL);
    channel_listener_start(listener);
}

static void use(BlockBackend *blk)
{
    static char buf[4096];
    uint64_t len_bytes;

    int ret = run_read(blk, 0, MIN(blk_length(blk), sizeof(buf)), buf);

    EXPECT_LE(ret, 0);
    nb_reads += ret == 0;
    EXPECT_LE(run_status(blk, 0, 512, &len_bytes), BLK_STATUS_DATA | BLK_STATUS_ZERO);
    if (!blk_read_only(blk)) {
        EXPECT_LE(run_write(blk, 0, 512, buf, BLK_FUA), 0);
        EXPECT_LE(run_zeroes(blk, 0, 512, 0), 0);
    }
    EXPECT_LE(run_flush(blk), 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes)
{
    Opts opts;
    Error err;
    BlockBackend *blk;

    assert_main();
    if (!main_ctx) {
        start();
    }
    input = data;
    input_bytes = len_bytes;
    ASSERT_EQ(opts_parse(&opts, "fuzz", test_text("nbd+unix:///?socket=%s", sock()), "path", &err),
              0);
    blk = blk_open("d0", &opts, &err);
    if (blk) {
        use(blk);
        blk_close(blk);
    }
    opts_finish(&opts);
    AIO_WAIT_WHILE(main_ctx, channel_listener_nb_connections(listener) > 0);
    return 0;
}

#ifdef FUZZ_CORPUS_DIR
static int run_changed(const uint8_t *data, size_t len_bytes)
{
    static uint8_t copy[FUZZ_INPUT_MAX_BYTES];
    static Random random = { 1 };

    LLVMFuzzerTestOneInput(data, len_bytes);
    for (unsigned i = 0; i < MUTATIONS; i++) {
        size_t cut = random_below(&random, 4) ? len_bytes : random_below(&random, len_bytes + 1);

        memcpy(copy, data, len_bytes);
        for (unsigned n = random_below(&random, 4); n > 0; n--) {
            copy[random_below(&random, len_bytes)] = (uint8_t)random_below(&random, 256);
        }
        LLVMFuzzerTestOneInput(copy, cut);
    }
    return 0;
}

TEST(nbd_client, gets_through_whatever_a_server_sends)
{
    fuzz_replay_corpus(run_changed, FUZZ_CORPUS_DIR, 6);
    EXPECT_GE(nb_reads, 5 * MUTATIONS / 4);
}

TEST_MAIN()
#endif
