/*
 * Loaders: what a right kernel gets, and that no wrong one gets anything but its error. Guest RAM
 * ends at a page without access, so a byte too far is a crash.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "io/base/test.h"
#include "vmm/boot-info.h"
#include "vmm/layout.h"
#include "vmm/loader.h"
#include "vmm/tests/kernel-files.h"

#define PAGE_BYTES 4096u
#define MIB        (1024u * 1024u)
#define RAM_BYTES  (64ull * MIB)

static GuestImage image;
static KernelFile file;
static BootEntry entry;
static Error err;

static void setup_ram(uint64_t low_bytes)
{
    size_t mapped = ALIGN_UP(low_bytes, (uint64_t)PAGE_BYTES);
    uint8_t *hva = mmap(NULL, mapped + PAGE_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    ASSERT_TRUE(hva != MAP_FAILED);
    ASSERT_EQ(mprotect(hva + mapped, PAGE_BYTES, PROT_NONE), 0);
    if (image.hva_low) {
        munmap(image.hva_low, ALIGN_UP(image.low_bytes, (uint64_t)PAGE_BYTES) + PAGE_BYTES);
    }
    image = (GuestImage){ .hva_low = hva, .low_bytes = low_bytes };
}

/* A file in memory, and its name. */
static const char *make_file(char path[32], const void *bytes, size_t len_bytes)
{
    int fd = memfd_create("kernel", MFD_CLOEXEC);

    ASSERT_GE(fd, 0);
    ASSERT_EQ(write(fd, bytes, len_bytes), (ssize_t)len_bytes);
    snprintf(path, 32, "/proc/self/fd/%d", fd);
    return path;
}

static void drop_file(const char *path)
{
    close(atoi(path + strlen("/proc/self/fd/")));
}

static int load_params(const LoaderParams *params)
{
    err = (Error){ 0 };
    return loader_load(params, &image, &entry, &err);
}

static int load_path(const char *path)
{
    return load_params(&(LoaderParams){ .kernel_path = path, .rsdp_gpa = LAYOUT_ACPI_GPA });
}

/* Loads the first @len_bytes of file into fresh RAM. */
static int load_len(size_t len_bytes)
{
    char path[32];
    int r;

    setup_ram(RAM_BYTES);
    make_file(path, file.bytes, len_bytes);
    r = load_path(path);
    if (r < 0) {
        EXPECT_TRUE(strstr(err.msg, path) != NULL);
        EXPECT_EQ(err.code, r);
    }
    drop_file(path);
    return r;
}

static int load_file(void)
{
    return load_len(file.len_bytes);
}

/* The load fails with @code and a message that has @text in it. */
static void expect_refused(int line, int code, const char *text)
{
    int r = load_file();

    if (r != code || !strstr(err.msg, text)) {
        test_fail(__FILE__, line, "gave %d \"%s\", not %d \"...%s...\"", r, r < 0 ? err.msg : "",
                  code, text);
    }
}

#define EXPECT_REFUSED(code, text) expect_refused(__LINE__, code, text)

static const struct boot_params *boot_params(void)
{
    return (const struct boot_params *)(image.hva_low + LAYOUT_ZERO_PAGE_GPA);
}

static bool has_pattern(uint64_t gpa, size_t len_bytes)
{
    for (size_t i = 0; i < len_bytes; i++) {
        if (image.hva_low[gpa + i] != kernel_pattern(i)) {
            return false;
        }
    }
    return true;
}

static bool is_zero(uint64_t gpa, size_t len_bytes)
{
    for (size_t i = 0; i < len_bytes; i++) {
        if (image.hva_low[gpa + i]) {
            return false;
        }
    }
    return true;
}

/* --- files that are no kernel --- */

static void expect_path_refused(int line, const char *path, int code, const char *text)
{
    int r;

    setup_ram(RAM_BYTES);
    r = load_path(path);
    if (r != code || !strstr(err.msg, text) || !strstr(err.msg, "--kernel") ||
        !strstr(err.msg, path) || strchr(err.msg, '\n')) {
        test_fail(__FILE__, line, "gave %d \"%s\", not %d \"...%s...\"", r, r < 0 ? err.msg : "",
                  code, text);
    }
}

#define EXPECT_PATH_REFUSED(path, code, text) expect_path_refused(__LINE__, path, code, text)

TEST(front, paths_that_name_no_file_are_refused)
{
    char dir[] = "/tmp/penstock-loader-XXXXXX", fifo[64];

    ASSERT_TRUE(mkdtemp(dir) != NULL);
    snprintf(fifo, sizeof(fifo), "%s/fifo", dir);
    EXPECT_PATH_REFUSED(fifo, -ENOENT, "No such file");
    ASSERT_EQ(mkfifo(fifo, 0600), 0);
    EXPECT_PATH_REFUSED(fifo, -EINVAL, "not a regular file");
    unlink(fifo);
    EXPECT_PATH_REFUSED(dir, -EISDIR, "is a directory");
    rmdir(dir);
    EXPECT_PATH_REFUSED("/dev/zero", -EINVAL, "not a regular file");
}

static void expect_bytes_refused(int line, const void *bytes, size_t len_bytes, const char *text)
{
    char path[32];

    make_file(path, bytes, len_bytes);
    expect_path_refused(line, path, -EINVAL, text);
    drop_file(path);
}

#define EXPECT_BYTES_REFUSED(bytes, len, text) expect_bytes_refused(__LINE__, bytes, len, text)

