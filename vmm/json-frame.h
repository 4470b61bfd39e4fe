/*
 * JsonFrame - finds where each JSON value ends in a stream of bytes that nobody vouches for
 *
 * Layer:     vmm
 * Threading: belongs to its owner.
 * Lifetime:  embedded; json_frame_init() .. json_frame_finish().
 *
 * It counts braces and brackets outside of strings and keeps the bytes of the value that is under
 * way, no more than JSON_FRAME_BYTES_MAX of them and no deeper than JSON_FRAME_DEPTH_MAX; a JSON
 * parser says whether what it has found is a value. So the parser's recursion and memory are
 * bounded by these two limits.
 *
 * What cannot be part of a value ends the search for its end: a control character (a newline within
 * a string, say), or the byte 0xff, which clients send to be sure that nothing is under way. The
 * rest of such a line is passed over.
 */
#ifndef VMM_JSON_FRAME_H
#define VMM_JSON_FRAME_H

#include "io/base/compiler.h"

#define JSON_FRAME_BYTES_MAX 65536
#define JSON_FRAME_DEPTH_MAX 16

typedef enum JsonFrameResult {
    JSON_FRAME_MORE,     /* all bytes are taken, no value has ended */
    JSON_FRAME_VALUE,    /* text[0 .. len_bytes) is an object or an array, as far as braces go */
    JSON_FRAME_BAD,      /* what came is no such thing; the next line may be */
    JSON_FRAME_TOO_LONG, /* these two: there is no way to go on */
    JSON_FRAME_TOO_DEEP,
} JsonFrameResult;

typedef struct JsonFrame {
    char *text; /* until the next json_frame_push() */
    size_t len_bytes, room_bytes;
    char open[JSON_FRAME_DEPTH_MAX]; /* what each level was opened with */
    unsigned depth;
    bool in_string, escaped;
    bool passing_over; /* the rest of a bad line */
} JsonFrame;

void json_frame_init(JsonFrame *frame) NONNULL(1);
void json_frame_finish(JsonFrame *frame);

/*
 * json_frame_push - take bytes from @data up to the end of a value or to what is wrong
 * @ret_used_bytes  how many; the caller comes again with the rest
 * Returns a JsonFrameResult, or -ENOMEM.
 */
int json_frame_push(JsonFrame *frame, const char *data, size_t len_bytes, size_t *ret_used_bytes)
    NONNULL(1, 2, 4) WARN_UNUSED;

#endif
