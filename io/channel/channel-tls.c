/*
 * channel-tls.c - TLS records between a channel above and a channel below
 *
 * The library never touches the lower channel. What it wants to read it takes out of `in`, what it
 * wants to write it puts into `out`; both never wait, so no frame of the library is on a stack that
 * is left by a yield, and the mutex around the session is never held across one.
 *
 *     reader: lower --[fill]--> in --[gnutls_record_recv]--> caller's buffers
 *     writer: caller's buffers --[gnutls_record_send]--> out --[flush]--> lower
 *
 * Invariants:
 *   (1) `session` is used under `lock` only: a key update of the peer, seen by the reader, changes
 *       what the writer does next.
 *   (2) `in` belongs to the reader.
 *   (3) Bytes are added to `out` under the lock, by the writer or, rarely, by the reader whom the
 *       library has answer something. Only the writer takes bytes away. It sends from the front
 *       without the lock, because what is there does not move while it does.
 *   (4) held_bytes of the caller's data are in `out` as records, and have not been reported as
 *       written: that is done once `out` has been sent. So a write that has returned is below, and
 *       a try that had to wait is repeated by channel.c with the same data.
 *   (5) During the handshake there is one coroutine, and the worker has the session while that
 *       waits.
 */
#include "io/channel/channel-tls.h"

#include <arpa/inet.h>
#include <gnutls/gnutls.h>
#include <pthread.h>
#include <string.h>

#include "io/aio/aio-worker.h"
#include "io/channel/channel-int.h"
#include "io/channel/tls-creds-int.h"

#define RECORD_DATA_MAX   16384
#define RECORD_BYTES_MAX  (5 + RECORD_DATA_MAX + 2048) /* as any version of TLS allows it */
#define RECORD_HEADER     5
#define IN_BYTES          65536
#define OUT_BYTES         (4 * RECORD_BYTES_MAX)
#define HANDSHAKE_STEPS   256 /* about as many records as a peer may need */
#define FILLS_MAX         16           /* of `in` in one try */

typedef struct TlsChannel {
    Channel base;
    Channel *lower;
    TlsCreds *creds;

    /* the reader's */
    size_t in_first, in_end; /* bytes of `in` that the library has not taken */
    bool in_ended;           /* the lower channel has */
    int in_error;            /* found behind data that was returned first */
    char *in;

    /* the writer's */
    size_t held_bytes CACHE_ALIGNED;
    size_t out_first;
    bool said_bye;
    char *gather; /* short segments become one record */

    pthread_mutex_t lock CACHE_ALIGNED; /* protects the fields below */
    gnutls_session_t session;
    size_t out_end;
    char *out;
} TlsChannel;

static_assert(IN_BYTES >= RECORD_BYTES_MAX, "a whole record fits");

static TlsChannel *tls_of(Channel *ch)
{
    return container_of(ch, TlsChannel, base);
}

/* --- errors --- */

/* The peer says that it is about who we are, or that is what we say of the peer. */
static bool alert_is_about_identity(gnutls_alert_description_t alert)
{
    switch ((int)alert) {
    case GNUTLS_A_BAD_CERTIFICATE:
    case GNUTLS_A_UNSUPPORTED_CERTIFICATE:
    case GNUTLS_A_CERTIFICATE_REVOKED:
    case GNUTLS_A_CERTIFICATE_EXPIRED:
    case GNUTLS_A_CERTIFICATE_UNKNOWN:
    case GNUTLS_A_UNKNOWN_CA:
    case GNUTLS_A_ACCESS_DENIED:
    case GNUTLS_A_DECRYPT_ERROR:
    case GNUTLS_A_UNKNOWN_PSK_IDENTITY:
    case GNUTLS_A_CERTIFICATE_REQUIRED:
        return true;
    default:
        return false;
    }
}

static int tls_errno(gnutls_session_t session, int code)
{
    switch (code) {
    case GNUTLS_E_FATAL_ALERT_RECEIVED:
        return alert_is_about_identity(gnutls_alert_get(session)) ? -EACCES : -EPROTO;
    case GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR:
    case GNUTLS_E_CERTIFICATE_ERROR:
    case GNUTLS_E_CERTIFICATE_REQUIRED:
    case GNUTLS_E_NO_CERTIFICATE_FOUND:
        return -EACCES;
    case GNUTLS_E_PREMATURE_TERMINATION:
        return -ECONNABORTED;
    case GNUTLS_E_MEMORY_ERROR:
        return -ENOMEM;
    default:
        return -EPROTO;
    }
}

static bool is_passing(int code)
{
    return code == GNUTLS_E_AGAIN || code == GNUTLS_E_INTERRUPTED;
}