TEST(front, contents_that_are_no_kernel_are_refused_by_what_they_are)
{
    static const char text[] = "#!/bin/sh\necho this is no kernel\n";
    uint8_t arm64[128] = "MZ";
    uint8_t noise[3000];

    kernel_fill_pattern(noise, sizeof(noise));
    memcpy(arm64 + 0x38, "ARM\x64", 4);
    EXPECT_BYTES_REFUSED("", 0, "is empty");
    EXPECT_BYTES_REFUSED(text, strlen(text), "text file");
    EXPECT_BYTES_REFUSED(noise, sizeof(noise), "unknown contents");
    EXPECT_BYTES_REFUSED(noise, 1, "unknown contents");
    EXPECT_BYTES_REFUSED(arm64, sizeof(arm64), "aarch64");
    EXPECT_BYTES_REFUSED("\x1f\x8b\x08\x00", 4, "gzip");
    EXPECT_BYTES_REFUSED("070701000", 9, "cpio");
    EXPECT_BYTES_REFUSED("MZ\0\0", 4, "truncated bzImage");
    EXPECT_BYTES_REFUSED("\x7f"
                         "ELF",
                         4, "truncated ELF");
}

TEST(front, reason_survives_a_path_of_any_length)
{
    char path[3000];

    memset(path, 'a', sizeof(path) - 1);
    path[sizeof(path) - 1] = '\0';
    setup_ram(RAM_BYTES);
    EXPECT_EQ(load_path(path), -ENAMETOOLONG);
    EXPECT_TRUE(strstr(err.msg, "too long") != NULL);
}

TEST(front, memory_below_one_mib_holds_no_kernel)
{
    setup_ram(LAYOUT_KERNEL_MIN_GPA - 1);
    EXPECT_EQ(load_path("/dev/null"), -E2BIG);
}

/* --- bzImage --- */

TEST(bzimage, right_one_is_loaded_as_the_boot_protocol_says)
{
    const struct boot_params *params;

    bzimage_make(&file);
    ASSERT_EQ(load_file(), 0);
    EXPECT_EQ(entry.mode, BOOT_LONG_MODE);
    EXPECT_EQ(entry.rip, BZIMAGE_PREF_GPA + 0x200);
    EXPECT_EQ(entry.rsi, LAYOUT_ZERO_PAGE_GPA);
    EXPECT_TRUE(has_pattern(BZIMAGE_PREF_GPA, BZIMAGE_CODE_BYTES));
    EXPECT_TRUE(is_zero(BZIMAGE_PREF_GPA + BZIMAGE_CODE_BYTES, PAGE_BYTES));

    params = boot_params();
    EXPECT_EQ(params->hdr.header, 0x53726448);
    EXPECT_EQ(params->hdr.version, 0x020f);
    EXPECT_EQ(params->hdr.type_of_loader, 0xff);
    EXPECT_EQ(params->hdr.cmd_line_ptr, LAYOUT_CMDLINE_GPA);
    EXPECT_EQ(params->hdr.ramdisk_size, 0);
    EXPECT_EQ(params->hdr.init_size, BZIMAGE_INIT_BYTES);
    EXPECT_EQ(params->hdr.code32_start, BZIMAGE_PREF_GPA);
    EXPECT_EQ(params->sentinel, 0);
    EXPECT_EQ(params->acpi_rsdp_addr, LAYOUT_ACPI_GPA);
    EXPECT_GE(params->e820_entries, 5);
}

TEST(bzimage, cut_off_anywhere_is_refused)
{
    bzimage_make(&file);
    ASSERT_EQ(load_file(), 0);
    for (size_t len = 0; len < file.len_bytes; len++) {
        ASSERT_EQ(load_len(len), -EINVAL);
        if (len >= 0x206) {
            ASSERT_TRUE(strstr(err.msg, "truncated") != NULL);
        }
    }
}

TEST(bzimage, bytes_behind_the_kernel_are_left_alone)
{
    bzimage_make(&file);
    memset(file.bytes + file.len_bytes, 0x5a, 3000);
    file.len_bytes += 3000;
    ASSERT_EQ(load_file(), 0);
    EXPECT_TRUE(is_zero(BZIMAGE_PREF_GPA + BZIMAGE_CODE_BYTES, PAGE_BYTES));
}

TEST(bzimage, header_fields_that_cannot_be_are_refused)
{
    struct setup_header *hdr = bzimage_header(&file);

    bzimage_make(&file);
    hdr->boot_flag = 0xaa54;
    EXPECT_REFUSED(-EINVAL, "damaged");
    bzimage_make(&file);
    hdr->jump = 0xeb | (0x263 - 0x202) << 8; /* the header ends before init_size does */
    EXPECT_REFUSED(-EINVAL, "damaged");
    bzimage_make(&file);
    hdr->version = 0x020b;
    EXPECT_REFUSED(-EINVAL, "2.11 is too old");
    bzimage_make(&file);
    hdr->xloadflags = XLF_CAN_BE_LOADED_ABOVE_4G;
    EXPECT_REFUSED(-EINVAL, "32-bit kernel");
    bzimage_make(&file);
    hdr->loadflags = 0;
    EXPECT_REFUSED(-EINVAL, "zImage");
    bzimage_make(&file);
    hdr->kernel_alignment = 0;
    EXPECT_REFUSED(-EINVAL, "alignment");
    bzimage_make(&file);
    hdr->kernel_alignment = 0x300000;
    EXPECT_REFUSED(-EINVAL, "alignment");
    bzimage_make(&file);
    hdr->syssize = 0x200 / 16; /* the entry would be behind the end */
    EXPECT_REFUSED(-EINVAL, "holds no kernel");
    bzimage_make(&file);
    hdr->syssize = UINT32_MAX;
    EXPECT_REFUSED(-EINVAL, "truncated");
    bzimage_make(&file);
    hdr->setup_sects = 255;
    EXPECT_REFUSED(-EINVAL, "truncated");
}

