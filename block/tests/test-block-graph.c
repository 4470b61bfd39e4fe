/*
 * test-block-graph.c - nodes and their children from options, permissions, filters, lengths
 */
#include "block/block-graph.h"

#include <stdio.h>
#include <string.h>

#include "block/tests/block-test.h"
#include "block/tests/mem-driver.h"
#include "block/tests/pass-driver.h"

#define KIB 1024u

static const MemConfig small = { .length_bytes = 64 * KIB, .options = "node-name=mem" };
static const MemConfig bare = { .length_bytes = 64 * KIB,
                                .options = "node-name=mem",
                                .no_backend = true };

static unsigned nb_nodes(void)
{
    unsigned nb = 0;

    for (BlockNode *node = bdrv_next(NULL); node; node = bdrv_next(node)) {
        nb++;
    }
    return nb;
}

/* The tests run in the main thread. */
static BlockNode *below(const BlockNode *filter)
{
    graph_assert_main();
    return bdrv_filtered(filter);
}

static BlockNode *open_text(const char *text, Error *err)
{
    Opts opts;
    BlockNode *node;

    ASSERT_EQ(opts_parse(&opts, "--disk", text, "path", NULL), 0);
    node = bdrv_open(&opts, err);
    opts_finish(&opts);
    return node;
}

static void expect_pass_refused(const char *options, const char *message)
{
    Error err = { 0 };

    EXPECT_TRUE(pass_open(options, &err) == NULL);
    EXPECT_STREQ(err.msg, message);
}

/* --- options --- */

TEST(graph, a_child_is_opened_from_the_options_of_its_group)
{
    Error err;
    Env env;
    BlockNode *filter;

    env_init(&env, 0);
    filter = pass_open("node-name=top,file.driver=null,file.size=1M,file.node-name=bottom", &err);
    ASSERT_TRUE(filter != NULL);
    EXPECT_STREQ(bdrv_id(filter), "top");
    EXPECT_STREQ(bdrv_id(below(filter)), "bottom");
    EXPECT_TRUE(bdrv_find("bottom") == below(filter));
    EXPECT_EQ(filter->length_bytes, 1u << 20);
    EXPECT_EQ(filter->limits.max_iov, below(filter)->limits.max_iov);
    EXPECT_FALSE(filter->read_only);
    EXPECT_STREQ(filter->name, "null");
    EXPECT_EQ(nb_nodes(), 2u);
    bdrv_unref(filter);
    EXPECT_EQ(nb_nodes(), 0u);
    env_finish(&env);
}

TEST(graph, common_options_hold_for_a_child_that_has_none_of_its_own)
{
    Env env;
    BlockNode *node;

    env_init(&env, 0);
    node = pass_open("file.driver=null,file.size=1M,readonly=on,discard=ignore,cache=writethrough",
                     NULL);
    ASSERT_TRUE(node != NULL);
    EXPECT_TRUE(below(node)->read_only && node->read_only);
    EXPECT_FALSE(below(node)->discard_unmaps || node->discard_unmaps);
    EXPECT_FALSE(below(node)->write_cache || node->write_cache);
    EXPECT_EQ(node->cache, BLK_CACHE_WRITETHROUGH);
    bdrv_unref(node);

    node = pass_open("file.driver=null,file.size=1M,readonly=on,file.readonly=off", NULL);
    ASSERT_TRUE(node != NULL);
    EXPECT_FALSE(below(node)->read_only);
    EXPECT_TRUE(node->read_only);
    bdrv_unref(node);

    node = pass_open("file.driver=null,file.size=1M,file.readonly=on,file.discard=ignore", NULL);
    ASSERT_TRUE(node != NULL);
    EXPECT_TRUE(node->read_only);
    EXPECT_FALSE(node->discard_unmaps);
    bdrv_unref(node);
    env_finish(&env);
}

