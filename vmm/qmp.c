/*
 * qmp.c - from a message to the command and back to an answer
 *
 * A message is parsed strictly: an object of "execute", "arguments" and "id", no name twice, no
 * NUL; arguments are exactly those that the command's table names. Who frames the bytes has bounded
 * their number and the depth (json-frame.h), which bounds what the parser may take.
 */
#include "vmm/qmp.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "vmm/version.h"

#define NS_PER_US 1000

/* --- targets --- */

void qmp_target_init(QmpTarget *target)
{
    memset(target, 0, sizeof(*target));
    co_mutex_init(&target->changing);
}

void qmp_target_finish(QmpTarget *target)
{
    for (unsigned i = 0; i < target->nb_disks; i++) {
        bdrv_unref(take_ptr(&target->disks[i].throttle));
        bdrv_unref(take_ptr(&target->disks[i].faulty));
    }
    target->nb_disks = 0;
    co_mutex_finish(&target->changing);
}

QmpDisk *qmp_target_add_disk(QmpTarget *target, BlockBackend *blk)
{
    assert(target->nb_disks < QMP_DISKS_MAX);
    QmpDisk *disk = &target->disks[target->nb_disks++];

    *disk = (QmpDisk){ .blk = blk };
    return disk;
}

QmpDisk *qmp_find_disk(QmpTarget *target, const char *id, Error *err)
{
    for (unsigned i = 0; i < target->nb_disks; i++) {
        if (strcmp(blk_id(target->disks[i].blk), id) == 0) {
            return &target->disks[i];
        }
    }
    error_set(err, -ENODEV, "there is no disk '%s'", id);
    return NULL;
}

IOThread *qmp_find_iothread(const QmpTarget *target, const char *id, Error *err)
{
    char ids[160] = "";

    for (unsigned i = 0; i < target->nb_iothreads; i++) {
        size_t len = strlen(ids);

        if (strcmp(iothread_id(target->iothreads[i]), id) == 0) {
            return target->iothreads[i];
        }
        snprintf(ids + len, sizeof(ids) - len, "%s%s", i ? ", " : "",
                 iothread_id(target->iothreads[i]));
    }
    error_set(err, -ENODEV, "there is no iothread '%s'; there are: %s", id, ids);
    return NULL;
}

/* --- the tables --- */

const char *const qmp_type_names[QMP_NB_TYPES] = {
    [QMP_STRING] = "a string",
    [QMP_NUMBER] = "a number from 0",
    [QMP_SIZE] = "a number of bytes",
    [QMP_STRINGS] = "a list of strings",
};

static const QmpCommand *const tables[] = { qmp_own_commands, qmp_run_commands, qmp_block_commands,
                                            qmp_iothread_commands };

const QmpCommand *qmp_next_command(const QmpCommand *command)
{
    bool found = !command;

    for (unsigned t = 0; t < ARRAY_SIZE(tables); t++) {
        for (const QmpCommand *c = tables[t]; c->name; c++) {
            if (found) {
                return c;
            }
            found = c == command;
        }
    }
    return NULL;
}

const QmpCommand *qmp_find_command(const char *name)
{
    const QmpCommand *command = NULL;

    while ((command = qmp_next_command(command)) && strcmp(command->name, name) != 0) {
    }
    return command;
}

/* --- arguments --- */

static bool is_list_of_strings(const json_t *value)
{
    for (size_t i = 0; i < json_array_size(value); i++) {
        if (!json_is_string(json_array_get(value, i))) {
            return false;
        }
    }
    return json_is_array(value);
}

static bool has_type(const json_t *value, QmpType type)
{
    switch (type) {
    case QMP_STRING:
        return json_is_string(value);
    case QMP_NUMBER:
    case QMP_SIZE:
        return json_is_integer(value) && json_integer_value(value) >= 0;
    default:
        return is_list_of_strings(value);
    }
}

static const QmpArg *find_arg(const QmpCommand *command, const char *name)
{
    for (const QmpArg *arg = command->args; arg->name; arg++) {
        if (strcmp(arg->name, name) == 0) {
            return arg;
        }
    }
    return NULL;
}

