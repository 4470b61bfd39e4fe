/*
 * test-virtqueue.c - what queues of either format do for honest and hostile drivers
 *
 * With TEST_RING=packed in the environment it is packed rings, else split ones.
 */
#include "virtio/tests/ring-fixture.h"

/* --- honest drivers --- */

TEST(virtqueue, a_chain_arrives_with_its_parts_in_order)
{
    uint32_t head, len;

    begin();
    uint16_t added = ring_add(&ring,
                              (RingBuf[]){ { buf_gpa, 16, false },
                                           { buf_gpa + 100, 7, false },
                                           { buf_gpa + 4096, 512, true },
                                           { buf_gpa + 8192, 1, true } },
                              4);

    publish_and_kick();
    ASSERT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.nb_out, 2);
    EXPECT_EQ(dev.last.nb_in, 2);
    EXPECT_EQ(dev.last.out_bytes, 23);
    EXPECT_EQ(dev.last.in_bytes, 513);
    EXPECT_TRUE(dev.last_iov[1].iov_base == guest_ptr(&guest, buf_gpa + 100));
    EXPECT_EQ(dev.last_iov[1].iov_len, 7);
    EXPECT_TRUE(dev.last_iov[3].iov_base == guest_ptr(&guest, buf_gpa + 8192));
    ASSERT_TRUE(ring_next_used(&ring, &head, &len));
    EXPECT_EQ(head, added);
    EXPECT_EQ(len, 513);
    EXPECT_FALSE(ring_next_used(&ring, &head, &len));
    end();
}

TEST(virtqueue, a_chain_may_be_all_readable_or_all_writable)
{
    begin();
    ring_add(&ring, (RingBuf[]){ { buf_gpa, 16, false } }, 1);
    publish_and_kick();
    EXPECT_EQ(dev.last.nb_out, 1);
    EXPECT_EQ(dev.last.nb_in, 0);
    ring_add(&ring, (RingBuf[]){ { buf_gpa, 16, true } }, 1);
    publish_and_kick();
    EXPECT_EQ(dev.last.nb_out, 0);
    EXPECT_EQ(dev.last.nb_in, 1);
    EXPECT_EQ(dev.nb_popped, 2);
    end();
}

TEST(virtqueue, an_indirect_chain_is_the_same_as_a_direct_one)
{
    begin();
    uint64_t table = guest_alloc(&guest, 8 * sizeof(struct vring_desc), 16);

    ring_add_indirect(&ring, table,
                      (RingBuf[]){ { buf_gpa, 16, false },
                                   { buf_gpa + 4096, 512, true },
                                   { buf_gpa + 8192, 1, true } },
                      3);
    publish_and_kick();
    ASSERT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.nb_out, 1);
    EXPECT_EQ(dev.last.nb_in, 2);
    EXPECT_EQ(dev.last.in_bytes, 513);
    end();
}

TEST(virtqueue, a_chain_may_be_as_long_as_the_queue)
{
    RingBuf bufs[QUEUE_SIZE];

    begin();
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        bufs[i] = (RingBuf){ buf_gpa + i * 1024, 8, false };
    }
    ring_add(&ring, bufs, QUEUE_SIZE);
    publish_and_kick();
    ASSERT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.nb_out, QUEUE_SIZE);
    EXPECT_EQ(dev.last.out_bytes, QUEUE_SIZE * 8);
    end();
}

TEST(virtqueue, a_large_chain_leaves_its_neighbours_alone)
{
    RingBuf bufs[12];

    begin();
    dev.hold = true;
    for (unsigned i = 0; i < 12; i++) {
        bufs[i] = (RingBuf){ buf_gpa + i * 64, 10 + i, false };
    }
    ring_add(&ring, bufs, 12);
    ring_add(&ring, bufs, 2);
    publish_and_kick();
    ASSERT_EQ(dev.nb_popped, 2);
    for (unsigned i = 0; i < 12; i++) {
        EXPECT_EQ(dev.held[0]->iov[i].iov_len, 10 + i);
    }
    EXPECT_EQ(dev.held[1]->nb_out, 2);
    EXPECT_TRUE(dev.held[1]->iov == dev.held[1]->iov_inline);
    end();
}

