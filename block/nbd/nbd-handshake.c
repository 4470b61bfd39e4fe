/*
 * nbd-handshake.c - see nbd-handshake.h
 *
 * Invariants:
 *   (1) Nothing that was read before TLS was started is believed afterwards: options that were set
 *       are forgotten, and channels read no further than they are asked to, so that bytes which
 *       somebody put behind the server's answer are TLS's to refuse.
 *   (2) What a server can make us read is bounded: REPLY_BYTES_MAX a reply, REPLIES_MAX replies to
 *       an option, and the number of options is ours.
 */
#include "block/nbd/nbd-handshake.h"

#include <ctype.h>
#include <string.h>

#include "io/channel/channel-tls.h"

#define REPLY_BYTES_MAX                                                                            \
    (NBD_STRING_BYTES + 64) /* the longest that makes sense has a string in it */
#define REPLIES_MAX           64
#define TEXT_BYTES            128                      /* of a server's message that is passed on */
#define OPTION_DATA_BYTES_MAX NBD_META_QUERY_BYTES_MAX /* the longest that we send */

typedef struct Handshake {
    Channel *ch;
    const NbdUri *uri;
    Error *err;
    NbdExport export;
    bool no_zeroes;
    bool has_info;        /* of the export, out of a reply to GO */
    NbdOptionReply reply; /* the latest */
    uint8_t data[REPLY_BYTES_MAX];
    uint8_t option[NBD_OPTION_BYTES + OPTION_DATA_BYTES_MAX];
} Handshake;

/* --- bytes --- */

static int failed(Handshake *h, int code, const char *doing)
{
    return error_set(h->err, code, "%s: %s", doing,
                     code == -ECONNRESET ? "the server closed the connection"
                                         : error_strerror(code));
}

static co_fn int receive(Handshake *h, void *buf, size_t len_bytes, const char *doing)
{
    int ret = channel_co_read_full(h->ch, buf, len_bytes);

    if (ret == 1) {
        return 0;
    }
    return failed(h, ret == 0 ? -ECONNRESET : ret, doing);
}

static co_fn int send_bytes(Handshake *h, const void *buf, size_t len_bytes, const char *doing)
{
    int ret = channel_co_write_full(h->ch, buf, len_bytes);

    return ret < 0 ? failed(h, ret, doing) : 0;
}

/* With the data that have been put behind its header. */
static co_fn int send_option(Handshake *h, uint32_t option, size_t len_bytes)
{
    NbdOptionHeader header = { option, (uint32_t)len_bytes };

    nbd_option_encode(h->option, &header);
    return send_bytes(h, h->option, NBD_OPTION_BYTES + len_bytes, nbd_option_name(option));
}

static int broken(Handshake *h, const char *what)
{
    return error_set(h->err, -EPROTO, "%s: %s", nbd_option_name(h->reply.option), what);
}

/* The next reply to @option, into h->reply and h->data. */
static co_fn int receive_reply(Handshake *h, uint32_t option)
{
    uint8_t header[NBD_OPTION_REPLY_BYTES];
    int ret = receive(h, header, sizeof(header), nbd_option_name(option));

    if (ret < 0) {
        return ret;
    }
    ret = nbd_option_reply_decode(header, &h->reply);
    if (ret < 0 || h->reply.option != option) {
        h->reply.option = option;
        return broken(h, ret < 0 ? "the answer has a wrong magic" : "answer to another option");
    }
    if (h->reply.len_bytes > sizeof(h->data)) {
        return broken(h, "the answer is too long");
    }
    return h->reply.len_bytes == 0
               ? 0
               : receive(h, h->data, h->reply.len_bytes, nbd_option_name(option));
}

static bool reply_is_error(const Handshake *h)
{
    return (h->reply.type & NBD_REP_ERROR_BIT) != 0;
}

