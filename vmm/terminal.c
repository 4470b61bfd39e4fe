/*
 * terminal.c - raw mode that is always given back, the escape key, flow control to the guest
 *
 * Invariants
 *   1. `saved` is valid whenever `raw` is set, and `raw` is set before tcsetattr() makes it true,
 *      so a crash at any instant restores.
 *   2. stdin is watched only while `pending` is empty: the guest's FIFO sets the pace.
 *   3. Nobody waits for a reader of the output while it is held, nor does the main thread ever: what
 *      there is no room for is kept in `held`, in order, and leaves before what comes later.
 *   4. The terminal is only changed while this process group is in its foreground, where it has a
 *      foreground at all: otherwise it is the shell's, and changing it would stop this process.
 */
#include "vmm/terminal.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>

#include "io/base/thread.h"

#define ESCAPE             1 /* Ctrl-A */
#define OUTPUT_WAIT_MS     100
#define HELD_BYTES         1024 /* more is dropped: a byte or so of each vCPU is what there is */
#define OUTPUT_PIECE_BYTES 256 /* fits where poll(2) says that there is room */

static struct Terminal {
    AioContext *ctx;
    const TerminalOps *ops;
    void *opaque;
    AioBh *room_bh;
    bool watching;
    bool escaped;
    bool eof;
    bool is_tty;
    uint8_t pending[256];
    size_t pending_len;
    struct termios saved;
    _Atomic bool raw;
    _Atomic bool output_stopped;
    _Atomic bool output_held;
} terminal;

static struct Held {
    pthread_mutex_t lock; /* protects the bytes; the length is also looked at without */
    uint8_t bytes[HELD_BYTES];
    _Atomic size_t len;
} held = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* What ends a process unless somebody handles it, and is not handled in the main context. */
static const int crash_signals[] = { SIGSEGV, SIGBUS,  SIGILL,  SIGFPE,    SIGABRT, SIGSYS, SIGTRAP,
                                     SIGXCPU, SIGALRM, SIGPROF, SIGVTALRM, SIGUSR2, SIGPOLL };

static bool in_background(void)
{
    pid_t foreground = tcgetpgrp(STDIN_FILENO);

    return foreground >= 0 && foreground != getpgrp();
}

/* Async-signal-safe. */
static void restore(void)
{
    if (atomic_exchange(&terminal.raw, false) && !in_background()) {
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal.saved);
    }
}

static void crash_cb(int sig)
{
    restore();
    signal(sig, SIG_DFL);
    raise(sig);
}

static int set_raw(Error *err)
{
    struct termios raw = terminal.saved;

    cfmakeraw(&raw);
    raw.c_oflag |= OPOST; /* messages of penstock itself still start at the left */
    atomic_store(&terminal.raw, true);
    if (tcsetattr(STDIN_FILENO, TCSANOW, &raw) < 0) {
        int ret = -errno;

        restore();
        return error_set(err, ret, "stdin: raw mode: %s", error_strerror(ret));
    }
    return 0;
}

static int start_raw(Error *err)
{
    static bool registered;

    if (!isatty(STDIN_FILENO)) {
        return 0;
    }
    if (tcgetattr(STDIN_FILENO, &terminal.saved) < 0) {
        int ret = -errno;

        return error_set(err, ret, "stdin: %s", error_strerror(ret));
    }
    if (!registered) {
        registered = true;
        atexit(restore);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(crash_signals); i++) {
        struct sigaction action = { .sa_handler = crash_cb };

        sigaction(crash_signals[i], &action, NULL);
    }
    terminal.is_tty = true;
    return set_raw(err);
}

void terminal_suspend(void)
{
    restore();
}

/* Twice is once; what the shell has made of the terminal meanwhile is not kept. */
void terminal_resume(void)
{
    if (terminal.is_tty && !in_background()) {
        (void)!set_raw(NULL);
    }
}

/* --- input --- */

static void stdin_cb(void *opaque);

static void watch(bool on)
{
    static const AioHandlerOps ops = { .read = stdin_cb };

    if (on != terminal.watching) {
        terminal.watching = on;
        aio_set_fd_handler(terminal.ctx, STDIN_FILENO, on ? &ops : NULL, NULL);
    }
}

static void offer_pending(void)
{
    size_t taken = 0;

    if (terminal.pending_len > 0) {
        taken = terminal.ops->input(terminal.opaque, terminal.pending, terminal.pending_len);
    }
    terminal.pending_len -= taken;
    memmove(terminal.pending, terminal.pending + taken, terminal.pending_len);
    watch(terminal.pending_len == 0 && !terminal.eof);
}