TEST(graph, wrong_options_are_refused_and_leave_nothing)
{
    Env env;
    MemDisk disk;

    env_init(&env, 0);
    mem_open(&disk, &bare);
    expect_pass_refused("", "--disk: file=NODE or file.path=FILE is missing");
    expect_pass_refused("file=nobody",
                        "--disk: file: there is no node 'nobody'; file.path=FILE opens a file");
    expect_pass_refused("file=mem,file.size=1M",
                        "--disk: 'file' and 'file.size' exclude each other");
    expect_pass_refused("file=mem,cache=none", "--disk: cache: node 'mem' is open already");
    expect_pass_refused("file.size=1M",
                        "--disk: file: no image is named: path=FILE or driver=NAME expected");
    expect_pass_refused("file.driver=nil", "--disk: file: driver 'nil' does not exist; there are: "
                                           "file, nbd, null, throttle, faulty, log-writes");
    expect_pass_refused("file.driver=null,file.size=1M,file.latency=1",
                        "--disk: file: unknown key 'latency'; known are: driver, node-name, "
                        "readonly, cache, discard, size, latency-ns, read-zeroes");
    expect_pass_refused("file.driver=null", "--disk: file: driver=null needs size=SIZE");
    expect_pass_refused("node-name=mem,file=mem",
                        "--disk: node-name: there is a node 'mem' already");
    expect_pass_refused("node-name=a b,file=mem",
                        "--disk: node-name: 'a b' is not 1 to 31 letters, "
                        "digits, '-', '_' and '.'");
    expect_pass_refused("node-name=,file=mem", "--disk: node-name: '' is not 1 to 31 letters, "
                                               "digits, '-', '_' and '.'");
    expect_pass_refused("file=mem,fail-open=on", "as you wish");
    EXPECT_EQ(nb_nodes(), 1u);
    EXPECT_EQ(disk.node->refs, 1u);
    EXPECT_TRUE(list_empty(&disk.node->parents));
    mem_close(&disk);
    EXPECT_EQ(nb_nodes(), 0u);
    env_finish(&env);
}

TEST(graph, a_node_without_a_name_gets_one_that_nobody_has)
{
    Env env;
    BlockNode *given, *made;

    env_init(&env, 0);
    given = open_text("driver=null,size=1M,node-name=node0", NULL);
    made = open_text("driver=null,size=1M", NULL);
    ASSERT_TRUE(given && made);
    EXPECT_STREQ(bdrv_id(made), "node1");
    EXPECT_TRUE(bdrv_find("node1") == made);
    EXPECT_TRUE(bdrv_find("node2") == NULL);
    bdrv_unref(given);
    bdrv_unref(made);
    env_finish(&env);
}

TEST(graph, options_nest_as_deep_as_the_graph_may_be)
{
    Env env;
    BlockNode *node;
    Error err = { 0 };

    env_init(&env, 0);
    for (unsigned nb_nodes_wanted = BDRV_DEPTH_MAX; nb_nodes_wanted <= BDRV_DEPTH_MAX + 1;
         nb_nodes_wanted++) {
        char text[1024] = "", prefix[128] = "";

        for (unsigned i = 1; i < nb_nodes_wanted; i++) {
            snprintf(text + strlen(text), sizeof(text) - strlen(text), "%sdriver=throttle,",
                     prefix);
            strcat(prefix, "file.");
        }
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "%sdriver=null,%ssize=1M",
                 prefix, prefix);
        node = open_text(text, &err);
        EXPECT_EQ(node != NULL, nb_nodes_wanted <= BDRV_DEPTH_MAX);
        bdrv_unref(node);
        EXPECT_EQ(nb_nodes(), 0u);
    }
    EXPECT_TRUE(strstr(err.msg, ": more than 8 nodes on top of each other") != NULL);
    env_finish(&env);
}

/* --- permissions --- */

static void expect_blk_refused(BlockNode *node, BlkPerm perm, BlkPerm shared, int code,
                               const char *message)
{
    Error err = { 0 };

    EXPECT_TRUE(blk_create("b", node, perm, shared, &err) == NULL);
    EXPECT_EQ(err.code, code);
    EXPECT_STREQ(err.msg, message);
}

static BlockBackend *blk_of(const char *id, BlockNode *node, BlkPerm perm, BlkPerm shared)
{
    Error err = { 0 };
    BlockBackend *blk = blk_create(id, node, perm, shared, &err);

    EXPECT_STREQ(err.msg, "");
    ASSERT_TRUE(blk != NULL);
    return blk;
}

