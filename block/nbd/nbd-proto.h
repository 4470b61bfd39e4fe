/*
 * nbd-proto - the NBD protocol on the wire: constants, and encoding and decoding of every message
 *
 * Layer:     block/nbd (may use io/base); for the client and the server
 * Threading: pure functions.
 * Lifetime:  decoders borrow: names and lists that they give lie in the buffer that they were
 *            given.
 * Spec:      NetworkBlockDevice/nbd doc/proto.md, and its extension-ext-header branch
 *
 * Nothing here reads or writes a channel. Decoders are for what a peer sent: they check all lengths
 * against the buffer and believe nothing. -EPROTO: nothing can be done with the connection any
 * more; -EINVAL and -ENAMETOOLONG: an option's data are wrong, which a server answers with an
 * error.
 */
#ifndef BLOCK_NBD_NBD_PROTO_H
#define BLOCK_NBD_NBD_PROTO_H

#include "io/base/endian.h"

#define NBD_PORT         "10809"
#define NBD_STRING_BYTES 4096 /* longest string of the protocol: names, messages, descriptions */

/* --- handshake --- */

#define NBD_INIT_MAGIC         UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC       UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_OLDSTYLE_MAGIC     UINT64_C(0x0000420281861253)
#define NBD_OPTION_REPLY_MAGIC UINT64_C(0x0003e889045565a9)

/* Handshake flags of the server, and the client's answer with the same bits. */
#define NBD_FLAG_FIXED_NEWSTYLE (1u << 0)
#define NBD_FLAG_NO_ZEROES      (1u << 1)

typedef enum NbdOption {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
    NBD_OPT_EXTENDED_HEADERS = 11,
} NbdOption;

#define NBD_REP_ACK                 1u
#define NBD_REP_SERVER              2u
#define NBD_REP_INFO                3u
#define NBD_REP_META_CONTEXT        4u
#define NBD_REP_ERROR_BIT           (1u << 31)
#define NBD_REP_ERR_UNSUP           (NBD_REP_ERROR_BIT + 1)
#define NBD_REP_ERR_POLICY          (NBD_REP_ERROR_BIT + 2)
#define NBD_REP_ERR_INVALID         (NBD_REP_ERROR_BIT + 3)
#define NBD_REP_ERR_PLATFORM        (NBD_REP_ERROR_BIT + 4)
#define NBD_REP_ERR_TLS_REQD        (NBD_REP_ERROR_BIT + 5)
#define NBD_REP_ERR_UNKNOWN         (NBD_REP_ERROR_BIT + 6)
#define NBD_REP_ERR_SHUTDOWN        (NBD_REP_ERROR_BIT + 7)
#define NBD_REP_ERR_BLOCK_SIZE_REQD (NBD_REP_ERROR_BIT + 8)
#define NBD_REP_ERR_TOO_BIG         (NBD_REP_ERROR_BIT + 9)
#define NBD_REP_ERR_EXT_HEADER_REQD (NBD_REP_ERROR_BIT + 10)

typedef enum NbdInfo {
    NBD_INFO_EXPORT = 0,
    NBD_INFO_NAME = 1,
    NBD_INFO_DESCRIPTION = 2,
    NBD_INFO_BLOCK_SIZE = 3,
} NbdInfo;

#define NBD_CONTEXT_BASE_ALLOCATION "base:allocation"

/* --- transmission --- */

/* Transmission flags: what an export can do. */
#define NBD_FLAG_HAS_FLAGS            (1u << 0)
#define NBD_FLAG_READ_ONLY            (1u << 1)
#define NBD_FLAG_SEND_FLUSH           (1u << 2)
#define NBD_FLAG_SEND_FUA             (1u << 3)
#define NBD_FLAG_ROTATIONAL           (1u << 4)
#define NBD_FLAG_SEND_TRIM            (1u << 5)
#define NBD_FLAG_SEND_WRITE_ZEROES    (1u << 6)
#define NBD_FLAG_SEND_DF              (1u << 7)
#define NBD_FLAG_CAN_MULTI_CONN       (1u << 8)
#define NBD_FLAG_SEND_RESIZE          (1u << 9)
#define NBD_FLAG_SEND_CACHE           (1u << 10)
#define NBD_FLAG_SEND_FAST_ZERO       (1u << 11)
#define NBD_FLAG_BLOCK_STATUS_PAYLOAD (1u << 12)

