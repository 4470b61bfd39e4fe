/*
 * The terminal, on a pty: raw mode and that it is given back, the escape key, input at the guest's
 * pace, output that nobody reads. What happens to the whole program is in test-cli.
 */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <termios.h>

#include "io/base/test.h"
#include "vmm/terminal.h"

static int master = -1; /* of the pty that is stdin */
static AioContext *ctx;
static uint8_t taken[4096];
static size_t taken_len, room = sizeof(taken);
static unsigned quits;
static unsigned continues;

static size_t input_cb(void *opaque, const uint8_t *data, size_t len_bytes)
{
    size_t len = MIN(len_bytes, room);

    memcpy(taken + taken_len, data, len);
    taken_len += len;
    room -= len;
    return len;
}

static void quit_cb(void *opaque)
{
    quits++;
}

static void go_on_cb(void *opaque)
{
    continues++;
}

static const TerminalOps ops = { .input = input_cb, .quit = quit_cb, .go_on = go_on_cb };

static void set_stdin(int fd)
{
    ASSERT_GE(fd, 0);
    ASSERT_EQ(dup2(fd, STDIN_FILENO), STDIN_FILENO);
    close(fd);
}

/* The other end becomes stdin, and the terminal of a session without one. */
static void open_pty(void)
{
    master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    ASSERT_GE(master, 0);
    ASSERT_EQ(grantpt(master), 0);
    ASSERT_EQ(unlockpt(master), 0);
}

static int open_slave(void)
{
    return open(ptsname(master), O_RDWR | O_CLOEXEC);
}

static void start(void)
{
    Error err;

    ctx = aio_context_create("main", NULL, &err);
    ASSERT_TRUE(ctx != NULL);
    aio_context_enter(ctx);
    ASSERT_EQ(terminal_start(ctx, &ops, NULL, &err), 0);
}

static void finish(void)
{
    terminal_stop();
    aio_context_enter(NULL);
    aio_context_destroy(ctx);
}

static void start_on_pty(void)
{
    open_pty();
    set_stdin(open_slave());
    start();
}

/* The pty's mode, as either end sees it. */
static bool is_raw(void)
{
    struct termios mode;

    ASSERT_EQ(tcgetattr(master, &mode), 0);
    return !(mode.c_lflag & (ICANON | ECHO | ISIG));
}

static void type(const char *text, size_t len_bytes)
{
    ASSERT_EQ(write(master, text, len_bytes), (ssize_t)len_bytes);
}

#define TYPE(text) type(text, sizeof(text) - 1)

static void expect_taken(const char *text, size_t len_bytes)
{
    while (taken_len < len_bytes) {
        aio_poll(ctx, true);
    }
    EXPECT_EQ(taken_len, len_bytes);
    EXPECT_EQ(memcmp(taken, text, len_bytes), 0);
}

#define EXPECT_TAKEN(text) expect_taken(text, sizeof(text) - 1)

/* --- raw mode --- */

TEST(terminal, is_raw_from_start_to_stop)
{
    struct termios before, after;

    open_pty();
    set_stdin(open_slave());
    ASSERT_EQ(tcgetattr(master, &before), 0);
    EXPECT_FALSE(is_raw());
    start();
    EXPECT_TRUE(is_raw());
    terminal_suspend();
    EXPECT_FALSE(is_raw());
    terminal_suspend();
    terminal_resume();
    EXPECT_TRUE(is_raw());
    terminal_resume();
    EXPECT_TRUE(is_raw());
    finish();
    ASSERT_EQ(tcgetattr(master, &after), 0);
    EXPECT_EQ(after.c_iflag, before.c_iflag);
    EXPECT_EQ(after.c_oflag, before.c_oflag);
    EXPECT_EQ(after.c_lflag, before.c_lflag);
    terminal_resume(); /* SIGCONT after the end */
    EXPECT_FALSE(is_raw());
}

/* Runs @fn with the pty as its session's terminal; returns how the process ended. */
static int in_a_session(void (*fn)(int), int arg)
{
    pid_t pid = fork();
    int status = 0;

    ASSERT_GE(pid, 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        setsid();
        set_stdin(open_slave());
        fn(arg);
        _exit(99);
    }
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    return status;
}

static void start_and_exit(int status)
{
    start();
    ASSERT_TRUE(is_raw());
    exit(status);
}

static void start_and_die(int signo)
{
    start();
    ASSERT_TRUE(is_raw());
    raise(signo);
}