TEST(bzimage, addresses_outside_of_ram_are_refused)
{
    struct setup_header *hdr = bzimage_header(&file);

    static const uint64_t far[] = {
        RAM_BYTES - 0x100000, RAM_BYTES,          0xfffff000ull, 0x100000000ull,
        0x7ffffffffffff000,   UINT64_MAX - 0xfff, UINT64_MAX
    };

    for (size_t i = 0; i < ARRAY_SIZE(far); i++) {
        for (uint8_t relocatable = 0; relocatable < 2; relocatable++) {
            bzimage_make(&file);
            hdr->pref_address = far[i];
            hdr->relocatable_kernel = relocatable;
            EXPECT_REFUSED(-E2BIG, "--memory");
        }
    }
    bzimage_make(&file);
    hdr->pref_address = 0x9000;
    hdr->relocatable_kernel = 0;
    EXPECT_REFUSED(-EINVAL, "below 1 MiB");
    bzimage_make(&file);
    hdr->kernel_alignment = 0x80000000;
    EXPECT_REFUSED(-E2BIG, "--memory");
    bzimage_make(&file);
    hdr->init_size = UINT32_MAX;
    EXPECT_REFUSED(-E2BIG, "--memory");
}

TEST(bzimage, init_size_may_reach_the_end_of_ram_and_not_beyond)
{
    bzimage_make(&file);
    bzimage_header(&file)->init_size = RAM_BYTES - BZIMAGE_PREF_GPA;
    EXPECT_EQ(load_file(), 0);
    bzimage_header(&file)->init_size++;
    EXPECT_REFUSED(-E2BIG, "--memory");
}

TEST(bzimage, code_larger_than_init_size_still_has_to_fit)
{
    bzimage_make(&file);
    bzimage_header(&file)->init_size = 0;
    bzimage_header(&file)->relocatable_kernel = 0;
    bzimage_header(&file)->pref_address = RAM_BYTES - BZIMAGE_CODE_BYTES;
    EXPECT_EQ(load_file(), 0);
    bzimage_header(&file)->pref_address++;
    EXPECT_REFUSED(-E2BIG, "--memory");
}

TEST(bzimage, relocatable_one_runs_at_an_aligned_address_from_1_mib_on)
{
    bzimage_make(&file);
    bzimage_header(&file)->pref_address = 0;
    ASSERT_EQ(load_file(), 0);
    EXPECT_EQ(entry.rip, 0x200000 + 0x200);
    bzimage_header(&file)->pref_address = 0x200001;
    ASSERT_EQ(load_file(), 0);
    EXPECT_EQ(entry.rip, 0x400000 + 0x200);
    EXPECT_TRUE(has_pattern(0x400000, BZIMAGE_CODE_BYTES));
}

TEST(bzimage, no_setup_sectors_means_four)
{
    bzimage_make(&file);
    bzimage_header(&file)->setup_sects = 0;
    memset(file.bytes + BZIMAGE_SETUP, 0, BZIMAGE_CODE_BYTES);
    kernel_fill_pattern(file.bytes + 5 * 512, BZIMAGE_CODE_BYTES);
    file.len_bytes = 5 * 512 + BZIMAGE_CODE_BYTES;
    ASSERT_EQ(load_file(), 0);
    EXPECT_TRUE(has_pattern(BZIMAGE_PREF_GPA, BZIMAGE_CODE_BYTES));
}

TEST(bzimage, header_is_copied_as_far_as_boot_params_have_room)
{
    bzimage_make(&file);
    memset(file.bytes + BZIMAGE_HEADER_END, 0x77, BZIMAGE_SETUP - BZIMAGE_HEADER_END);
    ASSERT_EQ(load_file(), 0);
    EXPECT_TRUE(is_zero(LAYOUT_ZERO_PAGE_GPA + BZIMAGE_HEADER_END, 0x2d0 - BZIMAGE_HEADER_END));

    bzimage_header(&file)->jump = 0xeb | 0xff << 8;
    ASSERT_EQ(load_file(), 0);
    EXPECT_EQ(image.hva_low[LAYOUT_ZERO_PAGE_GPA + 0x28f], 0x77);
    EXPECT_TRUE(is_zero(LAYOUT_ZERO_PAGE_GPA + 0x290, 0x2d0 - 0x290));
}

/* --- ELF --- */

TEST(elf, vmlinux_without_pvh_note_starts_in_long_mode)
{
    elf_make(&file);
    ASSERT_EQ(load_file(), 0);
    EXPECT_EQ(entry.mode, BOOT_LONG_MODE);
    EXPECT_EQ(entry.rip, ELF_ENTRY64_GPA);
    EXPECT_EQ(entry.rsi, LAYOUT_ZERO_PAGE_GPA);
    EXPECT_TRUE(has_pattern(ELF_CODE_GPA, ELF_CODE_BYTES));
    EXPECT_TRUE(has_pattern(ELF_DATA_GPA, ELF_DATA_BYTES));
    EXPECT_TRUE(is_zero(ELF_DATA_GPA + ELF_DATA_BYTES, ELF_DATA_MEMORY));
    EXPECT_EQ(boot_params()->hdr.header, 0x53726448);
    EXPECT_EQ(boot_params()->hdr.boot_flag, 0xaa55);
    EXPECT_EQ(boot_params()->hdr.type_of_loader, 0xff);
    EXPECT_EQ(boot_params()->hdr.cmd_line_ptr, LAYOUT_CMDLINE_GPA);
    EXPECT_GE(boot_params()->e820_entries, 5);
}

