/*
 * virtqueue-resume.c - a region that keeps requests in flight: made new, or taken over from another
 * process, killed at any instant
 *
 * Invariants:
 *   (1) Everything in a region is read once, checked, and used from our copy.
 *   (2) A region that makes no sense is refused before anything in it is changed.
 *   (3) What is changed here can be done once more, by whoever takes over when we are killed at it.
 */
#include <inttypes.h>
#include <linux/virtio_ring.h>
#include <string.h>

#include "virtio/virtqueue-int.h"
#include "virtio/virtqueue-track.h"

#define put(p, value) __atomic_store_n(p, value, __ATOMIC_RELEASE)
#define get(p)        __atomic_load_n(p, __ATOMIC_RELAXED)

#define F_AVAIL (1u << VRING_PACKED_DESC_F_AVAIL)
#define F_USED  (1u << VRING_PACKED_DESC_F_USED)
#define F_OWNER (F_AVAIL | F_USED)

/* --- memory --- */

int vq_tracker_init(VqTracker *tracker, unsigned size, Error *err)
{
    *tracker = (VqTracker){ .split = NULL };
    tracker->tracked = calloc(size, sizeof(*tracker->tracked));
    return tracker->tracked ? 0 : error_set(err, -ENOMEM, "out of memory");
}

void vq_tracker_finish(VqTracker *tracker)
{
    free(tracker->tracked);
    free(tracker->left);
    free(tracker->left_num);
    free(tracker->links);
    free(tracker->scratch);
    *tracker = (VqTracker){ .split = NULL };
}

static int alloc_entries(VqTracker *tracker, unsigned nb_entries, Error *err)
{
    tracker->nb_entries = nb_entries;
    tracker->left = calloc(nb_entries, sizeof(*tracker->left));
    tracker->left_num = calloc(nb_entries, sizeof(*tracker->left_num));
    tracker->links = calloc(nb_entries, sizeof(*tracker->links));
    tracker->scratch = calloc(nb_entries, sizeof(*tracker->scratch));
    return tracker->left && tracker->left_num && tracker->links && tracker->scratch
               ? 0
               : error_set(err, -ENOMEM, "out of memory");
}

/* --- new --- */

int vq_tracker_begin_split(VqTracker *tracker, VhostUserQueueSplit *region, unsigned nb_entries,
                           uint16_t used_idx, Error *err)
{
    int ret = alloc_entries(tracker, nb_entries, err);

    if (ret < 0) {
        return ret;
    }
    put(&region->version, 0);
    for (unsigned i = 0; i < nb_entries; i++) {
        region->desc[i] = (VhostUserDescSplit){ .inflight = 0 };
    }
    region->features = 0;
    region->desc_num = (uint16_t)nb_entries;
    region->last_batch_head = 0;
    region->used_idx = used_idx;
    put(&region->version, VHOST_USER_INFLIGHT_VERSION);
    tracker->split = region;
    return 0;
}

int vq_tracker_begin_packed(VqTracker *tracker, VhostUserQueuePacked *region, unsigned nb_entries,
                            VqBase base, Error *err)
{
    int ret = alloc_entries(tracker, nb_entries, err);

    if (ret < 0) {
        return ret;
    }
    put(&region->version, 0);
    for (unsigned i = 0; i < nb_entries; i++) {
        tracker->links[i] = (uint16_t)(i + 1);
        region->desc[i] = (VhostUserDescPacked){ .next = (uint16_t)(i + 1) };
    }
    region->features = 0;
    region->desc_num = (uint16_t)nb_entries;
    region->free_head = region->old_free_head = 0;
    region->used_idx = region->old_used_idx = VQ_BASE_SLOT(base.used);
    region->used_wrap_counter = region->old_used_wrap_counter = VQ_BASE_WRAP(base.used);
    put(&region->version, VHOST_USER_INFLIGHT_VERSION);
    tracker->packed = region;
    return 0;
}

/* --- taken over --- */

static int compare_left(const void *a, const void *b)
{
    const VqLeft *x = a, *y = b;

    return (x->counter > y->counter) - (x->counter < y->counter);
}

static void add_left(VqTracker *tracker, uint16_t entry, uint64_t counter, uint16_t num)
{
    tracker->left[tracker->nb_left++] = (VqLeft){ .counter = counter, .entry = entry };
    tracker->left_num[entry] = num;
}

static void sort_left(VqTracker *tracker)
{
    qsort(tracker->left, tracker->nb_left, sizeof(*tracker->left), compare_left);
    tracker->counter = tracker->nb_left > 0 ? tracker->left[tracker->nb_left - 1].counter + 1 : 0;
}

