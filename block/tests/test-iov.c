/*
 * test-iov.c - walking a scatter-gather list
 */
#include "block/iov.h"

#include <string.h>

#include "io/base/test.h"

TEST(iov, total_of_nothing_is_zero_and_an_overflow_saturates)
{
    struct iovec iov[] = { { NULL, SIZE_MAX }, { NULL, 1 } };

    EXPECT_EQ(iov_total(NULL, 0), 0u);
    EXPECT_EQ(iov_total(iov, 1), SIZE_MAX);
    EXPECT_EQ(iov_total(iov, 2), UINT64_MAX);
    iov[0].iov_len = 41;
    EXPECT_EQ(iov_total(iov, 2), 42u);
}

TEST(iov, cursor_never_rests_on_an_exhausted_segment)
{
    char a[4], b[4];
    struct iovec iov[] = { { a, 0 }, { a, 4 }, { NULL, 0 }, { b, 4 }, { b, 0 } };
    IovCursor cur;

    iov_cursor_init(&cur, iov, 5);
    EXPECT_TRUE(cur.iov == &iov[1]);
    EXPECT_EQ(iov_cursor_advance(&cur, 4), 4u);
    EXPECT_TRUE(cur.iov == &iov[3]);
    EXPECT_EQ(cur.skip_bytes, 0u);
    EXPECT_EQ(iov_cursor_advance(&cur, 3), 3u);
    EXPECT_EQ(cur.skip_bytes, 3u);
    EXPECT_EQ(iov_cursor_advance(&cur, 3), 1u);
    EXPECT_EQ(cur.niov, 0);
    EXPECT_EQ(iov_cursor_advance(&cur, 1), 0u);
}

TEST(iov, slice_begins_and_ends_inside_segments_and_stops_at_its_room)
{
    char a[8], b[8], c[8];
    struct iovec iov[] = { { a, 8 }, { b, 8 }, { c, 8 } }, out[3];
    IovCursor cur;
    int nout;

    iov_cursor_init(&cur, iov, 3);
    iov_cursor_advance(&cur, 3);
    EXPECT_EQ(iov_cursor_slice(&cur, 15, out, 3, &nout), 15u);
    EXPECT_EQ(nout, 3);
    EXPECT_TRUE(out[0].iov_base == a + 3 && out[0].iov_len == 5);
    EXPECT_TRUE(out[1].iov_base == b && out[1].iov_len == 8);
    EXPECT_TRUE(out[2].iov_base == c && out[2].iov_len == 2);
    EXPECT_EQ(cur.skip_bytes, 3u);

    EXPECT_EQ(iov_cursor_slice(&cur, 15, out, 2, &nout), 13u);
    EXPECT_EQ(nout, 2);
    EXPECT_EQ(iov_cursor_slice(&cur, 100, out, 3, &nout), 21u);
}

TEST(iov, what_is_scattered_in_pieces_is_gathered_in_other_pieces)
{
    char flat[256], store[256], back[256];
    struct iovec iov[256];
    int niov = 0;
    IovCursor in, out;

    for (unsigned i = 0; i < sizeof(flat); i++) {
        flat[i] = (char)(i * 7 + 1);
    }
    /* Segments of 0, 1, 2, ... bytes that cover store[]. */
    for (size_t at = 0; at < sizeof(store); niov++) {
        size_t len = MIN((size_t)niov, sizeof(store) - at);

        iov[niov] = (struct iovec){ store + at, len };
        at += len;
    }
    iov_cursor_init(&in, iov, niov);
    for (size_t at = 0, piece = 1; at < sizeof(flat); piece += 4) {
        at += iov_cursor_write(&in, flat + at, MIN(piece, sizeof(flat) - at));
    }
    EXPECT_EQ(memcmp(flat, store, sizeof(flat)), 0);
    EXPECT_EQ(in.niov, 0);

    iov_cursor_init(&out, iov, niov);
    for (size_t at = 0, piece = 3; at < sizeof(back); piece += 5) {
        at += iov_cursor_read(&out, back + at, MIN(piece, sizeof(back) - at));
    }
    EXPECT_EQ(memcmp(flat, back, sizeof(flat)), 0);
    EXPECT_EQ(iov_cursor_read(&out, back, 1), 0u);
}

TEST(iov, zeroes_begin_where_they_should)
{
    char a[4], b[4], c[4];
    struct iovec iov[] = { { a, 4 }, { b, 4 }, { c, 4 } };

    memset(a, 'x', 4);
    memset(b, 'x', 4);
    memset(c, 'x', 4);
    iov_zero(iov, 3, 6);
    EXPECT_EQ(memcmp(a, "xxxx", 4), 0);
    EXPECT_EQ(memcmp(b, "xx\0\0", 4), 0);
    EXPECT_EQ(memcmp(c, "\0\0\0\0", 4), 0);
    iov_zero(iov, 3, 12);
    EXPECT_EQ(memcmp(a, "xxxx", 4), 0);
}

TEST_MAIN()
