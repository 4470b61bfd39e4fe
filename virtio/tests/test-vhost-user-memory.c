/*
 * test-vhost-user-memory.c - memory that a peer shares: what is refused, where addresses lead, and
 * what happens when it goes away
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "io/base/test.h"
#include "virtio/tests/ring-driver.h"
#include "virtio/vhost-user-memory.h"

#define PAGE 4096u

static VhuMemory mem;
static AioContext *ctx;
static unsigned nb_lost;
static _Atomic bool lost;

static void lost_cb(void *opaque)
{
    nb_lost++;
}

static int make_file(uint64_t len_bytes)
{
    int fd = memfd_create("test", MFD_CLOEXEC);

    ASSERT_TRUE(fd >= 0);
    ASSERT_EQ(ftruncate(fd, (off_t)len_bytes), 0);
    return fd;
}

static main_fn void begin(void)
{
    Error err;

    ctx = guest_main_context(&err);
    if (!ctx) {
        TEST_SKIP("%s", err.msg);
    }
    ASSERT_EQ(vhu_memory_init(&mem, aio_bh_create(ctx, lost_cb, NULL), &lost, &err), 0);
}

static main_fn void end(void)
{
    vhu_memory_finish(&mem);
    EXPECT_EQ(shared_map_nb(), 0);
    aio_bh_destroy(mem.lost_bh);
    aio_context_destroy(ctx);
}

static main_fn int add(uint64_t gpa, uint64_t len_bytes, uint64_t user, uint64_t offset, int fd)
{
    VhostUserRegion region = { gpa, len_bytes, user, offset };
    Error err = { .code = 0 };
    int ret = vhu_memory_add(&mem, &region, fd, &err);

    EXPECT_EQ(err.code, ret);
    return ret;
}

TEST(vhu_memory, addresses_of_both_kinds_lead_to_the_same_bytes)
{
    int fd = make_file(4 * PAGE);
    Gpa gpa;

    begin();
    ASSERT_EQ(add(0x100000, 2 * PAGE, 0x7f0000000000, PAGE, fd), 0);
    ASSERT_EQ(vhu_memory_gpa_of_user(&mem, 0x7f0000000000 + PAGE + 5, &gpa), 0);
    EXPECT_EQ(gpa.addr, 0x100000 + PAGE + 5);
    char *p = gm_translate(&mem.gm, gpa, 1);

    ASSERT_TRUE(p);
    ASSERT_EQ(pwrite(fd, "x", 1, 2 * PAGE + 5), 1);
    EXPECT_EQ(*p, 'x');
    EXPECT_EQ(vhu_memory_gpa_of_user(&mem, 0x7f0000000000 + 2 * PAGE, &gpa), -EFAULT);
    EXPECT_EQ(vhu_memory_gpa_of_user(&mem, 0x7f0000000000 - 1, &gpa), -EFAULT);
    close(fd);
    end();
}

TEST(vhu_memory, what_is_no_memory_is_refused_and_nothing_stays_mapped)
{
    int fd = make_file(4 * PAGE), read_only, null = open("/dev/null", O_RDWR | O_CLOEXEC);
    char path[40];

    begin();
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    read_only = open(path, O_RDONLY | O_CLOEXEC);
    EXPECT_EQ(add(0, 0, 0, 0, fd), -EINVAL);
    EXPECT_EQ(add(0, 5 * PAGE, 0, 0, fd), -EINVAL);
    EXPECT_EQ(add(0, 4 * PAGE, 0, PAGE, fd), -EINVAL);
    EXPECT_EQ(add(0, PAGE, 0, 1, fd), -EINVAL);
    EXPECT_EQ(add(0, PAGE, 0, UINT64_MAX - PAGE + 1, fd), -EINVAL);
    EXPECT_EQ(add(0, PAGE, UINT64_MAX - 1, 0, fd), -EINVAL);
    EXPECT_EQ(add(UINT64_MAX - 1, PAGE, 0, 0, fd), -EINVAL);
    EXPECT_EQ(add(0, UINT64_MAX, 0, 0, fd), -ENOSPC);
    EXPECT_EQ(add(0, (1ull << 44) + PAGE, 0, 0, fd), -ENOSPC);
    EXPECT_EQ(add(0, PAGE, 0, 0, -1), -EBADF);
    EXPECT_EQ(add(0, PAGE, 0, 0, null), -ENODEV);
    EXPECT_EQ(add(0, PAGE, 0, 0, read_only), -EACCES);
    EXPECT_EQ(shared_map_nb(), 0);
    EXPECT_EQ(mem.nb_regions, 0);
    close(fd);
    close(null);
    close(read_only);
    end();
}

static int make_file_in(const char *folder)
{
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    ASSERT_TRUE(fd >= 0);
    ASSERT_EQ(ftruncate(fd, PAGE), 0);
    return fd;
}

/* Whether that is of memory, of a disk, or of neither and perhaps a process's that never answers. */
TEST(vhu_memory, files_are_taken_if_nobody_has_to_be_asked)
{
    int memory = make_file_in("/dev/shm"), disk = make_file_in(".");
    int process = open("/proc/self/comm", O_RDWR | O_CLOEXEC);
    struct stat st;

    begin();
    EXPECT_EQ(add(0, PAGE, 0, 0, memory), 0);
    ASSERT_EQ(fstat(disk, &st), 0);
    EXPECT_EQ(add(PAGE, PAGE, 0, 0, disk), major(st.st_dev) != 0 ? 0 : -ENODEV);
    EXPECT_EQ(add(2 * PAGE, PAGE, 0, 0, process), -ENODEV);
    close(memory);
    close(disk);
    close(process);
    end();
}

