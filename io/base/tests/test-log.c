/*
 * test-log - levels, form of a line, limits
 */
#include "io/base/log.h"
#include "io/base/test.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static int saved_stderr;

/* Standard error goes into a pipe from here to end_capture(), which gives what was written. */
static int begin_capture(void)
{
    int fds[2];

    ASSERT_EQ(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
    saved_stderr = dup(STDERR_FILENO);
    dup2(fds[1], STDERR_FILENO);
    close(fds[1]);
    return fds[0];
}

static void end_capture(int fd, char *text, size_t size_bytes)
{
    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);

    ssize_t len = read(fd, text, size_bytes - 1);

    text[MAX(len, 0)] = '\0';
    close(fd);
}

TEST(log, a_line_has_area_level_and_text)
{
    char text[256];
    int fd = begin_capture();

    log_error("block", "disk '%s' is %d bytes", "d0", 7);
    end_capture(fd, text, sizeof(text));
    EXPECT_STREQ(text, "block: error: disk 'd0' is 7 bytes\n");
}

TEST(log, messages_above_the_level_are_dropped)
{
    char text[256];
    int fd = begin_capture();

    log_set_level(LOG_LEVEL_INFO);
    log_info("a", "one");
    log_debug("a", "two");
    log_set_level(LOG_LEVEL_DEBUG);
    log_debug("a", "three");
    log_set_level(LOG_LEVEL_ERROR);
    log_warn("a", "four");
    end_capture(fd, text, sizeof(text));
    EXPECT_STREQ(text, "a: info: one\na: debug: three\n");
    EXPECT_TRUE(log_enabled(LOG_LEVEL_ERROR));
    EXPECT_FALSE(log_enabled(LOG_LEVEL_WARN));
}

TEST(log, level_names_are_parsed)
{
    static const char *const names[] = { "error", "warn", "info", "debug" };
    LogLevel level = LOG_LEVEL_ERROR;

    for (int i = 0; i < (int)ARRAY_SIZE(names); i++) {
        EXPECT_EQ(log_level_parse(names[i], &level), 0);
        EXPECT_EQ((int)level, i);
    }
    EXPECT_EQ(log_level_parse("verbose", &level), -EINVAL);
    EXPECT_EQ(log_level_parse("", &level), -EINVAL);
    EXPECT_EQ(level, LOG_LEVEL_DEBUG);
}

TEST(log, control_characters_cannot_forge_a_line_or_drive_the_terminal)
{
    char text[256];
    int fd = begin_capture();

    log_warn("guest", "serial '%s'", "a\nvmm: error: b\x1b[2J\x7f");
    end_capture(fd, text, sizeof(text));
    EXPECT_STREQ(text, "guest: warn: serial 'a?vmm: error: b?[2J?'\n");
}

TEST(log, a_long_line_is_cut_and_ends_with_a_newline)
{
    char longer[3000], text[4096];

    memset(longer, 'x', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';

    int fd = begin_capture();

    log_error("a", "%s", longer);
    log_error(longer, "b");
    end_capture(fd, text, sizeof(text));
    ASSERT_EQ(strlen(text), strcspn(text, "\n") * 2 + 2);
    EXPECT_GT(strcspn(text, "\n"), 1000);
    EXPECT_LE(strcspn(text, "\n"), 1024);
}

TEST(log, errno_is_kept)
{
    close(STDERR_FILENO); /* so that write() fails */
    errno = EPERM;
    log_error("a", "lost");
    EXPECT_EQ(errno, EPERM);
}

/* --- LogLimit --- */

static unsigned count_lines(const char *text)
{
    unsigned nb = 0;

    for (; *text; text++) {
        nb += *text == '\n';
    }
    return nb;
}

TEST(log, a_limited_source_is_cut_off_and_told_of_later)
{
    LogLimit limit = { 0 };
    char text[4096];
    int fd = begin_capture();

    for (int i = 0; i < LOG_LIMIT_BURST + 25; i++) {
        log_limited(&limit, LOG_LEVEL_WARN, "guest", "message %d", i);
    }
    end_capture(fd, text, sizeof(text));
    EXPECT_EQ(count_lines(text), LOG_LIMIT_BURST);
    EXPECT_EQ(limit.dropped, 25);

    limit.period_start_ns -= INT64_C(10000000000); /* as if ten seconds had passed */
    fd = begin_capture();
    log_limited(&limit, LOG_LEVEL_WARN, "guest", "later");
    end_capture(fd, text, sizeof(text));
    EXPECT_EQ(count_lines(text), 2);
    EXPECT_NE(strstr(text, "25 more messages"), NULL);
    EXPECT_NE(strstr(text, "guest: warn: later\n"), NULL);
    EXPECT_EQ(limit.dropped, 0);
}

TEST(log, a_limit_counts_nothing_below_the_level)
{
    LogLimit limit = { 0 };

    log_limited(&limit, LOG_LEVEL_DEBUG, "guest", "unseen");
    EXPECT_EQ(limit.in_period, 0);
}

/* --- threads --- */

#define NB_LINES 20

static void *writer_thread(void *opaque)
{
    for (int i = 0; i < NB_LINES; i++) {
        log_error("thread", "%s", (const char *)opaque);
    }
    return NULL;
}

TEST(log, nobody_waits_for_a_reader_and_what_was_dropped_is_counted)
{
    static char text[1 << 17];
    int fd = begin_capture();

    /* as standard error usually is */
    ASSERT_EQ(fcntl(STDERR_FILENO, F_SETFL, fcntl(STDERR_FILENO, F_GETFL) & ~O_NONBLOCK), 0);
    ASSERT_EQ(fcntl(STDERR_FILENO, F_SETPIPE_SZ, 8192), 8192);
    for (unsigned i = 0; i < 1000; i++) {
        log_warn("a", "%-90u", i);
    }
    ASSERT_GE(read(fd, text, sizeof(text)), 1);
    log_warn("a", "heard");
    log_warn("a", "again");
    end_capture(fd, text, sizeof(text));
    unsigned dropped = 0;

    EXPECT_EQ(sscanf(text, "log: warn: %u lines were dropped", &dropped), 1);
    EXPECT_GE(dropped, 900);
    EXPECT_STREQ(strstr(text, "them\n"), "them\na: warn: heard\na: warn: again\n");
}

TEST(log, lines_of_several_threads_do_not_mix)
{
    static const char *const words[] = { "aaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbb" };
    pthread_t threads[2];
    char text[8192];
    int fd = begin_capture();

    for (int i = 0; i < 2; i++) {
        pthread_create(&threads[i], NULL, writer_thread, (void *)words[i]);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
    end_capture(fd, text, sizeof(text));
    EXPECT_EQ(count_lines(text), 2 * NB_LINES);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        const char *word = strrchr(line, ' ');

        ASSERT_NE(word, NULL);
        EXPECT_TRUE(strcmp(word + 1, words[0]) == 0 || strcmp(word + 1, words[1]) == 0);
    }
}

TEST_MAIN()
