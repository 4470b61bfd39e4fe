/*
 * aio-file-int.h - what aio-file.c and the monitors share: a disk request, and what the whole
 * process has given out as fixed files and buffers
 *
 * Layer:     io/aio, private
 * Threading: an AioFileOp belongs to the coroutine that waits for it. The tables are changed by
 *            aio-file.c alone and read in any home thread, in the order that their comments say.
 */
#ifndef IO_AIO_AIO_FILE_INT_H
#define IO_AIO_AIO_FILE_INT_H

#include "io/aio/aio-file.h"
#include "io/aio/aio-int.h"

typedef enum AioFileOpKind {
    FILE_READ,
    FILE_WRITE,
    FILE_DATASYNC,
    FILE_ALLOCATE,
} AioFileOpKind;

typedef struct AioFileOp {
    AioFileOpKind kind;
    int flags; /* RWF_* or FALLOC_FL_* */
    const struct iovec *iov;
    int niov;
    uint64_t offset_bytes;
    uint64_t len_bytes;
} AioFileOp;

/*
 * The generation of each slot's use, odd while a file has it. Stored with release by
 * aio_file_init() and aio_file_finish(): pairs with uring_files_sync_bh().
 */
extern _Atomic unsigned aio_file_generation[AIO_FILES_MAX];

/* uring_files_sync_bh - empty the slots of @opaque's ring whose files are gone; home */
void uring_files_sync_bh(void *opaque);

#define AIO_BUFFERS_MAX 256

/*
 * The ranges to register as fixed buffers. The numbers are stored with release, when range[]
 * stands: pair with uring_buffers_sync_bh() and the look before each request.
 */
typedef struct AioBuffers {
    struct iovec range[AIO_BUFFERS_MAX];
    _Atomic unsigned nb_ranges;
    _Atomic unsigned generation;
} AioBuffers;

extern AioBuffers aio_buffers;

/* uring_buffers_sync_bh - make the registration of @opaque's ring what the set is now; home */
void uring_buffers_sync_bh(void *opaque);

#endif
