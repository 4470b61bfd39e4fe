/*
 * test-block-torture.c - four threads write and verify while the graph changes below them
 *
 *     disk.blk --> [filters that come and go] --> disk.node <-- readers that come and go
 *
 * Each worker is a coroutine with a part of the disk for itself and a copy of what it holds. It
 * writes, zeroes, flushes and reads at random, as coroutine requests or with callbacks, and
 * compares. The main thread meanwhile does a fixed number of random things to the graph. A request
 * that is lost ends in a timeout, one that is doubled or goes astray in wrong data, one that runs
 * where it must not in a violation that mem-driver or a filter counts, or in a report of the
 * sanitizer.
 */
#include <sched.h>
#include <string.h>

#include "block/block-aio.h"
#include "block/tests/block-test.h"
#include "block/tests/mem-driver.h"
#include "block/tests/pass-driver.h"
#include "io/aio/iothread.h"
#include "io/base/thread.h"

#define NB_THREADS  4
#define NB_WORKERS  (NB_THREADS * 3)
#define NB_STEPS    400
#define NB_FILTERS  4
#define NB_READERS  2
#define PART_BYTES  2048u
#define BLOCK_BYTES 512u
#define USED_BYTES  (NB_WORKERS * PART_BYTES)

static_assert(USED_BYTES <= 32768, "what the workers use must not be cut off");

typedef struct Worker {
    MemDisk *disk;
    _Atomic bool *stop;
    unsigned index;
    Random random;
    char model[PART_BYTES];
    char buf[PART_BYTES];
    _Atomic unsigned nb_requests;
    _Atomic unsigned nb_errors;
    _Atomic unsigned nb_wrong;
    _Atomic bool done;
    Coroutine *co;
    int ret; /* of the callback request; 1 = not yet */
} Worker;

static void worker_cb(void *opaque, int ret)
{
    Worker *w = opaque;

    w->ret = ret;
    aio_co_wake(w->co);
}

static co_fn int read_with_callback(Worker *w, uint64_t offset_bytes, const struct iovec *iov)
{
    BlkAio aio;
    int ret;

    w->ret = 1;
    w->co = co_self();
    ret = blk_aio_preadv(&aio, w->disk->blk, offset_bytes, iov->iov_len, iov, 1, 0, worker_cb, w);
    if (ret == 0) {
        co_yield();
        ret = w->ret;
    }
    return ret;
}

static co_fn int worker_step(Worker *w)
{
    uint32_t at = random_below(&w->random, PART_BYTES / 256) * 256;
    uint32_t len = MIN(256 * (1 + random_below(&w->random, 4)), PART_BYTES - at);
    uint64_t offset_bytes = w->index * PART_BYTES + at;
    struct iovec iov = { .iov_base = w->buf, .iov_len = len };
    int ret;

    switch (random_below(&w->random, 6)) {
    case 0:
        return blk_co_flush(w->disk->blk);
    case 1:
        memset(w->model + at, 0, len);
        return blk_co_pwrite_zeroes(w->disk->blk, offset_bytes, len, 0);
    case 2:
    case 3:
        random_fill(&w->random, w->model + at, len);
        memcpy(w->buf, w->model + at, len);
        return blk_co_pwritev(w->disk->blk, offset_bytes, len, &iov, 1, 0);
    case 4:
        ret = read_with_callback(w, offset_bytes, &iov);
        break;
    default:
        ret = blk_co_preadv(w->disk->blk, offset_bytes, len, &iov, 1, 0);
    }
    if (ret == 0 && memcmp(w->buf, w->model + at, len) != 0) {
        atomic_fetch_add(&w->nb_wrong, 1);
    }
    return ret;
}

static void worker_entry(void *opaque)
{
    Worker *w = opaque;

    assert_in_coroutine();
    while (!atomic_load(w->stop)) {
        if (worker_step(w) < 0) {
            atomic_fetch_add(&w->nb_errors, 1);
        }
        atomic_fetch_add(&w->nb_requests, 1);
    }
    atomic_store(&w->done, true);
}

