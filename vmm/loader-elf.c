/*
 * loader-elf - uncompressed ELF kernels: Linux vmlinux, or any 64-bit ELF with a PVH note
 *
 * Segments go where p_paddr says. A kernel with the note XEN_ELFNOTE_PHYS32_ENTRY is entered there,
 * in 32-bit protected mode with hvm_start_info; one without it is taken for a Linux vmlinux, whose
 * e_entry is the physical address of its 64-bit entry, with boot_params.
 *
 * 1. All headers are copied in and checked before the first byte is loaded.
 * 2. Loaded segments lie in low RAM, from LAYOUT_KERNEL_MIN_GPA on, and do not overlap; what
 *    p_memsz adds to p_filesz is zero because fresh RAM is.
 * 3. The work is bounded by LOADER_MAX_PHDRS and LOADER_MAX_NOTE_BYTES, and by the RAM that
 *    disjoint segments can fill.
 */
#include "vmm/loader-int.h"

#include <asm/bootparam.h>
#include <elf.h>
#include <inttypes.h>
#include <string.h>

#include "vmm/layout.h"

#define LOADER_MAX_PHDRS      128u
#define LOADER_MAX_NOTE_BYTES 65536u

#define XEN_NOTE_NAME            "Xen" /* with its terminator */
#define XEN_ELFNOTE_PHYS32_ENTRY 18u

/* A kernel without a header of its own takes COMMAND_LINE_SIZE with the terminator. */
#define LINUX_CMDLINE_MAX_BYTES 2047u

#define HEADER_BOOT_FLAG 0xaa55
#define HEADER_MAGIC     0x53726448u /* "HdrS" */
#define HEADER_VERSION   0x020c

typedef struct ElfKernel {
    const LoaderFile *file;
    const GuestImage *image;
    Elf64_Ehdr ehdr;
    Elf64_Phdr phdr[LOADER_MAX_PHDRS];
    bool has_pvh_entry;
    uint64_t pvh_entry_gpa;
} ElfKernel;

static int check_ident(const LoaderFile *file, const uint8_t *head, Error *err)
{
    const uint8_t *ident = head;

    if (file->size_bytes < sizeof(Elf64_Ehdr)) {
        return error_set(err, -EINVAL, "%s: truncated ELF: it ends inside its header", file->label);
    }
    if (ident[EI_CLASS] == ELFCLASS32) {
        return error_set(err, -EINVAL, "%s: a 32-bit ELF; penstock boots 64-bit ones", file->label);
    }
    if (ident[EI_CLASS] != ELFCLASS64 || ident[EI_VERSION] != EV_CURRENT) {
        return error_set(err, -EINVAL, "%s: damaged ELF: unknown class or version", file->label);
    }
    if (ident[EI_DATA] != ELFDATA2LSB) {
        return error_set(err, -EINVAL, "%s: a big-endian ELF, for another architecture",
                         file->label);
    }
    return 0;
}

static int check_ehdr(const ElfKernel *elf, Error *err)
{
    const Elf64_Ehdr *ehdr = &elf->ehdr;
    const char *label = elf->file->label;

    if (ehdr->e_machine != EM_X86_64) {
        return error_set(err, -EINVAL, "%s: an ELF for another architecture (%s, e_machine %u)",
                         label, ehdr->e_machine == EM_AARCH64 ? "aarch64" : "not x86-64",
                         ehdr->e_machine);
    }
    if (ehdr->e_type != ET_EXEC) {
        return error_set(err, -EINVAL,
                         "%s: not a kernel: an ELF of type %u (%s), a vmlinux is executable", label,
                         ehdr->e_type,
                         ehdr->e_type == ET_DYN    ? "shared object or position-independent program"
                         : ehdr->e_type == ET_REL  ? "object file"
                         : ehdr->e_type == ET_CORE ? "core dump"
                                                   : "unknown");
    }
    if (ehdr->e_phnum == 0 || ehdr->e_phnum > LOADER_MAX_PHDRS ||
        ehdr->e_phentsize != sizeof(Elf64_Phdr)) {
        return error_set(err, -EINVAL, "%s: damaged ELF: %u program headers of %u bytes", label,
                         ehdr->e_phnum, ehdr->e_phentsize);
    }
    return 0;
}

/* The bytes of the file that a header names are there. */
static int check_in_file(const ElfKernel *elf, const char *what, unsigned index,
                         uint64_t offset_bytes, uint64_t len_bytes, Error *err)
{
    uint64_t end;

    if (!checked_add(offset_bytes, len_bytes, &end)) {
        return error_set(err, -EINVAL, "%s: damaged ELF: %s %u at offset 0x%" PRIx64,
                         elf->file->label, what, index, offset_bytes);
    }
    if (end > elf->file->size_bytes) {
        return error_set(err, -EINVAL,
                         "%s: truncated ELF: %s %u ends at %" PRIu64 ", the file at %" PRIu64,
                         elf->file->label, what, index, end, elf->file->size_bytes);
    }
    return 0;
}