/* The server said no: as an error, with its own words. */
static int refused(Handshake *h)
{
    static const struct {
        uint32_t type;
        int code;
    } codes[] = {
        { NBD_REP_ERR_UNKNOWN, -ENOENT },          { NBD_REP_ERR_POLICY, -EACCES },
        { NBD_REP_ERR_TLS_REQD, -EACCES },         { NBD_REP_ERR_UNSUP, -ENOTSUP },
        { NBD_REP_ERR_PLATFORM, -ENOTSUP },        { NBD_REP_ERR_SHUTDOWN, -ESHUTDOWN },
        { NBD_REP_ERR_BLOCK_SIZE_REQD, -ENOTSUP },
    };
    char text[TEXT_BYTES];
    size_t len = MIN((size_t)h->reply.len_bytes, sizeof(text) - 1);
    int code = -EPROTO;

    for (size_t i = 0; i < len; i++) {
        text[i] = isprint(h->data[i]) ? (char)h->data[i] : '?';
    }
    text[len] = '\0';
    for (unsigned i = 0; i < ARRAY_SIZE(codes); i++) {
        code = codes[i].type == h->reply.type ? codes[i].code : code;
    }
    return error_set(h->err, code, "%s: the server says: %s%s%s%s",
                     nbd_option_name(h->reply.option), nbd_option_reply_name(h->reply.type),
                     len ? ": " : "", text,
                     h->reply.type == NBD_REP_ERR_TLS_REQD && !h->uri->tls
                         ? " (nbds:// or nbds+unix:// would do)"
                         : "");
}

/* An option without data that is answered by yes or no. 1 = yes, 0 = no. */
static co_fn int ask(Handshake *h, uint32_t option)
{
    int ret = send_option(h, option, 0);

    if (ret == 0) {
        ret = receive_reply(h, option);
    }
    if (ret < 0) {
        return ret;
    }
    if (h->reply.type == NBD_REP_ERR_TLS_REQD || h->reply.type == NBD_REP_ERR_SHUTDOWN) {
        return refused(h); /* so would be anything that follows */
    }
    if (reply_is_error(h)) {
        return 0;
    }
    if (h->reply.type != NBD_REP_ACK || h->reply.len_bytes != 0) {
        return broken(h, "neither an acknowledgement nor an error");
    }
    return 1;
}

/* --- the steps --- */

static co_fn int greet(Handshake *h, bool *ret_fixed)
{
    uint8_t buf[NBD_GREETING_BYTES];
    uint16_t flags = 0;
    int ret = receive(h, buf, sizeof(buf), "greeting");

    if (ret < 0) {
        return ret;
    }
    ret = nbd_greeting_decode(buf, &flags);
    if (ret < 0) {
        return error_set(h->err, -EPROTO, "greeting: %s",
                         ret == -EPROTONOSUPPORT ? "the server speaks the oldstyle protocol only"
                                                 : "this is no NBD server");
    }
    *ret_fixed = (flags & NBD_FLAG_FIXED_NEWSTYLE) != 0;
    h->no_zeroes = (flags & NBD_FLAG_NO_ZEROES) != 0;
    nbd_put_be32(buf, flags & (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES));
    return send_bytes(h, buf, NBD_CLIENT_FLAGS_BYTES, "greeting");
}

/* What servers do that do not like who we are, some of them without a word. */
#define HINT_IDENTITY " (does it accept our key or certificate?)"

static bool ended(int code)
{
    return code == -ECONNRESET || code == -ECONNABORTED;
}

static co_fn int start_tls(Handshake *h, TlsCreds *creds, int64_t deadline_ns)
{
    Channel *tls;
    Error reason;
    int ret = ask(h, NBD_OPT_STARTTLS);

    if (ret < 0) {
        return ret;
    }
    if (ret == 0) {
        return refused(h);
    }
    tls =
        channel_tls_co_handshake(h->ch, creds, nbd_uri_tls_hostname(h->uri), deadline_ns, &reason);
    if (!tls) {
        return error_set(h->err, reason.code, "%s%s", reason.msg,
                         ended(reason.code) ? HINT_IDENTITY : "");
    }
    channel_set_deadline(tls, CHANNEL_READ | CHANNEL_WRITE, deadline_ns);
    channel_unref(h->ch);
    h->ch = tls;
    return 0;
}

