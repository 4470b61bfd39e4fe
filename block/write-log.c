/*
 * write-log.c - writing and reading the trace of log-writes
 *
 * Invariants:
 *   (1) The place of an entry is taken under the lock, so the order of entries is that of taking;
 *       the entry is in the file before write_log_co_begin() or _done() returns.
 *   (2) After an entry that could not be written none is: what is behind a gap cannot be read.
 *   (3) Of what a reader keeps, serials are 1, 2, 3 ... in order; no range leaves the disk.
 */
#include "block/write-log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/base/endian.h"

#define ENTRY_MAGIC     0x454c5750u
#define VERSION         1
#define DISK_BYTES_MAX  ((uint64_t)1 << 62)
#define WRITE_BYTES_MAX ((uint64_t)1 << 32)
#define PIECE_BYTES     4096

typedef struct LogHead {
    char name[8];
    char kind[4];
    le32 version;
    le64 disk_bytes;
    le64 zero;
} LogHead;

typedef struct LogEntry {
    le32 magic;
    le32 type;
    le32 flags;
    le32 error;
    le64 serial;
    le64 offset_bytes;
    le64 len_bytes;
    le64 zero;
} LogEntry;

static_assert(sizeof(LogHead) == 32 && sizeof(LogEntry) == 48, "write-log.h");

/* --- blocking transfers --- */

/* 0, -EINVAL at the end of the file, or -errno. */
static int read_all(int fd, void *buf, size_t len_bytes, uint64_t offset_bytes)
{
    while (len_bytes > 0) {
        ssize_t n = pread(fd, buf, len_bytes, (off_t)offset_bytes);

        if (n <= 0) {
            if (n < 0 && errno == EINTR) {
                continue;
            }
            return n < 0 ? -errno : -EINVAL;
        }
        buf = (char *)buf + n;
        len_bytes -= (size_t)n;
        offset_bytes += (uint64_t)n;
    }
    return 0;
}

static int write_all(int fd, const void *buf, size_t len_bytes, uint64_t offset_bytes)
{
    while (len_bytes > 0) {
        ssize_t n = pwrite(fd, buf, len_bytes, (off_t)offset_bytes);

        if (n < 0) {
            if (errno == EINTR) {
                continue;
            }
            return -errno;
        }
        buf = (const char *)buf + n;
        len_bytes -= (size_t)n;
        offset_bytes += (uint64_t)n;
    }
    return 0;
}

/* --- writing --- */

int write_log_writer_init(WriteLogWriter *w, int fd, uint64_t disk_bytes)
{
    LogHead head = {
        .name = "penstock",
        .kind = "wlog",
        .version = le32_make(VERSION),
        .disk_bytes = le64_make(disk_bytes),
    };
    int ret = write_all(fd, &head, sizeof(head), 0);

    if (ret == 0) {
        *w = (WriteLogWriter){ .end_bytes = sizeof(head) };
        pthread_mutex_init(&w->lock, NULL);
        aio_file_init(&w->file, fd);
    }
    return ret;
}

void write_log_writer_finish(WriteLogWriter *w)
{
    aio_file_finish(&w->file);
    pthread_mutex_destroy(&w->lock);
}

static co_fn int co_put(WriteLogWriter *w, const void *buf, size_t len_bytes, uint64_t at_bytes)
{
    int error = atomic_load(&w->error);

    while (len_bytes > 0 && error == 0) {
        struct iovec iov = { (void *)buf, len_bytes };
        int64_t n = aio_co_pwritev(&w->file, &iov, 1, at_bytes, 0);

        if (n <= 0) {
            error = n < 0 ? (int)n : -EIO;
            atomic_store(&w->error, error);
            break;
        }
        buf = (const char *)buf + n;
        len_bytes -= (size_t)n;
        at_bytes += (uint64_t)n;
    }
    return error;
}

/* A place for an entry and its data; its serial when it is that of a request. */
static uint64_t take_place(WriteLogWriter *w, uint64_t len_bytes, uint64_t *ret_serial)
{
    uint64_t at_bytes;

    pthread_mutex_lock(&w->lock);
    at_bytes = w->end_bytes;
    w->end_bytes += sizeof(LogEntry) + len_bytes;
    if (ret_serial) {
        *ret_serial = ++w->last_serial;
    }
    pthread_mutex_unlock(&w->lock);
    return at_bytes;
}

