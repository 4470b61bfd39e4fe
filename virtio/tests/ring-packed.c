/*
 * ring-packed.c - a packed ring as the specification tells a driver to use it
 */
#include "virtio/tests/ring-packed.h"

#include <assert.h>
#include <endian.h>
#include <stdlib.h>
#include <string.h>

void ring_packed_init(RingPacked *r, void *desc, void *driver_event, void *device_event,
                      uint16_t size)
{
    *r = (RingPacked){
        .desc = desc, .driver_event = driver_event, .device_event = device_event, .size = size
    };
    r->nb_slots = calloc(UINT16_MAX + 1, sizeof(*r->nb_slots));
    assert(r->nb_slots);
}

void ring_packed_finish(RingPacked *r)
{
    free(r->nb_slots);
}

void ring_packed_begin_at(RingPacked *r, uint64_t pos)
{
    r->next_avail = r->first = r->kicked_avail = r->next_used = pos;
}

static struct vring_packed_desc *desc_at(const RingPacked *r, uint64_t pos)
{
    return &r->desc[pos % r->size];
}

/* Both counters begin with 1. */
static bool wrap_at(const RingPacked *r, uint64_t pos)
{
    return pos / r->size % 2 == 0;
}

uint16_t ring_packed_name(const RingPacked *r, uint64_t pos)
{
    return (uint16_t)(pos % r->size | (uint64_t)wrap_at(r, pos) << VRING_PACKED_EVENT_F_WRAP_CTR);
}

uint16_t ring_packed_avail_flags(const RingPacked *r, uint64_t pos)
{
    return wrap_at(r, pos) ? RING_F_AVAIL : RING_F_USED;
}

/* --- available descriptors --- */

void ring_packed_write_desc(void *desc, uint64_t gpa, uint32_t len, uint16_t flags, uint16_t id)
{
    struct vring_packed_desc value = {
        .addr = htole64(gpa), .len = htole32(len), .id = htole16(id), .flags = htole16(flags)
    };

    memcpy(desc, &value, sizeof(value));
}

void ring_packed_put(RingPacked *r, uint64_t gpa, uint32_t len, uint16_t flags, uint16_t id)
{
    struct vring_packed_desc *desc = desc_at(r, r->next_avail);

    flags |= ring_packed_avail_flags(r, r->next_avail);
    desc->addr = htole64(gpa);
    desc->len = htole32(len);
    desc->id = htole16(id);
    if (r->first == r->next_avail) {
        r->first_flags = flags;
    } else {
        __atomic_store_n(&desc->flags, htole16(flags), __ATOMIC_RELAXED);
    }
    r->next_avail++;
}

void ring_packed_publish(RingPacked *r)
{
    if (r->first != r->next_avail) {
        __atomic_store_n(&desc_at(r, r->first)->flags, htole16(r->first_flags), __ATOMIC_RELEASE);
        r->first = r->next_avail;
    }
}

uint32_t ring_packed_device_event(const RingPacked *r)
{
    return le32toh(__atomic_load_n((const uint32_t *)r->device_event, __ATOMIC_RELAXED));
}

bool ring_packed_wants_kick(RingPacked *r, bool event_idx)
{
    uint64_t from = r->kicked_avail;

    r->kicked_avail = r->first;
    __sync_synchronize();

    uint32_t event = ring_packed_device_event(r);

    if (event >> 16 != VRING_PACKED_EVENT_FLAG_DESC) {
        return event >> 16 == VRING_PACKED_EVENT_FLAG_ENABLE;
    }
    assert(event_idx);
    for (uint64_t pos = from; pos < r->first; pos++) {
        if (ring_packed_name(r, pos) == (uint16_t)event) {
            return true;
        }
    }
    return false;
}

/* --- used descriptors --- */

static bool used_at(const RingPacked *r, uint64_t pos)
{
    uint16_t owner = le16toh(__atomic_load_n(&desc_at(r, pos)->flags, __ATOMIC_ACQUIRE)) &
                     (RING_F_AVAIL | RING_F_USED);

    return owner == (wrap_at(r, pos) ? RING_F_AVAIL | RING_F_USED : 0);
}

static uint16_t id_at(const RingPacked *r, uint64_t pos)
{
    return le16toh(__atomic_load_n(&desc_at(r, pos)->id, __ATOMIC_RELAXED));
}

/* Behind all used descriptors, of which there are *ret_nb. */
static uint64_t walk_used(const RingPacked *r, unsigned *ret_nb)
{
    uint64_t pos = r->next_used;

    for (*ret_nb = 0; pos < r->first && used_at(r, pos); (*ret_nb)++) {
        assert(r->nb_slots[id_at(r, pos)] > 0);
        pos += r->nb_slots[id_at(r, pos)];
    }
    return pos;
}

unsigned ring_packed_nb_used(const RingPacked *r)
{
    unsigned nb;

    walk_used(r, &nb);
    return nb;
}

uint64_t ring_packed_used_pos(const RingPacked *r)
{
    unsigned nb;

    return walk_used(r, &nb);
}

bool ring_packed_next_used(RingPacked *r, uint32_t *ret_id, uint32_t *ret_len)
{
    const struct vring_packed_desc *desc = desc_at(r, r->next_used);

    if (r->next_used >= r->first || !used_at(r, r->next_used)) {
        return false;
    }
    *ret_id = id_at(r, r->next_used);
    *ret_len = le32toh(__atomic_load_n(&desc->len, __ATOMIC_RELAXED));
    assert(r->nb_slots[*ret_id] > 0);
    r->next_used += r->nb_slots[*ret_id];
    return true;
}

void ring_packed_set_event(RingPacked *r, uint16_t flags, uint16_t name)
{
    __atomic_store_n((uint32_t *)r->driver_event, htole32((uint32_t)flags << 16 | name),
                     __ATOMIC_RELAXED);
    __sync_synchronize();
}
