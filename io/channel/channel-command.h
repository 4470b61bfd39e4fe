/*
 * channel-command - a child process: written to its standard input, read from its standard output
 *
 * Layer:     io/channel
 * Threading: see channel.h. Starting blocks for the time of a vfork.
 * Lifetime:  the last channel_unref() closes both pipes and, unless the child was waited for,
 *            kills it (SIGKILL) and reaps it.
 *
 * Standard error is the parent's; no other descriptor is inherited, and signals are as at the start
 * of a process. Shutting down a direction closes its pipe.
 */
#ifndef IO_CHANNEL_CHANNEL_COMMAND_H
#define IO_CHANNEL_CHANNEL_COMMAND_H

#include "io/channel/channel.h"

/*
 * channel_command_open - start argv[0], looked for in PATH, with a list that NULL ends
 * Errors: -ENOENT, -EACCES, -EMFILE, -ENOMEM, ...
 */
Channel *channel_command_open(const char *const argv[], Error *err) NONNULL(1) WARN_UNUSED;

/*
 * channel_command_co_wait - shut both directions down and wait for the child's end
 * @ret_status  as waitpid() gives it; may be NULL
 * Returns 0, or -ETIMEDOUT at @deadline_ns (-1 = none) with the child still running. One at a time.
 */
co_fn int channel_command_co_wait(Channel *ch, int64_t deadline_ns, int *ret_status) NONNULL(1)
    WARN_UNUSED;

#endif