/* --- what the library reads and writes --- */

static ssize_t pull_cb(gnutls_transport_ptr_t opaque, void *buf, size_t len_bytes)
{
    TlsChannel *tls = opaque;
    size_t n = MIN(len_bytes, tls->in_end - tls->in_first);

    if (n == 0 && !tls->in_ended) {
        gnutls_transport_set_errno(tls->session, EAGAIN);
        return -1;
    }
    memcpy(buf, tls->in + tls->in_first, n);
    tls->in_first += n;
    return (ssize_t)n;
}

static int pull_timeout_cb(gnutls_transport_ptr_t opaque, unsigned timeout_ms)
{
    TlsChannel *tls = opaque;

    return tls->in_end > tls->in_first || tls->in_ended;
}

static ssize_t push_cb(gnutls_transport_ptr_t opaque, const void *buf, size_t len_bytes)
{
    TlsChannel *tls = opaque;
    size_t n = MIN(len_bytes, OUT_BYTES - tls->out_end);

    if (n == 0) {
        gnutls_transport_set_errno(tls->session, EAGAIN);
        return -1;
    }
    memcpy(tls->out + tls->out_end, buf, n);
    tls->out_end += n;
    return (ssize_t)n;
}

/* --- between the buffers and the lower channel --- */

/* Make room at the end of `in`; never called when it is full. */
static struct iovec in_room(TlsChannel *tls)
{
    if (tls->in_first > 0) {
        memmove(tls->in, tls->in + tls->in_first, tls->in_end - tls->in_first);
        tls->in_end -= tls->in_first;
        tls->in_first = 0;
    }
    assert(tls->in_end < IN_BYTES);
    return (struct iovec){ tls->in + tls->in_end, IN_BYTES - tls->in_end };
}

/* 0 = there is something new to read, or the end; @ret is what the lower channel gave. */
static int in_filled(TlsChannel *tls, ssize_t ret)
{
    if (ret < 0) {
        return (int)ret;
    }
    tls->in_end += ret;
    tls->in_ended = ret == 0;
    return 0;
}

/* The bytes to send; advances over @sent_bytes of them first. */
static struct iovec out_pending(TlsChannel *tls, size_t sent_bytes)
{
    pthread_mutex_lock(&tls->lock);
    tls->out_first += sent_bytes;
    if (tls->out_first == tls->out_end) {
        tls->out_first = tls->out_end = 0;
    }
    struct iovec iov = { tls->out + tls->out_first, tls->out_end - tls->out_first };

    pthread_mutex_unlock(&tls->lock);
    return iov;
}

/* 0 when all has been sent; never waits. */
static co_fn int try_flush(TlsChannel *tls)
{
    struct iovec iov = out_pending(tls, 0);

    while (iov.iov_len > 0) {
        ssize_t ret = channel_co_try_writev(tls->lower, &iov, 1, NULL);

        if (ret < 0) {
            return (int)ret;
        }
        iov = out_pending(tls, ret);
    }
    return 0;
}

/* --- reading --- */

/* One record into one segment. Bytes, 0 = closed in order, -EAGAIN = all of `in` has been used. */
static ssize_t receive(TlsChannel *tls, const struct iovec *iov)
{
    ssize_t ret;

    pthread_mutex_lock(&tls->lock);
    do {
        ret = gnutls_record_recv(tls->session, iov->iov_base, iov->iov_len);
    } while (is_passing((int)ret) && tls->in_end > tls->in_first);
    if (ret < 0) {
        ret = is_passing((int)ret) ? -EAGAIN : tls_errno(tls->session, (int)ret);
    }
    pthread_mutex_unlock(&tls->lock);
    return ret;
}

/* As much of the list as there is decrypted data for without another look at the lower channel. */
static ssize_t receive_list(TlsChannel *tls, const struct iovec *iov, int niov)
{
    ssize_t done_bytes = 0;

    for (int i = 0; i < niov; i++) {
        size_t had = 0;

        while (had < iov[i].iov_len) {
            struct iovec rest = { (char *)iov[i].iov_base + had, iov[i].iov_len - had };
            ssize_t ret = receive(tls, &rest);

            if (ret < 0 && ret != -EAGAIN) {
                tls->in_error = (int)ret; /* the library would tell another one next time */
            }
            if (ret <= 0) {
                return done_bytes > 0 ? done_bytes : ret;
            }
            had += ret;
            done_bytes += ret;
        }
    }
    return done_bytes;
}

