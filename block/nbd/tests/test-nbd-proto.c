/*
 * test-nbd-proto.c - every message, there and back, and what a peer may get wrong
 */
#include "block/nbd/nbd-proto.h"
#include "io/base/test.h"

static NbdString string(const char *text)
{
    return (NbdString){ text, (uint32_t)strlen(text) };
}

static bool string_is(const NbdString *s, const char *text)
{
    return s->len_bytes == strlen(text) && memcmp(s->text, text, s->len_bytes) == 0;
}

TEST(nbd_proto, greeting_goes_there_and_back)
{
    uint8_t buf[NBD_GREETING_BYTES];
    uint16_t flags = 0;

    nbd_greeting_encode(buf, NBD_FLAG_FIXED_NEWSTYLE);
    EXPECT_EQ(memcmp(buf, "NBDMAGICIHAVEOPT\0\1", sizeof(buf)), 0);
    ASSERT_EQ(nbd_greeting_decode(buf, &flags), 0);
    EXPECT_EQ(flags, NBD_FLAG_FIXED_NEWSTYLE);
    buf[0] ^= 1;
    EXPECT_EQ(nbd_greeting_decode(buf, &flags), -EPROTO);
    buf[0] ^= 1;
    buf[9] ^= 1;
    EXPECT_EQ(nbd_greeting_decode(buf, &flags), -EPROTO);
    nbd_put_be64(buf + 8, NBD_OLDSTYLE_MAGIC);
    EXPECT_EQ(nbd_greeting_decode(buf, &flags), -EPROTONOSUPPORT);
}

TEST(nbd_proto, options_and_their_replies_go_there_and_back)
{
    uint8_t buf[NBD_OPTION_REPLY_BYTES];
    NbdOptionHeader header = { NBD_OPT_GO, 77 }, header2;
    NbdOptionReply reply = { NBD_OPT_GO, NBD_REP_ERR_UNKNOWN, 5 }, reply2;

    nbd_option_encode(buf, &header);
    ASSERT_EQ(nbd_option_decode(buf, &header2), 0);
    EXPECT_EQ(header2.option, NBD_OPT_GO);
    EXPECT_EQ(header2.len_bytes, 77);
    buf[7] ^= 0x80;
    EXPECT_EQ(nbd_option_decode(buf, &header2), -EPROTO);
    nbd_option_reply_encode(buf, &reply);
    EXPECT_EQ(memcmp(buf, "\0\3\xe8\x89\4\x55\x65\xa9\0\0\0\7\x80\0\0\6\0\0\0\5", sizeof(buf)), 0);
    ASSERT_EQ(nbd_option_reply_decode(buf, &reply2), 0);
    EXPECT_EQ(reply2.option, NBD_OPT_GO);
    EXPECT_EQ(reply2.type, NBD_REP_ERR_UNKNOWN);
    EXPECT_EQ(reply2.len_bytes, 5);
    buf[0] = 1;
    EXPECT_EQ(nbd_option_reply_decode(buf, &reply2), -EPROTO);
}

TEST(nbd_proto, go_takes_name_and_known_informations)
{
    uint8_t buf[NBD_GO_BYTES_MAX];
    NbdGo go = { string("disk"), 1u << NBD_INFO_BLOCK_SIZE | 1u << NBD_INFO_NAME }, got;
    size_t len = nbd_go_encode(buf, &go);

    ASSERT_EQ(len, 4 + 4 + 2 + 4);
    ASSERT_EQ(nbd_go_decode(buf, len, &got), 0);
    EXPECT_TRUE(string_is(&got.name, "disk"));
    EXPECT_EQ(got.infos, go.infos);
    nbd_put_be16(buf + len - 2, 999); /* unknown ones are no error */
    ASSERT_EQ(nbd_go_decode(buf, len, &got), 0);
    EXPECT_EQ(got.infos, 1u << NBD_INFO_NAME);
}

