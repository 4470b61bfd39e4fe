/*
 * VringPacked - the driver's side of a packed virtqueue
 */
#include "guest-tests/lib/vring-packed.h"

#include "guest-tests/lib/mem.h"
#include "guest-tests/lib/str.h"

void vring_packed_init(VringPacked *p, uint16_t size, volatile void *desc,
                       volatile void *driver, volatile void *device)
{
    p->desc = desc;
    p->driver_event = driver;
    p->device_event = device;
    p->size = size;
    p->chain_slots = mem_alloc(size * sizeof(*p->chain_slots), 64);
}

void vring_packed_rewind(VringPacked *p, bool interrupts, bool event_idx)
{
    memset((void *)(uintptr_t)p->desc, 0, sizeof(VringPackedDesc) * p->size);
    p->avail_slot = 0;
    p->avail_flags = VRING_PACKED_DESC_F_AVAIL;
    p->used_slot = 0;
    p->used_flags = VRING_PACKED_OWNER;
    p->nb_pending = 0;
    *p->device_event = 0;
    if (!interrupts) {
        *p->driver_event = VRING_PACKED_EVENT_DISABLE << 16;
    } else if (event_idx) {
        vring_packed_want_next(p);
    } else {
        *p->driver_event = VRING_PACKED_EVENT_ENABLE << 16;
    }
}

bool vring_packed_wants_kick(const VringPacked *p, uint16_t nb_slots)
{
    uint32_t event = *p->device_event;
    bool wrap = p->avail_flags & VRING_PACKED_DESC_F_AVAIL;
    uint32_t back;

    if (event >> 16 != VRING_PACKED_EVENT_DESC) {
        return event >> 16 != VRING_PACKED_EVENT_DISABLE;
    }
    /* How far the slot it names is behind the next one; in the other lap a ring more. */
    back = p->avail_slot - (event & (VRING_PACKED_EVENT_WRAP - 1));
    if (wrap != !!(event & VRING_PACKED_EVENT_WRAP)) {
        back += p->size;
    }
    return back - 1 < nb_slots;
}
