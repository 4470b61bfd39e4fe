/*
 * nbd-test.c - see nbd-test.h
 */
#include "block/nbd/tests/nbd-test.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define BLOCK_BYTES 4096
#define PART_BLOCKS 16         /* of a coroutine */
#define NOT_KNOWN   UINT32_MAX /* what a block holds: it has not been written */

/* --- folder --- */

static char dir[64];
static pid_t dir_owner;

static void remove_dir(void)
{
    DIR *d;
    struct dirent *e;

    if (getpid() != dir_owner || !(d = opendir(dir))) {
        return;
    }
    while ((e = readdir(d))) {
        if (e->d_name[0] != '.') {
            unlinkat(dirfd(d), e->d_name, 0);
        }
    }
    closedir(d);
    rmdir(dir);
}

const char *test_dir(void)
{
    if (!dir[0]) {
        strcpy(dir, "/dev/shm/test-nbd-XXXXXX"); /* no peer shall wait for a disk */
        if (!mkdtemp(dir)) {
            strcpy(dir, "/tmp/test-nbd-XXXXXX");
            ASSERT_TRUE(mkdtemp(dir) != NULL);
        }
        dir_owner = getpid();
        atexit(remove_dir);
    }
    return dir;
}

const char *test_text(const char *fmt, ...)
{
    static char *texts[64];
    static unsigned nb;
    va_list ap;
    char **text = &texts[nb++ % ARRAY_SIZE(texts)];

    free(*text);
    va_start(ap, fmt);
    ASSERT_TRUE(vasprintf(text, fmt, ap) > 0);
    va_end(ap);
    return *text;
}

/* --- peers --- */

static bool in_path(const char *name)
{
    const char *path = getenv("PATH");
    char file[512];

    while (path && *path) {
        size_t len = strcspn(path, ":");

        snprintf(file, sizeof(file), "%.*s/%s", (int)len, path, name);
        if (access(file, X_OK) == 0) {
            return true;
        }
        path += len + (path[len] == ':');
    }
    return false;
}

pid_t peer_start(const char *const *argv)
{
    pid_t pid;

    if (!in_path(argv[0])) {
        TEST_SKIP("%s is not installed", argv[0]);
    }
    pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
        int log = open(test_text("%s/peer.log", test_dir()), O_WRONLY | O_CREAT | O_APPEND, 0600);

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        unsetenv("MALLOC_PERTURB_"); /* meson's, for us: it makes nbd-server ten times slower */
        dup2(log, STDOUT_FILENO);
        dup2(log, STDERR_FILENO);
        for (int fd = 3; fd < 256; fd++) {
            close(fd);
        }
        execvp(argv[0], (char *const *)argv);
        _exit(127);
    }
    return pid;
}

void peer_kill(pid_t pid)
{
    kill(pid, SIGKILL);
    ASSERT_EQ(waitpid(pid, NULL, 0), pid);
}

const char *peer_port(void)
{
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof(in);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    ASSERT_EQ(bind(fd, (struct sockaddr *)&in, len), 0);
    ASSERT_EQ(getsockname(fd, (struct sockaddr *)&in, &len), 0);
    close(fd);
    return test_text("%u", ntohs(in.sin_port));
}

/* --- disks --- */

static BlockBackend *open_text(const char *text, Error *err)
{
    Opts opts;
    BlockBackend *blk = NULL;

    if (opts_parse(&opts, "--disk", text, "path", err) < 0) {
        return NULL;
    }
    blk = blk_open("d0", &opts, err);
    if (blk && opts_check_all_used(&opts, err) < 0) {
        blk_close(blk);
        blk = NULL;
    }
    opts_finish(&opts);
    return blk;
}

BlockBackend *disk_open(const char *fmt, ...)
{
    char text[1024];
    va_list ap;
    Error err = { 0 };
    BlockBackend *blk;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    blk = open_text(text, &err);
    if (!blk) {
        test_fail_abort(__FILE__, __LINE__, "'%s': %s", text, err.msg);
    }
    return blk;
}

int disk_try(const char *text, Error *err)
{
    BlockBackend *blk = open_text(text, err);

    if (blk) {
        blk_close(blk);
        return 0;
    }
    return err->code;
}

/* --- load --- */

typedef struct Worker {
    Load *load;
    uint64_t base_bytes;
    Random random;
    uint32_t generation[PART_BLOCKS]; /* 0: zeroes, or NOT_KNOWN */
    uint8_t *buf;
} Worker;

static void fill_block(uint8_t *buf, uint64_t offset_bytes, uint32_t generation)
{
    uint64_t *words = (uint64_t *)buf;
    uint64_t x = (offset_bytes + 1) * 0x9e3779b97f4a7c15 ^ generation;

    for (unsigned i = 0; i < BLOCK_BYTES / 8; i++) {
        words[i] = generation ? x + i : 0;
    }
}

static bool check_block(const uint8_t *buf, uint64_t offset_bytes, uint32_t generation)
{
    uint8_t want[BLOCK_BYTES] __attribute__((aligned(8)));

    fill_block(want, offset_bytes, generation);
    return memcmp(want, buf, BLOCK_BYTES) == 0;
}

/* In several segments, as guests do. */
static int cut_up(Worker *w, size_t len_bytes, struct iovec iov[3])
{
    size_t first = 512 * (1 + random_below(&w->random, 7));

    iov[0] = (struct iovec){ w->buf, first };
    iov[1] = (struct iovec){ w->buf + first, len_bytes - first };
    return 2;
}

