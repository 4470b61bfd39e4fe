/*
 * ThrottleGroup - limits that disks share, and the requests that wait for their turn
 *
 * Layer:     block/ (may use io/)
 * Threading: open, close, configure, hold back and let go: main thread. throttle_co_request() in
 *            any context, many at once.
 * Lifetime:  a group lives as long as it has members; throttle_member_open() .. _close().
 *
 * Who has to wait does so in its member's line for its direction, first come first served. Members
 * take turns: while several have requests due, none gets two before another has got one.
 */
#ifndef BLOCK_THROTTLE_GROUP_H
#define BLOCK_THROTTLE_GROUP_H

#include "block/throttle-limits.h"
#include "io/aio/aio.h"

typedef struct ThrottleGroup ThrottleGroup;

typedef struct ThrottleMember ThrottleMember;

/* The member has a debt from now on, or no longer: while it has one, better no request comes.
 * Main. */
typedef void ThrottleDebtFn(ThrottleMember *member, bool on);

struct ThrottleMember {
    ThrottleGroup *group;
    ListNode link;                     /* in the group */
    List lines[THROTTLE_NB_DIRS];      /* of waiting requests, protected by the group's lock */
    bool at_once;                      /* likewise; a drained section covers it: nobody waits */
    bool went_early[THROTTLE_NB_DIRS]; /* likewise; somebody in that section */

    /* main */
    ThrottleDebtFn *tell_debt;
    int64_t debt_ns;     /* how long the group takes to pay it; 0 = there is none */
    int64_t debt_end_ns; /* when it ends at the latest */
    AioTimer debt_timer;
};

/*
 * throttle_member_open - join @name's group, which is made if there is none; NULL: one of its own
 * @config  its limits; NULL: those that it has, none when it is new
 * Errors: -EINVAL it has other limits; -ENOMEM
 */
int throttle_member_open(ThrottleMember *member, const char *name, const ThrottleConfig *config,
                         ThrottleDebtFn *tell_debt, Error *err) NONNULL(1, 4) WARN_UNUSED;
/* Nobody waits in it. A debt is forgotten, which nobody is told. */
void throttle_member_close(ThrottleMember *member) NONNULL(1);

/* throttle_find_config - the limits of the group @name; all zero when there is none */
ThrottleConfig throttle_find_config(const char *name);
ThrottleConfig throttle_member_config(const ThrottleMember *member) NONNULL(1);
/* throttle_member_configure - other limits, for the whole group, from now on; all debts are
 * forgotten */
void throttle_member_configure(ThrottleMember *member, const ThrottleConfig *config) NONNULL(1, 2);

/* throttle_member_let_go - all that wait in the member go now, and whatever comes goes at once
 * until throttle_member_hold_back(). It is charged to the group all the same; from then on, until
 * it is paid, the member has a debt. */
void throttle_member_let_go(ThrottleMember *member) NONNULL(1);
void throttle_member_hold_back(ThrottleMember *member) NONNULL(1);

/* throttle_co_request - returns when a request of @len_bytes may go; it is charged then. */
co_fn void throttle_co_request(ThrottleMember *member, ThrottleDir dir, uint64_t len_bytes)
    NONNULL(1);

#endif