static int read_headers(ElfKernel *elf, const uint8_t *head, Error *err)
{
    uint64_t len_bytes;
    int r = check_ident(elf->file, head, err);

    if (r < 0) {
        return r;
    }
    memcpy(&elf->ehdr, head, sizeof(elf->ehdr));
    r = check_ehdr(elf, err);
    if (r < 0) {
        return r;
    }
    len_bytes = (uint64_t)elf->ehdr.e_phnum * sizeof(Elf64_Phdr);
    r = check_in_file(elf, "program header table", 0, elf->ehdr.e_phoff, len_bytes, err);
    if (r < 0) {
        return r;
    }
    return loader_read(elf->file, elf->ehdr.e_phoff, elf->phdr, len_bytes, err);
}

static bool segment_is_loaded(const Elf64_Phdr *phdr)
{
    return phdr->p_type == PT_LOAD && phdr->p_memsz != 0;
}

/* Whether a segment that has passed its own checks shares memory with one before it. */
static bool overlaps_earlier(const ElfKernel *elf, unsigned index)
{
    const Elf64_Phdr *phdr = &elf->phdr[index];

    for (unsigned i = 0; i < index; i++) {
        const Elf64_Phdr *other = &elf->phdr[i];

        if (segment_is_loaded(other) && phdr->p_paddr < other->p_paddr + other->p_memsz &&
            other->p_paddr < phdr->p_paddr + phdr->p_memsz) {
            return true;
        }
    }
    return false;
}

static int check_segment(const ElfKernel *elf, unsigned index, Error *err)
{
    const Elf64_Phdr *phdr = &elf->phdr[index];
    const char *label = elf->file->label;
    int r = check_in_file(elf, "segment", index, phdr->p_offset, phdr->p_filesz, err);

    if (r < 0) {
        return r;
    }
    if (phdr->p_filesz > phdr->p_memsz) {
        return error_set(err, -EINVAL,
                         "%s: damaged ELF: segment %u has more bytes in the file than in memory",
                         label, index);
    }
    if (phdr->p_paddr < LAYOUT_KERNEL_MIN_GPA) {
        return error_set(err, -EINVAL,
                         "%s: segment %u wants to be at 0x%" PRIx64
                         "; below 1 MiB are penstock's own tables",
                         label, index, (uint64_t)phdr->p_paddr);
    }
    if (!guest_image_at(elf->image, phdr->p_paddr, phdr->p_memsz)) {
        return error_set(err, -E2BIG,
                         "%s: segment %u, %" PRIu64 " KiB at 0x%" PRIx64
                         ", lies outside of memory, which ends at 0x%" PRIx64 "; more --memory?",
                         label, index, (uint64_t)phdr->p_memsz >> 10, (uint64_t)phdr->p_paddr,
                         elf->image->low_bytes);
    }
    if (overlaps_earlier(elf, index)) {
        return error_set(err, -EINVAL, "%s: damaged ELF: segment %u overlaps one before it", label,
                         index);
    }
    return 0;
}

static int check_segments(const ElfKernel *elf, uint64_t *ret_end_gpa, Error *err)
{
    uint64_t end_gpa = 0;

    for (unsigned i = 0; i < elf->ehdr.e_phnum; i++) {
        const Elf64_Phdr *phdr = &elf->phdr[i];

        if (!segment_is_loaded(phdr)) {
            continue;
        }
        int r = check_segment(elf, i, err);

        if (r < 0) {
            return r;
        }
        end_gpa = MAX(end_gpa, (uint64_t)(phdr->p_paddr + phdr->p_memsz));
    }
    if (end_gpa == 0) {
        return error_set(err, -EINVAL, "%s: damaged ELF: it has nothing to load", elf->file->label);
    }
    *ret_end_gpa = end_gpa;
    return 0;
}

/* The descriptor of the PVH note: an address of 4 or 8 bytes. */
static int take_pvh_note(ElfKernel *elf, const uint8_t *desc, uint32_t desc_bytes, Error *err)
{
    uint64_t entry = 0;

    if (desc_bytes != sizeof(uint32_t) && desc_bytes != sizeof(uint64_t)) {
        return error_set(err, -EINVAL, "%s: damaged ELF: PVH entry note of %" PRIu32 " bytes",
                         elf->file->label, desc_bytes);
    }
    memcpy(&entry, desc, desc_bytes);
    elf->has_pvh_entry = true;
    elf->pvh_entry_gpa = entry;
    return 0;
}

/* Notes follow each other; name and descriptor are padded to the segment's alignment, 4 or 8. */
static int parse_notes(ElfKernel *elf, unsigned index, const uint8_t *notes, size_t len_bytes,
                       Error *err)
{
    size_t align = elf->phdr[index].p_align == 8 ? 8 : 4;
    size_t at = 0;

    while (len_bytes - at >= sizeof(Elf64_Nhdr)) {
        Elf64_Nhdr nhdr;
        uint64_t name_at, desc_at, next;

        memcpy(&nhdr, notes + at, sizeof(nhdr));
        name_at = at + sizeof(nhdr);
        desc_at = ALIGN_UP(name_at + nhdr.n_namesz, (uint64_t)align);
        next = ALIGN_UP(desc_at + nhdr.n_descsz, (uint64_t)align);
        if (desc_at + nhdr.n_descsz > len_bytes) {
            return error_set(err, -EINVAL, "%s: damaged ELF: a note reaches out of segment %u",
                             elf->file->label, index);
        }
        if (nhdr.n_type == XEN_ELFNOTE_PHYS32_ENTRY && nhdr.n_namesz == sizeof(XEN_NOTE_NAME) &&
            memcmp(notes + name_at, XEN_NOTE_NAME, sizeof(XEN_NOTE_NAME)) == 0) {
            return take_pvh_note(elf, notes + desc_at, nhdr.n_descsz, err);
        }
        if (next >= len_bytes) {
            break;
        }
        at = next;
    }
    return 0;
}

