/*
 * cmd-ctl.c - `penstock ctl`: one command to a control socket, or its events
 *
 * A client like any other: it blocks, and trusts the server no further than to send lines of JSON.
 * What a person types is turned into JSON by the table of commands; a command that this program
 * does not know is sent with its values as text.
 */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "io/base/opts.h"
#include "vmm/cmd.h"
#include "vmm/machine.h"
#include "vmm/qmp-text.h"
#include "vmm/qmp.h"

#define LINE_BYTES_MAX (64 << 20) /* of an answer */

static const char help_begin[] =
    "usage: penstock ctl [--json] PATH COMMAND [ARGUMENT=VALUE]...\n"
    "       penstock ctl PATH events\n"
    "\n"
    "Sends a command to the penstock run or export whose --control PATH it is, and prints its\n"
    "answer: as a table where there is one, else, and with --json, as JSON. events prints events\n"
    "as lines of JSON until the other side ends.\n"
    "\n"
    "Commands (arguments in brackets may be left out):\n";
static const char help_end[] = "\n"
                               "exit status: 0 done, 1 refused or failed, 2 bad command line\n";

typedef struct Connection {
    FILE *in;
    int fd; /* in has it, too */
    char *line;
    size_t room_bytes;
} Connection;

/* --- help --- */

static void print_command(const QmpCommand *command)
{
    size_t column = 2 + strlen(command->name);

    printf("  %s", command->name);
    for (const QmpArg *arg = command->args; arg->name; arg++) {
        char text[80];
        size_t len =
            (size_t)snprintf(text, sizeof(text), arg->optional ? " [%s=]" : " %s=", arg->name);

        if (column + len > 80) {
            printf("\n     ");
            column = 5;
        }
        fputs(text, stdout);
        column += len;
    }
    printf("\n      %s\n", command->help);
}

static void print_help(void)
{
    const QmpCommand *command = NULL;

    fputs(help_begin, stdout);
    while ((command = qmp_next_command(command))) {
        print_command(command);
    }
    fputs(help_end, stdout);
}

/* --- what a person types --- */

static const QmpArg *find_arg(const QmpCommand *command, const char *name)
{
    for (const QmpArg *arg = command ? command->args : NULL; arg && arg->name; arg++) {
        if (strcmp(arg->name, name) == 0) {
            return arg;
        }
    }
    return NULL;
}

static json_t *parse_value(const QmpArg *arg, const char *text, Error *err)
{
    uint64_t value = 0;
    int ret;

    switch (arg ? arg->type : QMP_STRING) {
    case QMP_NUMBER:
        ret = opts_parse_u64(arg->name, text, 0, INT64_MAX, &value, err);
        return ret < 0 ? NULL : json_integer((json_int_t)value);
    case QMP_SIZE:
        ret = opts_parse_size(arg->name, text, 0, INT64_MAX, &value, err);
        return ret < 0 ? NULL : json_integer((json_int_t)value);
    default:
        break;
    }
    json_t *string = json_string(text);

    if (!string) {
        error_set(err, -EINVAL, "'%s' is no UTF-8 text", text);
    }
    return string && arg && arg->type == QMP_STRINGS ? json_pack("[o]", string) : string;
}

static int add_argument(json_t *args, const QmpCommand *command, const char *word, Error *err)
{
    const char *equals = strchr(word, '=');
    AUTO_FREE char *name = equals ? strndup(word, (size_t)(equals - word)) : NULL;

    if (!name) {
        return error_set(err, -EINVAL, "'%s' is not ARGUMENT=VALUE", word);
    }
    const QmpArg *arg = find_arg(command, name);

    if (command && !arg) {
        return error_set(err, -EINVAL, "%s: there is no argument '%s'; see penstock ctl --help",
                         command->name, name);
    }
    if (json_object_get(args, name)) {
        return error_set(err, -EINVAL, "argument '%s' is given twice", name);
    }
    json_t *value = parse_value(arg, equals + 1, err);

    if (!value) {
        return -EINVAL;
    }
    return json_object_set_new(args, name, value) < 0
               ? error_set(err, -EINVAL, "'%s' is no name of an argument", name)
               : 0;
}

/* {"execute": ..., "arguments": ...} */
static json_t *make_message(const char *name, int argc, char **argv, Error *err)
{
    json_t *args = json_object();

    for (int i = 0; i < argc; i++) {
        if (add_argument(args, qmp_find_command(name), argv[i], err) < 0) {
            json_decref(args);
            return NULL;
        }
    }
    json_t *message = json_pack("{s:s, s:o}", "execute", name, "arguments", args);

    if (!message) {
        error_set(err, -EINVAL, "'%s' is no UTF-8 text", name);
    }
    return message;
}

/* --- the connection --- */

static int connect_to(Connection *c, const char *path, Error *err)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };

    if (strlen(path) >= sizeof(addr.sun_path)) {
        return error_set(err, -ENAMETOOLONG, "%s: the path is longer than %zu bytes", path,
                         sizeof(addr.sun_path) - 1);
    }
    memcpy(addr.sun_path, path, strlen(path));
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        int ret = -errno;
        const char *hint = ret == -ECONNREFUSED ? "; nobody listens there any more" : "";

        return error_set(err, ret, "%s: %s%s", path, error_strerror(ret), hint);
    }
    c->in = fdopen(c->fd, "r");
    return c->in ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static void disconnect(Connection *c)
{
    if (c->in) {
        fclose(c->in);
    } else if (c->fd >= 0) {
        close(c->fd);
    }
    free(c->line);
}