/* The file is too short for either; what is refused is told from what is tried. */
TEST(vhu_memory, clients_share_out_the_address_space)
{
    VhuMemory others[63];
    int fd = make_file(PAGE);

    begin();
    for (unsigned i = 0; i < ARRAY_SIZE(others); i++) {
        ASSERT_EQ(vhu_memory_init(&others[i], mem.lost_bh, mem.lost, NULL), 0);
    }
    EXPECT_EQ(add(0, (1ull << 40) + PAGE, 0, 0, fd), -ENOSPC);
    EXPECT_EQ(add(0, 1ull << 40, 0, 0, fd), -EINVAL);
    for (unsigned i = 0; i < ARRAY_SIZE(others); i++) {
        vhu_memory_finish(&others[i]);
    }
    EXPECT_EQ(add(0, (1ull << 40) + PAGE, 0, 0, fd), -EINVAL);
    close(fd);
    end();
}

TEST(vhu_memory, regions_do_not_overlap_and_there_is_a_most)
{
    int fd = make_file(PAGE);

    begin();
    for (unsigned i = 0; i < GUEST_MEMORY_REGIONS_MAX; i++) {
        ASSERT_EQ(add(i * 2ull * PAGE, PAGE, i * 2ull * PAGE, 0, fd), 0);
    }
    EXPECT_EQ(add(1ull << 40, PAGE, 1ull << 40, 0, fd), -ENOSPC);
    vhu_memory_remove(&mem, 7);
    EXPECT_EQ(shared_map_nb(), GUEST_MEMORY_REGIONS_MAX - 1);
    EXPECT_EQ(add(6 * 2ull * PAGE + PAGE - 1, PAGE, 0, 0, fd), -EINVAL);
    EXPECT_EQ(add(7 * 2ull * PAGE, PAGE, 7 * 2ull * PAGE, 0, fd), 0);
    close(fd);
    end();
}

