/*
 * ram.c - guest RAM in a memfd named guest-ram
 *
 * A memfd, so that a vhost-user back end could map it and a tool can tell it from penstock's own
 * memory. Without prealloc nothing is touched: a page appears when the guest first uses it.
 */
#include "vmm/ram.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/memfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "vmm/layout.h"

#define HUGEPAGE_BYTES (2ull << 20)

/* A "Name:   123 kB" line of /proc/meminfo in bytes, or pages where it has no unit; 0 = not there */
static uint64_t meminfo(const char *name)
{
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];
    uint64_t value = 0;

    if (!f) {
        return 0;
    }
    size_t len = strlen(name);

    while (fgets(line, sizeof(line), f)) {
        if (strncmp(line, name, len) == 0 && line[len] == ':') {
            value = strtoull(line + len + 1, NULL, 10);
            if (strstr(line, " kB")) {
                value *= 1024;
            }
            break;
        }
    }
    fclose(f);
    return value;
}

static int check_host_memory(const RamParams *params, Error *err)
{
    if (params->hugepages) {
        uint64_t page_bytes = HUGEPAGE_BYTES;
        uint64_t free_bytes = meminfo("HugePages_Free") * page_bytes;

        if (params->len_bytes % page_bytes != 0) {
            return error_set(err, -EINVAL,
                             "--memory: with hugepages=on the size must be a multiple of 2M");
        }
        if (meminfo("Hugepagesize") == page_bytes && free_bytes < params->len_bytes) {
            return error_set(err, -ENOMEM,
                             "--memory: %" PRIu64 " MiB of huge pages wanted, %" PRIu64
                             " MiB are free; raise vm.nr_hugepages (sysctl) to at least %" PRIu64,
                             params->len_bytes >> 20, free_bytes >> 20,
                             params->len_bytes / page_bytes);
        }
        return 0;
    }
    uint64_t total_bytes = meminfo("MemTotal") + meminfo("SwapTotal");

    if (total_bytes != 0 && params->len_bytes > total_bytes) {
        return error_set(err, -ENOMEM,
                         "--memory: %" PRIu64 " MiB wanted, this host has %" PRIu64
                         " MiB with swap; give the guest less",
                         params->len_bytes >> 20, total_bytes >> 20);
    }
    return 0;
}

static int map_ram(Ram *ram, const RamParams *params, Error *err)
{
    unsigned flags = MFD_CLOEXEC | (params->hugepages ? MFD_HUGETLB | MFD_HUGE_2MB : 0);

    ram->fd = memfd_create("guest-ram", flags);
    if (ram->fd < 0) {
        int ret = -errno;

        return error_set(err, ret, "guest RAM: memfd_create: %s%s", error_strerror(ret),
                         params->hugepages ? "; does this kernel have huge pages of 2 MiB?" : "");
    }
    if (ftruncate(ram->fd, (off_t)params->len_bytes) < 0) {
        int ret = -errno;

        return error_set(err, ret, "guest RAM of %" PRIu64 " MiB: %s%s", params->len_bytes >> 20,
                         error_strerror(ret),
                         ret == -EFBIG ? "; RAM is a memfd, raise the file size limit (ulimit -f)"
                                       : "");
    }
    void *hva = mmap(NULL, params->len_bytes, PROT_READ | PROT_WRITE,
                     MAP_SHARED | (params->hugepages ? 0 : MAP_NORESERVE), ram->fd, 0);

    if (hva == MAP_FAILED) {
        int ret = -errno;

        return error_set(err, ret, "guest RAM of %" PRIu64 " MiB: %s; give the guest less",
                         params->len_bytes >> 20, error_strerror(ret));
    }
    ram->hva = hva;
    ram->len_bytes = params->len_bytes;
    /* A core dump of the VMM is for its own state. */
    madvise(hva, params->len_bytes, MADV_DONTDUMP);
    return 0;
}

int ram_create(Ram *ram, const RamParams *params, Error *err)
{
    int ret = check_host_memory(params, err);

    *ram = RAM_INIT;
    if (ret == 0) {
        ret = map_ram(ram, params, err);
    }
    if (ret == 0 && params->prealloc) {
        ret = -posix_fallocate(ram->fd, 0, (off_t)params->len_bytes);
        if (ret < 0) {
            error_set(err, ret, "--memory: prealloc of %" PRIu64 " MiB: %s",
                      params->len_bytes >> 20, error_strerror(ret));
        }
    }
    if (ret < 0) {
        ram_destroy(ram);
        return ret;
    }
    ram->resident = params->prealloc || params->hugepages;
    ram->image.hva_low = ram->hva;
    ram->image.low_bytes = MIN(ram->len_bytes, LAYOUT_RAM_LOW_MAX_BYTES);
    ram->image.high_bytes = ram->len_bytes - ram->image.low_bytes;
    ram->image.hva_high = ram->image.high_bytes ? ram->hva + ram->image.low_bytes : NULL;
    ram->image.has_file = !params->hugepages; /* hugetlbfs has no write(2) */
    ram->image.fd = ram->fd;
    return 0;
}

int ram_clear(Ram *ram, bool pinned, Error *err)
{
    if (pinned) {
        memset(ram->hva, 0, ram->len_bytes);
        return 0;
    }
    if (fallocate(ram->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                  (off_t)ram->len_bytes) < 0) {
        int ret = -errno;

        return error_set(err, ret, "clearing guest RAM: %s", error_strerror(ret));
    }
    return 0;
}

void ram_destroy(Ram *ram)
{
    if (!ram) {
        return;
    }
    if (ram->hva) {
        munmap(ram->hva, ram->len_bytes);
        ram->hva = NULL;
    }
    if (ram->fd >= 0) {
        close(take_fd(&ram->fd));
    }
}
