/*
 * test-guest-memory.c - the map of guest memory
 */
#include "io/base/test.h"
#include "virtio/guest-memory.h"

static uint8_t memory[4][4096];

/* [0x1000, 0x2000), [0x2000, 0x3000) next to it, a hole, [0x10000, 0x11000), and the last page of
 * the address space; added out of order. */
static void map_init(GuestMemory *gm)
{
    gm_init(gm);
    ASSERT_EQ(gm_add(gm, 0x10000, 0x1000, memory[2], NULL), 0);
    ASSERT_EQ(gm_add(gm, 0x1000, 0x1000, memory[0], NULL), 0);
    ASSERT_EQ(gm_add(gm, UINT64_MAX - 0xfff, 0x1000, memory[3], NULL), 0);
    ASSERT_EQ(gm_add(gm, 0x2000, 0x1000, memory[1], NULL), 0);
}

TEST(guest_memory, regions_are_kept_in_order)
{
    GuestMemory gm;

    map_init(&gm);
    ASSERT_EQ(gm.nb_regions, 4);
    for (unsigned i = 1; i < gm.nb_regions; i++) {
        EXPECT_LT(gm.regions[i - 1].gpa, gm.regions[i].gpa);
    }
    gm_finish(&gm);
}

TEST(guest_memory, every_edge_of_a_region_translates_to_its_own_byte)
{
    GuestMemory gm;

    map_init(&gm);
    EXPECT_TRUE(gm_translate(&gm, GPA(0xfff), 1) == NULL);
    EXPECT_TRUE(gm_translate(&gm, GPA(0x1000), 1) == &memory[0][0]);
    EXPECT_TRUE(gm_translate(&gm, GPA(0x1fff), 1) == &memory[0][0xfff]);
    EXPECT_TRUE(gm_translate(&gm, GPA(0x2000), 0x1000) == &memory[1][0]);
    EXPECT_TRUE(gm_translate(&gm, GPA(0x3000), 1) == NULL);
    EXPECT_TRUE(gm_translate(&gm, GPA(0x10800), 0x800) == &memory[2][0x800]);
    EXPECT_TRUE(gm_translate(&gm, GPA(0x10800), 0x801) == NULL);
    EXPECT_TRUE(gm_translate(&gm, GPA(UINT64_MAX), 1) == &memory[3][0xfff]);
    gm_finish(&gm);
}

TEST(guest_memory, translate_refuses_what_straddles_two_regions)
{
    GuestMemory gm;

    map_init(&gm);
    EXPECT_TRUE(gm_translate(&gm, GPA(0x1fff), 2) == NULL);
    gm_finish(&gm);
}

TEST(guest_memory, lengths_that_wrap_around_are_refused)
{
    GuestMemory gm;
    struct iovec iov[4];

    map_init(&gm);
    EXPECT_TRUE(gm_translate(&gm, GPA(UINT64_MAX), 2) == NULL);
    EXPECT_TRUE(gm_translate(&gm, GPA(0x1000), UINT64_MAX) == NULL);
    EXPECT_EQ(gm_map(&gm, GPA(UINT64_MAX), 2, iov, 4), -EFAULT);
    EXPECT_EQ(gm_map(&gm, GPA(0x1000), UINT64_MAX, iov, 4), -EFAULT);
    gm_finish(&gm);
}

/* With a region at 0 a range that wraps would otherwise find memory on both sides. */
TEST(guest_memory, map_does_not_continue_at_address_zero)
{
    GuestMemory gm;
    struct iovec iov[4];

    map_init(&gm);
    ASSERT_EQ(gm_add(&gm, 0, 0x1000, memory[0], NULL), 0);
    EXPECT_EQ(gm_map(&gm, GPA(UINT64_MAX - 0xf), 0x20, iov, 4), -EFAULT);
    gm_finish(&gm);
}

TEST(guest_memory, map_gives_a_piece_for_each_region)
{
    GuestMemory gm;
    struct iovec iov[4];

    map_init(&gm);
    ASSERT_EQ(gm_map(&gm, GPA(0x1800), 0x1000, iov, 4), 2);
    EXPECT_TRUE(iov[0].iov_base == &memory[0][0x800]);
    EXPECT_EQ(iov[0].iov_len, 0x800);
    EXPECT_TRUE(iov[1].iov_base == &memory[1][0]);
    EXPECT_EQ(iov[1].iov_len, 0x800);
    ASSERT_EQ(gm_map(&gm, GPA(UINT64_MAX - 0xfff), 0x1000, iov, 1), 1);
    EXPECT_EQ(iov[0].iov_len, 0x1000);
    gm_finish(&gm);
}

TEST(guest_memory, map_refuses_holes_and_too_many_pieces)
{
    GuestMemory gm;
    struct iovec iov[4];

    map_init(&gm);
    EXPECT_EQ(gm_map(&gm, GPA(0x1800), 0x1801, iov, 4), -EFAULT);
    EXPECT_EQ(gm_map(&gm, GPA(0x4000), 1, iov, 4), -EFAULT);
    EXPECT_EQ(gm_map(&gm, GPA(0), 0x1001, iov, 4), -EFAULT);
    EXPECT_EQ(gm_map(&gm, GPA(0x1800), 0x1000, iov, 1), -E2BIG);
    EXPECT_EQ(gm_map(&gm, GPA(0x1800), 1, iov, 0), -E2BIG);
    gm_finish(&gm);
}

TEST(guest_memory, overlapping_empty_and_wrapping_regions_are_refused)
{
    GuestMemory gm;
    Error err;

    map_init(&gm);
    EXPECT_EQ(gm_add(&gm, 0x1000, 0x1000, memory[0], &err), -EINVAL);
    EXPECT_EQ(gm_add(&gm, 0x1fff, 1, memory[0], &err), -EINVAL);
    EXPECT_EQ(gm_add(&gm, 0, 0x1001, memory[0], &err), -EINVAL);
    EXPECT_EQ(gm_add(&gm, 0x3000, 0xd001, memory[0], &err), -EINVAL);
    EXPECT_EQ(gm_add(&gm, 0x5000, 0, memory[0], &err), -EINVAL);
    EXPECT_EQ(gm_add(&gm, 0x20000, UINT64_MAX, memory[0], &err), -EINVAL);
    EXPECT_EQ(gm.nb_regions, 4);
    EXPECT_EQ(gm_add(&gm, 0x3000, 0xd000, memory[0], &err), 0);
    gm_finish(&gm);
}

TEST(guest_memory, the_number_of_regions_is_bounded)
{
    GuestMemory gm;
    Error err;

    gm_init(&gm);
    for (uint64_t i = 0; i < GUEST_MEMORY_REGIONS_MAX; i++) {
        ASSERT_EQ(gm_add(&gm, i * 0x2000, 0x1000, memory[0], &err), 0);
    }
    EXPECT_EQ(gm_add(&gm, (uint64_t)1 << 40, 0x1000, memory[0], &err), -ENOSPC);
    EXPECT_TRUE(gm_translate(&gm, GPA(508 * 0x2000), 0x1000) == memory[0]);
    EXPECT_TRUE(gm_translate(&gm, GPA(508 * 0x2000 + 0x1000), 1) == NULL);
    gm_finish(&gm);
}

TEST_MAIN()
