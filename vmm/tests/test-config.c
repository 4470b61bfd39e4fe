/*
 * test-config.c - the command line of `penstock run`: what is taken, and what each mistake gets
 */
#include "io/base/test.h"
#include "vmm/config.h"

#define ARGS_MAX 40

typedef struct Line {
    MachineConfig config;
    Error err;
    int ret;
} Line;

/* Splits @text at blanks. */
static Line *parse(const char *text)
{
    static Line line;
    static char copy[512];
    char *argv[ARGS_MAX] = { (char *)"run" };
    int argc = 1;

    config_finish(&line.config);
    memset(&line, 0, sizeof(line));
    config_init(&line.config);
    snprintf(copy, sizeof(copy), "%s", text);
    for (char *word = strtok(copy, " "); word && argc < ARGS_MAX; word = strtok(NULL, " ")) {
        argv[argc++] = word;
    }
    line.ret = config_parse(&line.config, argc, argv, &line.err);
    return &line;
}

TEST(config, whole_line_is_taken)
{
    Line *l = parse("--kernel k --initrd i --append quiet --cpus 4 --memory 1G,prealloc=on "
                    "--iothread id=a,poll-max-ns=0 --workers 9 "
                    "--iothread b,monitor=epoll,cpu-affinity=0-2:5 "
                    "--disk x.img,queues=4,iothreads=a:b,serial=s,queue-size=64,packed=on "
                    "--no-reboot");

    ASSERT_EQ(l->ret, 0);
    EXPECT_STREQ(l->config.kernel, "k");
    EXPECT_STREQ(l->config.initrd, "i");
    EXPECT_STREQ(l->config.append, "quiet");
    EXPECT_EQ(l->config.nb_cpus, 4);
    EXPECT_EQ(l->config.ram.len_bytes, 1ull << 30);
    EXPECT_TRUE(l->config.ram.prealloc);
    EXPECT_TRUE(l->config.no_reboot);
    ASSERT_EQ(l->config.nb_iothreads, 2);
    EXPECT_EQ(l->config.iothreads[0].params.poll_max_ns, 0);
    EXPECT_EQ(l->config.iothreads[1].params.poll_max_ns, AIO_POLL_MAX_NS_DEFAULT);
    EXPECT_EQ(l->config.iothreads[0].params.monitor, AIO_MONITOR_AUTO);
    EXPECT_EQ(l->config.iothreads[1].params.monitor, AIO_MONITOR_EPOLL);
    EXPECT_FALSE(l->config.iothreads[0].pinned);
    EXPECT_TRUE(l->config.iothreads[1].pinned);
    EXPECT_EQ(CPU_COUNT(&l->config.iothreads[1].cpus), 4);
    EXPECT_TRUE(CPU_ISSET(5, &l->config.iothreads[1].cpus));
    EXPECT_EQ(l->config.max_workers, 9);
    ASSERT_EQ(l->config.nb_disks, 1);
    EXPECT_STREQ(l->config.disks[0].id, "d0");
    EXPECT_STREQ(l->config.disks[0].serial, "s");
    EXPECT_EQ(l->config.disks[0].nb_queues, 4);
    EXPECT_EQ(l->config.disks[0].queue_size, 64);
    EXPECT_TRUE(l->config.disks[0].packed);
    ASSERT_EQ(l->config.disks[0].nb_iothreads, 2);
    EXPECT_STREQ(l->config.disks[0].iothreads[1], "b");
    EXPECT_STREQ(opts_get(&l->config.disks[0].opts, "path"), "x.img");
}

/* Each line is refused as -EINVAL, and the message has the word that tells the user what. */
static const struct {
    const char *line, *word;
} refused[] = {
    { "", "--kernel" },
    { "--kernel", "--kernel needs a value" },
    { "--kernel a --kernel b", "twice" },
    { "--kernel k --nonsense", "--nonsense" },
    { "--kernel k stray", "stray" },
    { "--kernel k --cpus 0", "--cpus" },
    { "--kernel k --cpus 65", "--cpus" },
    { "--kernel k --cpus four", "four" },
    { "--kernel k --cpus 2 --cpus 2", "twice" },
    { "--kernel k --memory 1", "--memory" },
    { "--kernel k --memory 1G,colour=red", "colour" },
    { "--kernel k --memory 8388609", "4096" },
    { "--kernel k --log-level loud", "loud" },
    { "--kernel k --iothread poll-max-ns=1", "id=ID" },
    { "--kernel k --iothread id=a --iothread id=a", "twice" },
    { "--kernel k --iothread id=a/b", "a/b" },
    { "--kernel k --iothread id=a,poll=1", "poll" },
    { "--kernel k --iothread id=a,monitor=kqueue", "kqueue" },
    { "--kernel k --iothread id=a,cpu-affinity=0:3-1", "'3-1'" },
    { "--kernel k --workers 0", "--workers" },
    { "--kernel k --workers 5 --workers 5", "twice" },
    { "--kernel k --disk p,queues=0", "queues" },
    { "--kernel k --disk p,queues=65536", "queues" },
    { "--kernel k --disk p,queue-size=100", "power of 2" },
    { "--kernel k --disk p,queue-size=2", "queue-size" },
    { "--kernel k --disk p,packed=maybe", "packed" },
    { "--kernel k --disk p,queues=1,queues=2", "queues" },
    { "--kernel k --disk p,iothreads=io0", "io0" },
    { "--kernel k --disk p,transport=isa", "isa" },
    { "--kernel k --disk p,id=a --disk q,id=a", "twice" },
    { "--kernel k --disk p,serial=123456789012345678901", "20" },
};

TEST(config, each_mistake_is_named)
{
    for (unsigned i = 0; i < ARRAY_SIZE(refused); i++) {
        Line *l = parse(refused[i].line);

        EXPECT_EQ(l->ret, -EINVAL);
        if (!strstr(l->err.msg, refused[i].word)) {
            test_fail(__FILE__, __LINE__, "'%s': '%s' is not in '%s'", refused[i].line,
                      refused[i].word, l->err.msg);
        }
        EXPECT_TRUE(strchr(l->err.msg, '\n') == NULL);
    }
}

TEST(config, help_needs_nothing_else)
{
    Line *l = parse("--help");

    EXPECT_EQ(l->ret, 0);
    EXPECT_TRUE(l->config.help);
}

TEST_MAIN()