typedef enum NbdCommand {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
} NbdCommand;

#define NBD_CMD_FLAG_FUA         (1u << 0)
#define NBD_CMD_FLAG_NO_HOLE     (1u << 1)
#define NBD_CMD_FLAG_DF          (1u << 2)
#define NBD_CMD_FLAG_REQ_ONE     (1u << 3)
#define NBD_CMD_FLAG_FAST_ZERO   (1u << 4)
#define NBD_CMD_FLAG_PAYLOAD_LEN (1u << 5) /* extended headers: length is that of the payload */

#define NBD_REPLY_FLAG_DONE (1u << 0)

#define NBD_REPLY_TYPE_NONE             0u
#define NBD_REPLY_TYPE_OFFSET_DATA      1u
#define NBD_REPLY_TYPE_OFFSET_HOLE      2u
#define NBD_REPLY_TYPE_BLOCK_STATUS     5u
#define NBD_REPLY_TYPE_BLOCK_STATUS_EXT 6u
#define NBD_REPLY_TYPE_ERROR_BIT        (1u << 15)
#define NBD_REPLY_TYPE_ERROR            (NBD_REPLY_TYPE_ERROR_BIT + 1)
#define NBD_REPLY_TYPE_ERROR_OFFSET     (NBD_REPLY_TYPE_ERROR_BIT + 2)

/* Flags of base:allocation. */
#define NBD_STATE_HOLE (1u << 0)
#define NBD_STATE_ZERO (1u << 1)

/* What a server must take when no other limit was agreed on. */
#define NBD_PAYLOAD_BYTES_DEFAULT         (32u << 20)
#define NBD_BLOCK_BYTES_PREFERRED_DEFAULT 4096u

#define NBD_EPERM     1u
#define NBD_EIO       5u
#define NBD_ENOMEM    12u
#define NBD_EINVAL    22u
#define NBD_ENOSPC    28u
#define NBD_EOVERFLOW 75u
#define NBD_ENOTSUP   95u
#define NBD_ESHUTDOWN 108u

/* nbd_errno_to_host - -errno for the error that a server gave, which is not 0; what the protocol
 * does not know is -EINVAL. nbd_errno_from_host - the other way round; @code is -errno. */
int nbd_errno_to_host(uint32_t error);
uint32_t nbd_errno_from_host(int code);

/* Names for messages; "unknown" for what the protocol does not have. */
const char *nbd_option_name(uint32_t option);
const char *nbd_option_reply_name(uint32_t type);

/* Which headers the two sides have agreed on. */
typedef enum NbdHeaders {
    NBD_HEADERS_SIMPLE,
    NBD_HEADERS_STRUCTURED, /* reads are answered in chunks, anything else in either form */
    NBD_HEADERS_EXTENDED,   /* all requests and replies are long ones */
} NbdHeaders;

/* --- the first bytes of a connection --- */

#define NBD_GREETING_BYTES     18
#define NBD_CLIENT_FLAGS_BYTES 4

void nbd_greeting_encode(uint8_t *buf, uint16_t flags) NONNULL(1);
/* -EPROTO: not an NBD server; -EPROTONOSUPPORT: one that speaks oldstyle */
int nbd_greeting_decode(const uint8_t *buf, uint16_t *ret_flags) NONNULL(1, 2) WARN_UNUSED;

static inline void nbd_put_be16(void *buf, uint16_t value)
{
    be16 wire = be16_make(value);

    memcpy(buf, &wire, sizeof(wire));
}

static inline void nbd_put_be32(void *buf, uint32_t value)
{
    be32 wire = be32_make(value);

    memcpy(buf, &wire, sizeof(wire));
}

static inline void nbd_put_be64(void *buf, uint64_t value)
{
    be64 wire = be64_make(value);

    memcpy(buf, &wire, sizeof(wire));
}

static inline uint16_t nbd_get_be16(const void *buf)
{
    be16 wire;

    memcpy(&wire, buf, sizeof(wire));
    return be16_get(wire);
}

static inline uint32_t nbd_get_be32(const void *buf)
{
    be32 wire;

    memcpy(&wire, buf, sizeof(wire));
    return be32_get(wire);
}

