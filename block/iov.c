/*
 * iov.c - walking a scatter-gather list
 *
 * Lists come from guests: segments may be empty, and lengths may add up to anything.
 */
#include "block/iov.h"

#include <string.h>

uint64_t iov_total(const struct iovec *iov, int niov)
{
    uint64_t total = 0;

    for (int i = 0; i < niov; i++) {
        if (!checked_add(total, iov[i].iov_len, &total)) {
            return UINT64_MAX;
        }
    }
    return total;
}

/* Step over what is exhausted, so that the cursor rests on a byte or at the end. */
static void settle(IovCursor *cur)
{
    while (cur->niov > 0 && cur->skip_bytes == cur->iov->iov_len) {
        cur->iov++;
        cur->niov--;
        cur->skip_bytes = 0;
    }
}

void iov_cursor_init(IovCursor *cur, const struct iovec *iov, int niov)
{
    *cur = (IovCursor){ .iov = iov, .niov = niov };
    settle(cur);
}

/* The next piece in one segment, at most @len_bytes; moves the cursor behind it. */
static size_t next_piece(IovCursor *cur, uint64_t len_bytes, void **ret_base)
{
    size_t left = cur->iov->iov_len - cur->skip_bytes;
    size_t piece = len_bytes < left ? (size_t)len_bytes : left;

    *ret_base = (char *)cur->iov->iov_base + cur->skip_bytes;
    cur->skip_bytes += piece;
    settle(cur);
    return piece;
}

uint64_t iov_cursor_advance(IovCursor *cur, uint64_t len_bytes)
{
    uint64_t done = 0;
    void *base;

    while (done < len_bytes && cur->niov > 0) {
        done += next_piece(cur, len_bytes - done, &base);
    }
    return done;
}

uint64_t iov_cursor_read(IovCursor *cur, void *buf, uint64_t len_bytes)
{
    uint64_t done = 0;
    void *base;

    while (done < len_bytes && cur->niov > 0) {
        size_t piece = next_piece(cur, len_bytes - done, &base);

        memcpy((char *)buf + done, base, piece);
        done += piece;
    }
    return done;
}

uint64_t iov_cursor_write(IovCursor *cur, const void *buf, uint64_t len_bytes)
{
    uint64_t done = 0;
    void *base;

    while (done < len_bytes && cur->niov > 0) {
        size_t piece = next_piece(cur, len_bytes - done, &base);

        memcpy(base, (const char *)buf + done, piece);
        done += piece;
    }
    return done;
}

uint64_t iov_cursor_zero(IovCursor *cur, uint64_t len_bytes)
{
    uint64_t done = 0;
    void *base;

    while (done < len_bytes && cur->niov > 0) {
        size_t piece = next_piece(cur, len_bytes - done, &base);

        memset(base, 0, piece);
        done += piece;
    }
    return done;
}

uint64_t iov_cursor_slice(const IovCursor *cur, uint64_t len_bytes, struct iovec *ret_iov,
                          int max_iov, int *ret_niov)
{
    IovCursor walk = *cur;
    uint64_t done = 0;
    int niov = 0;

    while (done < len_bytes && walk.niov > 0 && niov < max_iov) {
        void *base;
        size_t piece = next_piece(&walk, len_bytes - done, &base);

        ret_iov[niov++] = (struct iovec){ .iov_base = base, .iov_len = piece };
        done += piece;
    }
    *ret_niov = niov;
    return done;
}

void iov_zero(const struct iovec *iov, int niov, uint64_t skip_bytes)
{
    IovCursor cur;

    iov_cursor_init(&cur, iov, niov);
    iov_cursor_advance(&cur, skip_bytes);
    iov_cursor_zero(&cur, UINT64_MAX);
}
