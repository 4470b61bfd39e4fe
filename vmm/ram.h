/*
 * Ram - the guest's memory: one memfd, mapped once, split around the PCI hole
 *
 * Layer:     vmm
 * Threading: main thread.
 * Lifetime:  ram_create() .. ram_destroy(); KVM slots and device mappings borrow it.
 */
#ifndef VMM_RAM_H
#define VMM_RAM_H

#include "io/base/error.h"
#include "vmm/guest-image.h"

#define RAM_MIN_BYTES (4ull << 20)
#define RAM_MAX_BYTES (1ull << 40)

typedef struct RamParams {
    uint64_t len_bytes; /* a multiple of the page size */
    bool hugepages;     /* 2 MiB pages from the host's pool */
    bool prealloc;      /* touch every page now */
} RamParams;

typedef struct Ram {
    int fd;
    uint8_t *hva;
    uint64_t len_bytes;
    bool resident;      /* every page is there (prealloc or hugepages) */
    GuestImage image;   /* the two parts, for loaders and KVM */
} Ram;

#define RAM_INIT ((Ram){ .fd = -1 })

/* Errors: -ENOMEM the host does not have it (the message says how much it has), -EINVAL size */
int ram_create(Ram *ram, const RamParams *params, Error *err) NONNULL(1, 2) WARN_UNUSED;
/* ram_clear - all zeroes again, for a second boot. @pinned: pages must stay where they are because
 * an io_uring has them registered. vCPUs stopped. */
int ram_clear(Ram *ram, bool pinned, Error *err) NONNULL(1) WARN_UNUSED;
void ram_destroy(Ram *ram);

#endif
