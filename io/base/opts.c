/*
 * opts.c - splitting and reading `key=value` lists
 *
 * An item of the list ends at a comma that is not doubled. The item is unescaped as a whole and
 * then cut at its first '='. What stands before that must be a key: a letter, then letters, digits,
 * '-' and '_'. The first item is a bare value when that is not so, which is the case for a path,
 * for a URI (its ':' is no character of a key) and for a path with '=' in a directory's name.
 */
#include "io/base/opts.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define KEY_BYTES_MAX 32 /* longest key that a suggestion is looked for */

/* --- splitting --- */

/* Copy the item at *@text, with doubled commas made single, and step behind its comma. */
static char *take_item(const char **text)
{
    const char *from = *text;
    char *item = malloc(strlen(from) + 1);
    char *to = item;

    if (!item) {
        return NULL;
    }
    while (*from && (*from != ',' || from[1] == ',')) {
        from += *from == ',' ? 1 : 0;
        *to++ = *from++;
    }
    *to = '\0';
    *text = from;
    return item;
}

static bool is_key(const char *text, size_t len)
{
    if (len == 0 || !isalpha((unsigned char)text[0])) {
        return false;
    }
    for (size_t i = 1; i < len; i++) {
        bool dot = text[i] == '.' && text[i - 1] != '.' && i + 1 < len;

        if (!isalnum((unsigned char)text[i]) && text[i] != '-' && text[i] != '_' && !dot) {
            return false;
        }
    }
    return true;
}

static Opt *find(const Opts *opts, const char *key)
{
    for (unsigned i = 0; i < opts->nb_opts; i++) {
        if (strcmp(opts->opt[i].key, key) == 0) {
            return (Opt *)&opts->opt[i];
        }
    }
    return NULL;
}

static int add(Opts *opts, const char *key, size_t key_len, const char *value, Error *err)
{
    if (opts->nb_opts == OPTS_MAX) {
        return error_set(err, -EINVAL, "%s: more than %d items", opts->what, OPTS_MAX);
    }

    AUTO_FREE char *key_copy = strndup(key, key_len);
    AUTO_FREE char *value_copy = strdup(value);

    if (!key_copy || !value_copy) {
        return error_set(err, -ENOMEM, "%s: out of memory", opts->what);
    }
    if (find(opts, key_copy)) {
        return error_set(err, -EINVAL, "%s: '%s' is given twice", opts->what, key_copy);
    }
    opts->opt[opts->nb_opts++] =
        (Opt){ .key = take_ptr(&key_copy), .value = take_ptr(&value_copy) };
    return 0;
}

static int add_item(Opts *opts, const char *item, const char *implied_key, Error *err)
{
    const char *equals = strchr(item, '=');

    if (equals && is_key(item, (size_t)(equals - item))) {
        return add(opts, item, (size_t)(equals - item), equals + 1, err);
    }
    if (implied_key && *item) {
        return add(opts, implied_key, strlen(implied_key), item, err);
    }
    if (!*item) {
        return error_set(err, -EINVAL, "%s: item %u is empty", opts->what, opts->nb_opts + 1);
    }
    if (equals) {
        return error_set(err, -EINVAL, "%s: '%.*s' is not a key", opts->what,
                         (int)(equals - item), item);
    }
    return error_set(err, -EINVAL, "%s: '%s' has no value; key=value expected", opts->what, item);
}

int opts_parse(Opts *opts, const char *what, const char *text, const char *implied_key, Error *err)
{
    *opts = (Opts){ .what = what };

    bool more = *text != '\0';

    while (more) {
        AUTO_FREE char *item = take_item(&text);

        more = *text == ',';
        text += more ? 1 : 0;

        int ret = item ? add_item(opts, item, opts->nb_opts == 0 ? implied_key : NULL, err)
                       : error_set(err, -ENOMEM, "%s: out of memory", what);

        if (ret < 0) {
            opts_finish(opts);
            return ret;
        }
    }
    return 0;
}

int opts_add(Opts *opts, const char *key, const char *value, Error *err)
{
    return add(opts, key, strlen(key), value, err);
}

int opts_take_group(Opts *opts, const char *group, const char *what, Opts *ret_group, Error *err)
{
    size_t len = strlen(group);

    *ret_group = (Opts){ .what = what };
    for (unsigned i = 0; i < opts->nb_opts; i++) {
        Opt *opt = &opts->opt[i];
        int ret;

        if (strncmp(opt->key, group, len) != 0 || opt->key[len] != '.') {
            continue;
        }
        opt->used = true;
        ret = opts_add(ret_group, opt->key + len + 1, opt->value, err);
        if (ret < 0) {
            opts_finish(ret_group);
            return ret;
        }
    }
    return 0;
}

