/*
 * VirtQueue - one virtqueue of a device
 *
 * Layer:     virtio/ (may use block/, io/; never devices/ or vmm/)
 * Threading: set up by the main thread while stopped; while started every function runs in
 *            the queue's home AioContext unless marked. Counters may be read from any thread.
 * Lifetime:  embedded in the device. vq_co_start()/vq_co_stop() bracket guest use. Elements
 *            borrow guest memory and the queue; all are pushed (or detached) before
 *            vq_co_stop() returns.
 * Spec:      VIRTIO 1.2 section 2.6-2.8
 *
 * Element life: free -> popped -> pushed or detached -> free. At most `size` elements are popped
 * and not pushed at any time, which also bounds what a guest can make the device hold: a head that
 * the guest makes available twice while in flight breaks the queue.
 *
 * virtqueue.c: life cycle and elements. vring-split.c and vring-packed.c: the two formats of a ring,
 * behind the vring_ functions of virtqueue-int.h; vring-chain.h: what both do with a descriptor.
 * virtio-notify.c: doorbell, polling, interrupts.
 *
 * What the guest did wrong breaks the queue (vq_break): the reason is logged once, the device shows
 * NEEDS_RESET, the queue takes no further request until it has been reset; other queues go on.
 */
#ifndef VIRTIO_VIRTQUEUE_H
#define VIRTIO_VIRTQUEUE_H

#include "io/aio/aio.h"
#include "io/base/endian.h"
#include "virtio/guest-memory.h"
#include "virtio/limits.h"

struct VirtioDevice;
typedef struct VirtQueue VirtQueue;

#define VQ_ELEM_IOV_INLINE 4 /* pieces that fit beside the element: header, data, status */

/*
 * One descriptor chain. Device types embed it first in their request. Two cache lines for a small
 * request; a chain of more than VQ_ELEM_IOV_INLINE pieces uses memory that was set aside for it
 * when the queue was started.
 */
typedef struct VqElem {
    struct iovec *iov; /* [0 .. nb_out) device-readable, [nb_out .. nb_out + nb_in) writable */
    VirtQueue *vq;
    uint64_t out_bytes; /* of the readable part */
    uint64_t in_bytes;  /* of the writable part */
    uint16_t head;      /* descriptor index of the chain; packed: the buffer's id, any number */
    uint16_t nb_out;
    uint16_t nb_in;
    uint16_t nb_slots; /* packed: of the ring, that the chain takes */
    bool in_use;
    struct VqElem *next_free;
    struct iovec *iov_large; /* VQ_ELEM_IOV_MAX */
    struct iovec iov_inline[VQ_ELEM_IOV_INLINE];
} CACHE_ALIGNED VqElem;

/*
 * Where a queue stands: what it takes next and what it uses next. Split: indices; the used one is
 * not looked at when a queue starts, since the ring tells it. Packed: slots, with the wrap counter
 * in bit 15.
 */
typedef struct VqBase {
    uint16_t avail;
    uint16_t used;
} VqBase;

/* Of a packed ring, either word: */
#define VQ_BASE_SLOT(word)         ((uint16_t)((word)&0x7fff))
#define VQ_BASE_WRAP(word)         ((uint8_t)((word) >> 15))
#define VQ_BASE_PACKED(slot, wrap) ((uint16_t)((slot) | (wrap) << 15))

/* The split ring (vring-split.c). Home; set up by main. */
typedef struct VringSplit {
    struct vring_desc *desc; /* guest memory, checked at start */
    struct vring_avail *avail;
    struct vring_used *used;
    uint16_t last_avail; /* next available entry to take */
    uint16_t avail_seen; /* avail->idx when last looked: fewer looks at the shared line */
} VringSplit;

/* A slot of a packed ring, and the AVAIL and USED flags that are due there in this lap. */
typedef struct VringPackedPos {
    uint16_t slot;
    uint16_t flags;
} VringPackedPos;

/* The packed ring (vring-packed.c). Home; set up by main. */
typedef struct VringPacked {
    struct vring_packed_desc *desc; /* guest memory, checked at start */
    struct vring_packed_desc_event *driver_event;
    struct vring_packed_desc_event *device_event;
    VringPackedPos avail;       /* next chain to take */
    VringPackedPos used;        /* next used descriptor to write */
    uint16_t slots_out;         /* of the chains that were popped and not pushed */
    uint16_t first_flags;       /* to be stored in first, which publishes it and those behind it */
    uint32_t slots_unsignalled; /* passed by used since the last interrupt decision */
    struct vring_packed_desc *first;
} VringPacked;

/* How the queue interrupts its driver. The transport fills it. */
typedef struct VqInterrupt {
    _Atomic int fd; /* an eventfd wired to the interrupt (irqfd, callfd); -1 = call notify() */
} VqInterrupt;

/* Counters; written in the home context, read by any thread one at a time. */
typedef struct VqStats {
    _Atomic uint64_t kicks;         /* handler runs caused by the doorbell */
    _Atomic uint64_t self_kicks;    /* handler runs that the queue asked itself for */
    _Atomic uint64_t polled;        /* handler runs caused by polling */
    _Atomic uint64_t requests;      /* elements popped */
    _Atomic uint64_t batches;       /* used index publications */
    _Atomic uint64_t notifications; /* interrupts sent */
} VqStats;