TEST(elf, pvh_note_of_either_size_and_alignment_decides_the_entry)
{
    uint32_t entry32 = ELF_PVH_GPA;
    uint64_t entry64 = ELF_PVH_GPA;

    for (int variant = 0; variant < 4; variant++) {
        size_t align = variant & 1 ? 8 : 4;

        elf_make(&file);
        elf_phdr(&file, ELF_NOTE)->p_filesz = 0;
        elf_add_note(&file, "GNU", 18, "12345678901234567890", 20, align);
        if (variant & 2) {
            elf_add_note(&file, "Xen", 18, &entry32, sizeof(entry32), align);
        } else {
            elf_add_note(&file, "Xen", 18, &entry64, sizeof(entry64), align);
        }
        ASSERT_EQ(load_file(), 0);
        EXPECT_EQ(entry.mode, BOOT_PROTECTED_MODE);
        EXPECT_EQ(entry.rip, ELF_PVH_GPA);
        EXPECT_EQ(entry.rbx, LAYOUT_START_INFO_GPA);
        EXPECT_EQ(entry.rsi, 0);
    }
}

static uint64_t start_info(uint32_t offset, unsigned len_bytes)
{
    uint64_t value = 0;

    memcpy(&value, image.hva_low + LAYOUT_START_INFO_GPA + offset, len_bytes);
    return value;
}

TEST(elf, start_info_is_of_version_1_with_a_memory_map)
{
    uint64_t gpa, total = 0;

    elf_make_pvh(&file);
    ASSERT_EQ(load_file(), 0);
    EXPECT_EQ(start_info(0, 4), 0x336ec578);
    EXPECT_EQ(start_info(4, 4), 1);
    EXPECT_EQ(start_info(8, 4), 0);
    EXPECT_EQ(start_info(12, 4), 0);
    EXPECT_EQ(start_info(16, 8), 0);
    EXPECT_EQ(start_info(24, 8), LAYOUT_CMDLINE_GPA);
    EXPECT_EQ(start_info(32, 8), LAYOUT_ACPI_GPA);
    ASSERT_GE(start_info(48, 4), 5);
    gpa = start_info(40, 8);
    for (uint64_t i = 0; i < start_info(48, 4); i++) {
        uint64_t len;
        uint32_t type;

        memcpy(&len, image.hva_low + gpa + i * 24 + 8, 8);
        memcpy(&type, image.hva_low + gpa + i * 24 + 16, 4);
        total += type == MEMMAP_RAM ? len : 0;
    }
    EXPECT_EQ(total, RAM_BYTES - LAYOUT_KERNEL_MIN_GPA + LAYOUT_LOW_RAM_END_GPA);
}

TEST(elf, cut_off_anywhere_is_refused)
{
    elf_make_pvh(&file);
    ASSERT_EQ(load_file(), 0);
    for (size_t len = 0; len < file.len_bytes; len++) {
        ASSERT_EQ(load_len(len), -EINVAL);
        if (len >= 4) {
            ASSERT_TRUE(strstr(err.msg, "truncated") != NULL);
        }
    }
}

TEST(elf, foreign_and_odd_headers_are_refused)
{
    Elf64_Ehdr *ehdr = elf_ehdr(&file);

    elf_make(&file);
    ehdr->e_ident[EI_CLASS] = ELFCLASS32;
    EXPECT_REFUSED(-EINVAL, "32-bit ELF");
    elf_make(&file);
    ehdr->e_ident[EI_CLASS] = 9;
    EXPECT_REFUSED(-EINVAL, "unknown class");
    elf_make(&file);
    ehdr->e_ident[EI_DATA] = ELFDATA2MSB;
    EXPECT_REFUSED(-EINVAL, "big-endian");
    elf_make(&file);
    ehdr->e_machine = EM_AARCH64;
    EXPECT_REFUSED(-EINVAL, "aarch64");
    elf_make(&file);
    ehdr->e_machine = EM_386;
    EXPECT_REFUSED(-EINVAL, "another architecture");
    elf_make(&file);
    ehdr->e_type = ET_DYN;
    EXPECT_REFUSED(-EINVAL, "not a kernel");
    elf_make(&file);
    ehdr->e_type = ET_REL;
    EXPECT_REFUSED(-EINVAL, "object file");
    elf_make(&file);
    ehdr->e_phnum = 0;
    EXPECT_REFUSED(-EINVAL, "0 program headers");
    elf_make(&file);
    ehdr->e_phnum = 129;
    EXPECT_REFUSED(-EINVAL, "129 program headers");
    elf_make(&file);
    ehdr->e_phnum = 0xffff;
    EXPECT_REFUSED(-EINVAL, "65535 program headers");
    elf_make(&file);
    ehdr->e_phentsize = 55;
    EXPECT_REFUSED(-EINVAL, "of 55 bytes");
    elf_make(&file);
    ehdr->e_phoff = UINT64_MAX - 10;
    EXPECT_REFUSED(-EINVAL, "program header table");
    elf_make(&file);
    ehdr->e_phoff = file.len_bytes - 10;
    EXPECT_REFUSED(-EINVAL, "truncated");
}