TEST(virtqueue, completion_may_be_in_any_order)
{
    uint32_t head, len;

    begin();
    dev.hold = true;
    uint16_t first = add_small(8);
    uint16_t second = add_small(8);

    publish_and_kick();
    VqElem *swap = dev.held[0];

    dev.held[0] = dev.held[1];
    dev.held[1] = swap;
    test_device_push(&dev, 2);
    test_device_push(&dev, 1);
    dev_settle();
    ASSERT_TRUE(ring_next_used(&ring, &head, &len));
    EXPECT_EQ(head, second);
    ASSERT_TRUE(ring_next_used(&ring, &head, &len));
    EXPECT_EQ(head, first);
    /* a head that has come back may be used again */
    ring_free(&ring, first);
    EXPECT_EQ(add_small(8), first);
    publish_and_kick();
    EXPECT_EQ(dev.nb_popped, 3);
    EXPECT_FALSE(broken());
    end();
}

/* Every length of chain at every place of the ring, and back in another order. */
TEST(virtqueue, chains_wrap_around_the_ring)
{
    RingBuf bufs[QUEUE_SIZE];
    uint32_t head, len;

    begin();
    dev.hold = true;
    for (unsigned round = 0; round < 5000; round++) {
        unsigned nb = 1 + round % 7, nb_more = 1 + round % 5;

        for (unsigned i = 0; i < QUEUE_SIZE; i++) {
            bufs[i] = (RingBuf){ buf_gpa + i * 64, 1 + (round + i) % 64, i >= nb / 2 };
        }
        uint16_t first = ring_add(&ring, bufs, nb), second = ring_add(&ring, bufs, nb_more);

        ring_publish(&ring);
        vq_serve(ring.vq);
        ASSERT_EQ(dev.nb_held, 2);
        ASSERT_EQ(dev.held[0]->nb_out, nb / 2);
        ASSERT_EQ(dev.held[0]->nb_out + dev.held[0]->nb_in, nb);
        ASSERT_EQ(dev.held[0]->iov[nb - 1].iov_len, 1 + (round + nb - 1) % 64);
        VqElem *swap = dev.held[0];

        dev.held[0] = dev.held[1];
        dev.held[1] = swap;
        test_device_push(&dev, round);
        test_device_push(&dev, round + 1);
        aio_defer_flush(aio_main());
        ASSERT_TRUE(ring_next_used(&ring, &head, &len));
        ASSERT_EQ(head, second);
        ASSERT_EQ(len, round);
        ring_free(&ring, second);
        ASSERT_TRUE(ring_next_used(&ring, &head, &len));
        ASSERT_EQ(head, first);
        ASSERT_EQ(len, round + 1);
        ring_free(&ring, first);
    }
    EXPECT_FALSE(broken());
    end();
}

TEST(virtqueue, a_call_of_the_handler_is_bounded_and_the_rest_follows)
{
    begin_with(0, 256, 256);
    for (unsigned i = 0; i < 256; i++) {
        add_small(8);
    }
    ring_publish(&ring);
    ring_kick(&ring);
    while (ring_used_index(&ring) != 256) {
        aio_poll(aio_main(), true);
    }
    EXPECT_EQ(dev.nb_popped, 256);
    EXPECT_EQ(dev.most_in_call, VQ_BATCH_MAX);
    EXPECT_EQ(ring.vq->stats.kicks, 1);
    end();
}

TEST(virtqueue, a_full_ring_at_once_is_fine)
{
    begin();
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        add_small(8);
    }
    publish_and_kick();
    EXPECT_EQ(dev.nb_popped, QUEUE_SIZE);
    EXPECT_FALSE(broken());
    end();
}

TEST(virtqueue, a_reset_forgets_the_base)
{
    configure();
    vq_set_base(ring.vq, (VqBase){ .avail = 7 });
    uint64_t features = dev.vdev.driver_features;

    ring_finish(&ring);
    ASSERT_TRUE(dev_negotiate(&dev.vdev, features));
    ring_init(&ring, &guest, &dev.vdev, 0, QUEUE_SIZE);
    start();
    add_small(8);
    publish_and_kick();
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(ring_used_index(&ring), 1);
    end();
}

/* --- sizes and places of the ring --- */

TEST(virtqueue, a_queue_of_one_works)
{
    uint32_t head, len;

    begin_with(0, QUEUE_SIZE, 1);
    for (unsigned i = 0; i < 5; i++) {
        uint16_t added = add_small(8);

        publish_and_kick();
        ASSERT_TRUE(ring_next_used(&ring, &head, &len));
        ring_free(&ring, added);
    }
    EXPECT_EQ(dev.nb_popped, 5);
    end();
}

