/*
 * test-virtio-blk-threads.c - four queues, each with its own IOThread and its own driver thread
 *
 * Each driver keeps a model of its quarter of the disk. It writes and reads at random, up to a
 * depth, never two requests on the same blocks at once, and compares what comes back. Some lives of
 * the device end while the drivers are at it.
 */
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#include "io/aio/iothread.h"
#include "io/base/test.h"
#include "virtio/tests/ring-driver.h"
#include "virtio/virtio-blk.h"

#define NB_QUEUES   4
#define QUEUE_SIZE  64
#define DEPTH       16
#define BLOCK_BYTES 4096
#define NB_BLOCKS   128 /* of each driver */
#define NB_REQUESTS (HAVE_TSAN || HAVE_ASAN ? 1500 : 6000)
#define NB_LIVES    3
#define NB_RESETS   (HAVE_TSAN || HAVE_ASAN ? 6 : 20) /* of a device at work */

typedef struct Slot {
    uint64_t header_gpa, data_gpa, status_gpa, table_gpa;
    bool busy, write;
    unsigned block;
    uint32_t stamp; /* of what is written, or expected to be read */
    uint16_t head;
} Slot;

typedef struct Driver {
    unsigned index;
    pthread_t thread;
    RingDriver ring;
    int irq_fd;
    bool polls; /* looks at the used ring all the time; else it sleeps until the interrupt */
    Slot slots[DEPTH];
    uint32_t model[NB_BLOCKS]; /* stamp last written */
    bool in_use[NB_BLOCKS];
    uint64_t random;
    unsigned nb_submitted, nb_done, nb_errors, nb_wrong;
    _Atomic unsigned nb_seen; /* nb_done, for other threads */
    _Atomic bool stop;        /* its queue was reset: nothing comes any more */
} Driver;

static Guest guest;
static VirtioBlk *vblk;
static VirtioDevice *vdev;
static GuestTransport transport;
static Driver drivers[NB_QUEUES];
static AioContext *contexts[NB_QUEUES];
static _Atomic unsigned nb_finished;
static int disk_fd;

static uint32_t next_random(Driver *d)
{
    d->random = d->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(d->random >> 33);
}

static void stamp_block(uint32_t *words, uint32_t stamp)
{
    for (unsigned i = 0; i < BLOCK_BYTES / 4; i++) {
        words[i] = stamp ^ (stamp == 0 ? 0 : i * 0x9e3779b9);
    }
}

static bool block_is(const uint32_t *words, uint32_t stamp)
{
    for (unsigned i = 0; i < BLOCK_BYTES / 4; i++) {
        if (words[i] != (stamp ^ (stamp == 0 ? 0 : i * 0x9e3779b9))) {
            return false;
        }
    }
    return true;
}

static void submit(Driver *d, Slot *slot)
{
    struct virtio_blk_outhdr *header = guest_ptr(&guest, slot->header_gpa);
    unsigned block;

    do {
        block = next_random(d) % NB_BLOCKS;
    } while (d->in_use[block]);
    slot->busy = d->in_use[block] = true;
    slot->block = block;
    slot->write = next_random(d) % 2;
    slot->stamp = slot->write ? next_random(d) | 1 : d->model[block];
    if (slot->write) {
        stamp_block(guest_ptr(&guest, slot->data_gpa), slot->stamp);
    }
    header->type = htole32(slot->write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN);
    header->sector = htole64(((uint64_t)d->index * NB_BLOCKS + block) * (BLOCK_BYTES / 512));
    *(uint8_t *)guest_ptr(&guest, slot->status_gpa) = 0xee;

    RingBuf bufs[] = { { slot->header_gpa, 16, false },
                       { slot->data_gpa, BLOCK_BYTES, !slot->write },
                       { slot->status_gpa, 1, true } };

    slot->head = next_random(d) % 2 ? ring_add_indirect(&d->ring, slot->table_gpa, bufs, 3)
                                    : ring_add(&d->ring, bufs, 3);
    d->nb_submitted++;
}