static co_fn ssize_t tls_co_readv(Channel *ch, const struct iovec *iov, int niov, ChannelFds *fds)
{
    TlsChannel *tls = tls_of(ch);

    if (tls->in_error) {
        return tls->in_error;
    }
    for (int fills = 0;; fills++) {
        ssize_t ret = receive_list(tls, iov, niov);

        if (ret != -EAGAIN || fills == FILLS_MAX) {
            return ret;
        }
        struct iovec room = in_room(tls);

        ret = in_filled(tls, channel_co_try_readv(tls->lower, &room, 1, NULL));
        if (ret < 0) {
            return ret;
        }
    }
}

/* --- writing --- */

/* What becomes the next record: a long segment as it is, short ones put together. */
static struct iovec next_record(TlsChannel *tls, const struct iovec *iov, int niov,
                                size_t skip_bytes)
{
    struct iovec first = { (char *)iov->iov_base + skip_bytes, iov->iov_len - skip_bytes };
    size_t len = 0;

    if (niov == 1 || first.iov_len >= RECORD_DATA_MAX) {
        first.iov_len = MIN(first.iov_len, (size_t)RECORD_DATA_MAX);
        return first;
    }
    for (int i = 0; i < niov && len < RECORD_DATA_MAX; i++) {
        size_t n = MIN(iov[i].iov_len - skip_bytes, RECORD_DATA_MAX - len);

        memcpy(tls->gather + len, (char *)iov[i].iov_base + skip_bytes, n);
        len += n;
        skip_bytes = 0;
    }
    return (struct iovec){ tls->gather, len };
}

/* Turn as much as `out` has room for into records. Bytes, or -errno when there were none. */
static ssize_t send_records(TlsChannel *tls, const struct iovec *iov, int niov)
{
    size_t skip_bytes = 0;
    ssize_t done_bytes = 0, ret = 0;

    pthread_mutex_lock(&tls->lock);
    while (niov > 0 && (done_bytes == 0 || OUT_BYTES - tls->out_end >= RECORD_BYTES_MAX)) {
        struct iovec record = next_record(tls, iov, niov, skip_bytes);

        ret = gnutls_record_send(tls->session, record.iov_base, record.iov_len);
        if (ret < 0) {
            break;
        }
        done_bytes += ret;
        skip_bytes += ret;
        while (niov > 0 && skip_bytes >= iov->iov_len) {
            skip_bytes -= iov->iov_len;
            iov++;
            niov--;
        }
    }
    if (done_bytes == 0) {
        done_bytes = is_passing((int)ret) ? -EAGAIN : tls_errno(tls->session, (int)ret);
    }
    pthread_mutex_unlock(&tls->lock);
    return done_bytes;
}

static co_fn ssize_t tls_co_writev(Channel *ch, const struct iovec *iov, int niov,
                                   const ChannelFds *fds)
{
    TlsChannel *tls = tls_of(ch);
    ssize_t ret;

    if (fds) {
        return -EINVAL;
    }
    if (tls->held_bytes == 0) {
        /* Room first: what is in `out` now is no part of this. */
        ret = try_flush(tls);
        if (ret < 0) {
            return ret;
        }
        ret = send_records(tls, iov, niov);
        if (ret < 0 && ret != -EAGAIN) {
            return ret;
        }
        tls->held_bytes = MAX(ret, 0);
    }
    ret = try_flush(tls);
    if (ret < 0) {
        return ret;
    }
    ret = (ssize_t)tls->held_bytes;
    tls->held_bytes = 0;
    return ret > 0 ? ret : -EAGAIN;
}

static co_fn int tls_co_half_close(Channel *ch)
{
    TlsChannel *tls = tls_of(ch);
    int ret = try_flush(tls);

    if (ret == 0 && !tls->said_bye) {
        pthread_mutex_lock(&tls->lock);
        int code = gnutls_bye(tls->session, GNUTLS_SHUT_WR);

        tls->said_bye = code == 0;
        ret = code == 0 ? 0 : is_passing(code) ? -EAGAIN : tls_errno(tls->session, code);
        pthread_mutex_unlock(&tls->lock);
    }
    return ret == 0 ? try_flush(tls) : ret;
}

/* --- the rest of the channel --- */

static co_fn int tls_co_wait(Channel *ch, ChannelCondition condition)
{
    TlsChannel *tls = tls_of(ch);

    if (condition == CHANNEL_READ) {
        pthread_mutex_lock(&tls->lock);
        bool pending = gnutls_record_check_pending(tls->session) > 0;

        pthread_mutex_unlock(&tls->lock);
        if (pending || tls->in_end > tls->in_first || tls->in_ended) {
            aio_co_sleep_ns(0); /* let others have their turn */
            return 0;
        }
    }
    return channel_yield(tls->lower, condition);
}