TEST(virtqueue, size_zero_is_refused)
{
    configure();
    vdev_queue_set_size(&dev.vdev, ring.vq, 0);
    expect_start_refused();
}

TEST(virtqueue, size_32768_is_refused)
{
    configure();
    vdev_queue_set_size(&dev.vdev, ring.vq, 32768);
    expect_start_refused();
}

TEST(virtqueue, the_largest_offered_size_works)
{
    begin_with(0, VQ_SIZE_MAX, VQ_SIZE_MAX);
    add_small(8);
    publish_and_kick();
    EXPECT_EQ(dev.nb_popped, 1);
    end();
}

TEST(virtqueue, a_ring_outside_memory_is_refused)
{
    configure();
    vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_AVAIL, false, 0x1000);
    expect_start_refused();
}

TEST(virtqueue, a_ring_that_wraps_around_is_refused)
{
    configure();
    vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_DESC, false, 0xfffffff0);
    vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_DESC, true, 0xffffffff);
    expect_start_refused();
}

TEST(virtqueue, a_misaligned_ring_is_refused)
{
    configure();
    vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_USED, false, (uint32_t)ring.used_gpa + 2);
    expect_start_refused();
}

TEST(virtqueue, a_ring_in_oddly_mapped_memory_is_refused)
{
    const uint64_t odd_gpa = GUEST_BASE_GPA + (1u << 30);
    uint64_t hva_gpa;

    configure();
    hva_gpa = guest_alloc(&guest, 8192, 4096);
    ASSERT_EQ(gm_add(&guest.gm, odd_gpa, 4096, (char *)guest_ptr(&guest, hva_gpa) + 2, NULL), 0);
    vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_USED, false, (uint32_t)odd_gpa);
    expect_start_refused();
}

/* --- chains that are none --- */

TEST(virtqueue, a_readable_buffer_after_a_writable_one_breaks_the_queue)
{
    begin();
    ring_add(&ring, (RingBuf[]){ { buf_gpa, 8, true }, { buf_gpa + 64, 8, false } }, 2);
    settle_broken();
    end();
}

TEST(virtqueue, a_buffer_of_no_length_breaks_the_queue)
{
    begin();
    add_small(0);
    settle_broken();
    end();
}

TEST(virtqueue, a_chain_of_more_than_4_gib_breaks_the_queue)
{
    uint64_t gpa = (uint64_t)1 << 40;

    configure();
    /* as much guest memory as that, of which nothing is ever touched */
    ASSERT_EQ(gm_add(&guest.gm, gpa, (uint64_t)1 << 32, guest.ram, NULL), 0);
    start();
    ring_add(&ring, (RingBuf[]){ { gpa, UINT32_MAX, false }, { gpa, 2, true } }, 2);
    settle_broken();
    end();
}

TEST(virtqueue, a_chain_of_too_many_pieces_breaks_the_queue)
{
    RingBuf bufs[VQ_ELEM_IOV_MAX + 1];

    begin_with(0, VQ_SIZE_MAX, VQ_SIZE_MAX);
    for (unsigned i = 0; i <= VQ_ELEM_IOV_MAX; i++) {
        bufs[i] = (RingBuf){ buf_gpa, 8, false };
    }
    ring_add(&ring, bufs, VQ_ELEM_IOV_MAX);
    publish_and_kick();
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.nb_out, VQ_ELEM_IOV_MAX);
    dev.nb_popped = 0;
    ring_add(&ring, bufs, VQ_ELEM_IOV_MAX + 1);
    settle_broken();
    end();
}

/* --- indirect tables --- */

/* One that has @nb buffers. */
static void add_table(unsigned nb)
{
    uint64_t table = guest_alloc(&guest, nb * sizeof(struct vring_desc), 16);
    RingBuf bufs[4 * QUEUE_SIZE];

    ASSERT_LE(nb, ARRAY_SIZE(bufs));
    for (unsigned i = 0; i < nb; i++) {
        bufs[i] = (RingBuf){ buf_gpa, 8, false };
    }
    ring_add_indirect(&ring, table, bufs, nb);
}

TEST(virtqueue, indirect_without_the_feature_breaks_the_queue)
{
    begin_with(0, QUEUE_SIZE, QUEUE_SIZE);
    add_table(1);
    settle_broken();
    end();
}

