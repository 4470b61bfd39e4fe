/*
 * test-vhost-user-msg.c - the form of messages: what each request may carry, and no more
 */
#include "io/base/test.h"
#include "virtio/vhost-user-msg.h"

static VhuMsg message(uint32_t request, uint32_t size, unsigned nb_fds)
{
    VhuMsg msg = { .hdr = { request, VHOST_USER_VERSION, size } };

    msg.fds.nb = nb_fds;
    return msg;
}

static int check(VhuMsg msg)
{
    Error err = { .code = 0 };
    int ret = vhu_msg_check(&msg, &err);

    EXPECT_EQ(err.code, ret);
    return ret;
}

static int check_table(unsigned nb_regions, unsigned nb_sent, unsigned nb_fds)
{
    VhuMsg msg = message(VHOST_USER_SET_MEM_TABLE, 8 + 32 * nb_sent, nb_fds);

    msg.payload.memory.nb_regions = nb_regions;
    return check(msg);
}

static int check_config(uint32_t request, uint32_t size_said, uint32_t size)
{
    VhuMsg msg = message(request, size, 0);

    msg.payload.config.size = size_said;
    return check(msg);
}

static int check_kick(uint64_t payload, unsigned nb_fds)
{
    VhuMsg msg = message(VHOST_USER_SET_VRING_KICK, 8, nb_fds);

    msg.payload.u64 = payload;
    return check(msg);
}

TEST(vhu_msg, a_request_has_its_own_size_and_descriptors)
{
    EXPECT_EQ(check(message(VHOST_USER_GET_FEATURES, 0, 0)), 0);
    EXPECT_EQ(check(message(VHOST_USER_GET_FEATURES, 8, 0)), -EPROTO);
    EXPECT_EQ(check(message(VHOST_USER_GET_FEATURES, 0, 1)), -EPROTO);
    EXPECT_EQ(check(message(VHOST_USER_SET_FEATURES, 8, 0)), 0);
    EXPECT_EQ(check(message(VHOST_USER_SET_FEATURES, 7, 0)), -EPROTO);
    EXPECT_EQ(check(message(VHOST_USER_SET_FEATURES, UINT32_MAX, 0)), -EPROTO);
    EXPECT_EQ(check(message(VHOST_USER_ADD_MEM_REG, 40, 1)), 0);
    EXPECT_EQ(check(message(VHOST_USER_ADD_MEM_REG, 40, 0)), -EPROTO);
    EXPECT_EQ(check(message(VHOST_USER_ADD_MEM_REG, 40, 2)), -EPROTO);
    EXPECT_EQ(check(message(VHOST_USER_REM_MEM_REG, 40, 1)), 0);
    EXPECT_EQ(check(message(VHOST_USER_GET_INFLIGHT_FD, 20, 0)), 0);
    EXPECT_EQ(check(message(VHOST_USER_GET_INFLIGHT_FD, 24, 0)), 0);
    EXPECT_EQ(check(message(VHOST_USER_GET_INFLIGHT_FD, 25, 0)), -EPROTO);
}

TEST(vhu_msg, unknown_requests_and_answers_are_refused)
{
    VhuMsg answer = message(VHOST_USER_GET_FEATURES, 0, 0);
    VhuMsg version = answer;

    answer.hdr.flags |= VHOST_USER_FLAG_REPLY;
    version.hdr.flags = 2;
    EXPECT_EQ(check(answer), -EPROTO);
    EXPECT_EQ(check(version), -EPROTO);
    EXPECT_EQ(check(message(VHOST_USER_NONE, 0, 0)), -EPROTO);
    EXPECT_EQ(check(message(19, 8, 0)), -EPROTO);
    EXPECT_EQ(check(message(VHOST_USER_REQUEST_MAX, 0, 0)), -EPROTO);
    EXPECT_EQ(check(message(UINT32_MAX, 0, 0)), -EPROTO);
}

TEST(vhu_msg, a_memory_table_has_a_descriptor_for_each_region)
{
    EXPECT_EQ(check_table(0, 0, 0), 0);
    EXPECT_EQ(check_table(8, 8, 8), 0);
    EXPECT_EQ(check_table(2, 1, 2), -EPROTO);
    EXPECT_EQ(check_table(1, 2, 1), -EPROTO);
    EXPECT_EQ(check_table(2, 2, 1), -EPROTO);
    EXPECT_EQ(check_table(1, 1, 2), -EPROTO);
    EXPECT_EQ(check_table(9, 9, 9), -EPROTO);
    EXPECT_EQ(check_table(UINT32_MAX, 8, 8), -EPROTO);
}

TEST(vhu_msg, the_configuration_is_as_long_as_it_says)
{
    EXPECT_EQ(check_config(VHOST_USER_GET_CONFIG, 60, 72), 0);
    EXPECT_EQ(check_config(VHOST_USER_GET_CONFIG, 256, 268), 0);
    EXPECT_EQ(check_config(VHOST_USER_GET_CONFIG, 257, 269), -EPROTO);
    EXPECT_EQ(check_config(VHOST_USER_SET_CONFIG, 2, 13), -EPROTO);
    EXPECT_EQ(check_config(VHOST_USER_SET_CONFIG, UINT32_MAX, 12), -EPROTO);
}

TEST(vhu_msg, an_eventfd_is_there_unless_it_says_that_there_is_none)
{
    EXPECT_EQ(check_kick(3, 1), 0);
    EXPECT_EQ(check_kick(3, 0), -EPROTO);
    EXPECT_EQ(check_kick(3, 2), -EPROTO);
    EXPECT_EQ(check_kick(3 | VHOST_USER_VRING_NOFD_MASK, 0), 0);
    EXPECT_EQ(check_kick(3 | VHOST_USER_VRING_NOFD_MASK, 1), -EPROTO);
}

TEST(vhu_msg, only_requests_without_an_answer_of_their_own_get_another)
{
    VhuMsg get = message(VHOST_USER_GET_FEATURES, 0, 0);
    VhuMsg set = message(VHOST_USER_SET_FEATURES, 8, 0);

    EXPECT_FALSE(vhu_msg_wants_ack(&set));
    get.hdr.flags |= VHOST_USER_FLAG_NEED_REPLY;
    set.hdr.flags |= VHOST_USER_FLAG_NEED_REPLY;
    EXPECT_FALSE(vhu_msg_wants_ack(&get));
    EXPECT_TRUE(vhu_msg_wants_ack(&set));
}

TEST_MAIN()