TEST(elf, segments_that_reach_out_of_the_file_are_refused)
{
    Elf64_Phdr *phdr = elf_phdr(&file, ELF_DATA);

    elf_make(&file);
    phdr->p_offset = UINT64_MAX - 1;
    EXPECT_REFUSED(-EINVAL, "segment 1");
    elf_make(&file);
    phdr->p_offset = file.len_bytes - ELF_DATA_BYTES + 1;
    EXPECT_REFUSED(-EINVAL, "truncated");
    elf_make(&file);
    phdr->p_filesz = phdr->p_memsz = UINT64_MAX;
    EXPECT_REFUSED(-EINVAL, "segment 1");
    elf_make(&file);
    phdr->p_filesz = phdr->p_memsz + 1;
    file.len_bytes = KERNEL_FILE_MAX_BYTES;
    EXPECT_REFUSED(-EINVAL, "more bytes in the file than in memory");
}

TEST(elf, segments_that_reach_out_of_ram_are_refused)
{
    Elf64_Phdr *phdr = elf_phdr(&file, ELF_DATA);

    static const struct {
        uint64_t gpa, memory_bytes;
    } far[] = {
        { RAM_BYTES - ELF_DATA_MEMORY + 1, ELF_DATA_MEMORY },
        { RAM_BYTES, ELF_DATA_MEMORY },
        { LAYOUT_ECAM_GPA, ELF_DATA_MEMORY },
        { LAYOUT_RAM_HIGH_GPA, ELF_DATA_MEMORY },
        { UINT64_MAX - 0xfff, ELF_DATA_MEMORY }, /* wraps around to a small number */
        { UINT64_MAX, ELF_DATA_MEMORY },
        { ELF_DATA_GPA, UINT64_MAX },
        { ELF_DATA_GPA, UINT64_MAX - ELF_DATA_GPA + 1 },
        { ELF_DATA_GPA, RAM_BYTES },
    };

    for (size_t i = 0; i < ARRAY_SIZE(far); i++) {
        elf_make(&file);
        phdr->p_paddr = far[i].gpa;
        phdr->p_memsz = far[i].memory_bytes;
        EXPECT_REFUSED(-E2BIG, "outside of memory");
    }
    elf_make(&file);
    phdr->p_paddr = RAM_BYTES - ELF_DATA_MEMORY;
    EXPECT_EQ(load_file(), 0);
}

TEST(elf, segments_over_the_tables_or_each_other_are_refused)
{
    static const uint64_t low[] = { 0, LAYOUT_ZERO_PAGE_GPA, LAYOUT_ACPI_GPA,
                                    LAYOUT_KERNEL_MIN_GPA - 1 };
    Elf64_Phdr *phdr = elf_phdr(&file, ELF_DATA);

    for (size_t i = 0; i < ARRAY_SIZE(low); i++) {
        elf_make(&file);
        phdr->p_paddr = low[i];
        EXPECT_REFUSED(-EINVAL, "below 1 MiB");
    }
    elf_make(&file);
    phdr->p_paddr = ELF_CODE_GPA + ELF_CODE_BYTES - 1;
    EXPECT_REFUSED(-EINVAL, "overlaps");
    phdr->p_paddr = ELF_CODE_GPA - ELF_DATA_MEMORY + 1;
    EXPECT_REFUSED(-EINVAL, "overlaps");
    phdr->p_paddr = ELF_CODE_GPA + 1;
    EXPECT_REFUSED(-EINVAL, "overlaps");
    phdr->p_paddr = ELF_CODE_GPA + ELF_CODE_BYTES;
    EXPECT_EQ(load_file(), 0);
    phdr->p_paddr = ELF_CODE_GPA - ELF_DATA_MEMORY;
    EXPECT_EQ(load_file(), 0);
}

TEST(elf, nothing_to_load_is_refused)
{
    elf_make(&file);
    elf_phdr(&file, ELF_CODE)->p_type = PT_NULL;
    elf_phdr(&file, ELF_DATA)->p_memsz = 0;
    EXPECT_REFUSED(-EINVAL, "nothing to load");
}

TEST(elf, entries_outside_of_loaded_segments_are_refused)
{
    static const uint64_t bad[] = { 0, ELF_CODE_GPA - 1, ELF_CODE_GPA + ELF_CODE_BYTES,
                                    0xffffffff80000000ull + ELF_ENTRY64_GPA, UINT64_MAX };

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        elf_make(&file);
        elf_ehdr(&file)->e_entry = bad[i];
        EXPECT_REFUSED(-EINVAL, "64-bit entry");
        elf_make(&file);
        elf_add_note(&file, "Xen", 18, &bad[i], 8, 4);
        EXPECT_REFUSED(-EINVAL, "PVH entry");
    }
}

