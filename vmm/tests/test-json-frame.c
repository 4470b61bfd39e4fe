/*
 * Tests of where JSON values end in a stream
 */
#include "vmm/json-frame.h"

#include "io/base/test.h"

/* What the pushes of @text, @step bytes at a time, give: a letter each, values in brackets. */
static const char *outcome(const char *text, size_t len_bytes, size_t step)
{
    static char out[512];
    size_t at = 0, o = 0;
    JsonFrame frame;

    json_frame_init(&frame);
    while (at < len_bytes) {
        size_t used = 0;
        int ret = json_frame_push(&frame, text + at, MIN(step, len_bytes - at), &used);

        ASSERT_TRUE(used > 0 && used <= step);
        at += used;
        switch (ret) {
        case JSON_FRAME_VALUE:
            o += (size_t)snprintf(out + o, sizeof(out) - o, "<%.*s>", (int)frame.len_bytes,
                                  frame.text);
            break;
        case JSON_FRAME_BAD:
            o += (size_t)snprintf(out + o, sizeof(out) - o, "B");
            break;
        case JSON_FRAME_MORE:
            break;
        default:
            test_fail(__FILE__, __LINE__, "result %d", ret);
        }
    }
    out[o] = '\0';
    json_frame_finish(&frame);
    return out;
}

#define EXPECT_OUTCOME(text, wanted)                                                               \
    do {                                                                                           \
        for (size_t step_ = 1; step_ <= sizeof(text); step_++) {                                   \
            EXPECT_STREQ(outcome(text, sizeof(text) - 1, step_), wanted);                          \
        }                                                                                          \
    } while (0)

TEST(json_frame, values_end_where_their_brace_is_closed)
{
    EXPECT_OUTCOME("{}", "<{}>");
    EXPECT_OUTCOME(" \r\n{\"a\": [1, {}]}\n{\"b\":2}{}", "<{\"a\": [1, {}]}><{\"b\":2}><{}>");
    EXPECT_OUTCOME("[]", "<[]>");
}

TEST(json_frame, braces_in_strings_do_not_count)
{
    EXPECT_OUTCOME("{\"}\": \"{[\"}", "<{\"}\": \"{[\"}>");
    EXPECT_OUTCOME("{\"a\\\"}\": 1}", "<{\"a\\\"}\": 1}>");
    EXPECT_OUTCOME("{\"a\\\\\": \"}\"}", "<{\"a\\\\\": \"}\"}>");
}

TEST(json_frame, garbage_is_complained_about_once_a_line)
{
    EXPECT_OUTCOME("hello world\n{}", "B<{}>");
    EXPECT_OUTCOME("}}}}\n}\n{}", "BB<{}>");
    EXPECT_OUTCOME("\"{}\"\n", "B");
    EXPECT_OUTCOME("{]{}}\n{}", "B<{}>");
    EXPECT_OUTCOME("[}\n[]", "B<[]>");
}

TEST(json_frame, a_string_does_not_go_beyond_its_line)
{
    EXPECT_OUTCOME("{\"a: 1}\n{}", "B<{}>");
    EXPECT_OUTCOME("{\"a\\\n{}", "B<{}>");
}

TEST(json_frame, a_control_character_starts_afresh)
{
    EXPECT_OUTCOME("{\"a\xff{}", "B<{}>");
    EXPECT_OUTCOME("{\"a\x01{}", "B<{}>");
    EXPECT_OUTCOME("{\xff{}", "B<{}>");
    EXPECT_OUTCOME("xx\xff{}", "B<{}>");
    EXPECT_OUTCOME("\xff\xff{}", "<{}>");
    EXPECT_OUTCOME("{\0{}", "B<{}>");
}

static int push_many(char c, size_t nb)
{
    JsonFrame frame;
    int ret = JSON_FRAME_MORE;

    json_frame_init(&frame);
    for (size_t i = 0; i < nb && ret == JSON_FRAME_MORE; i++) {
        size_t used;

        ret = json_frame_push(&frame, i == 0 ? "{" : &c, 1, &used);
        EXPECT_LE(frame.len_bytes, JSON_FRAME_BYTES_MAX);
        EXPECT_LE(frame.room_bytes, JSON_FRAME_BYTES_MAX);
    }
    json_frame_finish(&frame);
    return ret;
}

TEST(json_frame, values_are_no_longer_and_no_deeper_than_the_limits)
{
    EXPECT_EQ(push_many(' ', JSON_FRAME_BYTES_MAX), JSON_FRAME_MORE);
    EXPECT_EQ(push_many(' ', JSON_FRAME_BYTES_MAX + 1), JSON_FRAME_TOO_LONG);
    EXPECT_EQ(push_many('[', JSON_FRAME_DEPTH_MAX), JSON_FRAME_MORE);
    EXPECT_EQ(push_many('[', JSON_FRAME_DEPTH_MAX + 1), JSON_FRAME_TOO_DEEP);
}

TEST_MAIN()
