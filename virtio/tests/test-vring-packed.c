/*
 * test-vring-packed.c - the packed ring against honest and hostile drivers; what is the same with
 * split ones is in test-virtqueue.c
 */
#include <pthread.h>
#include <sched.h>

#include "virtio/tests/ring-fixture.h"

#define FORMAT FEATURE(VIRTIO_F_RING_PACKED)
#define OWNER  (RING_F_AVAIL | RING_F_USED)

static void begin_packed(uint64_t features, uint16_t size)
{
    begin_with(FORMAT | FEATURE(VIRTIO_RING_F_INDIRECT_DESC) | features,
               size <= QUEUE_SIZE ? QUEUE_SIZE : VQ_SIZE_MAX, size);
}

static RingPacked *packed(void)
{
    return &ring.packed;
}

/* Any descriptor in any slot, seen at once; it is for buf_gpa. */
static void put(unsigned slot, uint32_t len, uint16_t flags, uint16_t id)
{
    ring_packed_write_desc(&packed()->desc[slot], buf_gpa + slot * 64, len, flags, id);
}

static uint16_t flags_of(unsigned slot)
{
    return le16toh(packed()->desc[slot].flags);
}

static void kick(void)
{
    ring_kick(&ring);
    dev_settle();
}

static void kick_broken(void)
{
    kick();
    expect_broken_until_reset();
    end();
}

/* --- whose a slot is --- */

TEST(vring_packed, a_descriptor_is_taken_only_with_the_flags_of_this_lap)
{
    static const uint16_t others[] = { 0, RING_F_USED, OWNER };

    begin_packed(0, QUEUE_SIZE);
    for (unsigned i = 0; i < ARRAY_SIZE(others); i++) {
        put(0, 8, others[i], 0);
        kick();
        EXPECT_EQ(dev.nb_popped, 0);
    }
    put(0, 8, RING_F_AVAIL, 0);
    kick();
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_FALSE(broken());
    end();
}

TEST(vring_packed, the_flags_turn_round_with_each_lap)
{
    begin_packed(0, QUEUE_SIZE);
    for (unsigned lap = 0; lap < 5; lap++) {
        uint16_t avail = lap % 2 == 0 ? RING_F_AVAIL : RING_F_USED;

        for (unsigned slot = 0; slot < QUEUE_SIZE; slot++) {
            unsigned before = dev.nb_popped;

            put(slot, 8, avail ^ OWNER, 0);
            kick();
            ASSERT_EQ(dev.nb_popped, before);
            put(slot, 8, avail, 0);
            kick();
            ASSERT_EQ(dev.nb_popped, before + 1);
            ASSERT_EQ(flags_of(slot) & OWNER, lap % 2 == 0 ? OWNER : 0);
        }
    }
    EXPECT_FALSE(broken());
    end();
}

TEST(vring_packed, one_used_descriptor_stands_for_a_chain_whose_slots_are_skipped)
{
    RingBuf bufs[] = { { buf_gpa, 8, false }, { 0, 8, false }, { 0, 8, true } };

    begin_packed(0, QUEUE_SIZE);
    for (unsigned i = 0; i < ARRAY_SIZE(bufs); i++) {
        bufs[i].gpa = buf_gpa + i * 64;
    }
    dev.hold = true;
    uint16_t first = ring_add(&ring, bufs, 3), second = ring_add(&ring, bufs, 1);

    publish_and_kick();
    ASSERT_EQ(dev.nb_held, 2);
    test_device_push(&dev, 5);
    test_device_push(&dev, 0);
    dev_settle();
    EXPECT_EQ(le16toh(packed()->desc[0].id), first);
    EXPECT_EQ(le32toh(packed()->desc[0].len), 5);
    EXPECT_EQ(flags_of(0), OWNER | VRING_DESC_F_WRITE);
    EXPECT_EQ(flags_of(1) & OWNER, RING_F_AVAIL); /* as the driver left them */
    EXPECT_EQ(flags_of(2) & OWNER, RING_F_AVAIL);
    EXPECT_EQ(le16toh(packed()->desc[3].id), second);
    EXPECT_EQ(flags_of(3), OWNER); /* nothing was written */
    end();
}