static void complete(Driver *d, uint16_t head)
{
    for (unsigned i = 0; i < DEPTH; i++) {
        Slot *slot = &d->slots[i];

        if (!slot->busy || slot->head != head) {
            continue;
        }
        ring_free(&d->ring, head);
        d->nb_errors += *(uint8_t *)guest_ptr(&guest, slot->status_gpa) != VIRTIO_BLK_S_OK;
        if (slot->write) {
            d->model[slot->block] = slot->stamp;
        } else {
            d->nb_wrong += !block_is(guest_ptr(&guest, slot->data_gpa), slot->stamp);
        }
        slot->busy = d->in_use[slot->block] = false;
        d->nb_done++;
        return;
    }
    d->nb_wrong++; /* a head that was not out */
}

static void wait_for_used(Driver *d)
{
    eventfd_t count;

    if (d->polls) {
        sched_yield();
        return;
    }
    /* pairs with the device's barrier between what it used and its look at the wish */
    ring_want_interrupt(&d->ring, true);
    if (ring_used_index(&d->ring) == d->ring.used_seen && eventfd_read(d->irq_fd, &count) < 0) {
        abort();
    }
}

static void *driver_thread(void *opaque)
{
    Driver *d = opaque;
    uint32_t head, len;

    while (d->nb_done < NB_REQUESTS && !atomic_load(&d->stop)) {
        for (unsigned i = 0; i < DEPTH && d->nb_submitted < NB_REQUESTS; i++) {
            if (!d->slots[i].busy) {
                submit(d, &d->slots[i]);
            }
        }
        ring_publish(&d->ring);
        if (ring_wants_kick(&d->ring)) {
            ring_kick(&d->ring);
        }
        bool any = false;

        while (ring_next_used(&d->ring, &head, &len)) {
            complete(d, (uint16_t)head);
            any = true;
        }
        atomic_store(&d->nb_seen, d->nb_done);
        if (!any) {
            wait_for_used(d);
        }
    }
    atomic_fetch_add(&nb_finished, 1);
    aio_notify(aio_main());
    return NULL;
}

static void driver_prepare(Driver *d)
{
    ring_init(&d->ring, &guest, vdev, d->index, QUEUE_SIZE);
    for (unsigned i = 0; i < DEPTH; i++) {
        Slot *slot = &d->slots[i];

        slot->header_gpa = guest_alloc(&guest, 16, 16);
        slot->status_gpa = guest_alloc(&guest, 1, 1);
        slot->table_gpa = guest_alloc(&guest, 3 * 16, 16);
        slot->data_gpa = guest_alloc(&guest, BLOCK_BYTES, BLOCK_BYTES);
    }
    for (unsigned i = 0; i < DEPTH; i++) {
        d->slots[i].busy = false;
    }
    memset(d->in_use, 0, sizeof(d->in_use));
    d->nb_submitted = d->nb_done = 0;
    atomic_store(&d->nb_seen, 0);
    atomic_store(&d->stop, false);
    atomic_store(&vdev->queues[d->index].interrupt.fd, d->irq_fd);
    dev_enable_queue(vdev, d->index);
}

static void drivers_start(void)
{
    guest_rewind(&guest);
    ASSERT_TRUE(dev_negotiate(vdev, vdev_features_offered(vdev)));
    atomic_store(&nb_finished, 0);
    for (unsigned i = 0; i < NB_QUEUES; i++) {
        driver_prepare(&drivers[i]);
    }
    dev_driver_ok(vdev);
    for (unsigned i = 0; i < NB_QUEUES; i++) {
        ASSERT_EQ(pthread_create(&drivers[i].thread, NULL, driver_thread, &drivers[i]), 0);
    }
}

/* Its queue was reset, so it may wait for an interrupt that does not come. */
static void driver_stop(Driver *d)
{
    atomic_store(&d->stop, true);
    eventfd_write(d->irq_fd, 1);
    pthread_join(d->thread, NULL);
}

static void drivers_finish(void)
{
    for (unsigned i = 0; i < NB_QUEUES; i++) {
        EXPECT_EQ(drivers[i].nb_errors, 0);
        EXPECT_EQ(drivers[i].nb_wrong, 0);
        ring_finish(&drivers[i].ring);
    }
}

/* One life of the device: negotiate, run all drivers to the end, reset. */
static void live(void)
{
    drivers_start();
    AIO_WAIT_WHILE(aio_main(), atomic_load(&nb_finished) < NB_QUEUES);
    for (unsigned i = 0; i < NB_QUEUES; i++) {
        pthread_join(drivers[i].thread, NULL);
    }
    dev_set_status(vdev, 0);
    drivers_finish();
}

