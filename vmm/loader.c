/*
 * Loader - puts a kernel, its initrd and its command line into guest RAM
 *
 * This file opens the files, tells formats apart and places what is the same for all of them; a
 * format's own file (loader-bzimage.c, loader-elf.c) places the kernel.
 *
 * 1. Only regular files are read, so nothing here blocks; they are opened read-only.
 * 2. RAM from the top down: initrd; from the kernel's address up: kernel. They never overlap.
 * 3. Nothing is written past the end of low RAM: every destination comes from guest_image_at().
 * 4. Big ranges go through a buffer that stays in the processor's cache into the file behind the
 *    RAM, and pages of zeroes are left out, for the RAM reads as zeroes already. A kernel of 50 MB
 *    takes half the time that reading it into the fresh mapping takes (a page fault each 4 KiB, and
 *    every page cleared before it is overwritten).
 */
#include "vmm/loader.h"

#include <ctype.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "vmm/layout.h"
#include "vmm/loader-int.h"

#define PAGE_BYTES       4096u
#define LABEL_PATH_BYTES 120
#define BZIMAGE_MAGIC_AT 0x202
#define ARM64_MAGIC_AT   0x38
#define READ_CHUNK_BYTES (1u << 30) /* one read(2) never moves more than 2 GiB */
#define COPY_BYTES       (128u << 10)

static_assert(BOOT_HEADER_OFFSET < BZIMAGE_MAGIC_AT, "the magic is in the header");

int loader_read(const LoaderFile *file, uint64_t offset_bytes, void *buf, size_t len_bytes,
                Error *err)
{
    uint8_t *at = buf;

    while (len_bytes > 0) {
        ssize_t n =
            pread(file->fd, at, MIN(len_bytes, (size_t)READ_CHUNK_BYTES), (off_t)offset_bytes);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            int code = -errno;

            return error_set(err, code, "%s: %s", file->label, error_strerror(code));
        }
        if (n == 0) {
            return error_set(err, -EINVAL, "%s: became shorter while it was read", file->label);
        }
        at += n;
        offset_bytes += (uint64_t)n;
        len_bytes -= (size_t)n;
    }
    return 0;
}

static bool is_zero(const uint8_t *buf, size_t len_bytes)
{
    return buf[0] == 0 && memcmp(buf, buf + 1, len_bytes - 1) == 0;
}

/* A memfd takes less than it is given only where the host has no page left. */
static int write_ram(const LoaderFile *file, const GuestImage *image, uint64_t gpa,
                     const uint8_t *buf, size_t len_bytes, Error *err)
{
    while (len_bytes > 0) {
        ssize_t n = pwrite(image->fd, buf, len_bytes, (off_t)gpa);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            int code = n < 0 ? -errno : -ENOSPC;

            return error_set(err, code, "%s: writing it to guest RAM: %s", file->label,
                             error_strerror(code));
        }
        buf += n;
        gpa += (uint64_t)n;
        len_bytes -= (size_t)n;
    }
    return 0;
}

/* Writes what is not zero, in runs of whole pages of the guest. */
static int write_chunk(const LoaderFile *file, const GuestImage *image, uint64_t gpa,
                       const uint8_t *buf, size_t len_bytes, Error *err)
{
    size_t written = 0, at = 0;

    while (at < len_bytes) {
        size_t page_bytes = MIN(PAGE_BYTES - (gpa + at) % PAGE_BYTES, len_bytes - at);

        if (is_zero(buf + at, page_bytes)) {
            int r = write_ram(file, image, gpa + written, buf + written, at - written, err);

            if (r < 0) {
                return r;
            }
            written = at + page_bytes;
        }
        at += page_bytes;
    }
    return write_ram(file, image, gpa + written, buf + written, at - written, err);
}

