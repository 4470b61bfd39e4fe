/*
 * test-block-io.c - splitting, bouncing, read-modify-write, zeroes, discard, stable writes
 */
#include "block/block-io.h"

#include <stdio.h>
#include <string.h>

#include "block/bounce.h"
#include "block/tests/block-test.h"
#include "block/tests/mem-driver.h"
#include "block/tests/pass-driver.h"
#include "io/aio/iothread.h"

#define KIB 1024u

/* --- random requests against a model --- */

#define MODEL_BYTES (96 * KIB)
#define MODEL_IOV   12

typedef struct Model {
    MemDisk disk;
    char *expect;
    char *memory; /* buffers are pieces of this one */
    Random random;
} Model;

/* Cut [0, len) of memory at random places into segments, some of them empty, some misaligned. */
static int random_iov(Model *m, uint64_t len_bytes, struct iovec *iov)
{
    size_t at = random_below(&m->random, 2) ? 0 : random_below(&m->random, 4096);
    uint32_t unit = random_below(&m->random, 2) ? 512 : 1;
    int niov = 0;

    while (len_bytes > 0) {
        size_t len = MIN((uint64_t)random_below(&m->random, 8192) / unit * unit, len_bytes);

        if (niov == MODEL_IOV - 1) {
            len = len_bytes;
        }
        iov[niov++] = (struct iovec){ m->memory + at, len };
        len_bytes -= len;
        at += len;
    }
    return niov;
}

static void gather(const struct iovec *iov, int niov, char *to)
{
    for (int i = 0; i < niov; i++) {
        memcpy(to, iov[i].iov_base, iov[i].iov_len);
        to += iov[i].iov_len;
    }
}

static void random_request(Model *m)
{
    static char flat[MODEL_BYTES];
    struct iovec iov[MODEL_IOV];
    uint32_t unit = random_below(&m->random, 3) ? 1 : 4096;
    uint32_t offset = random_below(&m->random, MODEL_BYTES) / unit * unit;
    uint32_t len = random_below(&m->random, MIN(MODEL_BYTES - offset, 40000u)) / unit * unit;
    Request req = { .blk = m->disk.blk,
                    .kind = random_below(&m->random, 4) ? random_below(&m->random, 2) : REQ_ZEROES,
                    .offset_bytes = offset,
                    .len_bytes = len,
                    .iov = iov };

    req.niov = random_iov(m, len, iov);
    if (req.kind == REQ_WRITE) {
        for (int i = 0; i < req.niov; i++) {
            random_fill(&m->random, iov[i].iov_base, MIN(iov[i].iov_len, (size_t)64));
        }
        gather(iov, req.niov, m->expect + offset);
    } else if (req.kind == REQ_ZEROES) {
        memset(m->expect + offset, 0, len);
    }
    ASSERT_EQ(request_run(&req), 0);
    if (req.kind == REQ_READ && len > 0) {
        gather(iov, req.niov, flat);
        ASSERT_EQ(memcmp(flat, m->expect + offset, len), 0);
    }
}

static void compare_with_model(const MemConfig *config, uint64_t seed)
{
    Env env;
    Model m = { .random = { seed } };

    env_init(&env, 0);
    mem_open(&m.disk, config);
    m.expect = calloc(1, MODEL_BYTES);
    ASSERT_EQ(posix_memalign((void **)&m.memory, 65536, MODEL_BYTES + 8192), 0);
    memset(m.memory, 'm', MODEL_BYTES + 8192);
    for (unsigned i = 0; i < 400; i++) {
        random_request(&m);
    }
    EXPECT_EQ(memcmp(m.disk.data, m.expect, MODEL_BYTES), 0);
    EXPECT_EQ(m.disk.stats.violations, 0u);
    EXPECT_EQ(mem_close(&m.disk), 0);
    free(m.expect);
    free(m.memory);
    env_finish(&env);
}

static void compare_with_models(uint32_t request_alignment)
{
    static const uint32_t buffer_alignments[] = { 1, 512, 4096 };

    for (unsigned i = 0; i < 6; i++) {
        unsigned small = i % 2;
        MemConfig config = {
            .length_bytes = MODEL_BYTES,
            .limits = { .request_alignment = request_alignment,
                        .buffer_alignment = buffer_alignments[i / 2],
                        .max_transfer_bytes =
                            small ? 12 * KIB + 512 * (request_alignment == 512) : 0,
                        .max_iov = small ? 3 : 0,
                        .max_write_zeroes_bytes = small ? 8 * KIB : 0 },
            .no_zeroes = i / 2 == 1,
        };

        compare_with_model(&config, request_alignment + i);
    }
}

