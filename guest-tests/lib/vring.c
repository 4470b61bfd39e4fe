/*
 * Vring - the driver's side of a virtqueue, split or packed
 */
#include "guest-tests/lib/vring.h"

#include "guest-tests/lib/mem.h"
#include "guest-tests/lib/str.h"

#define PAGE_BYTES 4096

/* Reached once in 65536 completions; by then nobody listens. */
#define FAR_USED_EVENT 0x8000

static size_t avail_bytes(const Vring *r)
{
    return sizeof(VringAvail) + sizeof(uint16_t) * (r->size + 1u);
}

static size_t used_bytes(const Vring *r)
{
    return sizeof(VringUsed) + sizeof(VringUsedElem) * r->size +
           sizeof(uint16_t);
}

void vring_init(Vring *r, uint16_t index, uint16_t size)
{
    *r = (Vring){ .index = index, .size = size };
    r->desc = mem_alloc(sizeof(VringDesc) * size, PAGE_BYTES);
    r->avail = mem_alloc(avail_bytes(r), PAGE_BYTES);
    r->used = mem_alloc(used_bytes(r), PAGE_BYTES);
    vring_packed_init(&r->packed, size, r->desc, r->avail, r->used);
}

void vring_rewind(Vring *r)
{
    memset((void *)(uintptr_t)r->desc, 0, sizeof(VringDesc) * r->size);
    memset((void *)(uintptr_t)r->avail, 0, avail_bytes(r));
    memset((void *)(uintptr_t)r->used, 0, used_bytes(r));
    r->avail_next = 0;
    r->avail_published = 0;
    r->used_next = 0;
    r->kicks = 0;
    if (r->is_packed) {
        vring_packed_rewind(&r->packed, r->interrupts, r->event_idx);
    } else if (r->event_idx) {
        *vring_used_event(r) = r->interrupts ? 0 : FAR_USED_EVENT;
    } else {
        r->avail->flags = r->interrupts ? 0 : VRING_AVAIL_F_NO_INTERRUPT;
    }
}