TEST(terminal, is_given_back_by_exit_and_by_every_signal_that_ends_the_process)
{
    static const int signals[] = { SIGABRT, SIGSEGV, SIGBUS,  SIGILL,  SIGFPE,    SIGSYS, SIGTRAP,
                                   SIGXCPU, SIGALRM, SIGPROF, SIGVTALRM, SIGUSR2, SIGPOLL };
    int status;

    open_pty();
    int slave = open_slave(); /* the pty keeps its mode while it is open */

    status = in_a_session(start_and_exit, 7);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    EXPECT_FALSE(is_raw());
    for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
        status = in_a_session(start_and_die, signals[i]);
        EXPECT_TRUE(WIFSIGNALED(status));
        EXPECT_EQ(WTERMSIG(status), signals[i]);
        EXPECT_FALSE(is_raw());
    }
    close(slave);
}

/* A job of the session @in_a_session made: it starts in the foreground and is put in the background
 * by its shell, which changes the terminal. Stopping here would hang the test. */
static void job_ends_in_the_background(int arg)
{
    struct termios of_shell;
    int to_job[2], to_shell[2], status;
    char byte = 0;

    ASSERT_EQ(pipe(to_job), 0);
    ASSERT_EQ(pipe(to_shell), 0);
    signal(SIGTTOU, SIG_IGN);
    pid_t job = fork();

    if (job == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        setpgid(0, 0);
        tcsetpgrp(STDIN_FILENO, getpid());
        signal(SIGTTOU, SIG_DFL);
        start();
        ASSERT_EQ(write(to_shell[1], &byte, 1), 1);
        ASSERT_EQ(read(to_job[0], &byte, 1), 1);
        terminal_resume();
        terminal_stop();
        _exit(0);
    }
    ASSERT_EQ(read(to_shell[0], &byte, 1), 1);
    ASSERT_TRUE(is_raw());
    tcsetpgrp(STDIN_FILENO, getpid());
    ASSERT_EQ(tcgetattr(STDIN_FILENO, &of_shell), 0);
    of_shell.c_lflag = ECHO;
    ASSERT_EQ(tcsetattr(STDIN_FILENO, TCSANOW, &of_shell), 0);
    ASSERT_EQ(write(to_job[1], &byte, 1), 1);
    ASSERT_EQ(waitpid(job, &status, WUNTRACED), job);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    ASSERT_EQ(tcgetattr(STDIN_FILENO, &of_shell), 0);
    EXPECT_EQ(of_shell.c_lflag & (ECHO | ICANON), ECHO);
    _exit(0);
}

