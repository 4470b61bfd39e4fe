/*
 * file-lock.c - locks of open file descriptions, and who holds one
 *
 * The kernel tells the owner of a process's lock, but of an open file description's lock only that
 * there is one. /proc/PID/fdinfo/FD has a line "lock:" for each lock of a description, so the
 * holder is looked for there. That is for the message alone: what another user's processes hold
 * stays unknown.
 *
 * Other processes' descriptors are of any file system, also of one that does not answer. So they
 * are not asked for: the line has the inode's number, and the one descriptor that it fits is looked
 * at by what the kernel knows already.
 */
#include "block/file-lock.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include "io/base/log.h"

#define DEAD_HOLDER_WAIT_MS 2000

/* --- who holds it --- */

/* Descriptor @name of the process whose fdinfo is @fdinfo_fd has a lock on an inode @ino. */
static bool has_lock(int fdinfo_fd, const char *name, uint64_t ino)
{
    int fd = openat(fdinfo_fd, name, O_RDONLY | O_CLOEXEC);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "r");
    char line[256];
    bool found = false;

    if (!f) {
        if (fd >= 0) {
            close(fd);
        }
        return false;
    }
    while (!found && fgets(line, sizeof(line), f)) {
        uint64_t seen;

        found = sscanf(line, "lock: %*u: %*s %*s %*s %*d %*x:%*x:%" SCNu64, &seen) == 1 &&
                seen == ino;
    }
    fclose(f);
    return found;
}

static bool is_file(int dir_fd, const char *name, const struct stat *st)
{
    struct statx seen;

    return statx(dir_fd, name, AT_STATX_DONT_SYNC, STATX_INO, &seen) == 0 &&
           makedev(seen.stx_dev_major, seen.stx_dev_minor) == st->st_dev &&
           seen.stx_ino == st->st_ino;
}

/* Process @pid has a descriptor of the file @st with a lock. */
static bool holds_lock(const char *pid, const struct stat *st)
{
    char path[64];
    bool found = false;

    snprintf(path, sizeof(path), "/proc/%.20s/fdinfo", pid);
    AUTO_FD int fdinfo_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
    DIR *dir = fdinfo_fd < 0 ? NULL : opendir(path);
    const struct dirent *entry;

    if (!dir) {
        return false;
    }
    while (!found && (entry = readdir(dir)) != NULL) {
        found = isdigit((unsigned char)entry->d_name[0]) &&
                has_lock(fdinfo_fd, entry->d_name, st->st_ino) &&
                is_file(dirfd(dir), entry->d_name, st);
    }
    closedir(dir);
    return found;
}

/* The process that holds a lock of an open file description; 0 when it cannot be told. */
static pid_t find_holder(int fd)
{
    DIR *proc = opendir("/proc");
    const struct dirent *entry;
    struct stat st;
    pid_t pid = 0;

    if (!proc) {
        return 0;
    }
    while (pid == 0 && fstat(fd, &st) == 0 && (entry = readdir(proc)) != NULL) {
        if (isdigit((unsigned char)entry->d_name[0]) && holds_lock(entry->d_name, &st)) {
            pid = (pid_t)strtol(entry->d_name, NULL, 10);
        }
    }
    closedir(proc);
    return pid;
}

static void describe_holder(pid_t pid, char *text, size_t room)
{
    char path[64], name[32] = "";
    FILE *f;

    if (pid == 0) {
        snprintf(text, room, "a process of another user or machine");
        return;
    }
    if (pid == getpid()) {
        snprintf(text, room, "this process itself");
        return;
    }
    snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
    f = fopen(path, "re");
    if (f) {
        if (fgets(name, sizeof(name), f)) {
            name[strcspn(name, "\n")] = '\0';
        }
        fclose(f);
    }
    snprintf(text, room, "process %d%s%s%s", (int)pid, name[0] ? " (" : "", name,
             name[0] ? ")" : "");
}

/* What stands in the way of @wanted, and who as far as that can be told; 0: nobody who is there. */
static pid_t find_obstacle(int fd, const struct flock *wanted, short *ret_type)
{
    struct flock held = *wanted;
    bool known = fcntl(fd, F_OFD_GETLK, &held) == 0 && held.l_type != F_UNLCK;

    *ret_type = known ? held.l_type : F_UNLCK;
    return known && held.l_pid > 0 ? held.l_pid : find_holder(fd);
}

static int refuse(const char *path, pid_t pid, short type, const char *what, Error *err)
{
    char holder[96];

    describe_holder(pid, holder, sizeof(holder));
    return error_set(err, -EBUSY, "%s: '%s' is in use%s by %s; locking=off would ignore that", what,
                     path,
                     type == F_UNLCK   ? ""
                     : type == F_WRLCK ? " for writing"
                                       : " for reading",
                     holder);
}

/* --- locks --- */

/* Until the kernel is done with the requests of a process that is no more. */
static bool outlive_holder(int fd, const struct flock *lock)
{
    static const struct timespec pause = { .tv_nsec = 1000000 };

    for (unsigned i = 0; i < DEAD_HOLDER_WAIT_MS; i++) {
        if (fcntl(fd, F_OFD_SETLK, lock) == 0) {
            return true;
        }
        nanosleep(&pause, NULL);
    }
    return false;
}

int file_lock(int fd, const char *path, bool writer, FileLocking locking, const char *what,
              Error *err)
{
    struct flock lock = { .l_type = writer ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET };
    int ret;

    if (locking == FILE_LOCKING_OFF || fcntl(fd, F_OFD_SETLK, &lock) == 0) {
        return 0;
    }
    ret = -errno;
    if (ret == -EAGAIN || ret == -EACCES) {
        short type;
        pid_t pid = find_obstacle(fd, &lock, &type);

        return pid == 0 && outlive_holder(fd, &lock) ? 0 : refuse(path, pid, type, what, err);
    }
    if (locking == FILE_LOCKING_AUTO) {
        log_info("block", "'%s' is not locked: %s", path, error_strerror(ret));
        return 0;
    }
    return error_set(err, ret, "%s: '%s' cannot be locked: %s; locking=off would do", what, path,
                     error_strerror(ret));
}

void file_unlock(int fd)
{
    struct flock lock = { .l_type = F_UNLCK, .l_whence = SEEK_SET };

    /* Where there are no locks this fails, and there is nothing to undo. */
    (void)!fcntl(fd, F_OFD_SETLK, &lock);
}
