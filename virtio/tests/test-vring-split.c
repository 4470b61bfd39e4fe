/*
 * test-vring-split.c - the split ring against honest and hostile drivers; what is the same with
 * packed ones is in test-virtqueue.c
 */
#include <linux/virtio_ring.h>
#include <pthread.h>

#include "virtio/tests/ring-fixture.h"

/* Offer @head as it stands in the table and see what the device makes of it. */
static void offer_and_kick(uint16_t head)
{
    ring_offer(&ring, head);
    publish_and_kick();
}

static void desc(unsigned i, uint32_t len, uint16_t flags, uint16_t next)
{
    ring_set_desc(&ring, i, buf_gpa + i * 1024, len, flags, next);
}

/* --- honest drivers --- */

TEST(vring_split, direct_descriptors_may_lead_to_an_indirect_table)
{
    begin();
    uint64_t table = guest_alloc(&guest, 2 * sizeof(struct vring_desc), 16);
    struct vring_desc *t = guest_ptr(&guest, table);

    ring_write_desc(&t[0], buf_gpa + 512, 4, VRING_DESC_F_NEXT, 1);
    ring_write_desc(&t[1], buf_gpa + 1024, 8, VRING_DESC_F_WRITE, 0);
    desc(3, 16, VRING_DESC_F_NEXT, 5);
    ring_set_desc(&ring, 5, table, 32, VRING_DESC_F_INDIRECT, 0);
    offer_and_kick(3);
    ASSERT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.out_bytes, 20);
    EXPECT_EQ(dev.last.in_bytes, 8);
    end();
}

TEST(vring_split, the_write_flag_of_an_indirect_descriptor_is_ignored)
{
    begin();
    uint64_t table = guest_alloc(&guest, sizeof(struct vring_desc), 16);

    ring_write_desc(guest_ptr(&guest, table), buf_gpa, 4, 0, 0);
    ring_set_desc(&ring, 0, table, 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE, 0);
    offer_and_kick(0);
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.out_bytes, 4);
    EXPECT_EQ(dev.last.in_bytes, 0);
    end();
}

TEST(vring_split, an_indirect_table_may_stand_at_an_odd_address)
{
    begin();
    uint64_t table = guest_alloc(&guest, 64, 16) + 3;

    ring_write_desc(guest_ptr(&guest, table), buf_gpa, 4, 0, 0);
    ring_set_desc(&ring, 0, table, 16, VRING_DESC_F_INDIRECT, 0);
    offer_and_kick(0);
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.out_bytes, 4);
    end();
}

TEST(vring_split, indices_wrap_at_65536)
{
    uint32_t head, len;

    begin();
    for (unsigned i = 0; i < 70000; i++) {
        uint16_t added = ring_add(&ring, (RingBuf[]){ { buf_gpa, 1 + i % 100, true } }, 1);

        ring_publish(&ring);
        vq_serve(ring.vq);
        aio_defer_flush(aio_main());
        ASSERT_TRUE(ring_next_used(&ring, &head, &len));
        ASSERT_EQ(head, added);
        ASSERT_EQ(len, 1 + i % 100);
        ring_free(&ring, added);
    }
    EXPECT_EQ(dev.nb_popped, 70000);
    EXPECT_FALSE(broken());
    end();
}

/* --- going on where another device left off --- */

TEST(vring_split, a_queue_goes_on_from_a_given_base)
{
    uint32_t head, len;

    configure();
    ring.avail_idx = ring.used_seen = 65535;
    ring.used->idx = htole16(65535);
    ring_add(&ring, (RingBuf[]){ { buf_gpa, 8, true } }, 1);
    ring_add(&ring, (RingBuf[]){ { buf_gpa, 9, true } }, 1);
    ring_publish(&ring);
    vq_set_base(ring.vq, (VqBase){ .avail = 65535 });
    start();
    EXPECT_EQ(dev.nb_popped, 2);
    ASSERT_TRUE(ring_next_used(&ring, &head, &len));
    EXPECT_EQ(len, 8);
    ASSERT_TRUE(ring_next_used(&ring, &head, &len));
    EXPECT_EQ(len, 9);
    stop_queue();
    EXPECT_EQ(vq_base(ring.vq).avail, 1);
    EXPECT_EQ(vq_base(ring.vq).used, 1);
    end();
}

/* --- sizes and places of the ring --- */

TEST(vring_split, a_size_that_is_no_power_of_two_is_refused)
{
    configure();
    vdev_queue_set_size(&dev.vdev, ring.vq, 12);
    expect_start_refused();
}

