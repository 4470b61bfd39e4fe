/*
 * test-nbd-server.c - requests: right and wrong ones, bounds, drained sections
 */
#include <fcntl.h>
#include <sched.h>

#include "block/nbd/tests/nbd-test-client.h"
#include "io/base/thread.h"

static const NbdHeaders all_headers[] = { NBD_HEADERS_SIMPLE, NBD_HEADERS_STRUCTURED,
                                          NBD_HEADERS_EXTENDED };

static void fill(uint8_t *buf, size_t len_bytes, unsigned seed)
{
    for (size_t i = 0; i < len_bytes; i++) {
        buf[i] = (uint8_t)(seed * 31 + i * 7 + i / 251);
    }
}

static main_fn void leave(Bench *bench, int fd)
{
    close(fd);
    bench_finish(bench);
}

/* --- every command --- */

TEST(nbd_server, reads_and_writes_with_each_kind_of_headers)
{
    static uint8_t out[70000], in[70000];
    Bench bench;

    bench_init(&bench, &(BenchConfig){ .mem = { .limits = { .request_alignment = 512 } } });
    for (unsigned i = 0; i < ARRAY_SIZE(all_headers); i++) {
        int fd = client_open(&bench, all_headers[i]);

        fill(out, sizeof(out), i);
        EXPECT_EQ(client_write(fd, all_headers[i], 0, 1001, out, sizeof(out)), 0u);
        EXPECT_EQ(memcmp(bench.mem.data + 1001, out, sizeof(out)), 0);
        EXPECT_EQ(client_read(fd, all_headers[i], 0, 1001, in, sizeof(in), NULL), 0u);
        EXPECT_EQ(memcmp(in, out, sizeof(in)), 0);
        EXPECT_EQ(client_read(fd, all_headers[i], 0, DISK_BYTES - 1, in, 1, NULL), 0u);
        EXPECT_EQ(client_run(fd, all_headers[i], NBD_CMD_READ, 0, DISK_BYTES, 0),
                  0u); /* nothing, of the end */
        close(fd);
    }
    bench_finish(&bench);
    EXPECT_FALSE(test_logged(NULL));
}

TEST(nbd_server, flush_fua_trim_zeroes_and_cache_reach_the_disk)
{
    Bench bench;
    uint8_t data[4096];

    bench_init(&bench, &(BenchConfig){ .mem = { .honours_fua = true } });
    int fd = client_open(&bench, NBD_HEADERS_EXTENDED);
    MemStats *stats = &bench.mem.stats;

    fill(data, sizeof(data), 1);
    EXPECT_EQ(client_write(fd, NBD_HEADERS_EXTENDED, 0, 0, data, sizeof(data)), 0u);
    EXPECT_EQ(stats->fua, 0u);
    EXPECT_EQ(client_write(fd, NBD_HEADERS_EXTENDED, NBD_CMD_FLAG_FUA, 0, data, sizeof(data)), 0u);
    EXPECT_EQ(stats->fua, 1u);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_EXTENDED, NBD_CMD_FLUSH, 0, 0, 0), 0u);
    EXPECT_EQ(stats->ops[MEM_FLUSH], 1u);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_EXTENDED, NBD_CMD_TRIM, 0, 0, 512), 0u);
    EXPECT_EQ(stats->ops[MEM_DISCARD], 1u);
    EXPECT_EQ(stats->ops[MEM_FLUSH], 1u);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_EXTENDED, NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, 0, 512), 0u);
    EXPECT_EQ(stats->ops[MEM_FLUSH], 2u);
    EXPECT_EQ(
        client_run(fd, NBD_HEADERS_EXTENDED, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, 512, 512),
        0u);
    EXPECT_EQ(stats->unmap, 0u);
    EXPECT_EQ(bench.mem.data[1023], 0);
    EXPECT_EQ((uint8_t)bench.mem.data[1024], data[1024]);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_EXTENDED, NBD_CMD_WRITE_ZEROES,
                         NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_FAST_ZERO, 1024, 512),
              0u);
    EXPECT_EQ(stats->unmap, 1u);
    EXPECT_EQ(stats->ops[MEM_FLUSH], 3u);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_EXTENDED, NBD_CMD_CACHE, 0, 0, DISK_BYTES), 0u);
    EXPECT_EQ(stats->ops[MEM_READ], DISK_BYTES / NBD_SERVER_KEEP_BYTES);
    leave(&bench, fd);
}

TEST(nbd_server, fast_zero_says_so_where_it_would_not_be_fast)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ .mem = { .no_zeroes = true } });
    int fd = client_open(&bench, NBD_HEADERS_SIMPLE);

    memset(bench.mem.data, 'x', DISK_BYTES);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_SIMPLE, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 0,
                         DISK_BYTES),
              NBD_ENOTSUP);
    EXPECT_EQ(bench.mem.data[0], 'x');
    EXPECT_EQ(client_run(fd, NBD_HEADERS_SIMPLE, NBD_CMD_WRITE_ZEROES, 0, 0, DISK_BYTES), 0u);
    EXPECT_EQ(bench.mem.data[DISK_BYTES - 1], 0);
    leave(&bench, fd);
}