/* --- what the main thread does --- */

typedef struct Changer {
    MemDisk *disk;
    Random random;
    unsigned nb_inserted, nb_removed;
    BlockBackend *readers[NB_READERS];
} Changer;

/* A node of the chain below the backend; with @filters only, never the disk itself. */
static BlockNode *random_node(Changer *c, bool filters)
{
    unsigned nb = c->nb_inserted - c->nb_removed;
    unsigned steps = random_below(&c->random, filters ? nb : nb + 1);
    BlockNode *node = blk_node(c->disk->blk);

    graph_assert_main();
    while (steps-- > 0) {
        node = bdrv_filtered(node);
    }
    return node;
}

static void insert(Changer *c)
{
    BlockNode *filter;

    if (c->nb_inserted - c->nb_removed < NB_FILTERS) {
        filter = pass_insert(random_node(c, false), "", NULL);
        ASSERT_TRUE(filter != NULL);
        c->nb_inserted++;
        pass_hold(filter, random_below(&c->random, 3) == 0);
    }
}

static void remove_one(Changer *c)
{
    if (c->nb_inserted > c->nb_removed) {
        BlockNode *filter = random_node(c, true);

        ASSERT_EQ(bdrv_remove_filter(filter, NULL), 0);
        c->nb_removed++;
    }
}

static void change_hold(Changer *c)
{
    if (c->nb_inserted > c->nb_removed) {
        pass_hold(random_node(c, true), random_below(&c->random, 3) == 0);
    }
}

static void act(Changer *c, AioContext *ctx)
{
    if (c->nb_inserted > c->nb_removed) {
        BlockNode *filter = random_node(c, true);

        if (!pass_state(filter)->refused) {
            pass_act(filter, ctx);
        }
    }
}

static void resize(Changer *c)
{
    uint64_t length_bytes = 32768 + random_below(&c->random, 64) * BLOCK_BYTES;

    ASSERT_EQ(blk_truncate(c->disk->blk, length_bytes, NULL), 0);
    ASSERT_EQ(blk_length(c->disk->blk), length_bytes);
}

static void change_reader(Changer *c)
{
    BlockBackend **reader = &c->readers[random_below(&c->random, NB_READERS)];

    if (*reader) {
        ASSERT_EQ(blk_close(take_ptr(reader)), 0);
    } else {
        *reader = blk_create("r", random_node(c, false), BLK_PERM_READ, BLK_PERM_ALL, NULL);
        ASSERT_TRUE(*reader != NULL);
    }
}

/* Sections at random places that overlap; in them nothing may be in the driver. */
static void drain(Changer *c)
{
    BlockNode *node = bdrv_ref(random_node(c, false));

    if (random_below(&c->random, 2)) {
        bdrv_drain_all_begin();
        bdrv_drained_begin(node);
        bdrv_drain_all_end();
    } else {
        bdrv_drained_begin(node);
    }
    for (unsigned i = 0; i < 10; i++) {
        ASSERT_EQ(atomic_load(&c->disk->stats.active), 0);
    }
    for (unsigned i = 0; i < USED_BYTES; i += PART_BYTES) {
        volatile char *byte = c->disk->data + i;

        *byte = *byte; /* not atomic: the sanitizer reports it unless this thread is alone */
    }
    bdrv_drained_end(node);
    bdrv_unref(node);
}

static void change(Changer *c, AioContext *ctx)
{
    static void (*const changes[])(Changer *) = { insert,      remove_one, insert, remove_one,
                                                  change_hold, resize,     drain,  change_reader };
    unsigned which = random_below(&c->random, ARRAY_SIZE(changes) + 1);

    if (which < ARRAY_SIZE(changes)) {
        changes[which](c);
    } else {
        act(c, ctx);
    }
}

