/*
 * qmp-text.h - answers of the control socket for people
 *
 * Layer:     vmm
 * Threading: any; reads its argument only.
 */
#ifndef VMM_QMP_TEXT_H
#define VMM_QMP_TEXT_H

#include <jansson.h>
#include <stdio.h>

#include "io/base/compiler.h"

/* qmp_text_print - the answer to command @name as lines; false: there is no form for it, nothing
 * has been printed. What is missing in @result prints as "-". */
bool qmp_text_print(FILE *f, const char *name, const json_t *result) NONNULL(1, 2, 3);

#endif
