/*
 * test-vring-split.c - the split ring against honest and hostile drivers
 */
#include <linux/virtio_ring.h>
#include <pthread.h>

#include "io/base/test.h"
#include "virtio/tests/test-device.h"

#define QUEUE_SIZE 16

static TestDevice dev;
static Guest guest;
static RingDriver ring;
static uint64_t buf_gpa; /* 64 KiB */

static void configure_with(uint64_t features, unsigned max_size, uint16_t size)
{
    test_device_init(&dev, &guest, 2, max_size);
    ASSERT_TRUE(dev_negotiate(&dev.vdev, features | FEATURE(VIRTIO_F_VERSION_1)));
    ring_init(&ring, &guest, &dev.vdev, 0, size);
    buf_gpa = guest_alloc(&guest, 65536, 4096);
}

/* Ready to start: the map of memory may still be changed. */
static void configure(void)
{
    configure_with(FEATURE(VIRTIO_RING_F_INDIRECT_DESC), QUEUE_SIZE, QUEUE_SIZE);
}

static void start(void)
{
    dev_enable_queue(&dev.vdev, 0);
    dev_driver_ok(&dev.vdev);
    dev_settle();
}

static void begin_with(uint64_t features, unsigned max_size, uint16_t size)
{
    configure_with(features, max_size, size);
    start();
}

static void begin(void)
{
    begin_with(FEATURE(VIRTIO_RING_F_INDIRECT_DESC), QUEUE_SIZE, QUEUE_SIZE);
}

static void end(void)
{
    ring_finish(&ring);
    test_device_finish(&dev, &guest);
}

static bool broken(void)
{
    return vdev_status(&dev.vdev) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

static void publish_and_kick(void)
{
    ring_publish(&ring);
    ring_kick(&ring);
    dev_settle();
}

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

/* The device took nothing, said so, and goes on once it has been reset. */
static void expect_broken_until_reset(void)
{
    EXPECT_TRUE(broken());
    EXPECT_EQ(dev.nb_popped, 0);
    EXPECT_EQ(dev.transport.config_interrupts, 1);
    EXPECT_TRUE(dev.vdev.queues[0].broken_reason[0] != '\0');
    offer_and_kick(0);
    EXPECT_EQ(dev.nb_popped, 0);

    ring_finish(&ring);
    ASSERT_TRUE(dev_negotiate(&dev.vdev, FEATURE(VIRTIO_F_VERSION_1)));
    ring_init(&ring, &guest, &dev.vdev, 0, QUEUE_SIZE);
    dev_enable_queue(&dev.vdev, 0);
    dev_driver_ok(&dev.vdev);
    ring_add(&ring, (RingBuf[]){ { buf_gpa, 10, true } }, 1);
    publish_and_kick();
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_FALSE(broken());
}

/* --- honest drivers --- */

TEST(vring_split, a_chain_arrives_with_its_parts_in_order)
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

TEST(vring_split, a_chain_may_be_all_readable_or_all_writable)
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

TEST(vring_split, an_indirect_chain_is_the_same_as_a_direct_one)
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

TEST(vring_split, a_chain_may_be_as_long_as_the_queue)
{
    begin();
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        desc(i, 8, i + 1 < QUEUE_SIZE ? VRING_DESC_F_NEXT : 0, (uint16_t)(i + 1));
    }
    offer_and_kick(0);
    ASSERT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.nb_out, QUEUE_SIZE);
    EXPECT_EQ(dev.last.out_bytes, QUEUE_SIZE * 8);
    end();
}

TEST(vring_split, a_large_chain_leaves_its_neighbours_alone)
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

TEST(vring_split, completion_may_be_in_any_order)
{
    uint32_t head, len;

    begin();
    dev.hold = true;
    uint16_t first = ring_add(&ring, (RingBuf[]){ { buf_gpa, 8, true } }, 1);
    uint16_t second = ring_add(&ring, (RingBuf[]){ { buf_gpa, 8, true } }, 1);

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
    offer_and_kick(first);
    EXPECT_EQ(dev.nb_popped, 3);
    EXPECT_FALSE(broken());
    end();
}

