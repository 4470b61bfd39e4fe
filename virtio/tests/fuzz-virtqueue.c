/*
 * fuzz-virtqueue.c - two rings, split or packed, whose driver writes anything into them
 *
 * The input is a byte that chooses features and a list of actions, 16 bytes each: what, which
 * queue, and the fields of a descriptor, which also serve as index, address or value. The device
 * keeps what it pops until an action lets it go.
 *
 * What has to hold, whatever the input:
 * 1. Every piece of an element lies in guest memory: each is read or written from its first byte to
 *    its last, what surrounds the regions has no access rights.
 * 2. The parts of an element add up, heads are within the ring (a packed one's are any number) and
 *    in flight once, no more elements or slots are out than the ring has.
 * 3. The work is bounded: a run that hangs is killed.
 * 4. A reset, of the device or of a queue, waits for what is out; the queue then serves an honest
 *    driver.
 *
 * With libFuzzer:
 *     clang -fsanitize=fuzzer,address,undefined -g -D_GNU_SOURCE -I. -o fuzz-virtqueue \
 *         virtio/tests/{fuzz-virtqueue,ring-driver,ring-packed,test-device}.c \
 *         guest-tests/harness/harness.c $(find virtio block io \
 *         -maxdepth 2 -name '*.[cS]' ! -path '*tests*' ! -name '*aarch64*') -luring -lpthread
 *     ./fuzz-virtqueue -max_len=4096 virtio/tests/corpus-virtqueue
 *
 * With FUZZ_CORPUS_DIR defined it is an ordinary test: it replays that corpus and a few inputs of
 * its own making; FUZZ_ROUNDS in the environment asks for more of these.
 */
#include <stdio.h>
#include <sys/mman.h>

#include "io/base/test.h"
#include "virtio/tests/test-device.h"

#define QUEUES     2
#define OFFERED    64 /* queue size */
#define PAGE_BYTES 4096u

#define ACTION_BYTES 16
#define ACTIONS_MAX  512

/* Guest memory: regions that touch, a hole, one of an odd length, one at the end of all addresses.
 * Each ends where access ends. */
#define LOW_GPA    GUEST_BASE_GPA
#define LOW_BYTES  0x8000u
#define NEXT_GPA   (LOW_GPA + LOW_BYTES)
#define NEXT_BYTES 0x2000u
#define ODD_GPA    (NEXT_GPA + 0x10000u)
#define ODD_BYTES  0x1235u
#define TOP_GPA    (0ull - PAGE_BYTES)

#define RINGS_BYTES 0x2000u /* of the low region; what is behind is for buffers and tables */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes);

typedef struct Action {
    unsigned what, queue, place; /* place: which base an address counts from */
    uint16_t flags, next, offset;
    uint32_t len;
    uint32_t high;
} Action;

static TestDevice dev;
static Guest guest;
static RingDriver rings[QUEUES];
static uint64_t features;

/* --- memory --- */

static void *add_region(uint64_t gpa, uint64_t len_bytes, uint64_t end_offset)
{
    uint8_t *hva = guest.ram + end_offset - len_bytes;
    uint8_t *page = guest.ram + ALIGN_DOWN(end_offset - len_bytes, (uint64_t)PAGE_BYTES);

    ASSERT_EQ(mprotect(page, (size_t)(guest.ram + end_offset - page), PROT_READ | PROT_WRITE), 0);
    ASSERT_EQ(gm_add(&guest.gm, gpa, len_bytes, hva, NULL), 0);
    return hva;
}

/* The low region stands where ring-driver.c expects RAM to begin. */
static void memory_init(void)
{
    gm_finish(&guest.gm);
    ASSERT_EQ(mprotect(guest.ram, guest.ram_bytes, PROT_NONE), 0);
    add_region(LOW_GPA, LOW_BYTES, LOW_BYTES);
    add_region(NEXT_GPA, NEXT_BYTES, 0x20000);
    add_region(ODD_GPA, ODD_BYTES, 0x30000);
    add_region(TOP_GPA, PAGE_BYTES, 0x40000);
}

static uint64_t address(const Action *action)
{
    static const uint64_t bases[] = {
        LOW_GPA + RINGS_BYTES,
        LOW_GPA,
        NEXT_GPA - 256,
        NEXT_GPA + NEXT_BYTES - 256,
        ODD_GPA - 256,
        ODD_GPA + ODD_BYTES - 256,
        TOP_GPA,
        0,
    };
    uint64_t base = bases[action->place % ARRAY_SIZE(bases)];

    return (base ? base : (uint64_t)action->high << 32) + action->offset;
}

