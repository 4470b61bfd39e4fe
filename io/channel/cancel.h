/*
 * ChannelCancel - how another thread gets a coroutine out of channel_co_connect()
 *
 * Layer:     io/channel
 * Threading: init by the owner; channel_cancel() any thread; one coroutine at a time waits.
 * Lifetime:  embedded by its owner, who keeps it while either side may use it. Cancelled once it
 *            stays cancelled, until channel_cancel_init().
 */
#ifndef IO_CHANNEL_CANCEL_H
#define IO_CHANNEL_CANCEL_H

#include "io/channel/wait-slot.h"

typedef struct ChannelCancel {
    atomic_bool cancelled;
    WaitSlot slot;
} ChannelCancel;

void channel_cancel_init(ChannelCancel *cancel) NONNULL(1);
void channel_cancel(ChannelCancel *cancel) NONNULL(1);

static inline bool channel_cancelled(const ChannelCancel *cancel)
{
    /* seq_cst: pairs with channel_cancel(); see wait-slot.h */
    return atomic_load(&cancel->cancelled);
}

#endif