struct VirtQueue {
    /* read on every request */
    struct VirtioDevice *vdev;
    AioContext *ctx; /* home; written by main, stopped, or by vq_co_move() */
    const GuestMemory *gm;
    struct VqTracker *tracker; /* virtqueue-track.h; NULL: nothing is kept elsewhere */
    uint16_t size;             /* split: a power of 2 */
    bool is_packed;
    bool event_idx;
    bool indirect;
    bool active; /* started, not broken, and its memory is there */
    bool started;
    bool parked;             /* started, and between vq_co_park() and vq_co_unpark(); main */
    _Atomic bool broken;     /* written by the home context (vq_break) and, stopped, by main */
    _Atomic unsigned paused; /* not 0: nothing is popped; main: vdev_pause() */

    /* written on every request, by the home context only */
    union {
        VringSplit split;
        VringPacked packed; /* is_packed */
    } CACHE_ALIGNED;
    uint16_t used_idx;       /* elements used, and before the queue was started; wraps around */
    uint16_t used_published; /* of these the driver sees */
    uint16_t used_signalled; /* used_published at the last interrupt decision */
    bool notifications_on;
    bool polling;               /* a polling window is open: notifications stay off */
    bool starved;               /* vq_starve(): not looked at before it is served again */
    _Atomic unsigned in_flight; /* popped, not yet pushed */
    VqElem *free_elems;
    uint8_t *head_in_flight;         /* a byte for each head there may be */
    const GuestMemoryRegion *region; /* of the last buffer: most are in the same one */
    AioDefer flush;
    Coroutine *idle_waiter; /* in vq_co_stop() or vq_co_move(), while it waits */
    VqStats stats;

    /* set up */
    unsigned index;
    VqBase base; /* where it starts, where it stopped; main, stopped */
    bool base_given;
    EventNotifier doorbell; /* ioeventfd; also how others of us wake the queue */
    bool doorbell_attached; /* the transport signals it; main */
    int kick_fd;            /* a peer's eventfd, borrowed, that kicks as well; -1 = none */
    bool spins;             /* nobody kicks: look at the ring all the time */
    VqInterrupt interrupt;
    AioBh *self_kick; /* home context, while started */
    AioBh *spin;      /* likewise, if it spins */
    AioTimer retry;   /* likewise; armed only while it is starved and has nothing in flight */
    bool takes_left;  /* vq_co_take_left() is at work; home */
    void *elem_memory;
    size_t elem_bytes;
    struct iovec *iov_memory; /* VQ_ELEM_IOV_MAX for each element, untouched until used */
    char broken_reason[VQ_REASON_BYTES]; /* written before broken, read after it by main */
    bool broken_told;                    /* main has logged the reason */

    /* what the driver wrote (transport registers); main thread */
    uint16_t max_size;
    uint16_t cfg_size;
    bool cfg_enabled;
    uint64_t cfg_desc_gpa, cfg_avail_gpa, cfg_used_gpa;
} CACHE_ALIGNED;

/*
 * vq_init - a stopped queue with its doorbell open, home context main
 * Errors: -EMFILE, -ENFILE, -ENOMEM. vq_finish() accepts the half-built. Context: main.
 */
int vq_init(VirtQueue *vq, struct VirtioDevice *vdev, unsigned index, uint16_t max_size, Error *err)
    NONNULL(1, 2) WARN_UNUSED;
void vq_finish(VirtQueue *vq);
/* vq_reset_config - the registers as after a reset of the device. The queue is stopped. Main. */
void vq_reset_config(VirtQueue *vq) NONNULL(1);

/*
 * vq_set_base - let a stopped queue start where another device left off, not as after a reset
 * vq_base - where a stopped queue stands. Both until vq_reset_config(); main.
 */
void vq_set_base(VirtQueue *vq, VqBase base) NONNULL(1);
VqBase vq_base(const VirtQueue *vq) NONNULL(1);

/*
 * vq_co_start - check the ring the driver has set up, then attach the doorbell in the home context
 * Whatever the driver made available before is served (the queue kicks itself).
 * @elem_bytes  size of the device's request, which begins with a VqElem
 * Errors: -EINVAL ring outside memory or misaligned, no size or base for its format: the caller
 *         breaks the device with @err; -ENOMEM.
 * Context: coroutine in the main context (hops to the home context and back).
 */
co_fn int vq_co_start(VirtQueue *vq, size_t elem_bytes, Error *err) NONNULL(1) WARN_UNUSED;

/* vq_co_take_left - have the device take all that another process has left (virtqueue-track.h), as
 * far as it takes anything: a queue that is about to be stopped for good. Without memory the rest
 * stays marked. Context: as above. */
co_fn void vq_co_take_left(VirtQueue *vq) NONNULL(1);

/* vq_co_stop - detach the doorbell, wait until all elements are pushed, flush, free the elements.
 * Afterwards no guest memory is touched. Does nothing on a stopped queue. Context: as above. */
