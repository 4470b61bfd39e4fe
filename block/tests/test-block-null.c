/*
 * test-block-null.c - the disk that keeps nothing
 */
#include <malloc.h>
#include <string.h>

#include "block/tests/block-test.h"

static BlockBackend *open_null(const char *text, Error *err)
{
    Opts opts;
    BlockBackend *blk;

    ASSERT_EQ(opts_parse(&opts, "--disk", text, "path", err), 0);
    blk = blk_open("d0", &opts, err);
    opts_finish(&opts);
    return blk;
}

TEST(null, bad_options_are_refused_with_the_reason)
{
    static const struct {
        const char *options, *word;
    } cases[] = {
        { "driver=null", "size=SIZE" },
        { "driver=null,size=1000", "multiple of 512" },
        { "driver=null,size=0", "size" },
        { "driver=null,size=1M,latency-ns=-1", "latency-ns" },
        { "driver=null,size=1M,read-zeroes=maybe", "read-zeroes" },
        { "driver=null,size=1M,cache=sometimes", "cache" },
        { "driver=null,size=1M,discard=on", "discard" },
        { "driver=null,size=1M,readonly=1", "readonly" },
        { "driver=nul,size=1M", "'nul' does not exist" },
        { "size=1M", "path=FILE or driver=NAME" },
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        Error err = { 0 };
        BlockBackend *blk = open_null(cases[i].options, &err);

        EXPECT_TRUE(blk == NULL);
        EXPECT_EQ(err.code, -EINVAL);
        if (!strstr(err.msg, cases[i].word) || strncmp(err.msg, "--disk: ", 8) != 0) {
            test_fail(__FILE__, __LINE__, "%s: the message is: %s", cases[i].options, err.msg);
        }
    }
}

TEST(null, unknown_keys_are_left_for_the_caller)
{
    Env env;
    Opts opts;
    Error err = { 0 };
    BlockBackend *blk;

    env_init(&env, 0);
    ASSERT_EQ(opts_parse(&opts, "--disk", "driver=null,size=4k,queues=3", "path", &err), 0);
    blk = blk_open("d0", &opts, &err);
    ASSERT_TRUE(blk != NULL);
    EXPECT_EQ(opts_check_all_used(&opts, &err), -EINVAL);
    EXPECT_TRUE(strstr(err.msg, "queues") != NULL);
    EXPECT_STREQ(opts_get(&opts, "queues"), "3");
    EXPECT_EQ(opts_check_all_used(&opts, &err), 0);
    EXPECT_STREQ(blk_id(blk), "d0");
    EXPECT_EQ(blk_length(blk), 4096u);
    EXPECT_FALSE(blk_read_only(blk));
    EXPECT_TRUE(blk_write_cache(blk));
    opts_finish(&opts);
    EXPECT_EQ(blk_close(blk), 0);
    env_finish(&env);
}

static void read_entry(void *opaque)
{
    Request *req = opaque;
    struct iovec iov = { .iov_base = req->buf, .iov_len = req->len_bytes };

    assert_in_coroutine();
    req->ret = blk_co_preadv(req->blk, 0, req->len_bytes, &iov, 1, 0);
    atomic_store(&req->done, true);
}

TEST(null, request_without_latency_ends_without_a_yield)
{
    Env env;
    Error err;
    char buf[512];
    BlockBackend *blk;
    Request req = { .buf = buf, .len_bytes = sizeof(buf) };

    env_init(&env, 0);
    blk = open_null("driver=null,size=1M", &err);
    req.blk = blk;
    req.ret = 1;
    aio_co_enter(env.main, co_create(read_entry, &req));
    EXPECT_TRUE(req.done);
    EXPECT_EQ(req.ret, 0);
    EXPECT_EQ(blk_close(blk), 0);
    env_finish(&env);
}

TEST(null, latency_delays_every_request)
{
    Env env;
    Error err;
    char buf[512];
    BlockBackend *blk;
    int64_t begin_ns;

    env_init(&env, 0);
    blk = open_null("driver=null,size=1M,latency-ns=2000000", &err);
    begin_ns = aio_now_ns();
    EXPECT_EQ(run_read(blk, 0, 512, buf), 0);
    EXPECT_EQ(run_write(blk, 0, 512, buf, 0), 0);
    EXPECT_EQ(run_flush(blk), 0);
    EXPECT_EQ(run_discard(blk, 0, 512), 0);
    EXPECT_EQ(run_zeroes(blk, 0, 512, 0), 0);
    EXPECT_GE(aio_now_ns() - begin_ns, 5 * 2000000);
    EXPECT_EQ(blk_close(blk), 0);
    env_finish(&env);
}

TEST(null, reads_give_zeroes_only_when_asked_to)
{
    Env env;
    Error err;
    char buf[512];
    BlockBackend *blk;

    env_init(&env, 0);
    blk = open_null("driver=null,size=1M", &err);
    memset(buf, 'x', sizeof(buf));
    EXPECT_EQ(run_read(blk, 0, sizeof(buf), buf), 0);
    EXPECT_EQ(buf[0], 'x');
    EXPECT_EQ(blk_close(blk), 0);

    blk = open_null("driver=null,size=1M,read-zeroes=on", &err);
    EXPECT_EQ(run_read(blk, 0, sizeof(buf), buf), 0);
    for (unsigned i = 0; i < sizeof(buf); i++) {
        EXPECT_EQ(buf[i], 0);
    }
    EXPECT_EQ(blk_close(blk), 0);
    env_finish(&env);
}

TEST(null, requests_do_not_allocate)
{
#if HAVE_ASAN || HAVE_TSAN
    TEST_SKIP("the sanitizers' allocator does not answer mallinfo2()");
#else
    Env env;
    Error err;
    char buf[4096];
    BlockBackend *blk;
    Request req = { .buf = buf, .len_bytes = sizeof(buf) };
    size_t before_bytes;

    env_init(&env, 0);
    blk = open_null("driver=null,size=1M", &err);
    req.blk = blk;
    aio_co_enter(env.main, co_create(read_entry, &req)); /* the first one fills the pool */
    before_bytes = mallinfo2().uordblks + mallinfo2().hblkhd;
    for (unsigned i = 0; i < 100; i++) {
        aio_co_enter(env.main, co_create(read_entry, &req));
    }
    EXPECT_EQ(mallinfo2().uordblks + mallinfo2().hblkhd, before_bytes);
    EXPECT_EQ(blk_close(blk), 0);
    env_finish(&env);
#endif
}

TEST_MAIN()
