/*
 * ending-signals.h - the signals that end the program in order
 *
 * Layer:     vmm
 * Threading: main thread. Threads get none of them: they block all, or are started while these are
 *            blocked.
 *
 * They are blocked and read from a descriptor in the main context, so that what has been begun is
 * brought to its end. As long as nothing has been begun they are released: a start that waits for
 * a server, or for a file system that does not answer, ends at the first one.
 */
#ifndef VMM_ENDING_SIGNALS_H
#define VMM_ENDING_SIGNALS_H

#include <signal.h>

#include "io/base/compiler.h"

/* ending_signals_fill - SIGTERM, SIGINT, SIGQUIT, and SIGHUP unless it is ignored, as by nohup(1) */
void ending_signals_fill(sigset_t *ret_set) NONNULL(1);

/* ending_signals_block - for the descriptor. ending_signals_release - each of them ends the process
 * at once, one that came before, too. */
void ending_signals_block(void);
void ending_signals_release(void);

#endif
