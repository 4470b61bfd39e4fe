/*
 * cancel.c - getting a coroutine out of a wait for good
 */
#include "io/channel/cancel.h"

void channel_cancel_init(ChannelCancel *cancel)
{
    *cancel = (ChannelCancel){ .cancelled = false };
}

void channel_cancel(ChannelCancel *cancel)
{
    /* seq_cst: pairs with channel_cancelled() */
    atomic_store(&cancel->cancelled, true);
    wait_slot_wake(&cancel->slot);
}
