/*
 * channel-file - channels on pipes, character devices and files
 *
 * Layer:     io/channel
 * Threading: see channel.h.
 *
 * Regular files never say that they would block; they are read and written, at the file position
 * that the descriptors have, by worker threads. Shutting down a direction closes its descriptor, as
 * soon as no operation is in it. A process that writes to pipes ignores SIGPIPE: where its action
 * is still the default one when a channel is made, that makes it ignored.
 */
#ifndef IO_CHANNEL_CHANNEL_FILE_H
#define IO_CHANNEL_CHANNEL_FILE_H

#include "io/channel/channel.h"

/*
 * channel_file_adopt - read from @in_fd, write to @out_fd; either may be -1: nothing to read
 * (-ESHUTDOWN), nothing to write
 * The two must be different descriptors (dup() where one serves both).
 * Owns: both, on failure, too. They are made non-blocking, for all who share the open file, and
 *       close-on-exec.
 * @name  for messages; copied
 */
Channel *channel_file_adopt(int in_fd, int out_fd, const char *name, Error *err) NONNULL(3)
    WARN_UNUSED;
/* channel_file_open - open(path, flags, mode); O_RDWR gives both directions */
Channel *channel_file_open(const char *path, int flags, mode_t mode, Error *err) NONNULL(1)
    WARN_UNUSED;

#endif
