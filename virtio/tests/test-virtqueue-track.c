/*
 * test-virtqueue-track.c - a device that is killed at any instruction, and the one that takes over
 *
 * The driver is this process; the device a child that works, then stops to be traced, goes on one
 * instruction at a time and is killed after some number of them. Ring, buffers and the region of
 * requests in flight are memory that both have. The next child takes over, and so on; the last one
 * finishes. Requests are numbered in the order in which the driver offers them, and the number is
 * in the buffer, which says after the end that it is over. So every child must see numbers that
 * increase, none that is over, and the driver must get each back once.
 *
 * TRACK_ROUNDS=N has N children killed instead of ROUNDS.
 */
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "io/base/test.h"
#include "virtio/tests/ring-driver.h"
#include "virtio/virtqueue-track.h"

#define QUEUE_SIZE 16
#define BUF_BYTES  256
#define ROUNDS     (HAVE_TSAN || HAVE_ASAN ? 50 : 200)
#define ACTIONS    30  /* of a child; it is killed in one of them */
#define STEPS_MAX  500 /* what an action takes, about */
#define OVER       UINT64_MAX
#define CHAIN_MAX  3

static Guest guest;
static RingDriver ring;
static uint64_t features;
static void *region;
static uint64_t region_gpa, bufs_gpa;
static uint64_t random_state;

static unsigned below(unsigned max)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(random_state >> 33) % max;
}

static bool is_packed(void)
{
    return features >> VIRTIO_F_RING_PACKED & 1;
}

/* --- the device; a child --- */

static uint64_t device_features(VirtioDevice *vdev)
{
    return 0;
}

static void device_config_read(VirtioDevice *vdev, void *ret_config)
{
}

static void device_handle_queue(VirtioDevice *vdev, VirtQueue *vq)
{
}

static const VirtioDeviceOps device_ops = {
    .device_id = 63,
    .elem_bytes = sizeof(VqElem),
    .features = device_features,
    .config_read = device_config_read,
    .handle_queue = device_handle_queue,
};

static VirtioDevice vdev;
static GuestTransport transport;
static VqTracker tracker;

static NORETURN void child_fails(const char *why, uint64_t number)
{
    fprintf(stderr, "# the device: %s (%llu)\n", why, (unsigned long long)number);
    _exit(1);
}

static void start_entry(void *opaque)
{
    Error err;

    assert_in_coroutine();
    if (vdev_co_queue_start(&vdev, opaque, &err) < 0) {
        child_fails(err.msg, 0);
    }
}

static int find_tracker(VqBase *base, Error *err)
{
    if (is_packed()) {
        VhostUserQueuePacked *packed = region;

        return packed->version == 0
                   ? vq_tracker_begin_packed(&tracker, packed, QUEUE_SIZE, *base, err)
                   : vq_tracker_resume_packed(&tracker, packed, QUEUE_SIZE,
                                              guest_ptr(&guest, ring.desc_gpa), QUEUE_SIZE, base,
                                              err);
    }
    VhostUserQueueSplit *split = region;
    uint16_t used_idx = le16toh(ring.used->idx);

    return split->version == 0 ? vq_tracker_begin_split(&tracker, split, QUEUE_SIZE, 0, err)
                               : vq_tracker_resume_split(&tracker, split, QUEUE_SIZE, QUEUE_SIZE,
                                                         used_idx, base, err);
}

static VirtQueue *start_device(void)
{
    VqBase base = { 0 };
    Error err;

    if (!guest_main_context(&err) ||
        vdev_init(&vdev, &device_ops, "child", &guest.gm, 1, QUEUE_SIZE, &err) < 0) {
        child_fails(err.msg, 0);
    }
    if (is_packed()) {
        base = (VqBase){ VQ_BASE_PACKED(0, 1), VQ_BASE_PACKED(0, 1) };
    }
    vdev_offer_packed(&vdev);
    guest_transport_init(&transport, &vdev);
    if (!dev_negotiate(&vdev, features)) {
        child_fails("features refused", features);
    }
    dev_driver_ok(&vdev);
    VirtQueue *vq = vdev_queue(&vdev, 0);

    vq->cfg_size = QUEUE_SIZE;
    vq->cfg_desc_gpa = ring.desc_gpa;
    vq->cfg_avail_gpa = ring.avail_gpa;
    vq->cfg_used_gpa = ring.used_gpa;
    if (vq_tracker_init(&tracker, QUEUE_SIZE, &err) < 0 || find_tracker(&base, &err) < 0) {
        child_fails(err.msg, 0);
    }
    vq_set_base(vq, base);
    vq->tracker = &tracker;
    aio_co_run_sync(aio_main(), start_entry, vq);
    return vq;
}

static VqElem *take(VirtQueue *vq, uint64_t *last)
{
    VqElem *elem = vq_pop(vq);
    uint64_t number;

    if (atomic_load(&vq->broken)) {
        child_fails(vq->broken_reason, *last);
    }
    if (elem) {
        vq_elem_copy_out(elem, 0, &number, sizeof(number));
        if (number == OVER || number <= *last) {
            child_fails("a request that is over, or too late", number);
        }
        *last = number;
    }
    return elem;
}

