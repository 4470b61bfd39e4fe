/*
 * virtqueue-track.c - a queue's work, noted where others can see it; see virtqueue-track.h
 *
 * The packed ring's used descriptors overwrite those of chains that are in flight. So its region
 * has copies of these, in entries of their own that are linked to chains or in a list of free ones.
 * A chain is taken by moving the head of that list on, which is its mark as much as the flag is.
 */
#include "virtio/virtqueue-track.h"

#include <linux/virtio_ring.h>

#include "virtio/peer-signal.h"
#include "virtio/virtqueue-int.h"

/* Invariant (3): after all stores that stand before it. */
#define put(p, value) __atomic_store_n(p, value, __ATOMIC_RELEASE)
#define get(p)        __atomic_load_n(p, __ATOMIC_RELAXED)

/* --- the log --- */

#define LOG_WORD_BITS 64

void vq_log_mark(VqLog *log, uint64_t gpa, uint64_t len_bytes)
{
    uint64_t page = gpa / VHOST_USER_LOG_PAGE_BYTES, last;

    if (len_bytes == 0 || log->nb_pages == 0 || !checked_add(gpa, len_bytes - 1, &last)) {
        return;
    }
    last = MIN(last / VHOST_USER_LOG_PAGE_BYTES, log->nb_pages - 1);
    while (page <= last) {
        unsigned first_bit = page % LOG_WORD_BITS;
        unsigned nb_bits = (unsigned)MIN(last - page + 1, (uint64_t)LOG_WORD_BITS - first_bit);
        uint64_t bits = UINT64_MAX >> (LOG_WORD_BITS - nb_bits) << first_bit;

        /* after the write that it tells of, before the driver is told; the client takes bits at
         * the same time */
        __atomic_fetch_or(&log->words[page / LOG_WORD_BITS], htole64(bits), __ATOMIC_SEQ_CST);
        page += nb_bits;
    }
}

static void log_tell(const VqLog *log)
{
    int fd = atomic_load_explicit(&log->fd, memory_order_relaxed);

    if (fd >= 0) {
        peer_signal(fd);
    }
}

/* Guest memory is told of by its guest-physical addresses; our own may have any order. */
static void log_hva(const VirtQueue *vq, VqLog *log, const uint8_t *hva, uint64_t len_bytes)
{
    for (unsigned i = 0; i < vq->gm->nb_regions; i++) {
        const GuestMemoryRegion *region = &vq->gm->regions[i];

        if ((uintptr_t)hva - (uintptr_t)region->hva < region->len_bytes) {
            vq_log_mark(log, region->gpa + (uint64_t)(hva - region->hva), len_bytes);
            return;
        }
    }
}

/* The device type may have cut something off the last vector, where it has written as well. */
static void log_data(VirtQueue *vq, VqLog *log, const VqTracked *tracked)
{
    uint64_t left_bytes = tracked->in_bytes;

    for (unsigned i = 0; i < tracked->nb_in; i++) {
        bool is_last = i + 1 == tracked->nb_in;
        uint64_t len_bytes = is_last ? left_bytes : tracked->in[i].iov_len;

        log_hva(vq, log, tracked->in[i].iov_base, len_bytes);
        left_bytes -= len_bytes;
    }
}

/* The client says where a used ring is in its log. A packed ring has none: used descriptors are in
 * the descriptor ring, of which it says nothing. */
static void log_used(VirtQueue *vq, const VqTracker *tracker)
{
    uint64_t base = vq->is_packed ? vq->cfg_desc_gpa : tracker->ring_log_gpa;

    for (unsigned i = 0; i < tracker->nb_done; i++) {
        uint16_t index = (uint16_t)(vq->used_published + i) & (vq->size - 1);
        uint64_t offset = vq->is_packed ? tracker->done[i].slot * sizeof(struct vring_packed_desc)
                                        : offsetof(struct vring_used, ring) +
                                              index * sizeof(struct vring_used_elem);

        vq_log_mark(tracker->log, base + offset,
                    vq->is_packed ? sizeof(struct vring_packed_desc)
                                  : sizeof(struct vring_used_elem));
    }
    if (!vq->is_packed) {
        vq_log_mark(tracker->log, base, offsetof(struct vring_used, ring));
    }
}