TEST(virtqueue, an_indirect_table_of_no_length_breaks_the_queue)
{
    begin();
    ring_add_indirect(&ring, buf_gpa, NULL, 0);
    settle_broken();
    end();
}

TEST(virtqueue, an_indirect_chain_as_long_as_the_queue_is_fine)
{
    begin();
    add_table(QUEUE_SIZE);
    publish_and_kick();
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.nb_out, QUEUE_SIZE);
    end();
}

TEST(virtqueue, an_indirect_chain_longer_than_the_queue_breaks_it)
{
    begin();
    add_table(QUEUE_SIZE + 1);
    settle_broken();
    end();
}

TEST(virtqueue, an_indirect_chain_may_be_longer_than_a_ring_smaller_than_offered)
{
    begin_with(FEATURE(VIRTIO_RING_F_INDIRECT_DESC), QUEUE_SIZE, QUEUE_SIZE / 4);
    add_table(QUEUE_SIZE);
    publish_and_kick();
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.nb_out, QUEUE_SIZE);
    dev.nb_popped = 0;
    add_table(QUEUE_SIZE + 1);
    settle_broken();
    end();
}

/* --- addresses --- */

TEST(virtqueue, a_buffer_may_straddle_two_regions)
{
    uint64_t seam = begin_with_seam();

    ring_add(&ring, (RingBuf[]){ { seam - 100, 300, false }, { buf_gpa, 8, true } }, 2);
    publish_and_kick();
    ASSERT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.nb_out, 2);
    EXPECT_EQ(dev.last.nb_in, 1);
    EXPECT_TRUE(dev.last_iov[0].iov_base == guest.ram + SEAM_UPPER + 4096 - 100);
    EXPECT_EQ(dev.last_iov[0].iov_len, 100);
    EXPECT_TRUE(dev.last_iov[1].iov_base == guest.ram + SEAM_LOWER);
    EXPECT_EQ(dev.last_iov[1].iov_len, 200);
    EXPECT_EQ(dev.last_iov[2].iov_len, 8);
    end();
}

static void expect_no_buffer(uint64_t gpa, uint32_t len)
{
    begin();
    ring_add(&ring, (RingBuf[]){ { gpa, len, false } }, 1);
    settle_broken();
    end();
}

TEST(virtqueue, a_buffer_in_a_hole_breaks_the_queue)
{
    expect_no_buffer(0x1000, 8);
}

TEST(virtqueue, a_buffer_that_runs_out_of_memory_breaks_the_queue)
{
    expect_no_buffer(GUEST_BASE_GPA + (4 << 20) - 8, 9);
}

TEST(virtqueue, a_buffer_that_wraps_around_breaks_the_queue)
{
    expect_no_buffer(UINT64_MAX - 7, 4096);
}

TEST(virtqueue, a_buffer_that_overlaps_the_ring_is_only_the_drivers_loss)
{
    begin();
    ring_add(&ring, (RingBuf[]){ { ring.used_gpa, 64, true } }, 1);
    ring_add(&ring, (RingBuf[]){ { ring.desc_gpa, 64, true } }, 1);
    publish_and_kick();
    EXPECT_EQ(dev.nb_popped, 2);
    EXPECT_FALSE(broken());
    end();
}

TEST(virtqueue, a_broken_queue_leaves_the_others_running)
{
    RingDriver other;

    configure();
    ring_init(&other, &guest, &dev.vdev, 1, QUEUE_SIZE);
    dev_enable_queue(&dev.vdev, 1);
    start();
    add_small(0);
    publish_and_kick();
    ASSERT_TRUE(broken());
    ring_add(&other, (RingBuf[]){ { buf_gpa, 8, true } }, 1);
    ring_publish(&other);
    ring_kick(&other);
    dev_settle();
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(ring_used_index(&other), 1);
    ring_finish(&other);
    end();
}

TEST(virtqueue, what_was_out_when_the_queue_broke_is_still_used)
{
    uint32_t head, len;

    begin();
    dev.hold = true;
    uint16_t added = add_small(8);

    publish_and_kick();
    add_small(0);
    publish_and_kick();
    ASSERT_TRUE(broken());
    ASSERT_EQ(dev.nb_held, 1);
    test_device_push(&dev, 8);
    dev_settle();
    ASSERT_TRUE(ring_next_used(&ring, &head, &len));
    EXPECT_EQ(head, added);
    EXPECT_EQ(dev.transport.queue_interrupts[0], 1);
    end();
}

