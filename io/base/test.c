/*
 * test.c - the harness's back end on a host: each test in a process of its own
 *
 * The parent prints TAP on standard output and nothing else there; diagnostics go to standard error
 * as "# file:line: text". What a test has to say to the parent (failed, skipped and why) lies in
 * one shared page, so that a process that the test itself forks can fail it, too.
 *
 * A test's process leaves through exit(), so that LeakSanitizer and ThreadSanitizer get to give
 * their verdict: any status but 0 is a failure. It leads a process group of its own, which is
 * killed and reaped after the test, so that nothing it started survives it.
 */
#include "io/base/test.h"

#include <dirent.h>
#include <execinfo.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "guest-tests/harness/harness-backend.h"

#define TIMEOUT_S_DEFAULT  30
#define BACKTRACE_GRACE_MS 2000 /* for a hung test to print where it is */
#define BACKTRACE_FRAMES   48
#define SIGNAL_STACK_BYTES 65536
#define DEATH_TEXT_BYTES   4096

static TestOutcome *outcome;
static int nb_filters;
static char **filters;
static bool no_fork;
static unsigned test_number; /* the running one, from 1 */
static const TestRun *running;

/* --- output --- */

void backend_print(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    fflush(stdout);
}

void backend_print_failure(const char *file, int line, const char *fmt, va_list args)
{
    flockfile(stderr);
    fprintf(stderr, "# %s:%d: ", file, line);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    funlockfile(stderr);
}

void backend_format(char *buffer, size_t size_bytes, const char *fmt, va_list args)
{
    vsnprintf(buffer, size_bytes, fmt, args);
}

void backend_leave(void)
{
    if (test_has_failed()) {
        abort();
    }
    if (no_fork) {
        backend_print("ok %u - %s # SKIP %s\n", test_number, running->name, outcome->skip_reason);
    }
    fflush(NULL);
    _exit(0);
}

/* --- crashes --- */

static void crash_signal(int signo)
{
    static const char head[] = "# caught a fatal signal, backtrace:\n";
    void *frames[BACKTRACE_FRAMES];
    int nb_frames = backtrace(frames, BACKTRACE_FRAMES);

    if (write(STDERR_FILENO, head, sizeof(head) - 1) > 0) {
        backtrace_symbols_fd(frames, nb_frames, STDERR_FILENO);
    }
    raise(signo); /* SA_RESETHAND: this time it kills */
}

static void install_crash_handler(void)
{
    static char signal_stack[SIGNAL_STACK_BYTES];
    static const int signals[] = { SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE };
    stack_t stack = { .ss_sp = signal_stack, .ss_size = sizeof(signal_stack) };
    struct sigaction action = { .sa_handler = crash_signal,
                                .sa_flags = SA_RESETHAND | SA_NODEFER | SA_ONSTACK };
    void *frame;

    backtrace(&frame, 1); /* loads libgcc_s now, not in the handler */
    /* The sanitizers print their own report of a bad access. */
    size_t nb_signals = HAVE_ASAN || HAVE_TSAN ? 1 : ARRAY_SIZE(signals);

    if (!HAVE_ASAN && !HAVE_TSAN) {
        sigaltstack(&stack, NULL);
    }
    for (size_t i = 0; i < nb_signals; i++) {
        sigaction(signals[i], &action, NULL);
    }
}

static void disable_core_dumps(void)
{
    setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
}

/* --- one test --- */

static void run_here(const TestRun *run)
{
    run->test->run(run->variant);
    if (run->test->finish) {
        run->test->finish(run->variant);
    }
}

static NORETURN void run_as_child(const TestRun *run, pid_t parent)
{
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(1);
    }
    disable_core_dumps();
    install_crash_handler();
    run_here(run);
    fflush(NULL);
    exit(test_has_failed() ? 1 : 0);
}

static int timeout_ms(const TestRun *run)
{
    const char *text = getenv("TEST_TIMEOUT_S");
    int seconds = text ? atoi(text) : 0;

    seconds = MAX(seconds > 0 ? seconds : TIMEOUT_S_DEFAULT, (int)run->test->timeout_s);
    return MIN(seconds, 3600) * 1000;
}

/* Wait for @pidfd's process to end; false when it did not in time. */
static bool wait_exit(int pidfd, int wait_ms)
{
    struct pollfd pfd = { .fd = pidfd, .events = POLLIN };
    int ret;

    do {
        ret = poll(&pfd, 1, wait_ms);
    } while (ret < 0 && errno == EINTR);
    return ret > 0;
}

/* Judge how the child ended; tell what is not plain from the test's own output. */
static bool judge(int status, bool timed_out)
{
    if (timed_out) {
        fprintf(stderr, "# %s: no end after %d s\n", running->name, timeout_ms(running) / 1000);
        return false;
    }
    if (WIFSIGNALED(status)) {
        fprintf(stderr, "# %s: killed by signal %d (%s)\n", running->name, WTERMSIG(status),
                strsignal(WTERMSIG(status)));
        return false;
    }
    if (WEXITSTATUS(status) != 0 && !test_has_failed()) {
        fprintf(stderr, "# %s: exit status %d\n", running->name, WEXITSTATUS(status));
    }
    return WEXITSTATUS(status) == 0 && !test_has_failed();
}

