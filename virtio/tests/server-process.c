/*
 * server-process.c - fork, exec, wait until it listens; what /proc knows of it
 */
#include "virtio/tests/server-process.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "io/base/test.h"

#define READY_MS  60000
#define WORDS_MAX 32
#define LISTEN_FD 3 /* in the child */

static int bind_socket(const char *path, int type)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

    ASSERT_GE(fd, 0);
    ASSERT_LT(strlen(path), sizeof(addr.sun_path));
    strcpy(addr.sun_path, path);
    ASSERT_EQ(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    return fd;
}

static void in_dir(const ServerProcess *server, char *ret_path, const char *name)
{
    int len = snprintf(ret_path, SERVER_PATH_BYTES, "%s/%s", server->dir, name);

    ASSERT_LT(len, SERVER_PATH_BYTES);
}

void server_init(ServerProcess *server, ServerProgram program, uint64_t image_bytes)
{
    char notify_path[SERVER_PATH_BYTES];

    memset(server, 0, sizeof(*server));
    server->program = program;
    server->notify_fd = server->listen_fd = -1;
    strcpy(server->dir, "/var/tmp/penstock-vhu-XXXXXX");
    ASSERT_TRUE(mkdtemp(server->dir) != NULL);
    in_dir(server, server->socket_path, "socket");
    in_dir(server, server->image_path, "image");
    in_dir(server, server->log_path, "log");
    in_dir(server, notify_path, "notify");
    AUTO_FD int fd = open(server->image_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    ASSERT_GE(fd, 0);
    ASSERT_EQ(ftruncate(fd, (off_t)image_bytes), 0);
    server->notify_fd = bind_socket(notify_path, SOCK_DGRAM);
    if (program == SERVER_QEMU) {
        server->listen_fd = bind_socket(server->socket_path, SOCK_STREAM);
        ASSERT_EQ(listen(server->listen_fd, 8), 0);
    }
}

void server_finish(ServerProcess *server)
{
    DIR *dir = opendir(server->dir);
    struct dirent *entry;

    if (server->pid) {
        server_kill(server);
    }
    while (dir && (entry = readdir(dir)) != NULL) {
        unlinkat(dirfd(dir), entry->d_name, 0);
    }
    closedir(dir);
    rmdir(server->dir);
    close(server->notify_fd);
    if (server->listen_fd >= 0) {
        close(server->listen_fd);
    }
}

/* --- start --- */

typedef struct CommandLine {
    char *words[WORDS_MAX];
    unsigned nb_words;
} CommandLine;

static void add_word(CommandLine *line, const char *word)
{
    ASSERT_LT(line->nb_words, WORDS_MAX - 1); /* NULL ends them */
    line->words[line->nb_words++] = strdup(word);
}

static void add_words(CommandLine *line, const char *words)
{
    AUTO_FREE char *copy = strdup(words);
    char *rest = copy;

    for (char *word; (word = strsep(&rest, " ")) != NULL;) {
        if (word[0] != '\0') {
            add_word(line, word);
        }
    }
}

/* @text with the image's path wherever it says IMAGE. */
static void expand_image(const ServerProcess *server, const char *text, char *ret, size_t ret_bytes)
{
    FILE *out = fmemopen(ret, ret_bytes, "w");

    ASSERT_TRUE(out != NULL);
    for (const char *at; (at = strstr(text, "IMAGE")) != NULL; text = at + strlen("IMAGE")) {
        fprintf(out, "%.*s%s", (int)(at - text), text, server->image_path);
    }
    fputs(text, out);
    ASSERT_EQ(fclose(out), 0);
    ASSERT_LT(strnlen(ret, ret_bytes), ret_bytes);
}

static void compose_penstock(const ServerProcess *server, CommandLine *line, unsigned nb_queues,
                             const char *disk)
{
    char text[512];

    if (!getenv("PENSTOCK")) {
        TEST_SKIP("PENSTOCK in the environment names no program");
    }
    add_word(line, getenv("PENSTOCK"));
    add_words(line, "export --disk");
    expand_image(server, disk ? disk : "path=IMAGE,cache=writeback", text, sizeof(text));
    add_word(line, text);
    add_word(line, "--vhost-user");
    snprintf(text, sizeof(text), "socket-path=%s,queues=%u", server->socket_path, nb_queues);
    add_word(line, text);
}

static void compose_qemu(const ServerProcess *server, CommandLine *line, unsigned nb_queues,
                         const char *disk)
{
    char node[512], text[600];

    expand_image(server, disk ? disk : "driver=file,filename=IMAGE", node, sizeof(node));
    add_words(line, "qemu-storage-daemon --blockdev");
    snprintf(text, sizeof(text), "%s,node-name=disk", node);
    add_word(line, text);
    add_word(line, "--export");
    snprintf(text, sizeof(text),
             "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=%u,"
             "addr.type=fd,addr.str=%d",
             nb_queues, LISTEN_FD);
    add_word(line, text);
}

/* What runs between fork() and exec(). */
static void become(const ServerProcess *server, CommandLine *line, pid_t parent)
{
    char notify_path[SERVER_PATH_BYTES];
    int log_fd = open(server->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent || log_fd < 0 || dup2(log_fd, STDERR_FILENO) < 0 ||
        (server->listen_fd >= 0 && dup2(server->listen_fd, LISTEN_FD) < 0)) {
        _exit(127);
    }
    in_dir(server, notify_path, "notify");
    setenv("NOTIFY_SOCKET", notify_path, 1);
    execvp(line->words[0], line->words);
    perror(line->words[0]);
    _exit(127);
}

static void await_ready(ServerProcess *server)
{
    struct pollfd poller = { .fd = server->notify_fd, .events = POLLIN };
    char text[64];

    int status;

    for (int waited_ms = 0; poll(&poller, 1, 100) == 0; waited_ms += 100) {
        if (server_has_ended(server, &status) || waited_ms >= READY_MS) {
            AUTO_FREE char *log = server_log(server);

            test_fail_abort(__FILE__, __LINE__, "the server does not listen: %s", log);
        }
    }
    ssize_t len = recv(server->notify_fd, text, sizeof(text) - 1, 0);

    ASSERT_GE(len, 0);
    text[len] = '\0';
    ASSERT_TRUE(strstr(text, "READY=1") != NULL);
}

void server_start(ServerProcess *server, unsigned nb_queues, const char *disk, const char *options)
{
    bool is_penstock = server->program == SERVER_PENSTOCK;
    CommandLine line = { .nb_words = 0 };
    pid_t parent = getpid();
    char text[64];

    (is_penstock ? compose_penstock : compose_qemu)(server, &line, nb_queues, disk);
    add_words(&line, options ? options : "");
    while (recv(server->notify_fd, text, sizeof(text), MSG_DONTWAIT) >= 0) {
        /* what a former life has said */
    }
    server->pid = fork();
    ASSERT_GE(server->pid, 0);
    if (server->pid == 0) {
        become(server, &line, parent);
    }
    for (unsigned i = 0; i < line.nb_words; i++) {
        free(line.words[i]);
    }
    if (is_penstock) {
        await_ready(server);
    }
}

/* --- end --- */

static int exit_code(int status)
{
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int reap(ServerProcess *server)
{
    int status;

    ASSERT_EQ(waitpid(server->pid, &status, 0), server->pid);
    server->pid = 0;
    return exit_code(status);
}

bool server_has_ended(ServerProcess *server, int *ret_status)
{
    int status;

    if (waitpid(server->pid, &status, WNOHANG) != server->pid) {
        return false;
    }
    server->pid = 0;
    *ret_status = exit_code(status);
    return true;
}

void server_kill(ServerProcess *server)
{
    kill(server->pid, SIGKILL);
    reap(server);
}

int server_stop(ServerProcess *server)
{
    kill(server->pid, SIGTERM);
    return reap(server);
}

/* --- what /proc says --- */

static void proc_path(const ServerProcess *server, char *ret_path, size_t ret_bytes,
                      const char *name)
{
    snprintf(ret_path, ret_bytes, "/proc/%d/%s", (int)server->pid, name);
}

unsigned server_count_fds(const ServerProcess *server)
{
    char path[64];
    unsigned nb = 0;

    proc_path(server, path, sizeof(path), "fd");
    DIR *dir = opendir(path);

    ASSERT_TRUE(dir != NULL);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        nb += entry->d_name[0] != '.';
    }
    closedir(dir);
    return nb;
}

static unsigned count_maps(const ServerProcess *server, const char *of)
{
    char path[64], text[512];
    unsigned nb = 0;

    proc_path(server, path, sizeof(path), "maps");
    FILE *file = fopen(path, "re");

    ASSERT_TRUE(file != NULL);
    while (fgets(text, sizeof(text), file)) {
        nb += strstr(text, of) != NULL;
    }
    fclose(file);
    return nb;
}

/* Memory shared with clients is a memfd's; io_uring's rings are shared with the kernel only. */
unsigned server_count_shared_maps(const ServerProcess *server)
{
    return count_maps(server, "/memfd:");
}

unsigned server_count_maps(const ServerProcess *server)
{
    return count_maps(server, "\n");
}

uint64_t server_cpu_ns(const ServerProcess *server)
{
    char path[64];
    uint64_t sum_ns = 0;

    proc_path(server, path, sizeof(path), "task");
    DIR *dir = opendir(path);

    ASSERT_TRUE(dir != NULL);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        unsigned long long ns;
        char stat_path[sizeof(path) + sizeof(entry->d_name) + 16];

        snprintf(stat_path, sizeof(stat_path), "%s/%s/schedstat", path, entry->d_name);
        FILE *file = entry->d_name[0] != '.' ? fopen(stat_path, "re") : NULL;

        if (file) {
            sum_ns += fscanf(file, "%llu", &ns) == 1 ? ns : 0;
            fclose(file);
        }
    }
    closedir(dir);
    return sum_ns;
}

char *server_log(const ServerProcess *server)
{
    FILE *file = fopen(server->log_path, "re");
    struct stat st = { 0 };

    if (file) {
        ASSERT_EQ(fstat(fileno(file), &st), 0);
    }
    char *text = calloc(1, (size_t)st.st_size + 1);

    ASSERT_TRUE(text != NULL);
    if (file) {
        ASSERT_EQ(fread(text, 1, (size_t)st.st_size, file), (size_t)st.st_size);
        fclose(file);
    }
    return text;
}