/* --- used entries, interrupts, kicks --- */

TEST(virtqueue, used_entries_are_published_together_at_the_end_of_a_pass)
{
    uint32_t head, len;

    begin();
    dev.hold = true;
    for (unsigned i = 0; i < 3; i++) {
        add_small(8);
    }
    publish_and_kick();
    while (dev.nb_held > 0) {
        test_device_push(&dev, 4);
        EXPECT_FALSE(ring_next_used(&ring, &head, &len));
    }
    unsigned before = dev.transport.queue_interrupts[0];

    dev_settle();
    for (unsigned i = 0; i < 3; i++) {
        ASSERT_TRUE(ring_next_used(&ring, &head, &len));
        EXPECT_EQ(len, 4);
    }
    EXPECT_EQ(dev.transport.queue_interrupts[0] - before, 1);
    EXPECT_EQ(ring.vq->stats.batches, 1);
    end();
}

TEST(virtqueue, a_driver_need_not_wait_for_the_end_of_a_long_batch)
{
    begin();
    dev.hold = true;
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        add_small(8);
    }
    publish_and_kick();
    for (unsigned i = 0; i < VQ_PUBLISH_MAX; i++) {
        EXPECT_EQ(ring_used_index(&ring), 0);
        test_device_push(&dev, 4);
    }
    EXPECT_EQ(ring_used_index(&ring), VQ_PUBLISH_MAX);
    EXPECT_EQ(dev.transport.queue_interrupts[0], 0);
    end();
}

TEST(virtqueue, interrupts_come_when_they_are_wanted)
{
    uint64_t variants[] = { 0, FEATURE(VIRTIO_RING_F_EVENT_IDX) };

    for (unsigned v = 0; v < ARRAY_SIZE(variants); v++) {
        begin_with(variants[v], QUEUE_SIZE, QUEUE_SIZE);
        for (unsigned i = 0; i < 200; i++) {
            ring_want_interrupt(&ring, true);
            ASSERT_EQ(interrupts_for(1 + i % 5), 1);
            ring_want_interrupt(&ring, false);
            ASSERT_EQ(interrupts_for(1 + i % 7), 0);
        }
        EXPECT_EQ(ring.vq->stats.notifications, 200);
        end();
    }
}

TEST(virtqueue, one_interrupt_is_for_all_until_it_is_asked_for_again)
{
    begin_with(FEATURE(VIRTIO_RING_F_EVENT_IDX), QUEUE_SIZE, QUEUE_SIZE);
    ring_want_interrupt(&ring, true);
    EXPECT_EQ(interrupts_for(1), 1);
    for (unsigned i = 0; i < QUEUE_SIZE / 2; i++) {
        EXPECT_EQ(interrupts_for(1), 0);
    }
    ring_want_interrupt(&ring, true);
    EXPECT_EQ(interrupts_for(QUEUE_SIZE), 1);
    end();
}

TEST(virtqueue, an_interrupt_goes_to_the_eventfd_when_there_is_one)
{
    EventNotifier irq;

    begin();
    ASSERT_EQ(event_notifier_open(&irq, NULL), 0);
    atomic_store(&ring.vq->interrupt.fd, irq.fd);
    EXPECT_EQ(interrupts_for(3), 0);
    EXPECT_TRUE(event_notifier_test_and_clear(&irq));
    EXPECT_EQ(ring.vq->stats.notifications, 1);
    atomic_store(&ring.vq->interrupt.fd, -1);
    event_notifier_close(&irq);
    end();
}

TEST(virtqueue, an_idle_queue_wants_each_kick)
{
    uint64_t variants[] = { 0, FEATURE(VIRTIO_RING_F_EVENT_IDX) };
    uint32_t head, len;

    for (unsigned v = 0; v < ARRAY_SIZE(variants); v++) {
        begin_with(variants[v], QUEUE_SIZE, QUEUE_SIZE);
        for (unsigned i = 0; i < 100; i++) {
            add_small(8);
            ring_publish(&ring);
            ASSERT_TRUE(ring_wants_kick(&ring));
            /* not served yet: with the event index another one needs no kick */
            add_small(8);
            ring_publish(&ring);
            ASSERT_EQ(ring_wants_kick(&ring), variants[v] == 0);
            ring_kick(&ring);
            dev_settle();
            while (ring_next_used(&ring, &head, &len)) {
                ring_free(&ring, (uint16_t)head);
            }
        }
        EXPECT_EQ(dev.nb_popped, 200);
        end();
    }
}

