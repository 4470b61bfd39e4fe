/*
 * nbd-proto.c - see nbd-proto.h
 */
#include "block/nbd/nbd-proto.h"

/* --- errors and names --- */

static const struct {
    uint32_t nbd;
    int host;
} errors[] = {
    { NBD_EPERM, EPERM },        { NBD_EIO, EIO },
    { NBD_ENOMEM, ENOMEM },      { NBD_EINVAL, EINVAL },
    { NBD_ENOSPC, ENOSPC },      { NBD_EOVERFLOW, EOVERFLOW },
    { NBD_ENOTSUP, EOPNOTSUPP }, { NBD_ESHUTDOWN, ESHUTDOWN },
    { NBD_EPERM, EROFS },        { NBD_ENOSPC, EDQUOT },
    { NBD_ENOSPC, EFBIG },       { NBD_EPERM, EACCES },
};

int nbd_errno_to_host(uint32_t error)
{
    for (unsigned i = 0; i < ARRAY_SIZE(errors); i++) {
        if (errors[i].nbd == error) {
            return -errors[i].host;
        }
    }
    return -EINVAL;
}

uint32_t nbd_errno_from_host(int code)
{
    for (unsigned i = 0; i < ARRAY_SIZE(errors); i++) {
        if (errors[i].host == -code) {
            return errors[i].nbd;
        }
    }
    return NBD_EIO;
}

const char *nbd_option_name(uint32_t option)
{
    switch (option) {
    case NBD_OPT_EXPORT_NAME:
        return "EXPORT_NAME";
    case NBD_OPT_ABORT:
        return "ABORT";
    case NBD_OPT_LIST:
        return "LIST";
    case NBD_OPT_STARTTLS:
        return "STARTTLS";
    case NBD_OPT_INFO:
        return "INFO";
    case NBD_OPT_GO:
        return "GO";
    case NBD_OPT_STRUCTURED_REPLY:
        return "STRUCTURED_REPLY";
    case NBD_OPT_LIST_META_CONTEXT:
        return "LIST_META_CONTEXT";
    case NBD_OPT_SET_META_CONTEXT:
        return "SET_META_CONTEXT";
    case NBD_OPT_EXTENDED_HEADERS:
        return "EXTENDED_HEADERS";
    default:
        return "unknown";
    }
}

const char *nbd_option_reply_name(uint32_t type)
{
    static const char *const error_names[] = {
        "unsupported",     "forbidden by policy",
        "invalid",         "not on this platform",
        "TLS is required", "no such export",
        "shutting down",   "block sizes must be asked for",
        "too big",         "extended headers are required",
    };

    switch (type) {
    case NBD_REP_ACK:
        return "ACK";
    case NBD_REP_SERVER:
        return "SERVER";
    case NBD_REP_INFO:
        return "INFO";
    case NBD_REP_META_CONTEXT:
        return "META_CONTEXT";
    default:
        if (type > NBD_REP_ERROR_BIT && type - NBD_REP_ERROR_BIT <= ARRAY_SIZE(error_names)) {
            return error_names[type - NBD_REP_ERROR_BIT - 1];
        }
        return "unknown";
    }
}

/* --- handshake --- */

void nbd_greeting_encode(uint8_t *buf, uint16_t flags)
{
    nbd_put_be64(buf, NBD_INIT_MAGIC);
    nbd_put_be64(buf + 8, NBD_OPTION_MAGIC);
    nbd_put_be16(buf + 16, flags);
}

int nbd_greeting_decode(const uint8_t *buf, uint16_t *ret_flags)
{
    if (nbd_get_be64(buf) != NBD_INIT_MAGIC) {
        return -EPROTO;
    }
    if (nbd_get_be64(buf + 8) != NBD_OPTION_MAGIC) {
        return nbd_get_be64(buf + 8) == NBD_OLDSTYLE_MAGIC ? -EPROTONOSUPPORT : -EPROTO;
    }
    *ret_flags = nbd_get_be16(buf + 16);
    return 0;
}

void nbd_option_encode(uint8_t *buf, const NbdOptionHeader *header)
{
    nbd_put_be64(buf, NBD_OPTION_MAGIC);
    nbd_put_be32(buf + 8, header->option);
    nbd_put_be32(buf + 12, header->len_bytes);
}