TEST(vhu_memory, a_region_is_found_by_its_addresses_and_length)
{
    int fd = make_file(2 * PAGE);
    VhostUserRegion region = { 0x1000, PAGE, 0x5000, 0 };
    Error err;

    begin();
    ASSERT_EQ(add(0, PAGE, 0x4000, 0, fd), 0);
    ASSERT_EQ(add(0x1000, PAGE, 0x5000, PAGE, fd), 0);
    EXPECT_EQ(vhu_memory_find(&mem, &region, &err), 1);
    region.len_bytes = 2 * PAGE;
    EXPECT_EQ(vhu_memory_find(&mem, &region, &err), -ENOENT);
    region.len_bytes = PAGE;
    region.user_addr = 0x4000;
    EXPECT_EQ(vhu_memory_find(&mem, &region, &err), -ENOENT);
    close(fd);
    end();
}

TEST(shared_map, a_file_that_is_cut_shorter_reads_as_zeroes_and_is_told)
{
    int fd = make_file(4 * PAGE);
    volatile char *p;

    begin();
    nb_lost = 0;
    ASSERT_EQ(add(0, 4 * PAGE, 0, 0, fd), 0);
    p = gm_translate(&mem.gm, GPA(0), 4 * PAGE);
    p[3 * PAGE] = 'x';
    ASSERT_EQ(ftruncate(fd, PAGE), 0);
    EXPECT_FALSE(gm_is_lost(&mem.gm));
    EXPECT_EQ(p[3 * PAGE], 0);
    EXPECT_TRUE(gm_is_lost(&mem.gm));
    p[3 * PAGE] = 'y';
    EXPECT_EQ(p[3 * PAGE], 'y');
    while (aio_poll(ctx, false)) {
    }
    EXPECT_EQ(nb_lost, 1);
    close(fd);
    end();
}

/* Requests that wait may have their data in what is still there. */
TEST(shared_map, what_is_not_cut_off_stays)
{
    int fd = make_file(4 * PAGE);
    volatile char *p;
    char byte = 0;

    begin();
    ASSERT_EQ(add(0, 4 * PAGE, 0, 0, fd), 0);
    p = gm_translate(&mem.gm, GPA(0), 4 * PAGE);
    p[2 * PAGE - 1] = 'x';
    ASSERT_EQ(ftruncate(fd, 2 * PAGE), 0);
    EXPECT_EQ(p[3 * PAGE], 0);
    EXPECT_EQ(p[2 * PAGE], 0);
    EXPECT_EQ(p[2 * PAGE - 1], 'x');
    p[0] = 'y';
    ASSERT_EQ(pread(fd, &byte, 1, 0), 1);
    EXPECT_EQ(byte, 'y');
    close(fd);
    end();
}

TEST(shared_map, the_flag_is_set_when_something_is_replaced)
{
    int fd = make_file(2 * PAGE);
    _Atomic bool flag = false;
    SharedMap map;
    Error err;

    begin();
    ASSERT_EQ(shared_map_open(&map, fd, 0, 2 * PAGE, mem.lost_bh, &err), 0);
    shared_map_set_flag(&map, &flag);
    volatile char *p = map.addr;

    ASSERT_EQ(ftruncate(fd, PAGE), 0);
    p[0] = 1;
    EXPECT_FALSE(atomic_load(&flag));
    p[PAGE] = 1;
    EXPECT_TRUE(atomic_load(&flag));
    shared_map_close(&map);
    close(fd);
    end();
}

/* How many mappings of make_file()'s we have. */
static unsigned count_mappings(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512];
    unsigned nb = 0;

    ASSERT_TRUE(maps);
    while (fgets(line, sizeof(line), maps)) {
        nb += strstr(line, "/memfd:test") != NULL;
    }
    fclose(maps);
    return nb;
}

TEST(shared_map, a_file_that_is_cut_does_not_fall_to_any_number_of_pieces)
{
    int fd = make_file(128 * PAGE);
    volatile char *p;

    begin();
    ASSERT_EQ(add(0, 128 * PAGE, 0, 0, fd), 0);
    p = gm_translate(&mem.gm, GPA(0), 128 * PAGE);
    p[3 * PAGE] = 'x';
    ASSERT_EQ(ftruncate(fd, 4 * PAGE), 0);
    for (unsigned i = 5; i < 128; i += 2) {
        EXPECT_EQ(p[i * PAGE], 0);
    }
    EXPECT_LE(count_mappings(), 17);
    for (unsigned i = 126; i >= 4; i -= 2) {
        EXPECT_EQ(p[i * PAGE], 0);
    }
    EXPECT_EQ(count_mappings(), 1);
    EXPECT_EQ(p[3 * PAGE], 'x');
    close(fd);
    end();
}

