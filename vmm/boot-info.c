/*
 * boot-info - the tables below 1 MiB that a kernel finds when it starts
 *
 * 1. Every structure lies where layout.h says and inside the room that layout.h gives it (checked
 *    here at compile time), all of it below LAYOUT_KERNEL_MIN_GPA, where no kernel is loaded.
 * 2. This half of vmm/ runs on x86-64 hosts only, so structures in host byte order are right.
 */
#include "vmm/boot-info.h"

#include <asm/bootparam.h>
#include <string.h>

#include "vmm/layout.h"

#define PAGE_BYTES 4096u

/* Where things are in the page of hvm_start_info. */
#define START_INFO_MODULES_GPA (LAYOUT_START_INFO_GPA + 0x100)
#define START_INFO_MEMMAP_GPA  (LAYOUT_START_INFO_GPA + 0x200)
#define START_INFO_MAGIC       0x336ec578u
#define START_INFO_VERSION     1u

typedef struct StartInfo {
    uint32_t magic;
    uint32_t version;
    uint32_t flags;
    uint32_t nb_modules;
    uint64_t modules_gpa;
    uint64_t cmdline_gpa;
    uint64_t rsdp_gpa;
    uint64_t memmap_gpa;
    uint32_t nb_memmap;
    uint32_t reserved;
} StartInfo;

typedef struct StartInfoModule {
    uint64_t gpa;
    uint64_t len_bytes;
    uint64_t cmdline_gpa;
    uint64_t reserved;
} StartInfoModule;

typedef struct StartInfoMemmap {
    uint64_t gpa;
    uint64_t len_bytes;
    uint32_t type;
    uint32_t reserved;
} StartInfoMemmap;

static_assert(sizeof(StartInfo) == 56, "start_info.h");
static_assert(offsetof(StartInfo, memmap_gpa) == 40, "start_info.h");
static_assert(sizeof(StartInfoModule) == 32, "start_info.h");
static_assert(sizeof(StartInfoMemmap) == 24, "start_info.h");
static_assert(0x200 + MEMMAP_MAX * sizeof(StartInfoMemmap) <= PAGE_BYTES, "start info page");
static_assert(sizeof(struct boot_params) == PAGE_BYTES, "zero-page.rst");
static_assert(offsetof(struct boot_params, hdr) == BOOT_HEADER_OFFSET, "zero-page.rst");
static_assert(offsetof(struct boot_params, acpi_rsdp_addr) == 0x70, "zero-page.rst");
static_assert(offsetof(struct boot_params, e820_table) == 0x2d0, "zero-page.rst");
static_assert(MEMMAP_MAX <= E820_MAX_ENTRIES_ZEROPAGE, "e820 table");

#define TYPE_OF_LOADER_UNDEFINED 0xff

/* Descriptors: flat 4 GiB segments, and the TSS that must be there to be legal. */
#define GDT_CODE64  0x00af9b000000ffffull
#define GDT_CODE32  0x00cf9b000000ffffull
#define GDT_DATA    0x00cf93000000ffffull
#define GDT_TSS     0x00008b0000000067ull
#define GDT_ENTRIES 6 /* two null, code, data, TSS with its upper half in long mode */

#define PTE_PRESENT    0x01ull
#define PTE_WRITE      0x02ull
#define PTE_LARGE      0x80ull
#define TABLE_ENTRIES  512u
#define LARGE_PAGE     0x200000ull
#define NB_DIRECTORIES 4u /* 1 GiB each */

static_assert(LAYOUT_PAGE_TABLES_GPA + (2 + NB_DIRECTORIES) * PAGE_BYTES <= LAYOUT_CMDLINE_GPA,
              "page tables");
static_assert(LAYOUT_CMDLINE_GPA + LAYOUT_CMDLINE_BYTES <= LAYOUT_LOW_RAM_END_GPA, "command line");

#define CR0_PE   0x00000001ull
#define CR0_ET   0x00000010ull
#define CR0_PG   0x80000000ull
#define CR4_PAE  0x00000020ull
#define EFER_LME 0x00000100ull
#define EFER_LMA 0x00000400ull

static void *low_table_at(const GuestImage *image, uint64_t gpa, uint64_t len_bytes)
{
    void *table = guest_image_at(image, gpa, len_bytes);

    assert(table && gpa + len_bytes <= LAYOUT_LOW_RAM_END_GPA);
    return table;
}

unsigned boot_build_memmap(const GuestImage *image, MemmapEntry memmap[MEMMAP_MAX])
{
    unsigned n = 0;

    assert(image->low_bytes >= LAYOUT_KERNEL_MIN_GPA);
    assert(image->low_bytes <= LAYOUT_RAM_LOW_MAX_BYTES);
    memmap[n++] = (MemmapEntry){ 0, LAYOUT_LOW_RAM_END_GPA, MEMMAP_RAM };
    memmap[n++] = (MemmapEntry){ LAYOUT_LOW_RAM_END_GPA,
                                 LAYOUT_KERNEL_MIN_GPA - LAYOUT_LOW_RAM_END_GPA, MEMMAP_RESERVED };
    if (image->low_bytes > LAYOUT_KERNEL_MIN_GPA) {
        memmap[n++] = (MemmapEntry){ LAYOUT_KERNEL_MIN_GPA,
                                     image->low_bytes - LAYOUT_KERNEL_MIN_GPA, MEMMAP_RAM };
    }
    memmap[n++] = (MemmapEntry){ LAYOUT_ECAM_GPA, LAYOUT_ECAM_BYTES, MEMMAP_RESERVED };
    memmap[n++] =
        (MemmapEntry){ LAYOUT_KVM_RESERVED_GPA, LAYOUT_KVM_RESERVED_BYTES, MEMMAP_RESERVED };
    if (image->high_bytes) {
        memmap[n++] = (MemmapEntry){ LAYOUT_RAM_HIGH_GPA, image->high_bytes, MEMMAP_RAM };
    }
    return n;
}