co_fn void vq_co_stop(VirtQueue *vq) NONNULL(1);

/*
 * vq_co_move - let @ctx be the home of a started queue from now on
 * Takes nothing more, waits in the old home until what was popped has been pushed and signalled,
 * and listens in the new one. What the driver offers meanwhile is served there; a kick that comes
 * in between stays in the doorbell.
 * Returns 0, or -EBUSY: a request is held (VirtioDeviceOps.holds), the queue stays. Context: as
 * above.
 */
co_fn int vq_co_move(VirtQueue *vq, AioContext *ctx) NONNULL(1, 2) WARN_UNUSED;
/* vq_look_for_held - a request has begun to be held: who waits for it to end looks again. Home. */
void vq_look_for_held(VirtQueue *vq) NONNULL(1);

/*
 * vq_co_park - take nothing more from a started queue, and wait until what was popped has been
 * pushed and signalled: nothing of guest memory is in use then, and its map may change
 * vq_co_unpark - go on where it stood, with the ring looked up anew. Errors: -EINVAL the ring is
 *         not in guest memory any more: it stays parked, and can only be stopped.
 * In between the queue may be stopped, and be given another home or another kick_fd. Context: as
 * above.
 */
co_fn void vq_co_park(VirtQueue *vq) NONNULL(1);
co_fn int vq_co_unpark(VirtQueue *vq, Error *err) NONNULL(1) WARN_UNUSED;

/*
 * vq_pop - take the next available chain
 * Returns the element, NULL when the ring is empty or the queue is (now) broken.
 * Descriptors are copied once, then checked. Context: home; never yields.
 */
VqElem *vq_pop(VirtQueue *vq) NONNULL(1);

/*
 * vq_starve - the device has no memory for one more request: what is available stays in the ring
 * The queue is served again when one of its requests has ended or, if it has none, after a short
 * time; kicks are not asked for meanwhile. Context: at the end of handle_queue().
 *
 * vq_nb_others - for co_create_request(): what the queue has in flight; 0 when it has a right to all
 * that it asks for, since what is not taken now is not taken at all. Home.
 */
void vq_starve(VirtQueue *vq) NONNULL(1);
static inline unsigned vq_nb_others(const VirtQueue *vq)
{
    return unlikely(vq->takes_left) ? 0
                                    : atomic_load_explicit(&vq->in_flight, memory_order_relaxed);
}

/* vq_push - the request is done; @written_bytes of the writable part were written, status included.
 * The used entry is filled now; published after every few and at the end of the pass; signalled
 * once, at the end of the pass. Home. */
void vq_push(VirtQueue *vq, VqElem *elem, uint32_t written_bytes) NONNULL(1, 2);

/* vq_detach - give the element back without using it: the queue is broken or about to be reset, as
 * the slots of a packed ring do not come back. Home. */
void vq_detach(VirtQueue *vq, VqElem *elem) NONNULL(1, 2);

/* vq_suspends - the queue is about to stop, and a request of it that fails now can wait for who
 * starts it next: vq_leave() instead of vq_push(). Home. */
bool vq_suspends(const VirtQueue *vq) NONNULL(1);
/* vq_leave - give the element back unanswered; it stays marked as in flight in the memory that
 * outlives us (virtqueue-track.h). Only while vq_suspends(). Home. */
void vq_leave(VirtQueue *vq, VqElem *elem) NONNULL(1, 2);

/* vq_publish - let the driver see what was pushed; the interrupt is decided at the end of the pass.
 * Home. */
void vq_publish(VirtQueue *vq) NONNULL(1);

/* vq_flush - publish used entries, decide on the interrupt (event index), send it. Runs by itself
 * at the end of each pass in which something was pushed. Home. */
void vq_flush(VirtQueue *vq) NONNULL(1);

/* vq_has_work - one look at the ring: something to pop? The poll probe. Home. */
bool vq_has_work(VirtQueue *vq) NONNULL(1);

/* vq_enable_notifications - ask for kicks; true when something arrived in between and the caller
 * must go round again. Has the store-load barrier of VIRTIO 2.7.7.2/2.7.10/2.8.14. Home. */
bool vq_enable_notifications(VirtQueue *vq) NONNULL(1) WARN_UNUSED;
void vq_disable_notifications(VirtQueue *vq) NONNULL(1);

/* vq_break - the guest broke the rules; see above. Home. */
void vq_break(VirtQueue *vq, const char *fmt, ...) PRINTF(2, 3) NONNULL(1) __attribute__((cold));

/* vq_serve - have the device handle what is available, as a kick would. Home. */
void vq_serve(VirtQueue *vq) NONNULL(1);

/* Copy between an element's readable (out) or writable (in) part and a buffer; returns the bytes
 * copied, fewer than asked when the part ends. */
size_t vq_elem_copy_out(const VqElem *elem, size_t offset_bytes, void *buf, size_t len_bytes)
    NONNULL(1, 3);
size_t vq_elem_copy_in(const VqElem *elem, size_t offset_bytes, const void *buf, size_t len_bytes)
    NONNULL(1, 3);

#endif
