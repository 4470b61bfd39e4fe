/*
 * vhost-user-notice.c - the socket on which we tell the client that the configuration has changed
 *
 * A coroutine writes. A change that comes while it is at it is one more message afterwards; several
 * are one. A client that does not read gets no more, and nobody else waits for it.
 */
#include "virtio/vhost-user-int.h"

static co_fn int send_config_change(Channel *ch)
{
    VhostUserHeader hdr = { .request = VHOST_USER_BACKEND_CONFIG_CHANGE_MSG,
                            .flags = VHOST_USER_VERSION };

    return channel_co_write_full(ch, &hdr, sizeof(hdr));
}

static co_fn void writer_entry(void *opaque)
{
    VhuSession *session = opaque;
    VhuNotice *notice = &session->notice;
    int ret = 0;

    assert_in_coroutine();
    while (ret == 0 && notice->pending) {
        notice->pending = false;
        ret = send_config_change(notice->ch);
    }
    if (ret < 0) {
        log_debug("vhost-user", "%s: no notice to the client: %s", session->server->name,
                  error_strerror(ret));
    }
    notice->writing = false;
    if (notice->waiter) {
        aio_co_wake(take_ptr(&notice->waiter));
    }
}

void vhu_notice_config(VhuSession *session)
{
    VhuNotice *notice = &session->notice;

    if (!notice->ch || !vhu_session_has(session, VHOST_USER_PROTOCOL_F_CONFIG)) {
        return;
    }
    notice->pending = true;
    if (notice->writing) {
        return;
    }
    Coroutine *co = co_create(writer_entry, session);

    if (co) {
        notice->writing = true;
        aio_co_schedule(aio_main(), co);
    }
}

co_fn void vhu_notice_co_set_channel(VhuSession *session, Channel *ch)
{
    VhuNotice *notice = &session->notice;

    if (notice->ch) {
        channel_shutdown(notice->ch, CHANNEL_READ | CHANNEL_WRITE);
        notice->pending = false;
        while (notice->writing) {
            notice->waiter = co_self();
            co_yield();
        }
        channel_unref(notice->ch);
    }
    notice->ch = ch;
}
