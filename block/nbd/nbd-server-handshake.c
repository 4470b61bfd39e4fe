/*
 * nbd-server-handshake.c - a connection from its first byte to the choice of an export
 *
 *     greeting, flags --> options, one at a time --EXPORT_NAME, GO--> transmission
 *                          |        ^                 ABORT--> end
 *                          STARTTLS-+  everything agreed on before is forgotten
 *
 * Invariants:
 *   (1) Nothing is read ahead: bytes that came in the clear behind STARTTLS are still in the socket
 *       when TLS begins, which takes them for a record and fails.
 *   (2) The whole handshake has one deadline, a number of options, and a buffer of
 *       OPTION_BYTES_MAX.
 *   (3) An option whose data are wrong is answered with an error; what cannot be an option, or
 *       exceeds these limits, ends the connection.
 */
#include "block/nbd/nbd-server-int.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "io/channel/channel-tls.h"

#define OPTIONS_MAX           256
#define OPTION_BYTES_MAX      (32u << 10)
#define ALLOCATION_CONTEXT_ID 1

/* What an option leads to; or -errno. */
enum { NEXT_OPTION = 0, GO = 1, LEAVE = 2 };

typedef struct Handshake {
    NbdConn *conn;
    int64_t deadline_ns;
    bool fixed; /* the client understands error replies */
    uint32_t option, len_bytes;
    uint8_t data[OPTION_BYTES_MAX];
} Handshake;

/* --- replies --- */

static co_fn int reply2(Handshake *hs, uint32_t type, const void *head, size_t head_bytes,
                        const void *tail, size_t tail_bytes)
{
    uint8_t header[NBD_OPTION_REPLY_BYTES];
    NbdOptionReply reply = { .option = hs->option,
                             .type = type,
                             .len_bytes = (uint32_t)(head_bytes + tail_bytes) };
    struct iovec iov[] = { { header, sizeof(header) },
                           { (void *)head, head_bytes },
                           { (void *)tail, tail_bytes } };

    nbd_option_reply_encode(header, &reply);
    return channel_co_writev_full(hs->conn->ch, iov, ARRAY_SIZE(iov), NULL);
}

static co_fn int reply(Handshake *hs, uint32_t type, const void *data, size_t len_bytes)
{
    return reply2(hs, type, data, len_bytes, NULL, 0);
}

static co_fn int reply_ack(Handshake *hs)
{
    return reply(hs, NBD_REP_ACK, NULL, 0);
}

static co_fn int reply_error(Handshake *hs, uint32_t type, const char *text)
{
    log_debug("nbd-server", "client %s: %s: %s", channel_name(hs->conn->ch),
              nbd_option_name(hs->option), text);
    return reply(hs, type, text, strlen(text));
}

/* --- exports --- */

static const NbdExport *find_export(const NbdServer *server, const char *name, size_t len_bytes)
{
    for (unsigned i = 0; i < server->nb_exports; i++) {
        const NbdExport *export = &server->exports[i];

        if (strlen(export->name) == len_bytes && memcmp(export->name, name, len_bytes) == 0) {
            return export;
        }
    }
    return len_bytes == 0 && server->nb_exports == 1 ? &server->exports[0] : NULL;
}

static NbdExportInfo export_info(const NbdConn *conn, const NbdExport *export)
{
    return (NbdExportInfo){ .length_bytes = blk_length(export->blk),
                            .flags = nbd_export_flags(export, conn->headers) };
}

static co_fn int option_list(Handshake *hs)
{
    const NbdServer *server = hs->conn->server;
    int ret = 0;

    if (hs->len_bytes != 0) {
        return reply_error(hs, NBD_REP_ERR_INVALID, "the option takes no data");
    }
    for (unsigned i = 0; ret == 0 && i < server->nb_exports; i++) {
        const NbdExport *export = &server->exports[i];
        size_t name_bytes = strlen(export->name);
        uint8_t head[4 + NBD_STRING_BYTES];

        nbd_put_be32(head, name_bytes);
        memcpy(head + 4, export->name, name_bytes);
        ret = reply2(hs, NBD_REP_SERVER, head, 4 + name_bytes, export->description,
                     strlen(export->description));
    }
    return ret < 0 ? ret : reply_ack(hs);
}