/* Lengths that 32 bits cannot hold. */
TEST(nbd_server, extended_headers_have_long_lengths)
{
    const uint64_t disk_bytes = 6ull << 30;
    Bench bench;
    Opts opts;
    Error err;

    bench_init(&bench, &(BenchConfig){ .no_export = true });
    ASSERT_EQ(opts_parse(&opts, "--disk", "driver=null,size=6G", NULL, &err), 0);
    BlockBackend *blk = blk_open("big", &opts, &err);

    ASSERT_TRUE(blk != NULL);
    opts_finish(&opts);
    ASSERT_EQ(
        nbd_server_add_export(bench.server, &(NbdExportParams){ .name = "disk", .blk = blk }, &err),
        0);
    int fd = client_connect(&bench);
    NbdExportInfo info = client_enter(fd, NBD_HEADERS_EXTENDED);

    EXPECT_EQ(info.length_bytes, disk_bytes);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_EXTENDED, NBD_CMD_WRITE_ZEROES, 0, 0, disk_bytes), 0u);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_EXTENDED, NBD_CMD_TRIM, 0, 1, disk_bytes - 1), 0u);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_EXTENDED, NBD_CMD_TRIM, 0, 1, disk_bytes), NBD_EINVAL);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_EXTENDED, NBD_CMD_READ, 0, 0, disk_bytes), NBD_EOVERFLOW);
    client_request(fd, NBD_HEADERS_EXTENDED, NBD_CMD_BLOCK_STATUS, 0, 5, 0, disk_bytes);
    NbdReply reply = client_reply(fd, NBD_HEADERS_EXTENDED);
    uint8_t status[NBD_STATUS_EXT_BYTES + NBD_EXTENT_EXT_BYTES];

    EXPECT_EQ(reply.type, NBD_REPLY_TYPE_BLOCK_STATUS_EXT);
    ASSERT_EQ(reply.payload_bytes, sizeof(status));
    client_receive(fd, status, sizeof(status));
    EXPECT_EQ(nbd_get_be32(status), 1u);
    EXPECT_EQ(nbd_get_be32(status + 4), 1u);
    EXPECT_EQ(nbd_get_be64(status + 8), disk_bytes);
    close(fd);
    bench_wait_idle(&bench);
    EXPECT_EQ(blk_close(blk), 0);
    bench_finish(&bench);
}

/* A driver that leaves buffers as they are must not show what was in ours. */
TEST(nbd_server, memory_that_a_driver_did_not_fill_reads_as_zeroes)
{
    static uint8_t in[1 << 20];
    Bench bench;
    Opts opts;
    Error err;

    bench_init(&bench, &(BenchConfig){ .no_export = true });
    ASSERT_EQ(opts_parse(&opts, "--disk", "driver=null,size=1M", NULL, &err), 0);
    BlockBackend *blk = blk_open("null", &opts, &err);

    ASSERT_TRUE(blk != NULL);
    opts_finish(&opts);
    ASSERT_EQ(
        nbd_server_add_export(bench.server, &(NbdExportParams){ .name = "disk", .blk = blk }, &err),
        0);
    memset(in, 'x', sizeof(in));
    for (size_t len_bytes = 512; len_bytes <= sizeof(in); len_bytes *= 2) {
        int fd = client_open(&bench, NBD_HEADERS_SIMPLE);

        ASSERT_EQ(client_read(fd, NBD_HEADERS_SIMPLE, 0, 0, in, len_bytes, NULL), 0u);
        for (size_t i = 0; i < len_bytes; i++) {
            ASSERT_EQ(in[i], 0);
        }
        close(fd);
    }
    bench_wait_idle(&bench);
    EXPECT_EQ(blk_close(blk), 0);
    bench_finish(&bench);
}

/* --- holes --- */

/* 1 MiB with data in the second and the last 64 KiB; skips where the folder has no holes. */
static main_fn BlockBackend *open_sparse(Bench *bench)
{
    char path[] = "/tmp/test-nbd-server-XXXXXX", text[64];
    static uint8_t data[65536];
    int fd = mkstemp(path);
    Opts opts;
    Error err;

    ASSERT_TRUE(fd >= 0);
    memset(data, 'd', sizeof(data));
    ASSERT_EQ(ftruncate(fd, DISK_BYTES), 0);
    ASSERT_EQ(pwrite(fd, data, sizeof(data), 65536), (ssize_t)sizeof(data));
    ASSERT_EQ(pwrite(fd, data, sizeof(data), DISK_BYTES - 65536), (ssize_t)sizeof(data));
    if (lseek(fd, 0, SEEK_DATA) != 65536) {
        unlink(path);
        TEST_SKIP("files in /tmp have no holes");
    }
    snprintf(text, sizeof(text), "path=%s,cache=writeback", path);
    ASSERT_EQ(opts_parse(&opts, "--disk", text, NULL, &err), 0);
    BlockBackend *blk = blk_open("sparse", &opts, &err);

    ASSERT_TRUE(blk != NULL);
    opts_finish(&opts);
    unlink(path);
    close(fd);
    ASSERT_EQ(nbd_server_add_export(bench->server, &(NbdExportParams){ .name = "disk", .blk = blk },
                                    &err),
              0);
    return blk;
}