TEST(elf, damaged_notes_are_refused)
{
    Elf64_Phdr *note = elf_phdr(&file, ELF_NOTE);
    uint8_t long_desc[12] = { 0 };
    Elf64_Nhdr *nhdr;

    nhdr = (Elf64_Nhdr *)(file.bytes + elf_make_pvh(&file));
    nhdr->n_namesz = UINT32_MAX;
    EXPECT_REFUSED(-EINVAL, "a note reaches out");
    nhdr = (Elf64_Nhdr *)(file.bytes + elf_make_pvh(&file));
    nhdr->n_descsz = UINT32_MAX;
    EXPECT_REFUSED(-EINVAL, "a note reaches out");
    nhdr = (Elf64_Nhdr *)(file.bytes + elf_make_pvh(&file));
    nhdr->n_descsz = 9;
    EXPECT_REFUSED(-EINVAL, "a note reaches out");
    elf_make(&file);
    elf_add_note(&file, "Xen", 18, long_desc, sizeof(long_desc), 4);
    EXPECT_REFUSED(-EINVAL, "12 bytes");
    elf_make_pvh(&file);
    note->p_filesz = 65537;
    EXPECT_REFUSED(-EINVAL, "65537 bytes of notes");
    elf_make_pvh(&file);
    note->p_filesz = 60000;
    EXPECT_REFUSED(-EINVAL, "truncated");
    elf_make_pvh(&file);
    note->p_offset = UINT64_MAX - 5;
    EXPECT_REFUSED(-EINVAL, "segment 2");
}

TEST(elf, last_note_need_not_be_padded)
{
    elf_make(&file);
    elf_add_note(&file, "GNU", 3, "1234567", 7, 4);
    elf_phdr(&file, ELF_NOTE)->p_filesz--;
    EXPECT_EQ(load_file(), 0);
}

TEST(elf, notes_of_others_do_not_make_it_pvh)
{
    uint64_t pvh = ELF_PVH_GPA;
    size_t at;

    elf_make(&file);
    at = elf_add_note(&file, "Xenlong", 18, &pvh, sizeof(pvh), 4);
    file.bytes[at + sizeof(Elf64_Nhdr) + 3] = '\0';
    elf_add_note(&file, "Xeo", 18, &pvh, sizeof(pvh), 4);
    elf_add_note(&file, "Xen", 17, &pvh, sizeof(pvh), 4);
    elf_add_note(&file, "", 18, &pvh, sizeof(pvh), 4);
    elf_phdr(&file, ELF_NOTE)->p_filesz += 5; /* less than a header is left over */
    file.len_bytes += 5;
    ASSERT_EQ(load_file(), 0);
    EXPECT_EQ(entry.mode, BOOT_LONG_MODE);
}

/* --- initrd and command line --- */

/* Loads file with an initrd of @len_bytes of pattern. */
static int load_with_initrd(size_t len_bytes)
{
    char kernel_path[32], initrd_path[32];
    uint8_t *bytes = malloc(len_bytes);
    int r;

    setup_ram(RAM_BYTES);
    kernel_fill_pattern(bytes, len_bytes);
    make_file(kernel_path, file.bytes, file.len_bytes);
    make_file(initrd_path, bytes, len_bytes);
    free(bytes);
    r = load_params(&(LoaderParams){ .kernel_path = kernel_path, .initrd_path = initrd_path });
    if (r < 0) {
        EXPECT_TRUE(strstr(err.msg, "--initrd") != NULL);
        EXPECT_TRUE(strstr(err.msg, initrd_path) != NULL);
    }
    drop_file(kernel_path);
    drop_file(initrd_path);
    return r;
}

TEST(initrd, lies_in_whole_pages_at_the_top_of_ram)
{
    bzimage_make(&file);
    ASSERT_EQ(load_with_initrd(5000), 0);
    EXPECT_EQ(boot_params()->hdr.ramdisk_image, RAM_BYTES - 2 * PAGE_BYTES);
    EXPECT_EQ(boot_params()->hdr.ramdisk_size, 5000);
    EXPECT_TRUE(has_pattern(RAM_BYTES - 2 * PAGE_BYTES, 5000));
}

TEST(initrd, stays_below_the_address_that_the_kernel_names)
{
    bzimage_make(&file);
    bzimage_header(&file)->initrd_addr_max = 0x1ffffff;
    ASSERT_EQ(load_with_initrd(PAGE_BYTES), 0);
    EXPECT_EQ(boot_params()->hdr.ramdisk_image, 0x2000000 - PAGE_BYTES);
    bzimage_header(&file)->initrd_addr_max = 0x1fffffe;
    ASSERT_EQ(load_with_initrd(PAGE_BYTES), 0);
    EXPECT_EQ(boot_params()->hdr.ramdisk_image, 0x2000000 - 2 * PAGE_BYTES);
    bzimage_header(&file)->initrd_addr_max = UINT32_MAX;
    ASSERT_EQ(load_with_initrd(PAGE_BYTES), 0);
    EXPECT_EQ(boot_params()->hdr.ramdisk_image, RAM_BYTES - PAGE_BYTES);
    bzimage_header(&file)->initrd_addr_max = 0;
    EXPECT_EQ(load_with_initrd(1), -E2BIG);
}

TEST(initrd, may_fill_what_the_kernel_leaves_and_not_more)
{
    size_t room = RAM_BYTES - BZIMAGE_PREF_GPA - BZIMAGE_INIT_BYTES;

    bzimage_make(&file);
    ASSERT_EQ(load_with_initrd(room), 0);
    EXPECT_EQ(boot_params()->hdr.ramdisk_image, BZIMAGE_PREF_GPA + BZIMAGE_INIT_BYTES);
    EXPECT_TRUE(has_pattern(BZIMAGE_PREF_GPA, BZIMAGE_CODE_BYTES));
    EXPECT_EQ(load_with_initrd(room + 1), -E2BIG);
    EXPECT_TRUE(strstr(err.msg, "--memory") != NULL);

    elf_make_pvh(&file);
    room = RAM_BYTES - ELF_DATA_GPA - ELF_DATA_MEMORY;
    ASSERT_EQ(load_with_initrd(room), 0);
    EXPECT_EQ(start_info(12, 4), 1);
    EXPECT_EQ(load_with_initrd(room + 1), -E2BIG);
}