TEST(vring_split, a_ring_whose_end_is_outside_memory_is_refused)
{
    configure();
    /* the last word of the used ring (avail_event) would be the first behind the end */
    vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_USED, false,
                           (uint32_t)(GUEST_BASE_GPA + guest.ram_bytes - 4 - 8 * QUEUE_SIZE));
    expect_start_refused();
}

TEST(vring_split, a_ring_at_the_very_end_of_memory_is_accepted)
{
    configure();
    vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_AVAIL, false,
                           (uint32_t)(GUEST_BASE_GPA + guest.ram_bytes - 6 - 2 * QUEUE_SIZE));
    dev_enable_queue(&dev.vdev, 0);
    dev_driver_ok(&dev.vdev);
    EXPECT_TRUE(ring.vq->started);
    EXPECT_FALSE(broken());
    end();
}

/* --- malformed indices and chains --- */

TEST(vring_split, a_head_beyond_the_table_breaks_the_queue)
{
    begin();
    offer_and_kick(QUEUE_SIZE);
    expect_broken_until_reset();
    end();
}

/* Where the table ends there are more descriptors that would do. */
static void begin_with_longer_table(void)
{
    configure();
    ring.desc_gpa = guest_alloc(&guest, 4 * QUEUE_SIZE * sizeof(*ring.desc), 16);
    ring.desc = guest_ptr(&guest, ring.desc_gpa);
    for (unsigned i = 0; i < 4 * QUEUE_SIZE; i++) {
        ring_set_desc(&ring, i, buf_gpa, 8, 0, 0);
    }
    vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_DESC, false, (uint32_t)ring.desc_gpa);
    start();
}

TEST(vring_split, a_head_beyond_the_table_breaks_the_queue_whatever_stands_there)
{
    for (unsigned head = QUEUE_SIZE; head < 4 * QUEUE_SIZE; head += QUEUE_SIZE - 1) {
        begin_with_longer_table();
        offer_and_kick(QUEUE_SIZE - 1);
        EXPECT_EQ(dev.nb_popped, 1);
        dev.nb_popped = 0;
        offer_and_kick((uint16_t)head);
        EXPECT_TRUE(strncmp(ring.vq->broken_reason, "head", 4) == 0); /* nothing was looked up */
        expect_broken_until_reset();
        end();
    }
}

TEST(vring_split, a_next_beyond_the_table_breaks_the_queue)
{
    begin_with_longer_table();
    ring_set_desc(&ring, 0, buf_gpa, 8, VRING_DESC_F_NEXT, QUEUE_SIZE - 1);
    offer_and_kick(0);
    EXPECT_EQ(dev.nb_popped, 1);
    dev.nb_popped = 0;
    ring_set_desc(&ring, 0, buf_gpa, 8, VRING_DESC_F_NEXT, QUEUE_SIZE);
    offer_and_kick(0);
    expect_broken_until_reset();
    end();
}

TEST(vring_split, a_descriptor_that_leads_to_itself_breaks_the_queue)
{
    begin();
    desc(2, 8, VRING_DESC_F_NEXT, 2);
    offer_and_kick(2);
    expect_broken_until_reset();
    end();
}

TEST(vring_split, a_loop_of_descriptors_breaks_the_queue)
{
    begin();
    desc(0, 8, VRING_DESC_F_NEXT, 1);
    desc(1, 8, VRING_DESC_F_NEXT, 2);
    desc(2, 8, VRING_DESC_F_NEXT, 0);
    offer_and_kick(0);
    expect_broken_until_reset();
    end();
}

TEST(vring_split, an_available_index_that_jumps_breaks_the_queue)
{
    begin();
    desc(0, 8, 0, 0);
    ring_publish_index(&ring, QUEUE_SIZE + 1);
    ring_kick(&ring);
    dev_settle();
    expect_broken_until_reset();
    end();
}

TEST(vring_split, an_available_index_that_goes_back_breaks_the_queue)
{
    begin();
    ring_publish_index(&ring, 65535);
    ring_kick(&ring);
    dev_settle();
    expect_broken_until_reset();
    end();
}

TEST(vring_split, a_head_available_twice_while_in_flight_breaks_the_queue)
{
    begin();
    dev.hold = true;
    desc(4, 8, VRING_DESC_F_WRITE, 0);
    offer_and_kick(4);
    ASSERT_EQ(dev.nb_popped, 1);
    offer_and_kick(4);
    EXPECT_TRUE(broken());
    EXPECT_EQ(dev.nb_popped, 1);
    end();
}