static main_fn void finish_sparse(Bench *bench, BlockBackend *blk, int fd)
{
    close(fd);
    bench_wait_idle(bench);
    EXPECT_EQ(blk_close(blk), 0);
    bench_finish(bench);
}

TEST(nbd_server, reads_are_answered_with_holes_unless_the_client_wants_one_piece)
{
    static uint8_t in[DISK_BYTES];
    Bench bench;
    uint64_t holes = 0;

    bench_init(&bench, &(BenchConfig){ .no_export = true });
    BlockBackend *blk = open_sparse(&bench);
    int fd = -1;

    for (unsigned i = 1; i < ARRAY_SIZE(all_headers); i++) {
        if (fd >= 0) {
            close(fd);
        }
        fd = client_open(&bench, all_headers[i]);
        memset(in, 'x', sizeof(in));
        ASSERT_EQ(client_read(fd, all_headers[i], 0, 0, in, sizeof(in), &holes), 0u);
        EXPECT_EQ(holes, DISK_BYTES - 2 * 65536u);
        EXPECT_EQ(in[65535], 0);
        EXPECT_EQ(in[65536], 'd');
        EXPECT_EQ(in[2 * 65536], 0);
        EXPECT_EQ(in[DISK_BYTES - 1], 'd');
        ASSERT_EQ(client_read(fd, all_headers[i], NBD_CMD_FLAG_DF, 0, in, sizeof(in), &holes), 0u);
        EXPECT_EQ(holes, 0u);
    }
    finish_sparse(&bench, blk, fd);
}

/* What is remembered of the map may be old; what is read may not. */
TEST(nbd_server, holes_that_are_written_to_are_data_at_once)
{
    static uint8_t in[DISK_BYTES], out[65536];
    Bench bench;
    uint64_t holes = 0;

    bench_init(&bench, &(BenchConfig){ .no_export = true });
    BlockBackend *blk = open_sparse(&bench);
    int fd = client_open(&bench, NBD_HEADERS_STRUCTURED);

    ASSERT_EQ(client_read(fd, NBD_HEADERS_STRUCTURED, 0, 0, in, sizeof(in), &holes), 0u);
    memset(out, 'w', sizeof(out));
    ASSERT_EQ(client_write(fd, NBD_HEADERS_STRUCTURED, 0, 0, out, sizeof(out)), 0u);
    ASSERT_EQ(
        client_run(fd, NBD_HEADERS_STRUCTURED, NBD_CMD_WRITE_ZEROES, 0, DISK_BYTES - 65536, 65536),
        0u);
    ASSERT_EQ(client_read(fd, NBD_HEADERS_STRUCTURED, 0, 0, in, sizeof(in), NULL), 0u);
    EXPECT_EQ(in[0], 'w');
    EXPECT_EQ(in[65535], 'w');
    EXPECT_EQ(in[65536], 'd');
    EXPECT_EQ(in[DISK_BYTES - 1], 0);
    finish_sparse(&bench, blk, fd);
}

static unsigned receive_extents(int fd, uint64_t cookie, uint32_t (*ret)[2])
{
    uint8_t buf[4096];
    NbdReply reply = client_reply(fd, NBD_HEADERS_STRUCTURED);

    EXPECT_EQ(reply.cookie, cookie);
    EXPECT_EQ(reply.flags, NBD_REPLY_FLAG_DONE);
    ASSERT_EQ(reply.type, NBD_REPLY_TYPE_BLOCK_STATUS);
    ASSERT_TRUE(reply.payload_bytes <= sizeof(buf));
    client_receive(fd, buf, reply.payload_bytes);
    EXPECT_EQ(nbd_get_be32(buf), 1u);
    unsigned nb = (unsigned)(reply.payload_bytes - NBD_STATUS_BYTES) / NBD_EXTENT_BYTES;

    for (unsigned i = 0; i < nb; i++) {
        ret[i][0] = nbd_get_be32(buf + 4 + 8 * i);
        ret[i][1] = nbd_get_be32(buf + 8 + 8 * i);
    }
    return nb;
}

TEST(nbd_server, block_status_tells_holes_and_data)
{
    const uint32_t hole = NBD_STATE_HOLE | NBD_STATE_ZERO;
    uint32_t extents[16][2];
    Bench bench;

    bench_init(&bench, &(BenchConfig){ .no_export = true });
    BlockBackend *blk = open_sparse(&bench);
    int fd = client_open(&bench, NBD_HEADERS_STRUCTURED);

    client_request(fd, NBD_HEADERS_STRUCTURED, NBD_CMD_BLOCK_STATUS, 0, 8, 0, DISK_BYTES);
    ASSERT_EQ(receive_extents(fd, 8, extents), 4u);
    EXPECT_EQ(extents[0][0], 65536u);
    EXPECT_EQ(extents[0][1], hole);
    EXPECT_EQ(extents[1][0], 65536u);
    EXPECT_EQ(extents[1][1], 0u);
    EXPECT_EQ(extents[2][0], DISK_BYTES - 3 * 65536u);
    EXPECT_EQ(extents[2][1], hole);
    EXPECT_EQ(extents[3][0], 65536u);
    EXPECT_EQ(extents[3][1], 0u);
    client_request(fd, NBD_HEADERS_STRUCTURED, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 9, 65537,
                   DISK_BYTES - 65537);
    ASSERT_EQ(receive_extents(fd, 9, extents), 1u);
    EXPECT_EQ(extents[0][0], 65535u);
    EXPECT_EQ(extents[0][1], 0u);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_STRUCTURED, NBD_CMD_BLOCK_STATUS, 0, 512, 0), NBD_EINVAL);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_STRUCTURED, NBD_CMD_BLOCK_STATUS, 0, 512, DISK_BYTES),
              NBD_EINVAL);
    finish_sparse(&bench, blk, fd);
}

