/*
 * loader-int.h - what the loaders of the single kernel formats share with loader.c
 *
 * Layer:     vmm, inside the loader only
 * Threading: as loader.h.
 * Lifetime:  a LoaderFile lives for one loader_load().
 */
#ifndef VMM_LOADER_INT_H
#define VMM_LOADER_INT_H

#include "vmm/boot-info.h"
#include "vmm/loader.h"

/* Every format is told apart by, and has its fixed header in, this much of the file. */
#define LOADER_HEAD_BYTES 1024

typedef struct LoaderFile {
    int fd;
    uint64_t size_bytes; /* when it was opened; may shrink under us, see loader_read() */
    char label[160];     /* "--kernel 'vmlinuz'", the end of the path where it is long */
} LoaderFile;

/* What a format's loader has found and put into guest RAM. */
typedef struct LoadedKernel {
    BootMode mode;
    uint64_t entry_gpa;
    uint64_t end_gpa;           /* RAM is the kernel's up to here */
    uint64_t initrd_limit_gpa;  /* the initrd has to end at or below; at most the end of low RAM */
    uint32_t cmdline_max_bytes; /* without the terminator */
    BootHeader header;          /* for boot_params; unused in protected mode */
} LoadedKernel;

/*
 * loader_read - read exactly @len_bytes at @offset_bytes; the caller has checked that the file was
 * that long, so an early end means that somebody has cut it meanwhile
 */
int loader_read(const LoaderFile *file, uint64_t offset_bytes, void *buf, size_t len_bytes,
                Error *err) NONNULL(1, 3) WARN_UNUSED;

/*
 * loader_load_range - bring @len_bytes at @offset_bytes into guest RAM at @gpa; the caller has
 * checked that they are in the file and that the RAM is there, below the PCI hole
 */
int loader_load_range(const LoaderFile *file, uint64_t offset_bytes, const GuestImage *image,
                      uint64_t gpa, uint64_t len_bytes, Error *err) NONNULL(1, 3) WARN_UNUSED;

/*
 * The formats. @head is the beginning of the file: LOADER_HEAD_BYTES of it, or all of a shorter
 * one, filled up with zeroes.
 */
int loader_load_bzimage(const LoaderFile *file, const uint8_t *head, const GuestImage *image,
                        LoadedKernel *ret_kernel, Error *err) NONNULL(1, 2, 3, 4) WARN_UNUSED;
int loader_load_elf(const LoaderFile *file, const uint8_t *head, const GuestImage *image,
                    LoadedKernel *ret_kernel, Error *err) NONNULL(1, 2, 3, 4) WARN_UNUSED;

#endif