TEST(block_io, requests_of_every_kind_match_a_model)
{
    compare_with_models(1);
}

TEST(block_io, requests_that_are_no_sectors_match_a_model)
{
    compare_with_models(512);
}

TEST(block_io, requests_that_are_no_large_blocks_match_a_model)
{
    compare_with_models(4096);
}

/* --- splitting --- */

TEST(block_io, request_longer_than_the_limit_is_split)
{
    Env env;
    MemDisk disk;
    char *buf = calloc(1, 100 * KIB);

    env_init(&env, 0);
    mem_open(&disk, &(MemConfig){ .length_bytes = 128 * KIB,
                                  .limits = { .max_transfer_bytes = 16 * KIB } });
    memset(buf, 'a', 100 * KIB);
    EXPECT_EQ(run_write(disk.blk, 4 * KIB, 100 * KIB, buf, 0), 0);
    EXPECT_EQ(disk.stats.ops[MEM_WRITE], 7u);
    EXPECT_EQ(run_read(disk.blk, 4 * KIB, 100 * KIB, buf), 0);
    EXPECT_EQ(disk.stats.ops[MEM_READ], 7u);
    EXPECT_EQ(disk.stats.violations, 0u);
    EXPECT_EQ(mem_close(&disk), 0);
    free(buf);
    env_finish(&env);
}

TEST(block_io, more_segments_than_the_limit_are_split)
{
    enum { NB = 1000 };
    Env env;
    MemDisk disk;
    char *buf = calloc(NB, 512);
    struct iovec iov[NB];
    Request req = { .kind = REQ_WRITE, .len_bytes = NB * 512, .iov = iov, .niov = NB };

    env_init(&env, 0);
    mem_open(&disk, &(MemConfig){ .length_bytes = NB * 512, .limits = { .max_iov = 100 } });
    for (int i = 0; i < NB; i++) {
        iov[i] = (struct iovec){ buf + (NB - 1 - i) * 512, 512 };
        memset(iov[i].iov_base, i, 512);
    }
    req.blk = disk.blk;
    EXPECT_EQ(request_run(&req), 0);
    EXPECT_EQ(disk.stats.ops[MEM_WRITE], 16u); /* 64 at a time */
    for (int i = 0; i < NB; i++) {
        ASSERT_EQ(disk.data[i * 512], (char)i);
    }
    EXPECT_EQ(disk.stats.violations, 0u);
    EXPECT_EQ(mem_close(&disk), 0);
    free(buf);
    env_finish(&env);
}

TEST(block_io, aligned_request_goes_to_the_driver_once)
{
    Env env;
    MemDisk disk;
    char *buf;

    env_init(&env, 0);
    ASSERT_EQ(posix_memalign((void **)&buf, 4096, 8 * KIB), 0);
    memset(buf, 0, 8 * KIB);
    mem_open(&disk,
             &(MemConfig){ .length_bytes = 64 * KIB,
                           .limits = { .request_alignment = 4096, .buffer_alignment = 512 } });
    EXPECT_EQ(run_write(disk.blk, 4 * KIB, 8 * KIB, buf, 0), 0);
    EXPECT_EQ(run_read(disk.blk, 4 * KIB, 8 * KIB, buf), 0);
    EXPECT_EQ(disk.stats.ops[MEM_WRITE], 1u);
    EXPECT_EQ(disk.stats.ops[MEM_READ], 1u);
    /* Misaligned in memory: bounced, but whole blocks need no read. */
    EXPECT_EQ(run_write(disk.blk, 4 * KIB, 4 * KIB, buf + 1, 0), 0);
    EXPECT_EQ(disk.stats.ops[MEM_WRITE], 2u);
    EXPECT_EQ(disk.stats.ops[MEM_READ], 1u);
    EXPECT_EQ(mem_close(&disk), 0);
    free(buf);
    env_finish(&env);
}

