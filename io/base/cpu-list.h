/*
 * cpu-list.h - sets of CPUs as text: "0-3:8"
 *
 * Layer:     io/base
 * Threading: pure.
 *
 * Syntax: numbers and ranges, joined by colons because lists of options are joined by commas; any
 * order, overlaps allowed, nothing empty. Numbers are the kernel's, below CPU_SETSIZE.
 */
#ifndef IO_BASE_CPU_LIST_H
#define IO_BASE_CPU_LIST_H

#include <sched.h>

#include "io/base/error.h"

/* cpu_list_parse - @what stands before the message. Errors: -EINVAL naming the wrong part. */
int cpu_list_parse(const char *what, const char *text, cpu_set_t *ret_cpus, Error *err)
    NONNULL(1, 2, 3) WARN_UNUSED;

/* Enough for every set in its shortest form: each second CPU, and the terminator. */
#define CPU_LIST_BYTES 2304
/* cpu_list_format - the shortest form, ascending; returns @buf */
const char *cpu_list_format(const cpu_set_t *cpus, char *buf, size_t size_bytes) NONNULL(1, 2);

#endif