TEST(vring_split, a_call_of_the_handler_is_bounded_and_the_rest_follows)
{
    begin_with(0, 256, 256);
    for (unsigned i = 0; i < 256; i++) {
        ring_add(&ring, (RingBuf[]){ { buf_gpa, 8, true } }, 1);
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

/* --- going on where another device left off --- */

static void stop_entry(void *opaque)
{
    assert_in_coroutine();
    vq_co_stop(opaque);
}

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
    aio_co_run_sync(aio_main(), stop_entry, ring.vq);
    EXPECT_EQ(vq_base(ring.vq).avail, 1);
    EXPECT_EQ(vq_base(ring.vq).used, 1);
    end();
}

TEST(vring_split, a_reset_forgets_the_base)
{
    configure();
    vq_set_base(ring.vq, (VqBase){ .avail = 7 });
    ring_finish(&ring);
    ASSERT_TRUE(dev_negotiate(&dev.vdev, FEATURE(VIRTIO_F_VERSION_1)));
    ring_init(&ring, &guest, &dev.vdev, 0, QUEUE_SIZE);
    start();
    ring_add(&ring, (RingBuf[]){ { buf_gpa, 8, true } }, 1);
    publish_and_kick();
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(ring_used_index(&ring), 1);
    end();
}

/* --- sizes and places of the ring --- */

static void expect_start_refused(void)
{
    dev_enable_queue(&dev.vdev, 0);
    dev_driver_ok(&dev.vdev);
    dev_settle();
    EXPECT_TRUE(broken());
    EXPECT_FALSE(ring.vq->started);
    EXPECT_EQ(dev.transport.config_interrupts, 1);
    end();
}

TEST(vring_split, a_queue_of_one_works)
{
    uint32_t head, len;

    begin_with(0, QUEUE_SIZE, 1);
    for (unsigned i = 0; i < 5; i++) {
        uint16_t added = ring_add(&ring, (RingBuf[]){ { buf_gpa, 8, true } }, 1);

        publish_and_kick();
        ASSERT_TRUE(ring_next_used(&ring, &head, &len));
        ring_free(&ring, added);
    }
    EXPECT_EQ(dev.nb_popped, 5);
    end();
}

TEST(vring_split, size_zero_is_refused)
{
    configure();
    vdev_queue_set_size(&dev.vdev, ring.vq, 0);
    expect_start_refused();
}

TEST(vring_split, size_32768_is_refused)
{
    configure();
    vdev_queue_set_size(&dev.vdev, ring.vq, 32768);
    expect_start_refused();
}

TEST(vring_split, a_size_that_is_no_power_of_two_is_refused)
{
    configure();
    vdev_queue_set_size(&dev.vdev, ring.vq, 12);
    expect_start_refused();
}

TEST(vring_split, the_largest_offered_size_works)
{
    begin_with(0, VQ_SIZE_MAX, VQ_SIZE_MAX);
    ring_add(&ring, (RingBuf[]){ { buf_gpa, 8, true } }, 1);
    publish_and_kick();
    EXPECT_EQ(dev.nb_popped, 1);
    end();
}

TEST(vring_split, a_ring_outside_memory_is_refused)
{
    configure();
    vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_AVAIL, false, 0x1000);
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

TEST(vring_split, a_ring_that_wraps_around_is_refused)
{
    configure();
    vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_DESC, false, 0xfffffff0);
    vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_DESC, true, 0xffffffff);
    expect_start_refused();
}

TEST(vring_split, a_misaligned_ring_is_refused)
{
    configure();
    vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_USED, false, (uint32_t)ring.used_gpa + 2);
    expect_start_refused();
}