/* Take some, give some back in another order, publish now and then; some stay. From some action on
 * every instruction may be the last one. */
static void work(VirtQueue *vq)
{
    VqElem *held[QUEUE_SIZE];
    unsigned nb_held = 0, traced = below(ACTIONS);
    uint64_t last = 0;

    for (unsigned i = 0; i < ACTIONS; i++) {
        if (i == traced) {
            ptrace(PTRACE_TRACEME, 0, NULL, NULL);
            raise(SIGSTOP);
        }
        unsigned what = below(8);
        VqElem *elem = what < 4 && nb_held < QUEUE_SIZE ? take(vq, &last) : NULL;

        if (elem) {
            held[nb_held++] = elem;
        } else if (what < 7 && nb_held > 0) {
            unsigned which = below(nb_held);

            elem = held[which];
            held[which] = held[--nb_held];
            vq_push(vq, elem, 1);
        } else {
            vq_publish(vq);
        }
    }
}

static void finish_all(VirtQueue *vq)
{
    uint64_t last = 0;
    VqElem *elem;

    while ((elem = take(vq, &last))) {
        vq_push(vq, elem, 1);
    }
    vq_publish(vq);
}

/* A child that works, and stops somewhere to be traced. */
static pid_t fork_device(bool to_the_end)
{
    pid_t pid = fork();

    if (pid == 0) {
        VirtQueue *vq = start_device();

        if (!to_the_end) {
            work(vq);
        } else {
            finish_all(vq);
        }
        _exit(0);
    }
    return pid;
}

/* True when it was killed at its work, false when it had ended before. */
static bool step_and_kill(pid_t pid, unsigned nb_steps)
{
    int status;

    for (unsigned i = 0; i < nb_steps; i++) {
        ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL);
        ASSERT_EQ(waitpid(pid, &status, 0), pid);
        if (WIFEXITED(status)) {
            ASSERT_EQ(WEXITSTATUS(status), 0);
            return false;
        }
        ASSERT_TRUE(WIFSTOPPED(status));
        ASSERT_EQ(WSTOPSIG(status), SIGTRAP);
    }
    kill(pid, SIGKILL);
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    return true;
}

/* --- the driver --- */

static uint64_t *number_of[65536]; /* by head or id; NULL: not offered */
static uint64_t next_number;
static unsigned nb_offered, nb_back;

static void offer(unsigned slot)
{
    uint64_t gpa = bufs_gpa + slot * BUF_BYTES;
    uint64_t *number = guest_ptr(&guest, gpa);
    RingBuf bufs[CHAIN_MAX] = { { gpa, 8, false }, { gpa + 8, 8, false }, { gpa + 16, 8, true } };
    unsigned nb = 1 + below(CHAIN_MAX);
    uint64_t table = gpa + 64;
    uint16_t head;

    if (ring.nb_free < CHAIN_MAX) {
        return;
    }
    *number = ++next_number;
    head = below(3) == 0 ? ring_add_indirect(&ring, table, bufs, nb) : ring_add(&ring, bufs, nb);
    ASSERT_TRUE(!number_of[head]);
    number_of[head] = number;
    nb_offered++;
}

static void take_back(void)
{
    uint32_t head, len;

    while (ring_next_used(&ring, &head, &len)) {
        ASSERT_LT(head, 65536);
        ASSERT_TRUE(number_of[head]);
        ASSERT_NE(*number_of[head], OVER);
        *number_of[head] = OVER;
        number_of[head] = NULL;
        ring_free(&ring, (uint16_t)head);
        nb_back++;
    }
}

static void offer_more(void)
{
    for (unsigned slot = 0; slot < QUEUE_SIZE; slot++) {
        const uint64_t *number = guest_ptr(&guest, bufs_gpa + slot * BUF_BYTES);

        if (*number == OVER || *number == 0) {
            offer(slot);
        }
    }
    ring_publish(&ring);
}

static void set_up(uint64_t ring_features, uint64_t seed)
{
    features = 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_INDIRECT_DESC | ring_features;
    random_state = seed;
    guest_init(&guest, 1 << 20);
    ring_place(&ring, &guest, QUEUE_SIZE);
    ring_set_features(&ring, features);
    bufs_gpa = guest_alloc(&guest, QUEUE_SIZE * BUF_BYTES, 64);
    region_gpa = guest_alloc(&guest, 4096, VHOST_USER_INFLIGHT_ALIGN);
    region = guest_ptr(&guest, region_gpa);
}

static unsigned nb_rounds(void)
{
    const char *text = getenv("TRACK_ROUNDS");

    return text ? (unsigned)strtoul(text, NULL, 10) : ROUNDS;
}