TEST(vring_split, more_chains_than_the_ring_holds_break_the_queue)
{
    begin();
    dev.hold = true;
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        desc(i, 8, 0, 0);
        ring_offer(&ring, (uint16_t)i);
    }
    publish_and_kick();
    ASSERT_EQ(dev.nb_popped, QUEUE_SIZE);
    EXPECT_FALSE(broken());
    offer_and_kick(0);
    EXPECT_TRUE(broken());
    EXPECT_EQ(dev.nb_popped, QUEUE_SIZE);
    end();
}

/* --- indirect tables --- */

static uint64_t indirect(uint32_t len, uint16_t flags)
{
    uint64_t table = guest_alloc(&guest, 64 * sizeof(struct vring_desc), 16);

    ring_write_desc(guest_ptr(&guest, table), buf_gpa, 8, 0, 0);
    ring_set_desc(&ring, 0, table, len, VRING_DESC_F_INDIRECT | flags, 1);
    return table;
}

TEST(vring_split, indirect_with_next_breaks_the_queue)
{
    begin();
    indirect(16, VRING_DESC_F_NEXT);
    desc(1, 8, 0, 0);
    offer_and_kick(0);
    expect_broken_until_reset();
    end();
}

TEST(vring_split, indirect_in_indirect_breaks_the_queue)
{
    begin();
    uint64_t table = indirect(16, 0);

    ring_write_desc(guest_ptr(&guest, table), table, 16, VRING_DESC_F_INDIRECT, 0);
    offer_and_kick(0);
    expect_broken_until_reset();
    end();
}

TEST(vring_split, an_indirect_table_of_a_fraction_breaks_the_queue)
{
    begin();
    indirect(24, 0);
    offer_and_kick(0);
    expect_broken_until_reset();
    end();
}

TEST(vring_split, a_next_beyond_the_indirect_table_breaks_the_queue)
{
    begin();
    uint64_t table = indirect(32, 0);
    struct vring_desc *t = guest_ptr(&guest, table);

    ring_write_desc(&t[0], buf_gpa, 8, VRING_DESC_F_NEXT, 2);
    ring_write_desc(&t[2], buf_gpa, 8, 0, 0); /* as good as any, but outside */
    offer_and_kick(0);
    expect_broken_until_reset();
    end();
}

TEST(vring_split, an_indirect_table_may_have_more_entries_than_the_queue)
{
    begin();
    uint64_t table = indirect(3 * QUEUE_SIZE * 16, 0);
    struct vring_desc *t = guest_ptr(&guest, table);

    ring_write_desc(&t[0], buf_gpa, 8, VRING_DESC_F_NEXT, 3 * QUEUE_SIZE - 1);
    ring_write_desc(&t[3 * QUEUE_SIZE - 1], buf_gpa, 8, VRING_DESC_F_WRITE, 0);
    offer_and_kick(0);
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.nb_out + dev.last.nb_in, 2);
    EXPECT_FALSE(broken());
    end();
}

TEST(vring_split, a_loop_in_an_indirect_table_breaks_the_queue)
{
    begin();
    uint64_t table = indirect(32, 0);
    struct vring_desc *t = guest_ptr(&guest, table);

    ring_write_desc(&t[0], buf_gpa, 8, VRING_DESC_F_NEXT, 1);
    ring_write_desc(&t[1], buf_gpa, 8, VRING_DESC_F_NEXT, 0);
    offer_and_kick(0);
    expect_broken_until_reset();
    end();
}

TEST(vring_split, an_indirect_table_that_wraps_around_breaks_the_queue)
{
    begin();
    ring_set_desc(&ring, 0, UINT64_MAX - 15, 32, VRING_DESC_F_INDIRECT, 0);
    offer_and_kick(0);
    expect_broken_until_reset();
    end();
}

TEST(vring_split, an_indirect_table_outside_memory_breaks_the_queue)
{
    begin();
    ring_set_desc(&ring, 0, 0x1000, 32, VRING_DESC_F_INDIRECT, 0);
    offer_and_kick(0);
    expect_broken_until_reset();
    end();
}

TEST(vring_split, an_indirect_table_may_straddle_two_regions)
{
    uint64_t seam = begin_with_seam();

    ring_write_desc((struct vring_desc *)(guest.ram + SEAM_UPPER + 4096 - 16), buf_gpa, 5,
                    VRING_DESC_F_NEXT, 1);
    ring_write_desc((struct vring_desc *)(guest.ram + SEAM_LOWER), buf_gpa, 6, VRING_DESC_F_WRITE,
                    0);
    ring_set_desc(&ring, 0, seam - 16, 32, VRING_DESC_F_INDIRECT, 0);
    offer_and_kick(0);
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.out_bytes, 5);
    EXPECT_EQ(dev.last.in_bytes, 6);
    end();
}