TEST(initrd, is_the_one_module_of_a_pvh_kernel)
{
    uint64_t module[4];

    elf_make_pvh(&file);
    ASSERT_EQ(load_with_initrd(5000), 0);
    ASSERT_EQ(start_info(12, 4), 1);
    memcpy(module, image.hva_low + start_info(16, 8), sizeof(module));
    EXPECT_EQ(module[0], RAM_BYTES - 2 * PAGE_BYTES);
    EXPECT_EQ(module[1], 5000);
    EXPECT_EQ(module[2], 0);
    EXPECT_TRUE(has_pattern(module[0], 5000));
}

/* --- RAM that is a file --- */

#define ODD_INITRD_BYTES (300 * 1024 + 123)

/* Pages of zeroes, pages with one byte that is none, full pages; more than the loader's buffer. */
static void fill_odd_initrd(uint8_t *bytes)
{
    memset(bytes, 0, ODD_INITRD_BYTES);
    for (size_t page = 0; page * PAGE_BYTES < ODD_INITRD_BYTES; page++) {
        uint8_t *at = bytes + page * PAGE_BYTES;
        size_t len_bytes = MIN(ODD_INITRD_BYTES - page * PAGE_BYTES, (size_t)PAGE_BYTES);

        if (page % 4 == 1) {
            kernel_fill_pattern(at, len_bytes);
        } else if (page % 4 == 2) {
            at[page % 8 == 2 ? 0 : len_bytes - 1] = 1;
        }
    }
}