/* --- errors --- */

TEST(nbd_server, errors_of_the_disk_are_told_and_the_connection_goes_on)
{
    uint8_t buf[512] = { 0 };
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    bench.mem.fail_code = -EIO;
    for (unsigned i = 0; i < ARRAY_SIZE(all_headers); i++) {
        int fd = client_open(&bench, all_headers[i]);

        bench.mem.fail_nth = 1;
        EXPECT_EQ(client_read(fd, all_headers[i], 0, 0, buf, sizeof(buf), NULL), NBD_EIO);
        bench.mem.fail_nth = 1;
        EXPECT_EQ(client_write(fd, all_headers[i], 0, 0, buf, sizeof(buf)), NBD_EIO);
        bench.mem.fail_nth = 1;
        EXPECT_EQ(client_run(fd, all_headers[i], NBD_CMD_FLUSH, 0, 0, 0), NBD_EIO);
        EXPECT_EQ(client_run(fd, all_headers[i], NBD_CMD_FLUSH, 0, 0, 0), 0u);
        close(fd);
    }
    bench_finish(&bench);
}

TEST(nbd_server, requests_that_cannot_be_are_refused_and_the_stream_stays_in_step)
{
    static const struct {
        uint16_t type, flags;
        uint64_t offset_bytes, len_bytes;
        uint32_t error;
    } cases[] = {
        { NBD_CMD_READ, 0, DISK_BYTES, 1, NBD_EINVAL },
        { NBD_CMD_READ, 0, 1, DISK_BYTES, NBD_EINVAL },
        { NBD_CMD_READ, 0, UINT64_MAX, 512, NBD_EINVAL }, /* the end wraps */
        { NBD_CMD_READ, 0, UINT64_MAX - 511, 512, NBD_EINVAL },
        { NBD_CMD_READ, 0, 0, UINT32_MAX, NBD_EINVAL },
        { NBD_CMD_READ, NBD_CMD_FLAG_NO_HOLE, 0, 512, NBD_EINVAL },
        { NBD_CMD_READ, 1 << 15, 0, 512, NBD_EINVAL },
        { NBD_CMD_TRIM, 0, DISK_BYTES - 1, 2, NBD_EINVAL },
        { NBD_CMD_TRIM, NBD_CMD_FLAG_REQ_ONE, 0, 512, NBD_EINVAL },
        { NBD_CMD_WRITE_ZEROES, 0, DISK_BYTES, 1, NBD_ENOSPC },
        { NBD_CMD_CACHE, 0, DISK_BYTES, 1, NBD_EINVAL },
        { NBD_CMD_FLUSH, NBD_CMD_FLAG_DF, 0, 0, NBD_EINVAL },
        { NBD_CMD_BLOCK_STATUS + 1, 0, 0, 0, NBD_EINVAL }, /* RESIZE: not offered */
        { UINT16_MAX, 0, 0, 512, NBD_EINVAL },
    };
    uint8_t buf[512] = { 0 };
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    for (unsigned h = 0; h < ARRAY_SIZE(all_headers); h++) {
        NbdHeaders headers = all_headers[h];
        int fd = client_open(&bench, headers);

        for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
            EXPECT_EQ(client_run(fd, headers, cases[i].type, cases[i].flags, cases[i].offset_bytes,
                                 cases[i].len_bytes),
                      cases[i].error);
        }
        /* With a payload, which has to be passed over. */
        EXPECT_EQ(client_write(fd, headers, 0, DISK_BYTES - 511, buf, 512), NBD_ENOSPC);
        EXPECT_EQ(client_write(fd, headers, 0, UINT64_MAX - 5, buf, 512), NBD_ENOSPC);
        EXPECT_EQ(client_write(fd, headers, NBD_CMD_FLAG_DF, 0, buf, 512), NBD_EINVAL);
        EXPECT_EQ(client_run(fd, headers, NBD_CMD_FLUSH, 0, 0, 0), 0u);
        close(fd);
    }
    for (unsigned i = 0; i < MEM_NB_OPS; i++) {
        EXPECT_EQ(bench.mem.stats.ops[i], i == MEM_FLUSH ? ARRAY_SIZE(all_headers) : 0u);
    }
    bench_finish(&bench);
}