co_fn int write_log_co_begin(WriteLogWriter *w, WriteLogType type, unsigned flags,
                             uint64_t offset_bytes, uint64_t len_bytes, const struct iovec *iov,
                             int niov, uint64_t *ret_serial)
{
    uint64_t data_len_bytes = type == WRITE_LOG_WRITE ? len_bytes : 0;
    uint64_t at_bytes = take_place(w, data_len_bytes, ret_serial);
    LogEntry entry = {
        .magic = le32_make(ENTRY_MAGIC),
        .type = le32_make(type),
        .flags = le32_make(flags),
        .serial = le64_make(*ret_serial),
        .offset_bytes = le64_make(offset_bytes),
        .len_bytes = le64_make(len_bytes),
    };
    int ret = co_put(w, &entry, sizeof(entry), at_bytes);

    at_bytes += sizeof(entry);
    for (int i = 0; i < niov && ret == 0; i++) {
        ret = co_put(w, iov[i].iov_base, iov[i].iov_len, at_bytes);
        at_bytes += iov[i].iov_len;
    }
    return ret;
}

co_fn int write_log_co_done(WriteLogWriter *w, uint64_t serial, int result)
{
    uint64_t at_bytes = take_place(w, 0, NULL);
    LogEntry entry = {
        .magic = le32_make(ENTRY_MAGIC),
        .type = le32_make(WRITE_LOG_DONE),
        .error = le32_make((uint32_t)-result),
        .serial = le64_make(serial),
    };
    int ret = co_put(w, &entry, sizeof(entry), at_bytes);

    return ret < 0 ? ret : result;
}

/* --- reading --- */

typedef struct Reader {
    int fd;
    uint64_t at_bytes, file_bytes;
    unsigned capacity;
    WriteLog *log;
    Error *err;
} Reader;

static int bad(Reader *r, const char *what)
{
    return error_set(r->err, -EINVAL, "write log: at byte %" PRIu64 ": %s", r->at_bytes, what);
}

static int read_head(Reader *r)
{
    LogHead head;
    int ret = read_all(r->fd, &head, sizeof(head), 0);

    if (ret < 0 && ret != -EINVAL) {
        return error_set(r->err, ret, "write log: %s", error_strerror(ret));
    }
    if (ret < 0 || memcmp(head.name, "penstock", 8) != 0 || memcmp(head.kind, "wlog", 4) != 0) {
        return bad(r, "this is no write log");
    }
    if (le32_get(head.version) != VERSION) {
        return bad(r, "a version that is not known");
    }
    r->log->disk_bytes = le64_get(head.disk_bytes);
    if (r->log->disk_bytes > DISK_BYTES_MAX) {
        return bad(r, "a disk that is too large");
    }
    r->at_bytes = sizeof(head);
    return 0;
}

/* 1, 0 when the file ends within its data, or an error. */
static int add_request(Reader *r, const LogEntry *wire)
{
    WriteLog *log = r->log;
    WriteLogEntry e = {
        .type = (WriteLogType)le32_get(wire->type),
        .fua = le32_get(wire->flags) & WRITE_LOG_FUA,
        .serial = le64_get(wire->serial),
        .offset_bytes = le64_get(wire->offset_bytes),
        .len_bytes = le64_get(wire->len_bytes),
        .data_bytes = r->at_bytes + sizeof(*wire),
        .begun_at = log->nb_read,
    };

    if (e.serial != (uint64_t)log->nb_requests + 1) {
        return bad(r, "a serial number that is not the next one");
    }
    if (e.offset_bytes > log->disk_bytes || e.len_bytes > log->disk_bytes - e.offset_bytes) {
        return bad(r, "a range outside the disk");
    }
    if (e.type == WRITE_LOG_WRITE) {
        uint64_t left_bytes = r->file_bytes - MIN(r->file_bytes, e.data_bytes);

        if (e.len_bytes > WRITE_BYTES_MAX) {
            return bad(r, "a write that is too long");
        }
        if (e.len_bytes > left_bytes) {
            return 0;
        }
        r->at_bytes += e.len_bytes;
    }
    if (log->nb_requests == r->capacity) {
        unsigned capacity = MAX(2 * r->capacity, 64u);
        WriteLogEntry *requests = realloc(log->requests, capacity * sizeof(*requests));

        if (!requests) {
            return error_set(r->err, -ENOMEM, "write log: out of memory");
        }
        log->requests = requests;
        r->capacity = capacity;
    }
    log->requests[log->nb_requests++] = e;
    return 1;
}

/* 1, or an error. */
static int take_done(Reader *r, const LogEntry *wire)
{
    WriteLog *log = r->log;
    uint64_t serial = le64_get(wire->serial);
    WriteLogEntry *e;

    if (serial < 1 || serial > log->nb_requests) {
        return bad(r, "the end of a request that has not begun");
    }
    e = &log->requests[serial - 1];
    if (e->ended) {
        return bad(r, "the end of a request that has ended before");
    }
    e->ended = true;
    e->done = le32_get(wire->error) == 0;
    e->done_at = log->nb_read;
    log->nb_flushes += e->done && e->type == WRITE_LOG_FLUSH;
    return 1;
}

