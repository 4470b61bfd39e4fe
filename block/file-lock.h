/*
 * file-lock.h - who may open an image: one writer, or any number of readers
 *
 * Layer:     block/, private to the file driver (may use io/)
 * Threading: main thread.
 * Lifetime:  a lock belongs to the open file description: it ends with file_unlock(), or when the
 *            last descriptor of it is closed, whatever becomes of the process.
 *
 * Locks of open file descriptions, fcntl(2): unlike those of processes they also keep two disks of
 * one process apart. The whole file is locked, so programs that lock some bytes of it are met as
 * well.
 */
#ifndef BLOCK_FILE_LOCK_H
#define BLOCK_FILE_LOCK_H

#include "io/base/error.h"

typedef enum FileLocking {
    FILE_LOCKING_AUTO, /* where the file system has locks */
    FILE_LOCKING_ON,
    FILE_LOCKING_OFF,
} FileLocking;

/*
 * file_lock - lock what @fd is open on
 * Waits for nobody but the dead: a process that was killed keeps its locks until the kernel is done
 * with its requests, so who takes over after it gets the file when none of these can come any more.
 * That is assumed where no process can be seen to hold the lock, and for two seconds at most.
 * @writer  alone; @fd is open for writing. Otherwise with other readers.
 * @what    in front of messages: "--disk"
 * Errors: -EBUSY somebody has a lock that does not go with it: the message says who, as far as
 *         /proc tells; -ENOLCK, -EOPNOTSUPP ... the file system has no locks (FILE_LOCKING_ON
 *         alone).
 */
int file_lock(int fd, const char *path, bool writer, FileLocking locking, const char *what,
              Error *err) NONNULL(2, 5) WARN_UNUSED;
/* file_unlock - at once, although a ring may keep the file open a little longer */
void file_unlock(int fd);

#endif