TEST(nbd_server, status_and_one_piece_need_what_was_not_agreed_on)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = client_open(&bench, NBD_HEADERS_SIMPLE);

    EXPECT_EQ(client_run(fd, NBD_HEADERS_SIMPLE, NBD_CMD_BLOCK_STATUS, 0, 0, 512), NBD_EINVAL);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_SIMPLE, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 512),
              NBD_EINVAL);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_SIMPLE, NBD_CMD_READ, NBD_CMD_FLAG_PAYLOAD_LEN, 0, 512),
              NBD_EINVAL);
    leave(&bench, fd);
}

/* Of extended headers the flag says whether a payload follows, whatever the command. */
TEST(nbd_server, payloads_where_none_belong_are_passed_over)
{
    static uint8_t payload[20000];
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = client_open(&bench, NBD_HEADERS_EXTENDED);
    static const uint16_t types[] = { NBD_CMD_READ, NBD_CMD_FLUSH, NBD_CMD_TRIM,
                                      NBD_CMD_BLOCK_STATUS, 4711 };

    for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
        client_request(fd, NBD_HEADERS_EXTENDED, types[i], NBD_CMD_FLAG_PAYLOAD_LEN, i, 0,
                       sizeof(payload));
        client_send(fd, payload, sizeof(payload));
        EXPECT_EQ(client_error(fd, NBD_HEADERS_EXTENDED, i), NBD_EINVAL);
    }
    /* And a write without it has none. */
    EXPECT_EQ(client_run(fd, NBD_HEADERS_EXTENDED, NBD_CMD_WRITE, 0, 0, 512), NBD_EINVAL);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_EXTENDED, NBD_CMD_FLUSH, 0, 0, 0), 0u);
    leave(&bench, fd);
}

TEST(nbd_server, a_read_only_export_is_not_written_to)
{
    uint8_t buf[512];
    Bench bench;

    bench_init(&bench, &(BenchConfig){ .read_only = true });
    int fd = client_open(&bench, NBD_HEADERS_STRUCTURED);

    memset(buf, 'w', sizeof(buf));
    EXPECT_EQ(client_write(fd, NBD_HEADERS_STRUCTURED, 0, 0, buf, sizeof(buf)), NBD_EPERM);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_STRUCTURED, NBD_CMD_TRIM, 0, 0, 512), NBD_EPERM);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_STRUCTURED, NBD_CMD_WRITE_ZEROES, 0, 0, 512), NBD_EPERM);
    EXPECT_EQ(client_run(fd, NBD_HEADERS_STRUCTURED, NBD_CMD_FLUSH, 0, 0, 0), 0u);
    EXPECT_EQ(client_read(fd, NBD_HEADERS_STRUCTURED, 0, 0, buf, sizeof(buf), NULL), 0u);
    EXPECT_EQ(buf[0], 0);
    EXPECT_EQ(bench.mem.stats.ops[MEM_WRITE] + bench.mem.stats.ops[MEM_DISCARD] +
                  bench.mem.stats.ops[MEM_ZEROES],
              0u);
    leave(&bench, fd);
}

/* --- connections that end --- */

TEST(nbd_server, a_payload_over_the_limit_ends_the_connection)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int other = client_open(&bench, NBD_HEADERS_SIMPLE);
    int fd = client_open(&bench, NBD_HEADERS_SIMPLE);

    client_request(fd, NBD_HEADERS_SIMPLE, NBD_CMD_WRITE, 0, 1, 0, (32u << 20) + 1);
    EXPECT_TRUE(client_sees_end(fd));
    EXPECT_TRUE(test_logged("33554433 bytes"));
    close(fd);
    fd = client_open(&bench, NBD_HEADERS_EXTENDED);
    client_request(fd, NBD_HEADERS_EXTENDED, NBD_CMD_FLUSH, NBD_CMD_FLAG_PAYLOAD_LEN, 1, 0,
                   UINT64_MAX);
    EXPECT_TRUE(client_sees_end(fd));
    EXPECT_TRUE(test_logged("18446744073709551615 bytes"));
    EXPECT_EQ(client_run(other, NBD_HEADERS_SIMPLE, NBD_CMD_FLUSH, 0, 0, 0), 0u);
    close(other);
    leave(&bench, fd);
}

TEST(nbd_server, a_wrong_magic_ends_the_connection_after_the_answers_due)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = client_open(&bench, NBD_HEADERS_SIMPLE);

    bench.mem.yield = MEM_YIELD_PARK;
    client_request(fd, NBD_HEADERS_SIMPLE, NBD_CMD_FLUSH, 0, 4, 0, 0);
    client_send(fd, "this is no request of any kind", 30);
    bench_wait_parked(&bench, 1);
    while (!test_logged("no request")) {
        sched_yield();
    }
    bench.mem.yield = MEM_YIELD_NEVER;
    mem_release_all(&bench.mem);
    EXPECT_EQ(client_error(fd, NBD_HEADERS_SIMPLE, 4), 0u);
    EXPECT_TRUE(client_sees_end(fd));
    leave(&bench, fd);
}