static bool run_forked(const TestRun *run)
{
    pid_t parent = getpid();

    fflush(NULL);

    pid_t pid = fork();

    if (pid == 0) {
        run_as_child(run, parent);
    }
    if (pid < 0) {
        perror("# fork");
        return false;
    }
    setpgid(pid, pid); /* in either process, whichever comes first */

    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    bool timed_out = pidfd >= 0 && !wait_exit(pidfd, timeout_ms(run));

    if (timed_out) {
        kill(pid, SIGABRT); /* prints where it hangs */
        wait_exit(pidfd, BACKTRACE_GRACE_MS);
    }
    if (pidfd >= 0) {
        close(pidfd);
        kill(-pid, SIGKILL); /* while the zombie still holds the id of the group */
    }

    int status = 0;

    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    /* What it left behind has become ours (a subreaper's) and is dying. */
    while (waitpid(-pid, NULL, 0) > 0 || errno == EINTR) {
    }
    return judge(status, timed_out);
}

bool backend_run(const TestRun *run)
{
    running = run;
    test_number++;
    if (no_fork) {
        run_here(run);
        return true;
    }
    return run_forked(run);
}

/* --- the program --- */

bool backend_wants(const char *name)
{
    bool any_filter = false;

    for (int i = 0; i < nb_filters; i++) {
        if (strncmp(filters[i], "--", 2) == 0) {
            continue;
        }
        any_filter = true;
        if (strstr(name, filters[i])) {
            return true;
        }
    }
    return !any_filter;
}

static int parse_arguments(int argc, char **argv, bool *ret_list)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--list") == 0) {
            *ret_list = true;
        } else if (strcmp(argv[i], "--no-fork") == 0) {
            no_fork = true;
        } else if (strncmp(argv[i], "--", 2) == 0) {
            fprintf(stderr, "usage: %s [--list] [--no-fork] [part of a test's name]...\n", argv[0]);
            return -EINVAL;
        }
    }
    return 0;
}

int test_run_all(int argc, char **argv)
{
    bool list = false;

    if (parse_arguments(argc, argv, &list) < 0) {
        return 2;
    }
    nb_filters = argc - 1;
    filters = argv + 1;
    if (list) {
        test_plan(true);
        return 0;
    }
    outcome =
        mmap(NULL, sizeof(*outcome), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (outcome == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    test_use_outcome(outcome);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (test_plan(false) == 0) {
        fprintf(stderr, "# no test has such a name\n");
        return 1;
    }
    return test_run_wanted() > 0 ? 1 : 0;
}

/* --- deaths on purpose --- */

/* Read what the process on the other end writes until it ends; the first bytes are kept. */
static void read_text(int fd, char *text, size_t size_bytes)
{
    size_t len = 0;

    for (;;) {
        char scratch[512];
        ssize_t n = read(fd, scratch, sizeof(scratch));

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            break;
        }
        size_t kept = MIN((size_t)n, size_bytes - 1 - len);

        memcpy(text + len, scratch, kept);
        len += kept;
    }
    text[len] = '\0';
}

static NORETURN void die_as_child(void (*fn)(void *), void *opaque, int stderr_fd)
{
    static const int signals[] = { SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE };

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    disable_core_dumps();
    for (size_t i = 0; i < (HAVE_ASAN || HAVE_TSAN ? 1 : ARRAY_SIZE(signals)); i++) {
        signal(signals[i], SIG_DFL);
    }
    dup2(stderr_fd, STDERR_FILENO);
    fn(opaque);
    _exit(0);
}

void test_expect_death(const char *file, int line, void (*fn)(void *), void *opaque, int signo,
                       const char *text)
{
    int fds[2];

    fflush(NULL);
    if (pipe(fds) < 0) {
        test_fail_abort(file, line, "pipe: %s", strerror(errno));
    }

    pid_t pid = fork();

    if (pid == 0) {
        close(fds[0]);
        die_as_child(fn, opaque, fds[1]);
    }
    close(fds[1]);
    if (pid < 0) {
        test_fail_abort(file, line, "fork: %s", strerror(errno));
    }

    char output[DEATH_TEXT_BYTES];
    int status = 0;

    read_text(fds[0], output, sizeof(output));
    close(fds[0]);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }

    /* A sanitizer turns a bad access into a report and an exit status. */
    bool died = WIFSIGNALED(status) && WTERMSIG(status) == signo;

    if ((HAVE_ASAN || HAVE_TSAN) && signo != SIGABRT) {
        died = died || (WIFEXITED(status) && WEXITSTATUS(status) != 0);
    }
    if (!died) {
        test_fail(file, line, "expected death by signal %d, wait status is 0x%x", signo, status);
    }
    if (!strstr(output, text)) {
        test_fail(file, line, "expected \"%s\" on standard error, got \"%s\"", text, output);
    }
}

unsigned test_count_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    unsigned nb = 0;

    ASSERT_TRUE(dir != NULL);
    while (readdir(dir)) {
        nb++;
    }
    closedir(dir);
    return nb - 3; /* ".", ".." and that of the folder itself */
}