int nbd_option_decode(const uint8_t *buf, NbdOptionHeader *ret_header)
{
    if (nbd_get_be64(buf) != NBD_OPTION_MAGIC) {
        return -EPROTO;
    }
    ret_header->option = nbd_get_be32(buf + 8);
    ret_header->len_bytes = nbd_get_be32(buf + 12);
    return 0;
}

void nbd_option_reply_encode(uint8_t *buf, const NbdOptionReply *reply)
{
    nbd_put_be64(buf, NBD_OPTION_REPLY_MAGIC);
    nbd_put_be32(buf + 8, reply->option);
    nbd_put_be32(buf + 12, reply->type);
    nbd_put_be32(buf + 16, reply->len_bytes);
}

int nbd_option_reply_decode(const uint8_t *buf, NbdOptionReply *ret_reply)
{
    if (nbd_get_be64(buf) != NBD_OPTION_REPLY_MAGIC) {
        return -EPROTO;
    }
    ret_reply->option = nbd_get_be32(buf + 8);
    ret_reply->type = nbd_get_be32(buf + 12);
    ret_reply->len_bytes = nbd_get_be32(buf + 16);
    return 0;
}

/* --- data of options --- */

/* What is left of a buffer that a peer filled. */
typedef struct Cursor {
    const uint8_t *at;
    size_t left_bytes;
} Cursor;

static bool take_be16(Cursor *c, uint16_t *ret_value)
{
    if (c->left_bytes < 2) {
        return false;
    }
    *ret_value = nbd_get_be16(c->at);
    c->at += 2;
    c->left_bytes -= 2;
    return true;
}

static bool take_be32(Cursor *c, uint32_t *ret_value)
{
    if (c->left_bytes < 4) {
        return false;
    }
    *ret_value = nbd_get_be32(c->at);
    c->at += 4;
    c->left_bytes -= 4;
    return true;
}

/* A length and so many bytes. */
static int take_string(Cursor *c, NbdString *ret_string)
{
    uint32_t len_bytes;

    if (!take_be32(c, &len_bytes) || len_bytes > c->left_bytes) {
        return -EINVAL;
    }
    if (len_bytes > NBD_STRING_BYTES) {
        return -ENAMETOOLONG;
    }
    if (len_bytes > 0 && memchr(c->at, '\0', len_bytes)) {
        return -EINVAL;
    }
    *ret_string = (NbdString){ (const char *)c->at, len_bytes };
    c->at += len_bytes;
    c->left_bytes -= len_bytes;
    return 0;
}

static uint8_t *put_string(uint8_t *buf, const NbdString *string)
{
    assert(string->len_bytes <= NBD_STRING_BYTES);
    nbd_put_be32(buf, string->len_bytes);
    if (string->len_bytes > 0) {
        memcpy(buf + 4, string->text, string->len_bytes);
    }
    return buf + 4 + string->len_bytes;
}

size_t nbd_go_encode(uint8_t *buf, const NbdGo *go)
{
    uint8_t *at = put_string(buf, &go->name);
    uint8_t *count = at;
    uint16_t nb_infos = 0;

    at += 2;
    for (uint16_t info = NBD_INFO_EXPORT; info <= NBD_INFO_BLOCK_SIZE; info++) {
        if (go->infos & (1u << info)) {
            nbd_put_be16(at, info);
            at += 2;
            nb_infos++;
        }
    }
    nbd_put_be16(count, nb_infos);
    return (size_t)(at - buf);
}

int nbd_go_decode(const uint8_t *buf, size_t len_bytes, NbdGo *ret_go)
{
    Cursor c = { buf, len_bytes };
    NbdGo go = { 0 };
    uint16_t nb_infos, info;
    int ret = take_string(&c, &go.name);

    if (ret < 0) {
        return ret;
    }
    if (!take_be16(&c, &nb_infos) || c.left_bytes != nb_infos * 2u) {
        return -EINVAL;
    }
    while (take_be16(&c, &info)) {
        if (info <= NBD_INFO_BLOCK_SIZE) {
            go.infos |= 1u << info;
        }
    }
    *ret_go = go;
    return 0;
}