/* --- taking --- */

static VqTracked *tracked_of(const VirtQueue *vq, const VqElem *elem)
{
    size_t index = (size_t)((const char *)elem - (const char *)vq->elem_memory) / vq->elem_bytes;

    return &vq->tracker->tracked[index];
}

static void mark_split(VqTracker *tracker, uint16_t head)
{
    VhostUserDescSplit *desc = &tracker->split->desc[head];

    put(&desc->counter, tracker->counter++);
    put(&desc->inflight, 1);
}

/* The chain is that in the ring's slots from @slot on. There are as many entries as slots, so one
 * is free for each of them. */
static void mark_packed(VirtQueue *vq, VqTracked *tracked, unsigned slot, unsigned nb_slots)
{
    VqTracker *tracker = vq->tracker;
    VhostUserQueuePacked *region = tracker->packed;
    uint16_t entry = tracker->free_head;
    VhostUserDescPacked *first = &region->desc[entry];

    tracked->entry = entry;
    put(&first->num, 0);
    put(&first->counter, tracker->counter++);
    put(&first->inflight, 1);
    for (unsigned i = 0; i < nb_slots; i++) {
        const struct vring_packed_desc *from = &vq->packed.desc[slot];
        VhostUserDescPacked *to = &region->desc[entry];

        put(&to->addr, le64toh(from->addr));
        put(&to->len, le32toh(from->len));
        put(&to->flags, le16toh(from->flags));
        put(&to->id, le16toh(from->id));
        tracked->last = entry;
        entry = tracker->links[entry];
        slot = slot + 1 == vq->size ? 0 : slot + 1;
    }
    put(&first->last, tracked->last);
    put(&first->num, (uint16_t)nb_slots);
    tracker->free_head = entry;
    put(&region->free_head, entry);
    put(&region->old_free_head, entry);
}

/* --- what another process has left --- */

bool vq_tracker_has_work(const VqTracker *tracker)
{
    return tracker->next_left < tracker->nb_left;
}

static int pop_left_packed(VirtQueue *vq, VqElem *elem, uint16_t entry)
{
    VqTracker *tracker = vq->tracker;
    const VhostUserQueuePacked *region = tracker->packed;
    VqTracked *tracked = tracked_of(vq, elem);
    unsigned nb = 0;

    tracked->entry = entry;
    for (unsigned next = entry; nb < tracker->left_num[entry]; next = tracker->links[next]) {
        const VhostUserDescPacked *desc = &region->desc[next];

        tracker->scratch[nb++] = (struct vring_packed_desc){ .addr = htole64(get(&desc->addr)),
                                                             .len = htole32(get(&desc->len)),
                                                             .id = htole16(get(&desc->id)),
                                                             .flags = htole16(get(&desc->flags)) };
        tracked->last = (uint16_t)next;
    }
    return vring_packed_pop_left(vq, elem, tracker->scratch, nb);
}

static int pop_left(VirtQueue *vq, VqElem *elem)
{
    VqTracker *tracker = vq->tracker;
    uint16_t entry = tracker->left[tracker->next_left++].entry;

    return tracker->split ? vring_split_pop_left(vq, elem, entry)
                          : pop_left_packed(vq, elem, entry);
}

int vq_tracker_pop(VirtQueue *vq, VqElem *elem)
{
    VqTracker *tracker = vq->tracker;
    VqTracked *tracked = tracked_of(vq, elem);
    bool left = vq_tracker_has_work(tracker);
    unsigned slot = vq->is_packed ? vq->packed.avail.slot : 0;

    int ret = left ? pop_left(vq, elem) : vring_pop(vq, elem);

    if (ret <= 0 || gm_is_lost(vq->gm)) {
        return ret;
    }
    if (!left && tracker->split) {
        mark_split(tracker, elem->head);
    } else if (!left && tracker->packed) {
        mark_packed(vq, tracked, slot, elem->nb_slots);
    }
    tracked->in = elem->iov + elem->nb_out;
    tracked->nb_in = elem->nb_in;
    tracked->in_bytes = elem->in_bytes;
    return ret;
}

