/*
 * test-opts - splitting and reading of key=value lists, and what is refused
 */
#include "io/base/opts.h"
#include "io/base/test.h"

/* --- splitting --- */

static void expect_refused(const char *text, const char *implied_key, const char *msg)
{
    Opts opts;
    Error err;

    EXPECT_EQ(opts_parse(&opts, "--disk", text, implied_key, &err), -EINVAL);
    EXPECT_STREQ(err.msg, msg);
    EXPECT_EQ(opts.nb_opts, 0);
    EXPECT_EQ(opts_parse(&opts, "--disk", text, implied_key, NULL), -EINVAL);
}

TEST(opts, pairs_are_split_at_commas)
{
    Opts opts;

    ASSERT_EQ(opts_parse(&opts, "--disk", "id=d0,queues=4,serial=", NULL, NULL), 0);
    EXPECT_STREQ(opts_get(&opts, "id"), "d0");
    EXPECT_STREQ(opts_get(&opts, "queues"), "4");
    EXPECT_STREQ(opts_get(&opts, "serial"), "");
    EXPECT_EQ(opts_get(&opts, "path"), NULL);
    EXPECT_TRUE(opts_has(&opts, "id"));
    EXPECT_FALSE(opts_has(&opts, "path"));
    opts_finish(&opts);
    EXPECT_FALSE(opts_has(&opts, "id"));
}

TEST(opts, a_doubled_comma_is_one_comma_of_the_value)
{
    Opts opts;

    ASSERT_EQ(opts_parse(&opts, "--disk", "path=a,,b,id=x,,,serial=,,", NULL, NULL), 0);
    EXPECT_STREQ(opts_get(&opts, "path"), "a,b");
    EXPECT_STREQ(opts_get(&opts, "id"), "x,");
    EXPECT_STREQ(opts_get(&opts, "serial"), ",");
    opts_finish(&opts);
}

TEST(opts, the_first_item_may_be_a_bare_value)
{
    static const char *const values[] = { "disk.img", "/tmp/a=b/disk.img", "./x=y", "1G",
                                          "nbd+unix:///export?socket=/run/nbd.sock", "a b=c" };

    for (unsigned i = 0; i < ARRAY_SIZE(values); i++) {
        char text[128];
        Opts opts;

        snprintf(text, sizeof(text), "%s,queues=2", values[i]);
        ASSERT_EQ(opts_parse(&opts, "--disk", text, "path", NULL), 0);
        EXPECT_STREQ(opts_get(&opts, "path"), values[i]);
        EXPECT_STREQ(opts_get(&opts, "queues"), "2");
        opts_finish(&opts);
    }
}

TEST(opts, a_dotted_key_belongs_to_a_group)
{
    Opts opts, group, nested;
    Error err;

    ASSERT_EQ(opts_parse(&opts, "--disk",
                         "file.path=a.b=c,driver=x,file.file.size=4K,files=1,file=n", "path", NULL),
              0);
    ASSERT_EQ(opts_take_group(&opts, "file", "--disk: file", &group, NULL), 0);
    EXPECT_EQ(group.nb_opts, 2);
    EXPECT_STREQ(opts_get(&group, "path"), "a.b=c");
    ASSERT_EQ(opts_take_group(&group, "file", "--disk: file: file", &nested, NULL), 0);
    EXPECT_EQ(nested.nb_opts, 1);
    EXPECT_STREQ(opts_get(&nested, "size"), "4K");
    EXPECT_EQ(opts_check_all_used(&group, NULL), 0);

    /* Those of the group count as used, the rest does not. */
    EXPECT_STREQ(opts_get(&opts, "driver"), "x");
    EXPECT_STREQ(opts_get(&opts, "file"), "n");
    EXPECT_EQ(opts_check_all_used(&opts, &err), -EINVAL);
    EXPECT_STREQ(err.msg, "--disk: unknown key 'files'; did you mean 'file'?");

    ASSERT_EQ(opts_add(&nested, "path", "x", NULL), 0);
    EXPECT_EQ(opts_add(&nested, "path", "y", &err), -EINVAL);
    EXPECT_STREQ(err.msg, "--disk: file: file: 'path' is given twice");
    opts_finish(&nested);
    opts_finish(&group);
    opts_finish(&opts);
}

TEST(opts, a_dot_at_an_end_or_next_to_a_dot_makes_no_key)
{
    static const char *const items[] = { ".a=1", "a.=1", "a..b=1" };

    for (unsigned i = 0; i < ARRAY_SIZE(items); i++) {
        Opts opts;

        ASSERT_EQ(opts_parse(&opts, "--disk", items[i], "path", NULL), 0);
        EXPECT_STREQ(opts_get(&opts, "path"), items[i]);
        opts_finish(&opts);
        EXPECT_EQ(opts_parse(&opts, "--disk", items[i], NULL, NULL), -EINVAL);
    }
}