TEST(vring_packed, the_first_used_descriptor_of_a_batch_is_seen_last)
{
    begin_packed(0, QUEUE_SIZE);
    dev.hold = true;
    for (unsigned i = 0; i < 3; i++) {
        add_small(8);
    }
    publish_and_kick();
    while (dev.nb_held > 0) {
        test_device_push(&dev, 4);
        EXPECT_EQ(flags_of(0) & OWNER, RING_F_AVAIL);
    }
    EXPECT_EQ(flags_of(1) & OWNER, OWNER); /* these nobody looks at before the first */
    EXPECT_EQ(flags_of(2) & OWNER, OWNER);
    dev_settle();
    EXPECT_EQ(flags_of(0) & OWNER, OWNER);
    end();
}

/* --- ids --- */

TEST(vring_packed, an_id_is_any_number)
{
    static const uint16_t ids[] = { 65535, 0, QUEUE_SIZE, 32768 };

    begin_packed(0, QUEUE_SIZE);
    dev.hold = true;
    for (unsigned i = 0; i < ARRAY_SIZE(ids); i++) {
        put(i, 8, RING_F_AVAIL, ids[i]);
    }
    kick();
    ASSERT_EQ(dev.nb_held, ARRAY_SIZE(ids));
    while (dev.nb_held > 0) {
        test_device_push(&dev, 1);
    }
    dev_settle();
    for (unsigned i = 0; i < ARRAY_SIZE(ids); i++) {
        EXPECT_EQ(le16toh(packed()->desc[i].id), ids[i]);
    }
    end();
}

TEST(vring_packed, the_id_is_that_of_the_last_descriptor)
{
    begin_packed(0, QUEUE_SIZE);
    put(1, 8, RING_F_AVAIL, 9);
    put(0, 8, RING_F_AVAIL | VRING_DESC_F_NEXT, 8);
    kick();
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(le16toh(packed()->desc[0].id), 9);
    end();
}

TEST(vring_packed, an_id_that_is_in_flight_breaks_the_queue)
{
    begin_packed(0, QUEUE_SIZE);
    dev.hold = true;
    put(0, 8, RING_F_AVAIL, 4);
    kick();
    test_device_push(&dev, 1);
    put(1, 8, RING_F_AVAIL, 4); /* it has come back */
    kick();
    ASSERT_EQ(dev.nb_popped, 2);
    EXPECT_FALSE(broken());
    put(2, 8, RING_F_AVAIL, 4);
    kick();
    EXPECT_TRUE(broken());
    EXPECT_EQ(dev.nb_popped, 2);
    end();
}

/* --- chains that are none --- */

TEST(vring_packed, a_chain_that_is_longer_than_the_ring_breaks_the_queue)
{
    begin_packed(0, QUEUE_SIZE);
    for (unsigned slot = 0; slot < QUEUE_SIZE; slot++) {
        put(slot, 8, RING_F_AVAIL | VRING_DESC_F_NEXT, 0);
    }
    kick_broken();
}

TEST(vring_packed, a_ring_of_one_has_no_chains)
{
    begin_packed(0, 1);
    put(0, 8, RING_F_AVAIL | VRING_DESC_F_NEXT, 0);
    kick_broken();
}

/* What is in flight has slots that look available still, or for the next lap. */
TEST(vring_packed, a_chain_that_runs_into_slots_in_flight_breaks_the_queue)
{
    begin_packed(0, QUEUE_SIZE);
    dev.hold = true;
    for (unsigned slot = 0; slot < 10; slot++) {
        put(slot, 8, RING_F_AVAIL, (uint16_t)slot);
    }
    kick();
    ASSERT_EQ(dev.nb_popped, 10);
    for (unsigned slot = 0; slot < 10; slot++) {
        put(slot, 8, RING_F_USED, 11);
    }
    for (unsigned slot = QUEUE_SIZE; slot-- > 10;) {
        put(slot, 8, RING_F_AVAIL | VRING_DESC_F_NEXT, 11);
    }
    kick();
    EXPECT_TRUE(broken());
    EXPECT_EQ(dev.nb_popped, 10);
    EXPECT_EQ(packed()->desc[0].flags, htole16(RING_F_USED));
    end();
}

TEST(vring_packed, more_descriptors_than_the_ring_holds_break_the_queue)
{
    begin_packed(0, QUEUE_SIZE);
    dev.hold = true;
    for (unsigned slot = 0; slot < QUEUE_SIZE / 2; slot++) {
        put(2 * slot + 1, 8, RING_F_AVAIL, (uint16_t)slot);
        put(2 * slot, 8, RING_F_AVAIL | VRING_DESC_F_NEXT, (uint16_t)slot);
    }
    kick();
    ASSERT_EQ(dev.nb_popped, QUEUE_SIZE / 2);
    EXPECT_FALSE(broken());
    put(0, 8, RING_F_USED, 100);
    kick();
    EXPECT_TRUE(broken());
    EXPECT_EQ(dev.nb_popped, QUEUE_SIZE / 2);
    end();
}

