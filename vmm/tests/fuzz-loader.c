/*
 * Fuzzer of the loaders: the input is a kernel file, which is loaded as the initrd as well
 *
 * With libFuzzer:
 *     clang -fsanitize=fuzzer,address,undefined -g -D_GNU_SOURCE -I. -o fuzz-loader \
 *         vmm/tests/fuzz-loader.c vmm/loader*.c vmm/boot-info.c io/base/error.c
 *     ./fuzz-loader -max_len=4096 vmm/tests/corpus-loader
 *
 * With FUZZ_CORPUS_DIR defined it is an ordinary test: it replays that corpus, every file as it is,
 * cut off at every third length of its headers, and with each byte of these changed in two ways.
 *
 * What has to hold, whatever the input:
 * 1. Nothing outside of guest RAM is touched, nor what layout.h leaves free below 1 MiB: those
 *    pages have no access rights. AddressSanitizer sees the rest.
 * 2. The work is bounded: a run that hangs is killed.
 * 3. A failure says why; after a success the entry is in RAM, and the initrd is whole and over
 *    nothing of the kernel.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "vmm/layout.h"
#include "vmm/loader.h"

#include <asm/bootparam.h>

#define PAGE_BYTES 4096u

/* Small enough that images reach its end: 16 MiB, where a kernel likes to be, and a little. */
#define RAM_BYTES ((17ull << 20) + 5 * PAGE_BYTES)

#define CHECK(condition)                                                    \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "fuzz-loader: %s does not hold\n", #condition); \
            abort();                                                        \
        }                                                                   \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes);

static GuestImage image;
static int file_fd = -1;
static char file_path[32];

static void forbid(uint64_t gpa, uint64_t end_gpa)
{
    CHECK(mprotect(image.hva_low + gpa, end_gpa - gpa, PROT_NONE) == 0);
}

static void setup_once(void)
{
    if (image.hva_low) {
        return;
    }
    image.hva_low = mmap(NULL, RAM_BYTES + PAGE_BYTES, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(image.hva_low != MAP_FAILED);
    forbid(RAM_BYTES, RAM_BYTES + PAGE_BYTES);
    forbid(0, LAYOUT_GDT_GPA);
    forbid(LAYOUT_ZERO_PAGE_GPA + PAGE_BYTES, LAYOUT_PAGE_TABLES_GPA);
    forbid(LAYOUT_CMDLINE_GPA + LAYOUT_CMDLINE_BYTES, LAYOUT_KERNEL_MIN_GPA);
    image.low_bytes = RAM_BYTES;
    file_fd = memfd_create("fuzz-loader", MFD_CLOEXEC);
    CHECK(file_fd >= 0);
    snprintf(file_path, sizeof(file_path), "/proc/self/fd/%d", file_fd);
}

static uint64_t get(uint64_t gpa, unsigned len_bytes)
{
    uint64_t value = 0;

    memcpy(&value, image.hva_low + gpa, len_bytes);
    return value;
}

/* Returns where it is. */
static uint64_t check_initrd(const BootEntry *entry, const uint8_t *data, size_t len_bytes)
{
    uint64_t gpa, len;

    if (entry->mode == BOOT_LONG_MODE) {
        const struct boot_params *params =
            (const struct boot_params *)(image.hva_low + LAYOUT_ZERO_PAGE_GPA);

        gpa = params->hdr.ramdisk_image;
        len = params->hdr.ramdisk_size;
    } else {
        uint64_t modules_gpa = get(LAYOUT_START_INFO_GPA + 16, 8);

        CHECK(get(LAYOUT_START_INFO_GPA + 12, 4) == 1);
        gpa = get(modules_gpa, 8);
        len = get(modules_gpa + 8, 8);
    }
    CHECK(len == len_bytes);
    CHECK(gpa % PAGE_BYTES == 0 && gpa >= LAYOUT_KERNEL_MIN_GPA);
    CHECK(len <= RAM_BYTES && gpa <= RAM_BYTES - len);
    CHECK(memcmp(image.hva_low + gpa, data, len) == 0);
    return gpa;
}

static void clear_ram(void)
{
    CHECK(madvise(image.hva_low, RAM_BYTES, MADV_DONTNEED) == 0);
}

/* A read(2) to where it must not write fails with EFAULT instead of crashing. */
static int load(bool with_initrd, BootEntry *ret_entry)
{
    LoaderParams params = { .kernel_path = file_path,
                            .initrd_path = with_initrd ? file_path : NULL,
                            .cmdline = "console=ttyS0" };
    Error err = { 0 };
    int r = loader_load(&params, &image, ret_entry, &err);

    CHECK(r <= 0 && r != -EFAULT);
    if (r < 0) {
        CHECK(err.code == r && strstr(err.msg, "--"));
        return r;
    }
    CHECK(ret_entry->rip >= LAYOUT_KERNEL_MIN_GPA && ret_entry->rip < RAM_BYTES);
    CHECK(ret_entry->mode == BOOT_LONG_MODE || ret_entry->mode == BOOT_PROTECTED_MODE);
    return 0;
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len_bytes)
{
    BootEntry entry = { 0 };
    uint64_t initrd_gpa = 0;

    setup_once();
    CHECK(ftruncate(file_fd, 0) == 0);
    CHECK(pwrite(file_fd, data, len_bytes, 0) == (ssize_t)len_bytes);
    if (load(true, &entry) == 0) {
        initrd_gpa = check_initrd(&entry, data, len_bytes);
    }
    clear_ram();
    if (load(false, &entry) == 0 && initrd_gpa) {
        CHECK(is_zero(initrd_gpa, len_bytes)); /* the kernel has nothing there */
    }
    clear_ram();
    return 0;
}

#ifdef FUZZ_CORPUS_DIR /* the ordinary test */

#include "io/base/tests/fuzz-replay.h"
#include "io/base/test.h"

#define HEADERS_BYTES  640 /* all headers are in these */
#define CUT_STEP_BYTES 61  /* behind the headers */

static int replay(const uint8_t *data, size_t len_bytes)
{
    static uint8_t seed[FUZZ_INPUT_MAX_BYTES];

    memcpy(seed, data, len_bytes);
    LLVMFuzzerTestOneInput(seed, len_bytes);
    for (size_t len = 0; len < len_bytes; len += len < HEADERS_BYTES ? 3 : CUT_STEP_BYTES) {
        LLVMFuzzerTestOneInput(seed, len);
    }
    for (size_t i = 0; i < MIN(len_bytes, (size_t)HEADERS_BYTES); i++) {
        uint8_t was = seed[i];
        uint8_t values[] = { 0xff, was ^ 0x80 };

        for (size_t v = 0; v < ARRAY_SIZE(values); v++) {
            seed[i] = values[v];
            LLVMFuzzerTestOneInput(seed, len_bytes);
        }
        seed[i] = was;
    }
    return 0;
}

TEST(fuzz_loader, corpus_and_its_neighbours_break_nothing)
{
    fuzz_replay_corpus(replay, FUZZ_CORPUS_DIR, 10);
}

TEST_MAIN()

#endif