/* One entry: 1, 0 at the end, or an error. */
static int read_entry(Reader *r)
{
    uint32_t type;
    LogEntry wire;
    int ret;

    if (r->file_bytes - r->at_bytes < sizeof(wire)) {
        return 0;
    }
    ret = read_all(r->fd, &wire, sizeof(wire), r->at_bytes);
    if (ret < 0) {
        return error_set(r->err, ret, "write log: %s", error_strerror(ret));
    }
    if (le32_get(wire.magic) == 0) {
        return 0;
    }
    type = le32_get(wire.type);
    if (le32_get(wire.magic) != ENTRY_MAGIC || type < WRITE_LOG_WRITE || type > WRITE_LOG_DONE) {
        return bad(r, "this is no entry");
    }
    if (r->log->nb_read == WRITE_LOG_ENTRIES_MAX) {
        return error_set(r->err, -EFBIG, "write log: more than %u entries", WRITE_LOG_ENTRIES_MAX);
    }
    ret = type == WRITE_LOG_DONE ? take_done(r, &wire) : add_request(r, &wire);
    if (ret > 0) {
        r->at_bytes += sizeof(wire);
        r->log->nb_read++;
    }
    return ret;
}

static void find_stable(WriteLog *log)
{
    uint64_t flushed_at = 0; /* the last flush that is done began there */

    for (unsigned i = 0; i < log->nb_requests; i++) {
        const WriteLogEntry *e = &log->requests[i];

        if (e->type == WRITE_LOG_FLUSH && e->done) {
            flushed_at = e->begun_at;
        }
    }
    for (unsigned i = 0; i < log->nb_requests; i++) {
        WriteLogEntry *e = &log->requests[i];

        e->stable = e->done && (e->fua || e->done_at < flushed_at);
    }
}

int write_log_read(WriteLog *log, int fd, uint64_t max_entries, Error *err)
{
    Reader r = { .fd = fd, .log = log, .err = err };
    struct stat st;
    int ret;

    *log = (WriteLog){ 0 };
    if (fstat(fd, &st) < 0) {
        ret = -errno;
        return error_set(err, ret, "write log: %s", error_strerror(ret));
    }
    r.file_bytes = (uint64_t)st.st_size;
    ret = read_head(&r);
    if (ret == 0) {
        do {
            ret = log->nb_read < max_entries ? read_entry(&r) : 0;
        } while (ret > 0);
    }
    if (ret < 0) {
        write_log_finish(log);
        return ret;
    }
    find_stable(log);
    return 0;
}

void write_log_finish(WriteLog *log)
{
    free(log->requests);
    *log = (WriteLog){ 0 };
}

/* --- replay --- */

static int copy_data(int log_fd, int image_fd, const WriteLogEntry *e, uint64_t len_bytes)
{
    char buf[PIECE_BYTES];
    uint64_t done_bytes = 0;
    int ret = 0;

    while (done_bytes < len_bytes && ret == 0) {
        size_t piece = MIN(len_bytes - done_bytes, sizeof(buf));

        ret = read_all(log_fd, buf, piece, e->data_bytes + done_bytes);
        if (ret == 0) {
            ret = write_all(image_fd, buf, piece, e->offset_bytes + done_bytes);
        }
        done_bytes += piece;
    }
    return ret;
}

static int zero_range(int image_fd, const WriteLogEntry *e, uint64_t len_bytes)
{
    const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

    if (len_bytes == 0) {
        return 0;
    }
    return fallocate(image_fd, mode, (off_t)e->offset_bytes, (off_t)len_bytes) < 0 ? -errno : 0;
}

int write_log_replay(const WriteLog *log, int log_fd, int image_fd, WriteLogChoose *choose,
                     void *opaque)
{
    int ret = 0;

    if (ftruncate(image_fd, 0) < 0 || ftruncate(image_fd, (off_t)log->disk_bytes) < 0) {
        return -errno;
    }
    for (unsigned i = 0; i < log->nb_requests && ret == 0; i++) {
        const WriteLogEntry *e = &log->requests[i];
        uint64_t len_bytes = e->len_bytes;

        if (!e->stable) {
            len_bytes = choose ? MIN(choose(opaque, e), len_bytes) : 0;
        }
        if (e->type == WRITE_LOG_WRITE) {
            ret = copy_data(log_fd, image_fd, e, len_bytes);
        } else if (e->type != WRITE_LOG_FLUSH) {
            ret = zero_range(image_fd, e, len_bytes);
        }
    }
    return ret;
}
