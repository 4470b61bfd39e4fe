/*
 * fuzz-write-log.c - a trace of log-writes that holds anything
 *
 * What has to hold, whatever the input:
 * 1. The reader takes it or says why not, and where; nothing is read outside of the file.
 * 2. What it takes is as write-log.h describes: ranges inside the disk, data inside the file.
 * 3. A cut shows the beginning of what the whole shows, and what is stable there stays so.
 * 4. The image is what is stable, request after request, and of others as much as was chosen.
 *
 * With libFuzzer:
 *     clang -fsanitize=fuzzer,address,undefined -g -D_GNU_SOURCE -I. -o fuzz-write-log \
 *         block/tests/fuzz-write-log.c block/write-log.c guest-tests/harness/harness.c \
 *         $(find io -maxdepth 2 -name '*.[cS]' ! -path '*tests*' ! -name '*aarch64*') -luring \
 *         -lgnutls -lpthread
 *     ./fuzz-write-log -max_len=4096 block/tests/corpus-write-log
 *
 * With FUZZ_CORPUS_DIR defined it is an ordinary test: it replays that corpus, and each input with
 * MUTATIONS changes (or FUZZ_ROUNDS of the environment), the same ones on every run.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "block/write-log.h"
#include "io/base/tests/fuzz-replay.h"
#include "io/base/test.h"

#define DISK_BYTES_MAX  65536 /* of those that are replayed */
#define MUTATIONS       300
#define HEAD_BYTES      32
#define ENTRY_BYTES     48

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes);

static int log_fd = -1, image_fd = -1;
static unsigned nb_read, nb_replayed; /* inputs get that far */
static uint64_t seed;

static uint64_t next_random(uint64_t below)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (seed >> 33) % below;
}

/* --- what the reader says --- */

static void check_requests(const WriteLog *log, size_t len_bytes)
{
    unsigned nb_flushes = 0, nb_ended = 0;

    ASSERT_LE(log->nb_read, len_bytes / ENTRY_BYTES);
    ASSERT_LE(log->nb_requests, log->nb_read);
    for (unsigned i = 0; i < log->nb_requests; i++) {
        const WriteLogEntry *e = &log->requests[i];

        ASSERT_TRUE(e->type >= WRITE_LOG_WRITE && e->type <= WRITE_LOG_FLUSH);
        ASSERT_EQ(e->serial, i + 1);
        ASSERT_LE(e->offset_bytes, log->disk_bytes);
        ASSERT_LE(e->len_bytes, log->disk_bytes - e->offset_bytes);
        if (e->type == WRITE_LOG_WRITE) {
            ASSERT_LE(e->data_bytes, len_bytes);
            ASSERT_LE(e->len_bytes, len_bytes - e->data_bytes);
        }
        ASSERT_TRUE(e->ended || !e->done);
        ASSERT_TRUE(e->done || !e->stable);
        ASSERT_TRUE(!e->ended || e->done_at > e->begun_at);
        nb_ended += e->ended;
        nb_flushes += e->type == WRITE_LOG_FLUSH && e->done;
    }
    ASSERT_EQ(log->nb_read, log->nb_requests + nb_ended);
    ASSERT_EQ(log->nb_flushes, nb_flushes);
}

static void check_cut(const WriteLog *whole, size_t len_bytes)
{
    uint64_t at = next_random(whole->nb_read + 1);
    WriteLog cut;
    Error err;

    ASSERT_EQ(write_log_read(&cut, log_fd, at, &err), 0);
    ASSERT_EQ(cut.nb_read, at);
    check_requests(&cut, len_bytes);
    ASSERT_LE(cut.nb_requests, whole->nb_requests);
    for (unsigned i = 0; i < cut.nb_requests; i++) {
        ASSERT_EQ(cut.requests[i].data_bytes, whole->requests[i].data_bytes);
        ASSERT_TRUE(whole->requests[i].ended || !cut.requests[i].ended);
        ASSERT_TRUE(whole->requests[i].stable || !cut.requests[i].stable);
    }
    write_log_finish(&cut);
}

/* --- what the replay makes of it --- */

typedef struct Choices {
    const uint8_t *data; /* the input */
    uint8_t disk[DISK_BYTES_MAX];
    unsigned next; /* request that the disk has not */
    const WriteLog *log;
} Choices;