TEST(vring_packed, a_chain_that_goes_on_with_a_slot_not_offered_breaks_the_queue)
{
    static const uint16_t others[] = { 0, RING_F_USED, OWNER };

    for (unsigned i = 0; i < ARRAY_SIZE(others); i++) {
        begin_packed(0, QUEUE_SIZE);
        put(1, 8, others[i], 0);
        put(0, 8, RING_F_AVAIL | VRING_DESC_F_NEXT, 0);
        kick_broken();
    }
}

TEST(vring_packed, a_chain_across_the_end_of_the_ring_has_the_next_laps_flags)
{
    begin_packed(0, QUEUE_SIZE);
    for (unsigned i = 0; i < QUEUE_SIZE - 1; i++) {
        put(i, 8, RING_F_AVAIL, 0);
        kick();
    }
    ASSERT_EQ(dev.nb_popped, QUEUE_SIZE - 1);
    dev.nb_popped = 0;
    put(0, 8, RING_F_AVAIL, 0);
    put(QUEUE_SIZE - 1, 8, RING_F_AVAIL | VRING_DESC_F_NEXT, 0);
    kick_broken();
}

/* --- indirect tables --- */

static struct vring_packed_desc *table(unsigned slot, uint64_t gpa, uint32_t len, uint16_t flags)
{
    ring_packed_write_desc(&packed()->desc[slot], gpa, len,
                           RING_F_AVAIL | VRING_DESC_F_INDIRECT | flags, 0);
    return gm_translate(&guest.gm, GPA(gpa), 16);
}

TEST(vring_packed, only_write_means_something_in_a_table)
{
    begin_packed(0, QUEUE_SIZE);
    struct vring_packed_desc *t = table(0, buf_gpa + 3, 32, VRING_DESC_F_WRITE);

    ring_packed_write_desc(&t[0], buf_gpa + 512, 4, VRING_DESC_F_INDIRECT | OWNER, 77);
    ring_packed_write_desc(&t[1], buf_gpa + 1024, 8,
                           VRING_DESC_F_WRITE | VRING_DESC_F_NEXT | 0x7000, 78);
    kick();
    ASSERT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.out_bytes, 4);
    EXPECT_EQ(dev.last.in_bytes, 8);
    EXPECT_EQ(dev.last.nb_slots, 1);
    EXPECT_EQ(le16toh(packed()->desc[0].id), 0);
    EXPECT_FALSE(broken());
    end();
}

TEST(vring_packed, a_table_may_straddle_two_regions)
{
    uint64_t seam;

    ASSERT_EQ(setenv("TEST_RING", "packed", 1), 0);
    seam = begin_with_seam();
    ring_packed_write_desc(guest.ram + SEAM_UPPER + 4096 - 16, buf_gpa, 5, 0, 0);
    ring_packed_write_desc(guest.ram + SEAM_LOWER, buf_gpa, 6, VRING_DESC_F_WRITE, 0);
    table(0, seam - 16, 32, 0);
    kick();
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.out_bytes, 5);
    EXPECT_EQ(dev.last.in_bytes, 6);
    end();
}

TEST(vring_packed, a_table_that_leaves_memory_breaks_the_queue)
{
    const struct {
        uint64_t gpa;
        uint32_t len;
    } tables[] = {
        { 0x1000, 32 },          { GUEST_BASE_GPA + (4 << 20) - 16, 32 },
        { UINT64_MAX - 15, 32 }, { GUEST_BASE_GPA, 24 },
        { GUEST_BASE_GPA, 0 },   { GUEST_BASE_GPA, 0xfffffff0 },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(tables); i++) {
        begin_packed(0, QUEUE_SIZE);
        ring_packed_write_desc(guest.ram + guest.ram_bytes - 16, buf_gpa, 8, 0, 0);
        table(0, tables[i].gpa, tables[i].len, 0);
        kick_broken();
    }
}