/* Rewrites descriptor 0 all the time. Each of the two is good; half and half may end beyond
 * memory. */
static void *rewrite_thread(void *opaque)
{
    volatile uint64_t *words = (volatile uint64_t *)ring.desc;
    atomic_bool *stop = opaque;
    uint64_t flags = (uint64_t)VRING_DESC_F_NEXT << 32, next = (uint64_t)1 << 48;

    while (!atomic_load(stop)) {
        words[0] = htole64(buf_gpa);
        words[1] = htole64(65536 | flags | next);
        words[0] = htole64(GUEST_BASE_GPA + guest.ram_bytes - 8);
        words[1] = htole64(8 | (uint64_t)VRING_DESC_F_WRITE << 32 | (uint64_t)UINT16_MAX << 48);
    }
    return NULL;
}

TEST(vring_split, a_descriptor_that_changes_meanwhile_is_read_once)
{
    atomic_bool stop = false;
    unsigned nb_broken = 0;
    pthread_t thread;

    if (HAVE_TSAN) {
        TEST_SKIP("the race is the driver's and meant");
    }
    begin();
    desc(1, 8, 0, 0);
    ASSERT_EQ(pthread_create(&thread, NULL, rewrite_thread, &stop), 0);
    for (unsigned n = 0; n < 20000; n++) {
        dev.nb_popped = 0;
        offer_and_kick(0);
        if (broken()) {
            ring_finish(&ring);
            ASSERT_TRUE(dev_negotiate(&dev.vdev, FEATURE(VIRTIO_F_VERSION_1)));
            guest_rewind(&guest);
            ring_init(&ring, &guest, &dev.vdev, 0, QUEUE_SIZE); /* where it was */
            desc(1, 8, 0, 0);
            start();
            nb_broken++;
            continue;
        }
        ASSERT_EQ(dev.nb_popped, 1);
        bool whole = dev.last.nb_out == 2 && dev.last.nb_in == 0 && dev.last.out_bytes == 65544;
        bool small = dev.last.nb_out == 0 && dev.last.nb_in == 1 && dev.last.in_bytes == 8;

        ASSERT_TRUE(whole || small);
        ASSERT_EQ(dev.last_iov[0].iov_len, whole ? 65536 : 8);
        ASSERT_TRUE(
            gm_translate(&guest.gm,
                         GPA((uint8_t *)dev.last_iov[0].iov_base - guest.ram + GUEST_BASE_GPA),
                         dev.last_iov[0].iov_len) != NULL);
    }
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    EXPECT_LT(nb_broken, 20000);
    end();
}

/* --- the used ring --- */

TEST(vring_split, a_detached_element_is_not_used_and_its_head_is_free_again)
{
    begin();
    dev.hold = true;
    desc(4, 8, VRING_DESC_F_WRITE, 0);
    offer_and_kick(4);
    ASSERT_EQ(dev.nb_held, 1);
    dev.nb_held = 0;
    vq_detach(ring.vq, dev.held[0]);
    dev_settle();
    EXPECT_EQ(ring_used_index(&ring), 0);
    offer_and_kick(4);
    EXPECT_EQ(dev.nb_held, 1);
    EXPECT_FALSE(broken());
    end();
}

/* --- interrupts --- */

TEST(vring_split, no_interrupt_flag_is_obeyed)
{
    begin();
    EXPECT_EQ(interrupts_for(1), 1);
    ring.avail->flags = htole16(VRING_AVAIL_F_NO_INTERRUPT);
    EXPECT_EQ(interrupts_for(1), 0);
    ring.avail->flags = 0;
    EXPECT_EQ(interrupts_for(3), 1);
    EXPECT_EQ(ring.vq->stats.notifications, 2);
    end();
}

TEST(vring_split, event_index_equal_to_the_entry_interrupts)
{
    begin_with(FEATURE(VIRTIO_RING_F_EVENT_IDX), QUEUE_SIZE, QUEUE_SIZE);
    ring_set_used_event(&ring, 0);
    EXPECT_EQ(interrupts_for(1), 1); /* used 0 -> 1 passes 0 */
    ring_set_used_event(&ring, 2);
    EXPECT_EQ(interrupts_for(1), 0); /* 1 -> 2 does not pass 2 */
    EXPECT_EQ(interrupts_for(1), 1); /* 2 -> 3 does */
    EXPECT_EQ(interrupts_for(1), 0); /* and it has been passed */
    end();
}