TEST(nbd_proto, go_cut_short_anywhere_or_too_long_is_invalid)
{
    uint8_t buf[NBD_GO_BYTES_MAX + 1] = { 0 };
    NbdGo go = { string("disk"), 1u << NBD_INFO_BLOCK_SIZE }, got;
    size_t len = nbd_go_encode(buf, &go);

    for (size_t cut = 0; cut < len; cut++) {
        /* in memory of its own, so that a look beyond shows */
        AUTO_FREE uint8_t *copy = malloc(cut ? cut : 1);

        memcpy(copy, buf, cut);
        EXPECT_EQ(nbd_go_decode(copy, cut, &got), -EINVAL);
    }
    EXPECT_EQ(nbd_go_decode(buf, len + 1, &got), -EINVAL);
    nbd_put_be32(buf, UINT32_MAX);
    EXPECT_EQ(nbd_go_decode(buf, len, &got), -EINVAL);
    nbd_put_be32(buf, 4);
    buf[5] = '\0';
    EXPECT_EQ(nbd_go_decode(buf, len, &got), -EINVAL);
}

TEST(nbd_proto, names_longer_than_a_string_may_be_are_told_apart)
{
    static uint8_t buf[4 + NBD_STRING_BYTES + 1 + 2];
    NbdGo go;

    memset(buf, 'x', sizeof(buf));
    nbd_put_be32(buf, NBD_STRING_BYTES + 1);
    nbd_put_be16(buf + sizeof(buf) - 2, 0);
    EXPECT_EQ(nbd_go_decode(buf, sizeof(buf), &go), -ENAMETOOLONG);
}

TEST(nbd_proto, meta_queries_are_walked)
{
    uint8_t buf[NBD_META_QUERY_BYTES_MAX];
    NbdString name = string("e"), first = string("base:allocation"), got;
    NbdMetaQuery query;
    size_t len = nbd_meta_query_encode(buf, &name, &first);

    nbd_put_be32(buf + 5, 2); /* one more behind it */
    nbd_put_be32(buf + len, 3);
    memcpy(buf + len + 4, "x:y", 3);
    ASSERT_EQ(nbd_meta_query_decode(buf, len + 7, &query), 0);
    EXPECT_TRUE(string_is(&query.name, "e"));
    ASSERT_EQ(query.nb_queries, 2);
    got = nbd_meta_query_next(&query);
    EXPECT_TRUE(string_is(&got, "base:allocation"));
    got = nbd_meta_query_next(&query);
    EXPECT_TRUE(string_is(&got, "x:y"));
}

TEST(nbd_proto, meta_queries_that_lie_about_their_number_are_invalid)
{
    uint8_t buf[NBD_META_QUERY_BYTES_MAX];
    NbdString name = string(""), first = string("base:allocation");
    NbdMetaQuery query;
    size_t len = nbd_meta_query_encode(buf, &name, &first);

    for (size_t cut = 0; cut < len; cut++) {
        AUTO_FREE uint8_t *copy = malloc(cut ? cut : 1);

        memcpy(copy, buf, cut);
        EXPECT_EQ(nbd_meta_query_decode(copy, cut, &query), -EINVAL);
    }
    nbd_put_be32(buf + 4, UINT32_MAX);
    EXPECT_EQ(nbd_meta_query_decode(buf, len, &query), -EINVAL);
    nbd_put_be32(buf + 4, 0);
    EXPECT_EQ(nbd_meta_query_decode(buf, len, &query), -EINVAL);
}

TEST(nbd_proto, export_information_goes_there_and_back)
{
    uint8_t buf[NBD_INFO_BLOCK_SIZE_BYTES];
    NbdExportInfo info = { UINT64_C(1) << 40, NBD_FLAG_HAS_FLAGS | NBD_FLAG_CAN_MULTI_CONN }, got;

    nbd_info_export_encode(buf, &info);
    ASSERT_EQ(nbd_info_export_decode(buf, NBD_INFO_EXPORT_BYTES, &got), 0);
    EXPECT_EQ(got.length_bytes, info.length_bytes);
    EXPECT_EQ(got.flags, info.flags);
    EXPECT_EQ(nbd_info_export_decode(buf, NBD_INFO_EXPORT_BYTES - 1, &got), -EPROTO);
    EXPECT_EQ(nbd_info_export_decode(buf, NBD_INFO_EXPORT_BYTES + 1, &got), -EPROTO);
    nbd_export_name_reply_encode(buf, &info);
    got = (NbdExportInfo){ 0 };
    nbd_export_name_reply_decode(buf, &got);
    EXPECT_EQ(got.length_bytes, info.length_bytes);
    EXPECT_EQ(got.flags, info.flags);
}

