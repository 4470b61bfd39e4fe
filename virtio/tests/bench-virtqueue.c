/*
 * bench-virtqueue.c - nanoseconds a request through ring, coroutine, virtio-blk and a null back end
 *
 * bench-virtqueue [requests [depth [threads [split|packed]]]]
 *
 * threads=1: driver and device in one thread, by turns: what the code itself costs.
 * threads=2: the device in an IOThread that polls, the driver in this one: what the cache lines
 * between two cores add. 4 KiB reads; a chain of three descriptors as Linux makes it without
 * INDIRECT_DESC. The driver of a packed ring has more to do: it writes descriptors each time.
 */
#include <inttypes.h>
#include <stdio.h>

#include "io/aio/iothread.h"
#include "io/base/thread.h"
#include "virtio/tests/ring-driver.h"
#include "virtio/virtio-blk.h"

#define QUEUE_SIZE 256
#define DATA_BYTES 4096

static Guest guest;
static RingDriver ring;

/* One request a slot, its buffers fixed, in a split ring its descriptors too: the driver's part
 * stays small. */
static RingBuf slots[QUEUE_SIZE / 3][3];

static void fill_slots(unsigned depth)
{
    for (unsigned slot = 0; slot < depth; slot++) {
        uint64_t header_gpa = guest_alloc(&guest, sizeof(struct virtio_blk_outhdr), 64);
        uint64_t data_gpa = guest_alloc(&guest, DATA_BYTES, 4096);
        uint64_t status_gpa = header_gpa + sizeof(struct virtio_blk_outhdr);
        struct virtio_blk_outhdr *header = guest_ptr(&guest, header_gpa);
        unsigned d = slot * 3;

        guest_alloc(&guest, 1, 1);
        header->type = htole32(VIRTIO_BLK_T_IN);
        header->sector = htole64(slot * 8);
        slots[slot][0] = (RingBuf){ header_gpa, sizeof(*header), false };
        slots[slot][1] = (RingBuf){ data_gpa, DATA_BYTES, true };
        slots[slot][2] = (RingBuf){ status_gpa, 1, true };
        if (ring.is_packed) {
            ring.packed.nb_slots[slot] = 3;
            continue;
        }
        ring_set_desc(&ring, d, header_gpa, sizeof(*header), VRING_DESC_F_NEXT, (uint16_t)(d + 1));
        ring_set_desc(&ring, d + 1, data_gpa, DATA_BYTES, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE,
                      (uint16_t)(d + 2));
        ring_set_desc(&ring, d + 2, status_gpa, 1, VRING_DESC_F_WRITE, 0);
    }
}

static void submit(unsigned slot)
{
    const RingBuf *bufs = slots[slot];

    if (!ring.is_packed) {
        ring_offer(&ring, (uint16_t)(slot * 3));
        return;
    }
    for (unsigned b = 0; b < 3; b++) {
        uint16_t flags =
            (bufs[b].writable ? VRING_DESC_F_WRITE : 0) | (b < 2 ? VRING_DESC_F_NEXT : 0);

        ring_packed_put(&ring.packed, bufs[b].gpa, bufs[b].len, flags, (uint16_t)slot);
    }
}

static unsigned slot_of(uint32_t head)
{
    return ring.is_packed ? head : head / 3;
}

static void submit_all(unsigned depth)
{
    for (unsigned slot = 0; slot < depth; slot++) {
        submit(slot);
    }
    ring_publish(&ring);
}

static void run_one_thread(uint64_t nb_requests, unsigned depth)
{
    uint32_t head, len;

    for (uint64_t done = 0; done < nb_requests;) {
        submit_all(depth);
        vq_serve(ring.vq);
        aio_defer_flush(aio_main());
        while (ring_next_used(&ring, &head, &len)) {
            done++;
        }
    }
}