void opts_finish(Opts *opts)
{
    if (!opts) {
        return;
    }
    for (unsigned i = 0; i < opts->nb_opts; i++) {
        free(opts->opt[i].key);
        free(opts->opt[i].value);
    }
    *opts = (Opts){ .what = opts->what };
}

/* --- reading --- */

static void remember_key(Opts *opts, const char *key)
{
    for (unsigned i = 0; i < opts->nb_known; i++) {
        if (strcmp(opts->known[i], key) == 0) {
            return;
        }
    }
    assert(opts->nb_known < OPTS_MAX);
    opts->known[opts->nb_known++] = key;
}

const char *opts_get(Opts *opts, const char *key)
{
    Opt *opt = find(opts, key);

    remember_key(opts, key);
    if (!opt) {
        return NULL;
    }
    opt->used = true;
    return opt->value;
}

bool opts_has(const Opts *opts, const char *key)
{
    return find(opts, key) != NULL;
}

/*
 * Digits at *@text: decimal, or hexadecimal after 0x. Steps behind them.
 * -EINVAL when there is none, -ERANGE when the number needs more than 64 bits.
 */
static int take_digits(const char **text, uint64_t *ret_value)
{
    unsigned base = (*text)[0] == '0' && ((*text)[1] | 0x20) == 'x' ? 16 : 10;
    const char *p = *text + (base == 16 ? 2 : 0);
    uint64_t value = 0;

    if (!isxdigit((unsigned char)*p)) {
        return -EINVAL;
    }
    for (; isxdigit((unsigned char)*p); p++) {
        unsigned digit = isdigit((unsigned char)*p) ? (unsigned)(*p - '0')
                                                    : (unsigned)((*p | 0x20) - 'a' + 10);

        if (digit >= base) {
            return -EINVAL;
        }
        if (!checked_mul(value, base, &value) || !checked_add(value, digit, &value)) {
            return -ERANGE;
        }
    }
    *text = p;
    *ret_value = value;
    return 0;
}

int opts_parse_u64(const char *what, const char *text, uint64_t min, uint64_t max,
                   uint64_t *ret_value, Error *err)
{
    const char *end = text;
    uint64_t value = 0;
    int ret = take_digits(&end, &value);

    if (ret == -EINVAL || (ret == 0 && *end)) {
        return error_set(err, -EINVAL, "%s: '%s' is not a number", what, text);
    }
    if (ret < 0 || value < min || value > max) {
        return error_set(err, -EINVAL, "%s: %s is not between %" PRIu64 " and %" PRIu64, what,
                         text, min, max);
    }
    *ret_value = value;
    return 0;
}

/* The power of two that the suffix letter stands for, -1 for any other letter. */
static int suffix_shift(char suffix)
{
    switch (suffix) {
    case '\0':
        return 0;
    case 'k':
    case 'K':
        return 10;
    case 'm':
    case 'M':
        return 20;
    case 'g':
    case 'G':
        return 30;
    case 't':
    case 'T':
        return 40;
    default:
        return -1;
    }
}

/* A size as people write it: in the largest unit that divides it. */
static const char *format_size(uint64_t bytes, char *buf, size_t size_bytes)
{
    static const char suffixes[] = { '\0', 'K', 'M', 'G', 'T', '\0' };
    unsigned unit = 0;

    while (bytes != 0 && bytes % 1024 == 0 && suffixes[unit + 1]) {
        bytes /= 1024;
        unit++;
    }
    snprintf(buf, size_bytes, "%" PRIu64 "%.1s", bytes, &suffixes[unit]);
    return buf;
}

int opts_parse_size(const char *what, const char *text, uint64_t min, uint64_t max,
                    uint64_t *ret_bytes, Error *err)
{
    const char *end = text;
    uint64_t bytes = 0;
    int ret = take_digits(&end, &bytes);
    int shift = ret < 0 ? 0 : suffix_shift(*end);

    if (ret == -EINVAL || shift < 0 || (ret == 0 && *end && end[1])) {
        return error_set(err, -EINVAL,
                         "%s: '%s' is not a size; a number with K, M, G or T expected", what,
                         text);
    }
    if (ret < 0 || !checked_mul(bytes, UINT64_C(1) << shift, &bytes) || bytes < min ||
        bytes > max) {
        char min_text[24], max_text[24];

        return error_set(err, -EINVAL, "%s: %s is not between %s and %s", what, text,
                         format_size(min, min_text, sizeof(min_text)),
                         format_size(max, max_text, sizeof(max_text)));
    }
    *ret_bytes = bytes;
    return 0;
}

