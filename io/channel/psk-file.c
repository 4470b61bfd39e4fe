/*
 * psk-file.c - reading NAME:HEX lines; keys are turned into bytes where their text stood
 */
#include "io/channel/psk-file.h"

#include <fcntl.h>
#include <string.h>

static int read_whole(const char *path, PskFile *file)
{
    AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        return -errno;
    }
    file->text = malloc(PSK_FILE_BYTES_MAX + 1);
    if (!file->text) {
        return -ENOMEM;
    }
    while (file->text_bytes <= PSK_FILE_BYTES_MAX) {
        ssize_t n = read(fd, file->text + file->text_bytes,
                         PSK_FILE_BYTES_MAX + 1 - file->text_bytes);

        if (n < 0 && errno != EINTR) {
            return -errno;
        }
        if (n == 0) {
            file->text[file->text_bytes] = '\0';
            return strlen(file->text) == file->text_bytes ? 0 : -EINVAL;
        }
        file->text_bytes += MAX(n, 0);
    }
    return -EFBIG;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Returns the key's length, or -EINVAL. */
static int decode_key(char *hex)
{
    size_t len = strlen(hex);

    if (len == 0 || len % 2 || len / 2 > PSK_KEY_BYTES_MAX) {
        return -EINVAL;
    }
    for (size_t i = 0; i < len / 2; i++) {
        int high = hex_digit(hex[2 * i]), low = hex_digit(hex[2 * i + 1]);

        if (high < 0 || low < 0) {
            return -EINVAL;
        }
        hex[i] = (char)(high << 4 | low);
    }
    return (int)(len / 2);
}

static int add_line(PskFile *file, char *line)
{
    char *colon = strrchr(line, ':');

    if (!colon || colon == line) {
        return -EINVAL;
    }
    *colon = '\0';
    int len = decode_key(colon + 1);

    if (len < 0) {
        return len;
    }
    PskKey *keys = realloc(file->keys, (file->nb + 1) * sizeof(*keys));

    if (!keys) {
        return -ENOMEM;
    }
    file->keys = keys;
    file->keys[file->nb++] = (PskKey){ line, (uint8_t *)colon + 1, (size_t)len };
    return 0;
}

static int parse(PskFile *file, const char *path, Error *err)
{
    unsigned number = 1;

    for (char *line = file->text, *next; line; line = next, number++) {
        next = strchr(line, '\n');
        if (next) {
            *next++ = '\0';
        }
        if (!line[0] || line[0] == '#') {
            continue;
        }
        int ret = add_line(file, line);

        if (ret < 0) {
            return error_set(err, ret, "'%s', line %u: %s", path, number,
                             ret == -EINVAL ? "NAME:KEY in hexadecimal is expected"
                                            : error_strerror(ret));
        }
    }
    if (file->nb == 0) {
        return error_set(err, -EINVAL, "'%s' has no key", path);
    }
    return 0;
}

int psk_file_load(PskFile *ret_file, const char *path, Error *err)
{
    *ret_file = (PskFile){ .nb = 0 };
    int ret = read_whole(path, ret_file);

    if (ret < 0) {
        error_set(err, ret, "'%s': %s", path,
                  ret == -EINVAL ? "is no text file" : error_strerror(ret));
    } else {
        ret = parse(ret_file, path, err);
    }
    if (ret < 0) {
        psk_file_finish(ret_file);
    }
    return ret;
}

void psk_file_finish(PskFile *file)
{
    if (file->text) {
        explicit_bzero(file->text, file->text_bytes);
    }
    free(file->text);
    free(file->keys);
    *file = (PskFile){ .nb = 0 };
}

const PskKey *psk_file_find(const PskFile *file, const char *name)
{
    for (unsigned i = 0; i < file->nb; i++) {
        if (strcmp(file->keys[i].name, name) == 0) {
            return &file->keys[i];
        }
    }
    return NULL;
}
