/*
 * test-vhost-user.c - the tests' own vhost-user client against QEMU's storage daemon: is it right?
 */
#include <fcntl.h>
#include <sys/eventfd.h>

#include "vmm/tests/vhost-user-fixture.h"

/* Up to the limits of write-zeroes: what every server knows. */
#define CONFIG_BYTES offsetof(struct virtio_blk_config, max_secure_erase_sectors)

/* --- what any server does --- */

static void keeps_what_was_written(ServerProgram program)
{
    fixture_start(program, NULL, NULL);
    fixture_connect(NULL);
    for (unsigned i = 0; i < 64; i++) {
        fixture_write(i % NB_QUEUES, i, i + 1);
    }
    ASSERT_EQ(vfe_do_block(&client, 0, &slot, VIRTIO_BLK_T_FLUSH, 0, 0), VIRTIO_BLK_S_OK);
    for (unsigned i = 0; i < 64; i++) {
        fixture_expect((i + 1) % NB_QUEUES, i, i + 1);
    }
    AUTO_FD int fd = open(server.image_path, O_RDONLY | O_CLOEXEC);
    uint8_t block[BLOCK_BYTES];

    ASSERT_EQ(pread(fd, block, sizeof(block), 63 * BLOCK_BYTES), BLOCK_BYTES);
    EXPECT_TRUE(block_is(block, 64));
    EXPECT_EQ(vfe_client_stop(&client), 0);
    fixture_finish();
}

static void has_a_configuration(ServerProgram program)
{
    struct virtio_blk_config config;

    fixture_start(program, NULL, NULL);
    fixture_connect(NULL);
    ASSERT_TRUE(vfe_has_protocol(&client, VHOST_USER_PROTOCOL_F_CONFIG));
    ASSERT_EQ(vfe_get_config(&client, 0, &config, CONFIG_BYTES), 0);
    EXPECT_EQ(le64toh(config.capacity), DISK_BYTES / 512);
    EXPECT_EQ(le16toh(config.num_queues), NB_QUEUES);
    fixture_finish();
}

/* Data that lies in two regions, and rings in one of many. */
static void follows_addresses_through_regions(ServerProgram program)
{
    VfeClientParams params = { .nb_regions = VHOST_USER_TABLE_REGIONS_MAX };

    fixture_start(program, NULL, NULL);
    fixture_connect(&params);
    /* 4 MiB in 8 pieces: wherever the slot is, a buffer across the middle one straddles two */
    slot.data_gpa = client.memory.regions[4].gpa - BLOCK_BYTES / 2;
    for (unsigned i = 0; i < 8; i++) {
        fixture_write(i % NB_QUEUES, i, i + 100);
    }
    for (unsigned i = 0; i < 8; i++) {
        fixture_expect(i % NB_QUEUES, i, i + 100);
    }
    fixture_finish();
}

/* Offer @depth requests at once on each queue, direct and indirect, and take them as they come. */
static void serves_many_at_once(ServerProgram program)
{
    enum { DEPTH = 16, NB_BATCHES = 40 };
    VfeSlot slots[NB_QUEUES][DEPTH];
    uint32_t head, len;

    fixture_start(program, NULL, NULL);
    fixture_connect(NULL);
    for (unsigned q = 0; q < NB_QUEUES; q++) {
        for (unsigned i = 0; i < DEPTH; i++) {
            vfe_slot_init(&slots[q][i], &client.guest, BLOCK_BYTES);
        }
    }
    for (unsigned batch = 0; batch < NB_BATCHES; batch++) {
        bool writes = batch % 2 == 0;

        for (unsigned q = 0; q < NB_QUEUES; q++) {
            for (unsigned i = 0; i < DEPTH; i++) {
                VfeSlot *s = &slots[q][i];

                fill_block(vfe_slot_data(s, &client.guest), writes ? batch * 100 + i : 0);
                vfe_slot_add(s, &client.queues[q].ring, writes ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN,
                             (q * DEPTH + i) * 8, BLOCK_BYTES, i % 2);
            }
            vfe_queue_submit(&client.queues[q]);
        }
        for (unsigned q = 0; q < NB_QUEUES; q++) {
            RingDriver *ring = &client.queues[q].ring;
            bool seen[QUEUE_SIZE] = { false };

            for (unsigned i = 0; i < DEPTH; i++) {
                ASSERT_EQ(vfe_queue_await(&client.queues[q], VFE_ANSWER_MS), 0);
                ASSERT_TRUE(ring_next_used(ring, &head, &len));
                ASSERT_LT(head, QUEUE_SIZE);
                ASSERT_FALSE(seen[head]);
                seen[head] = true;
                ring_free(ring, (uint16_t)head);
            }
            for (unsigned i = 0; i < DEPTH; i++) {
                VfeSlot *s = &slots[q][i];

                ASSERT_TRUE(seen[s->head]);
                ASSERT_EQ(vfe_slot_status(s, &client.guest), VIRTIO_BLK_S_OK);
                ASSERT_TRUE(block_is(vfe_slot_data(s, &client.guest),
                                     (writes ? batch : batch - 1) * 100 + i));
            }
        }
    }
    fixture_finish();
}

/* GET_VRING_BASE, offers while nobody looks, and a start from where it was. */
static void stops_and_goes_on(ServerProgram program)
{
    RingDriver *ring = &client.queues[1].ring;
    VfeSlot late;
    uint32_t base, head, len;

    fixture_start(program, NULL, NULL);
    fixture_connect(NULL);
    fixture_write(1, 7, 70);
    fixture_write(1, 8, 80);
    ASSERT_EQ(vfe_get_vring_base(&client, 1, &base), 0);
    EXPECT_EQ(base, 2);
    vfe_slot_init(&late, &client.guest, BLOCK_BYTES);
    vfe_slot_add(&late, ring, VIRTIO_BLK_T_IN, 7 * 8, BLOCK_BYTES, false);
    vfe_queue_submit(&client.queues[1]);
    fixture_expect(0, 8, 80); /* another queue goes on */
    EXPECT_EQ(ring_used_index(ring), 2);
    ASSERT_EQ(vfe_start_queue(&client, 1, base), 0);
    eventfd_write(client.queues[1].kick_fd, 1);
    ASSERT_EQ(vfe_queue_await(&client.queues[1], VFE_ANSWER_MS), 0);
    ASSERT_TRUE(ring_next_used(ring, &head, &len));
    EXPECT_EQ(head, late.head);
    EXPECT_TRUE(block_is(vfe_slot_data(&late, &client.guest), 70));
    ring_free(ring, (uint16_t)head);
    fixture_write(1, 9, 90);
    fixture_finish();
}

static void serves_one_client_after_the_other(ServerProgram program)
{
    fixture_start(program, NULL, NULL);
    for (unsigned i = 0; i < 5; i++) {
        fixture_connect(NULL);
        for (unsigned j = 0; j < i; j++) {
            fixture_expect(j % NB_QUEUES, j, j + 1);
        }
        fixture_write(i % NB_QUEUES, i, i + 1);
        if (i < 4) {
            vfe_client_finish(&client);
        }
    }
    fixture_finish();
}

#define ON_QEMU(sentence)                                                                          \
    TEST(vhost_user_qemu, sentence)                                                                \
    {                                                                                              \
        sentence(SERVER_QEMU);                                                                     \
    }

ON_QEMU(keeps_what_was_written)
ON_QEMU(has_a_configuration)
ON_QEMU(follows_addresses_through_regions)
ON_QEMU(serves_many_at_once)
ON_QEMU(stops_and_goes_on)
ON_QEMU(serves_one_client_after_the_other)

TEST_MAIN()
