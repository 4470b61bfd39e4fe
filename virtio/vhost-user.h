/*
 * VhuServer - serves a virtio device to another hypervisor over a vhost-user socket
 *
 * Layer:     virtio/ (may use block/, io/)
 * Threading: create, listen, start, stop and destroy in the main thread. A client's session is a
 *            coroutine in the main context; each queue is served in its home context, as with every
 *            other transport, and moves with vdev_co_move_queue() while a client is there, too.
 * Lifetime:  vhu_server_create(); a device on vhu_server_memory(); vhu_server_set_device();
 *            .. vhu_server_destroy(), before the device, which needs a server that was stopped or
 *            never started.
 * Spec:      QEMU docs/interop/vhost-user.rst; vhost-user-proto.h has the numbers
 *
 * The server is a transport as virtio-pci is one (VirtioTransportOps): guest memory is what the
 * client shares, doorbells and interrupts are its eventfds, ring registers are messages.
 *
 * One client at a time. When it has gone, or has broken the rules (the reason is logged), its
 * queues are stopped, which waits for the requests in flight; then its memory is unmapped and all
 * descriptors are closed; then the next client is accepted. Others wait in the kernel's queue.
 *
 * What a client can take, whatever it sends: 509 memory regions, a log, a region for requests in
 * flight, three eventfds a queue and a socket; CPU time of the threads that serve its queues. What
 * it does with memory that it has shared, cutting its file shorter included, ends its session at
 * worst (shared-map.h). Its eventfds are signalled without waiting (peer-signal.h).
 */
#ifndef VIRTIO_VHOST_USER_H
#define VIRTIO_VHOST_USER_H

#include "io/channel/channel-listener.h"
#include "virtio/virtio-device.h"

typedef struct VhuServer VhuServer;

/* vhu_server_create - @name is for messages; copied. Errors: -ENOMEM */
main_fn VhuServer *vhu_server_create(const char *name, Error *err) NONNULL(1) WARN_UNUSED;
/* vhu_server_memory - what the client shares; empty while there is none. For the device. */
const GuestMemory *vhu_server_memory(const VhuServer *server) NONNULL(1);
/* vhu_server_set_device - serve @vdev, which was made on this memory; once, before the start */
main_fn void vhu_server_set_device(VhuServer *server, VirtioDevice *vdev) NONNULL(1, 2);

/* vhu_server_listen - Errors: those of channel_listener_create() */
main_fn int vhu_server_listen(VhuServer *server, const SocketAddress *addr, Error *err)
    NONNULL(1, 2) WARN_UNUSED;
/* vhu_server_adopt - use a socket that was passed: one that listens, or one that is connected to
 * the only client there will be. Owns: @fd, on failure, too. Errors: -EINVAL neither of them */
main_fn int vhu_server_adopt(VhuServer *server, int fd, Error *err) NONNULL(1) WARN_UNUSED;

/* vhu_server_start - accept clients */
main_fn void vhu_server_start(VhuServer *server) NONNULL(1);

/* vhu_server_co_serve - serve the client on @ch until it has gone, or the server is stopped; nobody
 * else is being served. Owns: the reference to @ch. Context: coroutine, main. */
main_fn co_fn void vhu_server_co_serve(VhuServer *server, Channel *ch) NONNULL(1, 2);

/* vhu_server_stop - accept no more, begin to end the session. Again: nothing. */
main_fn void vhu_server_stop(VhuServer *server) NONNULL(1);
/* vhu_server_co_stop - the same, and wait for the session's end: what is in flight is finished and
 * told to the client first. Context: coroutine, main; once. */
main_fn co_fn void vhu_server_co_stop(VhuServer *server) NONNULL(1);
main_fn void vhu_server_destroy(VhuServer *server);

/* vhu_server_is_over - the one client of a connected socket has gone: nobody will come any more */
bool vhu_server_is_over(const VhuServer *server) NONNULL(1);

#endif
