/*
 * json-frame.c - where a JSON value ends
 *
 * States, by what is in the frame; who performs each change is take():
 *
 *     nothing (depth 0) --'{' '['--> inside --the brace that opened it is closed--> VALUE
 *        ^    |                        |  ^
 *        |    | any other byte      '"'|  |'"'
 *        |    v                        v  |
 *        +-- passing over <--------- in a string
 *      newline,        control character
 *      control character
 *
 * Invariants:
 *   (1) depth <= JSON_FRAME_DEPTH_MAX and len_bytes <= JSON_FRAME_BYTES_MAX.
 *   (2) With depth 0 the text is empty or a value that has just been given out.
 */
#include "vmm/json-frame.h"

#include <string.h>

#define ROOM_MIN_BYTES 256

void json_frame_init(JsonFrame *frame)
{
    memset(frame, 0, sizeof(*frame));
}

void json_frame_finish(JsonFrame *frame)
{
    if (frame) {
        free(take_ptr(&frame->text));
    }
}

static void forget(JsonFrame *frame)
{
    frame->len_bytes = 0;
    frame->depth = 0;
    frame->in_string = false;
    frame->escaped = false;
}

/* Neither in a string nor between tokens; 0xff and 0xfe are no UTF-8. */
static bool is_never_json(unsigned char c)
{
    return c >= 0xfe || (c < 0x20 && c != '\t' && c != '\r' && c != '\n');
}

static bool is_space(unsigned char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static int append(JsonFrame *frame, char c)
{
    if (frame->len_bytes == JSON_FRAME_BYTES_MAX) {
        return JSON_FRAME_TOO_LONG;
    }
    if (frame->len_bytes == frame->room_bytes) {
        size_t room_bytes = MAX(2 * frame->room_bytes, (size_t)ROOM_MIN_BYTES);
        char *text = realloc(frame->text, room_bytes);

        if (!text) {
            return -ENOMEM;
        }
        frame->text = text;
        frame->room_bytes = room_bytes;
    }
    frame->text[frame->len_bytes++] = c;
    return JSON_FRAME_MORE;
}

static int fail(JsonFrame *frame, unsigned char c)
{
    forget(frame);
    frame->passing_over = c != '\n' && !is_never_json(c);
    return JSON_FRAME_BAD;
}

static int take_in_string(JsonFrame *frame, unsigned char c)
{
    if (c < 0x20) {
        return fail(frame, c);
    }
    if (frame->escaped) {
        frame->escaped = false;
    } else if (c == '\\') {
        frame->escaped = true;
    } else if (c == '"') {
        frame->in_string = false;
    }
    return append(frame, (char)c);
}

static int open_level(JsonFrame *frame, unsigned char c)
{
    if (frame->depth == JSON_FRAME_DEPTH_MAX) {
        return JSON_FRAME_TOO_DEEP;
    }
    frame->open[frame->depth++] = (char)c;
    return append(frame, (char)c);
}

static int close_level(JsonFrame *frame, unsigned char c)
{
    if (frame->open[frame->depth - 1] != (c == '}' ? '{' : '[')) {
        return fail(frame, c);
    }
    frame->depth--;
    int ret = append(frame, (char)c);

    return ret == JSON_FRAME_MORE && frame->depth == 0 ? JSON_FRAME_VALUE : ret;
}

static int take_inside(JsonFrame *frame, unsigned char c)
{
    if (is_never_json(c)) {
        return fail(frame, c);
    }
    switch (c) {
    case '{':
    case '[':
        return open_level(frame, c);
    case '}':
    case ']':
        return close_level(frame, c);
    case '"':
        frame->in_string = true;
        return append(frame, (char)c);
    default:
        return append(frame, (char)c);
    }
}

static int take(JsonFrame *frame, unsigned char c)
{
    if (frame->passing_over) {
        frame->passing_over = c != '\n' && !is_never_json(c);
        return JSON_FRAME_MORE;
    }
    if (frame->in_string) {
        return is_never_json(c) ? fail(frame, c) : take_in_string(frame, c);
    }
    if (frame->depth > 0) {
        return take_inside(frame, c);
    }
    if (is_space(c)) {
        return JSON_FRAME_MORE;
    }
    if (c == 0xff) {
        return JSON_FRAME_MORE; /* nothing is under way: there is nothing to complain about */
    }
    forget(frame);
    return c == '{' || c == '[' ? open_level(frame, c) : fail(frame, c);
}

int json_frame_push(JsonFrame *frame, const char *data, size_t len_bytes, size_t *ret_used_bytes)
{
    int ret = JSON_FRAME_MORE;
    size_t i = 0;

    while (i < len_bytes && ret == JSON_FRAME_MORE) {
        ret = take(frame, (unsigned char)data[i++]);
    }
    *ret_used_bytes = i;
    return ret;
}
