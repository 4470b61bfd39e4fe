/*
 * Terminal - the guest's console on stdin and stdout
 *
 * Layer:     vmm
 * Threading: main thread; terminal_write() from any (vCPU threads print). Signal handlers restore
 *            the terminal on a crash.
 * Lifetime:  one a process. terminal_start() .. terminal_stop(); also restored by exit() and by
 *            every signal that ends the process by default, save SIGKILL.
 *
 * When stdin is a terminal it is put in raw mode, Ctrl-A is the escape key: Ctrl-A x quits,
 * Ctrl-A c lets a stopped guest go on, Ctrl-A h helps, Ctrl-A Ctrl-A sends one. Other input is
 * passed on as it comes; end of file is the end of input, not of the run.
 */
#ifndef VMM_TERMINAL_H
#define VMM_TERMINAL_H

#include "io/aio/aio.h"

typedef struct TerminalOps {
    /* Input for the guest; returns how many bytes were taken, the rest is offered again after
     * terminal_room(). Main context. */
    size_t (*input)(void *opaque, const uint8_t *data, size_t len_bytes);
    void (*quit)(void *opaque); /* Ctrl-A x; main context */
    void (*go_on)(void *opaque); /* Ctrl-A c; likewise */
} TerminalOps;

int terminal_start(AioContext *ctx, const TerminalOps *ops, void *opaque, Error *err)
    NONNULL(1, 2) WARN_UNUSED;
void terminal_stop(void);
/* For SIGTSTP and SIGCONT: give the terminal back, take it again. Main; nothing before start. */
void terminal_suspend(void);
void terminal_resume(void);

/* The guest has room for input again. Any thread. */
void terminal_room(void);
/* Guest output; errors are ignored, the guest's console is not worth its life. Any thread; waits for
 * a reader, but for main. */
void terminal_write(const uint8_t *data, size_t len_bytes) NONNULL(1);
/* While it is held, no vCPU thread waits for a reader, so that it can be paused; what was under way
 * is kept and printed later. Main. */
void terminal_hold_output(bool on);
/* From now on output is thrown away, so that no vCPU thread waits for a reader. Main. */
void terminal_stop_output(void);

#endif
