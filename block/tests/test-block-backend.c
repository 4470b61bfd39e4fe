/*
 * test-block-backend.c - range checks, and drained sections with requests from several contexts
 */
#include "block/block-backend.h"

#include <string.h>

#include "block/in-flight.h"
#include "block/tests/block-test.h"
#include "block/tests/mem-driver.h"
#include "io/aio/iothread.h"

#define KIB 1024u

static const MemConfig small = { .length_bytes = 64 * KIB };

TEST(backend, range_outside_the_device_is_refused)
{
    static const struct {
        uint64_t offset_bytes, len_bytes;
        int ret;
    } cases[] = {
        { 0, 64 * KIB, 0 },           { 64 * KIB - 512, 512, 0 },
        { 64 * KIB, 0, 0 },           { 0, 64 * KIB + 1, -EINVAL },
        { 64 * KIB, 1, -EINVAL },     { 64 * KIB + 1, 0, -EINVAL },
        { UINT64_MAX, 1, -EINVAL },   { UINT64_MAX - 511, 512, -EINVAL },
        { 512, UINT64_MAX, -EINVAL }, { 512, UINT64_MAX - 511, -EINVAL },
    };
    static char buf[64 * KIB + 1];
    Env env;
    MemDisk disk;

    env_init(&env, 0);
    mem_open(&disk, &small);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        uint64_t offset = cases[i].offset_bytes, len = cases[i].len_bytes;

        EXPECT_EQ(run_read(disk.blk, offset, len, buf), cases[i].ret);
        EXPECT_EQ(run_write(disk.blk, offset, len, buf, 0), cases[i].ret);
        EXPECT_EQ(run_zeroes(disk.blk, offset, len, 0), cases[i].ret);
        EXPECT_EQ(run_discard(disk.blk, offset, len), cases[i].ret);
    }
    EXPECT_EQ(disk.stats.violations, 0u);
    EXPECT_EQ(disk.stats.ops[MEM_READ], 2u);
    EXPECT_EQ(blk_in_flight(disk.blk), 0u);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