int loader_load_range(const LoaderFile *file, uint64_t offset_bytes, const GuestImage *image,
                      uint64_t gpa, uint64_t len_bytes, Error *err)
{
    uint8_t *hva = guest_image_at(image, gpa, len_bytes);

    assert(hva);
    if (!image->has_file) {
        return loader_read(file, offset_bytes, hva, len_bytes, err);
    }
    AUTO_FREE uint8_t *buf = malloc(COPY_BYTES);

    if (!buf) {
        return error_set(err, -ENOMEM, "%s: no memory to read it", file->label);
    }
    while (len_bytes > 0) {
        size_t chunk_bytes = MIN(len_bytes, (uint64_t)COPY_BYTES);
        int r = loader_read(file, offset_bytes, buf, chunk_bytes, err);

        if (r == 0) {
            r = write_chunk(file, image, gpa, buf, chunk_bytes, err);
        }
        if (r < 0) {
            return r;
        }
        offset_bytes += chunk_bytes;
        gpa += chunk_bytes;
        len_bytes -= chunk_bytes;
    }
    return 0;
}

static void close_file(LoaderFile *file)
{
    auto_fd_cb(&file->fd);
}

#define AUTO_CLOSE_FILE __attribute__((cleanup(close_file)))

static void make_label(char *label, size_t label_bytes, const char *option, const char *path)
{
    size_t len = strlen(path);
    bool cut = len > LABEL_PATH_BYTES;

    snprintf(label, label_bytes, cut ? "%s '...%s'" : "%s '%s'", option,
             cut ? path + len - LABEL_PATH_BYTES : path);
}

/* Opens a regular file that is not empty. O_NONBLOCK keeps a FIFO from waiting for a writer. */
static int open_file(LoaderFile *file, const char *option, const char *path, Error *err)
{
    AUTO_FD int fd = -1;
    struct stat st;

    assert(path);
    make_label(file->label, sizeof(file->label), option, path);
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0) {
        int code = -errno;

        return error_set(err, code, "%s: %s", file->label, error_strerror(code));
    }
    if (S_ISDIR(st.st_mode)) {
        return error_set(err, -EISDIR, "%s: is a directory", file->label);
    }
    if (!S_ISREG(st.st_mode)) {
        return error_set(err, -EINVAL, "%s: is not a regular file", file->label);
    }
    if (st.st_size == 0) {
        return error_set(err, -EINVAL, "%s: is empty", file->label);
    }
    file->size_bytes = (uint64_t)st.st_size;
    file->fd = take_fd(&fd);
    return 0;
}

static bool is_text(const uint8_t *head, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (!isprint(head[i]) && !isspace(head[i])) {
            return false;
        }
    }
    return true;
}

/* Files that people give for a kernel by mistake, by how they begin. */
static const struct {
    size_t at;
    const char *magic;
    size_t magic_bytes;
    const char *what;
} mistakes[] = {
    { ARM64_MAGIC_AT, "ARM\x64", 4, "a kernel for aarch64" },
    { 0, "\x1f\x8b", 2, "compressed with gzip; unpack it first" },
    { 0,
      "\xfd"
      "7zXZ",
      5, "compressed with xz; unpack it first" },
    { 0, "\x28\xb5\x2f\xfd", 4, "compressed with zstd; unpack it first" },
    { 0, "\x02\x21\x4c\x18", 4, "compressed with lz4; unpack it first" },
    { 0, "BZh", 3, "compressed with bzip2; unpack it first" },
    { 0, "070701", 6, "a cpio archive; is it the initrd?" },
    { 0, "!<arch>\n", 8, "an ar archive or a Debian package" },
    { 0, "MZ", 2, "an EFI program or a truncated bzImage" },
};

static int refuse_kernel(const LoaderFile *file, const uint8_t *head, Error *err)
{
    size_t len = MIN(file->size_bytes, (uint64_t)LOADER_HEAD_BYTES);

    for (size_t i = 0; i < ARRAY_SIZE(mistakes); i++) {
        if (len >= mistakes[i].at + mistakes[i].magic_bytes &&
            memcmp(head + mistakes[i].at, mistakes[i].magic, mistakes[i].magic_bytes) == 0) {
            return error_set(err, -EINVAL, "%s: not a kernel: %s", file->label, mistakes[i].what);
        }
    }
    return error_set(err, -EINVAL, "%s: not a kernel: %s, neither bzImage nor ELF", file->label,
                     is_text(head, len) ? "a text file" : "unknown contents");
}

