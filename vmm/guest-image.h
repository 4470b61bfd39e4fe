/*
 * GuestImage - the window on guest RAM through which loaders and table builders write
 *
 * Layer:     vmm (pure: needs no KVM, so unit tests and fuzzers use plain memory)
 * Threading: the main thread, before the first vCPU runs.
 * Lifetime:  borrows the mappings; whoever mapped the RAM keeps them for as long.
 *
 * The RAM must read as zero when a loader starts: loaders write what files hold and rely on the
 * rest (a kernel's .bss, the unused part of boot_params). Before a second boot in the same RAM its
 * owner discards it (MADV_REMOVE or a fresh mapping).
 */
#ifndef VMM_GUEST_IMAGE_H
#define VMM_GUEST_IMAGE_H

#include "io/base/compiler.h"

/*
 * [0, low_bytes) is at hva_low; what does not fit below the PCI hole goes on at gpa 4 GiB.
 *
 * Where the RAM is a file that can be written to, a loader may write the file in place of the
 * mapping, which neither clears a page that is then filled nor faults it in.
 */
typedef struct GuestImage {
    uint8_t *hva_low;   /* RAM from gpa 0 */
    uint64_t low_bytes; /* RAM below the PCI hole (<= 3 GiB) */
    uint8_t *hva_high;  /* RAM from gpa 4 GiB, NULL if none */
    uint64_t high_bytes;
    bool has_file;      /* what is at hva_low is `fd` from offset 0 on */
    int fd;
} GuestImage;

/*
 * guest_image_at - where [@gpa, @gpa + @len_bytes) of low RAM is mapped; NULL unless all of it is
 * RAM below the PCI hole. Loaders put nothing above 4 GiB: the first page tables end there.
 */
static inline void *guest_image_at(const GuestImage *image, uint64_t gpa, uint64_t len_bytes)
{
    uint64_t end;

    if (!checked_add(gpa, len_bytes, &end) || end > image->low_bytes) {
        return NULL;
    }
    return image->hva_low + gpa;
}

#endif