static void apply(Choices *c, const WriteLogEntry *e, uint64_t len_bytes)
{
    if (e->type == WRITE_LOG_WRITE) {
        memcpy(c->disk + e->offset_bytes, c->data + e->data_bytes, len_bytes);
    } else if (e->type != WRITE_LOG_FLUSH) {
        memset(c->disk + e->offset_bytes, 0, len_bytes);
    }
}

/* Those that are not asked about are stable: wholly there. */
static void apply_stable(Choices *c)
{
    while (c->next < c->log->nb_requests && c->log->requests[c->next].stable) {
        apply(c, &c->log->requests[c->next], c->log->requests[c->next].len_bytes);
        c->next++;
    }
}

static uint64_t choose(void *opaque, const WriteLogEntry *e)
{
    Choices *c = opaque;
    uint64_t chosen_bytes = next_random(2) ? UINT64_MAX : next_random(e->len_bytes + 1);

    apply_stable(c);
    ASSERT_TRUE(e == &c->log->requests[c->next]);
    c->next++;
    apply(c, e, chosen_bytes < e->len_bytes ? chosen_bytes : e->len_bytes);
    return chosen_bytes;
}

static void check_replay(const WriteLog *log, const uint8_t *data)
{
    static Choices c;
    static uint8_t image[DISK_BYTES_MAX];

    memset(c.disk, 0, sizeof(c.disk));
    c.data = data;
    c.next = 0;
    c.log = log;
    ASSERT_EQ(write_log_replay(log, log_fd, image_fd, choose, &c), 0);
    apply_stable(&c);
    ASSERT_EQ(c.next, log->nb_requests);
    ASSERT_EQ(pread(image_fd, image, sizeof(image), 0), (ssize_t)log->disk_bytes);
    ASSERT_EQ(memcmp(image, c.disk, log->disk_bytes), 0);
    nb_replayed++;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes)
{
    WriteLog log;
    Error err = { 0 };

    if (log_fd < 0) {
        log_fd = memfd_create("log", MFD_CLOEXEC);
        image_fd = memfd_create("image", MFD_CLOEXEC);
        ASSERT_TRUE(log_fd >= 0 && image_fd >= 0);
    }
    seed = len_bytes;
    ASSERT_EQ(ftruncate(log_fd, 0), 0);
    ASSERT_EQ(pwrite(log_fd, data, len_bytes, 0), (ssize_t)len_bytes);
    int ret = write_log_read(&log, log_fd, UINT64_MAX, &err);

    ASSERT_EQ(err.code, ret);
    if (ret < 0) {
        ASSERT_TRUE(ret == -EINVAL && strncmp(err.msg, "write log: ", 11) == 0);
        ASSERT_TRUE(log.nb_requests == 0 && log.requests == NULL);
        return 0;
    }
    nb_read++;
    check_requests(&log, len_bytes);
    check_cut(&log, len_bytes);
    if (log.disk_bytes <= DISK_BYTES_MAX) {
        check_replay(&log, data);
    }
    write_log_finish(&log);
    return 0;
}

/* --- as a test --- */

#ifdef FUZZ_CORPUS_DIR
static unsigned rounds = MUTATIONS;

static int run_changed(const uint8_t *data, size_t len_bytes)
{
    static uint8_t copy[FUZZ_INPUT_MAX_BYTES];

    LLVMFuzzerTestOneInput(data, len_bytes);
    for (unsigned i = 0; i < rounds; i++) {
        seed = i;
        size_t cut = next_random(4) ? len_bytes : next_random(len_bytes + 1);

        memcpy(copy, data, len_bytes);
        for (unsigned n = (unsigned)next_random(4); n > 0; n--) {
            /* most of them where numbers are */
            size_t at = HEAD_BYTES + next_random(len_bytes / ENTRY_BYTES + 1) * ENTRY_BYTES +
                        next_random(ENTRY_BYTES);

            at = next_random(4) && at < len_bytes ? at : next_random(len_bytes);
            copy[at] = (uint8_t)(next_random(2) ? next_random(256) : next_random(8));
        }
        LLVMFuzzerTestOneInput(copy, cut);
    }
    return 0;
}

TEST(write_log, reader_gets_through_whatever_a_file_holds)
{
    const char *asked = getenv("FUZZ_ROUNDS");

    rounds = asked ? (unsigned)strtoul(asked, NULL, 0) : rounds;
    unsigned nb = fuzz_replay_corpus(run_changed, FUZZ_CORPUS_DIR, 12);

    EXPECT_GE(nb_read, nb * rounds / 4);
    EXPECT_GE(nb_replayed, nb * rounds / 8);
}

TEST_MAIN()
#endif