TEST(vring_packed, indirect_with_next_breaks_the_queue)
{
    begin_packed(0, QUEUE_SIZE);
    struct vring_packed_desc *t = table(0, buf_gpa, 16, VRING_DESC_F_NEXT);

    ring_packed_write_desc(t, buf_gpa + 64, 8, 0, 0);
    put(1, 8, RING_F_AVAIL, 0);
    kick_broken();
}

TEST(vring_packed, a_chain_that_goes_on_indirectly_breaks_the_queue)
{
    begin_packed(0, QUEUE_SIZE);
    struct vring_packed_desc *t = table(1, buf_gpa, 16, 0);

    ring_packed_write_desc(t, buf_gpa + 64, 8, 0, 0);
    put(0, 8, RING_F_AVAIL | VRING_DESC_F_NEXT, 0);
    kick_broken();
}

/* --- sizes and places of the ring --- */

TEST(vring_packed, any_size_will_do)
{
    static const uint16_t sizes[] = { 1, 2, 3, 5, 12, 13, QUEUE_SIZE, 1000 };
    RingBuf bufs[] = { { 0, 8, false }, { 0, 8, false }, { 0, 9, true } };
    uint32_t head, len;

    for (unsigned s = 0; s < ARRAY_SIZE(sizes); s++) {
        begin_packed(0, sizes[s]);
        bufs[0].gpa = bufs[1].gpa = bufs[2].gpa = buf_gpa;
        for (unsigned i = 0; i < 3000; i++) {
            unsigned nb = MIN(1 + i % 3, sizes[s]);
            uint16_t added = ring_add(&ring, bufs + 3 - nb, nb);

            ring_publish(&ring);
            vq_serve(ring.vq);
            aio_defer_flush(aio_main());
            ASSERT_TRUE(ring_next_used(&ring, &head, &len));
            ASSERT_EQ(head, added);
            ASSERT_EQ(len, 9);
            ring_free(&ring, added);
        }
        EXPECT_FALSE(broken());
        end();
    }
}

TEST(vring_packed, a_size_above_the_offered_one_is_refused)
{
    configure_with(FORMAT, QUEUE_SIZE, QUEUE_SIZE);
    vdev_queue_set_size(&dev.vdev, ring.vq, QUEUE_SIZE + 1);
    expect_start_refused();
}

TEST(vring_packed, a_ring_at_the_very_end_of_memory_is_accepted)
{
    uint32_t end_gpa;

    configure_with(FORMAT, QUEUE_SIZE, QUEUE_SIZE);
    end_gpa = (uint32_t)(GUEST_BASE_GPA + guest.ram_bytes);
    vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_USED, false, end_gpa - 4);
    vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_AVAIL, false, end_gpa - 8);
    vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_DESC, false, end_gpa - 16 * QUEUE_SIZE);
    start();
    EXPECT_TRUE(ring.vq->started);
    EXPECT_FALSE(broken());
    end();
}

TEST(vring_packed, a_ring_whose_end_is_outside_memory_is_refused)
{
    const struct {
        VqRingPart part;
        uint32_t from_end;
    } parts[] = { { VQ_RING_DESC, 16 * QUEUE_SIZE - 16 },
                  { VQ_RING_AVAIL, 0 },
                  { VQ_RING_USED, 0 } };

    for (unsigned i = 0; i < ARRAY_SIZE(parts); i++) {
        configure_with(FORMAT, QUEUE_SIZE, QUEUE_SIZE);
        vdev_queue_set_address(&dev.vdev, ring.vq, parts[i].part, false,
                               (uint32_t)(GUEST_BASE_GPA + guest.ram_bytes - parts[i].from_end));
        expect_start_refused();
    }
}

TEST(vring_packed, a_misaligned_part_is_refused)
{
    for (VqRingPart part = VQ_RING_DESC; part <= VQ_RING_USED; part++) {
        configure_with(FORMAT, QUEUE_SIZE, QUEUE_SIZE);
        vdev_queue_set_address(&dev.vdev, ring.vq, part, false,
                               vdev_queue_address(ring.vq, part, false) +
                                   (part == VQ_RING_DESC ? 8 : 2));
        expect_start_refused();
    }
}

/* --- where it starts --- */

