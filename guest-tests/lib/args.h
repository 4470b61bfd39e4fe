/*
 * Args - the command line as words and key=value pairs
 *
 * Layer:     guest-tests/lib (freestanding; links nothing of penstock)
 * Threading: the first processor.
 * Lifetime:  results point into boot_info.cmdline and stay valid.
 */
#ifndef GUEST_TESTS_LIB_ARGS_H
#define GUEST_TESTS_LIB_ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* arg_get_str - the value of @key; false if it is not given */
bool arg_get_str(const char *key, const char **ret_value,
                 size_t *ret_len_bytes);

/* arg_is - whether @key is given with exactly @value */
bool arg_is(const char *key, const char *value);

/* arg_get_u64 - a number with an optional K, M or G; false if not given */
bool arg_get_u64(const char *key, uint64_t *ret_value);

/* arg_u64 - the same with a default and limits; ends the payload outside */
uint64_t arg_u64(const char *key, uint64_t otherwise, uint64_t min,
                 uint64_t max);

/*
 * arg_get_list - numbers separated by commas
 * Returns how many were stored, at most @max; 0 if @key is not given.
 */
size_t arg_get_list(const char *key, uint64_t *ret_values, size_t max);

#endif
