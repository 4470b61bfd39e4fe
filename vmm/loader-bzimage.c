/*
 * loader-bzimage - Linux bzImage by the 64-bit boot protocol
 *
 * The file is a boot sector and real-mode code (setup_sects), then the protected-mode kernel,
 * syssize paragraphs of it. Only the latter is loaded; the setup header goes into boot_params.
 *
 * 1. The kernel runs at pref_address, aligned up if it is relocatable: its 64-bit entry moves
 *    itself there in any case, so loading it lower would save nothing.
 * 2. It owns init_size bytes from there until it has read the memory map: neither the initrd nor
 *    anything else lies in them.
 * 3. All arithmetic on the file's fields is in 64 bits on fields of 32, or checked.
 */
#include "vmm/loader-int.h"

#include <asm/bootparam.h>
#include <inttypes.h>
#include <string.h>

#include "vmm/layout.h"

#define BOOT_FLAG         0xaa55
#define PROTOCOL_MIN      0x020c /* 2.12 brought xloadflags, with Linux 3.8 */
#define SECTOR_BYTES      512u
#define DEFAULT_SECTORS   4u /* what setup_sects 0 means */
#define PARAGRAPH_BYTES   16u
#define ENTRY64_OFFSET    0x200u
#define HEADER_JUMP       0x202u /* the byte before, added to this, ends the header */
#define HEADER_NEED_BYTES (offsetof(struct setup_header, init_size) + sizeof(uint32_t))

static_assert(BOOT_HEADER_OFFSET + sizeof(BootHeader) <= LOADER_HEAD_BYTES, "head holds header");
static_assert(BOOT_HEADER_OFFSET + HEADER_NEED_BYTES == 0x264, "boot.rst");

static int check_header(const LoaderFile *file, const struct setup_header *hdr, uint32_t header_end,
                        Error *err)
{
    if (hdr->boot_flag != BOOT_FLAG || header_end < BOOT_HEADER_OFFSET + HEADER_NEED_BYTES) {
        return error_set(err, -EINVAL, "%s: damaged bzImage: its setup header makes no sense",
                         file->label);
    }
    if (hdr->version < PROTOCOL_MIN) {
        return error_set(err, -EINVAL,
                         "%s: boot protocol %u.%02u is too old; 2.12 (Linux 3.8) is the oldest",
                         file->label, hdr->version >> 8, hdr->version & 0xff);
    }
    if (!(hdr->xloadflags & XLF_KERNEL_64)) {
        return error_set(err, -EINVAL, "%s: a 32-bit kernel; penstock boots 64-bit ones",
                         file->label);
    }
    if (!(hdr->loadflags & LOADED_HIGH)) {
        return error_set(err, -EINVAL, "%s: a zImage, which loads below 1 MiB; need a bzImage",
                         file->label);
    }
    if (hdr->relocatable_kernel && !IS_POWER_OF_2(hdr->kernel_alignment)) {
        return error_set(err, -EINVAL, "%s: damaged bzImage: alignment 0x%" PRIx32, file->label,
                         hdr->kernel_alignment);
    }
    return 0;
}

/* Where it runs, and that the RAM it asks for is there. */
static int place_kernel(const LoaderFile *file, const struct setup_header *hdr,
                        uint64_t kernel_bytes, const GuestImage *image, uint64_t *ret_gpa,
                        uint64_t *ret_end_gpa, Error *err)
{
    uint64_t gpa = hdr->pref_address;
    uint64_t end;

    if (hdr->relocatable_kernel) {
        gpa = MAX(gpa, (uint64_t)LAYOUT_KERNEL_MIN_GPA);
        if (gpa <= image->low_bytes) {
            gpa = ALIGN_UP(gpa, (uint64_t)hdr->kernel_alignment);
        }
    }
    if (gpa < LAYOUT_KERNEL_MIN_GPA) {
        return error_set(err, -EINVAL, "%s: wants to run at 0x%" PRIx64 ", below 1 MiB",
                         file->label, gpa);
    }
    if (!checked_add(gpa, MAX((uint64_t)hdr->init_size, kernel_bytes), &end) ||
        end > image->low_bytes) {
        return error_set(err, -E2BIG,
                         "%s: needs %" PRIu64 " KiB of memory from 0x%" PRIx64
                         " on, the guest's ends at 0x%" PRIx64 "; more --memory?",
                         file->label, MAX((uint64_t)hdr->init_size, kernel_bytes) >> 10, gpa,
                         image->low_bytes);
    }
    *ret_gpa = gpa;
    *ret_end_gpa = end;
    return 0;
}

/* What goes into boot_params: the header of the file as far as it says it reaches. */
static void copy_header(const uint8_t *head, uint32_t header_end, uint64_t kernel_gpa,
                        BootHeader *ret_header)
{
    uint32_t code32_start = (uint32_t)kernel_gpa;

    memset(ret_header, 0, sizeof(*ret_header));
    memcpy(ret_header->bytes, head + BOOT_HEADER_OFFSET,
           MIN((size_t)header_end - BOOT_HEADER_OFFSET, sizeof(ret_header->bytes)));
    memcpy(ret_header->bytes + offsetof(struct setup_header, code32_start), &code32_start,
           sizeof(code32_start));
}

int loader_load_bzimage(const LoaderFile *file, const uint8_t *head, const GuestImage *image,
                        LoadedKernel *ret_kernel, Error *err)
{
    uint32_t header_end = HEADER_JUMP + head[HEADER_JUMP - 1];
    struct setup_header hdr;
    uint64_t kernel_gpa = 0, end_gpa = 0;
    uint64_t setup_bytes, kernel_bytes;
    int r;

    if (file->size_bytes < MIN(header_end, (uint32_t)LOADER_HEAD_BYTES)) {
        return error_set(err, -EINVAL, "%s: truncated bzImage: it ends inside its header",
                         file->label);
    }
    memcpy(&hdr, head + BOOT_HEADER_OFFSET, sizeof(hdr));
    r = check_header(file, &hdr, header_end, err);
    if (r < 0) {
        return r;
    }

    setup_bytes =
        (1 + (uint64_t)(hdr.setup_sects ? hdr.setup_sects : DEFAULT_SECTORS)) * SECTOR_BYTES;
    kernel_bytes = (uint64_t)hdr.syssize * PARAGRAPH_BYTES;
    if (kernel_bytes <= ENTRY64_OFFSET) {
        return error_set(err, -EINVAL, "%s: damaged bzImage: it holds no kernel", file->label);
    }
    if (file->size_bytes < setup_bytes + kernel_bytes) {
        return error_set(err, -EINVAL,
                         "%s: truncated bzImage: %" PRIu64 " bytes of %" PRIu64 " are there",
                         file->label, file->size_bytes, setup_bytes + kernel_bytes);
    }
    r = place_kernel(file, &hdr, kernel_bytes, image, &kernel_gpa, &end_gpa, err);
    if (r < 0) {
        return r;
    }
    r = loader_load_range(file, setup_bytes, image, kernel_gpa, kernel_bytes, err);
    if (r < 0) {
        return r;
    }

    ret_kernel->mode = BOOT_LONG_MODE;
    ret_kernel->entry_gpa = kernel_gpa + ENTRY64_OFFSET;
    ret_kernel->end_gpa = end_gpa;
    ret_kernel->initrd_limit_gpa = MIN((uint64_t)hdr.initrd_addr_max + 1, image->low_bytes);
    ret_kernel->cmdline_max_bytes = hdr.cmdline_size;
    copy_header(head, header_end, kernel_gpa, &ret_kernel->header);
    return 0;
}