static int check_args(const QmpCommand *command, json_t *args, Error *err)
{
    const char *name;
    json_t *value;

    json_object_foreach(args, name, value)
    {
        const QmpArg *arg = find_arg(command, name);

        if (!arg) {
            return error_set(err, -EINVAL, "%s: there is no argument '%s'", command->name, name);
        }
        if (!has_type(value, arg->type)) {
            return error_set(err, -EINVAL, "%s: argument '%s' is not %s", command->name, name,
                             qmp_type_names[arg->type]);
        }
    }
    for (const QmpArg *arg = command->args; arg->name; arg++) {
        if (!arg->optional && !json_object_get(args, arg->name)) {
            return error_set(err, -EINVAL, "%s: argument '%s' is missing", command->name,
                             arg->name);
        }
    }
    return 0;
}

const char *qmp_arg_string(const json_t *args, const char *name, const char *absent)
{
    const json_t *value = json_object_get(args, name);

    return value ? json_string_value(value) : absent;
}

uint64_t qmp_arg_number(const json_t *args, const char *name, uint64_t absent)
{
    const json_t *value = json_object_get(args, name);

    return value ? (uint64_t)json_integer_value(value) : absent;
}

bool qmp_arg_given(const json_t *args, const char *name)
{
    return json_object_get(args, name) != NULL;
}

/* --- what the server says --- */

json_t *qmp_string(const char *text)
{
    json_t *string = json_string(text);
    AUTO_FREE char *copy = string ? NULL : strdup(text);

    if (string || !copy) {
        return string;
    }
    for (char *c = copy; *c; c++) {
        *c = *c & 0x80 ? '?' : *c;
    }
    return json_string(copy);
}

/* Owns: all but @id. */
static json_t *with_id(json_t *message, json_t *id)
{
    if (message && id && json_object_set(message, "id", id) < 0) {
        json_decref(message);
        return NULL;
    }
    return message;
}

static const char *error_class(const Error *err)
{
    switch (err->code) {
    case -ENOSYS:
        return "CommandNotFound";
    case -ENODEV:
        return "DeviceNotFound";
    default:
        return "GenericError";
    }
}

json_t *qmp_error(const Error *err, json_t *id)
{
    return with_id(json_pack("{s:{s:s, s:o}}", "error", "class", error_class(err), "desc",
                             qmp_string(err->msg)),
                   id);
}

json_t *qmp_greeting(void)
{
    unsigned version[3] = { 0 };

    sscanf(PENSTOCK_VERSION, "%u.%u.%u", &version[0], &version[1], &version[2]);
    return json_pack("{s:{s:{s:{s:i, s:i, s:i}, s:s}, s:[]}}", "QMP", "version", "qemu", "major",
                     (int)version[0], "minor", (int)version[1], "micro", (int)version[2], "package",
                     "penstock " PENSTOCK_VERSION, "capabilities");
}

json_t *qmp_event(const char *name, json_t *data)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    json_t *event =
        json_pack("{s:s, s:{s:I, s:I}}", "event", name, "timestamp", "seconds",
                  (json_int_t)now.tv_sec, "microseconds", (json_int_t)(now.tv_nsec / NS_PER_US));

    if (event && data && json_object_set(event, "data", data) < 0) {
        json_decref(event);
        event = NULL;
    }
    json_decref(data);
    return event;
}

/* --- messages --- */

typedef struct Message {
    const char *name; /* borrowed from the parsed text, as are the next two */
    json_t *args;     /* NULL = none */
    json_t *id;       /* likewise */
} Message;

static int take_message(json_t *root, Message *message, Error *err)
{
    const char *key;
    json_t *value, *name = NULL;

    if (!json_is_object(root)) {
        return error_set(err, -EINVAL, "a command is an object");
    }
    message->id = json_object_get(root, "id"); /* whatever else is wrong */
    json_object_foreach(root, key, value)
    {
        if (strcmp(key, "execute") == 0) {
            name = value;
        } else if (strcmp(key, "arguments") == 0) {
            message->args = value;
        } else if (strcmp(key, "id") != 0) {
            return error_set(err, -EINVAL, "a command has no member '%s'", key);
        }
    }
    if (!json_is_string(name)) {
        return error_set(err, -EINVAL, "member 'execute' is %s", name ? "no string" : "missing");
    }
    if (message->args && !json_is_object(message->args)) {
        return error_set(err, -EINVAL, "member 'arguments' is no object");
    }
    message->name = json_string_value(name);
    return 0;
}