static int check_version(unsigned version, unsigned desc_num, unsigned nb_entries, Error *err)
{
    if (version != VHOST_USER_INFLIGHT_VERSION || desc_num != nb_entries) {
        return error_set(err, -EINVAL,
                         "the region of requests in flight has version %u and %u entries instead "
                         "of %d and %u",
                         version, desc_num, VHOST_USER_INFLIGHT_VERSION, nb_entries);
    }
    return 0;
}

static bool any_in_flight(const VhostUserQueueSplit *region, unsigned nb_entries)
{
    for (unsigned i = 0; i < nb_entries; i++) {
        if (get(&region->desc[i].inflight)) {
            return true;
        }
    }
    return false;
}

/* The last @nb that were given back, whose marks may still be there: those in the list. */
static int find_batch(const VhostUserQueueSplit *region, unsigned nb_entries, uint16_t nb,
                      uint8_t *done, Error *err)
{
    uint16_t entry = get(&region->last_batch_head);

    for (unsigned i = 0; i < nb; i++) {
        if (nb > nb_entries || entry >= nb_entries || done[entry]) {
            return error_set(err, -EINVAL,
                             "the region of requests in flight has no list of the last %u", nb);
        }
        done[entry] = 1;
        entry = get(&region->desc[entry].next);
    }
    return 0;
}

int vq_tracker_resume_split(VqTracker *tracker, VhostUserQueueSplit *region, unsigned nb_entries,
                            unsigned size, uint16_t used_idx, VqBase *ret_base, Error *err)
{
    uint16_t nb_batch = (uint16_t)(used_idx - get(&region->used_idx));
    AUTO_FREE uint8_t *done = calloc(nb_entries, 1);
    int ret;

    if (!done) {
        return error_set(err, -ENOMEM, "out of memory");
    }
    if ((ret = check_version(get(&region->version), get(&region->desc_num), nb_entries, err)) < 0) {
        return ret;
    }
    if (!any_in_flight(region, nb_entries)) {
        nb_batch = 0; /* perhaps the ring is another one by now: all the same */
    }
    if ((ret = alloc_entries(tracker, nb_entries, err)) < 0 ||
        (ret = find_batch(region, nb_entries, nb_batch, done, err)) < 0) {
        return ret;
    }
    for (unsigned i = 0; i < nb_entries; i++) {
        if (!done[i] && get(&region->desc[i].inflight)) {
            if (i >= size) {
                return error_set(err, -EINVAL, "head %u of a queue of %u is said to be in flight",
                                 i, size);
            }
            add_left(tracker, (uint16_t)i, get(&region->desc[i].counter), 1);
        }
    }
    for (unsigned i = 0; i < nb_entries; i++) {
        if (done[i]) {
            put(&region->desc[i].inflight, 0);
        }
    }
    put(&region->used_idx, used_idx);
    tracker->free_head = get(&region->last_batch_head);
    sort_left(tracker);
    tracker->split = region;
    *ret_base = (VqBase){ .avail = (uint16_t)(used_idx + tracker->nb_left), .used = used_idx };
    return 0;
}

/* Where the queue stands, by our copy of the region. */
typedef struct PackedState {
    uint16_t free_head, used_idx;
    uint8_t used_wrap;
} PackedState;

/* What was published is true, what was not is not. */
static int packed_state(const VhostUserQueuePacked *region, const struct vring_packed_desc *desc,
                        unsigned size, PackedState *ret_state, Error *err)
{
    PackedState state = { get(&region->free_head), get(&region->used_idx),
                          get(&region->used_wrap_counter) };
    PackedState old = { get(&region->old_free_head), get(&region->old_used_idx),
                        get(&region->old_used_wrap_counter) };

    if (state.used_idx >= size || old.used_idx >= size || state.used_wrap > 1 ||
        old.used_wrap > 1) {
        return error_set(err, -EINVAL, "the region of requests in flight stands at %u of %u",
                         state.used_idx, size);
    }
    uint16_t flags = le16_load((const le16 *)&desc[old.used_idx].flags);
    uint16_t available = old.used_wrap ? F_AVAIL : F_USED;
    bool moved = state.used_idx != old.used_idx || state.used_wrap != old.used_wrap;

    *ret_state = moved && (flags & F_OWNER) != available ? state : old;
    return 0;
}

/* Entries from @entry on, none of which was seen before; how many, or -EINVAL. */
static int walk_entries(VqTracker *tracker, unsigned entry, unsigned max, uint8_t *seen)
{
    unsigned nb = 0;

    for (; nb < max && entry < tracker->nb_entries; nb++) {
        if (seen[entry]) {
            return -EINVAL;
        }
        seen[entry] = 1;
        entry = tracker->links[entry];
    }
    return (int)nb;
}

