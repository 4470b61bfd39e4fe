/*
 * VqTracker - what is kept of a queue where others can see it: requests in flight, in memory that
 * outlives this process, and pages that were written, in a log of the client's
 *
 * Layer:     virtio/, for vhost-user
 * Threading: set up and finished in the main thread while the queue is stopped, the log changed
 *            while it is parked, too; everything else in the queue's home context.
 * Lifetime:  embedded by its owner. A queue points to it while it is of use; the region and the log
 *            are borrowed and stay mapped meanwhile.
 * Spec:      QEMU docs/interop/vhost-user.rst, "Inflight I/O tracking" and "Migration"
 *
 * A queue without one pays a branch for it.
 *
 * What stands in the region is the peer's to change at any time. So it is written and, but for
 * taking over what another process has left, not read; then everything in it is checked as what
 * stands in a ring is.
 *
 * Invariants. Whenever the process is killed, the region tells exactly what was taken from the
 * ring and not given back:
 *   (1) An entry is marked after the chain was taken and before its request is begun. What was
 *       taken and not marked is taken again.
 *   (2) Nothing of the region changes when a request is done, until that is published: entries of
 *       one publication are linked up first, the used index (the first used descriptor's flags) is
 *       stored, the marks are cleared, and the index is noted in the region. Whoever finds the
 *       ring's index to be another one than that in the region clears the marks himself. No chain
 *       is taken meanwhile.
 *   (3) Stores are made in the order in which they stand here. No other thread of this process
 *       makes them and a kill ends the process between two instructions, so this is a matter of
 *       the compiler alone.
 *   (4) Nothing of the region changes any more once guest memory is lost (gm_is_lost()): what the
 *       driver was to be told may be nowhere. What is in flight then stays marked.
 */
#ifndef VIRTIO_VIRTQUEUE_TRACK_H
#define VIRTIO_VIRTQUEUE_TRACK_H

#include "virtio/vhost-user-proto.h"
#include "virtio/virtqueue.h"

/* --- the log of pages that were written --- */

/* A bit a page of guest memory; set by us, taken by the client. */
typedef struct VqLog {
    uint64_t *words;   /* shared: 64 pages each, the first in the lowest bit of the first byte */
    uint64_t nb_pages;
    _Atomic int fd; /* an eventfd that tells of new bits; -1 = none */
} VqLog;

/* vq_log_mark - pages of [@gpa, @gpa + @len_bytes) were written; those beyond its end are left out.
 * Any thread. */
void vq_log_mark(VqLog *log, uint64_t gpa, uint64_t len_bytes) NONNULL(1);

/* --- a queue's tracker --- */

/* A request that another process has left. */
typedef struct VqLeft {
    uint64_t counter; /* the order in which they were taken */
    uint16_t entry;
} VqLeft;

/* One that is in flight now. */
typedef struct VqTracked {
    const struct iovec *in; /* the writable part as it was popped */
    uint64_t in_bytes;
    uint16_t nb_in;
    uint16_t entry; /* packed: of the chain's first descriptor, */
    uint16_t last;  /* and of its last */
} VqTracked;

/* One that is done and not published. */
typedef struct VqDone {
    uint16_t entry;
    uint16_t last;
    uint16_t slot; /* packed: where its used descriptor is */
} VqDone;

typedef struct VqTracker {
    /* requests in flight; both NULL: not kept */
    VhostUserQueueSplit *split;
    VhostUserQueuePacked *packed;
    unsigned nb_entries; /* of the region */
    uint64_t counter;    /* of the next request */
    VqLeft *left;        /* in order, still to be done; nb_entries at most */
    unsigned nb_left, next_left;
    _Atomic bool suspending; /* main: what fails now is for who comes next */
    unsigned nb_suspended;   /* left so by us */
    uint16_t *left_num; /* packed: for each entry that a chain left begins with, how many it has */
    struct vring_packed_desc *scratch; /* packed: a chain that was left */
    uint16_t *links;                   /* packed: our copy of the entries' links */
    uint16_t free_head; /* packed: likewise; split: of the list of those given back */
    VqTracked *tracked; /* one for each of the queue's elements */
    VqDone done[VQ_PUBLISH_MAX];
    unsigned nb_done;
    /* the log; NULL: none */
    VqLog *log;
    bool log_ring; /* used entries, too; at: */
    uint64_t ring_log_gpa;
} VqTracker;

/*
 * vq_tracker_init - nothing is kept yet
 * @size  of the ring. Errors: -ENOMEM
 */
int vq_tracker_init(VqTracker *tracker, unsigned size, Error *err) NONNULL(1) WARN_UNUSED;
void vq_tracker_finish(VqTracker *tracker) NONNULL(1);

/*
 * vq_tracker_begin_split, vq_tracker_begin_packed - keep requests in flight in @region from now on,
 * which is made so that nothing is in flight
 * @nb_entries  the region has room for; not less than the ring's size
 * Errors: -ENOMEM
 */
int vq_tracker_begin_split(VqTracker *tracker, VhostUserQueueSplit *region, unsigned nb_entries,
                           uint16_t used_idx, Error *err) NONNULL(1, 2) WARN_UNUSED;
int vq_tracker_begin_packed(VqTracker *tracker, VhostUserQueuePacked *region, unsigned nb_entries,
                            VqBase base, Error *err) NONNULL(1, 2) WARN_UNUSED;
/*
 * vq_tracker_resume_split, vq_tracker_resume_packed - the same with what another process has left
 * in it; the queue takes that first
 * @used_idx     of the ring, as the driver sees it
 * @desc         the packed ring, of @size descriptors; traces of what was not published are removed
 * @ret_base     where the queue is to start
 * Errors: -EINVAL what stands in the region makes no sense; -ENOMEM
 */
int vq_tracker_resume_split(VqTracker *tracker, VhostUserQueueSplit *region, unsigned nb_entries,
                            unsigned size, uint16_t used_idx, VqBase *ret_base, Error *err)
    NONNULL(1, 2, 6) WARN_UNUSED;
int vq_tracker_resume_packed(VqTracker *tracker, VhostUserQueuePacked *region, unsigned nb_entries,
                             struct vring_packed_desc *desc, unsigned size, VqBase *ret_base,
                             Error *err) NONNULL(1, 2, 4, 6) WARN_UNUSED;

/* vq_tracker_keeps - something is in flight for who comes next. The queue is stopped. */
bool vq_tracker_keeps(const VqTracker *tracker) NONNULL(1);

/* --- for virtqueue.c; home --- */

/* vq_tracker_pop - as vring_pop(), what was left first */
int vq_tracker_pop(VirtQueue *vq, VqElem *elem) NONNULL(1, 2) WARN_UNUSED;
bool vq_tracker_has_work(const VqTracker *tracker) NONNULL(1);
/* vq_tracker_push - before vring_push() */
void vq_tracker_push(VirtQueue *vq, const VqElem *elem) NONNULL(1, 2);
/* vq_tracker_leave - @elem goes, and stays marked; what was written of its buffers is logged */
void vq_tracker_leave(VirtQueue *vq, const VqElem *elem) NONNULL(1, 2);
/* vq_tracker_publish - does vring_publish(), with what must come before it and after it */
void vq_tracker_publish(VirtQueue *vq) NONNULL(1);

#endif