static void run_two_threads(uint64_t nb_requests, unsigned depth)
{
    uint32_t head, len;
    uint64_t done = 0, nb_out = depth;

    submit_all(depth);
    if (ring_wants_kick(&ring)) {
        ring_kick(&ring);
    }
    while (done < nb_requests) {
        bool any = false;

        while (ring_next_used(&ring, &head, &len)) {
            submit(slot_of(head));
            any = true;
            done++;
            nb_out++;
        }
        if (any) {
            ring_publish(&ring);
            if (ring_wants_kick(&ring)) {
                ring_kick(&ring);
            }
        } else {
            cpu_relax();
        }
    }
    while (done < nb_out) {
        done += ring_next_used(&ring, &head, &len);
    }
}

int main(int argc, char **argv)
{
    uint64_t nb_requests = argc > 1 ? strtoull(argv[1], NULL, 0) : 1000000;
    unsigned depth = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 0) : 32;
    unsigned nb_threads = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 0) : 1;
    bool packed = argc > 4 && strcmp(argv[4], "packed") == 0;
    VirtioBlkParams params = {
        .id = "bench", .nb_queues = 1, .queue_size = QUEUE_SIZE, .packed = packed
    };
    AioParams polling = { .poll_max_ns = 1000000 };
    uint64_t features;
    GuestTransport transport;
    Opts opts;
    Error err;

    assert_main();
    if (depth < 1 || depth * 3 > QUEUE_SIZE || nb_threads < 1 || nb_threads > 2 ||
        (argc > 4 && !packed && strcmp(argv[4], "split") != 0)) {
        fprintf(stderr,
                "usage: bench-virtqueue [requests [depth 1..%d [threads 1..2 "
                "[split|packed]]]]\n",
                QUEUE_SIZE / 3);
        return 2;
    }
    AioContext *ctx = guest_main_context(&err);

    if (!ctx) {
        fprintf(stderr, "%s\n", err.msg);
        return 77;
    }
    if (opts_parse(&opts, "bench", "driver=null,size=1G", NULL, &err) < 0) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    BlockBackend *blk = blk_open("bench", &opts, &err);
    VirtioBlk *vblk;
    IOThread *iothread = nb_threads == 2 ? iothread_create("bench", &polling, &err) : NULL;

    guest_init(&guest, 4 << 20);
    if (!blk || !(vblk = virtio_blk_create(&params, blk, &guest.gm, &err)) ||
        (nb_threads == 2 && !iothread)) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    VirtioDevice *vdev = virtio_blk_device(vblk);

    guest_transport_init(&transport, vdev);
    if (iothread) {
        vdev_set_queue_context(vdev, 0, iothread_context(iothread));
    }
    features = vdev_features_offered(vdev);
    if (!dev_negotiate(vdev, features)) {
        fprintf(stderr, "features refused\n");
        return 1;
    }
    ring_init(&ring, &guest, vdev, 0, QUEUE_SIZE);
    ring_want_interrupt(&ring, false); /* the driver polls */
    fill_slots(depth);
    dev_enable_queue(vdev, 0);
    dev_driver_ok(vdev);
    dev_settle();

    int64_t start_ns = aio_now_ns();

    (nb_threads == 1 ? run_one_thread : run_two_threads)(nb_requests, depth);

    int64_t duration_ns = aio_now_ns() - start_ns;

    dev_set_status(vdev, 0);
    printf("%s: %" PRIu64 " requests at depth %u, %u thread(s): %.1f ns a request; "
           "%" PRIu64 " publications, %" PRIu64 " interrupts, %" PRIu64 " kicks\n",
           packed ? "packed" : "split", nb_requests, depth, nb_threads,
           (double)duration_ns / (double)nb_requests, ring.vq->stats.batches,
           ring.vq->stats.notifications, ring.vq->stats.kicks);
    virtio_blk_destroy(vblk);
    blk_close(blk);
    opts_finish(&opts);
    iothread_unref(iothread);
    ring_finish(&ring);
    guest_finish(&guest);
    aio_context_destroy(ctx);
    return 0;
}
