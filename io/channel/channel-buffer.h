/*
 * channel-buffer - two channels, each of which reads what the other writes, in memory
 *
 * Layer:     io/channel
 * Threading: see channel.h; the two ends may be used in different threads.
 * Lifetime:  each end is a channel of its own; closing one ends the stream of the other.
 *
 * For tests and fuzzers, and for TLS that is to be looked into: no descriptor, no system call.
 */
#ifndef IO_CHANNEL_CHANNEL_BUFFER_H
#define IO_CHANNEL_CHANNEL_BUFFER_H

#include "io/channel/channel.h"

/*
 * channel_buffer_pair - make both ends
 * @capacity_bytes  how much may be underway in each direction
 * @chunk_bytes     no try moves more than this at once, for a peer that dribbles; 0 = no limit
 * Errors: -ENOMEM
 */
int channel_buffer_pair(size_t capacity_bytes, size_t chunk_bytes, Channel *ret_ends[2], Error *err)
    NONNULL(3) WARN_UNUSED;

#endif