size_t nbd_meta_query_encode(uint8_t *buf, const NbdString *name, const NbdString *query)
{
    uint8_t *at = put_string(buf, name);

    nbd_put_be32(at, 1);
    at = put_string(at + 4, query);
    return (size_t)(at - buf);
}

int nbd_meta_query_decode(const uint8_t *buf, size_t len_bytes, NbdMetaQuery *ret_query)
{
    Cursor c = { buf, len_bytes };
    NbdMetaQuery query;
    NbdString string;
    int ret = take_string(&c, &query.name);

    if (ret < 0) {
        return ret;
    }
    if (!take_be32(&c, &query.nb_queries)) {
        return -EINVAL;
    }
    query.next = c.at;
    /* Each takes four bytes at least, so the buffer bounds the loop. */
    for (uint32_t i = 0; i < query.nb_queries; i++) {
        ret = take_string(&c, &string);
        if (ret < 0) {
            return ret;
        }
    }
    if (c.left_bytes > 0) {
        return -EINVAL;
    }
    *ret_query = query;
    return 0;
}

NbdString nbd_meta_query_next(NbdMetaQuery *query)
{
    uint32_t len_bytes = nbd_get_be32(query->next);
    NbdString string = { (const char *)query->next + 4, len_bytes };

    query->next += 4 + len_bytes;
    return string;
}

/* --- information on exports --- */

void nbd_info_export_encode(uint8_t *buf, const NbdExportInfo *info)
{
    nbd_put_be16(buf, NBD_INFO_EXPORT);
    nbd_put_be64(buf + 2, info->length_bytes);
    nbd_put_be16(buf + 10, info->flags);
}

int nbd_info_export_decode(const uint8_t *buf, size_t len_bytes, NbdExportInfo *ret_info)
{
    if (len_bytes != NBD_INFO_EXPORT_BYTES || nbd_get_be16(buf) != NBD_INFO_EXPORT) {
        return -EPROTO;
    }
    ret_info->length_bytes = nbd_get_be64(buf + 2);
    ret_info->flags = nbd_get_be16(buf + 10);
    return 0;
}

void nbd_info_block_size_encode(uint8_t *buf, const NbdBlockSizes *sizes)
{
    nbd_put_be16(buf, NBD_INFO_BLOCK_SIZE);
    nbd_put_be32(buf + 2, sizes->min_bytes);
    nbd_put_be32(buf + 6, sizes->preferred_bytes);
    nbd_put_be32(buf + 10, sizes->max_payload_bytes);
}

int nbd_info_block_size_decode(const uint8_t *buf, size_t len_bytes, NbdBlockSizes *ret_sizes)
{
    NbdBlockSizes sizes;

    if (len_bytes != NBD_INFO_BLOCK_SIZE_BYTES || nbd_get_be16(buf) != NBD_INFO_BLOCK_SIZE) {
        return -EPROTO;
    }
    sizes.min_bytes = nbd_get_be32(buf + 2);
    sizes.preferred_bytes = nbd_get_be32(buf + 6);
    sizes.max_payload_bytes = nbd_get_be32(buf + 10);
    if (!IS_POWER_OF_2(sizes.min_bytes) || sizes.min_bytes > 64 * 1024 ||
        !IS_POWER_OF_2(sizes.preferred_bytes) || sizes.preferred_bytes < sizes.min_bytes ||
        sizes.max_payload_bytes < sizes.min_bytes) {
        return -EPROTO;
    }
    *ret_sizes = sizes;
    return 0;
}

void nbd_export_name_reply_encode(uint8_t *buf, const NbdExportInfo *info)
{
    nbd_put_be64(buf, info->length_bytes);
    nbd_put_be16(buf + 8, info->flags);
}

void nbd_export_name_reply_decode(const uint8_t *buf, NbdExportInfo *ret_info)
{
    ret_info->length_bytes = nbd_get_be64(buf);
    ret_info->flags = nbd_get_be16(buf + 8);
}

/* --- requests --- */