/* Slots are counted on and on by the driver: 11 laps and a few. */
TEST(vring_packed, a_queue_goes_on_from_a_given_base)
{
    static const uint64_t places[] = { 0, QUEUE_SIZE - 1, QUEUE_SIZE, 11 * QUEUE_SIZE + 5,
                                       12 * QUEUE_SIZE - 1 };
    uint32_t head, len;

    for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
        configure_with(FORMAT, QUEUE_SIZE, QUEUE_SIZE);
        ring_packed_begin_at(packed(), places[i]);
        for (unsigned slot = 0; slot < QUEUE_SIZE; slot++) { /* used in the lap before */
            packed()->desc[slot].flags =
                ring_packed_avail_flags(packed(), places[i] + QUEUE_SIZE) & RING_F_AVAIL
                    ? htole16(OWNER)
                    : 0;
        }
        add_small(8);
        add_small(9);
        ring_publish(&ring);
        uint16_t base = ring_packed_name(packed(), places[i]);

        vq_set_base(ring.vq, (VqBase){ .avail = base, .used = base });
        start();
        EXPECT_EQ(dev.nb_popped, 2);
        for (uint32_t wanted = 8; wanted <= 9; wanted++) {
            ASSERT_TRUE(ring_next_used(&ring, &head, &len));
            EXPECT_EQ(len, wanted);
        }
        stop_queue();
        EXPECT_EQ(vq_base(ring.vq).avail, ring_packed_name(packed(), places[i] + 2));
        EXPECT_EQ(vq_base(ring.vq).used, ring_packed_name(packed(), places[i] + 2));
        end();
    }
}

TEST(vring_packed, what_lies_between_the_bases_is_in_flight)
{
    configure_with(FORMAT, QUEUE_SIZE, QUEUE_SIZE);
    ring_packed_begin_at(packed(), QUEUE_SIZE - 3);
    packed()->next_avail = packed()->first = QUEUE_SIZE + 5;
    vq_set_base(ring.vq, (VqBase){ .avail = ring_packed_name(packed(), QUEUE_SIZE + 5),
                                   .used = ring_packed_name(packed(), QUEUE_SIZE - 3) });
    start();
    EXPECT_EQ(ring.vq->packed.slots_out, 8);
    for (unsigned i = 0; i < QUEUE_SIZE - 8; i++) {
        put(5 + i, 8, RING_F_USED, (uint16_t)i);
    }
    kick();
    EXPECT_EQ(dev.nb_popped, QUEUE_SIZE - 8);
    EXPECT_FALSE(broken());
    end();
}

TEST(vring_packed, a_base_that_makes_no_sense_is_refused)
{
    static const VqBase bases[] = {
        { 0x8000 | QUEUE_SIZE, 0x8000 },
        { 0x8000, 0x8000 | QUEUE_SIZE },
        { 0x8002, 0x8003 },
        { 0x0003, 0x8002 },
        { 0x7fff, 0x7fff },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(bases); i++) {
        configure_with(FORMAT, QUEUE_SIZE, QUEUE_SIZE);
        vq_set_base(ring.vq, bases[i]);
        expect_start_refused();
    }
}

TEST(vring_packed, a_reset_queue_begins_with_the_first_slot_of_the_first_lap)
{
    begin_packed(FEATURE(VIRTIO_F_RING_RESET), QUEUE_SIZE);
    for (unsigned i = 0; i < QUEUE_SIZE + 5; i++) {
        uint32_t head, len;

        add_small(8);
        publish_and_kick();
        ASSERT_TRUE(ring_next_used(&ring, &head, &len));
        ring_free(&ring, (uint16_t)head);
    }
    dev_reset_queue(&dev.vdev, 0);
    ring_finish(&ring);
    ring_init(&ring, &guest, &dev.vdev, 0, 12);
    dev_enable_queue(&dev.vdev, 0);
    dev.nb_popped = 0;
    add_small(8);
    publish_and_kick();
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(flags_of(0) & OWNER, OWNER);
    end();
}

/* --- interrupts --- */

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* The driver names any slot of any lap; the device interrupts exactly when it has used it. */
TEST(vring_packed, the_named_slot_interrupts_and_no_other)
{
    static const uint16_t sizes[] = { 1, 2, 5, QUEUE_SIZE };
    uint32_t random = 1;

    for (unsigned s = 0; s < ARRAY_SIZE(sizes); s++) {
        begin_packed(FEATURE(VIRTIO_RING_F_EVENT_IDX), sizes[s]);
        unsigned nb_wanted = 0;

        for (unsigned i = 0; i < 3000; i++) {
            uint64_t from = packed()->next_used;
            unsigned nb = 1 + next_random(&random) % sizes[s];
            uint16_t name = ring_packed_name(packed(), next_random(&random) % (2 * sizes[s]));
            bool wanted = false;

            for (uint64_t pos = from; pos < from + nb; pos++) {
                wanted = wanted || ring_packed_name(packed(), pos) == name;
            }
            ring_packed_set_event(packed(), VRING_PACKED_EVENT_FLAG_DESC, name);
            ASSERT_EQ(interrupts_for(nb), wanted);
            nb_wanted += wanted;
        }
        EXPECT_GT(nb_wanted, 300);
        EXPECT_LT(nb_wanted, 2700);
        end();
    }
}