static void print_help(void)
{
    static const char help[] =
        "\r\nCtrl-A x quits, Ctrl-A c continues a guest that a disk error has stopped, "
        "Ctrl-A Ctrl-A sends Ctrl-A, Ctrl-A h helps\r\n";

    terminal_write((const uint8_t *)help, sizeof(help) - 1);
}

/* The byte after the escape key; true when a byte is for the guest. */
static bool escaped_byte(uint8_t byte)
{
    terminal.escaped = false;
    switch (byte) {
    case 'x':
    case 'X':
        terminal.ops->quit(terminal.opaque);
        return false;
    case 'c':
    case 'C':
        terminal.ops->go_on(terminal.opaque);
        return false;
    case 'h':
    case '?':
        print_help();
        return false;
    default:
        return byte == ESCAPE;
    }
}

static void take_byte(uint8_t byte)
{
    if (atomic_load(&terminal.raw)) {
        if (terminal.escaped) {
            if (!escaped_byte(byte)) {
                return;
            }
        } else if (byte == ESCAPE) {
            terminal.escaped = true;
            return;
        }
    }
    terminal.pending[terminal.pending_len++] = byte;
}

static void stdin_cb(void *opaque)
{
    uint8_t buf[sizeof(terminal.pending)];
    ssize_t len = read(STDIN_FILENO, buf, sizeof(buf));

    if (len < 0 && (errno == EINTR || errno == EAGAIN)) {
        return;
    }
    if (len <= 0) {
        terminal.eof = true;
        watch(false);
        return;
    }
    for (ssize_t i = 0; i < len; i++) {
        take_byte(buf[i]);
    }
    offer_pending();
}

static void room_bh(void *opaque)
{
    offer_pending();
}

void terminal_room(void)
{
    if (terminal.room_bh) {
        aio_bh_schedule(terminal.room_bh);
    }
}

/* --- output --- */

static void hold(const uint8_t *data, size_t len_bytes)
{
    pthread_mutex_lock(&held.lock);
    size_t len = MIN(len_bytes, sizeof(held.bytes) - held.len);

    memcpy(held.bytes + held.len, data, len);
    held.len += len;
    pthread_mutex_unlock(&held.lock);
}

/* Waits for room in steps and writes no more than there is room for, so that a console that nobody
 * reads cannot hold up the end of the run: stdout is shared with others, and so it blocks. */
static void write_out(const uint8_t *data, size_t len_bytes, bool may_wait)
{
    struct pollfd room = { .fd = STDOUT_FILENO, .events = POLLOUT };

    while (len_bytes > 0 && !atomic_load(&terminal.output_stopped)) {
        bool wait = may_wait && !atomic_load(&terminal.output_held);
        int ready = poll(&room, 1, wait ? OUTPUT_WAIT_MS : 0);

        if (ready == 0 && !wait) {
            hold(data, len_bytes);
            return;
        }
        if (ready == 0 || (ready < 0 && errno == EINTR)) {
            continue;
        }
        ssize_t done = write(STDOUT_FILENO, data, MIN(len_bytes, (size_t)OUTPUT_PIECE_BYTES));

        if (done > 0) {
            data += done;
            len_bytes -= done;
        } else if (done < 0 && errno != EINTR && errno != EAGAIN) {
            return;
        }
    }
}

static void write_held(bool may_wait)
{
    uint8_t bytes[HELD_BYTES];

    if (atomic_load(&held.len) == 0) {
        return;
    }
    pthread_mutex_lock(&held.lock);
    size_t len = held.len;

    memcpy(bytes, held.bytes, len);
    held.len = 0;
    pthread_mutex_unlock(&held.lock);
    write_out(bytes, len, may_wait);
}

void terminal_write(const uint8_t *data, size_t len_bytes)
{
    bool may_wait = !thread_is_main();

    write_held(may_wait);
    write_out(data, len_bytes, may_wait);
}

void terminal_hold_output(bool on)
{
    atomic_store(&terminal.output_held, on);
    if (!on) {
        write_held(false);
    }
}

void terminal_stop_output(void)
{
    atomic_store(&terminal.output_stopped, true);
}

int terminal_start(AioContext *ctx, const TerminalOps *ops, void *opaque, Error *err)
{
    memset(&terminal, 0, sizeof(terminal));
    held.len = 0;
    terminal.ctx = ctx;
    terminal.ops = ops;
    terminal.opaque = opaque;
    int ret = start_raw(err);

    if (ret < 0) {
        return ret;
    }
    terminal.room_bh = aio_bh_create(ctx, room_bh, NULL);
    watch(true);
    return 0;
}

void terminal_stop(void)
{
    restore();
    terminal.is_tty = false;
    if (terminal.ctx) {
        watch(false);
        aio_bh_destroy(take_ptr(&terminal.room_bh));
        terminal.ctx = NULL;
    }
}
