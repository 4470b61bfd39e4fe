/*
 * test-throttle-threads.c - a throttle group on real threads, drained and changed meanwhile
 */
#include "block/tests/block-test.h"
#include "io/aio/iothread.h"

#define NB_THREADS  3
#define NB_WORKERS  24
#define NB_REQUESTS 400
#define NB_CHANGES  60

typedef struct Worker {
    BlockBackend *blk;
    Random random;
} Worker;

static _Atomic unsigned nb_running;
static _Atomic unsigned nb_failed;

static co_fn void worker_entry(void *opaque)
{
    Worker *w = opaque;
    char buf[512];
    struct iovec iov = { buf, sizeof(buf) };

    assert_in_coroutine();
    for (unsigned i = 0; i < NB_REQUESTS; i++) {
        int ret = random_below(&w->random, 2) ? blk_co_preadv(w->blk, 0, sizeof(buf), &iov, 1, 0)
                                              : blk_co_pwritev(w->blk, 0, sizeof(buf), &iov, 1, 0);

        if (ret < 0) {
            atomic_fetch_add(&nb_failed, 1);
        }
    }
    atomic_fetch_sub(&nb_running, 1);
    aio_notify(aio_main());
}

static void set_limits(BlockBackend *blk, const char *text)
{
    Opts opts;
    Error err = { 0 };

    ASSERT_EQ(opts_parse(&opts, "blk", text, "x", &err), 0);
    ASSERT_EQ(bdrv_reconfigure(blk_node(blk), &opts, &err), 0);
    opts_finish(&opts);
}

TEST(throttle_threads, every_request_ends_whatever_is_drained_and_changed)
{
    static const char *const limits[] = { "iops-total=150000,iops-write=0", "iops-total=20000",
                                          "iops-total=0,bps-write=10M",
                                          "iops-write=9000,bps-write=0" };
    static Worker workers[NB_WORKERS];
    IOThread *iothreads[NB_THREADS];
    BlockBackend *blk[NB_THREADS];
    Random random = { 3 };
    Env env;

    env_init(&env, 0);
    for (unsigned i = 0; i < NB_THREADS; i++) {
        char id[8];
        Opts opts;
        Error err = { 0 };

        snprintf(id, sizeof(id), "d%u", i);
        ASSERT_EQ(opts_parse(&opts, id, "driver=throttle,group=g,file.driver=null,file.size=1M",
                             "x", &err),
                  0);
        blk[i] = blk_open(id, &opts, &err);
        ASSERT_TRUE(blk[i] != NULL);
        opts_finish(&opts);
        iothreads[i] = iothread_create(id, NULL, &err);
        ASSERT_TRUE(iothreads[i] != NULL);
    }
    set_limits(blk[0], limits[0]);
    atomic_store(&nb_running, NB_WORKERS);
    for (unsigned i = 0; i < NB_WORKERS; i++) {
        workers[i] = (Worker){ .blk = blk[i % NB_THREADS], .random = { i } };
        aio_co_schedule(iothread_context(iothreads[random_below(&random, NB_THREADS)]),
                        co_create(worker_entry, &workers[i]));
    }
    for (unsigned i = 0; i < NB_CHANGES; i++) {
        BlockBackend *some = blk[random_below(&random, NB_THREADS)];

        if (i % 2) {
            set_limits(some, limits[random_below(&random, ARRAY_SIZE(limits))]);
        } else {
            blk_drained_begin(some);
            blk_drained_end(some);
        }
    }
    AIO_WAIT_WHILE(aio_main(), atomic_load(&nb_running) != 0);
    EXPECT_EQ(nb_failed, 0);
    for (unsigned i = 0; i < NB_THREADS; i++) {
        blk_close(blk[i]);
        iothread_unref(iothreads[i]);
    }
    env_finish(&env);
}

TEST_MAIN()
