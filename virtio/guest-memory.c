/*
 * guest-memory.c - a sorted array of regions, looked up by bisection
 *
 * Invariants:
 *   (1) regions[] is sorted by gpa; no two overlap; none is empty or wraps around.
 *   (2) A lookup compares offsets into a region, never sums of guest numbers: nothing overflows
 *       except gpa - region->gpa, which then is larger than any region.
 */
#include "virtio/guest-memory.h"

#include <inttypes.h>
#include <string.h>

void gm_init(GuestMemory *gm)
{
    *gm = (GuestMemory){ 0 };
}

void gm_finish(GuestMemory *gm)
{
    if (gm) {
        free(gm->regions);
        *gm = (GuestMemory){ 0 };
    }
}

/* Index of the first region that begins above @addr. */
static unsigned region_above(const GuestMemory *gm, uint64_t addr)
{
    unsigned low = 0, high = gm->nb_regions;

    while (low < high) {
        unsigned mid = low + (high - low) / 2;

        if (gm->regions[mid].gpa <= addr) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low;
}

int gm_add(GuestMemory *gm, uint64_t gpa, uint64_t len_bytes, void *hva, Error *err)
{
    unsigned pos = region_above(gm, gpa);
    uint64_t last;

    if (len_bytes == 0 || !checked_add(gpa, len_bytes - 1, &last)) {
        return error_set(err, -EINVAL,
                         "guest memory at 0x%" PRIx64 ": a region of 0x%" PRIx64
                         " bytes is empty or wraps around",
                         gpa, len_bytes);
    }
    if ((pos > 0 && gpa - gm->regions[pos - 1].gpa < gm->regions[pos - 1].len_bytes) ||
        (pos < gm->nb_regions && gm->regions[pos].gpa <= last)) {
        return error_set(err, -EINVAL,
                         "guest memory at 0x%" PRIx64 ": a region of 0x%" PRIx64
                         " bytes overlaps another",
                         gpa, len_bytes);
    }
    if (gm->nb_regions == GUEST_MEMORY_REGIONS_MAX) {
        return error_set(err, -ENOSPC, "more than %d guest memory regions",
                         GUEST_MEMORY_REGIONS_MAX);
    }
    GuestMemoryRegion *regions = realloc(gm->regions, (gm->nb_regions + 1) * sizeof(*gm->regions));

    if (!regions) {
        return error_set(err, -ENOMEM, "out of memory for the guest memory map");
    }
    memmove(&regions[pos + 1], &regions[pos], (gm->nb_regions - pos) * sizeof(*regions));
    regions[pos] = (GuestMemoryRegion){ .gpa = gpa, .len_bytes = len_bytes, .hva = hva };
    gm->regions = regions;
    gm->nb_regions++;
    return 0;
}

void gm_remove(GuestMemory *gm, uint64_t gpa)
{
    unsigned above = region_above(gm, gpa);

    assert(above > 0 && gm->regions[above - 1].gpa == gpa);
    memmove(&gm->regions[above - 1], &gm->regions[above],
            (gm->nb_regions - above) * sizeof(*gm->regions));
    gm->nb_regions--;
}

const GuestMemoryRegion *gm_find(const GuestMemory *gm, Gpa gpa)
{
    unsigned above = region_above(gm, gpa.addr);

    if (above == 0) {
        return NULL;
    }
    const GuestMemoryRegion *region = &gm->regions[above - 1];

    return gpa.addr - region->gpa < region->len_bytes ? region : NULL;
}

void *gm_translate(const GuestMemory *gm, Gpa gpa, uint64_t len_bytes)
{
    const GuestMemoryRegion *region = gm_find(gm, gpa);

    return region ? gm_region_translate(region, gpa, len_bytes) : NULL;
}

int gm_map(const GuestMemory *gm, Gpa gpa, uint64_t len_bytes, struct iovec *iov, unsigned max)
{
    uint64_t last;
    unsigned nb = 0;

    if (len_bytes > 0 && !checked_add(gpa.addr, len_bytes - 1, &last)) {
        return -EFAULT;
    }
    while (len_bytes > 0) {
        const GuestMemoryRegion *region = gm_find(gm, gpa);

        if (!region) {
            return -EFAULT;
        }
        if (nb == max) {
            return -E2BIG;
        }
        uint64_t offset = gpa.addr - region->gpa;
        uint64_t piece = MIN(len_bytes, region->len_bytes - offset);

        iov[nb++] = (struct iovec){ .iov_base = region->hva + offset, .iov_len = piece };
        len_bytes -= piece;
        gpa.addr += piece;
    }
    return (int)nb;
}
