/*
 * test-vhost-user-move.c - queues that go from thread to thread while a client is at work
 *
 * The server is in the main thread, its queues in three IOThreads and the main context, in turns.
 * The client has a thread for each queue, which writes its own part of the disk, reads it back and
 * compares. A queue moves as soon as some more requests have been done since the last move.
 */
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <pthread.h>

#include "block/block-backend.h"
#include "io/aio/iothread.h"
#include "io/base/test.h"
#include "io/base/thread.h"
#include "virtio/shared-map.h"
#include "virtio/tests/vhost-user-client.h"
#include "virtio/vhost-user.h"
#include "virtio/virtio-blk.h"

#define NB_QUEUES    4
#define NB_IOTHREADS 3
#define QUEUE_SIZE   64
#define DEPTH        8
#define BLOCK_BYTES  4096u
#define PART_BLOCKS  64u
#define MOVES        (HAVE_TSAN || HAVE_ASAN ? 200 : 1000)
#define PACE         5 /* requests between two moves, at least */

static VfeClient client;
static char folder[] = "/tmp/penstock-move-XXXXXX", socket_path[64], disk_path[64];
static _Atomic unsigned nb_done, nb_wrong, nb_ended;
static _Atomic bool enough; /* the queues have moved often enough */
static _Atomic int start_result;

/* --- the client --- */

typedef struct Driver {
    unsigned index;
    pthread_t thread;
    VfeSlot slots[DEPTH];
    uint32_t model[PART_BLOCKS];
} Driver;

static Driver drivers[NB_QUEUES];

static void fill(uint32_t *words, uint32_t seed)
{
    for (unsigned i = 0; i < BLOCK_BYTES / 4; i++) {
        words[i] = seed + i * 0x9e3779b9;
    }
}

static bool is_filled(const uint32_t *words, uint32_t seed)
{
    for (unsigned i = 0; i < BLOCK_BYTES / 4; i++) {
        if (words[i] != seed + i * 0x9e3779b9) {
            return false;
        }
    }
    return true;
}

/* DEPTH blocks from @first on, all at once. */
static void do_blocks(Driver *driver, uint32_t type, unsigned first)
{
    VfeQueue *queue = &client.queues[driver->index];
    unsigned left = DEPTH;
    uint32_t head, len;

    for (unsigned i = 0; i < DEPTH; i++) {
        uint64_t block = driver->index * PART_BLOCKS + first + i;

        vfe_slot_add(&driver->slots[i], &queue->ring, type, block * BLOCK_BYTES / 512, BLOCK_BYTES,
                     i % 2);
    }
    vfe_queue_submit(queue);
    while (left > 0) {
        if (!ring_next_used(&queue->ring, &head, &len)) {
            if (vfe_queue_await(queue, VFE_ANSWER_MS) < 0) {
                atomic_fetch_add(&nb_wrong, 1);
                return;
            }
            continue;
        }
        ring_free(&queue->ring, (uint16_t)head);
        left--;
        atomic_fetch_add(&nb_done, 1);
        aio_notify(aio_main());
    }
    for (unsigned i = 0; i < DEPTH; i++) {
        atomic_fetch_add(&nb_wrong, vfe_slot_status(&driver->slots[i], &client.guest) != 0);
    }
}

static void write_and_read_back(Driver *driver, unsigned first, uint32_t seed)
{
    for (unsigned i = 0; i < DEPTH; i++) {
        driver->model[first + i] = seed + i;
        fill(vfe_slot_data(&driver->slots[i], &client.guest), seed + i);
    }
    do_blocks(driver, VIRTIO_BLK_T_OUT, first);
    do_blocks(driver, VIRTIO_BLK_T_IN, first);
    for (unsigned i = 0; i < DEPTH; i++) {
        atomic_fetch_add(&nb_wrong, !is_filled(vfe_slot_data(&driver->slots[i], &client.guest),
                                               driver->model[first + i]));
    }
}

static void *driver_thread(void *opaque)
{
    Driver *driver = opaque;

    for (unsigned n = 0; !atomic_load(&enough) && atomic_load(&nb_wrong) == 0; n++) {
        write_and_read_back(driver, n * DEPTH % PART_BLOCKS, n * 16 + driver->index);
    }
    return NULL;
}

static int connect_and_start(void)
{
    int ret = vfe_client_connect(&client, socket_path);

    return ret < 0 ? ret : vfe_client_start(&client);
}

static void *client_thread(void *opaque)
{
    int ret = connect_and_start();

    atomic_store(&start_result, ret);
    for (unsigned i = 0; ret == 0 && i < NB_QUEUES; i++) {
        drivers[i].index = i;
        for (unsigned k = 0; k < DEPTH; k++) {
            vfe_slot_init(&drivers[i].slots[k], &client.guest, BLOCK_BYTES);
        }
    }
    for (unsigned i = 0; ret == 0 && i < NB_QUEUES; i++) {
        pthread_create(&drivers[i].thread, NULL, driver_thread, &drivers[i]);
    }
    for (unsigned i = 0; ret == 0 && i < NB_QUEUES; i++) {
        pthread_join(drivers[i].thread, NULL);
    }
    if (ret == 0) {
        atomic_store(&start_result, vfe_client_stop(&client));
    }
    vfe_client_disconnect(&client);
    atomic_fetch_add(&nb_ended, 1);
    aio_notify(aio_main());
    return NULL;
}