static co_fn int option_export_name(Handshake *hs)
{
    NbdConn *conn = hs->conn;
    uint8_t buf[NBD_EXPORT_NAME_REPLY_BYTES + NBD_EXPORT_NAME_ZEROES_BYTES] = { 0 };
    const NbdExport *export = find_export(conn->server, (const char *)hs->data, hs->len_bytes);

    if (conn->headers == NBD_HEADERS_EXTENDED) {
        return nbd_conn_broke_rules(conn, "EXPORT_NAME after extended headers were agreed on");
    }
    if (!export) { /* there is no other way to say so */
        return nbd_conn_broke_rules(conn, "asks for an export that does not exist");
    }
    NbdExportInfo info = export_info(conn, export);
    size_t len_bytes = conn->no_zeroes ? NBD_EXPORT_NAME_REPLY_BYTES : sizeof(buf);

    nbd_export_name_reply_encode(buf, &info);
    conn->export = export;
    int ret = channel_co_write_full(conn->ch, buf, len_bytes);

    return ret < 0 ? ret : GO;
}

static co_fn int reply_text_info(Handshake *hs, NbdInfo type, const char *text)
{
    uint8_t head[2];

    nbd_put_be16(head, type);
    return reply2(hs, NBD_REP_INFO, head, sizeof(head), text, strlen(text));
}

static co_fn int reply_infos(Handshake *hs, const NbdExport *export, uint32_t infos)
{
    NbdExportInfo info = export_info(hs->conn, export);
    uint8_t buf[NBD_INFO_BLOCK_SIZE_BYTES]; /* the longer one */
    int ret;

    nbd_info_export_encode(buf, &info);
    ret = reply(hs, NBD_REP_INFO, buf, NBD_INFO_EXPORT_BYTES);
    if (ret == 0 && (infos & 1u << NBD_INFO_NAME)) {
        ret = reply_text_info(hs, NBD_INFO_NAME, export->name);
    }
    if (ret == 0 && (infos & 1u << NBD_INFO_DESCRIPTION) && export->description[0]) {
        ret = reply_text_info(hs, NBD_INFO_DESCRIPTION, export->description);
    }
    if (ret == 0 && (infos & 1u << NBD_INFO_BLOCK_SIZE)) {
        nbd_info_block_size_encode(buf, &export->sizes);
        ret = reply(hs, NBD_REP_INFO, buf, NBD_INFO_BLOCK_SIZE_BYTES);
    }
    return ret;
}

/* INFO and GO. */
static co_fn int option_go(Handshake *hs)
{
    NbdGo go;
    int ret = nbd_go_decode(hs->data, hs->len_bytes, &go);

    if (ret < 0) {
        return reply_error(hs, NBD_REP_ERR_INVALID, "malformed data");
    }
    const NbdExport *export = find_export(hs->conn->server, go.name.text, go.name.len_bytes);

    if (!export) {
        return reply_error(hs, NBD_REP_ERR_UNKNOWN, "there is no such export");
    }
    if ((ret = reply_infos(hs, export, go.infos)) < 0 || (ret = reply_ack(hs)) < 0) {
        return ret;
    }
    if (hs->option == NBD_OPT_INFO) {
        return NEXT_OPTION;
    }
    hs->conn->export = export;
    return GO;
}

/* --- headers and metadata --- */

static co_fn int option_headers(Handshake *hs, NbdHeaders headers)
{
    if (hs->len_bytes != 0) {
        return reply_error(hs, NBD_REP_ERR_INVALID, "the option takes no data");
    }
    if (headers < hs->conn->headers) {
        return reply_error(hs, NBD_REP_ERR_EXT_HEADER_REQD,
                           "extended headers have been agreed on already");
    }
    hs->conn->headers = headers;
    return reply_ack(hs);
}

static bool string_is(NbdString string, const char *text)
{
    return string.len_bytes == strlen(text) && memcmp(string.text, text, string.len_bytes) == 0;
}

