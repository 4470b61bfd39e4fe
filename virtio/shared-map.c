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
 *   (3) No mapping can become one with its neighbour, as two would that show a file's consecutive
 *       parts: behind each is a guard page of a kind that merges with nothing. So the end of one
 *       can be replaced without a mapping more than there are, and when the process has all that
 *       it may have (vm.max_map_count). Where it has one more, as it can by mmap(), the guard page
 *       is given up for it.
 *   (4) A page alone is replaced PAGES_MAX times at most, as each time makes two mappings more.
 *       What is replaced up to the end makes none. A file that is cut has nothing there anyway;
 *       the exception is a file system without room for a page that the file should have.
 *
 * What remains: nothing can be replaced where the private memory for it is not to be had
 * (vm.overcommit_memory = 2, RLIMIT_DATA, RLIMIT_AS), or where other threads make mappings at the
 * limit as fast as they are given up. Then the signal ends the process.
 */
#include "virtio/shared-map.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>

#define GUARD_BYTES  4096u
#define THP_BYTES    (2u << 20) /* what one entry of a page directory can map */
#define REPLACES_MAX 100        /* attempts of one signal */
#define PAGES_MAX    16         /* replaced one by one */

typedef struct MapEntry {
    _Atomic unsigned version;
    _Atomic uintptr_t base; /* 0: free */
    _Atomic size_t bytes;
    _Atomic size_t page_bytes;
    AioBh *_Atomic lost;
    /* not part of the version */
    _Atomic bool guarded;       /* the guard page is there */
    _Atomic unsigned nb_pages;  /* replaced one by one */
    _Atomic bool *_Atomic flag; /* NULL: none */
} MapEntry;

static MapEntry entries[SHARED_MAPS_MAX];
static _Atomic unsigned nb_used; /* entries from this one on were never used */
static _Atomic unsigned nb_open;
static struct sigaction before; /* who handled the signal until now */

/* --- the handler --- */

typedef struct Found {
    MapEntry *entry;
    uintptr_t base;
    size_t bytes;
    size_t page_bytes;
    AioBh *lost;
} Found;