/* Each entry is free or of one chain. Returns the slots of all chains. */
static int find_left_packed(VqTracker *tracker, const VhostUserQueuePacked *region,
                            unsigned free_head, uint8_t *seen)
{
    int nb_free = walk_entries(tracker, free_head, tracker->nb_entries, seen);
    int nb_slots = 0;

    if (nb_free < 0) {
        return nb_free;
    }
    AUTO_FREE uint8_t *is_free = malloc(tracker->nb_entries);

    if (!is_free) {
        return -ENOMEM;
    }
    memcpy(is_free, seen, tracker->nb_entries);
    for (unsigned i = 0; i < tracker->nb_entries; i++) {
        const VhostUserDescPacked *desc = &region->desc[i];
        uint16_t num = get(&desc->num);

        if (is_free[i] || !get(&desc->inflight)) {
            continue;
        }
        if (num == 0 || walk_entries(tracker, i, num, seen) != num) {
            return -EINVAL;
        }
        add_left(tracker, (uint16_t)i, get(&desc->counter), num);
        nb_slots += num;
    }
    for (unsigned i = 0; i < tracker->nb_entries; i++) {
        seen[i] = seen[i] && !is_free[i];
    }
    return nb_free + nb_slots == (int)tracker->nb_entries ? nb_slots : -EINVAL;
}

/* The slots that the queue has taken and not used: remove used flags that nobody was to see yet. */
static void remove_traces(struct vring_packed_desc *desc, unsigned size, const PackedState *state,
                          unsigned nb_slots)
{
    unsigned slot = state->used_idx;
    bool wrap = state->used_wrap;

    for (unsigned i = 0; i < nb_slots; i++) {
        uint16_t flags = le16_load((const le16 *)&desc[slot].flags);

        le16_store((le16 *)&desc[slot].flags,
                   (uint16_t)((flags & ~F_OWNER) | (wrap ? F_AVAIL : F_USED)));
        if (++slot == size) {
            slot = 0;
            wrap = !wrap;
        }
    }
}

static void put_state(VhostUserQueuePacked *region, const PackedState *state)
{
    put(&region->free_head, state->free_head);
    put(&region->used_idx, state->used_idx);
    put(&region->used_wrap_counter, state->used_wrap);
    put(&region->old_free_head, state->free_head);
    put(&region->old_used_idx, state->used_idx);
    put(&region->old_used_wrap_counter, state->used_wrap);
}

static VqBase packed_base(const PackedState *state, unsigned size, unsigned nb_slots)
{
    unsigned avail = state->used_idx + nb_slots;
    bool wrap = state->used_wrap;

    if (avail >= size) {
        avail -= size;
        wrap = !wrap;
    }
    return (VqBase){ .avail = VQ_BASE_PACKED(avail, wrap),
                     .used = VQ_BASE_PACKED(state->used_idx, state->used_wrap) };
}

int vq_tracker_resume_packed(VqTracker *tracker, VhostUserQueuePacked *region, unsigned nb_entries,
                             struct vring_packed_desc *desc, unsigned size, VqBase *ret_base,
                             Error *err)
{
    AUTO_FREE uint8_t *taken = calloc(nb_entries, 1);
    PackedState state = { 0 };
    int ret;

    if (!taken) {
        return error_set(err, -ENOMEM, "out of memory");
    }
    if ((ret = check_version(get(&region->version), get(&region->desc_num), nb_entries, err)) < 0 ||
        (ret = packed_state(region, desc, size, &state, err)) < 0 ||
        (ret = alloc_entries(tracker, nb_entries, err)) < 0) {
        return ret;
    }
    for (unsigned i = 0; i < nb_entries; i++) {
        tracker->links[i] = get(&region->desc[i].next);
    }
    int nb_slots = find_left_packed(tracker, region, state.free_head, taken);

    if (nb_slots < 0 || (unsigned)nb_slots > size) {
        return error_set(err, nb_slots < 0 ? nb_slots : -EINVAL,
                         "the region of requests in flight has entries that belong nowhere");
    }
    remove_traces(desc, size, &state, (unsigned)nb_slots);
    for (unsigned i = 0; i < nb_entries; i++) {
        if (!taken[i]) {
            put(&region->desc[i].inflight, 0);
        }
    }
    put_state(region, &state);
    tracker->free_head = state.free_head;
    sort_left(tracker);
    tracker->packed = region;
    *ret_base = packed_base(&state, size, (unsigned)nb_slots);
    return 0;
}
