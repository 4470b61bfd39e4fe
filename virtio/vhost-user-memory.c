/*
 * vhost-user-memory.c - see vhost-user-memory.h
 *
 * Invariant: the GuestMemory has one region for each of ours, and no other.
 */
#include "virtio/vhost-user-memory.h"

#include <inttypes.h>
#include <string.h>

static unsigned nb_memories; /* main: among which address space is shared out */

int vhu_memory_init(VhuMemory *mem, AioBh *lost_bh, _Atomic bool *lost, Error *err)
{
    gm_init(&mem->gm);
    mem->gm.lost = lost;
    mem->nb_regions = 0;
    mem->lost_bh = lost_bh;
    mem->lost = lost;
    mem->regions = calloc(GUEST_MEMORY_REGIONS_MAX, sizeof(*mem->regions));
    nb_memories += mem->regions != NULL;
    return mem->regions ? 0 : error_set(err, -ENOMEM, "out of memory");
}

void vhu_memory_clear(VhuMemory *mem)
{
    while (mem->nb_regions > 0) {
        shared_map_close(&mem->regions[--mem->nb_regions].map);
    }
    gm_finish(&mem->gm);
    mem->gm.lost = mem->lost;
}

void vhu_memory_finish(VhuMemory *mem)
{
    vhu_memory_clear(mem);
    nb_memories -= mem->regions != NULL;
    free(take_ptr(&mem->regions));
}

static int check_bytes(const VhuMemory *mem, uint64_t len_bytes, Error *err)
{
    uint64_t total_bytes = 0;

    for (unsigned i = 0; i < mem->nb_regions; i++) {
        total_bytes += mem->regions[i].map.len_bytes;
    }
    uint64_t max_bytes = MIN(VHU_MEMORY_BYTES_MAX, VHU_MEMORY_BYTES_ALL / nb_memories);

    if (total_bytes > max_bytes || len_bytes > max_bytes - total_bytes) {
        return error_set(err, -ENOSPC, "more than 0x%" PRIx64 " bytes of memory in all", max_bytes);
    }
    return 0;
}

static main_fn int add(VhuMemory *mem, const VhostUserRegion *wire, int fd, Error *err)
{
    VhuRegion *region = &mem->regions[mem->nb_regions];
    uint64_t last;
    int ret;

    if (mem->nb_regions == GUEST_MEMORY_REGIONS_MAX) {
        return error_set(err, -ENOSPC, "more than %d regions", GUEST_MEMORY_REGIONS_MAX);
    }
    if (wire->len_bytes == 0 || !checked_add(wire->user_addr, wire->len_bytes - 1, &last)) {
        return error_set(err, -EINVAL, "0x%" PRIx64 " bytes at the client's 0x%" PRIx64,
                         wire->len_bytes, wire->user_addr);
    }
    if ((ret = check_bytes(mem, wire->len_bytes, err)) < 0 ||
        (ret = shared_map_open(&region->map, fd, wire->mmap_offset, wire->len_bytes, mem->lost_bh,
                               err)) < 0) {
        return ret;
    }
    shared_map_set_flag(&region->map, mem->lost);
    ret = gm_add(&mem->gm, wire->gpa, wire->len_bytes, region->map.addr, err);
    if (ret < 0) {
        shared_map_close(&region->map);
        return ret;
    }
    region->gpa = wire->gpa;
    region->user_addr = wire->user_addr;
    mem->nb_regions++;
    return 0;
}

int vhu_memory_add(VhuMemory *mem, const VhostUserRegion *region, int fd, Error *err)
{
    int ret = add(mem, region, fd, err);

    if (ret < 0) {
        error_prefix(err, "memory at 0x%" PRIx64 ": ", region->gpa);
    }
    return ret;
}

int vhu_memory_find(const VhuMemory *mem, const VhostUserRegion *region, Error *err)
{
    for (unsigned i = 0; i < mem->nb_regions; i++) {
        const VhuRegion *ours = &mem->regions[i];

        if (ours->gpa == region->gpa && ours->user_addr == region->user_addr &&
            ours->map.len_bytes == region->len_bytes) {
            return (int)i;
        }
    }
    return error_set(err, -ENOENT, "no memory of 0x%" PRIx64 " bytes at 0x%" PRIx64,
                     region->len_bytes, region->gpa);
}

void vhu_memory_remove(VhuMemory *mem, unsigned index)
{
    VhuRegion *region = &mem->regions[index];

    assert(index < mem->nb_regions);
    gm_remove(&mem->gm, region->gpa);
    shared_map_close(&region->map);
    memmove(region, region + 1, (--mem->nb_regions - index) * sizeof(*region));
}

void vhu_memory_swap(VhuMemory *mem, VhuMemory *other)
{
    VhuMemory mine = *mem;

    *mem = *other;
    *other = mine;
}

int vhu_memory_gpa_of_user(const VhuMemory *mem, uint64_t user_addr, Gpa *ret_gpa)
{
    for (unsigned i = 0; i < mem->nb_regions; i++) {
        const VhuRegion *region = &mem->regions[i];

        if (user_addr - region->user_addr < region->map.len_bytes) {
            *ret_gpa = GPA(region->gpa + (user_addr - region->user_addr));
            return 0;
        }
    }
    return -EFAULT;
}