TEST(nbd_server, disc_ends_after_the_answers_due)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = client_open(&bench, NBD_HEADERS_EXTENDED);

    bench.mem.yield = MEM_YIELD_PARK;
    client_request(fd, NBD_HEADERS_EXTENDED, NBD_CMD_FLUSH, 0, 4, 0, 0);
    client_request(fd, NBD_HEADERS_EXTENDED, NBD_CMD_DISC, 0, 5, 0, 0);
    bench_wait_parked(&bench, 1);
    bench.mem.yield = MEM_YIELD_NEVER;
    mem_release_all(&bench.mem);
    EXPECT_EQ(client_error(fd, NBD_HEADERS_EXTENDED, 4), 0u);
    EXPECT_TRUE(client_sees_end(fd));
    leave(&bench, fd);
    EXPECT_FALSE(test_logged(NULL));
}

TEST(nbd_server, a_client_that_goes_away_leaves_its_requests_to_end)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = client_open(&bench, NBD_HEADERS_SIMPLE);

    bench.mem.yield = MEM_YIELD_PARK;
    for (unsigned i = 0; i < 10; i++) {
        client_request(fd, NBD_HEADERS_SIMPLE, NBD_CMD_READ, 0, i, i * 512, 512);
    }
    bench_wait_parked(&bench, 10);
    close(fd);
    EXPECT_EQ(nbd_server_nb_connections(bench.server), 1u);
    bench.mem.yield = MEM_YIELD_NEVER;
    mem_release_all(&bench.mem);
    bench_finish(&bench);
}

/* --- many at once --- */

TEST(nbd_server, requests_of_one_connection_run_at_once_and_end_in_any_order)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = client_open(&bench, NBD_HEADERS_STRUCTURED);

    bench.mem.yield = MEM_YIELD_PARK;
    client_request(fd, NBD_HEADERS_STRUCTURED, NBD_CMD_FLUSH, 0, 1, 0, 0);
    client_request(fd, NBD_HEADERS_STRUCTURED, NBD_CMD_FLUSH, 0, 1, 0, 0); /* the same cookie */
    client_request(fd, NBD_HEADERS_STRUCTURED, NBD_CMD_TRIM, 0, 3, 0, 512);
    bench_wait_parked(&bench, 3);
    for (unsigned i = 0; i < 3; i++) {
        if (mem_parked(&bench.mem, i).op == MEM_DISCARD) {
            mem_release(&bench.mem, i);
            break;
        }
    }
    EXPECT_EQ(client_error(fd, NBD_HEADERS_STRUCTURED, 3), 0u);
    bench.mem.yield = MEM_YIELD_NEVER;
    mem_release_all(&bench.mem);
    EXPECT_EQ(client_error(fd, NBD_HEADERS_STRUCTURED, 1), 0u);
    EXPECT_EQ(client_error(fd, NBD_HEADERS_STRUCTURED, 1), 0u);
    leave(&bench, fd);
}

static bool flush_is_parked(Bench *bench)
{
    for (unsigned i = 0; i < mem_nb_parked(&bench->mem); i++) {
        if (mem_parked(&bench->mem, i).op == MEM_FLUSH) {
            return true;
        }
    }
    return false;
}

static void release_all_bh(void *opaque)
{
    mem_release_all(opaque);
}

/* Their storage is done with them in one pass of the event loop. */
TEST(nbd_server, answers_that_are_ready_together_go_out_in_one_call)
{
    static uint8_t out[4096], in[512];
    uint64_t cookies = 0;
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = client_open(&bench, NBD_HEADERS_SIMPLE);

    fill(out, sizeof(out), 1);
    ASSERT_EQ(client_write(fd, NBD_HEADERS_SIMPLE, 0, 0, out, sizeof(out)), 0u);
    bench.mem.yield = MEM_YIELD_PARK;
    for (unsigned i = 0; i < 8; i++) {
        client_request(fd, NBD_HEADERS_SIMPLE, NBD_CMD_READ, 0, i, 512 * i, 512);
    }
    bench_wait_parked(&bench, 8);
    bench.mem.yield = MEM_YIELD_NEVER;
    unsigned sends = bench_nb_sends();

    aio_run_sync(iothread_context(bench.iothreads[0]), release_all_bh, &bench.mem);
    for (unsigned i = 0; i < 8; i++) {
        NbdReply reply = client_reply(fd, NBD_HEADERS_SIMPLE);

        ASSERT_TRUE(reply.error == 0 && reply.cookie < 8);
        cookies |= 1u << reply.cookie;
        client_receive(fd, in, sizeof(in));
        EXPECT_EQ(memcmp(in, out + 512 * reply.cookie, sizeof(in)), 0);
    }
    EXPECT_EQ(cookies, 0xffu);
    EXPECT_EQ(bench_nb_sends() - sends, 1u);
    leave(&bench, fd);
}