static int load_kernel(const LoaderFile *file, const GuestImage *image, LoadedKernel *ret_kernel,
                       Error *err)
{
    uint8_t head[LOADER_HEAD_BYTES] = { 0 };
    int r = loader_read(file, 0, head, MIN(file->size_bytes, (uint64_t)sizeof(head)), err);

    if (r < 0) {
        return r;
    }
    if (memcmp(head,
               "\x7f"
               "ELF",
               4) == 0) {
        return loader_load_elf(file, head, image, ret_kernel, err);
    }
    if (memcmp(head + BZIMAGE_MAGIC_AT, "HdrS", 4) == 0) {
        return loader_load_bzimage(file, head, image, ret_kernel, err);
    }
    return refuse_kernel(file, head, err);
}

/* As high as the kernel allows, in whole pages. */
static int load_initrd(const LoaderFile *file, const GuestImage *image, const LoadedKernel *kernel,
                       BootInfo *info, Error *err)
{
    uint64_t bottom = ALIGN_UP(kernel->end_gpa, (uint64_t)PAGE_BYTES);
    uint64_t top = ALIGN_DOWN(kernel->initrd_limit_gpa, (uint64_t)PAGE_BYTES);
    uint64_t room = top > bottom ? top - bottom : 0;

    if (file->size_bytes > room) {
        return error_set(err, -E2BIG,
                         "%s: %" PRIu64 " KiB do not fit in the %" PRIu64
                         " KiB of memory that the kernel leaves; more --memory?",
                         file->label, file->size_bytes >> 10, room >> 10);
    }
    info->initrd_bytes = file->size_bytes;
    info->initrd_gpa = ALIGN_DOWN(top - file->size_bytes, (uint64_t)PAGE_BYTES);
    return loader_load_range(file, 0, image, info->initrd_gpa, info->initrd_bytes, err);
}

static int write_cmdline(const char *cmdline, const GuestImage *image, const LoadedKernel *kernel,
                         Error *err)
{
    size_t max = MIN(kernel->cmdline_max_bytes, LAYOUT_CMDLINE_BYTES - 1);
    size_t len = strlen(cmdline);

    if (len > max) {
        return error_set(err, -E2BIG, "--append: %zu characters, this kernel takes %zu", len, max);
    }
    memcpy(guest_image_at(image, LAYOUT_CMDLINE_GPA, LAYOUT_CMDLINE_BYTES), cmdline, len + 1);
    return 0;
}

static int load_into(const LoaderParams *params, const LoaderFile *kernel_file,
                     const LoaderFile *initrd_file, const GuestImage *image, BootEntry *ret_entry,
                     Error *err)
{
    BootInfo info = { .rsdp_gpa = params->rsdp_gpa };
    LoadedKernel kernel;
    int r = load_kernel(kernel_file, image, &kernel, err);

    if (r < 0) {
        return r;
    }
    if (initrd_file) {
        r = load_initrd(initrd_file, image, &kernel, &info, err);
        if (r < 0) {
            return r;
        }
    }
    r = write_cmdline(params->cmdline ? params->cmdline : "", image, &kernel, err);
    if (r < 0) {
        return r;
    }
    if (kernel.mode == BOOT_PROTECTED_MODE) {
        boot_write_start_info(image, &info);
    } else {
        boot_write_params(image, &kernel.header, &info);
    }
    boot_write_cpu_tables(image, kernel.mode, ret_entry);
    ret_entry->rip = kernel.entry_gpa;
    return 0;
}

int loader_load(const LoaderParams *params, const GuestImage *image, BootEntry *ret_entry,
                Error *err)
{
    AUTO_CLOSE_FILE LoaderFile kernel_file = { .fd = -1 };
    AUTO_CLOSE_FILE LoaderFile initrd_file = { .fd = -1 };
    int r;

    assert(image->low_bytes <= LAYOUT_RAM_LOW_MAX_BYTES);
    if (image->low_bytes < LAYOUT_KERNEL_MIN_GPA) {
        return error_set(err, -E2BIG, "%" PRIu64 " KiB of guest memory hold no kernel",
                         image->low_bytes >> 10);
    }
    r = open_file(&kernel_file, "--kernel", params->kernel_path, err);
    if (r < 0) {
        return r;
    }
    if (params->initrd_path) {
        r = open_file(&initrd_file, "--initrd", params->initrd_path, err);
        if (r < 0) {
            return r;
        }
    }
    return load_into(params, &kernel_file, params->initrd_path ? &initrd_file : NULL, image,
                     ret_entry, err);
}