static void tls_shutdown(Channel *ch, unsigned directions)
{
    channel_shutdown(tls_of(ch)->lower, directions);
}

static void tls_set_deadline(Channel *ch, unsigned directions, int64_t deadline_ns)
{
    channel_set_deadline(tls_of(ch)->lower, directions, deadline_ns);
}

static void tls_free(TlsChannel *tls)
{
    if (tls->session) {
        gnutls_deinit(tls->session);
    }
    pthread_mutex_destroy(&tls->lock);
    free(tls->in);
    free(tls->out);
    free(tls->gather);
    tls_creds_unref(tls->creds);
    channel_unref(tls->lower);
    free(tls);
}

static void tls_destroy(Channel *ch)
{
    tls_free(tls_of(ch));
}

static const ChannelOps tls_ops = {
    .co_readv = tls_co_readv,
    .co_writev = tls_co_writev,
    .co_wait = tls_co_wait,
    .co_half_close = tls_co_half_close,
    .shutdown = tls_shutdown,
    .set_deadline = tls_set_deadline,
    .destroy = tls_destroy,
};

/* --- the session --- */

static bool is_ip_address(const char *host)
{
    struct in6_addr addr;

    return inet_pton(AF_INET, host, &addr) == 1 || inet_pton(AF_INET6, host, &addr) == 1;
}

static int session_set_x509(TlsChannel *tls, const char *hostname)
{
    const TlsCreds *creds = tls->creds;
    int code = gnutls_credentials_set(tls->session, GNUTLS_CRD_CERTIFICATE, creds->x509);

    if (code == 0 && creds->role == TLS_SERVER) {
        gnutls_certificate_server_set_request(tls->session, creds->verify_peer
                                                                ? GNUTLS_CERT_REQUIRE
                                                                : GNUTLS_CERT_IGNORE);
    } else if (code == 0 && hostname && !is_ip_address(hostname)) {
        code = gnutls_server_name_set(tls->session, GNUTLS_NAME_DNS, hostname, strlen(hostname));
    }
    if (code == 0 && creds->verify_peer) {
        gnutls_session_set_verify_cert(tls->session, creds->role == TLS_CLIENT ? hostname : NULL,
                                       0);
    }
    return code;
}

static int session_open(TlsChannel *tls, const char *hostname)
{
    const TlsCreds *creds = tls->creds;
    int code = gnutls_init(&tls->session,
                           (creds->role == TLS_SERVER ? GNUTLS_SERVER : GNUTLS_CLIENT) |
                               GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL);

    if (code < 0) {
        tls->session = NULL;
        return code;
    }
    gnutls_session_set_ptr(tls->session, tls->creds);
    gnutls_transport_set_ptr(tls->session, tls);
    gnutls_transport_set_pull_function(tls->session, pull_cb);
    gnutls_transport_set_pull_timeout_function(tls->session, pull_timeout_cb);
    gnutls_transport_set_push_function(tls->session, push_cb);
    code = gnutls_priority_set(tls->session, creds->priority);
    if (code < 0) {
        return code;
    }
    if (creds->x509) {
        return session_set_x509(tls, hostname);
    }
    if (creds->role == TLS_SERVER) {
        return gnutls_credentials_set(tls->session, GNUTLS_CRD_PSK, creds->psk_server);
    }
    return gnutls_credentials_set(tls->session, GNUTLS_CRD_PSK, creds->psk_client);
}

static TlsChannel *tls_create(Channel *lower, TlsCreds *creds, const char *hostname, Error *err)
{
    TlsChannel *tls = channel_alloc(sizeof(*tls));

    if (!tls) {
        error_set(err, -ENOMEM, "TLS: out of memory");
        return NULL;
    }
    channel_init(&tls->base, &tls_ops, "tls over %.*s", CHANNEL_NAME_BYTES - 10, lower->name);
    pthread_mutex_init(&tls->lock, NULL);
    tls->lower = channel_ref(lower);
    tls->creds = tls_creds_ref(creds);
    tls->in = malloc(IN_BYTES);
    tls->out = malloc(OUT_BYTES);
    tls->gather = malloc(RECORD_DATA_MAX);
    int code = GNUTLS_E_MEMORY_ERROR;

    if (tls->in && tls->out && tls->gather) {
        code = session_open(tls, hostname);
    }
    if (code < 0) {
        error_set(err, code == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EPROTO, "TLS: %s",
                  gnutls_strerror(code));
        tls_free(tls);
        return NULL;
    }
    return tls;
}

/* --- the handshake --- */