/* Take out what is left, so that everybody can go on to the end. */
static void change_back(Changer *c)
{
    for (unsigned i = 0; i < NB_READERS; i++) {
        ASSERT_EQ(blk_close(take_ptr(&c->readers[i])), 0);
    }
    while (c->nb_inserted > c->nb_removed) {
        pass_hold(blk_node(c->disk->blk), false);
        ASSERT_EQ(bdrv_remove_filter(blk_node(c->disk->blk), NULL), 0);
        c->nb_removed++;
    }
}

/* --- the test --- */

static Worker workers[NB_WORKERS];
static Changer changer;
static MemDisk disk;

/* Let the others run, without waiting for any of them: a filter may hold them all. */
static void breathe(Env *env, unsigned nb)
{
    while (nb-- > 0) {
        aio_poll(env->main, false);
        sched_yield();
    }
}

static void workers_start(IOThread *const *threads, _Atomic bool *stop)
{
    for (unsigned i = 0; i < NB_WORKERS; i++) {
        Coroutine *co = co_create(worker_entry, &workers[i]);

        ASSERT_TRUE(co != NULL);
        workers[i] = (Worker){ .disk = &disk, .stop = stop, .index = i, .random = { i } };
        aio_co_schedule(iothread_context(threads[i % NB_THREADS]), co);
    }
}

static void workers_finish(Env *env, _Atomic bool *stop)
{
    for (unsigned i = 0; i < NB_WORKERS; i++) {
        unsigned before = atomic_load(&workers[i].nb_requests);

        while (atomic_load(&workers[i].nb_requests) == before) { /* nobody was forgotten */
            breathe(env, 1);
        }
    }
    atomic_store(stop, true);
    for (unsigned i = 0; i < NB_WORKERS; i++) {
        while (!atomic_load(&workers[i].done)) {
            breathe(env, 1);
        }
        EXPECT_EQ(workers[i].nb_errors, 0u);
        EXPECT_EQ(workers[i].nb_wrong, 0u);
        EXPECT_EQ(memcmp(disk.data + i * PART_BYTES, workers[i].model, PART_BYTES), 0);
    }
}

static main_fn void torture(const MemConfig *config, uint64_t seed)
{
    IOThread *threads[NB_THREADS];
    _Atomic bool stop = false;
    Env env;
    Error err;

    assert_main();
    env_init(&env, 0);
    mem_open(&disk, config);
    atomic_store(&disk.yield, MEM_YIELD_TWICE);
    for (unsigned i = 0; i < NB_THREADS; i++) {
        threads[i] = iothread_create("t", NULL, &err);
        ASSERT_TRUE(threads[i] != NULL);
    }
    changer = (Changer){ .disk = &disk, .random = { seed } };
    workers_start(threads, &stop);
    for (unsigned step = 0; step < NB_STEPS; step++) {
        change(&changer, iothread_context(threads[step % NB_THREADS]));
        breathe(&env, random_below(&changer.random, 8));
    }
    change_back(&changer);
    workers_finish(&env, &stop);
    EXPECT_TRUE(changer.nb_inserted > NB_STEPS / 16);
    EXPECT_EQ(disk.stats.violations, 0u);
    EXPECT_EQ(mem_close(&disk), 0);
    for (unsigned i = 0; i < NB_THREADS; i++) {
        iothread_unref(threads[i]);
    }
    env_finish(&env);
}

TEST(torture, threads_keep_their_data_while_the_graph_changes)
{
    torture(&(MemConfig){ .length_bytes = 65536 }, 1);
}

/* Half of the writes are read-modify-writes, which share blocks with nobody else's part. */
TEST(torture, with_writes_that_are_not_whole_blocks)
{
    torture(&(MemConfig){ .length_bytes = 65536, .limits.request_alignment = BLOCK_BYTES }, 2);
}

TEST(torture, without_membarrier)
{
    if (!refuse_membarrier()) {
        TEST_SKIP("seccomp cannot refuse membarrier(2) here");
    }
    torture(&(MemConfig){ .length_bytes = 65536 }, 3);
}

TEST_MAIN()