void boot_write_params(const GuestImage *image, const BootHeader *header, const BootInfo *info)
{
    struct boot_params *params = low_table_at(image, LAYOUT_ZERO_PAGE_GPA, sizeof(*params));
    MemmapEntry memmap[MEMMAP_MAX];

    memset(params, 0, sizeof(*params));
    memcpy((uint8_t *)params + BOOT_HEADER_OFFSET, header->bytes, sizeof(header->bytes));
    params->hdr.type_of_loader = TYPE_OF_LOADER_UNDEFINED;
    params->hdr.cmd_line_ptr = LAYOUT_CMDLINE_GPA;
    params->hdr.ramdisk_image = info->initrd_bytes ? (uint32_t)info->initrd_gpa : 0;
    params->hdr.ramdisk_size = (uint32_t)info->initrd_bytes;
    params->acpi_rsdp_addr = info->rsdp_gpa;

    params->e820_entries = boot_build_memmap(image, memmap);
    for (unsigned i = 0; i < params->e820_entries; i++) {
        params->e820_table[i].addr = memmap[i].gpa;
        params->e820_table[i].size = memmap[i].len_bytes;
        params->e820_table[i].type = memmap[i].type;
    }
}

void boot_write_start_info(const GuestImage *image, const BootInfo *info)
{
    StartInfo *start = low_table_at(image, LAYOUT_START_INFO_GPA, PAGE_BYTES);
    StartInfoModule *module = low_table_at(image, START_INFO_MODULES_GPA, sizeof(*module));
    StartInfoMemmap *entry =
        low_table_at(image, START_INFO_MEMMAP_GPA, MEMMAP_MAX * sizeof(*entry));
    MemmapEntry memmap[MEMMAP_MAX];

    memset(start, 0, PAGE_BYTES);
    start->magic = START_INFO_MAGIC;
    start->version = START_INFO_VERSION;
    start->cmdline_gpa = LAYOUT_CMDLINE_GPA;
    start->rsdp_gpa = info->rsdp_gpa;
    if (info->initrd_bytes) {
        start->nb_modules = 1;
        start->modules_gpa = START_INFO_MODULES_GPA;
        module->gpa = info->initrd_gpa;
        module->len_bytes = info->initrd_bytes;
    }
    start->memmap_gpa = START_INFO_MEMMAP_GPA;
    start->nb_memmap = boot_build_memmap(image, memmap);
    for (unsigned i = 0; i < start->nb_memmap; i++) {
        entry[i] = (StartInfoMemmap){ .gpa = memmap[i].gpa,
                                      .len_bytes = memmap[i].len_bytes,
                                      .type = memmap[i].type };
    }
}

static void write_page_tables(const GuestImage *image)
{
    uint64_t directories_gpa = LAYOUT_PAGE_TABLES_GPA + 2 * PAGE_BYTES;
    uint64_t *pml4 = low_table_at(image, LAYOUT_PAGE_TABLES_GPA, (2 + NB_DIRECTORIES) * PAGE_BYTES);
    uint64_t *pdpt = pml4 + TABLE_ENTRIES;
    uint64_t *directory = pdpt + TABLE_ENTRIES;

    memset(pml4, 0, 2 * PAGE_BYTES);
    pml4[0] = (LAYOUT_PAGE_TABLES_GPA + PAGE_BYTES) | PTE_PRESENT | PTE_WRITE;
    for (unsigned i = 0; i < NB_DIRECTORIES; i++) {
        pdpt[i] = (directories_gpa + i * PAGE_BYTES) | PTE_PRESENT | PTE_WRITE;
    }
    for (unsigned i = 0; i < NB_DIRECTORIES * TABLE_ENTRIES; i++) {
        directory[i] = i * LARGE_PAGE | PTE_PRESENT | PTE_WRITE | PTE_LARGE;
    }
}

void boot_write_cpu_tables(const GuestImage *image, BootMode mode, BootEntry *ret_entry)
{
    uint64_t *gdt = low_table_at(image, LAYOUT_GDT_GPA, GDT_ENTRIES * sizeof(*gdt));

    memset(gdt, 0, GDT_ENTRIES * sizeof(*gdt));
    gdt[BOOT_CS_SELECTOR / 8] = mode == BOOT_LONG_MODE ? GDT_CODE64 : GDT_CODE32;
    gdt[BOOT_DS_SELECTOR / 8] = GDT_DATA;
    gdt[BOOT_TR_SELECTOR / 8] = GDT_TSS;

    *ret_entry = (BootEntry){
        .mode = mode,
        .cr0 = CR0_PE | CR0_ET,
        .gdt_gpa = LAYOUT_GDT_GPA,
        .gdt_limit = GDT_ENTRIES * sizeof(*gdt) - 1,
    };
    if (mode == BOOT_PROTECTED_MODE) {
        ret_entry->rbx = LAYOUT_START_INFO_GPA;
        return;
    }
    write_page_tables(image);
    ret_entry->rsi = LAYOUT_ZERO_PAGE_GPA;
    ret_entry->cr0 |= CR0_PG;
    ret_entry->cr3 = LAYOUT_PAGE_TABLES_GPA;
    ret_entry->cr4 = CR4_PAE;
    ret_entry->efer = EFER_LME | EFER_LMA;
}