TEST(vring_packed, a_slot_in_the_midst_of_a_chain_interrupts)
{
    RingBuf bufs[] = { { 0, 8, false }, { 0, 8, false }, { 0, 8, false } };

    begin_packed(FEATURE(VIRTIO_RING_F_EVENT_IDX), QUEUE_SIZE);
    bufs[0].gpa = bufs[1].gpa = bufs[2].gpa = buf_gpa;
    ring_packed_set_event(packed(), VRING_PACKED_EVENT_FLAG_DESC, ring_packed_name(packed(), 2));
    ring_add(&ring, bufs, 3);
    publish_and_kick();
    EXPECT_EQ(dev.transport.queue_interrupts[0], 1);
    end();
}

TEST(vring_packed, more_than_a_lap_at_once_interrupts_wherever_the_slot_is)
{
    uint32_t head, len;

    for (unsigned slot = 0; slot < 2 * QUEUE_SIZE; slot++) {
        begin_packed(FEATURE(VIRTIO_RING_F_EVENT_IDX), QUEUE_SIZE);
        ring_packed_set_event(packed(), VRING_PACKED_EVENT_FLAG_DESC,
                              ring_packed_name(packed(), slot));
        for (unsigned i = 0; i < 2 * QUEUE_SIZE + 3; i++) {
            add_small(8);
            ring_publish(&ring);
            vq_serve(ring.vq); /* published, not yet decided */
            ASSERT_TRUE(ring_next_used(&ring, &head, &len));
            ring_free(&ring, (uint16_t)head);
        }
        EXPECT_EQ(dev.transport.queue_interrupts[0], 0);
        dev_settle();
        EXPECT_EQ(dev.transport.queue_interrupts[0], 1);
        end();
    }
}

TEST(vring_packed, event_flags_are_obeyed)
{
    const struct {
        uint64_t features;
        uint16_t flags;
        unsigned nb_interrupts;
    } cases[] = {
        { 0, VRING_PACKED_EVENT_FLAG_ENABLE, 1 },
        { 0, VRING_PACKED_EVENT_FLAG_DISABLE, 0 },
        { 0, VRING_PACKED_EVENT_FLAG_DESC, 1 }, /* means nothing without the feature */
        { 0, 3, 1 },
        { 0, 0xfffc | VRING_PACKED_EVENT_FLAG_DISABLE, 0 }, /* reserved bits are ignored */
        { FEATURE(VIRTIO_RING_F_EVENT_IDX), VRING_PACKED_EVENT_FLAG_ENABLE, 1 },
        { FEATURE(VIRTIO_RING_F_EVENT_IDX), VRING_PACKED_EVENT_FLAG_DISABLE, 0 },
        { FEATURE(VIRTIO_RING_F_EVENT_IDX), VRING_PACKED_EVENT_FLAG_DESC, 0 },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        begin_packed(cases[i].features, QUEUE_SIZE);
        ring_packed_set_event(packed(), cases[i].flags, ring_packed_name(packed(), 5));
        EXPECT_EQ(interrupts_for(2), cases[i].nb_interrupts);
        end();
    }
}

/* --- kicks --- */

TEST(vring_packed, the_device_names_the_slot_it_waits_for)
{
    uint32_t head, len;

    begin_packed(FEATURE(VIRTIO_RING_F_EVENT_IDX), 5);
    for (uint64_t pos = 0; pos < 30; pos++) {
        dev_settle();
        ASSERT_EQ(ring_packed_device_event(packed()),
                  (uint32_t)VRING_PACKED_EVENT_FLAG_DESC << 16 | ring_packed_name(packed(), pos));
        add_small(8);
        publish_and_kick();
        ASSERT_TRUE(ring_next_used(&ring, &head, &len));
        ring_free(&ring, (uint16_t)head);
    }
    vq_disable_notifications(ring.vq);
    EXPECT_EQ(ring_packed_device_event(packed()) >> 16, VRING_PACKED_EVENT_FLAG_DISABLE);
    end();
}

