/*
 * Opts - a `key=value,key=value` list, as QEMU and cloud-hypervisor users write them
 *
 * Layer:     io/base
 * Threading: an Opts belongs to its creator.
 * Lifetime:  opts_parse() fills caller memory; opts_finish() frees what it copied.
 *
 * Syntax: pairs are separated by commas; a doubled comma inside a value stands for one comma; the
 * first item may be a bare value, which then gets the implied key the caller names. A dot in a key
 * puts it into a group: "file.path" is "path" in the list of "file". A key given twice is an error.
 * Every consumer asks for the keys it knows; opts_check_all_used() then refuses what nobody asked
 * for and names the nearest known key, so that a typing error is never ignored.
 */
#ifndef IO_BASE_OPTS_H
#define IO_BASE_OPTS_H

#include "io/base/error.h"

#define OPTS_MAX 64 /* pairs in one list */

typedef struct Opt {
    char *key;
    char *value;
    bool used;
} Opt;

typedef struct Opts {
    const char *what; /* for messages: "--disk"; borrowed */
    Opt opt[OPTS_MAX];
    unsigned nb_opts;
    const char *known[OPTS_MAX]; /* keys that were asked for; borrowed string literals */
    unsigned nb_known;
} Opts;

/*
 * opts_parse - split @text
 * @implied_key  key of a first item without '=' (or whose '=' comes after a URI's "://"), or NULL
 * Errors: -EINVAL with the place; @opts is then empty and needs no finish.
 */
int opts_parse(Opts *opts, const char *what, const char *text, const char *implied_key, Error *err)
    NONNULL(1, 2, 3) WARN_UNUSED;
void opts_finish(Opts *opts);

/* opts_add - one more item, both parts copied. Errors: -EINVAL given twice, or too many; -ENOMEM */
int opts_add(Opts *opts, const char *key, const char *value, Error *err)
    NONNULL(1, 2, 3) WARN_UNUSED;
/*
 * opts_take_group - the items GROUP.key=value as a list of their own with key=value; marks them
 * used
 * @what  of the new list; borrowed
 * Errors: -ENOMEM; @ret_group is then empty and needs no finish.
 */
int opts_take_group(Opts *opts, const char *group, const char *what, Opts *ret_group, Error *err)
    NONNULL(1, 2, 3, 4) WARN_UNUSED;

/* opts_get - the value of @key or NULL; marks it used. Borrowed until opts_finish(). */
const char *opts_get(Opts *opts, const char *key) NONNULL(1, 2);
bool opts_has(const Opts *opts, const char *key) NONNULL(1, 2);

/* The typed getters leave *value (the default) alone when the key is absent. */
int opts_get_u64(Opts *opts, const char *key, uint64_t min, uint64_t max, uint64_t *value,
                 Error *err) NONNULL(1, 2, 5) WARN_UNUSED;
/* bytes, with an optional suffix K, M, G or T (powers of 1024) */
int opts_get_size(Opts *opts, const char *key, uint64_t min, uint64_t max, uint64_t *value,
                  Error *err) NONNULL(1, 2, 5) WARN_UNUSED;
/* on|off */
int opts_get_bool(Opts *opts, const char *key, bool *value, Error *err)
    NONNULL(1, 2, 3) WARN_UNUSED;
/* one of @names (NULL-terminated); the index is stored */
int opts_get_enum(Opts *opts, const char *key, const char *const *names, int *value, Error *err)
    NONNULL(1, 2, 3, 4) WARN_UNUSED;

/* -EINVAL naming the first key that nobody asked for */
int opts_check_all_used(Opts *opts, Error *err) NONNULL(1) WARN_UNUSED;

/* opts_parse_size - the number form behind opts_get_size, for options that are a bare size */
int opts_parse_size(const char *what, const char *text, uint64_t min, uint64_t max,
                    uint64_t *ret_bytes, Error *err) NONNULL(1, 2, 5) WARN_UNUSED;
int opts_parse_u64(const char *what, const char *text, uint64_t min, uint64_t max,
                   uint64_t *ret_value, Error *err) NONNULL(1, 2, 5) WARN_UNUSED;

#endif