static co_fn int one_op(Worker *w)
{
    Load *load = w->load;
    unsigned first = random_below(&w->random, PART_BLOCKS);
    unsigned nb = 1 + random_below(&w->random, MIN(4u, PART_BLOCKS - first));
    uint64_t offset_bytes = w->base_bytes + (uint64_t)first * BLOCK_BYTES;
    size_t len_bytes = (size_t)nb * BLOCK_BYTES;
    struct iovec iov[3];
    int niov = cut_up(w, len_bytes, iov);
    unsigned what = random_below(&w->random, 16);
    int ret;

    if (what == 0) {
        return blk_co_flush(load->blk);
    }
    if (what == 1 && load->zeroes) {
        for (unsigned i = 0; i < nb; i++) {
            w->generation[first + i] = 0;
        }
        return blk_co_pwrite_zeroes(load->blk, offset_bytes, len_bytes, 0);
    }
    if (what < 8) {
        for (unsigned i = 0; i < nb; i++) {
            w->generation[first + i] = random_below(&w->random, 1u << 30) + 1;
            fill_block(w->buf + i * BLOCK_BYTES, offset_bytes + i * BLOCK_BYTES,
                       w->generation[first + i]);
        }
        return blk_co_pwritev(load->blk, offset_bytes, len_bytes, iov, niov,
                              what == 2 ? BLK_FUA : 0);
    }
    memset(w->buf, 0xee, len_bytes);
    ret = blk_co_preadv(load->blk, offset_bytes, len_bytes, iov, niov, 0);
    for (unsigned i = 0; i < nb && ret == 0; i++) {
        if (w->generation[first + i] != NOT_KNOWN &&
            !check_block(w->buf + i * BLOCK_BYTES, offset_bytes + i * BLOCK_BYTES,
                         w->generation[first + i])) {
            atomic_fetch_add(&load->nb_wrong, 1);
        }
    }
    return ret;
}

static void worker_entry(void *opaque)
{
    Worker *w = opaque;
    Load *load = w->load;
    int ret = 0;

    assert_in_coroutine();
    for (unsigned i = 0; (load->nb_ops == 0 || i < load->nb_ops) && !load->stop; i++) {
        ret = one_op(w);
        if (ret < 0) {
            fprintf(stderr, "# operation %u at %" PRIu64 ": %s\n", i, w->base_bytes,
                    error_strerror(ret));
            atomic_fetch_add(&load->nb_failed, 1);
            break;
        }
        atomic_fetch_add(&load->nb_done, 1);
    }
    free(w->buf);
    free(w);
    atomic_fetch_sub(&load->nb_running, 1);
    aio_notify(aio_main());
}

void load_start(Load *load)
{
    unsigned nb = 0;

    load->nb_running = load->nb_ctx * load->depth;
    for (unsigned c = 0; c < load->nb_ctx; c++) {
        for (unsigned d = 0; d < load->depth; d++) {
            Worker *w = calloc(1, sizeof(*w));

            ASSERT_TRUE(w != NULL);
            *w = (Worker){ .load = load,
                           .base_bytes = (uint64_t)nb * PART_BLOCKS * BLOCK_BYTES,
                           .random = { 1000 + nb },
                           .buf = aligned_alloc(BLOCK_BYTES, 4 * BLOCK_BYTES) };
            ASSERT_TRUE(w->buf != NULL);
            memset(w->generation, 0xff, sizeof(w->generation));
            aio_co_schedule(load->ctx[c], co_create(worker_entry, w));
            nb++;
        }
    }
}

void load_wait(Load *load)
{
    AIO_WAIT_WHILE(aio_main(), atomic_load(&load->nb_running) > 0);
}

main_fn void load_verify_disk(BlockBackend *blk, unsigned nb_threads, unsigned nb_ops)
{
    Load load = { .blk = blk, .nb_ctx = nb_threads, .depth = 8, .nb_ops = nb_ops, .zeroes = true };
    IOThread *threads[8];

    for (unsigned i = 0; i < nb_threads; i++) {
        threads[i] = iothread_create(test_text("t%u", i), NULL, NULL);
        ASSERT_TRUE(threads[i] != NULL);
        load.ctx[i] = iothread_context(threads[i]);
    }
    load_start(&load);
    load_wait(&load);
    EXPECT_EQ(load.nb_failed, 0);
    EXPECT_EQ(load.nb_wrong, 0);
    EXPECT_EQ(load.nb_done, nb_threads * load.depth * nb_ops);
    for (unsigned i = 0; i < nb_threads; i++) {
        iothread_unref(threads[i]);
    }
}

main_fn void load_verify(unsigned nb_threads, const char *fmt, ...)
{
    AioContext *main = main_start();
    BlockBackend *blk;
    char text[1024];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    blk = disk_open("%s", text);
    EXPECT_EQ(blk_length(blk), 64 << 20);
    load_verify_disk(blk, nb_threads, 50);
    EXPECT_EQ(blk_close(blk), 0);
    main_finish(main);
}

/* --- contexts --- */

AioContext *main_start(void)
{
    AioContext *main = aio_context_create("main", NULL, NULL);

    ASSERT_TRUE(main != NULL);
    aio_context_enter(main);
    aio_context_set_main(main);
    return main;
}

void main_finish(AioContext *main)
{
    while (aio_poll(main, false)) {
    }
    aio_context_set_main(NULL);
    aio_context_destroy(main);
    aio_context_enter(NULL);
    co_pool_drain();
}
