/*
 * iov.h - walking a scatter-gather list: total, slice, copy, fill
 *
 * Layer:     block/ (may use io/)
 * Threading: pure; a cursor belongs to its creator and borrows the list.
 */
#ifndef BLOCK_IOV_H
#define BLOCK_IOV_H

#include <sys/uio.h>

#include "io/base/compiler.h"

/* iov_total - bytes that @iov holds; UINT64_MAX when the sum overflows */
uint64_t iov_total(const struct iovec *iov, int niov);

/*
 * IovCursor - a place in a list
 * Never rests on an exhausted segment: iov->iov_len > skip_bytes, or niov == 0 at the end.
 */
typedef struct IovCursor {
    const struct iovec *iov; /* the segment the cursor stands in */
    int niov;                /* segments from there on */
    size_t skip_bytes;       /* of the first segment, behind the cursor */
} IovCursor;

void iov_cursor_init(IovCursor *cur, const struct iovec *iov, int niov) NONNULL(1);

/* The following stop at the end of the list and return the bytes they moved over. */
uint64_t iov_cursor_advance(IovCursor *cur, uint64_t len_bytes) NONNULL(1);
/* gather: from the list into @buf */
uint64_t iov_cursor_read(IovCursor *cur, void *buf, uint64_t len_bytes) NONNULL(1, 2);
/* scatter: from @buf into the list */
uint64_t iov_cursor_write(IovCursor *cur, const void *buf, uint64_t len_bytes) NONNULL(1, 2);
uint64_t iov_cursor_zero(IovCursor *cur, uint64_t len_bytes) NONNULL(1);

/*
 * iov_cursor_slice - the segments of the next @len_bytes as a list of their own; does not move
 * @ret_iov   room for @max_iov segments
 * @ret_niov  segments used
 * Returns the bytes in the slice: less than asked for when @max_iov or the list ends first.
 */
uint64_t iov_cursor_slice(const IovCursor *cur, uint64_t len_bytes, struct iovec *ret_iov,
                          int max_iov, int *ret_niov) NONNULL(1, 3, 5);

/* iov_zero - zeroes from @skip_bytes to the end of the list */
void iov_zero(const struct iovec *iov, int niov, uint64_t skip_bytes);

#endif
