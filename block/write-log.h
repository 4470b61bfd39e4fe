/*
 * WriteLog - a trace of what was written to a disk, enough to know every state that a crash may
 * leave
 *
 * Layer:     block/ (may use io/)
 * Threading: a writer is used from any context, many at once; opened and closed in the main thread.
 *            A reader belongs to its caller and blocks.
 * Lifetime:  init or open .. finish.
 *
 * The file. All integers are little-endian. A head of 32 bytes: "penstock", 4 bytes "wlog", version
 * 1 (32 bits), the length of the disk in bytes (64), 8 bytes of zero. Then entries, each 48 bytes:
 *
 *      0  32 bits  0x454c5750
 *      4  32       type: 1 write, 2 zeroes, 3 discard, 4 flush, 5 done
 *      8  32       flags: 1 = stable when it is done (FUA)
 *     12  32       of done: errno, 0 = success
 *     16  64       serial number of the request, from 1; of done: whose end it is
 *     24  64       offset in bytes
 *     32  64       length in bytes
 *     40  64       zero
 *
 * A write is followed by its data. Entries are in order of time: that of a request before it is
 * passed to the disk, its done before the one who made it is told. A log ends at the end of the
 * file, also within an entry or its data, or at an entry whose magic is 0: who wrote it was
 * interrupted there.
 *
 * What a crash may leave. Cut the log anywhere. A request is stable when it was done with FUA, or
 * when it was done before a flush began that is done. It must be in the image; any other may be,
 * wholly or by its first sectors, or not at all. Requests that overlap take effect in order of
 * their entries.
 */
#ifndef BLOCK_WRITE_LOG_H
#define BLOCK_WRITE_LOG_H

#include <pthread.h>

#include "io/aio/aio-file.h"

typedef enum WriteLogType {
    WRITE_LOG_WRITE = 1,
    WRITE_LOG_ZEROES,
    WRITE_LOG_DISCARD,
    WRITE_LOG_FLUSH,
    WRITE_LOG_DONE,
} WriteLogType;

#define WRITE_LOG_FUA         1
#define WRITE_LOG_ENTRIES_MAX (1u << 22) /* that a reader takes */

/* --- writing --- */

typedef struct WriteLogWriter {
    pthread_mutex_t lock; /* protects the next two */
    uint64_t end_bytes;
    uint64_t last_serial;
    _Atomic int error; /* of the first entry that could not be written; 0 = none */
    AioFile file;
} WriteLogWriter;

/* write_log_writer_init - begin a log in an empty file; @fd is borrowed. -errno. Blocks. */
int write_log_writer_init(WriteLogWriter *w, int fd, uint64_t disk_bytes) NONNULL(1) WARN_UNUSED;
void write_log_writer_finish(WriteLogWriter *w) NONNULL(1);
/* write_log_co_begin - a request is about to be made; @iov is a write's data. -errno: it must not be
 * made, nor any other from now on. */
co_fn int write_log_co_begin(WriteLogWriter *w, WriteLogType type, unsigned flags,
                             uint64_t offset_bytes, uint64_t len_bytes, const struct iovec *iov,
                             int niov, uint64_t *ret_serial) NONNULL(1, 8) WARN_UNUSED;
/* write_log_co_done - it has ended with @result, which is returned unless the log fails: -errno */
co_fn int write_log_co_done(WriteLogWriter *w, uint64_t serial, int result) NONNULL(1) WARN_UNUSED;

/* --- reading --- */

typedef struct WriteLogEntry {
    WriteLogType type;
    bool fua;
    uint64_t serial;
    uint64_t offset_bytes, len_bytes;
    uint64_t data_bytes;        /* where the data is in the file */
    uint64_t begun_at, done_at; /* numbers of its entries */
    bool ended;                 /* before the cut */
    bool done;                  /* successfully */
    bool stable;                /* and must survive */
} WriteLogEntry;

/* A log up to a cut. */
typedef struct WriteLog {
    uint64_t disk_bytes;
    uint64_t nb_read;    /* entries up to the cut, ends included */
    unsigned nb_flushes; /* of these, successful ends of flushes */
    unsigned nb_requests;
    WriteLogEntry *requests; /* without ends */
} WriteLog;

/*
 * write_log_read - the log in @fd, at most its first @max_entries entries
 * Nothing in the file is trusted.
 * Errors: -EINVAL it is no log or not as described above, the message says where; -EFBIG more
 *         entries than WRITE_LOG_ENTRIES_MAX; -ENOMEM; -EIO ...
 */
int write_log_read(WriteLog *log, int fd, uint64_t max_entries, Error *err) NONNULL(1) WARN_UNUSED;
void write_log_finish(WriteLog *log);

/* How much of a request that need not be stable is in the image: 0 .. its length, from its
 * beginning. */
typedef uint64_t WriteLogChoose(void *opaque, const WriteLogEntry *entry);

/* write_log_replay - make @image_fd what a crash at the cut may have left of a disk that was all
 * zero;
 * @choose NULL: nothing that need not be there. -errno. Blocks. */
int write_log_replay(const WriteLog *log, int log_fd, int image_fd, WriteLogChoose *choose,
                     void *opaque) NONNULL(1) WARN_UNUSED;

#endif