/* Which may be as long as the disk: here, four reads. */
TEST(nbd_server, caching_ends_when_the_client_has_gone)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = client_open(&bench, NBD_HEADERS_SIMPLE);
    int other = client_open(&bench, NBD_HEADERS_SIMPLE);

    EXPECT_EQ(client_run(fd, NBD_HEADERS_SIMPLE, NBD_CMD_CACHE, 0, 0, DISK_BYTES), 0u);
    EXPECT_EQ(bench.mem.stats.ops[MEM_READ], 4u);
    bench.mem.yield = MEM_YIELD_PARK;
    client_request(fd, NBD_HEADERS_SIMPLE, NBD_CMD_CACHE, 0, 1, 0, DISK_BYTES);
    bench_wait_parked(&bench, 1);
    close(fd);
    /* Served in the same thread, after the end of the other one was seen. */
    client_request(other, NBD_HEADERS_SIMPLE, NBD_CMD_FLUSH, 0, 2, 0, 0);
    bench_wait_parked(&bench, 2);
    bench.mem.yield = MEM_YIELD_NEVER;
    mem_release_all(&bench.mem);
    EXPECT_EQ(client_error(other, NBD_HEADERS_SIMPLE, 2), 0u);
    bench_wait_connections(&bench, 1);
    EXPECT_EQ(bench.mem.stats.ops[MEM_READ], 5u);
    leave(&bench, other);
}

/* One request more than there is place for: it waits in the socket, and does not reach the disk. */
static main_fn void expect_bound(const NbdServerParams *params, size_t len_bytes, unsigned nb)
{
    static uint8_t in[1 << 20];
    Bench bench;

    bench_init(&bench, &(BenchConfig){ .params = *params });
    int fd = client_open(&bench, NBD_HEADERS_SIMPLE);
    int other = client_open(&bench, NBD_HEADERS_SIMPLE);

    bench.mem.yield = MEM_YIELD_PARK;
    for (unsigned i = 0; i < nb + 1; i++) {
        client_request(fd, NBD_HEADERS_SIMPLE, NBD_CMD_READ, 0, i, 0, len_bytes);
    }
    bench_wait_parked(&bench, nb);
    /* Another connection, in the same thread, has its own: by the time it is served the first one
     * has seen all that was sent. */
    client_request(other, NBD_HEADERS_SIMPLE, NBD_CMD_FLUSH, 0, 1000, 0, 0);
    while (!flush_is_parked(&bench)) {
        sched_yield();
    }
    EXPECT_EQ(mem_nb_parked(&bench.mem), nb + 1);
    bench.mem.yield = MEM_YIELD_NEVER;
    mem_release_all(&bench.mem);
    for (unsigned i = 0; i < nb + 1; i++) {
        EXPECT_EQ(client_reply(fd, NBD_HEADERS_SIMPLE).error, 0u);
        client_receive(fd, in, len_bytes);
    }
    EXPECT_EQ(client_error(other, NBD_HEADERS_SIMPLE, 1000), 0u);
    close(other);
    leave(&bench, fd);
    EXPECT_LE(bench.mem.stats.active_max, (int)nb + 1);
}

TEST(nbd_server, requests_in_flight_are_bounded_for_each_connection)
{
    expect_bound(&(NbdServerParams){ .requests_max = 3 }, 512, 3);
}

TEST(nbd_server, memory_in_flight_is_bounded_for_each_connection)
{
    expect_bound(&(NbdServerParams){ .memory_bytes = 1 << 20 }, 400000, 2);
}

/* One that each connection has a right to, and the one that its receiver carries out. */
TEST(nbd_server, requests_that_find_no_coroutine_are_carried_out_all_the_same)
{
    co_set_stacks_max(0);
    expect_bound(&(NbdServerParams){ 0 }, 512, 2);
}

TEST(nbd_server, one_request_of_all_the_memory_there_is_goes_through)
{
    static uint8_t out[1 << 20], in[1 << 20];
    Bench bench;

    bench_init(&bench, &(BenchConfig){ .params = { .memory_bytes = 1 << 20 } });
    int fd = client_open(&bench, NBD_HEADERS_SIMPLE);

    fill(out, sizeof(out), 3);
    for (unsigned i = 0; i < 4; i++) {
        EXPECT_EQ(client_write(fd, NBD_HEADERS_SIMPLE, 0, 0, out, sizeof(out)), 0u);
        EXPECT_EQ(client_read(fd, NBD_HEADERS_SIMPLE, 0, 0, in, sizeof(in), NULL), 0u);
        EXPECT_EQ(memcmp(in, out, sizeof(in)), 0);
    }
    leave(&bench, fd);
}

/* Its answers fill the socket, and nobody takes them: it alone waits. */
TEST(nbd_server, a_client_that_takes_no_answers_stops_only_itself)
{
    static uint8_t in[65536];
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = client_open(&bench, NBD_HEADERS_SIMPLE);
    int other = client_open(&bench, NBD_HEADERS_SIMPLE);

    for (unsigned i = 0; i < 64; i++) {
        client_request(fd, NBD_HEADERS_SIMPLE, NBD_CMD_READ, 0, i, 0, sizeof(in));
    }
    for (unsigned i = 0; i < 64; i++) {
        ASSERT_EQ(client_read(other, NBD_HEADERS_SIMPLE, 0, 0, in, sizeof(in), NULL), 0u);
    }
    for (unsigned i = 0; i < 64; i++) { /* now it does */
        ASSERT_EQ(client_reply(fd, NBD_HEADERS_SIMPLE).error, 0u);
        client_receive(fd, in, sizeof(in));
    }
    close(other);
    leave(&bench, fd);
}