static int handshake_step(void *opaque)
{
    TlsChannel *tls = opaque;

    return gnutls_handshake(tls->session);
}

/* Also the end of the stream, and what cannot be a record: the library shall say what it thinks. */
static bool record_is_whole(const TlsChannel *tls)
{
    const uint8_t *in = (const uint8_t *)tls->in + tls->in_first;
    size_t len = tls->in_end - tls->in_first;

    if (tls->in_ended || (len > 0 && (in[0] < 20 || in[0] > 24))) {
        return true;
    }
    return len >= RECORD_HEADER &&
           len >= MIN(RECORD_HEADER + (in[3] << 8 | in[4]), RECORD_BYTES_MAX);
}

/* Wait for a whole record, so that a peer that dribbles does not occupy workers. */
static co_fn int handshake_read(TlsChannel *tls)
{
    while (!record_is_whole(tls)) {
        struct iovec room = in_room(tls);
        int ret = in_filled(tls, channel_co_readv(tls->lower, &room, 1, NULL));

        if (ret < 0) {
            return ret;
        }
    }
    return 0;
}

static co_fn int flush(TlsChannel *tls)
{
    struct iovec iov = out_pending(tls, 0);

    if (iov.iov_len == 0) {
        return 0;
    }
    int ret = channel_co_writev_full(tls->lower, &iov, 1, NULL);

    out_pending(tls, iov.iov_len);
    return ret;
}

/* With pre-shared keys the library only says that what was calculated from them does not fit. */
static bool key_was_wrong(const TlsChannel *tls, int code)
{
    return !tls->creds->x509 &&
           (code == GNUTLS_E_RECEIVED_ILLEGAL_PARAMETER || code == GNUTLS_E_DECRYPTION_FAILED ||
            (code == GNUTLS_E_FATAL_ALERT_RECEIVED &&
             (gnutls_alert_get(tls->session) == GNUTLS_A_ILLEGAL_PARAMETER ||
              gnutls_alert_get(tls->session) == GNUTLS_A_BAD_RECORD_MAC)));
}

static int handshake_error(TlsChannel *tls, int code, Error *err)
{
    gnutls_datum_t text;
    int ret = tls_errno(tls->session, code);

    if (key_was_wrong(tls, code)) {
        return error_set(err, -EACCES, "the user's name or key is not the same on both sides");
    }
    if (code == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR &&
        gnutls_certificate_verification_status_print(
            gnutls_session_get_verify_cert_status(tls->session), GNUTLS_CRT_X509, &text, 0) == 0) {
        error_set(err, ret, "%s", (char *)text.data);
        gnutls_free(text.data);
    } else if (code == GNUTLS_E_FATAL_ALERT_RECEIVED) {
        error_set(err, ret, "the peer says: %s",
                  gnutls_alert_get_name(gnutls_alert_get(tls->session)));
    } else {
        error_set(err, ret, "%s", gnutls_strerror(code));
    }
    return ret;
}

static co_fn int handshake(TlsChannel *tls, Error *err)
{
    for (int step = 0; step < HANDSHAKE_STEPS; step++) {
        int code = aio_co_run_blocking(handshake_step, tls);
        bool passing = is_passing(code) || (code < 0 && !gnutls_error_is_fatal(code));

        if (code < 0 && !passing) {
            gnutls_alert_send_appropriate(tls->session, code);
        }
        int ret = flush(tls);

        if (code < 0 && !passing) {
            return handshake_error(tls, code, err);
        }
        if (ret == 0 && code == 0) {
            return 0;
        }
        bool wants_to_write = is_passing(code) && gnutls_record_get_direction(tls->session);

        if (ret == 0 && !wants_to_write) {
            ret = handshake_read(tls);
        }
        if (ret < 0) {
            return error_set(err, ret, "%s", error_strerror(ret));
        }
    }
    return error_set(err, -EPROTO, "the peer comes to no end");
}

Channel *channel_tls_co_handshake(Channel *lower, TlsCreds *creds, const char *hostname,
                                  int64_t deadline_ns, Error *err)
{
    TlsChannel *tls = tls_create(lower, creds, hostname, err);

    if (!tls) {
        return NULL;
    }
    channel_set_deadline(lower, CHANNEL_READ | CHANNEL_WRITE, deadline_ns);
    int ret = handshake(tls, err);

    channel_set_deadline(lower, CHANNEL_READ | CHANNEL_WRITE, -1);
    if (ret < 0) {
        error_prefix(err, "TLS handshake with '%s': ", lower->name);
        tls_free(tls);
        return NULL;
    }
    return &tls->base;
}
