/*
 * cpu-list.c - sets of CPUs as text
 */
#include "io/base/cpu-list.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* One number at *p, which moves behind it; -1 when there is none below CPU_SETSIZE. */
static int take_number(const char **p)
{
    int number = 0;

    if (!isdigit((unsigned char)**p)) {
        return -1;
    }
    for (; isdigit((unsigned char)**p); ++*p) {
        number = number * 10 + (**p - '0');
        if (number >= CPU_SETSIZE) {
            return -1;
        }
    }
    return number;
}

/* A number or a range, up to a colon or the end. */
static bool take_part(const char **p, cpu_set_t *cpus)
{
    int first = take_number(p), last = first;

    if (first >= 0 && **p == '-') {
        ++*p;
        last = take_number(p);
    }
    if (first < 0 || last < first || (**p && **p != ':')) {
        return false;
    }
    for (int cpu = first; cpu <= last; cpu++) {
        CPU_SET(cpu, cpus);
    }
    return true;
}

int cpu_list_parse(const char *what, const char *text, cpu_set_t *ret_cpus, Error *err)
{
    const char *p = text;
    cpu_set_t cpus;

    CPU_ZERO(&cpus);
    for (;;) {
        const char *part = p;

        if (!take_part(&p, &cpus)) {
            return error_set(err, -EINVAL,
                             "%s: '%.*s' is no CPU and no range of CPUs below %d, as in 0-3:8",
                             what, (int)strcspn(part, ":"), part, CPU_SETSIZE);
        }
        if (!*p) {
            *ret_cpus = cpus;
            return 0;
        }
        p++;
    }
}

const char *cpu_list_format(const cpu_set_t *cpus, char *buf, size_t size_bytes)
{
    size_t len = 0;

    buf[0] = '\0';
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        int first = cpu;

        if (!CPU_ISSET(cpu, cpus)) {
            continue;
        }
        while (cpu + 1 < CPU_SETSIZE && CPU_ISSET(cpu + 1, cpus)) {
            cpu++;
        }
        int ret = snprintf(buf + len, size_bytes - len, cpu > first ? "%s%d-%d" : "%s%d",
                           len ? ":" : "", first, cpu);

        len += ret;
        assert(len < size_bytes);
    }
    return buf;
}
