/*
 * test-endian - bytes in memory of each wire integer
 */
#include "io/base/endian.h"
#include "io/base/test.h"

#define EXPECT_BYTES(type, value, ...)                                                             \
    do {                                                                                           \
        static const uint8_t bytes_[] = { __VA_ARGS__ };                                           \
        type made_ = type##_make(value), stored_;                                                  \
                                                                                                   \
        static_assert(sizeof(made_) == sizeof(bytes_), "size on the wire");                        \
        EXPECT_EQ(memcmp(&made_, bytes_, sizeof(bytes_)), 0);                                      \
        EXPECT_EQ(type##_get(made_), value);                                                       \
        type##_store(&stored_, value);                                                             \
        EXPECT_EQ(memcmp(&stored_, bytes_, sizeof(bytes_)), 0);                                    \
        EXPECT_EQ(type##_load(&stored_), value);                                                   \
    } while (0)

TEST(endian, little_endian_bytes)
{
    EXPECT_BYTES(le16, 0x0102, 0x02, 0x01);
    EXPECT_BYTES(le32, 0x01020384, 0x84, 0x03, 0x02, 0x01);
    EXPECT_BYTES(le64, UINT64_C(0x8102030405060708), 0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02,
                 0x81);
}

TEST(endian, big_endian_bytes)
{
    EXPECT_BYTES(be16, 0x0102, 0x01, 0x02);
    EXPECT_BYTES(be32, 0x81020304, 0x81, 0x02, 0x03, 0x04);
    EXPECT_BYTES(be64, UINT64_C(0x0102030405060788), 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07,
                 0x88);
}

TEST_MAIN()