TEST(opts, an_empty_list_is_a_list)
{
    Opts opts;

    ASSERT_EQ(opts_parse(&opts, "--disk", "", "path", NULL), 0);
    EXPECT_EQ(opts.nb_opts, 0);
    EXPECT_EQ(opts_check_all_used(&opts, NULL), 0);
    opts_finish(&opts);
}

TEST(opts, a_value_may_contain_equals_signs)
{
    Opts opts;

    ASSERT_EQ(opts_parse(&opts, "--disk", "serial=a=b", "path", NULL), 0);
    EXPECT_STREQ(opts_get(&opts, "serial"), "a=b");
    opts_finish(&opts);
}

TEST(opts, malformed_lists_are_refused_with_the_place)
{
    expect_refused("id=a,id=b", NULL, "--disk: 'id' is given twice");
    expect_refused("x.img,path=y.img", "path", "--disk: 'path' is given twice");
    expect_refused("id=a,", NULL, "--disk: item 2 is empty");
    expect_refused(",id=a", NULL, "--disk: item 1 is empty");
    expect_refused(",id=a", "path", "--disk: item 1 is empty");
    expect_refused("id=a,readonly", "path", "--disk: 'readonly' has no value; key=value expected");
    expect_refused("disk.img", NULL, "--disk: 'disk.img' has no value; key=value expected");
    expect_refused("id=a,=b", NULL, "--disk: '' is not a key");
    expect_refused("id=a,9x=b", NULL, "--disk: '9x' is not a key");
}

TEST(opts, at_most_as_many_items_as_there_is_room_for)
{
    char text[1024] = "";
    Opts opts;
    Error err;

    for (int i = 0; i < OPTS_MAX; i++) {
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "%sk%d=v", i > 0 ? "," : "", i);
    }
    ASSERT_EQ(opts_parse(&opts, "--x", text, NULL, &err), 0);
    EXPECT_EQ(opts.nb_opts, OPTS_MAX);
    opts_finish(&opts);
    strcat(text, ",more=v");
    EXPECT_EQ(opts_parse(&opts, "--x", text, NULL, &err), -EINVAL);
    EXPECT_STREQ(err.msg, "--x: more than 64 items");
}

/* --- typed values --- */

static int get_u64(const char *value, uint64_t *number, Error *err)
{
    char text[128];
    Opts opts;

    snprintf(text, sizeof(text), "n=%s", value);
    ASSERT_EQ(opts_parse(&opts, "--x", text, NULL, NULL), 0);
    int ret = opts_get_u64(&opts, "n", 1, 1024, number, err);

    opts_finish(&opts);
    return ret;
}

TEST(opts, numbers_are_decimal_or_hexadecimal)
{
    uint64_t n = 0;

    EXPECT_EQ(get_u64("1", &n, NULL), 0);
    EXPECT_EQ(n, 1);
    EXPECT_EQ(get_u64("1024", &n, NULL), 0);
    EXPECT_EQ(n, 1024);
    EXPECT_EQ(get_u64("0x1f", &n, NULL), 0);
    EXPECT_EQ(n, 31);
    EXPECT_EQ(get_u64("010", &n, NULL), 0);
    EXPECT_EQ(n, 10);
}

TEST(opts, bad_numbers_are_refused_and_leave_the_default)
{
    static const char *const words[] = { "", "-1", "+1", " 1", "1 ", "1x", "0x", "1.5", "4K", "a" };
    static const char *const beyond[] = { "0", "1025", "18446744073709551616",
                                          "99999999999999999999999", "0x10000000000000001" };
    uint64_t n = 77;
    Error err;

    for (unsigned i = 0; i < ARRAY_SIZE(words); i++) {
        EXPECT_EQ(get_u64(words[i], &n, &err), -EINVAL);
        EXPECT_NE(strstr(err.msg, "is not a number"), NULL);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(beyond); i++) {
        EXPECT_EQ(get_u64(beyond[i], &n, &err), -EINVAL);
        EXPECT_NE(strstr(err.msg, "is not between 1 and 1024"), NULL);
    }
    EXPECT_EQ(get_u64("4096", &n, &err), -EINVAL);
    EXPECT_STREQ(err.msg, "--x: n: 4096 is not between 1 and 1024");
    EXPECT_EQ(n, 77);
}

