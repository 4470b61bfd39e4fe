/*
 * bus.c - a sorted array of address ranges
 *
 * 1. Ranges are disjoint, except that an overlay lies wholly inside one range that is no overlay
 *    and starts before it. Two overlays never touch.
 * 2. So the range of an address is the last one that starts at or before it, or, when that is an
 *    overlay which does not hold the access, the nearest earlier one that is no overlay.
 * 3. The device answers after the lock was released: its callback may add and remove ranges.
 */
#include "devices/bus.h"

#include <inttypes.h>
#include <string.h>

#include "io/base/endian.h"

static bool range_holds(const BusRange *range, uint64_t addr, uint64_t len_bytes)
{
    uint64_t offset = addr - range->base;

    return addr >= range->base && offset < range->len_bytes &&
           len_bytes <= range->len_bytes - offset;
}

static bool ranges_overlap(const BusRange *a, const BusRange *b)
{
    return a->base < b->base ? b->base - a->base < a->len_bytes : a->base - b->base < b->len_bytes;
}

static bool overlay_fits(const BusRange *overlay, const BusRange *outer)
{
    return overlay->overlay && !outer->overlay && overlay->base > outer->base &&
           range_holds(outer, overlay->base, overlay->len_bytes);
}

/* Number of ranges that start at or before @addr. */
static unsigned position(const Bus *bus, uint64_t addr)
{
    unsigned low = 0;
    unsigned high = bus->nb_ranges;

    while (low < high) {
        unsigned middle = low + (high - low) / 2;

        if (bus->ranges[middle].base <= addr) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static bool lookup(Bus *bus, uint64_t addr, unsigned len_bytes, BusRange *ret_range)
{
    bool found = false;

    if (len_bytes > 8 || !IS_POWER_OF_2(len_bytes)) {
        return false;
    }
    pthread_rwlock_rdlock(&bus->lock);
    for (unsigned i = position(bus, addr); i > 0 && !found; i--) {
        const BusRange *range = &bus->ranges[i - 1];

        if (range_holds(range, addr, len_bytes)) {
            *ret_range = *range;
            found = true;
        } else if (!range->overlay) {
            break;
        }
    }
    pthread_rwlock_unlock(&bus->lock);
    return found;
}

int bus_init(Bus *bus, const char *name)
{
    *bus = (Bus){ .name = name };
    return -pthread_rwlock_init(&bus->lock, NULL);
}

void bus_finish(Bus *bus)
{
    if (!bus || !bus->name) {
        return;
    }
    free(bus->ranges);
    pthread_rwlock_destroy(&bus->lock);
    *bus = (Bus){ .name = NULL };
}

static int add_locked(Bus *bus, const BusRange *range, Error *err)
{
    for (unsigned i = 0; i < bus->nb_ranges; i++) {
        const BusRange *other = &bus->ranges[i];

        if (ranges_overlap(range, other) && !overlay_fits(range, other) &&
            !overlay_fits(other, range)) {
            return error_set(err, -EEXIST,
                             "%s: '%s' at 0x%" PRIx64 " overlaps '%s' at 0x%" PRIx64, bus->name,
                             range->name, range->base, other->name, other->base);
        }
    }

    BusRange *ranges = realloc(bus->ranges, (bus->nb_ranges + 1) * sizeof(*ranges));
    if (!ranges) {
        return error_set(err, -ENOMEM, "%s: no memory for '%s'", bus->name, range->name);
    }
    bus->ranges = ranges;

    unsigned at = position(bus, range->base);
    memmove(&ranges[at + 1], &ranges[at], (bus->nb_ranges - at) * sizeof(*ranges));
    ranges[at] = *range;
    bus->nb_ranges++;
    return 0;
}

int bus_add(Bus *bus, const BusRange *range, Error *err)
{
    int ret;

    assert(range->ops && range->ops->read && range->ops->write && range->name);
    if (range->len_bytes == 0 || range->base + (range->len_bytes - 1) < range->base) {
        return error_set(err, -EINVAL, "%s: '%s' at 0x%" PRIx64 ": bad length 0x%" PRIx64,
                         bus->name, range->name, range->base, range->len_bytes);
    }
    pthread_rwlock_wrlock(&bus->lock);
    ret = add_locked(bus, range, err);
    pthread_rwlock_unlock(&bus->lock);
    return ret;
}

void bus_remove(Bus *bus, uint64_t base)
{
    pthread_rwlock_wrlock(&bus->lock);
    unsigned at = position(bus, base);

    if (at > 0 && bus->ranges[at - 1].base == base) {
        memmove(&bus->ranges[at - 1], &bus->ranges[at],
                (bus->nb_ranges - at) * sizeof(*bus->ranges));
        bus->nb_ranges--;
    }
    pthread_rwlock_unlock(&bus->lock);
}

bool bus_read(Bus *bus, uint64_t addr, void *ret_data, unsigned len_bytes)
{
    BusRange range;

    if (!lookup(bus, addr, len_bytes, &range)) {
        memset(ret_data, 0xff, MIN(len_bytes, 8u));
        return false;
    }
    le64 value = le64_make(range.ops->read(range.opaque, addr - range.base, len_bytes));
    memcpy(ret_data, &value, len_bytes);
    return true;
}

bool bus_write(Bus *bus, uint64_t addr, const void *data, unsigned len_bytes)
{
    le64 value = le64_make(0);
    BusRange range;

    if (!lookup(bus, addr, len_bytes, &range)) {
        return false;
    }
    memcpy(&value, data, len_bytes);
    range.ops->write(range.opaque, addr - range.base, len_bytes, le64_get(value));
    return true;
}
