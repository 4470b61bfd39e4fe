/*
 * Fuzzer of the control socket's commands: the input is what a client sends, any bytes
 *
 * With libFuzzer:
 *     CC=clang meson setup build-fuzz -Dtests=false -Db_lundef=false -Db_sanitize=address,undefined
 *     ninja -C build-fuzz
 *     clang -fsanitize=fuzzer,address,undefined -g -std=gnu11 -D_GNU_SOURCE -I. -o fuzz-qmp \
 *         vmm/tests/fuzz-qmp.c build-fuzz/{vmm,devices,virtio,block,io}/lib*.a \
 *         -luring -lgnutls -ljansson -lpthread
 *     ./fuzz-qmp -max_len=4096 vmm/tests/corpus-qmp
 *
 * With FUZZ_CORPUS_DIR defined it is an ordinary test: it replays that corpus, every file as it is,
 * cut off at each length, and with each byte changed in three ways.
 *
 * What has to hold, whatever the input:
 * 1. Each message has one answer, an object with either "return" or "error", whose bytes are UTF-8,
 *    and an error says why.
 * 2. Afterwards the machine still answers: a query of its disks succeeds.
 * 3. Nothing is left when the target has gone (AddressSanitizer looks).
 *
 * The machine has a disk of null, an IOThread, and a guest that stops and goes on with no effort.
 */
#include <stdio.h>
#include <string.h>

#include "io/base/thread.h"
#include "vmm/json-frame.h"
#include "vmm/qmp.h"

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "fuzz-qmp: %s does not hold\n", #condition);                           \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes);

static AioContext *ctx;
static IOThread *iothread;
static QmpTarget target;
static RunState run;
static AioBh *stepper;

/* --- the machine --- */

static void nothing_cb(void *opaque)
{
}

static int reset_cb(void *opaque, bool running, Error *err)
{
    return 0;
}

static void event_cb(void *opaque, RunEvent event, bool by_guest)
{
}

static const RunOps run_ops = {
    .halt = nothing_cb,
    .go = nothing_cb,
    .reset = reset_cb,
    .powerdown = nothing_cb,
    .event = event_cb,
};

/* The main loop, as far as commands wait for it. */
static void step_bh(void *opaque)
{
    Error err;
    RunStep step UNUSED = run_state_step(&run, &err);

    aio_bh_schedule_idle(stepper);
}

static void setup_once(void)
{
    Error err;

    assert_main();
    if (ctx) {
        return;
    }
    ctx = aio_context_create("main", NULL, &err);
    CHECK(ctx);
    aio_context_enter(ctx);
    aio_context_set_main(ctx);
    iothread = iothread_create("io0", NULL, &err);
    CHECK(iothread);
}

static void begin(void)
{
    Error err;
    Opts opts;

    qmp_target_init(&target);
    run_state_init(&run, &run_ops, NULL);
    run_state_launch(&run);
    target.run = &run;
    target.iothreads = &iothread;
    target.nb_iothreads = 1;
    CHECK(opts_parse(&opts, "disk", "driver=null,size=1M", NULL, &err) == 0);
    BlockBackend *blk = blk_open("d0", &opts, &err);

    opts_finish(&opts);
    CHECK(blk);
    qmp_target_add_disk(&target, blk);
    stepper = aio_bh_create(ctx, step_bh, NULL);
    aio_bh_schedule_idle(stepper);
}

static void end(void)
{
    BlockBackend *blk = target.disks[0].blk;

    aio_bh_destroy(stepper);
    run_state_end(&run);
    run_state_finish(&run);
    qmp_target_finish(&target);
    CHECK(blk_close(blk) == 0);
    while (aio_poll(ctx, false)) {
    }
}

/* --- the client --- */

static void check_answer(json_t *answer)
{
    json_t *error = json_object_get(answer, "error");

    CHECK(json_is_object(answer));
    CHECK(!error != !json_object_get(answer, "return"));
    CHECK(!error || json_string_length(json_object_get(error, "desc")) > 0);
    CHECK(!error || json_string_length(json_object_get(error, "class")) > 0);
    char *text = json_dumps(answer, JSON_ENSURE_ASCII);

    CHECK(text);
    free(text);
    json_decref(answer);
}

typedef struct Input {
    const char *data;
    size_t len_bytes;
} Input;

static co_fn void client_entry(void *opaque)
{
    static const char query[] = "{\"execute\": \"query-block\"}";
    const Input *input = opaque;
    QmpSession session = { .target = &target, .negotiated = true };
    size_t at = 0, used_bytes;
    int found = JSON_FRAME_MORE;
    JsonFrame frame;

    json_frame_init(&frame);
    while (at < input->len_bytes && found != JSON_FRAME_TOO_DEEP && found != JSON_FRAME_TOO_LONG) {
        found = json_frame_push(&frame, input->data + at, input->len_bytes - at, &used_bytes);
        CHECK(found >= 0 && used_bytes > 0);
        at += used_bytes;
        if (found == JSON_FRAME_VALUE) {
            check_answer(qmp_co_execute(&session, frame.text, frame.len_bytes));
        }
    }
    json_frame_finish(&frame);
    json_t *answer = qmp_co_execute(&session, query, strlen(query));

    CHECK(json_object_get(answer, "return"));
    check_answer(answer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes)
{
    Input input = { (const char *)data, len_bytes };

    setup_once();
    begin();
    aio_co_run_sync(ctx, client_entry, &input);
    end();
    return 0;
}

#ifdef FUZZ_CORPUS_DIR

#include "io/base/tests/fuzz-replay.h"
#include "io/base/test.h"

static int replay_variants(const uint8_t *input, size_t len_bytes)
{
    static const uint8_t changes[] = { 0x01, 0x20, 0xff };
    static uint8_t data[FUZZ_INPUT_MAX_BYTES];

    memcpy(data, input, len_bytes);
    LLVMFuzzerTestOneInput(data, len_bytes);
    for (size_t cut = 0; cut < len_bytes; cut++) {
        LLVMFuzzerTestOneInput(data, cut);
        for (unsigned i = 0; i < ARRAY_SIZE(changes); i++) {
            data[cut] ^= changes[i];
            LLVMFuzzerTestOneInput(data, len_bytes);
            data[cut] ^= changes[i];
        }
    }
    return 0;
}

TEST(fuzz_qmp, corpus_is_replayed)
{
    fuzz_replay_corpus(replay_variants, FUZZ_CORPUS_DIR, 10);
    iothread_unref(iothread);
    aio_context_set_main(NULL);
    aio_context_enter(NULL);
    aio_context_destroy(ctx);
}

TEST_MAIN()

#endif