TEST(opts, sizes_take_a_suffix)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } sizes[] = {
        { "512", 512 },           { "1K", 1024 },
        { "3k", 3072 },           { "2M", UINT64_C(2) << 20 },
        { "1G", UINT64_C(1) << 30 }, { "5T", UINT64_C(5) << 40 },
        { "0x10K", 16384 },       { "16777215T", UINT64_C(16777215) << 40 },
    };
    uint64_t bytes;

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        EXPECT_EQ(opts_parse_size("--memory", sizes[i].text, 0, UINT64_MAX, &bytes, NULL), 0);
        EXPECT_EQ(bytes, sizes[i].bytes);
    }
}

TEST(opts, bad_sizes_are_refused)
{
    static const char *const words[] = { "", "K", "1KB", "1KiB", "1X", "-1G", "1.5G", "G1" };
    uint64_t bytes = 77;
    Error err;

    for (unsigned i = 0; i < ARRAY_SIZE(words); i++) {
        EXPECT_EQ(opts_parse_size("--memory", words[i], 0, UINT64_MAX, &bytes, &err), -EINVAL);
        EXPECT_NE(strstr(err.msg, "is not a size"), NULL);
    }
    EXPECT_EQ(opts_parse_size("--memory", "16777216T", 0, UINT64_MAX, &bytes, NULL), -EINVAL);
    EXPECT_EQ(opts_parse_size("--memory", "99999999999999999999T", 0, UINT64_MAX, &bytes, NULL),
              -EINVAL);
    EXPECT_EQ(opts_parse_size("--memory", "4T", UINT64_C(1) << 20, UINT64_C(1) << 40, &bytes, &err),
              -EINVAL);
    EXPECT_STREQ(err.msg, "--memory: 4T is not between 1M and 1T");
    EXPECT_EQ(bytes, 77);
}

TEST(opts, booleans_are_on_and_off)
{
    bool a = false, b = true, c = true, d = true;
    Opts opts;
    Error err;

    ASSERT_EQ(opts_parse(&opts, "--x", "a=on,b=off,d=yes", NULL, NULL), 0);
    EXPECT_EQ(opts_get_bool(&opts, "a", &a, NULL), 0);
    EXPECT_EQ(opts_get_bool(&opts, "b", &b, NULL), 0);
    EXPECT_EQ(opts_get_bool(&opts, "c", &c, NULL), 0);
    EXPECT_TRUE(a);
    EXPECT_FALSE(b);
    EXPECT_TRUE(c);
    EXPECT_EQ(opts_get_bool(&opts, "d", &d, &err), -EINVAL);
    EXPECT_STREQ(err.msg, "--x: d: 'yes' is none of: off, on");
    EXPECT_TRUE(d);
    opts_finish(&opts);
}

TEST(opts, enums_give_their_index)
{
    static const char *const names[] = { "none", "writeback", "writethrough", NULL };
    int cache = 1;
    Opts opts;
    Error err;

    ASSERT_EQ(opts_parse(&opts, "--disk", "cache=writethrough,other=write", NULL, NULL), 0);
    EXPECT_EQ(opts_get_enum(&opts, "cache", names, &cache, NULL), 0);
    EXPECT_EQ(cache, 2);
    EXPECT_EQ(opts_get_enum(&opts, "absent", names, &cache, NULL), 0);
    EXPECT_EQ(cache, 2);
    EXPECT_EQ(opts_get_enum(&opts, "other", names, &cache, &err), -EINVAL);
    EXPECT_STREQ(err.msg, "--disk: other: 'write' is none of: none, writeback, writethrough");
    opts_finish(&opts);
}

/* --- unknown keys --- */

static void expect_unknown(const char *text, const char *msg)
{
    Opts opts;
    Error err;

    ASSERT_EQ(opts_parse(&opts, "--disk", text, "path", NULL), 0);
    opts_get(&opts, "path");
    opts_get(&opts, "queues");
    opts_get(&opts, "iothreads");
    opts_get(&opts, "queues");
    if (msg) {
        EXPECT_EQ(opts_check_all_used(&opts, &err), -EINVAL);
        EXPECT_STREQ(err.msg, msg);
    } else {
        EXPECT_EQ(opts_check_all_used(&opts, &err), 0);
    }
    opts_finish(&opts);
}

TEST(opts, an_unknown_key_is_refused_with_the_nearest_known_one)
{
    expect_unknown("x.img,queues=2", NULL);
    expect_unknown("x.img,queue=2", "--disk: unknown key 'queue'; did you mean 'queues'?");
    expect_unknown("x.img,iothread=a", "--disk: unknown key 'iothread'; did you mean 'iothreads'?");
    expect_unknown("x.img,Path=y", "--disk: unknown key 'Path'; did you mean 'path'?");
    expect_unknown("x.img,colour=red",
                   "--disk: unknown key 'colour'; known are: path, queues, iothreads");
    expect_unknown("x.img,aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa=1",
                   "--disk: unknown key 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'; "
                   "known are: path, queues, iothreads");
}

TEST_MAIN()
