/*
 * psk-file - files of pre-shared keys, as psktool writes them
 *
 * Layer:     io/channel, private
 * Threading: a PskFile is immutable once loaded.
 *
 * Lines NAME:HEX; empty ones and those that begin with '#' are passed over.
 */
#ifndef IO_CHANNEL_PSK_FILE_H
#define IO_CHANNEL_PSK_FILE_H

#include "io/base/error.h"

#define PSK_FILE_BYTES_MAX (1 << 20)
#define PSK_KEY_BYTES_MAX  512

typedef struct PskKey {
    const char *name;
    const uint8_t *key;
    size_t len_bytes;
} PskKey;

typedef struct PskFile {
    unsigned nb;
    PskKey *keys;
    char *text; /* what they point into */
    size_t text_bytes;
} PskFile;

/* psk_file_load - Errors: of open() and read(), -EINVAL (with the line's number), -EFBIG,
 * -ENOMEM */
int psk_file_load(PskFile *ret_file, const char *path, Error *err) NONNULL(1, 2) WARN_UNUSED;
/* psk_file_finish - forget the keys; they are wiped */
void psk_file_finish(PskFile *file) NONNULL(1);
/* psk_file_find - NULL when there is none */
const PskKey *psk_file_find(const PskFile *file, const char *name) NONNULL(1, 2);

#endif