static bool asks_for_allocation(NbdMetaQuery *query, bool list)
{
    bool found = list && query->nb_queries == 0;

    for (uint32_t i = 0; i < query->nb_queries; i++) {
        NbdString text = nbd_meta_query_next(query);

        found |= string_is(text, NBD_CONTEXT_BASE_ALLOCATION) || (list && string_is(text, "base:"));
    }
    return found;
}

static co_fn int reply_allocation(Handshake *hs, uint32_t id)
{
    uint8_t head[4];

    nbd_put_be32(head, id);
    return reply2(hs, NBD_REP_META_CONTEXT, head, sizeof(head), NBD_CONTEXT_BASE_ALLOCATION,
                  strlen(NBD_CONTEXT_BASE_ALLOCATION));
}

static co_fn int option_meta_context(Handshake *hs)
{
    NbdConn *conn = hs->conn;
    bool list = hs->option == NBD_OPT_LIST_META_CONTEXT;
    NbdMetaQuery query;
    int ret = 0;

    if (!list) {
        conn->allocation_of = NULL; /* when this fails, too */
    }
    if (conn->headers == NBD_HEADERS_SIMPLE) {
        return reply_error(hs, NBD_REP_ERR_INVALID, "structured replies come first");
    }
    if (nbd_meta_query_decode(hs->data, hs->len_bytes, &query) < 0) {
        return reply_error(hs, NBD_REP_ERR_INVALID, "malformed data");
    }
    const NbdExport *export = find_export(conn->server, query.name.text, query.name.len_bytes);

    if (!export) {
        return reply_error(hs, NBD_REP_ERR_UNKNOWN, "there is no such export");
    }
    if (asks_for_allocation(&query, list)) {
        conn->allocation_of = list ? conn->allocation_of : export;
        ret = reply_allocation(hs, list ? 0 : ALLOCATION_CONTEXT_ID);
    }
    return ret < 0 ? ret : reply_ack(hs);
}

/* --- TLS --- */

static co_fn int option_starttls(Handshake *hs)
{
    NbdConn *conn = hs->conn;
    Error err;
    int ret;

    if (hs->len_bytes != 0) {
        return reply_error(hs, NBD_REP_ERR_INVALID, "the option takes no data");
    }
    if (conn->tls) {
        return reply_error(hs, NBD_REP_ERR_INVALID, "TLS has been started already");
    }
    if (!conn->server->tls) {
        return reply_error(hs, NBD_REP_ERR_POLICY, "this server has no TLS");
    }
    if ((ret = reply_ack(hs)) < 0) {
        return ret;
    }
    Channel *tls =
        channel_tls_co_handshake(conn->ch, conn->server->tls, NULL, hs->deadline_ns, &err);

    if (!tls) {
        return nbd_conn_broke_rules(conn, "TLS: %s", err.msg);
    }
    nbd_conn_set_channel(conn, tls);
    channel_set_deadline(tls, CHANNEL_READ | CHANNEL_WRITE, hs->deadline_ns);
    conn->tls = true;
    conn->headers = NBD_HEADERS_SIMPLE;
    conn->allocation_of = NULL;
    return NEXT_OPTION;
}

/* --- options --- */

static co_fn int run_option(Handshake *hs)
{
    switch (hs->option) {
    case NBD_OPT_EXPORT_NAME:
        return option_export_name(hs);
    case NBD_OPT_ABORT:
        (void)reply_ack(hs); /* the client may have gone already */
        return LEAVE;
    case NBD_OPT_LIST:
        return option_list(hs);
    case NBD_OPT_STARTTLS:
        return option_starttls(hs);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return option_go(hs);
    case NBD_OPT_STRUCTURED_REPLY:
        return option_headers(hs, NBD_HEADERS_STRUCTURED);
    case NBD_OPT_EXTENDED_HEADERS:
        return option_headers(hs, NBD_HEADERS_EXTENDED);
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return option_meta_context(hs);
    default:
        return reply_error(hs, NBD_REP_ERR_UNSUP, "unknown option");
    }
}