static int send_message(Connection *c, const json_t *message, Error *err)
{
    AUTO_FREE char *text = json_dumps(message, JSON_COMPACT);
    size_t len = text ? strlen(text) : 0;

    if (!text) {
        return error_set(err, -ENOMEM, "out of memory");
    }
    for (size_t done = 0; done < len;) {
        ssize_t n = send(c->fd, text + done, len - done, MSG_NOSIGNAL);

        if (n < 0 && errno != EINTR) {
            int ret = -errno;

            return error_set(err, ret, "sending the command: %s", error_strerror(ret));
        }
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

/* The next line; NULL at the end or when it is no JSON: then @err says what. */
static json_t *receive(Connection *c, Error *err)
{
    ssize_t len = getline(&c->line, &c->room_bytes, c->in);
    json_error_t where;

    if (len < 0) {
        error_set(err, -ECONNRESET, "the connection has ended");
        return NULL;
    }
    json_t *message = len > LINE_BYTES_MAX ? NULL : json_loadb(c->line, (size_t)len, 0, &where);

    if (!message) {
        error_set(err, -EPROTO, "what has been received is no answer: %.60s", c->line);
    }
    return message;
}

/* The answer to what has been sent; events in between are passed over. */
static json_t *receive_answer(Connection *c, Error *err)
{
    json_t *message;

    while ((message = receive(c, err)) && json_object_get(message, "event")) {
        json_decref(message);
    }
    return message;
}

/* Returns "return" of the answer, a new reference; NULL with what the other side has said. */
static json_t *take_result(json_t *answer, Error *err)
{
    json_t *result = json_incref(json_object_get(answer, "return"));
    json_t *error = json_object_get(answer, "error");
    const char *text = json_string_value(json_object_get(error, "desc"));

    if (!result) {
        error_set(err, -EPROTO, "%s", text ? text : "the answer is none");
    }
    return result;
}

/* Owns: @message. */
static json_t *execute(Connection *c, json_t *message, Error *err)
{
    int ret = send_message(c, message, err);
    json_t *answer = ret == 0 ? receive_answer(c, err) : NULL;
    json_t *result = answer ? take_result(answer, err) : NULL;

    json_decref(message);
    json_decref(answer);
    return result;
}

static int negotiate(Connection *c, Error *err)
{
    json_t *greeting = receive(c, err);

    if (!greeting) {
        return -EPROTO;
    }
    bool known = json_object_get(greeting, "QMP") != NULL;

    json_decref(greeting);
    if (!known) {
        return error_set(err, -EPROTO, "this is no control socket");
    }
    json_t *result = execute(c, json_pack("{s:s}", "execute", "qmp_capabilities"), err);

    json_decref(result);
    return result ? 0 : -EPROTO;
}

/* --- what is printed --- */

static void print_result(const char *name, const json_t *result, bool json)
{
    if (!json && qmp_text_print(stdout, name, result)) {
        return;
    }
    if (json || json_object_size(result) > 0 || json_array_size(result) > 0) {
        json_dumpf(result, stdout, JSON_INDENT(2));
        putchar('\n');
    }
}

static void print_events(Connection *c)
{
    json_t *message;

    while ((message = receive(c, NULL))) {
        json_dumpf(message, stdout, 0);
        putchar('\n');
        fflush(stdout);
        json_decref(message);
    }
}

static int talk(Connection *c, const char *path, const char *name, json_t *message, bool json)
{
    Error err;

    if (connect_to(c, path, &err) < 0 || negotiate(c, &err) < 0) {
        cmd_complain("ctl: %s", err.msg);
        return MACHINE_EXIT_HOST_FAILURE;
    }
    if (!message) {
        print_events(c);
        return 0;
    }
    json_t *result = execute(c, json_incref(message), &err);

    if (!result) {
        cmd_complain("ctl: %s", err.msg);
        return MACHINE_EXIT_HOST_FAILURE;
    }
    print_result(name, result, json);
    json_decref(result);
    return 0;
}

int cmd_ctl(int argc, char **argv)
{
    Connection c = { .fd = -1 };
    bool json = false;
    json_t *message = NULL;
    int nb_words = 0;
    Error err;

    for (int i = 1; i < argc; i++) {
        if (argv[i][0] != '-') {
            argv[nb_words++] = argv[i];
        } else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_help();
            return 0;
        } else if (strcmp(argv[i], "--json") == 0) {
            json = true;
        } else {
            cmd_complain("unknown option %s; see penstock ctl --help", argv[i]);
            return MACHINE_EXIT_USAGE;
        }
    }
    if (nb_words < 2) {
        cmd_complain("ctl: PATH and COMMAND are needed; see penstock ctl --help");
        return MACHINE_EXIT_USAGE;
    }
    const char *path = argv[0], *name = argv[1];

    if (strcmp(name, "events") != 0 || nb_words > 2) {
        message = make_message(name, nb_words - 2, argv + 2, &err);
        if (!message) {
            cmd_complain("ctl: %s", err.msg);
            return MACHINE_EXIT_USAGE;
        }
    }
    int status = talk(&c, path, name, message, json);

    json_decref(message);
    disconnect(&c);
    return status;
}