TEST(terminal, is_left_to_the_shell_while_in_the_background)
{
    open_pty();
    int status = in_a_session(job_ends_in_the_background, 0);

    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* --- input --- */

TEST(terminal, ctrl_a_x_quits_and_no_byte_of_it_is_for_the_guest)
{
    start_on_pty();
    TYPE("ab\x01");
    EXPECT_TAKEN("ab");
    TYPE("xc"); /* in another read than its Ctrl-A */
    EXPECT_TAKEN("abc");
    EXPECT_EQ(quits, 1);
    TYPE("\x01X\x03\x1a\x1c"); /* Ctrl-C, Ctrl-Z and Ctrl-\ are the guest's */
    EXPECT_TAKEN("abc\x03\x1a\x1c");
    EXPECT_EQ(quits, 2);
    finish();
}

TEST(terminal, ctrl_a_twice_sends_one_and_other_keys_after_it_are_dropped)
{
    start_on_pty();
    TYPE("\x01\x01x\x01qy\x01\x01\x01\x01z");
    EXPECT_TAKEN("\x01xy\x01\x01z");
    EXPECT_EQ(quits, 0);
    finish();
}

TEST(terminal, ctrl_a_h_helps_on_stdout)
{
    int out[2];
    char text[256] = { 0 };

    start_on_pty();
    ASSERT_EQ(pipe(out), 0);
    ASSERT_EQ(dup2(out[1], STDOUT_FILENO), STDOUT_FILENO);
    TYPE("\x01hq");
    EXPECT_TAKEN("q");
    ASSERT_GT(read(out[0], text, sizeof(text) - 1), 0);
    EXPECT_TRUE(strstr(text, "Ctrl-A x quits") != NULL);
    finish();
}

TEST(terminal, ctrl_a_c_continues_the_guest)
{
    start_on_pty();
    TYPE("a\x01""cb\x01""C");
    EXPECT_TAKEN("ab");
    EXPECT_EQ(continues, 2);
    EXPECT_EQ(quits, 0);
    finish();
}

TEST(terminal, what_the_guest_has_no_room_for_is_offered_again_in_order)
{
    char text[600];

    for (size_t i = 0; i < sizeof(text); i++) {
        text[i] = 'a' + i % 26;
    }
    start_on_pty();
    type(text, sizeof(text));
    for (size_t len = 0; len < sizeof(text);) {
        room = MIN((size_t)7, sizeof(text) - len);
        len += room;
        terminal_room();
        expect_taken(text, len);
        EXPECT_EQ(room, 0);
    }
    finish();
}

/* The context has nothing left to do; it would not come to rest if it went on reading the end. */
static void expect_rest(void)
{
    for (unsigned passes = 0; aio_poll(ctx, false); passes++) {
        ASSERT_LT(passes, 1000);
    }
}

TEST(terminal, stdin_that_is_no_terminal_has_no_escape_key_and_may_end)
{
    int in[2];

    ASSERT_EQ(pipe(in), 0);
    set_stdin(in[0]);
    start();
    master = in[1];
    TYPE("\x01x\x01\x01");
    EXPECT_TAKEN("\x01x\x01\x01");
    close(in[1]);
    expect_rest();
    terminal_room(); /* the guest has read it all: nothing more to offer */
    expect_rest();
    EXPECT_EQ(taken_len, 4);
    EXPECT_EQ(quits, 0);
    finish();
}

TEST(terminal, stdin_may_be_a_file_or_at_its_end_from_the_start)
{
    int fd = memfd_create("typed", MFD_CLOEXEC);

    ASSERT_EQ(pwrite(fd, "poweroff\n", 9, 0), 9);
    set_stdin(fd);
    start();
    EXPECT_TAKEN("poweroff\n");
    expect_rest();
    finish();

    set_stdin(open("/dev/null", O_RDONLY));
    start();
    expect_rest();
    EXPECT_EQ(taken_len, 9);
    finish();
}

TEST(terminal, hang_up_of_the_terminal_is_the_end_of_input)
{
    start_on_pty();
    TYPE("bye");
    EXPECT_TAKEN("bye");
    close(master);
    expect_rest();
    EXPECT_EQ(taken_len, 3);
    terminal_stop();
    aio_context_enter(NULL);
    aio_context_destroy(ctx);
}

/* --- output --- */

TEST(terminal, output_to_a_closed_pipe_is_dropped)
{
    int out[2];

    signal(SIGPIPE, SIG_IGN); /* as the machine does */
    ASSERT_EQ(pipe(out), 0);
    ASSERT_EQ(dup2(out[1], STDOUT_FILENO), STDOUT_FILENO);
    close(out[0]);
    terminal_write((const uint8_t *)"lost", 4);
    terminal_write((const uint8_t *)"lost", 4);
}

static void *write_much(void *opaque)
{
    static uint8_t much[1 << 20];

    terminal_write(much, sizeof(much));
    return NULL;
}

TEST(terminal, stopped_output_lets_a_writer_go_that_nobody_reads)
{
    pthread_t writer;
    int out[2];

    ASSERT_EQ(pipe(out), 0);
    ASSERT_EQ(dup2(out[1], STDOUT_FILENO), STDOUT_FILENO);
    ASSERT_EQ(pthread_create(&writer, NULL, write_much, NULL), 0);
    struct pollfd full = { .fd = out[1], .events = POLLOUT };

    while (poll(&full, 1, 0) != 0) {
    }
    terminal_stop_output();
    ASSERT_EQ(pthread_join(writer, NULL), 0);
}

static void *write_letters(void *opaque)
{
    terminal_write((const uint8_t *)"abc", 3);
    return NULL;
}

TEST(terminal, held_output_lets_a_writer_go_and_leaves_later_in_order)
{
    static uint8_t text[1 << 20];
    pthread_t writer;
    ssize_t len;
    int out[2];

    ASSERT_EQ(pipe2(out, O_NONBLOCK), 0);
    while (write(out[1], text, sizeof(text)) > 0) {
    }
    ASSERT_EQ(dup2(out[1], STDOUT_FILENO), STDOUT_FILENO);
    ASSERT_EQ(pthread_create(&writer, NULL, write_letters, NULL), 0);
    terminal_hold_output(true);
    ASSERT_EQ(pthread_join(writer, NULL), 0);
    terminal_write((const uint8_t *)"def", 3); /* main never waits */
    terminal_hold_output(false);
    terminal_write((const uint8_t *)"ghi", 3);
    while ((len = read(out[0], text, sizeof(text))) == sizeof(text)) {
    }
    terminal_hold_output(false);
    len = read(out[0], text, sizeof(text));
    ASSERT_EQ(len, 9);
    EXPECT_TRUE(memcmp(text, "abcdefghi", 9) == 0);

    for (unsigned i = 0; i < 1000; i++) { /* what is kept has an end */
        terminal_hold_output(true);
        while (write(out[1], text, sizeof(text)) > 0) {
        }
        terminal_write(text, 100);
    }
}

TEST_MAIN()