bool vq_tracker_keeps(const VqTracker *tracker)
{
    return vq_tracker_has_work(tracker) || tracker->nb_suspended > 0;
}

/* --- giving back --- */

void vq_tracker_push(VirtQueue *vq, const VqElem *elem)
{
    VqTracker *tracker = vq->tracker;
    const VqTracked *tracked = tracked_of(vq, elem);

    if (tracker->log) {
        log_data(vq, tracker->log, tracked);
    }
    tracker->done[tracker->nb_done++] =
        (VqDone){ .entry = tracker->packed ? tracked->entry : elem->head,
                  .last = tracked->last,
                  .slot = vq->is_packed ? vq->packed.used.slot : 0 };
}

void vq_tracker_leave(VirtQueue *vq, const VqElem *elem)
{
    VqTracker *tracker = vq->tracker;

    if (tracker->log) {
        log_data(vq, tracker->log, tracked_of(vq, elem));
    }
    tracker->nb_suspended++;
}

static void link_split(VqTracker *tracker)
{
    VhostUserQueueSplit *region = tracker->split;

    for (unsigned i = 0; i < tracker->nb_done; i++) {
        uint16_t entry = tracker->done[i].entry;

        put(&region->desc[entry].next, tracker->free_head);
        put(&region->last_batch_head, entry);
        tracker->free_head = entry;
    }
}

static void clear_split(VqTracker *tracker, uint16_t used_idx)
{
    VhostUserQueueSplit *region = tracker->split;

    for (unsigned i = 0; i < tracker->nb_done; i++) {
        put(&region->desc[tracker->done[i].entry].inflight, 0);
    }
    put(&region->used_idx, used_idx);
}

static void link_packed(VqTracker *tracker, const VqBase *base)
{
    VhostUserQueuePacked *region = tracker->packed;

    for (unsigned i = 0; i < tracker->nb_done; i++) {
        const VqDone *done = &tracker->done[i];

        tracker->links[done->last] = tracker->free_head;
        put(&region->desc[done->last].next, tracker->free_head);
        tracker->free_head = done->entry;
        put(&region->free_head, done->entry);
    }
    put(&region->used_idx, VQ_BASE_SLOT(base->used));
    put(&region->used_wrap_counter, VQ_BASE_WRAP(base->used));
}

static void clear_packed(VqTracker *tracker, const VqBase *base)
{
    VhostUserQueuePacked *region = tracker->packed;

    for (unsigned i = 0; i < tracker->nb_done; i++) {
        put(&region->desc[tracker->done[i].entry].inflight, 0);
    }
    put(&region->old_free_head, tracker->free_head);
    put(&region->old_used_idx, VQ_BASE_SLOT(base->used));
    put(&region->old_used_wrap_counter, VQ_BASE_WRAP(base->used));
}

static void publish(VirtQueue *vq, VqTracker *tracker)
{
    VqBase base = vring_base(vq);

    if (tracker->split) {
        link_split(tracker);
    } else if (tracker->packed) {
        link_packed(tracker, &base);
    }
    vring_publish(vq);
    if (gm_is_lost(vq->gm)) {
        return;
    }
    if (tracker->split) {
        clear_split(tracker, vq->used_idx);
    } else if (tracker->packed) {
        clear_packed(tracker, &base);
    }
    if (tracker->log) {
        if (tracker->log_ring) {
            log_used(vq, tracker);
        }
        log_tell(tracker->log);
    }
}

void vq_tracker_publish(VirtQueue *vq)
{
    if (!gm_is_lost(vq->gm)) {
        publish(vq, vq->tracker);
    }
    vq->tracker->nb_done = 0;
}