size_t nbd_request_encode(uint8_t *buf, NbdHeaders headers, const NbdRequest *req)
{
    bool extended = headers == NBD_HEADERS_EXTENDED;

    nbd_put_be32(buf, extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
    nbd_put_be16(buf + 4, req->flags);
    nbd_put_be16(buf + 6, req->type);
    nbd_put_be64(buf + 8, req->cookie);
    nbd_put_be64(buf + 16, req->offset_bytes);
    if (extended) {
        nbd_put_be64(buf + 24, req->len_bytes);
        return NBD_EXTENDED_REQUEST_BYTES;
    }
    assert(req->len_bytes <= UINT32_MAX);
    nbd_put_be32(buf + 24, (uint32_t)req->len_bytes);
    return NBD_REQUEST_BYTES;
}

int nbd_request_decode(const uint8_t *buf, NbdHeaders headers, NbdRequest *ret_req)
{
    bool extended = headers == NBD_HEADERS_EXTENDED;

    if (nbd_get_be32(buf) != (extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC)) {
        return -EPROTO;
    }
    *ret_req = (NbdRequest){
        .flags = nbd_get_be16(buf + 4),
        .type = nbd_get_be16(buf + 6),
        .cookie = nbd_get_be64(buf + 8),
        .offset_bytes = nbd_get_be64(buf + 16),
        .len_bytes = extended ? nbd_get_be64(buf + 24) : nbd_get_be32(buf + 24),
    };
    return 0;
}

/* --- replies --- */

size_t nbd_reply_bytes(const uint8_t *buf, NbdHeaders headers)
{
    switch (nbd_get_be32(buf)) {
    case NBD_SIMPLE_REPLY_MAGIC:
        return headers == NBD_HEADERS_EXTENDED ? 0 : NBD_SIMPLE_REPLY_BYTES;
    case NBD_STRUCTURED_REPLY_MAGIC:
        return headers == NBD_HEADERS_STRUCTURED ? NBD_STRUCTURED_REPLY_BYTES : 0;
    case NBD_EXTENDED_REPLY_MAGIC:
        return headers == NBD_HEADERS_EXTENDED ? NBD_EXTENDED_REPLY_BYTES : 0;
    default:
        return 0;
    }
}

void nbd_reply_decode(const uint8_t *buf, NbdReply *ret_reply)
{
    uint32_t magic = nbd_get_be32(buf);

    *ret_reply = (NbdReply){ .cookie = nbd_get_be64(buf + 8) };
    if (magic == NBD_SIMPLE_REPLY_MAGIC) {
        ret_reply->simple = true;
        ret_reply->error = nbd_get_be32(buf + 4);
        return;
    }
    ret_reply->flags = nbd_get_be16(buf + 4);
    ret_reply->type = nbd_get_be16(buf + 6);
    if (magic == NBD_EXTENDED_REPLY_MAGIC) {
        ret_reply->offset_bytes = nbd_get_be64(buf + 16);
        ret_reply->payload_bytes = nbd_get_be64(buf + 24);
    } else {
        ret_reply->payload_bytes = nbd_get_be32(buf + 16);
    }
}

size_t nbd_reply_encode(uint8_t *buf, NbdHeaders headers, const NbdReply *reply)
{
    nbd_put_be64(buf + 8, reply->cookie);
    if (reply->simple) {
        nbd_put_be32(buf, NBD_SIMPLE_REPLY_MAGIC);
        nbd_put_be32(buf + 4, reply->error);
        return NBD_SIMPLE_REPLY_BYTES;
    }
    nbd_put_be16(buf + 4, reply->flags);
    nbd_put_be16(buf + 6, reply->type);
    if (headers == NBD_HEADERS_EXTENDED) {
        nbd_put_be32(buf, NBD_EXTENDED_REPLY_MAGIC);
        nbd_put_be64(buf + 16, reply->offset_bytes);
        nbd_put_be64(buf + 24, reply->payload_bytes);
        return NBD_EXTENDED_REPLY_BYTES;
    }
    assert(headers == NBD_HEADERS_STRUCTURED && reply->payload_bytes <= UINT32_MAX);
    nbd_put_be32(buf, NBD_STRUCTURED_REPLY_MAGIC);
    nbd_put_be32(buf + 16, (uint32_t)reply->payload_bytes);
    return NBD_STRUCTURED_REPLY_BYTES;
}