TEST(nbd_proto, block_sizes_that_make_no_sense_are_refused)
{
    static const struct {
        NbdBlockSizes sizes;
        int ret;
    } cases[] = {
        { { 512, 4096, 32u << 20 }, 0 },      { { 1, 1, UINT32_MAX }, 0 },
        { { 65536, 65536, 65536 }, 0 },       { { 0, 4096, 32u << 20 }, -EPROTO },
        { { 3, 4096, 32u << 20 }, -EPROTO },  { { 131072, 131072, 32u << 20 }, -EPROTO },
        { { 512, 0, 32u << 20 }, -EPROTO },   { { 512, 700, 32u << 20 }, -EPROTO },
        { { 512, 256, 32u << 20 }, -EPROTO }, { { 512, 4096, 256 }, -EPROTO },
        { { 512, 4096, 0 }, -EPROTO },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        uint8_t buf[NBD_INFO_BLOCK_SIZE_BYTES];
        NbdBlockSizes got = { 0 };

        nbd_info_block_size_encode(buf, &cases[i].sizes);
        EXPECT_EQ(nbd_info_block_size_decode(buf, sizeof(buf), &got), cases[i].ret);
        EXPECT_EQ(got.min_bytes, cases[i].ret ? 0 : cases[i].sizes.min_bytes);
        EXPECT_EQ(got.max_payload_bytes, cases[i].ret ? 0 : cases[i].sizes.max_payload_bytes);
        EXPECT_EQ(nbd_info_block_size_decode(buf, sizeof(buf) - 1, &got), -EPROTO);
    }
}

TEST(nbd_proto, requests_have_the_length_that_their_headers_have)
{
    uint8_t buf[NBD_EXTENDED_REQUEST_BYTES];
    NbdRequest req = { NBD_CMD_FLAG_FUA, NBD_CMD_TRIM, UINT64_C(0x1122334455667788),
                       UINT64_C(1) << 40, 0x89abcdef },
               got;

    ASSERT_EQ(nbd_request_encode(buf, NBD_HEADERS_STRUCTURED, &req), 28);
    EXPECT_EQ(memcmp(buf,
                     "\x25\x60\x95\x13\0\1\0\4\x11\x22\x33\x44\x55\x66\x77\x88\0\0\1\0\0\0\0\0"
                     "\x89\xab\xcd\xef",
                     28),
              0);
    EXPECT_EQ(nbd_request_decode(buf, NBD_HEADERS_EXTENDED, &got), -EPROTO);
    ASSERT_EQ(nbd_request_decode(buf, NBD_HEADERS_SIMPLE, &got), 0);
    EXPECT_EQ(got.len_bytes, 0x89abcdef);
    req.len_bytes = UINT64_C(1) << 45;
    ASSERT_EQ(nbd_request_encode(buf, NBD_HEADERS_EXTENDED, &req), 32);
    EXPECT_EQ(nbd_request_decode(buf, NBD_HEADERS_SIMPLE, &got), -EPROTO);
    ASSERT_EQ(nbd_request_decode(buf, NBD_HEADERS_EXTENDED, &got), 0);
    EXPECT_EQ(got.flags, req.flags);
    EXPECT_EQ(got.type, req.type);
    EXPECT_EQ(got.cookie, req.cookie);
    EXPECT_EQ(got.offset_bytes, req.offset_bytes);
    EXPECT_EQ(got.len_bytes, req.len_bytes);
}