static co_fn int agree_on_headers(Handshake *h)
{
    int ret = ask(h, NBD_OPT_EXTENDED_HEADERS);

    if (ret < 0) {
        return ret;
    }
    if (ret == 1) {
        h->export.headers = NBD_HEADERS_EXTENDED;
        return 0;
    }
    ret = ask(h, NBD_OPT_STRUCTURED_REPLY);
    if (ret == 1) {
        h->export.headers = NBD_HEADERS_STRUCTURED;
    }
    return MIN(ret, 0);
}

static NbdString own_name(const Handshake *h)
{
    return (NbdString){ h->uri->export_name, (uint32_t)strlen(h->uri->export_name) };
}

static co_fn int ask_for_status(Handshake *h)
{
    static const NbdString query = { NBD_CONTEXT_BASE_ALLOCATION,
                                     sizeof(NBD_CONTEXT_BASE_ALLOCATION) - 1 };
    NbdString name = own_name(h);
    bool found = false;
    int ret = send_option(h, NBD_OPT_SET_META_CONTEXT,
                          nbd_meta_query_encode(h->option + NBD_OPTION_BYTES, &name, &query));

    for (unsigned i = 0; ret == 0; i++) {
        ret = receive_reply(h, NBD_OPT_SET_META_CONTEXT);
        if (ret < 0 || reply_is_error(h)) {
            return ret; /* an error: there is none */
        }
        if (h->reply.type == NBD_REP_ACK) {
            h->export.has_status = found;
            return 0;
        }
        if (h->reply.type != NBD_REP_META_CONTEXT || h->reply.len_bytes < 4 || i == REPLIES_MAX) {
            return broken(h, "not a list of contexts");
        }
        if (h->reply.len_bytes - 4 == query.len_bytes &&
            memcmp(h->data + 4, query.text, query.len_bytes) == 0) {
            found = true;
            h->export.status_context = nbd_get_be32(h->data);
        }
    }
    return ret;
}

static int take_info(Handshake *h)
{
    NbdExportInfo info;
    int ret = 0;

    if (h->reply.type != NBD_REP_INFO || h->reply.len_bytes < 2) {
        return broken(h, "neither information nor the end of it");
    }
    switch (nbd_get_be16(h->data)) {
    case NBD_INFO_EXPORT:
        ret = nbd_info_export_decode(h->data, h->reply.len_bytes, &info);
        if (ret == 0) {
            h->export.length_bytes = info.length_bytes;
            h->export.flags = info.flags;
            h->has_info = true;
        }
        break;
    case NBD_INFO_BLOCK_SIZE:
        ret = nbd_info_block_size_decode(h->data, h->reply.len_bytes, &h->export.sizes);
        break;
    default:
        break; /* to be ignored */
    }
    return ret < 0 ? broken(h, "information that makes no sense") : 0;
}

/* 1 = transmission has begun, 0 = the server has no such option */
static co_fn int go(Handshake *h)
{
    NbdGo data = { own_name(h), 1u << NBD_INFO_BLOCK_SIZE };
    int ret = send_option(h, NBD_OPT_GO, nbd_go_encode(h->option + NBD_OPTION_BYTES, &data));

    for (unsigned i = 0; ret == 0; i++) {
        ret = receive_reply(h, NBD_OPT_GO);
        if (ret < 0) {
            return ret;
        }
        if (h->reply.type == NBD_REP_ERR_UNSUP && h->export.headers != NBD_HEADERS_EXTENDED) {
            return 0;
        }
        if (reply_is_error(h)) {
            return refused(h);
        }
        if (h->reply.type == NBD_REP_ACK) {
            return h->has_info ? 1 : broken(h, "the server did not tell the export's length");
        }
        ret = i == REPLIES_MAX ? broken(h, "too many answers") : take_info(h);
    }
    return ret;
}

