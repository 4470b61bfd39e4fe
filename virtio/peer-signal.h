/*
 * peer-signal.h - signal an eventfd that a peer has given, without ever waiting
 *
 * Layer:     virtio/ (may use io/)
 * Threading: any thread.
 *
 * A write to an eventfd whose counter is full waits, unless the open file is non-blocking; and that
 * file is the peer's as much as ours. It can switch it to blocking and fill the counter between any
 * look of ours and our write, and then a thread that serves others, too, stands still. We must not
 * switch it to non-blocking either: the peer may read it.
 *
 * The kernel itself adds to an eventfd without waiting: when asynchronous I/O completes whose iocb
 * names one (io_submit(2), IOCB_FLAG_RESFD); a counter that is full stays so. So a signal is a read of
 * no bytes from the eventfd itself: it is refused, for it wants eight, and so completes while it is
 * submitted. One system call, about as long as the two of looking and writing. The price is at the
 * end: a process that has signalled so dies some 40 ms later, because the kernel waits until nobody
 * uses its AIO contexts.
 *
 * Where that is refused, as by a seccomp filter, we look and write: a peer that means to can hold up
 * a thread there.
 */
#ifndef VIRTIO_PEER_SIGNAL_H
#define VIRTIO_PEER_SIGNAL_H

#include "io/base/compiler.h"

/* peer_signal - add 1 to @fd, or leave it full */
void peer_signal(int fd);

#endif