/* --- what the device was given --- */

static void check_part(const struct iovec *iov, unsigned nb_iov, uint64_t len_bytes, bool writable)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < nb_iov; i++) {
        volatile uint8_t *bytes = iov[i].iov_base;
        size_t last = iov[i].iov_len - 1;

        ASSERT_GT(iov[i].iov_len, 0);
        if (writable) {
            bytes[0] = bytes[last] = (uint8_t)i;
        } else {
            (void)(bytes[0] + bytes[last]);
        }
        sum += iov[i].iov_len;
    }
    ASSERT_EQ(sum, len_bytes);
}

static void check_queue(const VirtQueue *vq, unsigned nb_out, unsigned nb_slots)
{
    ASSERT_EQ(vq->in_flight, nb_out);
    ASSERT_LE(vq->in_flight, vq->size);
    if (!vq->is_packed) {
        ASSERT_LE((uint16_t)(vq->split.avail_seen - vq->split.last_avail), vq->size);
    } else if (vq->started) {
        ASSERT_LT(vq->packed.avail.slot, vq->size);
        ASSERT_LT(vq->packed.used.slot, vq->size);
        ASSERT_LE(vq->packed.slots_out, vq->size);
        ASSERT_GE(vq->packed.slots_out, nb_slots); /* those of detached ones, too */
    }
}

static void check_held(void)
{
    static bool out[QUEUES][UINT16_MAX + 1];
    unsigned nb_out[QUEUES] = { 0 }, nb_slots[QUEUES] = { 0 };

    for (unsigned i = 0; i < dev.nb_held; i++) {
        VqElem *elem = dev.held[i];
        VirtQueue *vq = elem->vq;

        ASSERT_TRUE(elem->in_use);
        ASSERT_TRUE(elem->head < vq->size || vq->is_packed);
        ASSERT_FALSE(out[vq->index][elem->head]);
        out[vq->index][elem->head] = true;
        nb_out[vq->index]++;
        nb_slots[vq->index] += elem->nb_slots;
        ASSERT_GT(elem->nb_out + elem->nb_in, 0);
        ASSERT_LE(elem->nb_out + elem->nb_in, VQ_ELEM_IOV_MAX);
        check_part(elem->iov, elem->nb_out, elem->out_bytes, false);
        check_part(elem->iov + elem->nb_out, elem->nb_in, elem->in_bytes, true);
    }
    for (unsigned q = 0; q < QUEUES; q++) {
        check_queue(&dev.vdev.queues[q], nb_out[q], nb_slots[q]);
    }
    for (unsigned i = 0; i < dev.nb_held; i++) {
        out[dev.held[i]->vq->index][dev.held[i]->head] = false;
    }
}

static void let_go(unsigned index, bool push, uint32_t written_bytes)
{
    VqElem *elem = dev.held[index];

    dev.held[index] = dev.held[--dev.nb_held];
    if (push) {
        vq_push(elem->vq, elem, written_bytes);
    } else {
        vq_detach(elem->vq, elem);
    }
}

static void let_all_go(unsigned queue)
{
    for (unsigned i = dev.nb_held; i-- > 0;) {
        if (dev.held[i]->vq->index == queue) {
            let_go(i, true, 1);
        }
    }
}

/* --- the driver --- */

static void rings_finish(void)
{
    for (unsigned q = 0; q < QUEUES; q++) {
        ring_finish(&rings[q]);
    }
}

/* A reset waits for what is out: from here on nothing is kept. */
static void keep_nothing(unsigned queue)
{
    dev.hold = false;
    let_all_go(queue);
}

/* Of the packed format any size, else a power of 2. */
static void start(unsigned choice)
{
    bool packed = features & FEATURE(VIRTIO_F_RING_PACKED);
    unsigned size = packed ? 1 + choice % OFFERED : 1u << choice % 7;

    for (unsigned q = 0; q < QUEUES; q++) {
        keep_nothing(q);
    }
    rings_finish();
    ASSERT_TRUE(dev_negotiate(&dev.vdev, features | FEATURE(VIRTIO_F_VERSION_1) |
                                             FEATURE(VIRTIO_F_RING_RESET)));
    guest_rewind(&guest);
    for (unsigned q = 0; q < QUEUES; q++) {
        ring_init(&rings[q], &guest, &dev.vdev, q, (uint16_t)size);
        dev_enable_queue(&dev.vdev, q);
    }
    dev.hold = true;
    dev_driver_ok(&dev.vdev);
}