TEST(permissions, two_writers_are_refused_and_the_error_says_who_holds_it)
{
    Env env;
    MemDisk disk;

    env_init(&env, 0);
    mem_open(&disk, &small); /* disk 'mem0' writes, and lets others read */
    expect_blk_refused(disk.node, BLK_PERM_ALL, BLK_PERM_ALL, -EBUSY,
                       "disk 'b' cannot write to 'mem' (node 'mem'): disk 'mem0' uses it and does "
                       "not share that");
    expect_blk_refused(disk.node, BLK_PERM_READ, BLK_PERM_READ, -EBUSY,
                       "disk 'b' lets nobody else write to 'mem' (node 'mem'), but disk 'mem0' "
                       "does");
    expect_blk_refused(disk.node, BLK_PERM_READ, BLK_PERM_READ | BLK_PERM_WRITE, -EBUSY,
                       "disk 'b' lets nobody else resize 'mem' (node 'mem'), but disk 'mem0' does");
    BlockBackend *reader = blk_of("b", disk.node, BLK_PERM_READ, BLK_PERM_ALL);

    EXPECT_TRUE(blk_read_only(reader));
    EXPECT_EQ(run_zeroes(reader, 0, 512, 0), -EPERM);
    EXPECT_EQ(blk_close(reader), 0);
    EXPECT_EQ(disk.stats.ops[MEM_FLUSH], 0u); /* it has written nothing */
    EXPECT_EQ(mem_close(&disk), 0);
    env_finish(&env);
}

TEST(permissions, a_writer_is_refused_while_a_reader_shares_reading_alone)
{
    Env env;
    MemDisk disk;
    BlockBackend *reader, *writer;

    env_init(&env, 0);
    mem_open(&disk, &bare);
    reader = blk_of("r", disk.node, BLK_PERM_READ, BLK_PERM_READ);
    expect_blk_refused(disk.node, BLK_PERM_ALL, BLK_PERM_READ, -EBUSY,
                       "disk 'b' cannot write to 'mem' (node 'mem'): disk 'r' uses it and does not "
                       "share that");
    BlockBackend *other = blk_of("r2", disk.node, BLK_PERM_READ, BLK_PERM_READ);

    blk_close(other);
    blk_close(reader); /* what it held is free again */
    writer = blk_of("w", disk.node, BLK_PERM_ALL, BLK_PERM_READ);
    blk_close(writer);
    mem_close(&disk);
    env_finish(&env);
}

TEST(permissions, nobody_writes_to_a_read_only_node)
{
    Env env;
    MemDisk disk;

    env_init(&env, 0);
    mem_open(&disk, &(MemConfig){ .length_bytes = 64 * KIB,
                                  .options = "node-name=mem,readonly=on",
                                  .no_backend = true });
    expect_blk_refused(disk.node, BLK_PERM_READ | BLK_PERM_WRITE, BLK_PERM_ALL, -EPERM,
                       "disk 'b' cannot write to 'mem' (node 'mem'): it is read-only");
    EXPECT_EQ(blk_default_perm(disk.node), BLK_PERM_READ);
    mem_close(&disk);
    env_finish(&env);
}

TEST(permissions, a_filter_needs_below_what_is_needed_of_it)
{
    Env env;
    MemDisk disk;
    BlockNode *left, *right;
    BlockBackend *blk;

    env_init(&env, 0);
    mem_open(&disk, &bare);
    left = pass_open("node-name=left,file=mem", NULL);
    right = pass_open("node-name=right,file=mem", NULL);
    ASSERT_TRUE(left && right); /* nobody uses them: they need nothing */
    blk = blk_of("w", left, BLK_PERM_ALL, BLK_PERM_READ);
    expect_blk_refused(right, BLK_PERM_ALL, BLK_PERM_READ, -EBUSY,
                       "node 'right' cannot write to 'mem' (node 'mem'): node 'left' uses it and "
                       "does not share that");
    EXPECT_EQ(right->children[0].perm, 0); /* it does not remember what was tried */
    expect_blk_refused(disk.node, BLK_PERM_ALL, BLK_PERM_READ, -EBUSY,
                       "disk 'b' cannot write to 'mem' (node 'mem'): node 'left' uses it and does "
                       "not share that");
    blk_close(blk);
    EXPECT_EQ(left->children[0].perm, 0);
    EXPECT_EQ(left->children[0].shared, BLK_PERM_ALL);
    blk = blk_of("w", right, BLK_PERM_ALL, BLK_PERM_READ);
    blk_close(blk);
    bdrv_unref(left);
    bdrv_unref(right);
    mem_close(&disk);
    env_finish(&env);
}