/* What was answered on one connection is flushed by another, in another thread. */
TEST(nbd_server, a_flush_covers_what_was_answered_on_every_connection)
{
    uint8_t data[512] = { 1 };
    Bench bench;

    bench_init(&bench, &(BenchConfig){ .nb_iothreads = 4 });
    int fds[4];

    for (unsigned i = 0; i < 4; i++) {
        fds[i] = client_connect(&bench);
        EXPECT_TRUE(client_enter(fds[i], NBD_HEADERS_SIMPLE).flags & NBD_FLAG_CAN_MULTI_CONN);
    }
    for (unsigned i = 0; i < 4; i++) {
        for (unsigned j = 0; j < 4; j++) {
            ASSERT_EQ(client_write(fds[j], NBD_HEADERS_SIMPLE, 0, 512 * j, data, 512), 0u);
        }
        unsigned flushes = bench.mem.stats.ops[MEM_FLUSH];

        /* All four have reached the storage before the flush does. */
        EXPECT_EQ(bench.mem.stats.ops[MEM_WRITE], 4 * (i + 1));
        ASSERT_EQ(client_run(fds[i], NBD_HEADERS_SIMPLE, NBD_CMD_FLUSH, 0, 0, 0), 0u);
        EXPECT_EQ(bench.mem.stats.ops[MEM_FLUSH], flushes + 1);
    }
    for (unsigned i = 0; i < 4; i++) {
        close(fds[i]);
    }
    bench_finish(&bench);
}

/* --- drained sections and the length --- */

TEST(nbd_server, requests_wait_for_the_end_of_a_drained_section)
{
    Bench bench;

    bench_init(&bench, &(BenchConfig){ .nb_iothreads = 2 });
    int fd = client_open(&bench, NBD_HEADERS_SIMPLE);

    for (unsigned round = 0; round < 50; round++) {
        for (unsigned i = 0; i < 20; i++) {
            client_request(fd, NBD_HEADERS_SIMPLE, NBD_CMD_TRIM, 0, i, 0, 512);
        }
        blk_drained_begin(bench.mem.blk); /* some before, some within */
        unsigned done = bench.mem.stats.ops[MEM_DISCARD];

        client_request(fd, NBD_HEADERS_SIMPLE, NBD_CMD_TRIM, 0, 20, 0, 512);
        EXPECT_EQ(bench.mem.stats.active, 0);
        for (unsigned i = 0; i < 100; i++) {
            sched_yield();
        }
        EXPECT_EQ(bench.mem.stats.ops[MEM_DISCARD], done);
        blk_drained_end(bench.mem.blk);
        for (unsigned i = 0; i < 21; i++) {
            EXPECT_EQ(client_reply(fd, NBD_HEADERS_SIMPLE).error, 0u);
        }
    }
    leave(&bench, fd);
}

/* Its answers fill the socket; none of its requests is in the storage any more. */
TEST(nbd_server, a_drained_section_does_not_wait_for_clients_that_take_no_answers)
{
    static uint8_t in[65536];
    Bench bench;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = client_open(&bench, NBD_HEADERS_SIMPLE);

    for (unsigned i = 0; i < 64; i++) {
        client_request(fd, NBD_HEADERS_SIMPLE, NBD_CMD_READ, 0, i, 0, sizeof(in));
    }
    for (unsigned i = 0; i < 3; i++) {
        blk_drained_begin(bench.mem.blk);
        EXPECT_EQ(bench.mem.stats.active, 0);
        blk_drained_end(bench.mem.blk);
    }
    for (unsigned i = 0; i < 64; i++) {
        ASSERT_EQ(client_reply(fd, NBD_HEADERS_SIMPLE).error, 0u);
        client_receive(fd, in, sizeof(in));
    }
    leave(&bench, fd);
}

TEST(nbd_server, a_disk_that_changes_its_length_is_served_as_it_is)
{
    uint8_t buf[512] = { 0 };
    Bench bench;
    Error err;

    bench_init(&bench, &(BenchConfig){ 0 });
    int fd = client_open(&bench, NBD_HEADERS_STRUCTURED);

    ASSERT_EQ(blk_truncate(bench.mem.blk, DISK_BYTES / 2, &err), 0);
    EXPECT_EQ(client_read(fd, NBD_HEADERS_STRUCTURED, 0, DISK_BYTES / 2, buf, 512, NULL),
              NBD_EINVAL);
    EXPECT_EQ(client_write(fd, NBD_HEADERS_STRUCTURED, 0, DISK_BYTES / 2, buf, 512), NBD_ENOSPC);
    int second = client_connect(&bench);

    EXPECT_EQ(client_enter(second, NBD_HEADERS_SIMPLE).length_bytes, DISK_BYTES / 2);
    ASSERT_EQ(blk_truncate(bench.mem.blk, DISK_BYTES, &err), 0);
    EXPECT_EQ(client_read(fd, NBD_HEADERS_STRUCTURED, 0, DISK_BYTES / 2, buf, 512, NULL), 0u);
    close(second);
    leave(&bench, fd);
}

TEST_MAIN()