static int read_notes(ElfKernel *elf, Error *err)
{
    for (unsigned i = 0; i < elf->ehdr.e_phnum && !elf->has_pvh_entry; i++) {
        const Elf64_Phdr *phdr = &elf->phdr[i];

        if (phdr->p_type != PT_NOTE) {
            continue;
        }
        if (phdr->p_filesz > LOADER_MAX_NOTE_BYTES) {
            return error_set(err, -EINVAL, "%s: damaged ELF: %" PRIu64 " bytes of notes",
                             elf->file->label, (uint64_t)phdr->p_filesz);
        }
        int r = check_in_file(elf, "segment", i, phdr->p_offset, phdr->p_filesz, err);

        if (r < 0) {
            return r;
        }
        AUTO_FREE uint8_t *notes = malloc(MAX(phdr->p_filesz, 1));

        if (!notes) {
            return error_set(err, -ENOMEM, "%s: no memory to read its notes", elf->file->label);
        }
        r = loader_read(elf->file, phdr->p_offset, notes, phdr->p_filesz, err);
        if (r < 0) {
            return r;
        }
        r = parse_notes(elf, i, notes, phdr->p_filesz, err);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static int check_entry(const ElfKernel *elf, uint64_t entry_gpa, Error *err)
{
    for (unsigned i = 0; i < elf->ehdr.e_phnum; i++) {
        const Elf64_Phdr *phdr = &elf->phdr[i];

        if (segment_is_loaded(phdr) && entry_gpa >= phdr->p_paddr &&
            entry_gpa - phdr->p_paddr < phdr->p_memsz) {
            return 0;
        }
    }
    return error_set(err, -EINVAL,
                     "%s: its %s entry 0x%" PRIx64 " is no physical address in a loaded segment",
                     elf->file->label, elf->has_pvh_entry ? "PVH" : "64-bit", entry_gpa);
}

static int load_segments(const ElfKernel *elf, Error *err)
{
    for (unsigned i = 0; i < elf->ehdr.e_phnum; i++) {
        const Elf64_Phdr *phdr = &elf->phdr[i];

        if (!segment_is_loaded(phdr)) {
            continue;
        }
        int r = loader_load_range(elf->file, phdr->p_offset, elf->image, phdr->p_paddr,
                                  phdr->p_filesz, err);

        if (r < 0) {
            return r;
        }
    }
    return 0;
}

/* The part of the setup header that a vmlinux looks at and that a bzImage would have brought. */
static void make_header(BootHeader *ret_header)
{
    struct setup_header hdr = {
        .boot_flag = HEADER_BOOT_FLAG,
        .header = HEADER_MAGIC,
        .version = HEADER_VERSION,
        .loadflags = LOADED_HIGH,
        .cmdline_size = LINUX_CMDLINE_MAX_BYTES,
    };

    static_assert(sizeof(hdr) <= sizeof(ret_header->bytes), "boot.rst");
    memset(ret_header, 0, sizeof(*ret_header));
    memcpy(ret_header->bytes, &hdr, sizeof(hdr));
}

int loader_load_elf(const LoaderFile *file, const uint8_t *head, const GuestImage *image,
                    LoadedKernel *ret_kernel, Error *err)
{
    ElfKernel elf = { .file = file, .image = image };
    uint64_t end_gpa = 0;
    uint64_t entry_gpa;
    int r = read_headers(&elf, head, err);

    if (r < 0) {
        return r;
    }
    r = check_segments(&elf, &end_gpa, err);
    if (r < 0) {
        return r;
    }
    r = read_notes(&elf, err);
    if (r < 0) {
        return r;
    }
    entry_gpa = elf.has_pvh_entry ? elf.pvh_entry_gpa : elf.ehdr.e_entry;
    r = check_entry(&elf, entry_gpa, err);
    if (r < 0) {
        return r;
    }
    r = load_segments(&elf, err);
    if (r < 0) {
        return r;
    }

    ret_kernel->mode = elf.has_pvh_entry ? BOOT_PROTECTED_MODE : BOOT_LONG_MODE;
    ret_kernel->entry_gpa = entry_gpa;
    ret_kernel->end_gpa = end_gpa;
    ret_kernel->initrd_limit_gpa = image->low_bytes;
    ret_kernel->cmdline_max_bytes = LINUX_CMDLINE_MAX_BYTES;
    make_header(&ret_kernel->header);
    return 0;
}