/* Is it allowed now? */
static co_fn int admit_option(Handshake *hs)
{
    NbdConn *conn = hs->conn;

    if (!hs->fixed && hs->option != NBD_OPT_EXPORT_NAME) {
        return nbd_conn_broke_rules(conn, "option %" PRIu32 " of a client that knows no errors",
                                    hs->option);
    }
    if (!conn->server->tls_required || conn->tls || hs->option == NBD_OPT_ABORT ||
        hs->option == NBD_OPT_STARTTLS) {
        return run_option(hs);
    }
    if (hs->option == NBD_OPT_EXPORT_NAME) {
        return nbd_conn_broke_rules(conn, "EXPORT_NAME without TLS, which is required here");
    }
    return reply_error(hs, NBD_REP_ERR_TLS_REQD, "this server requires TLS");
}

static co_fn int receive_option(Handshake *hs)
{
    NbdConn *conn = hs->conn;
    NbdOptionHeader header;
    uint8_t buf[NBD_OPTION_BYTES];
    int ret = channel_co_read_full(conn->ch, buf, sizeof(buf));

    if (ret <= 0) {
        return ret < 0 ? ret : LEAVE;
    }
    if (nbd_option_decode(buf, &header) < 0) {
        return nbd_conn_broke_rules(conn, "what it sent is no option");
    }
    hs->option = header.option;
    hs->len_bytes = header.len_bytes;
    if (header.len_bytes > OPTION_BYTES_MAX) {
        return nbd_conn_broke_rules(conn, "option %s with %" PRIu32 " bytes of data",
                                    nbd_option_name(header.option), header.len_bytes);
    }
    ret = header.len_bytes ? channel_co_read_full(conn->ch, hs->data, header.len_bytes) : 1;
    if (ret <= 0) {
        return ret < 0 ? ret : -ECONNRESET;
    }
    return admit_option(hs);
}

static co_fn int greet(Handshake *hs)
{
    uint8_t greeting[NBD_GREETING_BYTES], buf[NBD_CLIENT_FLAGS_BYTES];
    uint32_t flags;
    int ret;

    nbd_greeting_encode(greeting, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    if ((ret = channel_co_write_full(hs->conn->ch, greeting, sizeof(greeting))) < 0) {
        return ret;
    }
    if ((ret = channel_co_read_full(hs->conn->ch, buf, sizeof(buf))) <= 0) {
        return ret < 0 ? ret : LEAVE;
    }
    flags = nbd_get_be32(buf);
    if (flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
        return nbd_conn_broke_rules(hs->conn, "unknown flags 0x%" PRIx32, flags);
    }
    hs->fixed = flags & NBD_FLAG_FIXED_NEWSTYLE;
    hs->conn->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    return NEXT_OPTION;
}

static co_fn int shake_hands(Handshake *hs)
{
    int ret = greet(hs);

    for (unsigned i = 0; ret == NEXT_OPTION && i < OPTIONS_MAX; i++) {
        ret = receive_option(hs);
    }
    if (ret == NEXT_OPTION) {
        return nbd_conn_broke_rules(hs->conn, "%d options and no export chosen", OPTIONS_MAX);
    }
    if (ret == -ETIMEDOUT) {
        return nbd_conn_broke_rules(hs->conn, "the handshake takes too long");
    }
    return ret;
}

int nbd_conn_co_handshake(NbdConn *conn)
{
    Handshake *hs = calloc(1, sizeof(*hs));

    if (!hs) {
        return -ENOMEM;
    }
    hs->conn = conn;
    hs->deadline_ns = aio_now_ns() + conn->server->handshake_ns;
    channel_set_deadline(conn->ch, CHANNEL_READ | CHANNEL_WRITE, hs->deadline_ns);
    int ret = shake_hands(hs);

    free(hs);
    channel_set_deadline(conn->ch, CHANNEL_READ | CHANNEL_WRITE, -1);
    if (ret == GO && conn->allocation_of != conn->export) {
        conn->allocation_of = NULL; /* it was chosen for another one */
    }
    return ret == LEAVE ? 0 : ret;
}
