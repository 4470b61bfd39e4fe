/*
 * kernel-files.h - small kernel files, right ones for tests to spoil
 *
 * Layer:     vmm/tests
 * Threading: pure.
 * Lifetime:  everything is in the caller's KernelFile.
 */
#ifndef VMM_TESTS_KERNEL_FILES_H
#define VMM_TESTS_KERNEL_FILES_H

#include <asm/bootparam.h>
#include <elf.h>
#include <string.h>

#include "io/base/compiler.h"

#define KERNEL_FILE_MAX_BYTES 16384

typedef struct KernelFile {
    uint8_t bytes[KERNEL_FILE_MAX_BYTES];
    size_t len_bytes;
} KernelFile;

/* Every byte of the code tells its place. */
static inline uint8_t kernel_pattern(size_t index)
{
    return (uint8_t)(index * 7 + (index >> 8) + 1);
}

static inline void kernel_fill_pattern(uint8_t *at, size_t len_bytes)
{
    for (size_t i = 0; i < len_bytes; i++) {
        at[i] = kernel_pattern(i);
    }
}

/* --- bzImage: one setup sector besides the boot sector, then BZIMAGE_CODE_BYTES of code --- */

#define BZIMAGE_HEADER_AT  0x1f1
#define BZIMAGE_HEADER_END 0x26c
#define BZIMAGE_SETUP      1024
#define BZIMAGE_CODE_BYTES 2048
#define BZIMAGE_PREF_GPA   0x1000000ull
#define BZIMAGE_INIT_BYTES 0x200000u

static inline struct setup_header *bzimage_header(KernelFile *file)
{
    return (struct setup_header *)(file->bytes + BZIMAGE_HEADER_AT);
}

static inline void bzimage_make(KernelFile *file)
{
    memset(file, 0, sizeof(*file));
    memcpy(file->bytes, "MZ", 2);
    *bzimage_header(file) = (struct setup_header){
        .setup_sects = 1,
        .syssize = BZIMAGE_CODE_BYTES / 16,
        .boot_flag = 0xaa55,
        .jump = 0xeb | (BZIMAGE_HEADER_END - 0x202) << 8,
        .header = 0x53726448,
        .version = 0x020f,
        .loadflags = LOADED_HIGH,
        .code32_start = 0x100000,
        .initrd_addr_max = 0x7fffffff,
        .kernel_alignment = 0x200000,
        .relocatable_kernel = 1,
        .min_alignment = 21,
        .xloadflags = XLF_KERNEL_64 | XLF_CAN_BE_LOADED_ABOVE_4G,
        .cmdline_size = 2047,
        .pref_address = BZIMAGE_PREF_GPA,
        .init_size = BZIMAGE_INIT_BYTES,
    };
    kernel_fill_pattern(file->bytes + BZIMAGE_SETUP, BZIMAGE_CODE_BYTES);
    file->len_bytes = BZIMAGE_SETUP + BZIMAGE_CODE_BYTES;
}

/* --- ELF: two segments to load and one with two notes, of which the second is the PVH entry --- */

#define ELF_CODE_AT     0x200
#define ELF_CODE_BYTES  0x300
#define ELF_CODE_GPA    0x1000000ull
#define ELF_DATA_AT     0x500
#define ELF_DATA_BYTES  0x80
#define ELF_DATA_GPA    0x1200000ull
#define ELF_DATA_MEMORY 0x3000
#define ELF_NOTE_AT     0x600
#define ELF_ENTRY64_GPA (ELF_CODE_GPA + 0x10)
#define ELF_PVH_GPA     (ELF_CODE_GPA + 0x20)

enum {
    ELF_CODE,
    ELF_DATA,
    ELF_NOTE,
    ELF_SEGMENTS,
};

static inline Elf64_Ehdr *elf_ehdr(KernelFile *file)
{
    return (Elf64_Ehdr *)file->bytes;
}

static inline Elf64_Phdr *elf_phdr(KernelFile *file, unsigned index)
{
    return (Elf64_Phdr *)(file->bytes + sizeof(Elf64_Ehdr)) + index;
}

/* Appends a note; returns the offset in the file of its header. */
static inline size_t elf_add_note(KernelFile *file, const char *name, uint32_t type,
                                  const void *desc, uint32_t desc_bytes, size_t align)
{
    Elf64_Phdr *note = elf_phdr(file, ELF_NOTE);
    size_t at = note->p_offset + note->p_filesz;
    Elf64_Nhdr nhdr = { .n_namesz = (uint32_t)strlen(name) + 1,
                        .n_descsz = desc_bytes,
                        .n_type = type };
    size_t desc_at = ALIGN_UP(sizeof(nhdr) + nhdr.n_namesz, align);

    memcpy(file->bytes + at, &nhdr, sizeof(nhdr));
    memcpy(file->bytes + at + sizeof(nhdr), name, nhdr.n_namesz);
    memcpy(file->bytes + at + desc_at, desc, desc_bytes);
    note->p_align = align;
    note->p_filesz += ALIGN_UP(desc_at + desc_bytes, align);
    note->p_memsz = note->p_filesz;
    file->len_bytes = note->p_offset + note->p_filesz;
    return at;
}

/* Without a note that means anything to us: a vmlinux with the 64-bit entry. */
static inline void elf_make(KernelFile *file)
{
    memset(file, 0, sizeof(*file));
    *elf_ehdr(file) = (Elf64_Ehdr){
        .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT },
        .e_type = ET_EXEC,
        .e_machine = EM_X86_64,
        .e_version = EV_CURRENT,
        .e_entry = ELF_ENTRY64_GPA,
        .e_phoff = sizeof(Elf64_Ehdr),
        .e_ehsize = sizeof(Elf64_Ehdr),
        .e_phentsize = sizeof(Elf64_Phdr),
        .e_phnum = ELF_SEGMENTS,
    };
    *elf_phdr(file, ELF_CODE) = (Elf64_Phdr){
        .p_type = PT_LOAD,
        .p_flags = PF_R | PF_X,
        .p_offset = ELF_CODE_AT,
        .p_vaddr = 0xffffffff80000000ull + ELF_CODE_GPA,
        .p_paddr = ELF_CODE_GPA,
        .p_filesz = ELF_CODE_BYTES,
        .p_memsz = ELF_CODE_BYTES,
        .p_align = 0x1000,
    };
    *elf_phdr(file, ELF_DATA) = (Elf64_Phdr){
        .p_type = PT_LOAD,
        .p_flags = PF_R | PF_W,
        .p_offset = ELF_DATA_AT,
        .p_paddr = ELF_DATA_GPA,
        .p_filesz = ELF_DATA_BYTES,
        .p_memsz = ELF_DATA_MEMORY,
        .p_align = 0x1000,
    };
    *elf_phdr(file, ELF_NOTE) = (Elf64_Phdr){ .p_type = PT_NOTE, .p_offset = ELF_NOTE_AT };
    kernel_fill_pattern(file->bytes + ELF_CODE_AT, ELF_CODE_BYTES);
    kernel_fill_pattern(file->bytes + ELF_DATA_AT, ELF_DATA_BYTES);
    elf_add_note(file, "GNU", 3, "12345678901234567890", 20, 4);
}

/* With the PVH entry; returns the offset of its note in the file. */
static inline size_t elf_make_pvh(KernelFile *file)
{
    uint64_t entry = ELF_PVH_GPA;

    elf_make(file);
    return elf_add_note(file, "Xen", 18, &entry, sizeof(entry), 4);
}

#endif
