/*
 * shared-map.c - see shared-map.h
 *
 * The handler finds out whose address it was in a table of fixed size, which the main thread writes
 * and any thread, interrupted anywhere, reads.
 *
 * Invariants:
 *   (1) An entry's version is odd while the main thread changes it, and another one afterwards. So
 *       an entry that had the same even version before and after it was read is whole.
 *   (2) The entry of the mapping that an access went to does not change meanwhile: who closes a
 *       map has seen to it that nobody uses it.
 */
#include "virtio/shared-map.h"

#include <inttypes.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>

typedef struct MapEntry {
    _Atomic unsigned version;
    _Atomic uintptr_t base; /* 0: free */
    _Atomic size_t bytes;
    AioBh *_Atomic lost;
} MapEntry;

static MapEntry entries[SHARED_MAPS_MAX];
static _Atomic unsigned nb_used; /* entries from this one on were never used */
static _Atomic unsigned nb_open;
static struct sigaction before; /* who handled the signal until now */

/* --- the handler --- */

typedef struct Found {
    uintptr_t base;
    size_t bytes;
    AioBh *lost;
} Found;

static bool entry_read(const MapEntry *entry, Found *ret_found)
{
    unsigned version = atomic_load(&entry->version);

    ret_found->base = atomic_load(&entry->base);
    ret_found->bytes = atomic_load(&entry->bytes);
    ret_found->lost = atomic_load(&entry->lost);
    return version % 2 == 0 && atomic_load(&entry->version) == version;
}

static bool find(uintptr_t addr, Found *ret_found)
{
    unsigned nb = atomic_load(&nb_used);

    for (unsigned i = 0; i < nb; i++) {
        if (entry_read(&entries[i], ret_found) && ret_found->base != 0 &&
            addr - ret_found->base < ret_found->bytes) {
            return true;
        }
    }
    return false;
}

static void sigbus_handler(int signo, siginfo_t *info, void *context)
{
    int saved = errno;
    Found found = { 0 };

    if (info->si_code <= 0 || !find((uintptr_t)info->si_addr, &found) ||
        mmap((void *)found.base, found.bytes, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED) {
        /* Not ours: the access is made again, and this time whoever was there before hears of it. A
         * signal that somebody sent does not come again by itself. */
        sigaction(signo, &before, NULL);
        if (info->si_code <= 0) {
            raise(signo);
        }
    } else {
        aio_bh_schedule(found.lost);
    }
    errno = saved;
}

static void install_handler(void)
{
    struct sigaction action = { .sa_sigaction = sigbus_handler, .sa_flags = SA_SIGINFO };

    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &before);
}

/* --- the table --- */

static void entry_write(MapEntry *entry, uintptr_t base, size_t bytes, AioBh *lost)
{
    atomic_fetch_add(&entry->version, 1);
    atomic_store(&entry->base, base);
    atomic_store(&entry->bytes, bytes);
    atomic_store(&entry->lost, lost);
    atomic_fetch_add(&entry->version, 1);
}

static int entry_take(const SharedMap *map, AioBh *lost, unsigned *ret_slot)
{
    unsigned slot = 0;

    while (slot < SHARED_MAPS_MAX && atomic_load(&entries[slot].base) != 0) {
        slot++;
    }
    if (slot == SHARED_MAPS_MAX) {
        return -ENOSPC;
    }
    entry_write(&entries[slot], (uintptr_t)map->base, map->base_bytes, lost);
    if (slot >= atomic_load(&nb_used)) {
        atomic_store(&nb_used, slot + 1);
    }
    atomic_fetch_add(&nb_open, 1);
    *ret_slot = slot;
    return 0;
}

/* --- open and close --- */

/* The unit in which @fd can be mapped. */
static int file_page_bytes(int fd, uint64_t *ret_bytes, Error *err)
{
    struct statfs fs;

    *ret_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    if (fstatfs(fd, &fs) < 0) {
        return error_set(err, -errno, "%s", error_strerror(errno));
    }
    if (fs.f_type == FUSE_SUPER_MAGIC) {
        return error_set(err, -ENODEV, "a file of FUSE cannot be shared memory");
    }
    if (fs.f_type == HUGETLBFS_MAGIC) {
        *ret_bytes = (uint64_t)fs.f_bsize;
    }
    return 0;
}

static int check_range(int fd, uint64_t offset, uint64_t len_bytes, Error *err)
{
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    struct stat st;
    uint64_t end;

    if (fstat(fd, &st) < 0) {
        return error_set(err, -errno, "%s", error_strerror(errno));
    }
    if (!S_ISREG(st.st_mode)) {
        return error_set(err, -ENODEV, "the descriptor is no file or memfd");
    }
    if (len_bytes == 0 || !checked_add(offset, len_bytes, &end) || end > (uint64_t)st.st_size) {
        return error_set(err, -EINVAL,
                         "0x%" PRIx64 " bytes at offset 0x%" PRIx64 " of a file of 0x%" PRIx64
                         " bytes",
                         len_bytes, offset, (uint64_t)st.st_size);
    }
    if (offset % page_bytes != 0) {
        return error_set(err, -EINVAL,
                         "offset 0x%" PRIx64 " is no multiple of the page size of %" PRIu64, offset,
                         page_bytes);
    }
    return 0;
}

int shared_map_open(SharedMap *map, int fd, uint64_t offset, uint64_t len_bytes, AioBh *lost,
                    Error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    uint64_t page_bytes;
    int ret = check_range(fd, offset, len_bytes, err);

    if (ret < 0 || (ret = file_page_bytes(fd, &page_bytes, err)) < 0) {
        return ret;
    }
    uint64_t begin = ALIGN_DOWN(offset, page_bytes);
    SharedMap new = { .len_bytes = len_bytes,
                      .base_bytes = ALIGN_UP(offset + len_bytes, page_bytes) - begin };

    new.base = mmap(NULL, new.base_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd,
                    (off_t)begin);
    if (new.base == MAP_FAILED) {
        return error_set(err, -errno, "mmap of 0x%" PRIx64 " bytes: %s", len_bytes,
                         error_strerror(errno));
    }
    /* Others' memory is not for our core dumps. */
    madvise(new.base, new.base_bytes, MADV_DONTDUMP);
    new.addr = (char *)new.base + (offset - begin);
    pthread_once(&once, install_handler);
    if ((ret = entry_take(&new, lost, &new.slot)) < 0) {
        munmap(new.base, new.base_bytes);
        return error_set(err, ret, "more than %d pieces of shared memory", SHARED_MAPS_MAX);
    }
    *map = new;
    return 0;
}

void shared_map_close(SharedMap *map)
{
    if (!map->addr) {
        return;
    }
    entry_write(&entries[map->slot], 0, 0, NULL);
    atomic_fetch_sub(&nb_open, 1);
    munmap(map->base, map->base_bytes);
    *map = (SharedMap){ .addr = NULL };
}

unsigned shared_map_nb(void)
{
    return atomic_load(&nb_open);
}
