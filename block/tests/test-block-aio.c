/*
 * test-block-aio.c - requests with a callback: all of them, from which context, and when
 */
#include "block/block-aio.h"

#include <string.h>

#include "block/tests/block-test.h"
#include "block/tests/mem-driver.h"

#define KIB 1024u

static const MemConfig config = { .length_bytes = 64 * KIB, .honours_fua = true };

typedef struct Call {
    BlkAio aio;
    int ret;
    unsigned nb_calls;
    AioContext *ctx; /* the callback's */
    unsigned *order;
    unsigned rank;
} Call;

static void call_cb(void *opaque, int ret)
{
    Call *call = opaque;

    call->ret = ret;
    call->nb_calls++;
    call->ctx = aio_current();
    call->rank = call->order ? ++*call->order : 0;
}

/* Expect that it has not been called, then that it is called once. */
static int settled(Env *env, Call *call)
{
    EXPECT_EQ(call->nb_calls, 0u);
    env_settle(env);
    EXPECT_EQ(call->nb_calls, 1u);
    call->nb_calls = 0;
    return call->ret;
}

TEST(aio, every_request_gives_its_result_to_the_callback)
{
    Env env;
    MemDisk disk;
    Call call = { .ret = 1 };
    char out[512], in[512] = "";
    struct iovec out_iov = { out, sizeof(out) }, in_iov = { in, sizeof(in) };
    uint64_t len;

    env_init(&env, 0);
    mem_open(&disk, &config);
    memset(out, 0x77, sizeof(out));
    ASSERT_EQ(blk_aio_pwritev(&call.aio, disk.blk, 512, 512, &out_iov, 1, BLK_FUA, call_cb, &call),
              0);
    EXPECT_EQ(settled(&env, &call), 0);
    EXPECT_EQ(disk.stats.fua, 1u);
    ASSERT_EQ(blk_aio_preadv(&call.aio, disk.blk, 512, 512, &in_iov, 1, 0, call_cb, &call), 0);
    EXPECT_EQ(settled(&env, &call), 0);
    EXPECT_EQ(memcmp(in, out, sizeof(in)), 0);
    ASSERT_EQ(blk_aio_block_status(&call.aio, disk.blk, 512, 4096, &len, call_cb, &call), 0);
    EXPECT_EQ(settled(&env, &call), BLK_STATUS_DATA);
    EXPECT_EQ(len, 512u);
    ASSERT_EQ(blk_aio_pwrite_zeroes(&call.aio, disk.blk, 512, 512, BLK_MAY_UNMAP, call_cb, &call),
              0);
    EXPECT_EQ(settled(&env, &call), 0);
    EXPECT_EQ(disk.stats.unmap, 1u);
    EXPECT_EQ(disk.data[512], 0);
    ASSERT_EQ(blk_aio_pdiscard(&call.aio, disk.blk, 0, 512, call_cb, &call), 0);
    EXPECT_EQ(settled(&env, &call), 0);
    EXPECT_EQ(disk.stats.ops[MEM_DISCARD], 1u);
    ASSERT_EQ(blk_aio_flush(&call.aio, disk.blk, call_cb, &call), 0);
    EXPECT_EQ(settled(&env, &call), 0);
    EXPECT_EQ(disk.stats.ops[MEM_FLUSH], 1u);

    ASSERT_EQ(blk_aio_preadv(&call.aio, disk.blk, 64 * KIB, 512, &in_iov, 1, 0, call_cb, &call), 0);
    EXPECT_EQ(settled(&env, &call), -EINVAL);
    ASSERT_EQ(blk_aio_block_status(&call.aio, disk.blk, 64 * KIB, 0, &len, call_cb, &call), 0);
    EXPECT_EQ(settled(&env, &call), 0);
    EXPECT_EQ(len, 0u);
    disk.fail_nth = 1;
    ASSERT_EQ(blk_aio_flush(&call.aio, disk.blk, call_cb, &call), 0);
    EXPECT_EQ(settled(&env, &call), -EIO);
    EXPECT_EQ(disk.stats.violations, 0u);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

TEST(aio, the_callback_comes_home_wherever_the_request_went)
{
    Env env;
    MemDisk disk;
    Call calls[2] = { { .ret = 1 }, { .ret = 1 } };

    env_init(&env, 2);
    mem_open(&disk, &config);
    disk.move_to = env.ctx[1];
    for (unsigned i = 0; i < 2; i++) {
        aio_context_enter(env.ctx[i]);
        ASSERT_EQ(blk_aio_flush(&calls[i].aio, disk.blk, call_cb, &calls[i]), 0);
        EXPECT_EQ(calls[i].nb_calls, 0u); /* also where nothing had to move */
    }
    aio_context_enter(env.main);
    env_settle(&env);
    for (unsigned i = 0; i < 2; i++) {
        EXPECT_EQ(calls[i].nb_calls, 1u);
        EXPECT_TRUE(calls[i].ctx == env.ctx[i]);
    }
    disk.move_to = NULL;
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

TEST(aio, requests_end_in_the_order_in_which_the_storage_ends_them)
{
    Env env;
    MemDisk disk;
    Call calls[3];
    unsigned order = 0;

    env_init(&env, 0);
    mem_open(&disk, &config);
    atomic_store(&disk.yield, MEM_YIELD_PARK);
    for (unsigned i = 0; i < 3; i++) {
        calls[i] = (Call){ .order = &order };
        ASSERT_EQ(blk_aio_flush(&calls[i].aio, disk.blk, call_cb, &calls[i]), 0);
    }
    EXPECT_EQ(mem_nb_parked(&disk), 3u); /* all three at once */
    mem_release(&disk, 2);
    mem_release(&disk, 0);
    mem_release(&disk, 0);
    env_settle(&env);
    EXPECT_EQ(calls[2].rank, 1u);
    EXPECT_EQ(calls[0].rank, 2u);
    EXPECT_EQ(calls[1].rank, 3u);
    atomic_store(&disk.yield, MEM_YIELD_NEVER);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

/* A callback that starts the next request with the same BlkAio. */
typedef struct Chain {
    BlkAio aio;
    BlockBackend *blk;
    unsigned left;
} Chain;

static void chain_cb(void *opaque, int ret)
{
    Chain *chain = opaque;

    EXPECT_EQ(ret, 0);
    if (--chain->left > 0) {
        ASSERT_EQ(blk_aio_flush(&chain->aio, chain->blk, chain_cb, chain), 0);
    }
}

TEST(aio, a_callback_may_start_the_next_request)
{
    Env env;
    MemDisk disk;
    Chain chain = { .left = 100 };

    env_init(&env, 0);
    mem_open(&disk, &config);
    chain.blk = disk.blk;
    ASSERT_EQ(blk_aio_flush(&chain.aio, disk.blk, chain_cb, &chain), 0);
    env_settle(&env);
    EXPECT_EQ(chain.left, 0u);
    EXPECT_EQ(disk.stats.ops[MEM_FLUSH], 100u);
    EXPECT_EQ(blk_in_flight(disk.blk), 0u);
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

TEST_MAIN()