TEST(nbd_proto, replies_are_known_by_their_first_bytes)
{
    static const struct {
        uint32_t magic;
        size_t bytes[3]; /* with simple, structured, extended headers */
    } cases[] = {
        { NBD_SIMPLE_REPLY_MAGIC, { 16, 16, 0 } },
        { NBD_STRUCTURED_REPLY_MAGIC, { 0, 20, 0 } },
        { NBD_EXTENDED_REPLY_MAGIC, { 0, 0, 32 } },
        { NBD_REQUEST_MAGIC, { 0, 0, 0 } },
        { 0, { 0, 0, 0 } },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        uint8_t buf[4];

        nbd_put_be32(buf, cases[i].magic);
        for (NbdHeaders h = NBD_HEADERS_SIMPLE; h <= NBD_HEADERS_EXTENDED; h++) {
            EXPECT_EQ(nbd_reply_bytes(buf, h), cases[i].bytes[h]);
        }
    }
}

TEST(nbd_proto, replies_go_there_and_back)
{
    for (NbdHeaders h = NBD_HEADERS_SIMPLE; h <= NBD_HEADERS_EXTENDED; h++) {
        uint8_t buf[NBD_REPLY_BYTES_MAX];
        bool simple = h == NBD_HEADERS_SIMPLE;
        NbdReply reply = { .simple = simple, .cookie = 42, .error = simple ? NBD_ENOSPC : 0 }, got;

        if (!simple) {
            reply.flags = NBD_REPLY_FLAG_DONE;
            reply.type = NBD_REPLY_TYPE_ERROR_OFFSET;
            reply.payload_bytes = 14;
        }
        reply.offset_bytes = h == NBD_HEADERS_EXTENDED ? UINT64_C(1) << 50 : 0;
        ASSERT_EQ(nbd_reply_encode(buf, h, &reply), nbd_reply_bytes(buf, h));
        nbd_reply_decode(buf, &got);
        EXPECT_EQ(got.simple, reply.simple);
        EXPECT_EQ(got.error, reply.error);
        EXPECT_EQ(got.flags, reply.flags);
        EXPECT_EQ(got.type, reply.type);
        EXPECT_EQ(got.cookie, reply.cookie);
        EXPECT_EQ(got.offset_bytes, reply.offset_bytes);
        EXPECT_EQ(got.payload_bytes, reply.payload_bytes);
    }
}

TEST(nbd_proto, errors_are_translated_both_ways)
{
    static const int codes[] = { -EPERM,  -EIO,       -ENOMEM,     -EINVAL,
                                 -ENOSPC, -EOVERFLOW, -EOPNOTSUPP, -ESHUTDOWN };

    for (unsigned i = 0; i < ARRAY_SIZE(codes); i++) {
        EXPECT_EQ(nbd_errno_to_host(nbd_errno_from_host(codes[i])), codes[i]);
    }
    EXPECT_EQ(nbd_errno_to_host(12345), -EINVAL);
    EXPECT_EQ(nbd_errno_from_host(-EDQUOT), NBD_ENOSPC);
    EXPECT_EQ(nbd_errno_from_host(-EROFS), NBD_EPERM);
    EXPECT_EQ(nbd_errno_from_host(-ECONNRESET), NBD_EIO);
}

TEST(nbd_proto, what_has_a_name_is_named)
{
    EXPECT_STREQ(nbd_option_name(NBD_OPT_STARTTLS), "STARTTLS");
    EXPECT_STREQ(nbd_option_name(4), "unknown");
    EXPECT_STREQ(nbd_option_reply_name(NBD_REP_ERR_UNKNOWN), "no such export");
    EXPECT_STREQ(nbd_option_reply_name(NBD_REP_ERR_EXT_HEADER_REQD),
                 "extended headers are required");
    EXPECT_STREQ(nbd_option_reply_name(NBD_REP_ERROR_BIT + 11), "unknown");
    EXPECT_STREQ(nbd_option_reply_name(NBD_REP_ERROR_BIT), "unknown");
}

TEST_MAIN()