static co_fn int export_name(Handshake *h)
{
    uint8_t buf[NBD_EXPORT_NAME_REPLY_BYTES + NBD_EXPORT_NAME_ZEROES_BYTES];
    NbdExportInfo info;
    size_t len = strlen(h->uri->export_name);
    int ret;

    memcpy(h->option + NBD_OPTION_BYTES, h->uri->export_name, len);
    ret = send_option(h, NBD_OPT_EXPORT_NAME, len);
    if (ret == 0) {
        ret = receive(h, buf, h->no_zeroes ? NBD_EXPORT_NAME_REPLY_BYTES : sizeof(buf),
                      "EXPORT_NAME (is there such an export?)");
    }
    if (ret < 0) {
        return ret;
    }
    nbd_export_name_reply_decode(buf, &info);
    h->export.length_bytes = info.length_bytes;
    h->export.flags = info.flags;
    h->export.sizes =
        (NbdBlockSizes){ 1, NBD_BLOCK_BYTES_PREFERRED_DEFAULT, NBD_PAYLOAD_BYTES_DEFAULT };
    return 0;
}

static co_fn int negotiate(Handshake *h, TlsCreds *creds, int64_t deadline_ns)
{
    bool fixed = false;
    int ret = greet(h, &fixed);

    if (ret < 0) {
        return ret;
    }
    if (!fixed && h->uri->tls) {
        return error_set(h->err, -ENOTSUP, "TLS is asked for, but the server has no options");
    }
    if (!fixed) {
        return export_name(h);
    }
    if (h->uri->tls) {
        ret = start_tls(h, creds, deadline_ns);
    }
    if (ret == 0) {
        ret = agree_on_headers(h);
        if (h->uri->tls && ended(ret)) {
            /* With TLS 1.3 the server looks at our certificate after we are done. */
            error_set(h->err, ret, "TLS: the server ended the connection" HINT_IDENTITY);
        }
    }
    if (ret == 0 && h->export.headers != NBD_HEADERS_SIMPLE) {
        ret = ask_for_status(h);
    }
    if (ret == 0) {
        ret = go(h);
        ret = ret == 0 ? export_name(h) : MIN(ret, 0);
    }
    return ret;
}

/* What no request could live with. */
static int check_export(Handshake *h)
{
    if (h->export.length_bytes > INT64_MAX) {
        return error_set(h->err, -EPROTO, "the server says that the export has %llu bytes",
                         (unsigned long long)h->export.length_bytes);
    }
    return 0;
}

int nbd_co_handshake(Channel **ch, const NbdUri *uri, TlsCreds *creds, int64_t deadline_ns,
                     NbdExport *ret_export, Error *err)
{
    AUTO_FREE Handshake *h = calloc(1, sizeof(*h));
    int ret;

    if (!h) {
        return error_set(err, -ENOMEM, "out of memory");
    }
    *h = (Handshake){
        .ch = *ch,
        .uri = uri,
        .err = err,
        .export.sizes = { 1, NBD_BLOCK_BYTES_PREFERRED_DEFAULT, NBD_PAYLOAD_BYTES_DEFAULT },
    };
    channel_set_deadline(h->ch, CHANNEL_READ | CHANNEL_WRITE, deadline_ns);
    ret = negotiate(h, creds, deadline_ns);
    if (ret == 0) {
        ret = check_export(h);
    }
    *ch = h->ch;
    if (ret == 0) {
        channel_set_deadline(h->ch, CHANNEL_READ | CHANNEL_WRITE, -1);
        *ret_export = h->export;
    }
    return ret;
}
