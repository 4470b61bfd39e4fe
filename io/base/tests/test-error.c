/*
 * test-error - setting, extending and cutting of messages
 */
#include "io/base/error.h"
#include "io/base/test.h"

TEST(error, set_fills_code_and_text_and_returns_the_code)
{
    Error err;

    EXPECT_EQ(error_set(&err, -EINVAL, "disk '%s': size %d is odd", "d0", 513), -EINVAL);
    EXPECT_EQ(err.code, -EINVAL);
    EXPECT_STREQ(err.msg, "disk 'd0': size 513 is odd");
}

TEST(error, null_takes_the_code_only)
{
    EXPECT_EQ(error_set(NULL, -ENOENT, "%s", "nobody reads this"), -ENOENT);
    error_prefix(NULL, "%s: ", "nor this");
}

TEST(error, prefix_goes_in_front)
{
    Error err;

    error_set(&err, -EIO, "read failed");
    error_prefix(&err, "opening '%s': ", "x");
    EXPECT_EQ(err.code, -EIO);
    EXPECT_STREQ(err.msg, "opening 'x': read failed");
}

TEST(error, arguments_may_point_into_the_old_message)
{
    Error err;

    error_set(&err, -EIO, "inner");
    error_set(&err, -EINVAL, "outer (%s)", err.msg);
    EXPECT_STREQ(err.msg, "outer (inner)");
    error_prefix(&err, "%s; ", err.msg);
    EXPECT_STREQ(err.msg, "outer (inner); outer (inner)");
}

TEST(error, long_text_is_cut_at_the_end_of_the_buffer)
{
    char text[400];
    Error err;

    memset(text, 'a', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    error_set(&err, -EIO, "%s", text);
    EXPECT_EQ(strlen(err.msg), sizeof(err.msg) - 1);

    error_prefix(&err, "prefix: ");
    EXPECT_EQ(strlen(err.msg), sizeof(err.msg) - 1);
    EXPECT_EQ(strncmp(err.msg, "prefix: aaa", 11), 0);

    error_prefix(&err, "%s", text);
    EXPECT_EQ(strlen(err.msg), sizeof(err.msg) - 1);
    EXPECT_EQ(err.msg[0], 'a');
}

/* A message of @nb_ascii letters and then three-byte characters, longer than fits. */
static void set_cut(Error *err, int nb_ascii)
{
    char text[400];
    size_t len = (size_t)nb_ascii;

    memset(text, 'a', len);
    while (len < 390) {
        memcpy(text + len, "\xe2\x82\xac", 3); /* the euro sign */
        len += 3;
    }
    text[len] = '\0';
    error_set(err, -EIO, "%s", text);
}

TEST(error, a_character_is_not_cut_in_two)
{
    Error err;

    for (int nb_ascii = 0; nb_ascii < 3; nb_ascii++) {
        set_cut(&err, nb_ascii);
        size_t len = strlen(err.msg);

        EXPECT_EQ((len - (size_t)nb_ascii) % 3, 0);
        EXPECT_GT(len, sizeof(err.msg) - 4);
        error_prefix(&err, "p");
        EXPECT_EQ((strlen(err.msg) - 1 - (size_t)nb_ascii) % 3, 0);
    }
}

TEST(error, strerror_takes_both_signs)
{
    EXPECT_STREQ(error_strerror(ENOENT), "No such file or directory");
    EXPECT_STREQ(error_strerror(-ENOENT), "No such file or directory");
    EXPECT_STREQ(error_strerror(123456), "Unknown error");
}

static void set_without_code(void *opaque)
{
    error_set(opaque, 0, "no reason");
}

TEST(error, a_code_that_is_no_error_aborts)
{
    Error err;

    EXPECT_DEATH(set_without_code, &err, SIGABRT, "code < 0");
}

TEST_MAIN()