static inline uint64_t nbd_get_be64(const void *buf)
{
    be64 wire;

    memcpy(&wire, buf, sizeof(wire));
    return be64_get(wire);
}

/* --- options --- */

#define NBD_OPTION_BYTES       16 /* header of an option */
#define NBD_OPTION_REPLY_BYTES 20 /* header of its reply */

typedef struct NbdOptionHeader {
    uint32_t option;
    uint32_t len_bytes; /* of the data that follow */
} NbdOptionHeader;

typedef struct NbdOptionReply {
    uint32_t option;
    uint32_t type;
    uint32_t len_bytes;
} NbdOptionReply;

void nbd_option_encode(uint8_t *buf, const NbdOptionHeader *header) NONNULL(1, 2);
int nbd_option_decode(const uint8_t *buf, NbdOptionHeader *ret_header) NONNULL(1, 2) WARN_UNUSED;
void nbd_option_reply_encode(uint8_t *buf, const NbdOptionReply *reply) NONNULL(1, 2);
int nbd_option_reply_decode(const uint8_t *buf, NbdOptionReply *ret_reply)
    NONNULL(1, 2) WARN_UNUSED;

/* A string in somebody else's buffer; not closed by NUL. */
typedef struct NbdString {
    const char *text;
    uint32_t len_bytes;
} NbdString;

/* Data of NBD_OPT_INFO and NBD_OPT_GO. */
typedef struct NbdGo {
    NbdString name;
    uint32_t infos; /* bit (1 << NbdInfo) for each known information that is asked for */
} NbdGo;

#define NBD_GO_BYTES_MAX (4 + NBD_STRING_BYTES + 2 + 2 * 4)

/* Returns the length; @buf has NBD_GO_BYTES_MAX. */
size_t nbd_go_encode(uint8_t *buf, const NbdGo *go) NONNULL(1, 2);
/* -EINVAL; -ENAMETOOLONG (the name) */
int nbd_go_decode(const uint8_t *buf, size_t len_bytes, NbdGo *ret_go) NONNULL(3) WARN_UNUSED;

/* Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT: an export and queries. */
typedef struct NbdMetaQuery {
    NbdString name;
    uint32_t nb_queries;
    const uint8_t *next; /* for nbd_meta_query_next() */
} NbdMetaQuery;

#define NBD_META_QUERY_BYTES_MAX (4 + NBD_STRING_BYTES + 4 + 4 + NBD_STRING_BYTES)

/* With one query. Returns the length; @buf has NBD_META_QUERY_BYTES_MAX. */
size_t nbd_meta_query_encode(uint8_t *buf, const NbdString *name, const NbdString *query)
    NONNULL(1, 2, 3);
/* Checks all queries; then call nbd_meta_query_next() nb_queries times. -EINVAL, -ENAMETOOLONG */
int nbd_meta_query_decode(const uint8_t *buf, size_t len_bytes, NbdMetaQuery *ret_query)
    NONNULL(3) WARN_UNUSED;
NbdString nbd_meta_query_next(NbdMetaQuery *query) NONNULL(1);

/* Data of NBD_REP_INFO: what the two that have a fixed form say. */
#define NBD_INFO_EXPORT_BYTES     12
#define NBD_INFO_BLOCK_SIZE_BYTES 14

typedef struct NbdExportInfo {
    uint64_t length_bytes;
    uint16_t flags; /* NBD_FLAG_... */
} NbdExportInfo;

typedef struct NbdBlockSizes {
    uint32_t min_bytes;         /* power of 2, 1 .. 64 KiB */
    uint32_t preferred_bytes;   /* power of 2 */
    uint32_t max_payload_bytes; /* UINT32_MAX: no limit but the export's length */
} NbdBlockSizes;

void nbd_info_export_encode(uint8_t *buf, const NbdExportInfo *info) NONNULL(1, 2);
/* @buf with the type; -EPROTO */
int nbd_info_export_decode(const uint8_t *buf, size_t len_bytes, NbdExportInfo *ret_info)
    NONNULL(1, 3) WARN_UNUSED;
void nbd_info_block_size_encode(uint8_t *buf, const NbdBlockSizes *sizes) NONNULL(1, 2);
int nbd_info_block_size_decode(const uint8_t *buf, size_t len_bytes, NbdBlockSizes *ret_sizes)
    NONNULL(1, 3) WARN_UNUSED;

