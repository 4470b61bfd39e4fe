/*
 * bench-throttle.c - whether throttled rates are what was asked for, in real time
 *
 * Two disks of one group, each on an IOThread of its own with a depth of 16, for five seconds a
 * rate. Fails when the rate is off by more than 2 %.
 */
#include <inttypes.h>
#include <stdio.h>

#include "block/block-backend.h"
#include "io/aio/iothread.h"
#include "io/base/thread.h"

#define NB_DISKS   2
#define DEPTH      16
#define RUN_NS     5000000000
#define OFF_MAX    0.02
#define READ_BYTES 4096

typedef struct Worker {
    BlockBackend *blk;
    uint64_t nb;
    int64_t last_ns; /* end of the last request that ended in time */
} Worker;

static int64_t end_ns;
static _Atomic unsigned nb_running;

static co_fn void worker_entry(void *opaque)
{
    static char buf[READ_BYTES];
    struct iovec iov = { buf, sizeof(buf) };
    Worker *w = opaque;

    assert_in_coroutine();
    for (;;) {
        if (blk_co_preadv(w->blk, 0, sizeof(buf), &iov, 1, 0) < 0) {
            abort();
        }
        int64_t now_ns = aio_now_ns();

        if (now_ns >= end_ns) {
            break;
        }
        w->nb++;
        w->last_ns = now_ns;
    }
    atomic_fetch_sub(&nb_running, 1);
    aio_notify(aio_main());
}

static main_fn BlockBackend *open_disk(const char *id, const char *kind, unsigned rate)
{
    char text[128];
    Opts opts;
    Error err;
    BlockBackend *blk;

    snprintf(text, sizeof(text), "driver=throttle,group=g,%s=%u,file.driver=null,file.size=1M",
             kind, rate);
    if (opts_parse(&opts, id, text, NULL, &err) < 0 || !(blk = blk_open(id, &opts, &err))) {
        fprintf(stderr, "%s\n", err.msg);
        abort();
    }
    opts_finish(&opts);
    return blk;
}

static main_fn bool run(IOThread *const *iothreads, const char *kind, unsigned unit_bytes,
                        unsigned rate)
{
    static Worker workers[NB_DISKS * DEPTH];
    BlockBackend *blk[NB_DISKS];
    uint64_t nb[NB_DISKS] = { 0 }, all = 0;
    int64_t start_ns = aio_now_ns(), last_ns = start_ns;

    end_ns = start_ns + RUN_NS;
    atomic_store(&nb_running, NB_DISKS * DEPTH);
    for (unsigned d = 0; d < NB_DISKS; d++) {
        char id[16];

        snprintf(id, sizeof(id), "d%u", d);
        blk[d] = open_disk(id, kind, rate);
    }
    for (unsigned i = 0; i < NB_DISKS * DEPTH; i++) {
        unsigned d = i / DEPTH;

        workers[i] = (Worker){ .blk = blk[d] };
        aio_co_schedule(iothread_context(iothreads[d]), co_create(worker_entry, &workers[i]));
    }
    AIO_WAIT_WHILE(aio_main(), atomic_load(&nb_running) != 0);
    for (unsigned i = 0; i < NB_DISKS * DEPTH; i++) {
        nb[i / DEPTH] += workers[i].nb;
        last_ns = MAX(last_ns, workers[i].last_ns);
    }
    for (unsigned d = 0; d < NB_DISKS; d++) {
        all += nb[d];
        blk_close(blk[d]);
    }
    double measured = (double)(all - 1) * unit_bytes * 1e9 / (double)(last_ns - start_ns);
    double off = measured / rate - 1;
    bool good = off <= OFF_MAX && off >= -OFF_MAX;

    printf("%s=%-9u %12.2f/s %+.2f %%, disks %" PRIu64 " and %" PRIu64 "%s\n", kind, rate, measured,
           100 * off, nb[0], nb[1], good ? "" : ": MORE THAN 2 % OFF");
    return good;
}

int main(void)
{
    static const unsigned rates[] = { 10, 1000, 100000 };
    AioContext *ctx = aio_context_create("main", NULL, NULL);
    IOThread *iothreads[NB_DISKS];
    bool good = true;

    assert_main();
    aio_context_enter(ctx);
    aio_context_set_main(ctx);
    for (unsigned d = 0; d < NB_DISKS; d++) {
        iothreads[d] = iothread_create(d ? "t1" : "t0", NULL, NULL);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(rates); i++) {
        good &= run(iothreads, "iops-total", 1, rates[i]);
    }
    good &= run(iothreads, "bps-read", READ_BYTES, 50000000);
    for (unsigned d = 0; d < NB_DISKS; d++) {
        iothread_unref(iothreads[d]);
    }
    aio_context_set_main(NULL);
    aio_context_enter(NULL);
    aio_context_destroy(ctx);
    return good ? 0 : 1;
}