TEST(vring_packed, without_event_index_kicks_are_on_or_off)
{
    begin_packed(0, QUEUE_SIZE);
    vq_disable_notifications(ring.vq);
    EXPECT_EQ(ring_packed_device_event(packed()), VRING_PACKED_EVENT_FLAG_DISABLE << 16);
    EXPECT_FALSE(vq_enable_notifications(ring.vq));
    EXPECT_EQ(ring_packed_device_event(packed()), VRING_PACKED_EVENT_FLAG_ENABLE << 16);
    end();
}

/* --- the driver at the same time --- */

/* Rewrites the rest of descriptor 0 all the time, always offered. Each of the two is good; half and
 * half may end beyond memory. */
static void *rewrite_thread(void *opaque)
{
    volatile uint64_t *words = (volatile uint64_t *)packed()->desc;
    atomic_bool *stop = opaque;
    uint64_t avail = (uint64_t)RING_F_AVAIL << 48;

    while (!atomic_load(stop)) {
        words[0] = htole64(buf_gpa);
        words[1] = htole64(65536 | avail);
        words[0] = htole64(GUEST_BASE_GPA + guest.ram_bytes - 8);
        words[1] = htole64(8 | avail | (uint64_t)VRING_DESC_F_WRITE << 48 | (uint64_t)7 << 32);
    }
    return NULL;
}

TEST(vring_packed, a_descriptor_that_changes_meanwhile_is_read_once)
{
    atomic_bool stop = false;
    unsigned nb_broken = 0, nb_whole = 0;
    pthread_t thread;

    if (HAVE_TSAN) {
        TEST_SKIP("the race is the driver's and meant");
    }
    begin_packed(FEATURE(VIRTIO_F_RING_RESET), 1);
    dev.hold = true;
    ASSERT_EQ(pthread_create(&thread, NULL, rewrite_thread, &stop), 0);
    while (flags_of(0) == 0) {
        sched_yield(); /* until it is at it */
    }
    for (unsigned n = 0; n < 20000; n++) {
        kick();
        if (broken()) {
            nb_broken++;
            ASSERT_TRUE(dev_negotiate(&dev.vdev, FORMAT | FEATURE(VIRTIO_F_RING_RESET) |
                                                     FEATURE(VIRTIO_F_VERSION_1)));
        } else {
            ASSERT_EQ(dev.nb_popped, 1);
            bool whole = dev.last.out_bytes == 65536 && dev.last.nb_in == 0;
            bool small = dev.last.out_bytes == 8 || dev.last.in_bytes == 8;

            nb_whole += whole;
            ASSERT_TRUE(whole || small || dev.last.in_bytes == 65536);
            ASSERT_EQ(dev.last.nb_out + dev.last.nb_in, 1);
            ASSERT_TRUE(
                gm_translate(&guest.gm,
                             GPA((uint8_t *)dev.last_iov[0].iov_base - guest.ram + GUEST_BASE_GPA),
                             dev.last_iov[0].iov_len) != NULL);
            dev.nb_held = 0;
            vq_detach(ring.vq, dev.held[0]);
            dev_reset_queue(&dev.vdev, 0);
        }
        dev.nb_popped = 0;
        /* where it was, in the first lap again */
        vdev_queue_set_size(&dev.vdev, ring.vq, 1);
        vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_DESC, false, (uint32_t)ring.desc_gpa);
        vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_AVAIL, false, (uint32_t)ring.avail_gpa);
        vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_USED, false, (uint32_t)ring.used_gpa);
        start();
    }
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    EXPECT_LT(nb_broken, 20000);
    EXPECT_GT(nb_whole, 0);
    end();
}

TEST(vring_packed, a_detached_element_is_not_used)
{
    begin_packed(0, QUEUE_SIZE);
    dev.hold = true;
    add_small(8);
    publish_and_kick();
    ASSERT_EQ(dev.nb_held, 1);
    dev.nb_held = 0;
    vq_detach(ring.vq, dev.held[0]);
    dev_settle();
    EXPECT_EQ(ring_used_index(&ring), 0);
    EXPECT_EQ(flags_of(0) & OWNER, RING_F_AVAIL);
    end();
}

TEST_MAIN()