TEST(permissions, two_users_of_one_image_are_refused_when_they_open_it)
{
    Env env;
    Opts opts;
    Error err = { 0 };
    MemDisk disk;

    env_init(&env, 0);
    mem_open(&disk, &small);
    /* what blk_open() does for --disk */
    BlockNode *filter = pass_open("file=mem", &err);

    ASSERT_TRUE(filter != NULL);
    expect_blk_refused(filter, blk_default_perm(filter), BLK_PERM_READ, -EBUSY,
                       "node 'node0' cannot write to 'mem' (node 'mem'): disk 'mem0' uses it and "
                       "does not share that");
    bdrv_unref(filter);
    ASSERT_EQ(opts_parse(&opts, "--disk", "driver=null,size=1M,node-name=mem", NULL, NULL), 0);
    EXPECT_TRUE(blk_open("x", &opts, &err) == NULL);
    EXPECT_EQ(err.code, -EINVAL);
    opts_finish(&opts);
    mem_close(&disk);
    env_finish(&env);
}

/* --- filters --- */

static unsigned requests_of(const BlockNode *filter)
{
    return atomic_load(&pass_state(filter)->nb_requests);
}

TEST(filters, inserted_between_a_node_and_all_its_parents_and_removed_again)
{
    Env env;
    MemDisk disk;
    BlockBackend *reader;
    BlockNode *low, *high;
    char buf[512] = "x";

    env_init(&env, 0);
    mem_open(&disk, &small);
    reader = blk_of("r", disk.node, BLK_PERM_READ, BLK_PERM_ALL);
    low = pass_insert(disk.node, "node-name=low", NULL);
    ASSERT_TRUE(low != NULL);
    EXPECT_TRUE(blk_node(disk.blk) == low && blk_node(reader) == low);
    EXPECT_TRUE(below(low) == disk.node);
    EXPECT_EQ(low->refs, 2u); /* its parents' */
    EXPECT_EQ(run_write(disk.blk, 0, 512, buf, 0), 0);
    EXPECT_EQ(run_read(reader, 0, 512, buf), 0);
    EXPECT_EQ(requests_of(low), 2u);

    high = pass_insert(low, "node-name=high", NULL);
    ASSERT_TRUE(high != NULL);
    EXPECT_TRUE(blk_node(disk.blk) == high && below(high) == low);
    EXPECT_EQ(run_read(disk.blk, 0, 512, buf), 0);
    EXPECT_EQ(requests_of(high), 1u);
    EXPECT_EQ(requests_of(low), 3u);

    EXPECT_EQ(bdrv_remove_filter(low, NULL), 0);
    EXPECT_TRUE(below(high) == disk.node);
    EXPECT_EQ(nb_nodes(), 2u);
    EXPECT_EQ(run_read(disk.blk, 0, 512, buf), 0);
    EXPECT_EQ(requests_of(high), 2u);
    EXPECT_EQ(bdrv_remove_filter(high, NULL), 0);
    EXPECT_TRUE(blk_node(disk.blk) == disk.node && blk_node(reader) == disk.node);
    EXPECT_EQ(nb_nodes(), 1u);
    EXPECT_EQ(run_flush(disk.blk), 0);
    EXPECT_EQ(disk.stats.violations, 0u);
    blk_close(reader);
    mem_close(&disk);
    env_finish(&env);
}