static bool entry_read(MapEntry *entry, Found *ret_found)
{
    unsigned version = atomic_load(&entry->version);

    ret_found->entry = entry;
    ret_found->base = atomic_load(&entry->base);
    ret_found->bytes = atomic_load(&entry->bytes);
    ret_found->page_bytes = atomic_load(&entry->page_bytes);
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

/* Make room for a mapping; at most once, by whoever comes first. */
static void give_up_guard(const Found *found)
{
    if (atomic_exchange(&found->entry->guarded, false)) {
        munmap((void *)(found->base + found->bytes), GUARD_BYTES);
    }
}

/* Of the page that holds @addr, or of all from there on; the other way where the one does not work.
 */
static bool put_zeroes(const Found *found, uintptr_t addr)
{
    size_t offset = ALIGN_DOWN(addr - found->base, found->page_bytes);
    bool alone = atomic_fetch_add(&found->entry->nb_pages, 1) < PAGES_MAX;

    for (unsigned i = 0; i < REPLACES_MAX; i++, alone = !alone) {
        size_t len_bytes = alone ? found->page_bytes : found->bytes - offset;

        /* Not mmap(): ThreadSanitizer takes that for a store of this thread's to what others use. */
        if (syscall(SYS_mmap, found->base + offset, len_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != -1) {
            return true;
        }
        if (!alone) {
            give_up_guard(found);
            sched_yield(); /* another thread may be at it */
        }
    }
    return false;
}

static bool replace(const Found *found, uintptr_t addr)
{
    _Atomic bool *flag = atomic_load(&found->entry->flag);

    if (flag) {
        atomic_store(flag, true);
    }
    return put_zeroes(found, addr);
}

static void sigbus_handler(int signo, siginfo_t *info, void *context)
{
    int saved = errno;
    Found found = { 0 };

    uintptr_t addr = (uintptr_t)info->si_addr;

    if (info->si_code <= 0 || !find(addr, &found) || !replace(&found, addr)) {
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

static void entry_write(MapEntry *entry, uintptr_t base, size_t bytes, size_t page_bytes,
                        AioBh *lost)
{
    atomic_fetch_add(&entry->version, 1);
    atomic_store(&entry->base, base);
    atomic_store(&entry->bytes, bytes);
    atomic_store(&entry->page_bytes, page_bytes);
    atomic_store(&entry->lost, lost);
    atomic_fetch_add(&entry->version, 1);
}

static int entry_take(const SharedMap *map, size_t page_bytes, AioBh *lost, unsigned *ret_slot)
{
    unsigned slot = 0;

    while (slot < SHARED_MAPS_MAX && atomic_load(&entries[slot].base) != 0) {
        slot++;
    }
    if (slot == SHARED_MAPS_MAX) {
        return -ENOSPC;
    }
    atomic_store(&entries[slot].guarded, true);
    atomic_store(&entries[slot].nb_pages, 0);
    atomic_store(&entries[slot].flag, NULL);
    entry_write(&entries[slot], (uintptr_t)map->base, map->base_bytes, page_bytes, lost);
    if (slot >= atomic_load(&nb_used)) {
        atomic_store(&nb_used, slot + 1);
    }
    atomic_fetch_add(&nb_open, 1);
    *ret_slot = slot;
    return 0;
}

/* --- open and close --- */

/*
 * What is known of @fd without asking anybody: FUSE asks a process of whoever has mounted it, and
 * other file systems without a disk a network, for as long as these like. Memory is what has seals.
 */
static int look_at_file(int fd, struct statx *ret_st, Error *err)
{
    bool is_memory = fcntl(fd, F_GET_SEALS) >= 0;

    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_SIZE, ret_st) < 0) {
        return error_set(err, -errno, "%s", error_strerror(errno));
    }
    if (!S_ISREG(ret_st->stx_mode)) {
        return error_set(err, -ENODEV, "the descriptor is no file or memfd");
    }
    if (!is_memory && ret_st->stx_dev_major == 0) {
        return error_set(err, -ENODEV,
                         "the file is on a file system that is neither of memory nor of a disk");
    }
    return 0;
}

/* The unit in which @fd, which look_at_file() is content with, can be mapped. */
static int file_page_bytes(int fd, uint64_t *ret_bytes, Error *err)
{
    struct statfs fs;

    *ret_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    if (fstatfs(fd, &fs) < 0) {
        return error_set(err, -errno, "%s", error_strerror(errno));
    }
    if (fs.f_type == FUSE_SUPER_MAGIC) { /* with a disk */
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
    struct statx st;
    uint64_t end;
    int ret = look_at_file(fd, &st, err);

    if (ret < 0) {
        return ret;
    }
    if (len_bytes == 0 || !checked_add(offset, len_bytes, &end) || end > st.stx_size) {
        return error_set(err, -EINVAL,
                         "0x%" PRIx64 " bytes at offset 0x%" PRIx64 " of a file of 0x%" PRIx64
                         " bytes",
                         len_bytes, offset, (uint64_t)st.stx_size);
    }
    if (offset % page_bytes != 0) {
        return error_set(err, -EINVAL,
                         "offset 0x%" PRIx64 " is no multiple of the page size of %" PRIu64, offset,
                         page_bytes);
    }
    return 0;
}

/* Into a place that was reserved with its guard page. Large ones are where the kernel may use large
 * pages for them. */
static int map_guarded(SharedMap *map, int fd, uint64_t begin, uint64_t page_bytes)
{
    uint64_t align_bytes = map->base_bytes >= THP_BYTES ? MAX(page_bytes, THP_BYTES) : page_bytes;
    uint64_t reserved_bytes = align_bytes + map->base_bytes + GUARD_BYTES;
    char *reserved =
        mmap(NULL, reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (reserved == MAP_FAILED) {
        return -errno;
    }
    char *base = reserved + (begin - (uintptr_t)reserved) % align_bytes;
    char *guard = base + map->base_bytes, *end = guard + GUARD_BYTES;

    /* Shared memory without a name is an object of its own each time. */
    if (mmap(base, map->base_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED,
             fd, (off_t)begin) == MAP_FAILED ||
        mmap(guard, GUARD_BYTES, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
             -1, 0) == MAP_FAILED) {
        int ret = -errno;

        munmap(reserved, reserved_bytes);
        return ret;
    }
    if (base > reserved) {
        munmap(reserved, (size_t)(base - reserved));
    }
    munmap(end, (size_t)(reserved + reserved_bytes - end));
    /* Others' memory is not for our core dumps. */
    madvise(base, map->base_bytes, MADV_DONTDUMP);
    map->base = base;
    return 0;
}

static void unmap_guarded(const SharedMap *map, bool guarded)
{
    munmap(map->base, map->base_bytes + (guarded ? GUARD_BYTES : 0));
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

    if ((ret = map_guarded(&new, fd, begin, page_bytes)) < 0) {
        return error_set(err, ret, "mmap of 0x%" PRIx64 " bytes: %s", len_bytes,
                         error_strerror(ret));
    }
    new.addr = (char *)new.base + (offset - begin);
    pthread_once(&once, install_handler);
    if ((ret = entry_take(&new, page_bytes, lost, &new.slot)) < 0) {
        unmap_guarded(&new, true);
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
    MapEntry *entry = &entries[map->slot];

    entry_write(entry, 0, 0, 0, NULL);
    atomic_fetch_sub(&nb_open, 1);
    unmap_guarded(map, atomic_load(&entry->guarded));
    *map = (SharedMap){ .addr = NULL };
}

void shared_map_set_flag(const SharedMap *map, _Atomic bool *flag)
{
    assert(map->addr);
    atomic_store(&entries[map->slot].flag, flag);
}

unsigned shared_map_nb(void)
{
    return atomic_load(&nb_open);
}