TEST(backend, list_that_holds_more_or_less_than_the_length_is_refused)
{
    Env env;
    MemDisk disk;
    char buf[1024];
    struct iovec iov[2] = { { buf, 512 }, { buf, SIZE_MAX } };
    Request req = { .len_bytes = 1024, .iov = iov, .niov = 1 };

    env_init(&env, 0);
    mem_open(&disk, &small);
    req.blk = disk.blk;
    for (req.kind = REQ_READ; req.kind <= REQ_WRITE; req.kind++) {
        req.niov = 1;
        EXPECT_EQ(request_run(&req), -EINVAL);
        req.niov = 2; /* the sum overflows */
        EXPECT_EQ(request_run(&req), -EINVAL);
        req.niov = 0;
        EXPECT_EQ(request_run(&req), -EINVAL);
    }
    EXPECT_EQ(disk.stats.ops[MEM_READ] + disk.stats.ops[MEM_WRITE], 0u);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

TEST(backend, read_only_disk_takes_reads_and_flushes_alone)
{
    Env env;
    MemDisk disk;
    char buf[512];

    env_init(&env, 0);
    mem_open(&disk, &(MemConfig){ .length_bytes = 64 * KIB, .options = "readonly=on" });
    EXPECT_TRUE(blk_read_only(disk.blk));
    EXPECT_EQ(run_read(disk.blk, 0, 512, buf), 0);
    EXPECT_EQ(run_flush(disk.blk), 0);
    EXPECT_EQ(run_write(disk.blk, 0, 512, buf, 0), -EPERM);
    EXPECT_EQ(run_zeroes(disk.blk, 0, 512, 0), -EPERM);
    EXPECT_EQ(run_discard(disk.blk, 0, 512), -EPERM);
    EXPECT_EQ(mem_close(&disk), 0);
    EXPECT_EQ(disk.stats.ops[MEM_FLUSH], 0u);
    env_finish(&env);
}

TEST(backend, switching_the_write_cache_off_makes_later_writes_stable)
{
    Env env;
    MemDisk disk;
    char buf[512] = { 0 };

    env_init(&env, 0);
    mem_open(&disk, &(MemConfig){ .length_bytes = 64 * KIB, .honours_fua = true });
    EXPECT_EQ(run_write(disk.blk, 0, 512, buf, 0), 0);
    EXPECT_EQ(disk.stats.fua, 0u);
    blk_set_write_cache(disk.blk, false);
    EXPECT_FALSE(blk_write_cache(disk.blk));
    EXPECT_EQ(run_write(disk.blk, 0, 512, buf, 0), 0);
    EXPECT_EQ(disk.stats.fua, 1u);
    EXPECT_EQ(run_zeroes(disk.blk, 0, 512, 0), 0);
    EXPECT_EQ(disk.stats.ops[MEM_FLUSH], 1u);
    blk_set_write_cache(disk.blk, true);
    EXPECT_EQ(run_write(disk.blk, 0, 512, buf, 0), 0);
    EXPECT_EQ(disk.stats.fua, 1u);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

TEST(backend, close_waits_for_requests_and_flushes_and_tells_the_result)
{
    Env env;
    MemDisk disk;
    char buf[512] = { 0 };
    Request req = { .kind = REQ_WRITE, .len_bytes = 512, .buf = buf };

    env_init(&env, 1);
    mem_open(&disk, &small);
    req.blk = disk.blk;
    atomic_store(&disk.yield, MEM_YIELD_TWICE);
    request_start(&req, env.ctx[0]);
    aio_context_enter(env.ctx[0]);
    aio_poll(env.ctx[0], false); /* it is in flight now */
    aio_context_enter(env.main);
    EXPECT_EQ(blk_in_flight(disk.blk), 1u);
    disk.fail_nth = 2; /* counted from here: the rest of the write, the flush */
    disk.fail_code = -EDQUOT;
    env_step_along(&env, true);
    EXPECT_EQ(mem_close(&disk), -EDQUOT);
    EXPECT_TRUE(req.done);
    EXPECT_EQ(disk.stats.ops[MEM_FLUSH], 1u);
    env_finish(&env);
}

/* --- drained sections, contexts stepped by hand --- */

#define NB_REQUESTS 9

typedef struct Crowd {
    Env env;
    MemDisk disk;
    Request reqs[NB_REQUESTS];
    char buf[NB_REQUESTS][512];
    unsigned order;
} Crowd;

static void crowd_init(Crowd *c)
{
    memset(c, 0, sizeof(*c));
    env_init(&c->env, 3);
    mem_open(&c->disk, &small);
    for (unsigned i = 0; i < NB_REQUESTS; i++) {
        c->reqs[i] = (Request){ .blk = c->disk.blk,
                                .kind = REQ_READ,
                                .len_bytes = 512,
                                .buf = c->buf[i],
                                .order = &c->order };
    }
}

/* Start requests [first, last) one after the other, in turn in each context. */
static void crowd_start(Crowd *c, unsigned first, unsigned last)
{
    for (unsigned i = first; i < last; i++) {
        request_start(&c->reqs[i], c->env.ctx[i % 3]);
        env_settle(&c->env);
    }
}

static unsigned crowd_done(const Crowd *c)
{
    unsigned nb = 0;

    for (unsigned i = 0; i < NB_REQUESTS; i++) {
        nb += c->reqs[i].done;
    }
    return nb;
}

static void crowd_finish(Crowd *c)
{
    atomic_store(&c->disk.yield, MEM_YIELD_NEVER); /* for the flush */
    c->disk.move_to = NULL;
    EXPECT_EQ(mem_close(&c->disk), 0);
    env_finish(&c->env);
}

/* A timer of the main context: lets one parked request go on at a time, until none is left. */
typedef struct Releaser {
    AioTimer timer;
    MemDisk *disk;
    unsigned nb_released;
} Releaser;

static void releaser_cb(void *opaque)
{
    Releaser *r = opaque;

    if (mem_nb_parked(r->disk) > 0) {
        mem_release(r->disk, 0);
        r->nb_released++;
        aio_timer_arm(&r->timer, aio_now_ns() + 1000000);
    }
}

static void releaser_start(Releaser *r, Crowd *c)
{
    *r = (Releaser){ .disk = &c->disk };
    aio_timer_init(&r->timer, c->env.main, releaser_cb, r);
    aio_timer_arm(&r->timer, aio_now_ns() + 1000000);
}

TEST(drain, begin_returns_when_requests_of_all_contexts_have_ended)
{
    Crowd c;
    Releaser releaser;

    crowd_init(&c);
    atomic_store(&c.disk.yield, MEM_YIELD_PARK);
    crowd_start(&c, 0, NB_REQUESTS);
    EXPECT_EQ(blk_in_flight(c.disk.blk), (unsigned)NB_REQUESTS);
    EXPECT_EQ(crowd_done(&c), 0u);

    releaser_start(&releaser, &c);
    env_step_along(&c.env, true);
    blk_drained_begin(c.disk.blk);
    EXPECT_EQ(releaser.nb_released, (unsigned)NB_REQUESTS);
    EXPECT_EQ(crowd_done(&c), (unsigned)NB_REQUESTS);
    EXPECT_EQ(blk_in_flight(c.disk.blk), 0u);
    blk_drained_end(c.disk.blk);
    aio_timer_disarm(&releaser.timer);
    env_step_along(&c.env, false);
    crowd_finish(&c);
}

TEST(drain, requests_that_arrive_meanwhile_go_on_afterwards_in_order_and_at_home)
{
    Crowd c;

    crowd_init(&c);
    blk_drained_begin(c.disk.blk);
    crowd_start(&c, 0, NB_REQUESTS);
    EXPECT_EQ(crowd_done(&c), 0u);
    EXPECT_EQ(c.disk.stats.ops[MEM_READ], 0u);
    EXPECT_EQ(blk_in_flight(c.disk.blk), 0u);

    blk_drained_end(c.disk.blk);
    EXPECT_EQ(c.disk.stats.ops[MEM_READ], 0u); /* they wait for their own contexts */
    EXPECT_EQ(blk_in_flight(c.disk.blk), (unsigned)NB_REQUESTS);
    for (unsigned i = 0; i < 3; i++) {
        aio_context_enter(c.env.ctx[i]);
        while (aio_poll(c.env.ctx[i], false)) {
        }
        aio_context_enter(c.env.main);
        EXPECT_EQ(crowd_done(&c), (i + 1) * 3);
        for (unsigned k = 0; k < 3; k++) {
            EXPECT_EQ(c.reqs[i + 3 * k].rank, i * 3 + k + 1);
        }
    }
    EXPECT_EQ(blk_in_flight(c.disk.blk), 0u);
    crowd_finish(&c);
}

TEST(drain, sections_nest)
{
    Crowd c;

    crowd_init(&c);
    blk_drained_begin(c.disk.blk);
    blk_drained_begin(c.disk.blk);
    crowd_start(&c, 0, 2);
    blk_drained_end(c.disk.blk);
    crowd_start(&c, 2, 4);
    EXPECT_EQ(crowd_done(&c), 0u);
    blk_drained_end(c.disk.blk);
    env_settle(&c.env);
    EXPECT_EQ(crowd_done(&c), 4u);
    crowd_finish(&c);
}

TEST(drain, section_right_after_another_waits_for_what_the_first_let_go)
{
    Crowd c;

    crowd_init(&c);
    blk_drained_begin(c.disk.blk);
    crowd_start(&c, 0, 3);
    blk_drained_end(c.disk.blk);
    env_step_along(&c.env, true);
    blk_drained_begin(c.disk.blk);
    EXPECT_EQ(crowd_done(&c), 3u);
    env_step_along(&c.env, false);
    blk_drained_end(c.disk.blk);
    crowd_finish(&c);
}

TEST(drain, length_is_looked_at_after_the_wait)
{
    Crowd c;

    crowd_init(&c);
    blk_drained_begin(c.disk.blk);
    crowd_start(&c, 0, 1);
    bdrv_set_length(c.disk.node, 256);
    blk_drained_end(c.disk.blk);
    env_settle(&c.env);
    EXPECT_EQ(c.reqs[0].ret, -EINVAL);
    crowd_finish(&c);
}

TEST(drain, request_that_ends_in_another_context_is_counted_right)
{
    Crowd c;

    crowd_init(&c);
    c.disk.move_to = c.env.ctx[2];
    crowd_start(&c, 0, 6);
    EXPECT_EQ(crowd_done(&c), 6u);
    EXPECT_EQ(blk_in_flight(c.disk.blk), 0u);
    atomic_store(&c.disk.yield, MEM_YIELD_TWICE);
    env_step_along(&c.env, true);
    for (unsigned i = 6; i < 9; i++) {
        request_start(&c.reqs[i], c.env.ctx[i % 3]);
    }
    aio_poll(c.env.main, false);
    blk_drained_begin(c.disk.blk);
    EXPECT_EQ(c.disk.stats.active, 0);
    blk_drained_end(c.disk.blk);
    env_step_along(&c.env, false);
    env_settle(&c.env);
    EXPECT_EQ(crowd_done(&c), 9u);
    crowd_finish(&c);
}

/* --- drained sections, real threads --- */

#define NB_THREADS  4
#define NB_WORKERS  (NB_THREADS * 4)
#define NB_SECTIONS 60

typedef struct Worker {
    MemDisk *disk;
    _Atomic bool *stop;
    unsigned seed;
    _Atomic uint64_t nb_requests;
    _Atomic unsigned errors;
    _Atomic bool done;
} Worker;

static void worker_entry(void *opaque)
{
    Worker *w = opaque;
    Random random = { w->seed };
    char buf[512] = { 0 };
    struct iovec iov = { buf, sizeof(buf) };

    assert_in_coroutine();
    while (!atomic_load(w->stop)) {
        uint64_t offset_bytes = (w->seed * 7 + random_below(&random, 7)) * 512;
        int ret;

        switch (random_below(&random, 4)) {
        case 0:
            ret = blk_co_flush(w->disk->blk);
            break;
        case 1:
            ret = blk_co_pwrite_zeroes(w->disk->blk, offset_bytes, 512, 0);
            break;
        case 2:
            ret = blk_co_pwritev(w->disk->blk, offset_bytes, 512, &iov, 1, 0);
            break;
        default:
            ret = blk_co_preadv(w->disk->blk, offset_bytes, 512, &iov, 1, 0);
        }
        if (ret < 0) {
            atomic_fetch_add(&w->errors, 1);
        }
        atomic_fetch_add(&w->nb_requests, 1);
    }
    atomic_store(&w->done, true);
}

/* In a section no operation is in the driver, whenever one looks. */
static void torture_section(MemDisk *disk, unsigned nth)
{
    blk_drained_begin(disk->blk);
    for (unsigned i = 0; i < 20; i++) {
        ASSERT_EQ(atomic_load(&disk->stats.active), 0);
        if (i % 8 == nth % 8) {
            usleep(50);
        }
    }
    disk->data[0] = (char)nth; /* the main thread's alone here; the sanitizer checks it */
    blk_drained_end(disk->blk);
    if (nth % 3) {
        aio_poll(aio_main(), false);
        usleep(nth * 37 % 400);
    }
}

static main_fn void torture(void)
{
    static Worker workers[NB_WORKERS];
    IOThread *threads[NB_THREADS];
    _Atomic bool stop = false;
    Env env;
    MemDisk disk;
    Error err;

    env_init(&env, 0);
    mem_open(&disk, &small);
    atomic_store(&disk.yield, MEM_YIELD_TWICE);
    for (unsigned i = 0; i < NB_THREADS; i++) {
        threads[i] = iothread_create("t", NULL, &err);
        ASSERT_TRUE(threads[i] != NULL);
    }
    for (unsigned i = 0; i < NB_WORKERS; i++) {
        workers[i] = (Worker){ .disk = &disk, .stop = &stop, .seed = i };
        aio_co_schedule(iothread_context(threads[i % NB_THREADS]),
                        co_create(worker_entry, &workers[i]));
    }
    for (unsigned nth = 0; nth < NB_SECTIONS; nth++) {
        torture_section(&disk, nth);
    }
    for (unsigned i = 0; i < NB_WORKERS; i++) {
        uint64_t before = atomic_load(&workers[i].nb_requests);

        while (atomic_load(&workers[i].nb_requests) == before) { /* nobody was forgotten */
            usleep(200);
        }
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < NB_WORKERS; i++) {
        while (!atomic_load(&workers[i].done)) {
            usleep(200);
        }
        EXPECT_EQ(workers[i].errors, 0u);
    }
    EXPECT_EQ(disk.stats.violations, 0u);
    EXPECT_EQ(mem_close(&disk), 0);
    for (unsigned i = 0; i < NB_THREADS; i++) {
        iothread_unref(threads[i]);
    }
    env_finish(&env);
}

TEST(drain, torture_with_real_threads)
{
    torture();
}

TEST(drain, torture_without_membarrier)
{
    InFlight probe;

    if (!refuse_membarrier()) {
        TEST_SKIP("seccomp cannot refuse membarrier(2) here");
    }
    ASSERT_EQ(inflight_init(&probe), 0);
    EXPECT_TRUE(probe.fenced);
    inflight_finish(&probe);
    torture();
}

TEST_MAIN()