TEST(vring_split, a_ring_in_oddly_mapped_memory_is_refused)
{
    const uint64_t odd_gpa = GUEST_BASE_GPA + (1u << 30);
    uint64_t hva_gpa;

    configure();
    hva_gpa = guest_alloc(&guest, 8192, 4096);
    ASSERT_EQ(gm_add(&guest.gm, odd_gpa, 4096, (char *)guest_ptr(&guest, hva_gpa) + 2, NULL), 0);
    vdev_queue_set_address(&dev.vdev, ring.vq, VQ_RING_USED, false, (uint32_t)odd_gpa);
    expect_start_refused();
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

TEST(vring_split, a_full_ring_at_once_is_fine)
{
    begin();
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        desc(i, 8, 0, 0);
        ring_offer(&ring, (uint16_t)i);
    }
    publish_and_kick();
    EXPECT_EQ(dev.nb_popped, QUEUE_SIZE);
    EXPECT_FALSE(broken());
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

TEST(vring_split, a_readable_buffer_after_a_writable_one_breaks_the_queue)
{
    begin();
    desc(0, 8, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1);
    desc(1, 8, 0, 0);
    offer_and_kick(0);
    expect_broken_until_reset();
    end();
}

TEST(vring_split, a_buffer_of_no_length_breaks_the_queue)
{
    begin();
    desc(0, 0, VRING_DESC_F_WRITE, 0);
    offer_and_kick(0);
    expect_broken_until_reset();
    end();
}

TEST(vring_split, a_chain_of_more_than_4_gib_breaks_the_queue)
{
    uint64_t gpa = (uint64_t)1 << 40;

    configure();
    /* as much guest memory as that, of which nothing is ever touched */
    ASSERT_EQ(gm_add(&guest.gm, gpa, (uint64_t)1 << 32, guest.ram, NULL), 0);
    start();
    ring_set_desc(&ring, 0, gpa, UINT32_MAX, VRING_DESC_F_NEXT, 1);
    ring_set_desc(&ring, 1, gpa, 2, VRING_DESC_F_WRITE, 0);
    offer_and_kick(0);
    expect_broken_until_reset();
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

static void chain_in_table(uint64_t table_gpa, unsigned nb)
{
    struct vring_desc *t = guest_ptr(&guest, table_gpa);

    for (unsigned i = 0; i < nb; i++) {
        ring_write_desc(&t[i], buf_gpa, 8, i + 1 < nb ? VRING_DESC_F_NEXT : 0, (uint16_t)(i + 1));
    }
}

TEST(vring_split, indirect_without_the_feature_breaks_the_queue)
{
    begin_with(0, QUEUE_SIZE, QUEUE_SIZE);
    indirect(16, 0);
    offer_and_kick(0);
    expect_broken_until_reset();
    end();
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

TEST(vring_split, an_indirect_table_of_no_length_breaks_the_queue)
{
    begin();
    indirect(0, 0);
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

TEST(vring_split, an_indirect_chain_may_be_longer_than_a_ring_smaller_than_offered)
{
    begin_with(FEATURE(VIRTIO_RING_F_INDIRECT_DESC), QUEUE_SIZE, QUEUE_SIZE / 4);
    uint64_t table = indirect((QUEUE_SIZE + 1) * 16, 0);

    chain_in_table(table, QUEUE_SIZE);
    offer_and_kick(0);
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.nb_out, QUEUE_SIZE);
    dev.nb_popped = 0;
    chain_in_table(table, QUEUE_SIZE + 1);
    offer_and_kick(0);
    expect_broken_until_reset();
    end();
}

TEST(vring_split, an_indirect_chain_longer_than_the_queue_breaks_it)
{
    begin();
    chain_in_table(indirect((QUEUE_SIZE + 1) * 16, 0), QUEUE_SIZE + 1);
    offer_and_kick(0);
    expect_broken_until_reset();
    end();
}

TEST(vring_split, an_indirect_chain_as_long_as_the_queue_is_fine)
{
    begin();
    chain_in_table(indirect(QUEUE_SIZE * 16, 0), QUEUE_SIZE);
    offer_and_kick(0);
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.nb_out, QUEUE_SIZE);
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

TEST(vring_split, an_indirect_table_outside_memory_breaks_the_queue)
{
    begin();
    ring_set_desc(&ring, 0, 0x1000, 32, VRING_DESC_F_INDIRECT, 0);
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

#define SEAM_UPPER (3 << 20) /* where in the RAM the two regions are */
#define SEAM_LOWER (2 << 20)

/* Start with two regions side by side in guest memory that are apart in ours; where they meet. */
static uint64_t begin_with_seam(void)
{
    uint64_t gpa = GUEST_BASE_GPA + ((uint64_t)1 << 32);

    configure();
    ASSERT_EQ(gm_add(&guest.gm, gpa, 4096, guest.ram + SEAM_UPPER, NULL), 0);
    ASSERT_EQ(gm_add(&guest.gm, gpa + 4096, 4096, guest.ram + SEAM_LOWER, NULL), 0);
    start();
    return gpa + 4096;
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

/* --- addresses --- */

TEST(vring_split, a_buffer_may_straddle_two_regions)
{
    uint64_t seam = begin_with_seam();

    ring_set_desc(&ring, 0, seam - 100, 300, VRING_DESC_F_NEXT, 1);
    ring_set_desc(&ring, 1, buf_gpa, 8, VRING_DESC_F_WRITE, 0);
    offer_and_kick(0);
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

TEST(vring_split, a_buffer_in_a_hole_breaks_the_queue)
{
    begin();
    ring_set_desc(&ring, 0, 0x1000, 8, 0, 0);
    offer_and_kick(0);
    expect_broken_until_reset();
    end();
}

TEST(vring_split, a_buffer_that_runs_out_of_memory_breaks_the_queue)
{
    begin();
    ring_set_desc(&ring, 0, GUEST_BASE_GPA + guest.ram_bytes - 8, 9, 0, 0);
    offer_and_kick(0);
    expect_broken_until_reset();
    end();
}

TEST(vring_split, a_buffer_that_wraps_around_breaks_the_queue)
{
    begin();
    ring_set_desc(&ring, 0, UINT64_MAX - 7, 4096, 0, 0);
    offer_and_kick(0);
    expect_broken_until_reset();
    end();
}

TEST(vring_split, a_buffer_that_overlaps_the_ring_is_only_the_drivers_loss)
{
    begin();
    ring_set_desc(&ring, 0, ring.used_gpa, 64, VRING_DESC_F_WRITE, 0);
    offer_and_kick(0);
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_FALSE(broken());
    end();
}

TEST(vring_split, a_chain_of_too_many_pieces_breaks_the_queue)
{
    begin_with(0, VQ_SIZE_MAX, VQ_SIZE_MAX);
    for (unsigned i = 0; i <= VQ_ELEM_IOV_MAX; i++) {
        ring_set_desc(&ring, i, buf_gpa, 8, i < VQ_ELEM_IOV_MAX ? VRING_DESC_F_NEXT : 0,
                      (uint16_t)(i + 1));
    }
    offer_and_kick(1); /* one piece fewer */
    EXPECT_EQ(dev.nb_popped, 1);
    EXPECT_EQ(dev.last.nb_out, VQ_ELEM_IOV_MAX);
    dev.nb_popped = 0;
    offer_and_kick(0);
    EXPECT_TRUE(broken());
    EXPECT_EQ(dev.nb_popped, 0);
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

TEST(vring_split, a_broken_queue_leaves_the_others_running)
{
    RingDriver other;

    test_device_init(&dev, &guest, 2, QUEUE_SIZE);
    ASSERT_TRUE(dev_negotiate(&dev.vdev, FEATURE(VIRTIO_F_VERSION_1)));
    ring_init(&ring, &guest, &dev.vdev, 0, QUEUE_SIZE);
    ring_init(&other, &guest, &dev.vdev, 1, QUEUE_SIZE);
    buf_gpa = guest_alloc(&guest, 65536, 4096);
    dev_enable_queue(&dev.vdev, 0);
    dev_enable_queue(&dev.vdev, 1);
    dev_driver_ok(&dev.vdev);
    offer_and_kick(QUEUE_SIZE);
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

TEST(vring_split, what_was_out_when_the_queue_broke_is_still_used)
{
    uint32_t head, len;

    begin();
    dev.hold = true;
    desc(4, 8, VRING_DESC_F_WRITE, 0);
    offer_and_kick(4);
    offer_and_kick(QUEUE_SIZE);
    ASSERT_TRUE(broken());
    ASSERT_EQ(dev.nb_held, 1);
    test_device_push(&dev, 8);
    dev_settle();
    ASSERT_TRUE(ring_next_used(&ring, &head, &len));
    EXPECT_EQ(head, 4);
    EXPECT_EQ(dev.transport.queue_interrupts[0], 1);
    end();
}

/* --- the used ring --- */

TEST(vring_split, used_entries_are_published_together_at_the_end_of_a_pass)
{
    uint32_t head, len;

    begin();
    dev.hold = true;
    for (unsigned i = 0; i < 3; i++) {
        ring_add(&ring, (RingBuf[]){ { buf_gpa, 8, true } }, 1);
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

TEST(vring_split, a_driver_need_not_wait_for_the_end_of_a_long_batch)
{
    begin();
    dev.hold = true;
    for (unsigned i = 0; i < QUEUE_SIZE; i++) {
        ring_add(&ring, (RingBuf[]){ { buf_gpa, 8, true } }, 1);
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

/* Complete @nb requests in one pass; the number of interrupts that made. */
static unsigned interrupts_for(unsigned nb)
{
    unsigned before = dev.transport.queue_interrupts[0];
    uint32_t head, len;

    dev.hold = true;
    for (unsigned i = 0; i < nb; i++) {
        ring_add(&ring, (RingBuf[]){ { buf_gpa, 8, true } }, 1);
    }
    publish_and_kick();
    while (dev.nb_held > 0) {
        test_device_push(&dev, 4);
    }
    dev_settle();
    while (ring_next_used(&ring, &head, &len)) {
        ring_free(&ring, (uint16_t)head);
    }
    return dev.transport.queue_interrupts[0] - before;
}

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

TEST(vring_split, an_interrupt_goes_to_the_eventfd_when_there_is_one)
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

TEST(vring_split, disabled_notifications_ask_for_no_kick)
{
    uint64_t variants[] = { 0, FEATURE(VIRTIO_RING_F_EVENT_IDX) };

    for (unsigned v = 0; v < ARRAY_SIZE(variants); v++) {
        begin_with(variants[v], QUEUE_SIZE, QUEUE_SIZE);
        vq_disable_notifications(ring.vq);
        for (unsigned i = 0; i < QUEUE_SIZE; i++) {
            ring_add(&ring, (RingBuf[]){ { buf_gpa, 8, true } }, 1);
            ring_publish(&ring);
            EXPECT_FALSE(ring_wants_kick(&ring));
        }
        EXPECT_TRUE(vq_enable_notifications(ring.vq)); /* something came in between */
        end();
    }
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

TEST(vring_split, copies_cross_the_pieces_of_an_element)
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

TEST_MAIN()
