/*
 * SharedMap - memory of a descriptor that a peer has passed, mapped so that it cannot hurt us
 *
 * Layer:     virtio/ (may use io/)
 * Threading: open and close in the main thread. What is mapped may be used in any thread.
 * Lifetime:  shared_map_open() .. shared_map_close(); the descriptor stays the caller's and is not
 *            needed afterwards.
 *
 * The peer may cut its file shorter at any time: then a load or store beyond the new end is a
 * SIGBUS in whatever thread of ours made it. A handler puts zeroes in the place of that page, so
 * that the access goes on, and schedules `lost`, whose owner ends the session. What is still there
 * stays as it is: requests that wait for their turn may have their data in it. After some pages of
 * a mapping, or when one alone cannot be replaced, all that is behind it is, too.
 *
 * System calls on memory that has gone fail with -EFAULT, unless it was replaced: they take the
 * zeroes for what it held. So may a copy that we make of it, whose maker looks at the flag
 * (shared_map_set_flag()) afterwards if that matters.
 *
 * A SIGBUS anywhere else takes its ordinary course.
 */
#ifndef VIRTIO_SHARED_MAP_H
#define VIRTIO_SHARED_MAP_H

#include "io/aio/aio.h"

#define SHARED_MAPS_MAX 8192 /* in the process */

typedef struct SharedMap {
    void *addr;       /* of the first byte that was asked for; NULL when it is not open */
    size_t len_bytes; /* that were asked for */
    void *base;       /* of the whole mapping, in pages */
    size_t base_bytes;
    unsigned slot;
} SharedMap;

/*
 * shared_map_open - map [@offset, @offset + @len_bytes) of @fd, for reading and writing
 * @lost  scheduled when the memory has gone; it outlives the map
 * Errors: -EINVAL no length, a sum that wraps around, an offset that is no multiple of the page
 *         size, or more than the file has; -EBADF, -EACCES, -ENODEV what cannot be shared memory,
 *         which is a memfd or a file of tmpfs, hugetlbfs or a file system with a disk to itself (so
 *         none of FUSE, NFS, overlayfs, and none of btrfs, which cannot be told from those);
 *         -ENOSPC too many maps; -ENOMEM
 */
main_fn int shared_map_open(SharedMap *map, int fd, uint64_t offset, uint64_t len_bytes,
                            AioBh *lost, Error *err) NONNULL(1, 5) WARN_UNUSED;
main_fn void shared_map_close(SharedMap *map) NONNULL(1);

/* shared_map_set_flag - let @flag become true before anything is replaced. Before others use the
 * memory; @flag outlives the map. */
main_fn void shared_map_set_flag(const SharedMap *map, _Atomic bool *flag) NONNULL(1, 2);

/* shared_map_nb - how many are open */
unsigned shared_map_nb(void);

#endif
