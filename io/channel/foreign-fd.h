/*
 * foreign-fd.h - the end of descriptors that others have passed
 *
 * Layer:     io/channel
 * Threading: any thread.
 *
 * What close() does is up to what the descriptor is of, which is up to who has passed it: a TCP
 * socket that lingers waits for its peer, a file of FUSE for a process of the sender's, for as long
 * as they like. So it is done by threads that nothing else waits for.
 */
#ifndef IO_CHANNEL_FOREIGN_FD_H
#define IO_CHANNEL_FOREIGN_FD_H

/*
 * fd_close_foreign - have @fd closed, sooner or later; at once where it cannot take time (a memfd)
 * Owns: @fd, from now on. One that hangs does not delay others, until FOREIGN_CLOSERS_MAX do: then
 * those that follow stay open.
 */
#define FOREIGN_CLOSERS_MAX 64

void fd_close_foreign(int fd);

#endif
