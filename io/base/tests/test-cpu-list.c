/*
 * test-cpu-list.c - sets of CPUs to text and back
 */
#include "io/base/cpu-list.h"
#include "io/base/test.h"

static const char *canonical(const char *text)
{
    static char buf[CPU_LIST_BYTES];
    cpu_set_t cpus;
    Error err;

    if (cpu_list_parse("cpus", text, &cpus, &err) < 0) {
        return "refused";
    }
    return cpu_list_format(&cpus, buf, sizeof(buf));
}

TEST(cpu_list, ranges_and_numbers_come_back_in_their_shortest_form)
{
    EXPECT_STREQ(canonical("0"), "0");
    EXPECT_STREQ(canonical("0-3:8"), "0-3:8");
    EXPECT_STREQ(canonical("8:0-3"), "0-3:8");
    EXPECT_STREQ(canonical("5:3:4:4-5"), "3-5");
    EXPECT_STREQ(canonical("7-7"), "7");
    EXPECT_STREQ(canonical("1022:1023"), "1022-1023");
    EXPECT_STREQ(canonical("0-1023"), "0-1023");
    EXPECT_STREQ(canonical("007"), "7");
}

TEST(cpu_list, what_is_no_list_is_refused)
{
    static const char *const wrong[] = {
        "",     ":",     "1:",     ":1",    "1::2",  "-",   "1-",   "-1", "3-1",
        "1024", "0-1024", "99999999999999999999", "a", "1a", "1-2-3", " 1", "1,2", "+1",
    };

    for (unsigned i = 0; i < ARRAY_SIZE(wrong); i++) {
        EXPECT_STREQ(canonical(wrong[i]), "refused");
    }
}

TEST(cpu_list, error_names_the_wrong_part_and_leaves_the_set_alone)
{
    cpu_set_t cpus;
    Error err;

    CPU_ZERO(&cpus);
    CPU_SET(5, &cpus);
    EXPECT_EQ(cpu_list_parse("cpu-affinity", "1:2-x:3", &cpus, &err), -EINVAL);
    EXPECT_TRUE(strstr(err.msg, "cpu-affinity: '2-x'") != NULL);
    EXPECT_EQ(CPU_COUNT(&cpus), 1);
}

TEST(cpu_list, longest_list_fits)
{
    char buf[CPU_LIST_BYTES];
    cpu_set_t cpus;

    CPU_ZERO(&cpus);
    EXPECT_STREQ(cpu_list_format(&cpus, buf, sizeof(buf)), "");
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu += 2) {
        CPU_SET(cpu, &cpus);
    }
    cpu_list_format(&cpus, buf, sizeof(buf));
    EXPECT_STREQ(buf + strlen(buf) - 10, ":1020:1022");
    for (int cpu = 1; cpu < CPU_SETSIZE; cpu += 4) { /* 0-2:4-6:... */
        CPU_SET(cpu, &cpus);
    }
    cpu_list_format(&cpus, buf, sizeof(buf));
    EXPECT_STREQ(buf + strlen(buf) - 10, ":1020-1022");
}

TEST_MAIN()
