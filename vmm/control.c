/*
 * control.c - sessions of the control socket
 *
 *     connected --greeting queued--> reading --a message--> executing --answer queued, taken-->
 *     reading
 *         |                            |
 *         |  end of stream, error,     |  cut off (too many events), control_stop():
 *         v  message without end       v  channel_shutdown() wakes both
 *     ending: the writer writes what is queued, unless that fails, and ends; freed
 *
 * control_event() comes from the middle of anything, so it runs nobody's code: coroutines are
 * scheduled, not woken, and a channel is shut down from a bottom half.
 */
#include "vmm/control.h"

#include <string.h>

#include "io/base/log.h"
#include "io/channel/channel-listener.h"
#include "vmm/json-frame.h"

#define READ_BYTES   4096
#define STOP_WAIT_NS 1000000000 /* for clients to take the last events */

typedef struct Line {
    ListNode link;
    size_t len_bytes;
    bool is_event;
    char text[];
} Line;

typedef struct Client {
    unsigned refs; /* its reader's, and one for each bottom half */
    Control *control;
    ListNode link;
    Channel *ch;
    QmpSession session;
    JsonFrame frame;
    List lines;         /* to be written */
    size_t event_bytes; /* of these, in events */
    bool writing;       /* one is just being written */
    bool ending;        /* no more lines will come */
    bool writer_ended;
    Coroutine *writer, *reader; /* while they wait for a change of the above; else NULL */
    char buf[READ_BYTES];
} Client;

struct Control {
    AioContext *ctx;
    QmpTarget *target;
    ChannelListener *listener;
    List clients;
    LogLimit log_limit;
};

/* --- references, waiting --- */

static void client_unref(Client *client)
{
    if (--client->refs > 0) {
        return;
    }
    assert(!list_linked(&client->link) && list_empty(&client->lines));
    json_frame_finish(&client->frame);
    channel_unref(client->ch);
    free(client);
}

static co_fn void wait_in(Coroutine **slot)
{
    *slot = co_self();
    co_yield();
}

static void wake(Client *client, Coroutine **slot)
{
    if (*slot) {
        aio_co_schedule(client->control->ctx, take_ptr(slot));
    }
}

/* --- what is written --- */

static void drop_lines(Client *client)
{
    ListNode *node;

    while ((node = list_pop_front(&client->lines))) {
        free(list_entry(node, Line, link));
    }
    client->event_bytes = 0;
}

/* Who is in the channel comes out of it, with an error. */
static void cut_off_bh(void *opaque)
{
    Client *client = opaque;

    channel_shutdown(client->ch, CHANNEL_READ | CHANNEL_WRITE);
    client_unref(client);
}

static void cut_off(Client *client)
{
    client->ending = true;
    drop_lines(client);
    client->refs++;
    aio_bh_schedule_oneshot(client->control->ctx, cut_off_bh, client);
    wake(client, &client->writer);
    wake(client, &client->reader);
}

static Line *line_create(const json_t *message)
{
    size_t len_bytes = json_dumpb(message, NULL, 0, JSON_ENSURE_ASCII);
    Line *line = malloc(sizeof(*line) + len_bytes + 2);

    if (line) {
        *line = (Line){ .len_bytes = len_bytes + 2 };
        size_t written UNUSED = json_dumpb(message, line->text, len_bytes, JSON_ENSURE_ASCII);

        memcpy(line->text + len_bytes, "\r\n", 2);
    }
    return line;
}

/* Owns: @message; NULL = there was no memory for it. */
static void queue_line(Client *client, json_t *message, bool is_event)
{
    Line *line = message ? line_create(message) : NULL;

    json_decref(message);
    if (!line) {
        cut_off(client); /* it would wait for this */
        return;
    }
    if (client->ending) {
        free(line);
        return;
    }
    line->is_event = is_event;
    client->event_bytes += is_event ? line->len_bytes : 0;
    list_push_back(&client->lines, &line->link);
    wake(client, &client->writer);
}

static co_fn int write_line(Client *client, Line *line)
{
    int ret;

    client->event_bytes -= line->is_event ? line->len_bytes : 0;
    client->writing = true;
    ret = channel_co_write_full(client->ch, line->text, line->len_bytes);
    client->writing = false;
    free(line);
    return ret;
}

static co_fn void writer_entry(void *opaque)
{
    Client *client = opaque;
    ListNode *node;

    for (;;) {
        while (list_empty(&client->lines) && !client->ending) {
            wait_in(&client->writer);
        }
        node = list_pop_front(&client->lines);
        if (!node) {
            break;
        }
        if (write_line(client, list_entry(node, Line, link)) < 0) {
            cut_off(client);
        }
        wake(client, &client->reader);
    }
    client->writer_ended = true;
    wake(client, &client->reader);
}

/* Until the client has taken all that was for it. */
static co_fn void wait_until_taken(Client *client)
{
    while ((!list_empty(&client->lines) || client->writing) && !client->writer_ended) {
        wait_in(&client->reader);
    }
}

/* --- what is read --- */