static void *aligned_at(uint64_t gpa, uint64_t len_bytes, uint64_t align_bytes)
{
    void *hva = gm_translate(&guest.gm, GPA(gpa), len_bytes);

    return (uintptr_t)hva % align_bytes == 0 ? hva : NULL;
}

/* The driver of a packed ring goes where the queue is going to be, if that is memory. */
static void follow(RingDriver *ring, const VirtQueue *vq)
{
    RingPacked *packed = &ring->packed;
    void *desc = aligned_at(vq->cfg_desc_gpa, 16 * MAX(vq->cfg_size, 1), 16);
    void *driver_event = aligned_at(vq->cfg_avail_gpa, 4, 4);
    void *device_event = aligned_at(vq->cfg_used_gpa, 4, 4);
    VqBase base = vq_base(vq);

    if (!ring->is_packed || !desc || !driver_event || !device_event || vq->cfg_size == 0) {
        return;
    }
    packed->desc = desc;
    packed->driver_event = driver_event;
    packed->device_event = device_event;
    packed->size = vq->cfg_size;
    ring_packed_begin_at(packed, (base.avail & 0x7fffu) + (base.avail >> 15 ? 0 : vq->cfg_size));
}

static void restart_queue(const Action *action)
{
    VirtQueue *vq = vdev_queue(&dev.vdev, action->queue);
    uint64_t gpa = address(action);

    keep_nothing(action->queue);
    dev_reset_queue(&dev.vdev, action->queue);
    dev.hold = true;
    vdev_queue_set_size(&dev.vdev, vq, action->next);
    for (unsigned part = VQ_RING_DESC; part <= VQ_RING_USED; part++) {
        uint64_t part_gpa = gpa + part * 0x800;

        vdev_queue_set_address(&dev.vdev, vq, part, false, (uint32_t)part_gpa);
        vdev_queue_set_address(&dev.vdev, vq, part, true, (uint32_t)(part_gpa >> 32));
    }
    if (action->flags & 0x100) {
        vq_set_base(vq, (VqBase){ (uint16_t)action->len, (uint16_t)(action->len >> 16) });
    }
    follow(&rings[action->queue], vq);
    dev_enable_queue(&dev.vdev, action->queue);
}

static void write_memory(const Action *action)
{
    uint64_t gpa = address(action);
    uint64_t value = (uint64_t)action->len << 32 | (uint32_t)action->flags << 16 | action->next;
    void *hva = gm_translate(&guest.gm, GPA(gpa), sizeof(value));

    if (hva) {
        memcpy(hva, &value, sizeof(value));
    }
}

/* An indirect table's descriptor, wherever it stands. */
static void write_table(const Action *action)
{
    uint64_t gpa = LOW_GPA + RINGS_BYTES + action->what / 16 * 16u;
    void *hva = gm_translate(&guest.gm, GPA(gpa), sizeof(struct vring_desc));

    ring_write_desc(hva, address(action), action->len, action->flags, action->next);
}

/* What a driver of a packed ring does otherwise; false: the rest is the same. */
static bool act_packed(RingDriver *ring, const Action *action)
{
    RingPacked *packed = &ring->packed;
    unsigned slot = action->what / 16 % packed->size;
    uint16_t owner = RING_F_AVAIL | RING_F_USED;

    switch (action->what % 16) {
    case 0 ... 1:
        ring_packed_put(packed, address(action), action->len, action->flags & ~owner, action->next);
        return true;
    case 2:
        ring_packed_write_desc(&packed->desc[slot], address(action), action->len, action->flags,
                               action->next);
        return true;
    case 3:
        ring_packed_write_desc(
            gm_translate(&guest.gm, GPA(LOW_GPA + RINGS_BYTES + action->what / 16 * 16u), 16),
            address(action), action->len, action->flags, action->next);
        return true;
    case 5 ... 6:
        for (unsigned i = 0; i <= action->next % OFFERED; i++) {
            ring_packed_put(packed, address(action), action->len,
                            action->flags & VRING_DESC_F_WRITE, (uint16_t)(action->next + i));
        }
        break;
    case 7:
        packed->desc[slot].flags ^= htole16(owner);
        break;
    case 8:
        ring_packed_set_event(packed, action->flags, action->next);
        return true;
    default:
        return false;
    }
    ring_publish(ring);
    ring_kick(ring);
    return true;
}