static unsigned mappings_max(void)
{
    FILE *file = fopen("/proc/sys/vm/max_map_count", "re");
    unsigned nb = 0;

    ASSERT_TRUE(file && fscanf(file, "%u", &nb) == 1);
    fclose(file);
    if (nb > 300000) {
        TEST_SKIP("vm.max_map_count is %u", nb);
    }
    return nb;
}

#define SINGLES_MAX 64

/* All the mappings that there may be: what can be split is split, and then some at once. */
typedef struct Ballast {
    char *base;
    size_t len_bytes;
    void *singles[SINGLES_MAX];
    unsigned nb_singles;
} Ballast;

static void ballast_take(Ballast *ballast, unsigned max)
{
    size_t offset = 0;

    ballast->nb_singles = 0;
    ballast->len_bytes = 2ull * max * PAGE;
    ballast->base = mmap(NULL, ballast->len_bytes, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ASSERT_TRUE(ballast->base != MAP_FAILED);
    while (mprotect(ballast->base + offset, PAGE, PROT_READ) == 0) {
        offset += 2ull * PAGE;
        ASSERT_LT(offset, ballast->len_bytes);
    }
    while (ballast->nb_singles < SINGLES_MAX) {
        void *single = mmap(NULL, PAGE, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

        if (single == MAP_FAILED) {
            return;
        }
        ballast->singles[ballast->nb_singles++] = single;
    }
}

static void ballast_drop(Ballast *ballast)
{
    while (ballast->nb_singles > 0) {
        munmap(ballast->singles[--ballast->nb_singles], PAGE);
    }
    munmap(ballast->base, ballast->len_bytes);
}

/* Consecutive parts of a file would become one mapping, whose middle is not to be replaced then. */
TEST(shared_map, a_file_is_cut_shorter_when_there_may_be_no_more_mappings)
{
    int fd = make_file(4 * PAGE);
    unsigned max = mappings_max();
    volatile char *p[4];
    int seen[4];
    Ballast ballast;

    begin();
    for (unsigned i = 4; i-- > 0;) {
        ASSERT_EQ(add(i * PAGE, PAGE, i * PAGE, i * PAGE, fd), 0);
    }
    EXPECT_EQ(count_mappings(), 4);
    for (unsigned i = 0; i < 4; i++) {
        p[i] = gm_translate(&mem.gm, GPA(i * PAGE), PAGE);
        *p[i] = 'x';
    }
    ASSERT_EQ(ftruncate(fd, 0), 0);
    ballast_take(&ballast, max);
    for (unsigned i = 0; i < 4; i++) {
        unsigned which = (i + 1) % 4; /* from the middle */

        seen[which] = *p[which];
    }
    ballast_drop(&ballast);
    for (unsigned i = 0; i < 4; i++) {
        EXPECT_EQ(seen[i], 0);
    }
    EXPECT_EQ(count_mappings(), 0);
    close(fd);
    end();
}

static void touch_beyond(void *opaque)
{
    *(volatile char *)opaque = 1;
}

TEST(shared_map, another_file_that_is_cut_shorter_still_ends_the_process)
{
    int ours = make_file(PAGE), other = make_file(PAGE);
    char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);

    signal(SIGBUS, SIG_DFL); /* before ours; sanitizers and the harness have their own */
    begin();
    ASSERT_TRUE(p != MAP_FAILED);
    ASSERT_EQ(add(0, PAGE, 0, 0, ours), 0);
    ASSERT_EQ(ftruncate(other, 0), 0);
    EXPECT_DEATH(touch_beyond, p, SIGBUS, "");
    munmap(p, PAGE);
    close(ours);
    close(other);
    end();
}

TEST_MAIN()