static void lives(void)
{
    for (unsigned i = 0; i < NB_LIVES; i++) {
        live();
    }
    for (unsigned i = 0; i < NB_QUEUES; i++) {
        EXPECT_EQ(vdev->queues[i].stats.requests, NB_LIVES * NB_REQUESTS);
    }
}

static void wait_until_busy(const Driver *d, unsigned nb)
{
    while (atomic_load(&d->nb_seen) < nb) {
        sched_yield();
    }
}

/* Reset the device while all drivers are at it; then no queue may touch the memory any more. */
static void lives_cut_short(void)
{
    for (unsigned n = 0; n < NB_RESETS; n++) {
        drivers_start();
        for (unsigned i = 0; i < NB_QUEUES; i++) {
            wait_until_busy(&drivers[i], 1 + n);
        }
        dev_set_status(vdev, 0);
        EXPECT_EQ(vdev_status(vdev), 0);
        for (unsigned i = 0; i < NB_QUEUES; i++) {
            EXPECT_EQ(vdev->queues[i].in_flight, 0);
            driver_stop(&drivers[i]);
            /* what was under way may or may not have been written */
            memset(drivers[i].model, 0, sizeof(drivers[i].model));
        }
        drivers_finish();
        memset(guest.ram, 0xa5, guest.ram_bytes);
        for (unsigned i = 0; i < NB_QUEUES; i++) {
            ring_kick(&drivers[i].ring);
        }
        EXPECT_EQ(ftruncate(disk_fd, 0), 0); /* zeroes again, as the models have it */
        EXPECT_EQ(ftruncate(disk_fd, NB_QUEUES * NB_BLOCKS * BLOCK_BYTES), 0);
        for (uint64_t i = 0; i < guest.ram_bytes; i++) {
            ASSERT_EQ(guest.ram[i], 0xa5);
        }
    }
}

/* Reset one queue after the other in the midst of it; the other drivers do not notice. */
static void queues_reset_at_work(void)
{
    for (unsigned n = 0; n < NB_RESETS; n++) {
        Driver *d = &drivers[n % NB_QUEUES];

        drivers_start();
        wait_until_busy(d, 1 + n);
        dev_reset_queue(vdev, d->index);
        EXPECT_EQ(vdev->queues[d->index].in_flight, 0);
        EXPECT_FALSE(vdev->queues[d->index].started);
        driver_stop(d);
        AIO_WAIT_WHILE(aio_main(), atomic_load(&nb_finished) < NB_QUEUES);
        for (unsigned i = 0; i < NB_QUEUES; i++) {
            if (&drivers[i] != d) {
                pthread_join(drivers[i].thread, NULL);
                EXPECT_EQ(drivers[i].nb_done, NB_REQUESTS);
            }
        }
        dev_set_status(vdev, 0);
        drivers_finish();
        memset(d->model, 0, sizeof(d->model));
        EXPECT_EQ(fallocate(disk_fd, FALLOC_FL_ZERO_RANGE, d->index * NB_BLOCKS * BLOCK_BYTES,
                            NB_BLOCKS * BLOCK_BYTES),
                  0);
    }
}

/* A queue goes to another thread again and again, two meet in one, and the drivers do not
 * notice. */
static void queues_move_at_work(void)
{
    unsigned moves = 0;
    uint32_t random = 1;

    for (unsigned life = 0; life < NB_LIVES; life++) {
        drivers_start();
        while (atomic_load(&nb_finished) < NB_QUEUES) {
            random = random * 1664525 + 1013904223;
            unsigned from = (random >> 8) % NB_QUEUES, to = (random >> 16) % NB_QUEUES;

            EXPECT_EQ(dev_move_queue(vdev, from, contexts[to]), 0);
            EXPECT_TRUE(vdev->queues[from].ctx == contexts[to]);
            moves++;
        }
        for (unsigned i = 0; i < NB_QUEUES; i++) {
            pthread_join(drivers[i].thread, NULL);
            EXPECT_EQ(drivers[i].nb_done, NB_REQUESTS);
        }
        dev_set_status(vdev, 0);
        drivers_finish();
    }
    EXPECT_GE(moves, 20);
    for (unsigned i = 0; i < NB_QUEUES; i++) {
        EXPECT_EQ(vdev->queues[i].stats.requests, NB_LIVES * NB_REQUESTS);
    }
}