TEST(vring_split, a_batch_that_crosses_the_event_index_interrupts_once)
{
    begin_with(FEATURE(VIRTIO_RING_F_EVENT_IDX), QUEUE_SIZE, QUEUE_SIZE);
    ring_set_used_event(&ring, 3);
    EXPECT_EQ(interrupts_for(3), 0); /* 0 -> 3 */
    EXPECT_EQ(interrupts_for(5), 1); /* 3 -> 8 */
    ring_set_used_event(&ring, 8 + 11);
    EXPECT_EQ(interrupts_for(11), 0); /* published twice, decided once */
    EXPECT_EQ(interrupts_for(VQ_PUBLISH_MAX), 1);
    end();
}

TEST(vring_split, the_event_index_works_across_the_wrap)
{
    begin_with(FEATURE(VIRTIO_RING_F_EVENT_IDX), QUEUE_SIZE, QUEUE_SIZE);
    ring_set_used_event(&ring, 65535);
    for (unsigned used = 0; used + 13 < 65536; used += 13) {
        ASSERT_EQ(interrupts_for(13), 0);
    }
    unsigned left = 65536 - 65536 / 13 * 13;

    EXPECT_EQ(interrupts_for(left - 1), 0); /* -> 65535 */
    EXPECT_EQ(interrupts_for(1), 1);        /* -> 0 passes 65535 */
    EXPECT_EQ(interrupts_for(1), 0);
    ring_set_used_event(&ring, 5);
    EXPECT_EQ(interrupts_for(6), 1); /* 1 -> 7 passes 5 */
    end();
}

TEST(vring_split, flags_are_ignored_with_event_index)
{
    begin_with(FEATURE(VIRTIO_RING_F_EVENT_IDX), QUEUE_SIZE, QUEUE_SIZE);
    ring.avail->flags = htole16(VRING_AVAIL_F_NO_INTERRUPT);
    EXPECT_EQ(interrupts_for(1), 1);
    EXPECT_EQ(le16toh(ring.used->flags), 0);
    end();
}

/* --- kicks --- */

TEST(vring_split, kicks_are_wanted_when_idle_and_only_for_what_is_new)
{
    begin_with(FEATURE(VIRTIO_RING_F_EVENT_IDX), QUEUE_SIZE, QUEUE_SIZE);
    EXPECT_EQ(ring_avail_event(&ring), 0);
    ring_add(&ring, (RingBuf[]){ { buf_gpa, 8, true } }, 1);
    ring_publish(&ring);
    EXPECT_TRUE(ring_wants_kick(&ring));
    ring_kick(&ring);
    dev_settle();
    EXPECT_EQ(ring_avail_event(&ring), 1);
    ring_add(&ring, (RingBuf[]){ { buf_gpa, 8, true } }, 1);
    ring_publish(&ring);
    EXPECT_TRUE(ring_wants_kick(&ring));
    /* not served yet: another one needs no kick */
    ring_add(&ring, (RingBuf[]){ { buf_gpa, 8, true } }, 1);
    ring_publish(&ring);
    EXPECT_FALSE(ring_wants_kick(&ring));
    ring_kick(&ring);
    dev_settle();
    EXPECT_EQ(dev.nb_popped, 3);
    end();
}

TEST(vring_split, an_idle_queue_wants_each_kick_also_when_indices_wrap)
{
    begin_with(FEATURE(VIRTIO_RING_F_EVENT_IDX), QUEUE_SIZE, QUEUE_SIZE);
    desc(0, 8, VRING_DESC_F_WRITE, 0);
    for (unsigned i = 0; i < 65536 + 2 * QUEUE_SIZE; i++) {
        ring_offer(&ring, 0);
        ring_publish(&ring);
        ASSERT_TRUE(ring_wants_kick(&ring));
        ring_kick(&ring);
        dev_settle();
    }
    EXPECT_EQ(dev.nb_popped, 65536 + 2 * QUEUE_SIZE);
    EXPECT_FALSE(broken());
    end();
}

TEST(vring_split, enabling_notifications_on_an_empty_ring_finds_nothing)
{
    begin();
    vq_disable_notifications(ring.vq);
    EXPECT_EQ(le16toh(ring.used->flags), VRING_USED_F_NO_NOTIFY);
    EXPECT_FALSE(vq_enable_notifications(ring.vq));
    EXPECT_EQ(le16toh(ring.used->flags), 0);
    end();
}

TEST_MAIN()