TEST(filters, one_that_somebody_else_refers_to_stays_and_can_be_inserted_elsewhere)
{
    Env env;
    MemDisk disk;
    BlockNode *filter;

    env_init(&env, 0);
    mem_open(&disk, &small);
    filter = pass_insert(disk.node, "node-name=f", NULL);
    ASSERT_TRUE(filter != NULL);
    bdrv_ref(filter);
    EXPECT_EQ(bdrv_remove_filter(filter, NULL), 0);
    EXPECT_TRUE(bdrv_find("f") == filter);
    EXPECT_TRUE(below(filter) == disk.node);
    EXPECT_FALSE(filter->drain.covered);
    bdrv_unref(filter);
    EXPECT_EQ(nb_nodes(), 1u);
    mem_close(&disk);
    env_finish(&env);
}

static void expect_insert_refused(BlockNode *node, const char *options, const char *message)
{
    Error err = { 0 };

    EXPECT_TRUE(pass_insert(node, options, &err) == NULL);
    EXPECT_STREQ(err.msg, message);
}

TEST(filters, insertion_that_is_refused_changes_nothing)
{
    Env env;
    MemDisk disk;
    Error err = { 0 };
    Opts opts;
    char buf[512];

    env_init(&env, 0);
    mem_open(&disk, &small);
    expect_insert_refused(disk.node, "fail-open=on", "as you wish");
    expect_insert_refused(disk.node, "speed=1",
                          "insert: unknown key 'speed'; known are: node-name, readonly, cache, "
                          "discard, file, fail-open");
    expect_insert_refused(disk.node, "file=mem", "insert: 'file' is given twice");
    expect_insert_refused(disk.node, "readonly=on",
                          "disk 'mem0' cannot write to 'mem' (node 'node2'): it is read-only");
    ASSERT_EQ(opts_parse(&opts, "insert", "driver=null,size=1M", NULL, NULL), 0);
    EXPECT_TRUE(bdrv_insert_filter(disk.node, &opts, &err) == NULL);
    EXPECT_STREQ(err.msg, "insert: driver 'null' is no filter");
    opts_finish(&opts);
    EXPECT_EQ(bdrv_remove_filter(disk.node, &err), -EINVAL);
    EXPECT_STREQ(err.msg, "node 'mem' is no filter");

    EXPECT_EQ(nb_nodes(), 1u);
    EXPECT_EQ(disk.node->refs, 2u);
    EXPECT_TRUE(blk_node(disk.blk) == disk.node);
    EXPECT_FALSE(disk.node->drain.covered);
    EXPECT_EQ(run_read(disk.blk, 0, 512, buf), 0);
    mem_close(&disk);
    env_finish(&env);
}

TEST(filters, a_node_that_nobody_uses_takes_none)
{
    Env env;
    MemDisk disk;
    BlockNode *filter;
    Error err = { 0 };

    env_init(&env, 0);
    mem_open(&disk, &bare);
    expect_insert_refused(disk.node, "", "node 'mem' is used by nobody");
    filter = pass_open("node-name=f,file=mem", NULL);
    ASSERT_TRUE(filter != NULL);
    EXPECT_EQ(bdrv_remove_filter(filter, &err), -EINVAL);
    EXPECT_STREQ(err.msg, "node 'f' is used by nobody");
    EXPECT_EQ(filter->refs, 1u);
    bdrv_unref(filter);
    mem_close(&disk);
    env_finish(&env);
}

TEST(filters, no_more_than_eight_nodes_stand_on_each_other)
{
    Env env;
    MemDisk disk;
    BlockNode *tops[BDRV_DEPTH_MAX];
    char text[64], buf[512];
    Error err = { 0 };

    env_init(&env, 0);
    mem_open(&disk, &small);
    tops[0] = disk.node;
    for (unsigned i = 1; i < BDRV_DEPTH_MAX; i++) {
        snprintf(text, sizeof(text), "node-name=f%u", i);
        tops[i] = pass_insert(tops[i - 1], text, NULL);
        ASSERT_TRUE(tops[i] != NULL);
    }
    for (unsigned i = 0; i < BDRV_DEPTH_MAX; i++) {
        expect_insert_refused(tops[i], "node-name=one-too-many",
                              i == BDRV_DEPTH_MAX - 1
                                  ? "insert: node 'f7': more than 8 nodes on top of each other"
                                  : "node 'one-too-many': more than 8 nodes on top of each other");
    }
    EXPECT_TRUE(pass_open("file=f7", &err) == NULL);
    EXPECT_EQ(nb_nodes(), (unsigned)BDRV_DEPTH_MAX);
    EXPECT_EQ(run_read(disk.blk, 0, 512, buf), 0);
    for (unsigned i = 1; i < BDRV_DEPTH_MAX; i++) {
        EXPECT_EQ(requests_of(tops[i]), 1u);
        EXPECT_EQ(tops[i]->refs, 1u);
    }
    mem_close(&disk); /* the last reference to the top closes them all */
    EXPECT_EQ(nb_nodes(), 0u);
    env_finish(&env);
}