static void setup_ram_in_a_file(void)
{
    int fd = memfd_create("ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    ASSERT_EQ(ftruncate(fd, RAM_BYTES), 0);
    uint8_t *hva = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    ASSERT_TRUE(hva != MAP_FAILED);
    image = (GuestImage){ .hva_low = hva, .low_bytes = RAM_BYTES, .has_file = true, .fd = fd };
}

TEST(ram_file, holds_what_plain_memory_would_without_pages_of_zeroes)
{
    static uint8_t initrd[ODD_INITRD_BYTES];
    char kernel_path[32], initrd_path[32];
    LoaderParams params = { .kernel_path = kernel_path, .initrd_path = initrd_path };
    struct stat st;

    elf_make(&file);
    elf_phdr(&file, ELF_DATA)->p_paddr += 4000; /* over the end of a page */
    fill_odd_initrd(initrd);
    make_file(kernel_path, file.bytes, file.len_bytes);
    make_file(initrd_path, initrd, sizeof(initrd));
    setup_ram(RAM_BYTES);
    ASSERT_EQ(load_params(&params), 0);
    uint8_t *plain = image.hva_low;

    setup_ram_in_a_file();
    ASSERT_EQ(load_params(&params), 0);
    ASSERT_EQ(fstat(image.fd, &st), 0);
    EXPECT_EQ(memcmp(plain, image.hva_low, RAM_BYTES), 0);
    /* 38 of the initrd's 76 pages, 3 of the kernel, and few tables */
    EXPECT_LE(st.st_blocks * 512 / PAGE_BYTES, 38 + 3 + 12);
}

TEST(ram_file, that_takes_no_more_is_an_error_that_names_the_file)
{
    char path[32];

    elf_make(&file);
    make_file(path, file.bytes, file.len_bytes);
    setup_ram_in_a_file();
    ASSERT_EQ(fcntl(image.fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), 0);
    EXPECT_EQ(load_path(path), -EPERM);
    EXPECT_TRUE(strstr(err.msg, path) && strstr(err.msg, "guest RAM"));
}

TEST(initrd, that_is_missing_or_a_directory_is_named)
{
    char path[32];

    bzimage_make(&file);
    setup_ram(RAM_BYTES);
    make_file(path, file.bytes, file.len_bytes);
    EXPECT_EQ(load_params(&(LoaderParams){ .kernel_path = path, .initrd_path = "/nonexistent" }),
              -ENOENT);
    EXPECT_TRUE(strstr(err.msg, "--initrd '/nonexistent'") != NULL);
    EXPECT_EQ(load_params(&(LoaderParams){ .kernel_path = path, .initrd_path = "/" }), -EISDIR);
    EXPECT_TRUE(strstr(err.msg, "--initrd '/'") != NULL);
}

static int load_with_cmdline(size_t len)
{
    static char cmdline[LAYOUT_CMDLINE_BYTES + 1];
    char path[32];
    int r;

    memset(cmdline, 'x', len);
    cmdline[len] = '\0';
    setup_ram(RAM_BYTES);
    make_file(path, file.bytes, file.len_bytes);
    r = load_params(&(LoaderParams){ .kernel_path = path, .cmdline = cmdline });
    drop_file(path);
    if (r == 0) {
        EXPECT_EQ(strlen((char *)image.hva_low + LAYOUT_CMDLINE_GPA), len);
    } else {
        EXPECT_TRUE(strstr(err.msg, "--append") != NULL);
    }
    return r;
}

TEST(cmdline, may_be_as_long_as_the_kernel_takes)
{
    bzimage_make(&file);
    EXPECT_EQ(load_with_cmdline(0), 0);
    EXPECT_EQ(load_with_cmdline(2047), 0);
    EXPECT_EQ(load_with_cmdline(2048), -E2BIG);
    bzimage_header(&file)->cmdline_size = 100;
    EXPECT_EQ(load_with_cmdline(101), -E2BIG);
    bzimage_header(&file)->cmdline_size = UINT32_MAX;
    EXPECT_EQ(load_with_cmdline(LAYOUT_CMDLINE_BYTES - 1), 0);
    EXPECT_EQ(load_with_cmdline(LAYOUT_CMDLINE_BYTES), -E2BIG);
    elf_make(&file);
    EXPECT_EQ(load_with_cmdline(2047), 0);
    EXPECT_EQ(load_with_cmdline(2048), -E2BIG);
}

/* --- tables for the first vCPU --- */

static uint64_t read_u64(uint64_t gpa)
{
    uint64_t value;

    memcpy(&value, image.hva_low + gpa, sizeof(value));
    return value;
}

/* Walks the page tables; the result has to be a large page. */
static uint64_t translate(uint64_t address)
{
    uint64_t table = entry.cr3, pte;

    for (unsigned shift = 39; shift >= 30; shift -= 9) {
        pte = read_u64(table + (address >> shift & 511) * 8);
        ASSERT_EQ(pte & 0x83, 0x03);
        table = pte & ~0xfffull;
    }
    pte = read_u64(table + (address >> 21 & 511) * 8);
    ASSERT_EQ(pte & 0x83, 0x83);
    return (pte & ~0x1fffffull) + (address & 0x1fffff);
}

TEST(cpu, long_mode_maps_the_first_4_gib_one_to_one)
{
    bzimage_make(&file);
    ASSERT_EQ(load_file(), 0);
    EXPECT_EQ(entry.cr0, 0x80000011);
    EXPECT_EQ(entry.cr4, 0x20);
    EXPECT_EQ(entry.efer, 0x500);
    for (uint64_t address = 0; address < 1ull << 32; address += 0x1ff123) {
        ASSERT_EQ(translate(address), address);
    }
    EXPECT_EQ(read_u64(entry.cr3 + 8), 0);
    EXPECT_EQ(read_u64((read_u64(entry.cr3) & ~0xfffull) + 4 * 8), 0);
}

TEST(cpu, gdt_has_the_selectors_of_the_boot_protocol)
{
    uint64_t code, data;

    bzimage_make(&file);
    ASSERT_EQ(load_file(), 0);
    EXPECT_GE(entry.gdt_limit, BOOT_TR_SELECTOR + 15);
    EXPECT_EQ(read_u64(entry.gdt_gpa), 0);
    code = read_u64(entry.gdt_gpa + BOOT_CS_SELECTOR);
    data = read_u64(entry.gdt_gpa + BOOT_DS_SELECTOR);
    EXPECT_EQ(code >> 40 & 0x9b, 0x9b); /* present, code, readable */
    EXPECT_EQ(code >> 53 & 0x3, 0x1);   /* L set, D clear */
    EXPECT_EQ(data >> 40 & 0x9f, 0x93); /* present, data, writable */
    EXPECT_EQ(data & 0xffff, 0xffff);   /* limit 4 GiB in pages */
    EXPECT_EQ(data >> 48 & 0xcf, 0xcf);

    elf_make_pvh(&file);
    ASSERT_EQ(load_file(), 0);
    code = read_u64(entry.gdt_gpa + BOOT_CS_SELECTOR);
    EXPECT_EQ(code >> 53 & 0x3, 0x2); /* L clear, D set */
    EXPECT_EQ(code >> 48 & 0x8f, 0x8f);
    EXPECT_EQ(read_u64(entry.gdt_gpa + BOOT_TR_SELECTOR), 0x00008b0000000067);
    EXPECT_EQ(entry.cr0, 0x11);
    EXPECT_EQ(entry.cr3, 0);
    EXPECT_EQ(entry.cr4, 0);
    EXPECT_EQ(entry.efer, 0);
}

TEST(memmap, is_ascending_and_leaves_the_devices_out)
{
    static const struct {
        uint64_t low, high;
    } sizes[] = {
        { LAYOUT_KERNEL_MIN_GPA, 0 },
        { RAM_BYTES, 0 },
        { LAYOUT_RAM_LOW_MAX_BYTES, 0 },
        { LAYOUT_RAM_LOW_MAX_BYTES, 1ull << 40 },
    };

    for (size_t s = 0; s < ARRAY_SIZE(sizes); s++) {
        GuestImage ram = { .low_bytes = sizes[s].low, .high_bytes = sizes[s].high };
        MemmapEntry memmap[MEMMAP_MAX];
        unsigned n = boot_build_memmap(&ram, memmap);
        uint64_t end = 0, total = 0;
        bool ecam_reserved = false;

        ASSERT_LE(n, MEMMAP_MAX);
        for (unsigned i = 0; i < n; i++) {
            EXPECT_GE(memmap[i].gpa, end);
            EXPECT_GT(memmap[i].len_bytes, 0);
            end = memmap[i].gpa + memmap[i].len_bytes;
            total += memmap[i].type == MEMMAP_RAM ? memmap[i].len_bytes : 0;
            ecam_reserved |= memmap[i].type == MEMMAP_RESERVED &&
                             memmap[i].gpa == LAYOUT_ECAM_GPA &&
                             memmap[i].len_bytes == LAYOUT_ECAM_BYTES;
        }
        EXPECT_TRUE(ecam_reserved);
        EXPECT_EQ(total,
                  sizes[s].low + sizes[s].high - (LAYOUT_KERNEL_MIN_GPA - LAYOUT_LOW_RAM_END_GPA));
    }
}

TEST_MAIN()