static const QmpCommand *choose(const QmpSession *session, const char *name, Error *err)
{
    const QmpCommand *command = qmp_find_command(name);
    bool negotiates = command && strcmp(name, "qmp_capabilities") == 0;

    if (!session->negotiated && !negotiates) {
        error_set(err, -ENOSYS, "the first command of a connection is qmp_capabilities");
        return NULL;
    }
    if (session->negotiated && negotiates) {
        error_set(err, -ENOSYS, "capabilities have been negotiated already");
        return NULL;
    }
    if (!command) {
        error_set(err, -ENOSYS, "there is no command '%s'; see query-commands", name);
        return NULL;
    }
    if (command->flags & QMP_GUEST && !session->target->run) {
        error_set(err, -ENOSYS, "%s: there is no guest here", name);
        return NULL;
    }
    return command;
}

static co_fn int run_command(QmpTarget *target, const QmpCommand *command, const json_t *args,
                             json_t **ret_result, Error *err)
{
    int ret;

    if (!(command->flags & QMP_CHANGES)) {
        return command->co_run(target, args, ret_result, err);
    }
    co_mutex_lock(&target->changing);
    ret = command->co_run(target, args, ret_result, err);
    co_mutex_unlock(&target->changing);
    return ret;
}

static co_fn int execute(QmpSession *session, const Message *message, json_t **ret_result,
                         Error *err)
{
    const QmpCommand *command = choose(session, message->name, err);
    json_t *args = message->args ? json_incref(message->args) : json_object();
    int ret;

    if (!command || !args) {
        json_decref(args);
        return command ? error_set(err, -ENOMEM, "out of memory") : -ENOSYS;
    }
    ret = check_args(command, args, err);
    if (ret == 0) {
        ret = run_command(session->target, command, args, ret_result, err);
    }
    json_decref(args);
    if (ret == 0) {
        session->negotiated = true; /* the first that can succeed is qmp_capabilities */
    }
    return ret;
}

static co_fn json_t *answer(QmpSession *session, json_t *root)
{
    Message message = { 0 };
    json_t *result = NULL;
    Error err = { 0 };
    int ret = take_message(root, &message, &err);

    if (ret == 0) {
        ret = execute(session, &message, &result, &err);
    }
    if (ret < 0) {
        return qmp_error(&err, message.id);
    }
    return with_id(json_pack("{s:o}", "return", result ? result : json_object()), message.id);
}

co_fn json_t *qmp_co_execute(QmpSession *session, const char *text, size_t len_bytes)
{
    json_error_t where;
    json_t *root = json_loadb(text, len_bytes, JSON_REJECT_DUPLICATES, &where);
    Error err;

    if (!root) {
        error_set(&err, -EINVAL, "this is no JSON: %s", where.text);
        return qmp_error(&err, NULL);
    }
    json_t *reply = answer(session, root);

    json_decref(root);
    return reply;
}

/* --- commands of the protocol itself --- */

static co_fn int co_capabilities(QmpTarget *target, const json_t *args, json_t **ret_result,
                                 Error *err)
{
    const json_t *enable = json_object_get(args, "enable");

    if (json_array_size(enable) > 0) {
        return error_set(err, -EINVAL, "capability '%s' is not offered",
                         json_string_value(json_array_get(enable, 0)));
    }
    return 0;
}

static co_fn int co_query_version(QmpTarget *target, const json_t *args, json_t **ret_result,
                                  Error *err)
{
    json_t *greeting = qmp_greeting();

    *ret_result = json_incref(json_object_get(json_object_get(greeting, "QMP"), "version"));
    json_decref(greeting);
    return *ret_result ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static co_fn int co_query_commands(QmpTarget *target, const json_t *args, json_t **ret_result,
                                   Error *err)
{
    const QmpCommand *command = NULL;
    json_t *names = json_array();

    while ((command = qmp_next_command(command))) {
        if (command->flags & QMP_GUEST && !target->run) {
            continue;
        }
        if (json_array_append_new(names, json_pack("{s:s}", "name", command->name)) < 0) {
            json_decref(names);
            return error_set(err, -ENOMEM, "out of memory");
        }
    }
    *ret_result = names;
    return 0;
}

const QmpCommand qmp_own_commands[] = {
    { .name = "qmp_capabilities",
      .help = "begin: penstock ctl does that by itself",
      .co_run = co_capabilities,
      .args = { { "enable", QMP_STRINGS, true } } },
    { .name = "query-version", .help = "which penstock this is", .co_run = co_query_version },
    { .name = "query-commands", .help = "what can be asked here", .co_run = co_query_commands },
    { .name = NULL },
};
