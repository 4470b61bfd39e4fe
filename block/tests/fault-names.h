/*
 * fault-names.h - the allocations of the code under test go to test-block-faults.c
 *
 * Layer:     block/tests; included before everything else when block/ is compiled for that test
 * Threading: any.
 */
#ifndef BLOCK_TESTS_FAULT_NAMES_H
#define BLOCK_TESTS_FAULT_NAMES_H

#include <stdlib.h>
#include <string.h>

void *fault_malloc(size_t bytes);
void *fault_calloc(size_t nb, size_t bytes);
int fault_posix_memalign(void **ret, size_t alignment, size_t bytes);
char *fault_strdup(const char *text);
char *fault_strndup(const char *text, size_t bytes);
void fault_free(void *p);

#define malloc(bytes)                         fault_malloc(bytes)
#define calloc(nb, bytes)                     fault_calloc(nb, bytes)
#define posix_memalign(ret, alignment, bytes) fault_posix_memalign(ret, alignment, bytes)
#define strdup(text)                          fault_strdup(text)
#define strndup(text, bytes)                  fault_strndup(text, bytes)
#define free(p)                               fault_free(p)

#endif