/* The answer to NBD_OPT_EXPORT_NAME: an NbdExportInfo and, unless agreed otherwise, zeroes. */
#define NBD_EXPORT_NAME_REPLY_BYTES  10
#define NBD_EXPORT_NAME_ZEROES_BYTES 124

void nbd_export_name_reply_encode(uint8_t *buf, const NbdExportInfo *info) NONNULL(1, 2);
void nbd_export_name_reply_decode(const uint8_t *buf, NbdExportInfo *ret_info) NONNULL(1, 2);

/* --- requests --- */

#define NBD_REQUEST_MAGIC          0x25609513u
#define NBD_EXTENDED_REQUEST_MAGIC 0x21e41c71u
#define NBD_SIMPLE_REPLY_MAGIC     0x67446698u
#define NBD_STRUCTURED_REPLY_MAGIC 0x668e33efu
#define NBD_EXTENDED_REPLY_MAGIC   0x6e8a278cu

#define NBD_REQUEST_BYTES          28
#define NBD_EXTENDED_REQUEST_BYTES 32

typedef struct NbdRequest {
    uint16_t flags; /* NBD_CMD_FLAG_... */
    uint16_t type;  /* NbdCommand */
    uint64_t cookie;
    uint64_t offset_bytes;
    uint64_t len_bytes; /* without extended headers up to UINT32_MAX */
} NbdRequest;

static inline size_t nbd_request_bytes(NbdHeaders headers)
{
    return headers == NBD_HEADERS_EXTENDED ? NBD_EXTENDED_REQUEST_BYTES : NBD_REQUEST_BYTES;
}

/* Returns the length, nbd_request_bytes(). */
size_t nbd_request_encode(uint8_t *buf, NbdHeaders headers, const NbdRequest *req) NONNULL(1, 3);
/* -EPROTO: a wrong magic */
int nbd_request_decode(const uint8_t *buf, NbdHeaders headers, NbdRequest *ret_req)
    NONNULL(1, 3) WARN_UNUSED;

/* --- replies --- */

#define NBD_SIMPLE_REPLY_BYTES     16
#define NBD_STRUCTURED_REPLY_BYTES 20
#define NBD_EXTENDED_REPLY_BYTES   32
#define NBD_REPLY_BYTES_MAX        NBD_EXTENDED_REPLY_BYTES

typedef struct NbdReply {
    bool simple;
    uint32_t error; /* simple: 0 or NBD_E... */
    uint16_t flags; /* chunk: NBD_REPLY_FLAG_... */
    uint16_t type;  /* chunk: NBD_REPLY_TYPE_... */
    uint64_t cookie;
    uint64_t offset_bytes;  /* extended: the request's */
    uint64_t payload_bytes; /* chunk: of what follows */
} NbdReply;

/* nbd_reply_bytes - length of the header that begins with the four bytes at @buf, 0 when there is
 * none such with @headers. No header is shorter than NBD_SIMPLE_REPLY_BYTES. */
size_t nbd_reply_bytes(const uint8_t *buf, NbdHeaders headers) NONNULL(1);
/* Of a whole header, whose length nbd_reply_bytes() has told. */
void nbd_reply_decode(const uint8_t *buf, NbdReply *ret_reply) NONNULL(1, 2);
/* With simple false, in the form of @headers, which is not SIMPLE. Returns the length. */
size_t nbd_reply_encode(uint8_t *buf, NbdHeaders headers, const NbdReply *reply) NONNULL(1, 3);

/* Fixed parts of payloads: encode with nbd_put_be..() in this order. */
#define NBD_OFFSET_DATA_BYTES        8  /* be64 offset, data */
#define NBD_OFFSET_HOLE_BYTES        12 /* be64 offset, be32 length */
#define NBD_CHUNK_ERROR_BYTES        6  /* be32 error, be16 message length, message */
#define NBD_CHUNK_ERROR_OFFSET_BYTES 8  /* behind the message: be64 offset */
#define NBD_STATUS_BYTES             4  /* be32 context, then extents */
#define NBD_EXTENT_BYTES             8  /* be32 length, be32 flags */
#define NBD_STATUS_EXT_BYTES         8  /* be32 context, be32 number, then extents */
#define NBD_EXTENT_EXT_BYTES         16 /* be64 length, be64 flags */

#endif