static void kill_and_take_over(uint64_t ring_features)
{
    unsigned nb_killed = 0, rounds = nb_rounds();
    int status;

    set_up(ring_features, 1);
    for (unsigned i = 0; i < rounds; i++) {
        offer_more();
        pid_t pid = fork_device(false);

        ASSERT_EQ(waitpid(pid, &status, 0), pid);
        ASSERT_TRUE(WIFSTOPPED(status));
        nb_killed += step_and_kill(pid, below(STEPS_MAX));
        take_back();
    }
    pid_t pid = fork_device(true);

    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    take_back();
    EXPECT_EQ(nb_back, nb_offered);
    EXPECT_GT(nb_killed, rounds / 4);
    EXPECT_GT(nb_back, rounds);
    ring_finish(&ring);
    guest_finish(&guest);
}

TEST(virtqueue_track, a_split_ring_loses_and_doubles_nothing_when_a_device_is_killed)
{
    kill_and_take_over(0);
}

TEST(virtqueue_track, a_packed_ring_loses_and_doubles_nothing_when_a_device_is_killed)
{
    kill_and_take_over(1ull << VIRTIO_F_RING_PACKED);
}

/* --- the log --- */

#define LOG_PAGES 200

/* Each range, against a bit a page; what is beyond the log's end is left out. */
TEST(virtqueue_track, the_log_has_a_bit_for_each_page_of_a_range)
{
    uint64_t words[LOG_PAGES / 64 + 2];
    VqLog log = { .words = words, .nb_pages = LOG_PAGES };

    for (uint64_t first = 0; first < LOG_PAGES + 5; first++) {
        for (uint64_t nb = 1; nb < LOG_PAGES + 5; nb++) {
            memset(words, 0, sizeof(words));
            vq_log_mark(&log, first * VHOST_USER_LOG_PAGE_BYTES + 17,
                        (nb - 1) * VHOST_USER_LOG_PAGE_BYTES + 1);
            for (uint64_t page = 0; page < sizeof(words) * 8; page++) {
                bool is_set = ((const uint8_t *)words)[page / 8] >> page % 8 & 1;

                ASSERT_EQ(is_set, page >= first && page < first + nb && page < LOG_PAGES);
            }
        }
    }
    memset(words, 0, sizeof(words));
    vq_log_mark(&log, 0, 0);
    vq_log_mark(&log, UINT64_MAX - 5, 17);
    vq_log_mark(&log, UINT64_MAX - 5, 3);
    vq_log_mark(&(VqLog){ .words = words }, 0, 17);
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++) {
        EXPECT_EQ(words[i], 0);
    }
}

/* --- memory that is lost --- */

static unsigned count_marks(void)
{
    const VhostUserQueuePacked *packed = region;
    const VhostUserQueueSplit *split = region;
    unsigned nb = 0;

    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        nb += is_packed() ? packed->desc[i].inflight : split->desc[i].inflight;
    }
    return nb;
}

static void finish_device(VirtQueue *vq)
{
    dev_set_status(&vdev, 0);
    vq->tracker = NULL;
    vq_tracker_finish(&tracker);
    vdev_finish(&vdev);
    aio_context_destroy(aio_main());
}

/* What was published before is not in flight, everything else is, and nothing else changes. */
static void lose_memory(uint64_t ring_features)
{
    _Atomic bool lost = false;
    uint8_t before[4096];
    uint64_t last = 0;

    set_up(ring_features, 1);
    offer_more();
    guest.gm.lost = &lost;
    VirtQueue *vq = start_device();
    VqElem *held[3] = { take(vq, &last), take(vq, &last), take(vq, &last) };

    ASSERT_TRUE(held[0] && held[1] && held[2]);
    vq_push(vq, held[0], 1);
    vq_publish(vq);
    ASSERT_EQ(count_marks(), 2);
    memcpy(before, region, sizeof(before));
    atomic_store(&lost, true);
    EXPECT_TRUE(!vq_pop(vq));
    vq_push(vq, held[1], 1);
    vq_publish(vq);
    vq_push(vq, held[2], 1);
    vq_flush(vq);
    EXPECT_EQ(memcmp(before, region, sizeof(before)), 0);
    take_back();
    EXPECT_EQ(nb_back, 1);
    finish_device(vq);
    ring_finish(&ring);
    guest_finish(&guest);
}

TEST(virtqueue_track, the_region_of_a_split_ring_stays_as_it_is_when_memory_is_lost)
{
    lose_memory(0);
}

TEST(virtqueue_track, the_region_of_a_packed_ring_stays_as_it_is_when_memory_is_lost)
{
    lose_memory(1ull << VIRTIO_F_RING_PACKED);
}

/* It is found out by the store of the index, so that byte of the ring is the flag. */
TEST(virtqueue_track, what_is_lost_while_it_is_published_stays_marked)
{
    uint64_t last = 0;

    set_up(0, 1);
    offer_more();
    guest.gm.lost = (const _Atomic bool *)&ring.used->idx;
    VirtQueue *vq = start_device();
    VqElem *elem = take(vq, &last);

    ASSERT_TRUE(elem);
    vq_push(vq, elem, 1);
    vq_publish(vq);
    ASSERT_TRUE(gm_is_lost(&guest.gm));
    EXPECT_EQ(count_marks(), 1);
    finish_device(vq);
    ring_finish(&ring);
    guest_finish(&guest);
}

TEST_MAIN()
