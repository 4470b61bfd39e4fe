/*
 * qmp-text.c - tables of what queries answer
 */
#include "vmm/qmp-text.h"

#include <string.h>

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "-";
}

static void print_status(FILE *f, const json_t *result)
{
    fprintf(f, "%s\n", text_of(result, "status"));
}

static void print_version(FILE *f, const json_t *result)
{
    fprintf(f, "%s\n", text_of(result, "package"));
}

static void print_names(FILE *f, const json_t *result)
{
    for (size_t i = 0; i < json_array_size(result); i++) {
        fprintf(f, "%s\n", text_of(json_array_get(result, i), "name"));
    }
}

static const struct {
    const char *name;
    void (*print)(FILE *f, const json_t *result);
} forms[] = {
    { "query-status", print_status },
    { "query-version", print_version },
    { "query-commands", print_names },
};

bool qmp_text_print(FILE *f, const char *name, const json_t *result)
{
    for (unsigned i = 0; i < ARRAY_SIZE(forms); i++) {
        if (strcmp(forms[i].name, name) == 0) {
            forms[i].print(f, result);
            return true;
        }
    }
    return false;
}