TEST(block_io, last_partial_block_of_a_read_only_node_is_read_whole)
{
    Env env;
    MemDisk disk;
    char buf[2048];

    env_init(&env, 0);
    mem_open(&disk, &(MemConfig){ .length_bytes = 9 * 512,
                                  .limits = { .request_alignment = 4096 },
                                  .options = "readonly=on" });
    disk.data[9 * 512 - 1] = 'z';
    memset(buf, 'x', sizeof(buf));
    EXPECT_EQ(run_read(disk.blk, 7 * 512, 1024, buf), 0);
    EXPECT_EQ(buf[1023], 'z');
    EXPECT_EQ(buf[1024], 'x');
    EXPECT_EQ(run_read(disk.blk, 8 * 512, 1024, buf), -EINVAL);
    EXPECT_EQ(disk.stats.violations, 0u);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

/* --- writes that must be kept apart --- */

#define SLOT_BYTES  300 /* no divisor of a block: slots share blocks */
#define NB_SLOTS    24
#define GENERATIONS 40

/* A coroutine that writes its own slot again and again and always finds there what it wrote. */
typedef struct Slot {
    BlockBackend *blk;
    unsigned index;
    _Atomic unsigned wrong;
    _Atomic bool done;
} Slot;

static void slot_entry(void *opaque)
{
    Slot *slot = opaque;
    char buf[SLOT_BYTES], back[SLOT_BYTES];
    struct iovec iov = { buf, sizeof(buf) }, iov_back = { back, sizeof(back) };
    uint64_t at = (uint64_t)slot->index * SLOT_BYTES;

    assert_in_coroutine();
    for (unsigned g = 1; g <= GENERATIONS; g++) {
        memset(buf, (int)(slot->index + g), sizeof(buf));
        if (blk_co_pwritev(slot->blk, at, sizeof(buf), &iov, 1, 0) < 0 ||
            blk_co_preadv(slot->blk, at, sizeof(back), &iov_back, 1, 0) < 0 ||
            memcmp(buf, back, sizeof(buf)) != 0) {
            atomic_fetch_add(&slot->wrong, 1);
        }
    }
    atomic_store(&slot->done, true);
}

static const MemConfig rmw_config = {
    .length_bytes = 64 * KIB,
    .limits = { .request_alignment = 4096, .buffer_alignment = 512 },
};

TEST(block_io, neighbours_in_one_block_do_not_undo_each_other)
{
    Env env;
    MemDisk disk;
    Slot slots[NB_SLOTS];

    env_init(&env, 3);
    mem_open(&disk, &rmw_config);
    atomic_store(&disk.yield, MEM_YIELD_TWICE);
    for (unsigned i = 0; i < NB_SLOTS; i++) {
        slots[i] = (Slot){ .blk = disk.blk, .index = i };
        aio_co_schedule(env.ctx[i % 3], co_create(slot_entry, &slots[i]));
    }
    env_settle(&env);
    for (unsigned i = 0; i < NB_SLOTS; i++) {
        EXPECT_TRUE(slots[i].done);
        EXPECT_EQ(slots[i].wrong, 0u);
    }
    EXPECT_EQ(disk.stats.violations, 0u);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

TEST(block_io, neighbours_in_one_block_in_real_threads)
{
    Env env;
    MemDisk disk;
    Slot slots[NB_SLOTS];
    IOThread *threads[3];
    Error err;

    env_init(&env, 0);
    mem_open(&disk, &rmw_config);
    atomic_store(&disk.yield, MEM_YIELD_TWICE);
    for (unsigned i = 0; i < 3; i++) {
        threads[i] = iothread_create("t", NULL, &err);
        ASSERT_TRUE(threads[i] != NULL);
    }
    for (unsigned i = 0; i < NB_SLOTS; i++) {
        slots[i] = (Slot){ .blk = disk.blk, .index = i };
        aio_co_schedule(iothread_context(threads[i % 3]), co_create(slot_entry, &slots[i]));
    }
    for (unsigned i = 0; i < NB_SLOTS; i++) {
        while (!atomic_load(&slots[i].done)) {
            usleep(200);
        }
        EXPECT_EQ(slots[i].wrong, 0u);
    }
    EXPECT_EQ(disk.stats.violations, 0u);
    EXPECT_EQ(mem_close(&disk), 0);
    for (unsigned i = 0; i < 3; i++) {
        iothread_unref(threads[i]);
    }
    env_finish(&env);
}

/* There has been a read-modify-write: aligned writes are in the list, too. */
static bool tracked_before;

/* Request @first is under way and parked when @second comes from another context; they share a
 * block. What reaches the driver of the second before the first has ended? */
static void expect_second_waits(Request first, Request second, bool waits)
{
    Env env;
    MemDisk disk;
    char byte = 0;

    env_init(&env, 2);
    mem_open(&disk, &rmw_config);
    if (tracked_before) {
        ASSERT_EQ(run_write(disk.blk, 60 * KIB, 1, &byte, 0), 0);
    }
    atomic_store(&disk.yield, MEM_YIELD_PARK);
    first.blk = second.blk = disk.blk;

    request_start(&first, env.ctx[0]);
    env_settle(&env);
    ASSERT_EQ(mem_nb_parked(&disk), 1u);
    request_start(&second, env.ctx[1]);
    env_settle(&env);
    EXPECT_EQ(mem_nb_parked(&disk), waits ? 1u : 2u);

    while (!first.done || !second.done) {
        mem_release(&disk, 0);
        env_settle(&env);
    }
    EXPECT_EQ(first.ret, 0);
    EXPECT_EQ(second.ret, 0);
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

static char block_buffer[4096] __attribute__((aligned(4096)));

static Request write_at(uint64_t offset_bytes, uint64_t len_bytes)
{
    return (Request){
        .kind = REQ_WRITE, .offset_bytes = offset_bytes, .len_bytes = len_bytes, .buf = block_buffer
    };
}

static void expect_which_meet(void)
{
    Request zeroes = { .kind = REQ_ZEROES, .len_bytes = 100 };
    Request read = { .kind = REQ_READ, .len_bytes = 4096, .buf = block_buffer };

    /* the first read-modify-write ever waits for the aligned write that is only counted */
    expect_second_waits(write_at(0, 4096), write_at(0, 512), true);
    expect_second_waits(write_at(0, 512), write_at(0, 4096), true);
    expect_second_waits(write_at(0, 512), write_at(1024, 512), true);
    expect_second_waits(write_at(0, 512), zeroes, true);
    zeroes.len_bytes = 4096;
    expect_second_waits(write_at(0, 512), zeroes, true);
    expect_second_waits(zeroes, write_at(0, 512), true);

    expect_second_waits(write_at(0, 4096), write_at(0, 4096), false);
    expect_second_waits(write_at(0, 512), write_at(4096, 512), false);
    expect_second_waits(write_at(4096, 512), write_at(0, 4096), false);
    expect_second_waits(write_at(0, 512), read, false);
}

TEST(block_io, writes_meet_when_one_keeps_part_of_a_block_that_both_touch)
{
    expect_which_meet();
}

TEST(block_io, writes_meet_no_more_often_once_all_are_in_the_list)
{
    tracked_before = true;
    expect_which_meet();
}

/* @modify_blk keeps part of a block that @aligned_blk writes as a whole; both lead to @disk. */
static void expect_not_undone(Env *env, MemDisk *disk, BlockBackend *modify_blk,
                              BlockBackend *aligned_blk)
{
    static char whole[4096] __attribute__((aligned(4096)));
    char part[100];
    Request modify = { .kind = REQ_WRITE, .len_bytes = sizeof(part), .buf = part };
    Request aligned = { .kind = REQ_WRITE, .len_bytes = sizeof(whole), .buf = whole };

    memset(part, 'p', sizeof(part));
    memset(whole, 'w', sizeof(whole));
    modify.blk = modify_blk;
    aligned.blk = aligned_blk;
    atomic_store(&disk->yield, MEM_YIELD_PARK);
    request_start(&modify, env->ctx[0]);
    env_settle(env);
    mem_release(disk, 0); /* has read the block; its write is parked next */
    env_settle(env);
    request_start(&aligned, env->ctx[1]);
    env_settle(env);
    while (!modify.done || !aligned.done) {
        mem_release(disk, mem_nb_parked(disk) - 1);
        env_settle(env);
    }
    for (unsigned i = sizeof(part); i < sizeof(whole); i++) {
        ASSERT_EQ(disk->data[i], 'w');
    }
    atomic_store(&disk->yield, MEM_YIELD_NEVER);
}

TEST(block_io, aligned_write_during_a_read_modify_write_is_not_undone)
{
    Env env;
    MemDisk disk;

    env_init(&env, 2);
    mem_open(&disk, &rmw_config);
    expect_not_undone(&env, &disk, disk.blk, disk.blk);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

/* Several ways lead to a disk that is exported twice, once through a throttle. */
TEST(block_io, nor_is_one_that_came_another_way)
{
    Env env;
    MemDisk disk;
    MemConfig config = rmw_config;
    BlockBackend *plain, *filtered;
    BlockNode *filter;
    char options[64];

    env_init(&env, 2);
    config.no_backend = true;
    mem_open(&disk, &config);
    snprintf(options, sizeof(options), "file=%s", bdrv_id(disk.node));
    filter = pass_open(options, NULL);
    ASSERT_TRUE(filter != NULL);
    plain = blk_create("plain", disk.node, BLK_PERM_ALL, BLK_PERM_ALL, NULL);
    filtered = blk_create("filtered", filter, BLK_PERM_ALL, BLK_PERM_ALL, NULL);
    ASSERT_TRUE(plain && filtered);
    expect_not_undone(&env, &disk, filtered, plain);
    EXPECT_EQ(blk_close(plain), 0);
    EXPECT_EQ(blk_close(filtered), 0);
    bdrv_unref(filter);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

TEST(block_io, bounce_buffers_are_bounded_and_shared_in_order)
{
    enum { NB = BOUNCE_BUFFERS_MAX + 20 };
    static char buf[NB + 1][512] __attribute__((aligned(4096)));
    static Request reqs[NB];
    Env env;
    MemDisk disk;
    unsigned order = 0;

    env_init(&env, 2);
    mem_open(&disk,
             &(MemConfig){ .length_bytes = 1024 * KIB,
                           .limits = { .request_alignment = 512, .buffer_alignment = 512 } });
    atomic_store(&disk.yield, MEM_YIELD_PARK);
    for (unsigned i = 0; i < NB; i++) {
        reqs[i] = (Request){ .blk = disk.blk,
                             .kind = REQ_READ,
                             .offset_bytes = i * 512,
                             .len_bytes = 512,
                             .buf = buf[i] + 1, /* misaligned */
                             .order = &order };
        request_start(&reqs[i], env.ctx[i % 2]);
        env_settle(&env);
    }
    EXPECT_EQ(mem_nb_parked(&disk), (unsigned)BOUNCE_BUFFERS_MAX);
    while (mem_nb_parked(&disk) > 0) {
        mem_release(&disk, 0);
        env_settle(&env);
    }
    for (unsigned i = 0; i < NB; i++) {
        EXPECT_EQ(reqs[i].ret, 0);
        EXPECT_EQ(reqs[i].rank, i + 1);
    }
    EXPECT_EQ(disk.stats.active_max, BOUNCE_BUFFERS_MAX);
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

/* --- stable writes --- */

TEST(block_io, stable_write_is_followed_by_a_flush_when_the_driver_cannot)
{
    Env env;
    MemDisk disk;
    char buf[4096] = { 0 };

    env_init(&env, 0);
    mem_open(&disk, &(MemConfig){ .length_bytes = 64 * KIB });
    EXPECT_EQ(run_write(disk.blk, 0, 4096, buf, 0), 0);
    EXPECT_EQ(disk.stats.ops[MEM_FLUSH], 0u);
    EXPECT_EQ(run_write(disk.blk, 0, 4096, buf, BLK_FUA), 0);
    EXPECT_EQ(disk.stats.ops[MEM_FLUSH], 1u);
    EXPECT_EQ(disk.stats.fua, 0u);
    EXPECT_EQ(run_zeroes(disk.blk, 0, 4096, BLK_FUA), 0);
    EXPECT_EQ(disk.stats.ops[MEM_FLUSH], 2u);

    disk.fail_nth = 2; /* the write succeeds, its flush does not */
    EXPECT_EQ(run_write(disk.blk, 0, 4096, buf, BLK_FUA), -EIO);
    disk.fail_nth = 1; /* a failed write is not flushed */
    EXPECT_EQ(run_write(disk.blk, 0, 4096, buf, BLK_FUA), -EIO);
    EXPECT_EQ(disk.stats.ops[MEM_FLUSH], 3u);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

TEST(block_io, stable_write_carries_the_flag_in_every_piece_when_the_driver_can)
{
    Env env;
    MemDisk disk;
    static char buf[16384] __attribute__((aligned(4096)));

    env_init(&env, 0);
    mem_open(&disk, &(MemConfig){ .length_bytes = 64 * KIB,
                                  .honours_fua = true,
                                  .limits = { .max_transfer_bytes = 4096,
                                              .request_alignment = 512,
                                              .buffer_alignment = 512 } });
    EXPECT_EQ(run_write(disk.blk, 0, sizeof(buf), buf, BLK_FUA), 0);
    EXPECT_EQ(disk.stats.fua, 4u);
    EXPECT_EQ(run_write(disk.blk, 100, 300, buf, BLK_FUA), 0);
    EXPECT_EQ(disk.stats.fua, 5u);
    EXPECT_EQ(disk.stats.ops[MEM_FLUSH], 0u);
    EXPECT_EQ(run_zeroes(disk.blk, 0, 4096, BLK_FUA), 0);
    EXPECT_EQ(disk.stats.ops[MEM_FLUSH], 1u);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

TEST(block_io, writethrough_makes_every_write_stable)
{
    Env env;
    MemDisk disk;
    char buf[4096] = { 0 };

    env_init(&env, 0);
    mem_open(&disk, &(MemConfig){ .length_bytes = 64 * KIB, .options = "cache=writethrough" });
    EXPECT_FALSE(blk_write_cache(disk.blk));
    EXPECT_EQ(run_write(disk.blk, 0, 4096, buf, 0), 0);
    EXPECT_EQ(disk.stats.ops[MEM_FLUSH], 1u);
    EXPECT_EQ(run_zeroes(disk.blk, 0, 4096, 0), 0);
    EXPECT_EQ(disk.stats.ops[MEM_FLUSH], 2u);
    blk_set_write_cache(disk.blk, true); /* the guest may not talk the host out of it */
    EXPECT_EQ(run_write(disk.blk, 0, 4096, buf, 0), 0);
    EXPECT_EQ(disk.stats.ops[MEM_FLUSH], 3u);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

/* --- zeroes and discard --- */

TEST(block_io, zeroes_go_to_the_driver_in_pieces_and_its_edges_as_data)
{
    Env env;
    MemDisk disk;

    env_init(&env, 0);
    mem_open(&disk, &(MemConfig){
                        .length_bytes = 64 * KIB,
                        .limits = { .request_alignment = 512, .max_write_zeroes_bytes = 10000 } });
    memset(disk.data, 'x', 64 * KIB);
    EXPECT_EQ(run_zeroes(disk.blk, 1000, 30000, BLK_MAY_UNMAP), 0);
    EXPECT_EQ(disk.stats.ops[MEM_ZEROES], 4u); /* 1024 .. 30720, at most 9728 each */
    EXPECT_EQ(disk.stats.unmap, 4u);
    EXPECT_EQ(disk.stats.ops[MEM_WRITE], 2u);
    for (unsigned i = 0; i < 64 * KIB; i++) {
        ASSERT_EQ(disk.data[i], i >= 1000 && i < 31000 ? 0 : 'x');
    }
    EXPECT_EQ(disk.stats.violations, 0u);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

TEST(block_io, zeroes_are_written_as_data_when_the_driver_cannot)
{
    Env env;
    MemDisk disk;

    env_init(&env, 0);
    mem_open(&disk, &(MemConfig){ .length_bytes = 4096 * KIB,
                                  .no_zeroes = true,
                                  .limits = { .request_alignment = 512 } });
    memset(disk.data, 'x', 4096 * KIB);
    EXPECT_EQ(run_zeroes(disk.blk, 512, 3 * 1024 * KIB, 0), 0);
    EXPECT_EQ(disk.stats.ops[MEM_WRITE], 3u); /* 1 MiB each */
    for (unsigned i = 0; i < 4096 * KIB; i++) {
        ASSERT_EQ(disk.data[i], i >= 512 && i < 3 * 1024 * KIB + 512 ? 0 : 'x');
    }
    EXPECT_EQ(disk.stats.violations, 0u);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

TEST(block_io, zeroes_are_not_written_as_data_without_a_fallback)
{
    Env env;
    MemDisk disk;

    env_init(&env, 0);
    mem_open(&disk, &(MemConfig){ .length_bytes = 64 * KIB, .no_zeroes = true });
    memset(disk.data, 'x', 64 * KIB);
    EXPECT_EQ(run_zeroes(disk.blk, 0, 64 * KIB, BLK_NO_FALLBACK), -EOPNOTSUPP);
    EXPECT_EQ(disk.stats.ops[MEM_WRITE], 0u);
    EXPECT_EQ(disk.data[0], 'x');
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

TEST(block_io, discard_is_shrunk_to_what_the_driver_takes)
{
    Env env;
    MemDisk disk;

    env_init(&env, 0);
    mem_open(&disk, &(MemConfig){ .length_bytes = 64 * KIB,
                                  .limits = { .request_alignment = 512,
                                              .discard_alignment = 3 * 512,
                                              .max_discard_bytes = 10000 } });
    memset(disk.data, 'x', 64 * KIB);
    EXPECT_EQ(run_discard(disk.blk, 1, 4 * 3 * 512 - 1), 0);
    EXPECT_EQ(disk.stats.ops[MEM_DISCARD], 1u);
    EXPECT_EQ(disk.data[3 * 512 - 1], 'x');
    EXPECT_EQ(disk.data[3 * 512], (char)0xdd);
    EXPECT_EQ(disk.data[4 * 3 * 512], 'x');
    EXPECT_EQ(run_discard(disk.blk, 1, 3 * 512), 0); /* nothing whole in it */
    EXPECT_EQ(disk.stats.ops[MEM_DISCARD], 1u);
    EXPECT_EQ(run_discard(disk.blk, 0, 64 * KIB), 0); /* 42 units, 6 at a time */
    EXPECT_EQ(disk.stats.ops[MEM_DISCARD], 8u);
    EXPECT_EQ(disk.stats.violations, 0u);
    disk.fail_nth = 1;
    EXPECT_EQ(run_discard(disk.blk, 0, 64 * KIB), -EIO);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

TEST(block_io, discard_that_is_unknown_or_unwanted_succeeds)
{
    Env env;
    MemDisk disk;

    env_init(&env, 0);
    mem_open(&disk, &(MemConfig){ .length_bytes = 64 * KIB, .no_discard = true });
    EXPECT_EQ(run_discard(disk.blk, 0, 4096), 0);
    EXPECT_EQ(disk.stats.ops[MEM_DISCARD], 1u);
    EXPECT_EQ(mem_close(&disk), 0);

    mem_open(&disk, &(MemConfig){ .length_bytes = 64 * KIB, .options = "discard=ignore" });
    EXPECT_EQ(run_discard(disk.blk, 0, 4096), 0);
    EXPECT_EQ(disk.stats.ops[MEM_DISCARD], 0u);
    EXPECT_EQ(run_zeroes(disk.blk, 0, 4096, BLK_MAY_UNMAP), 0);
    EXPECT_EQ(disk.stats.ops[MEM_ZEROES], 1u);
    EXPECT_EQ(disk.stats.unmap, 0u);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

/* --- errors --- */

/* Fail each operation that a request makes in turn; the next request finds nothing left behind. */
static void fail_each_step(MemDisk *disk, Request *req)
{
    int steps = 0;

    for (;;) {
        disk->fail_nth = steps + 1;
        disk->fail_code = -ENOSPC;
        int ret = request_run(req);

        if (ret == 0) {
            break;
        }
        ASSERT_EQ(ret, -ENOSPC);
        ASSERT_LT(++steps, 100);
    }
    disk->fail_nth = 0;
    EXPECT_GT(steps, 1);
    EXPECT_EQ(request_run(req), 0);
}

TEST(block_io, failure_of_any_step_is_the_result_and_leaves_nothing_behind)
{
    Env env;
    MemDisk disk;
    static char buf[65536];
    Request req = { .offset_bytes = 100, .len_bytes = 60000, .buf = buf, .flags = BLK_FUA };

    env_init(&env, 0);
    mem_open(&disk, &(MemConfig){ .length_bytes = 64 * KIB,
                                  .limits = { .request_alignment = 512,
                                              .max_transfer_bytes = 8192,
                                              .max_write_zeroes_bytes = 20000 } });
    req.blk = disk.blk;
    req.kind = REQ_READ;
    fail_each_step(&disk, &req);
    req.kind = REQ_WRITE;
    fail_each_step(&disk, &req);
    req.kind = REQ_ZEROES;
    fail_each_step(&disk, &req);
    EXPECT_EQ(disk.stats.violations, 0u);
    EXPECT_EQ(mem_close(&disk), 0); /* asserts that counters, list and pool are whole */
    env_finish(&env);
}

TEST_MAIN()