static main_fn void run_on(const char *disk_options, unsigned nb_iothreads, int64_t poll_max_ns,
                           void (*run)(void))
{
    VirtioBlkParams params = { .id = "disk",
                               .nb_queues = NB_QUEUES,
                               .queue_size = QUEUE_SIZE,
                               .packed = guest_wants_packed() };
    AioParams aio_params = { .poll_max_ns = poll_max_ns };
    IOThread *iothreads[NB_QUEUES];
    Error err;
    Opts opts;
    AioContext *ctx = guest_main_context(&err);

    if (!ctx) {
        TEST_SKIP("%s", err.msg);
    }
    guest_init(&guest, 16 << 20);
    ASSERT_EQ(opts_parse(&opts, "--disk", disk_options, NULL, &err), 0);
    BlockBackend *blk = blk_open("disk", &opts, &err);

    ASSERT_TRUE(blk != NULL);
    opts_finish(&opts);
    vblk = virtio_blk_create(&params, blk, &guest.gm, &err);
    ASSERT_TRUE(vblk != NULL);
    vdev = virtio_blk_device(vblk);
    guest_transport_init(&transport, vdev);
    for (unsigned i = 0; i < nb_iothreads; i++) {
        iothreads[i] = iothread_create("test", &aio_params, &err);
        ASSERT_TRUE(iothreads[i] != NULL);
    }
    for (unsigned i = 0; i < NB_QUEUES; i++) {
        drivers[i] = (Driver){ .index = i, .random = i + 1, .polls = i % 2 };
        drivers[i].irq_fd = eventfd(0, EFD_CLOEXEC);
        contexts[i] = iothread_context(iothreads[i % nb_iothreads]);
        vdev_set_queue_context(vdev, i, contexts[i]);
    }
    run();
    for (unsigned i = 0; i < NB_QUEUES; i++) {
        close(drivers[i].irq_fd);
    }
    virtio_blk_destroy(vblk);
    EXPECT_EQ(blk_close(blk), 0);
    for (unsigned i = 0; i < nb_iothreads; i++) {
        iothread_unref(iothreads[i]);
    }
    guest_finish(&guest);
    aio_context_destroy(ctx);
}

static main_fn void run_on_file(const char *more, unsigned nb_iothreads, int64_t poll_max_ns,
                                void (*run)(void))
{
    char path[] = "/var/tmp/penstock-test-XXXXXX", options[96];

    disk_fd = mkstemp(path);
    ASSERT_GE(disk_fd, 0);
    ASSERT_EQ(ftruncate(disk_fd, NB_QUEUES * NB_BLOCKS * BLOCK_BYTES), 0);
    snprintf(options, sizeof(options), "path=%s%s", path, more);
    run_on(options, nb_iothreads, poll_max_ns, run);
    close(disk_fd);
    unlink(path);
}

TEST(vblk_threads, four_queues_on_four_threads_keep_their_data)
{
    run_on_file("", 4, 0, lives);
}

TEST(vblk_threads, four_queues_on_four_polling_threads_keep_their_data)
{
    run_on_file(",cache=writeback", 4, AIO_POLL_MAX_NS_DEFAULT, lives);
}

TEST(vblk_threads, four_queues_share_two_threads)
{
    run_on_file(",cache=writeback", 2, AIO_POLL_MAX_NS_DEFAULT, lives);
}

TEST(vblk_threads, a_reset_under_load_leaves_the_memory_alone)
{
    run_on_file("", 4, 0, lives_cut_short);
}

TEST(vblk_threads, a_reset_under_load_leaves_the_memory_alone_when_polling)
{
    run_on_file(",cache=writeback", 2, AIO_POLL_MAX_NS_DEFAULT, lives_cut_short);
}

TEST(vblk_threads, a_ring_reset_under_load_leaves_the_other_queues_alone)
{
    run_on_file(",cache=writeback", 4, AIO_POLL_MAX_NS_DEFAULT, queues_reset_at_work);
}

TEST(vblk_threads, queues_move_between_threads_under_load)
{
    run_on_file("", 4, 0, queues_move_at_work);
}

TEST(vblk_threads, queues_move_between_polling_threads_under_load)
{
    run_on_file(",cache=writeback", 4, AIO_POLL_MAX_NS_DEFAULT, queues_move_at_work);
}

TEST_MAIN()