TEST(filters, requests_keep_their_flags_and_data_through_a_filter)
{
    Env env;
    MemDisk disk;
    char out[1000], in[1000];
    uint64_t len;

    env_init(&env, 0);
    mem_open(&disk, &(MemConfig){ .length_bytes = 64 * KIB,
                                  .honours_fua = true,
                                  .limits.request_alignment = 512,
                                  .options = "node-name=mem" });
    ASSERT_TRUE(pass_insert(disk.node, "", NULL) != NULL);
    memset(out, 0x5a, sizeof(out));
    EXPECT_EQ(run_write(disk.blk, 100, sizeof(out), out, BLK_FUA), 0);
    EXPECT_TRUE(disk.stats.fua > 0);
    EXPECT_EQ(run_read(disk.blk, 100, sizeof(in), in), 0);
    EXPECT_EQ(memcmp(in, out, sizeof(in)), 0);
    EXPECT_EQ(run_zeroes(disk.blk, 1024, 512, BLK_MAY_UNMAP), 0);
    EXPECT_EQ(disk.stats.unmap, 1u);
    EXPECT_EQ(run_discard(disk.blk, 2048, 512), 0);
    EXPECT_EQ(disk.stats.ops[MEM_DISCARD], 1u);
    EXPECT_EQ(run_flush(disk.blk), 0);
    EXPECT_EQ(disk.stats.ops[MEM_FLUSH], 1u);
    EXPECT_EQ(run_status(disk.blk, 0, 64 * KIB, &len), BLK_STATUS_ZERO);
    EXPECT_EQ(len, 100u);
    EXPECT_EQ(run_status(disk.blk, 100, 64 * KIB - 100, &len), BLK_STATUS_DATA);
    EXPECT_EQ(len, 924u);
    EXPECT_EQ(disk.stats.violations, 0u);
    mem_close(&disk);
    env_finish(&env);
}

/* --- length --- */

static void count_resize(void *opaque)
{
    ++*(unsigned *)opaque;
}

static const BlkUserOps resize_ops = { .resized = count_resize };

TEST(length, a_change_reaches_all_that_stand_above)
{
    Env env;
    MemDisk disk;
    BlockBackend *reader;
    BlockNode *filter;
    unsigned resized = 0, reader_resized = 0;

    env_init(&env, 0);
    mem_open(&disk, &small);
    reader = blk_of("r", disk.node, BLK_PERM_READ, BLK_PERM_ALL);
    filter = pass_insert(disk.node, "", NULL);
    ASSERT_TRUE(filter != NULL);
    blk_set_user(disk.blk, &resize_ops, &resized);
    blk_set_user(reader, &resize_ops, &reader_resized);

    EXPECT_EQ(blk_truncate(disk.blk, 32 * KIB, NULL), 0);
    EXPECT_EQ(blk_length(disk.blk), 32 * KIB);
    EXPECT_EQ(blk_length(reader), 32 * KIB);
    EXPECT_EQ(filter->length_bytes, 32 * KIB);
    EXPECT_EQ(resized, 1u);
    EXPECT_EQ(reader_resized, 1u);
    EXPECT_EQ(run_zeroes(disk.blk, 32 * KIB, 512, 0), -EINVAL);

    atomic_store(&disk.real_length_bytes, 48 * KIB); /* somebody else has made it longer */
    EXPECT_EQ(blk_refresh_length(reader, NULL), 0);
    EXPECT_EQ(blk_length(disk.blk), 48 * KIB);
    EXPECT_EQ(blk_refresh_length(reader, NULL), 0); /* no news, nobody told */
    EXPECT_EQ(resized, 2u);
    EXPECT_EQ(run_zeroes(disk.blk, 32 * KIB, 512, 0), 0);

    EXPECT_EQ(bdrv_remove_filter(filter, NULL), 0);
    EXPECT_EQ(resized, 2u);
    blk_close(reader);
    mem_close(&disk);
    env_finish(&env);
}