/* The option and key as messages name them: "--disk: queues". */
static const char *name_of(const Opts *opts, const char *key, char *buf, size_t size_bytes)
{
    snprintf(buf, size_bytes, "%s: %s", opts->what, key);
    return buf;
}

int opts_get_u64(Opts *opts, const char *key, uint64_t min, uint64_t max, uint64_t *value,
                 Error *err)
{
    const char *text = opts_get(opts, key);
    char name[128];

    return text ? opts_parse_u64(name_of(opts, key, name, sizeof(name)), text, min, max, value, err)
                : 0;
}

int opts_get_size(Opts *opts, const char *key, uint64_t min, uint64_t max, uint64_t *value,
                  Error *err)
{
    const char *text = opts_get(opts, key);
    char name[128];

    return text ? opts_parse_size(name_of(opts, key, name, sizeof(name)), text, min, max, value,
                                  err)
                : 0;
}

/* Append ", "-separated names to a message as far as it has room. */
static void append_name(char *buf, size_t size_bytes, const char *name)
{
    size_t len = strlen(buf);

    snprintf(buf + len, size_bytes - len, "%s%s", len > 0 ? ", " : "", name);
}

int opts_get_enum(Opts *opts, const char *key, const char *const *names, int *value, Error *err)
{
    const char *text = opts_get(opts, key);
    char choices[160] = "";

    if (!text) {
        return 0;
    }
    for (int i = 0; names[i]; i++) {
        if (strcmp(text, names[i]) == 0) {
            *value = i;
            return 0;
        }
        append_name(choices, sizeof(choices), names[i]);
    }
    return error_set(err, -EINVAL, "%s: %s: '%s' is none of: %s", opts->what, key, text, choices);
}

int opts_get_bool(Opts *opts, const char *key, bool *value, Error *err)
{
    static const char *const names[] = { "off", "on", NULL };
    int index = *value;
    int ret = opts_get_enum(opts, key, names, &index, err);

    if (ret == 0) {
        *value = index;
    }
    return ret;
}

/* --- what nobody asked for --- */

/* Levenshtein distance of two words of at most KEY_BYTES_MAX bytes. */
static unsigned edit_distance(const char *a, const char *b)
{
    unsigned row[KEY_BYTES_MAX + 1];
    size_t len_b = strlen(b);

    for (unsigned j = 0; j <= len_b; j++) {
        row[j] = j;
    }
    for (unsigned i = 1; a[i - 1]; i++) {
        unsigned diagonal = row[0]; /* of the row above */

        row[0] = i;
        for (unsigned j = 1; j <= len_b; j++) {
            unsigned replace = diagonal + (a[i - 1] != b[j - 1]);
            unsigned insert_or_delete = MIN(row[j], row[j - 1]) + 1;

            diagonal = row[j];
            row[j] = MIN(replace, insert_or_delete);
        }
    }
    return row[len_b];
}

/* The known key that @key is most likely a typing error of, NULL when none is near. */
static const char *nearest_known(const Opts *opts, const char *key)
{
    const char *nearest = NULL;
    unsigned nearest_distance = 3; /* further away is another word */

    if (strlen(key) > KEY_BYTES_MAX) {
        return NULL;
    }
    for (unsigned i = 0; i < opts->nb_known; i++) {
        if (strlen(opts->known[i]) > KEY_BYTES_MAX) {
            continue;
        }
        unsigned distance = edit_distance(key, opts->known[i]);

        if (distance < nearest_distance) {
            nearest_distance = distance;
            nearest = opts->known[i];
        }
    }
    return nearest;
}

static int refuse_unknown(const Opts *opts, const char *key, Error *err)
{
    const char *nearest = nearest_known(opts, key);

    if (nearest) {
        return error_set(err, -EINVAL, "%s: unknown key '%s'; did you mean '%s'?", opts->what, key,
                         nearest);
    }

    char known[192] = "";

    for (unsigned i = 0; i < opts->nb_known; i++) {
        append_name(known, sizeof(known), opts->known[i]);
    }
    return error_set(err, -EINVAL, "%s: unknown key '%s'; known are: %s", opts->what, key, known);
}

int opts_check_all_used(Opts *opts, Error *err)
{
    for (unsigned i = 0; i < opts->nb_opts; i++) {
        if (!opts->opt[i].used) {
            return refuse_unknown(opts, opts->opt[i].key, err);
        }
    }
    return 0;
}