TEST(virtqueue, a_queue_with_requests_in_flight_wants_kicks_too)
{
    begin_with(FEATURE(VIRTIO_RING_F_EVENT_IDX), QUEUE_SIZE, QUEUE_SIZE);
    dev.hold = true;
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        add_small(8);
        ring_publish(&ring);
        ASSERT_TRUE(ring_wants_kick(&ring));
        ring_kick(&ring);
        dev_settle();
    }
    EXPECT_EQ(dev.nb_held, QUEUE_SIZE);
    end();
}

TEST(virtqueue, disabled_notifications_ask_for_no_kick)
{
    uint64_t variants[] = { 0, FEATURE(VIRTIO_RING_F_EVENT_IDX) };

    for (unsigned v = 0; v < ARRAY_SIZE(variants); v++) {
        begin_with(variants[v], QUEUE_SIZE, QUEUE_SIZE);
        vq_disable_notifications(ring.vq);
        for (unsigned i = 0; i < QUEUE_SIZE; i++) {
            add_small(8);
            ring_publish(&ring);
            EXPECT_FALSE(ring_wants_kick(&ring));
        }
        EXPECT_TRUE(vq_enable_notifications(ring.vq)); /* something came in between */
        end();
    }
}

TEST(virtqueue, copies_cross_the_pieces_of_an_element)
{
    uint8_t buf[64];
    uint8_t *ram;

    begin();
    dev.hold = true;
    ram = guest_ptr(&guest, buf_gpa);
    for (unsigned i = 0; i < 64; i++) {
        ram[i] = (uint8_t)i;
    }
    ring_add(&ring,
             (RingBuf[]){ { buf_gpa, 3, false },
                          { buf_gpa + 10, 5, false },
                          { buf_gpa + 100, 2, true },
                          { buf_gpa + 200, 4, true } },
             4);
    publish_and_kick();
    ASSERT_EQ(dev.nb_held, 1);
    EXPECT_EQ(vq_elem_copy_out(dev.held[0], 1, buf, 64), 7);
    EXPECT_EQ(memcmp(buf, (uint8_t[]){ 1, 2, 10, 11, 12, 13, 14 }, 7), 0);
    EXPECT_EQ(vq_elem_copy_out(dev.held[0], 8, buf, 1), 0);
    EXPECT_EQ(vq_elem_copy_in(dev.held[0], 1, (uint8_t[]){ 91, 92, 93, 94 }, 4), 4);
    EXPECT_EQ(ram[101], 91);
    EXPECT_EQ(ram[102], 0);
    EXPECT_EQ(ram[200], 92);
    EXPECT_EQ(ram[202], 94);
    EXPECT_EQ(vq_elem_copy_in(dev.held[0], 4, buf, 64), 2);
    end();
}

/* Its owner ends it: nobody is told anything, and nothing that may be zeroes is taken for what the
 * driver said. */
TEST(virtqueue, nothing_goes_on_after_memory_was_lost)
{
    _Atomic bool lost = false;
    uint32_t head, len, header;

    begin();
    dev.hold = true;
    guest.gm.lost = &lost;
    ring_add(&ring, (RingBuf[]){ { buf_gpa, sizeof(header), false }, { buf_gpa, 8, true } }, 2);
    add_small(8);
    publish_and_kick();
    ASSERT_EQ(dev.nb_held, 2);
    EXPECT_EQ(vq_elem_copy_out(dev.held[0], 0, &header, sizeof(header)), sizeof(header));
    EXPECT_EQ(header, 0);
    atomic_store(&lost, true);
    EXPECT_EQ(vq_elem_copy_out(dev.held[0], 0, &header, sizeof(header)), sizeof(header));
    EXPECT_EQ(header, UINT32_MAX);
    test_device_push(&dev, 8);
    dev_settle();
    EXPECT_EQ(dev.transport.queue_interrupts[0], 0);
    add_small(8);
    publish_and_kick();
    EXPECT_EQ(dev.nb_popped, 2);
    test_device_push(&dev, 8);
    stop_queue();
    EXPECT_FALSE(ring_next_used(&ring, &head, &len));
    EXPECT_EQ(dev.transport.queue_interrupts[0], 0);
    EXPECT_FALSE(broken());
    end();
}

TEST_MAIN()