TEST(length, is_changed_by_who_may_and_to_what_fits)
{
    Env env;
    MemDisk disk;
    BlockBackend *reader;
    Error err = { 0 };

    env_init(&env, 0);
    mem_open(&disk, &(MemConfig){ .length_bytes = 64 * KIB,
                                  .limits.request_alignment = 4096,
                                  .options = "node-name=mem" });
    reader = blk_of("r", disk.node, BLK_PERM_READ, BLK_PERM_ALL);
    EXPECT_EQ(blk_truncate(reader, 4096, &err), -EPERM);
    EXPECT_STREQ(err.msg, "disk 'r' is not open for changing its length");
    EXPECT_EQ(blk_truncate(disk.blk, 4096 + 512, &err), -EINVAL);
    EXPECT_STREQ(err.msg, "disk 'mem0': 'mem': a length of 4608 is no multiple of 4096");
    EXPECT_EQ(blk_truncate(disk.blk, 0, &err), -EINVAL);
    EXPECT_STREQ(err.msg, "disk 'mem0': 'mem': a disk cannot be empty");
    EXPECT_EQ(blk_truncate(disk.blk, 1 << 20, &err), -ENOSPC);
    EXPECT_STREQ(err.msg, "disk 'mem0': mem: no");
    EXPECT_EQ(blk_length(disk.blk), 64 * KIB);
    atomic_store(&disk.real_length_bytes, 10000); /* of a block that is not whole, nothing */
    EXPECT_EQ(blk_refresh_length(disk.blk, NULL), 0);
    EXPECT_EQ(blk_length(disk.blk), 8192u);
    blk_close(reader);
    mem_close(&disk);
    env_finish(&env);
}

/* --- options while in use --- */

TEST(reconfigure, changes_options_of_a_node_in_use_all_or_nothing)
{
    Env env;
    Opts opts;
    Error err = { 0 };
    BlockBackend *blk;
    char buf[16] = "x";

    env_init(&env, 0);
    ASSERT_EQ(opts_parse(&opts, "--disk", "driver=null,size=1M", NULL, NULL), 0);
    blk = blk_open("n", &opts, &err);
    ASSERT_TRUE(blk != NULL);
    opts_finish(&opts);
    ASSERT_EQ(opts_parse(&opts, "set", "read-zeroes=on,latncy-ns=5", NULL, NULL), 0);
    EXPECT_EQ(bdrv_reconfigure(blk_node(blk), &opts, &err), -EINVAL);
    EXPECT_STREQ(err.msg, "set: unknown key 'latncy-ns'; did you mean 'latency-ns'?");
    opts_finish(&opts);
    EXPECT_EQ(run_read(blk, 0, sizeof(buf), buf), 0);
    EXPECT_EQ(buf[0], 'x');
    ASSERT_EQ(opts_parse(&opts, "set", "read-zeroes=on", NULL, NULL), 0);
    EXPECT_EQ(bdrv_reconfigure(blk_node(blk), &opts, &err), 0);
    opts_finish(&opts);
    EXPECT_EQ(run_read(blk, 0, sizeof(buf), buf), 0);
    EXPECT_EQ(buf[0], 0);
    blk_close(blk);
    env_finish(&env);
}

TEST(reconfigure, a_driver_without_such_options_says_so)
{
    Env env;
    MemDisk disk;
    Opts opts;
    Error err = { 0 };

    env_init(&env, 0);
    mem_open(&disk, &small);
    ASSERT_EQ(opts_parse(&opts, "set", "size=1", NULL, NULL), 0);
    EXPECT_EQ(bdrv_reconfigure(disk.node, &opts, &err), -EOPNOTSUPP);
    EXPECT_STREQ(err.msg, "set: driver 'mem' has no options to change");
    opts_finish(&opts);
    mem_close(&disk);
    env_finish(&env);
}

TEST_MAIN()
