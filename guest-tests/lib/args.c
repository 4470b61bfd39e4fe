/*
 * Args - the command line as words and key=value pairs
 *
 * A later word wins over an earlier one, so that a default can be put in
 * front.
 */
#include "guest-tests/lib/args.h"

#include "guest-tests/lib/boot.h"
#include "guest-tests/lib/console.h"
#include "guest-tests/lib/str.h"

bool arg_get_str(const char *key, const char **ret_value,
                 size_t *ret_len_bytes)
{
    const char *p = boot_info.cmdline;
    size_t key_len = strlen(key);
    bool found = false;

    while (*p) {
        while (*p == ' ') {
            p++;
        }

        const char *word = p;
        while (*p && *p != ' ') {
            p++;
        }
        if ((size_t)(p - word) > key_len && word[key_len] == '=' &&
            memcmp(word, key, key_len) == 0) {
            *ret_value = word + key_len + 1;
            *ret_len_bytes = (size_t)(p - *ret_value);
            found = true;
        }
    }
    return found;
}

bool arg_is(const char *key, const char *value)
{
    const char *s;
    size_t len;

    return arg_get_str(key, &s, &len) && str_equal(s, len, value);
}

size_t arg_get_list(const char *key, uint64_t *ret_values, size_t max)
{
    const char *s;
    size_t len, n = 0;

    if (!arg_get_str(key, &s, &len)) {
        return 0;
    }

    const char *end = s + len;
    while (s < end && n < max) {
        size_t used = str_to_u64(s, &ret_values[n]);

        if (used == 0) {
            break;
        }
        n++;
        s += used;
        if (s < end && *s == ',') {
            s++;
        } else {
            break;
        }
    }
    if (s != end || n == 0) {
        con_printf("Bail out! %s= is not a list of up to %zu numbers\n", key,
                   max);
        con_reset_machine();
    }
    return n;
}

bool arg_get_u64(const char *key, uint64_t *ret_value)
{
    return arg_get_list(key, ret_value, 1) == 1;
}

uint64_t arg_u64(const char *key, uint64_t otherwise, uint64_t min,
                 uint64_t max)
{
    uint64_t value = otherwise;

    arg_get_u64(key, &value);
    if (value < min || value > max) {
        con_printf("Bail out! %s=%lu is not in %lu..%lu\n", key, value, min,
                   max);
        con_reset_machine();
    }
    return value;
}