/* --- the server --- */

static VhuServer *server;
static VirtioBlk *vblk;
static BlockBackend *blk;
static IOThread *iothreads[NB_IOTHREADS];
static bool stopped;

static main_fn BlockBackend *open_disk(void)
{
    int fd = open(disk_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    char text[80];
    Opts opts;
    Error err;

    ASSERT_EQ(ftruncate(fd, NB_QUEUES * PART_BLOCKS * BLOCK_BYTES), 0);
    close(fd);
    snprintf(text, sizeof(text), "path=%s", disk_path);
    ASSERT_EQ(opts_parse(&opts, "--disk", text, NULL, &err), 0);
    BlockBackend *opened = blk_open("moved", &opts, &err);

    ASSERT_TRUE(opened);
    opts_finish(&opts);
    return opened;
}

static main_fn void start_server(void)
{
    VirtioBlkParams params = { .id = "moved", .nb_queues = NB_QUEUES, .queue_size = QUEUE_SIZE };
    SocketAddress addr;
    Error err;

    params.packed = guest_wants_packed();
    ASSERT_TRUE(mkdtemp(folder));
    snprintf(socket_path, sizeof(socket_path), "%s/sock", folder);
    snprintf(disk_path, sizeof(disk_path), "%s/disk", folder);
    blk = open_disk();
    server = vhu_server_create("moved", &err);
    ASSERT_TRUE(server);
    vblk = virtio_blk_create(&params, blk, vhu_server_memory(server), &err);
    ASSERT_TRUE(vblk);
    vhu_server_set_device(server, virtio_blk_device(vblk));
    ASSERT_EQ(socket_address_set_unix(&addr, socket_path, &err), 0);
    ASSERT_EQ(vhu_server_listen(server, &addr, &err), 0);
    vhu_server_start(server);
}

static co_fn void stop_entry(void *opaque)
{
    assert_main();
    vhu_server_co_stop(server);
    stopped = true;
}

static AioContext *context_of(unsigned n)
{
    return n % (NB_IOTHREADS + 1) == NB_IOTHREADS
               ? aio_main()
               : iothread_context(iothreads[n % (NB_IOTHREADS + 1)]);
}

static main_fn unsigned move_queues(void)
{
    VirtioDevice *vdev = virtio_blk_device(vblk);
    unsigned nb_moved = 0;

    while (nb_moved < MOVES && atomic_load(&nb_ended) == 0) {
        unsigned from = atomic_load(&nb_done);

        AIO_WAIT_WHILE(aio_main(),
                       atomic_load(&nb_done) - from < PACE && atomic_load(&nb_ended) == 0);
        EXPECT_EQ(dev_move_queue(vdev, nb_moved % NB_QUEUES, context_of(nb_moved / 2)), 0);
        nb_moved++;
    }
    atomic_store(&enough, true);
    AIO_WAIT_WHILE(aio_main(), atomic_load(&nb_ended) == 0);
    return nb_moved;
}

TEST(vhost_user, queues_move_between_threads_while_a_client_works)
{
    VfeClientParams params = { .nb_queues = NB_QUEUES,
                               .queue_size = QUEUE_SIZE,
                               .ram_bytes = 4 << 20,
                               .packed = guest_wants_packed() };
    pthread_t thread;
    Error err;

    AioContext *ctx = guest_main_context(&err);

    if (!ctx) {
        TEST_SKIP("%s", err.msg);
    }
    for (unsigned i = 0; i < NB_IOTHREADS; i++) {
        iothreads[i] = iothread_create("mover", &(AioParams)AIO_PARAMS_POLLING, &err);
        ASSERT_TRUE(iothreads[i]);
    }
    start_server();
    vfe_client_init(&client, &params);
    pthread_create(&thread, NULL, client_thread, NULL);
    EXPECT_EQ(move_queues(), MOVES);
    pthread_join(thread, NULL);
    EXPECT_EQ(atomic_load(&start_result), 0);
    EXPECT_EQ(atomic_load(&nb_wrong), 0);

    aio_co_run_sync(ctx, stop_entry, NULL);
    EXPECT_TRUE(stopped);
    EXPECT_EQ(shared_map_nb(), 0);
    vhu_server_destroy(server);
    virtio_blk_destroy(vblk);
    blk_close(blk);
    vfe_client_finish(&client);
    for (unsigned i = 0; i < NB_IOTHREADS; i++) {
        iothread_unref(iothreads[i]);
    }
    unlink(disk_path);
    rmdir(folder);
    aio_context_destroy(ctx);
}

TEST_MAIN()