static void complain(Client *client, const char *text)
{
    Error err;

    error_set(&err, -EINVAL, "%s", text);
    queue_line(client, qmp_error(&err, NULL), false);
}

/* What the frame has found. False: there is no way to go on. */
static co_fn bool handle(Client *client, int found)
{
    switch (found) {
    case JSON_FRAME_MORE:
        return true;
    case JSON_FRAME_VALUE:
        queue_line(client,
                   qmp_co_execute(&client->session, client->frame.text, client->frame.len_bytes),
                   false);
        return true;
    case JSON_FRAME_BAD:
        complain(client, "this is no JSON object");
        return true;
    case JSON_FRAME_TOO_DEEP:
        complain(client, "the message is nested too deeply");
        return false;
    case JSON_FRAME_TOO_LONG:
        complain(client, "the message is too long");
        return false;
    default:
        complain(client, "out of memory");
        return false;
    }
}

static co_fn bool handle_bytes(Client *client, size_t len_bytes)
{
    const char *data = client->buf;

    while (len_bytes > 0 && !client->ending) {
        size_t used_bytes;
        int found = json_frame_push(&client->frame, data, len_bytes, &used_bytes);

        data += used_bytes;
        len_bytes -= used_bytes;
        if (!handle(client, found)) {
            return false;
        }
        wait_until_taken(client);
    }
    return !client->ending;
}

static co_fn void serve(Client *client)
{
    ssize_t len_bytes;

    queue_line(client, qmp_greeting(), false);
    do {
        len_bytes = channel_co_read(client->ch, client->buf, sizeof(client->buf));
    } while (len_bytes > 0 && handle_bytes(client, (size_t)len_bytes));
}

/* --- sessions --- */

/* Owns: @ch, unless it fails. */
static Client *client_create(Control *control, Channel *ch)
{
    Client *client = calloc(1, sizeof(*client));

    if (client) {
        client->refs = 1;
        client->control = control;
        client->ch = ch;
        client->session.target = control->target;
        json_frame_init(&client->frame);
        list_init(&client->lines);
        list_push_back(&control->clients, &client->link);
    }
    return client;
}

static co_fn void connection_fn(Channel *ch, void *opaque)
{
    Client *client = client_create(opaque, ch);

    if (!client) {
        channel_unref(ch);
        return;
    }
    Coroutine *writer = co_create(writer_entry, client);

    if (writer) {
        co_enter(writer);
        serve(client);
        client->ending = true;
        wake(client, &client->writer);
        while (!client->writer_ended) {
            wait_in(&client->reader);
        }
    }
    list_remove(&client->link);
    drop_lines(client);
    client_unref(client);
}

void control_event(Control *control, const char *name, json_t *data)
{
    if (!control) {
        json_decref(data);
        return;
    }
    json_t *event = qmp_event(name, data);

    list_for_each(node, &control->clients) {
        Client *client = list_entry(node, Client, link);

        if (!client->session.negotiated || client->ending) {
            continue;
        }
        queue_line(client, event ? json_incref(event) : NULL, true);
        if (client->event_bytes > CONTROL_EVENT_BYTES_MAX) {
            log_limited(&control->log_limit, LOG_LEVEL_WARN, "control",
                        "a client does not read the events that it is sent; it is cut off");
            cut_off(client);
        }
    }
    json_decref(event);
}

/* --- the socket --- */

Control *control_create(const char *path, QmpTarget *target, Error *err)
{
    ChannelListenerParams params = { .connection = connection_fn,
                                     .connections_max = CONTROL_CLIENTS_MAX };
    Control *control = calloc(1, sizeof(*control));
    SocketAddress addr;

    if (!control) {
        error_set(err, -ENOMEM, "--control: out of memory");
        return NULL;
    }
    control->ctx = aio_main();
    control->target = target;
    list_init(&control->clients);
    params.opaque = control;
    if (socket_address_set_unix(&addr, path, err) < 0 ||
        !(control->listener = channel_listener_create(&addr, &params, err))) {
        error_prefix(err, "--control: ");
        control_destroy(control);
        return NULL;
    }
    return control;
}

void control_start(Control *control)
{
    channel_listener_start(control->listener);
}

static co_fn void stop_entry(void *opaque)
{
    Control *control = opaque;

    list_for_each(node, &control->clients) {
        channel_shutdown(list_entry(node, Client, link)->ch, CHANNEL_READ);
    }
    if (channel_listener_co_wait_idle(control->listener, aio_now_ns() + STOP_WAIT_NS) == 0) {
        return;
    }
    list_for_each(node, &control->clients) {
        cut_off(list_entry(node, Client, link));
    }
    int ret UNUSED = channel_listener_co_wait_idle(control->listener, -1);
}

void control_stop(Control *control)
{
    channel_listener_stop(control->listener);
    aio_co_run_sync(control->ctx, stop_entry, control);
}

void control_destroy(Control *control)
{
    if (!control) {
        return;
    }
    assert(list_empty(&control->clients));
    channel_listener_unref(control->listener);
    free(control);
}
