/*
 * tool.h - what the commands that work on disks without a guest share
 *
 * Layer:     vmm (info, copy, bench)
 * Threading: main thread.
 * Lifetime:  tool_init() .. tool_finish(), from any half-built state; disks are closed before.
 */
#ifndef VMM_TOOL_H
#define VMM_TOOL_H

#include "block/block-backend.h"
#include "io/base/thread.h"

typedef struct Tool {
    const char *name; /* of the command, for messages */
    AioContext *main;
    int signal_fd;
    int signal_received; /* 0 = none; polling the main context tells */
    bool usage;          /* what failed is the command line's fault */
    bool begun;          /* there is something to undo if it ends now */
} Tool;

#define TOOL_INIT(command)                                                                         \
    {                                                                                              \
        .name = (command), .signal_fd = -1,                                                        \
    }

/* tool_init - the main context, and signals that end the command: the first is noted in
 * signal_received, a second one ends the process. While a disk is opened and nothing has begun, the
 * first one does. */
main_fn int tool_init(Tool *tool, Error *err) NONNULL(1, 2) WARN_UNUSED;
main_fn void tool_finish(Tool *tool) NONNULL(1);
/* tool_fail - complain; returns the exit status that goes with tool->usage */
int tool_fail(const Tool *tool, const char *msg) NONNULL(1, 2) WARN_UNUSED;

/* tool_parse_disk - a DISK argument; -EINVAL. Sets usage. */
int tool_parse_disk(Tool *tool, Opts *opts, const char *what, const char *text, Error *err)
    NONNULL(1, 2, 3, 4, 5) WARN_UNUSED;
/*
 * tool_open_disk - open what @opts says, all of which must be understood
 * @writable  otherwise readonly=on is added where it is not there
 * Returns NULL with @err set; sets usage.
 */
main_fn BlockBackend *tool_open_disk(Tool *tool, const char *id, Opts *opts, bool writable,
                                     Error *err) NONNULL(1, 2, 3, 5) WARN_UNUSED;

/* A string in quotes, escaped, to stdout. */
void tool_put_json_string(const char *text) NONNULL(1);

#define TOOL_BYTES_TEXT 24
/* tool_format_bytes - "1.5 GiB" in @text, of TOOL_BYTES_TEXT bytes; returns it */
const char *tool_format_bytes(char *text, double bytes) NONNULL(1);

#endif