static void act(const Action *action)
{
    RingDriver *ring = &rings[action->queue];

    if (ring->is_packed && act_packed(ring, action)) {
        return;
    }
    switch (action->what % 16) {
    case 0 ... 2:
        ring_set_desc(ring, action->what / 16 % ring->size, address(action), action->len,
                      action->flags, action->next);
        break;
    case 3:
        write_table(action);
        break;
    case 4:
        write_memory(action);
        break;
    case 5:
        ring_offer(ring, action->next);
        break;
    case 6:
        for (unsigned i = 0; i <= action->next % OFFERED; i++) {
            ring_offer(ring, (uint16_t)(action->flags + i));
        }
        ring_publish(ring);
        ring_kick(ring);
        break;
    case 7:
        ring_publish_index(ring, action->next);
        break;
    case 8:
        ring_set_used_event(ring, action->next);
        break;
    case 9:
        if (dev.nb_held > 0) {
            let_go(action->next % dev.nb_held, action->flags % 8 != 0, action->len);
        }
        break;
    case 10:
        let_all_go(action->queue);
        break;
    case 11:
        restart_queue(action);
        break;
    case 12:
        start(action->next);
        break;
    default:
        ring_publish(ring);
        ring_kick(ring);
        dev_settle();
        break;
    }
}

/* After all that: an honest driver. */
static void expect_service(void)
{
    uint64_t gpa = LOW_GPA + RINGS_BYTES;
    uint32_t head, len;

    start(4);
    ring_add(&rings[1], (RingBuf[]){ { gpa, 16, false }, { NEXT_GPA - 8, 16, true } }, 2);
    ring_publish(&rings[1]);
    ring_kick(&rings[1]);
    dev_settle();
    ASSERT_EQ(dev.nb_held, 1);
    ASSERT_EQ(dev.held[0]->nb_in, 2); /* it straddles two regions */
    check_held();
    let_all_go(1);
    dev_settle();
    ASSERT_TRUE(ring_next_used(&rings[1], &head, &len));
    ASSERT_EQ(len, 1);
    ASSERT_FALSE(vdev_status(&dev.vdev) & VIRTIO_CONFIG_S_NEEDS_RESET);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes)
{
    uint8_t choice = len_bytes > 0 ? *data++ : 0;

    len_bytes -= len_bytes > 0;
    log_set_level(LOG_LEVEL_ERROR);
    test_device_init(&dev, &guest, QUEUES, OFFERED);
    memory_init();
    features = (choice & 1 ? 0 : FEATURE(VIRTIO_RING_F_INDIRECT_DESC)) |
               (choice & 2 ? FEATURE(VIRTIO_RING_F_EVENT_IDX) : 0) |
               (choice & 128 ? FEATURE(VIRTIO_F_RING_PACKED) : 0);
    memset(rings, 0, sizeof(rings));
    start(choice >> 2 & 31);
    for (size_t n = 0; n < ACTIONS_MAX && (n + 1) * ACTION_BYTES <= len_bytes; n++) {
        const uint8_t *bytes = data + n * ACTION_BYTES;
        Action action = { .what = bytes[0], .queue = bytes[1] % QUEUES, .place = bytes[2] };

        memcpy(&action.flags, bytes + 4, 2);
        memcpy(&action.next, bytes + 6, 2);
        memcpy(&action.len, bytes + 8, 4);
        memcpy(&action.offset, bytes + 12, 2);
        memcpy(&action.high, bytes + 12, 4);
        act(&action);
        check_held();
    }
    expect_service();
    rings_finish();
    test_device_finish(&dev, &guest);
    return 0;
}

#ifdef FUZZ_CORPUS_DIR /* the ordinary test */

#include "io/base/tests/fuzz-replay.h"

TEST(fuzz_virtqueue, corpus_breaks_nothing)
{
    fuzz_replay_corpus(LLVMFuzzerTestOneInput, FUZZ_CORPUS_DIR, 10);
}

TEST(fuzz_virtqueue, random_rings_break_nothing)
{
    fuzz_replay_random(LLVMFuzzerTestOneInput, ACTION_BYTES, 200);
}

TEST_MAIN()

#endif
