/*
 * throttle-group.c - who goes when
 *
 * There is no thread and no context that a group belongs to. One of the waiting requests, the
 * leader, has a timer in its own context, set to when the next request of any line is due. When it
 * fires, or whenever a request arrives, all that are due are granted, and woken where they are at
 * home. A leader that is granted hands on to another waiter, which is woken to set its own timer.
 * An arrival that is due before the leader's timer takes over.
 *
 *     arrives --due, nobody before it--------------------------------------> goes
 *        \                                                                   ^
 *         waits --made leader--> sets its timer --fires--> grants who is due-/
 *            \                                                              /
 *             granted by a leader, an arrival, or a drained section -------/
 *
 * Debts. What a section lets go early moves the group's level on like everything else, so what comes
 * afterwards waits for it to be paid, in whatever member. But the next section would let that go,
 * too, and a guest can have sections begin as often as it likes: by resetting its device, by
 * stopping a queue. So the level alone limits nothing. Who has let requests go early has its users
 * make none (tell_debt) until what went is paid:
 *
 *     no debt --hold_back(), something went early--> debt --debt_timer, or other limits--> no debt
 *
 * While there is a debt, nothing arrives that a section could let go, however many there are, except
 * for what was under way between user and filter when it began: that goes once, and is added to the
 * debt. So a debt is never more than what the users can have in flight at a time, and in the long run
 * a member gets what the limits say and, once, that much. Users that make requests all the same are
 * charged for them; the bound of a level in throttle-limits.c holds for all.
 *
 * The others pay as well while they wait for the level. So if any of them wait when it is paid, they
 * have as long for each of them, before the member may do the same again: its share does not grow.
 *
 * Invariants, whenever the lock is free:
 *   (1) While anybody waits there is a leader, or one that was granted is about to run and appoints
 *       it. A leader has a timer that fires when the next request is due, or earlier; or it has
 *       been claimed, or is running: it will see to it.
 *   (2) A waiter is linked in a line or granted, never both.
 *   (3) A waiter that has yielded is woken once: by who claims it. Who has claimed it under the
 *       lock wakes it after the lock is given back; till then its frame is there, because it goes
 *       on by that wake-up alone.
 *   (4) The lock is not held across a yield, nor while anything is woken.
 *   (5) A member's debt_timer is armed exactly while debt_ns > 0, which is what tell_debt told last.
 */
#include "block/throttle-group.h"

#include <pthread.h>
#include <string.h>

typedef struct ThrottleWaiter {
    ListNode link;      /* in its line */
    ListNode wake_link; /* in the list of who has claimed it */
    Coroutine *co;
    uint64_t arrival;
    ThrottleDir dir;
    uint64_t len_bytes;
    bool granted;
    bool claimed;   /* it runs, or somebody is about to wake it */
    AioTimer timer; /* of the leader; used in the waiter's home alone */
    ThrottleGroup *group;
} ThrottleWaiter;

struct ThrottleGroup {
    pthread_mutex_t lock; /* protects all down to leader */
    ThrottleLimits limits;
    List members;
    unsigned nb_members;
    ThrottleMember *last; /* that was granted something; the next one is first; may be NULL */
    unsigned nb_waiting[THROTTLE_NB_DIRS];
    uint64_t nb_arrived; /* of those that had to wait */
    ThrottleWaiter *leader;
    int64_t leader_due_ns; /* what its timer is set to; INT64_MIN = it runs or will do so soon */

    ListNode link; /* in groups; main */
    char *name;    /* NULL = of one member alone */
};

static List groups = LIST_INIT(groups); /* main */

/* --- waking --- */

/* Under the lock: @w will be woken by who has @wake. */
static void claim(ThrottleWaiter *w, List *wake)
{
    if (!w->claimed) {
        w->claimed = true;
        list_push_back(wake, &w->wake_link);
    }
}

/* Without the lock. */
static void wake_all(List *wake)
{
    ListNode *node;

    while ((node = list_pop_front(wake))) {
        Coroutine *co = list_entry(node, ThrottleWaiter, wake_link)->co;

        aio_co_schedule(co_home(co), co);
    }
}

static void timer_cb(void *opaque)
{
    ThrottleWaiter *w = opaque;
    List wake = LIST_INIT(wake);

    pthread_mutex_lock(&w->group->lock);
    claim(w, &wake);
    pthread_mutex_unlock(&w->group->lock);
    wake_all(&wake);
}

/* --- turns; all under the lock --- */

static bool anybody_waits(const ThrottleGroup *g)
{
    return g->nb_waiting[THROTTLE_READ] > 0 || g->nb_waiting[THROTTLE_WRITE] > 0;
}

static void grant(ThrottleGroup *g, ThrottleWaiter *w, int64_t now_ns, List *wake)
{
    list_remove(&w->link);
    g->nb_waiting[w->dir]--;
    throttle_limits_charge(&g->limits, w->dir, w->len_bytes, now_ns);
    w->granted = true;
    if (g->leader == w) {
        g->leader = NULL;
    }
    claim(w, wake);
}

/* The member after @member in the circle; the first when that is NULL. */
static ThrottleMember *next_member(const ThrottleGroup *g, const ThrottleMember *member)
{
    ListNode *node = member ? member->link.next : g->members.head.next;

    if (node == &g->members.head) {
        node = node->next;
    }
    return list_entry(node, ThrottleMember, link);
}

/* The first in line that has come first, of the directions that may go. */
static ThrottleWaiter *first_waiter(const ThrottleMember *member, const bool due[THROTTLE_NB_DIRS])
{
    ThrottleWaiter *first = NULL;

    for (unsigned d = 0; d < THROTTLE_NB_DIRS; d++) {
        ThrottleWaiter *w = list_first_entry(&member->lines[d], ThrottleWaiter, link);

        if (w && due[d] && (!first || w->arrival < first->arrival)) {
            first = w;
        }
    }
    return first;
}

/* Whose turn it is, of all members; NULL = nobody may go. */
static ThrottleWaiter *next_waiter(const ThrottleGroup *g, const bool due[THROTTLE_NB_DIRS],
                                   ThrottleMember **ret_member)
{
    ThrottleMember *member = g->last;

    for (unsigned i = 0; i < g->nb_members; i++) {
        ThrottleWaiter *w;

        member = next_member(g, member);
        w = first_waiter(member, due);
        if (w) {
            *ret_member = member;
            return w;
        }
    }
    return NULL;
}

static void grant_due(ThrottleGroup *g, int64_t now_ns, List *wake)
{
    while (anybody_waits(g)) {
        bool due[THROTTLE_NB_DIRS];
        ThrottleWaiter *w;

        for (unsigned d = 0; d < THROTTLE_NB_DIRS; d++) {
            due[d] = throttle_limits_due_ns(&g->limits, (ThrottleDir)d) <= now_ns;
        }
        w = next_waiter(g, due, &g->last);
        if (!w) {
            break;
        }
        grant(g, w, now_ns, wake);
    }
}

/* Invariant (1), by who does not wait itself. */
static void appoint_leader(ThrottleGroup *g, List *wake)
{
    static const bool either[THROTTLE_NB_DIRS] = { true, true };
    ThrottleMember *member;

    if (!g->leader && anybody_waits(g)) {
        g->leader = next_waiter(g, either, &member);
        g->leader_due_ns = INT64_MIN;
        claim(g->leader, wake);
    }
}

/* When the next one that waits is due. */
static int64_t next_due_ns(const ThrottleGroup *g)
{
    int64_t due_ns = INT64_MAX;

    for (unsigned d = 0; d < THROTTLE_NB_DIRS; d++) {
        if (g->nb_waiting[d] > 0) {
            due_ns = MIN(due_ns, throttle_limits_due_ns(&g->limits, (ThrottleDir)d));
        }
    }
    return due_ns;
}

/* --- requests --- */

/* @w is in its line, and runs. Called with the lock, returns without. */
static co_fn void co_wait_turn(ThrottleGroup *g, ThrottleWaiter *w)
{
    for (;;) {
        List wake = LIST_INIT(wake);
        int64_t due_ns;
        bool leads;

        grant_due(g, aio_now_ns(), &wake);
        if (w->granted) {
            appoint_leader(g, &wake);
            pthread_mutex_unlock(&g->lock);
            wake_all(&wake);
            return;
        }
        due_ns = next_due_ns(g);
        if (!g->leader || due_ns < g->leader_due_ns) {
            g->leader = w; /* who was it before wakes up in vain */
        }
        leads = g->leader == w;
        if (leads) {
            g->leader_due_ns = due_ns;
        }
        w->claimed = false;
        pthread_mutex_unlock(&g->lock);
        wake_all(&wake);
        if (leads) {
            aio_timer_arm(&w->timer, due_ns);
        }
        co_yield();
        aio_timer_disarm(&w->timer);
        pthread_mutex_lock(&g->lock);
    }
}

co_fn void throttle_co_request(ThrottleMember *member, ThrottleDir dir, uint64_t len_bytes)
{
    ThrottleGroup *g = member->group;
    int64_t now_ns = aio_now_ns();

    pthread_mutex_lock(&g->lock);
    bool is_due = !anybody_waits(g) && throttle_limits_due_ns(&g->limits, dir) <= now_ns;

    if (is_due || member->at_once) {
        member->went_early[dir] |= !is_due;
        throttle_limits_charge(&g->limits, dir, len_bytes, now_ns);
        pthread_mutex_unlock(&g->lock);
        return;
    }
    ThrottleWaiter w = {
        .co = co_self(),
        .arrival = g->nb_arrived++,
        .dir = dir,
        .len_bytes = len_bytes,
        .claimed = true,
        .group = g,
    };

    aio_timer_init(&w.timer, aio_current(), timer_cb, &w);
    list_push_back(&member->lines[dir], &w.link);
    g->nb_waiting[dir]++;
    co_wait_turn(g, &w);
}

/* --- debts; main --- */

static void end_debt(ThrottleMember *member)
{
    if (member->debt_ns > 0) {
        member->debt_ns = 0;
        aio_timer_disarm(&member->debt_timer);
        member->tell_debt(member, false);
    }
}

/* The group needs @debt_ns from now on to pay for what went early of @member. */
static void add_debt(ThrottleMember *member, int64_t debt_ns, unsigned nb_members)
{
    int64_t now_ns = aio_now_ns(), all_ns, end_ns;
    bool is_new = member->debt_ns == 0;

    if (__builtin_mul_overflow(debt_ns, nb_members, &all_ns) ||
        !checked_add(now_ns, all_ns, &end_ns)) {
        end_ns = INT64_MAX;
    }
    member->debt_end_ns = is_new ? end_ns : MAX(member->debt_end_ns, end_ns);
    member->debt_ns = debt_ns;
    aio_timer_arm(&member->debt_timer, now_ns + debt_ns);
    if (is_new) {
        member->tell_debt(member, true);
    }
}

static bool others_wait(const ThrottleMember *member)
{
    ThrottleGroup *g = member->group;
    bool any = false;

    pthread_mutex_lock(&g->lock);
    list_for_each(it, &g->members) {
        ThrottleMember *other = list_entry(it, ThrottleMember, link);

        for (unsigned d = 0; d < THROTTLE_NB_DIRS; d++) {
            any |= other != member && !list_empty(&other->lines[d]);
        }
    }
    pthread_mutex_unlock(&g->lock);
    return any;
}

static void debt_timer_cb(void *opaque)
{
    ThrottleMember *member = opaque;
    int64_t now_ns = aio_now_ns();

    if (now_ns < member->debt_end_ns && others_wait(member)) {
        aio_timer_arm(&member->debt_timer,
                      now_ns + MIN(member->debt_ns, member->debt_end_ns - now_ns));
    } else {
        end_debt(member);
    }
}

/* --- drained sections --- */

void throttle_member_let_go(ThrottleMember *member)
{
    ThrottleGroup *g = member->group;
    List wake = LIST_INIT(wake);
    int64_t now_ns = aio_now_ns();

    pthread_mutex_lock(&g->lock);
    member->at_once = true;
    for (unsigned d = 0; d < THROTTLE_NB_DIRS; d++) {
        ThrottleWaiter *w;

        while ((w = list_first_entry(&member->lines[d], ThrottleWaiter, link))) {
            member->went_early[d] = true;
            grant(g, w, now_ns, &wake);
        }
    }
    pthread_mutex_unlock(&g->lock);
    wake_all(&wake); /* the first of them sees to a leader */
}

void throttle_member_hold_back(ThrottleMember *member)
{
    ThrottleGroup *g = member->group;
    int64_t now_ns = aio_now_ns(), due_ns = 0;
    unsigned nb_members;

    pthread_mutex_lock(&g->lock);
    member->at_once = false;
    for (unsigned d = 0; d < THROTTLE_NB_DIRS; d++) {
        if (member->went_early[d]) {
            due_ns = MAX(due_ns, throttle_limits_due_ns(&g->limits, (ThrottleDir)d));
            member->went_early[d] = false;
        }
    }
    nb_members = g->nb_members;
    pthread_mutex_unlock(&g->lock);
    if (due_ns > now_ns) {
        add_debt(member, due_ns - now_ns, nb_members);
    }
}

/* --- limits --- */

static ThrottleConfig get_config(ThrottleGroup *g)
{
    ThrottleConfig config;

    pthread_mutex_lock(&g->lock);
    config = g->limits.config;
    pthread_mutex_unlock(&g->lock);
    return config;
}

ThrottleConfig throttle_member_config(const ThrottleMember *member)
{
    return get_config(member->group);
}

void throttle_member_configure(ThrottleMember *member, const ThrottleConfig *config)
{
    ThrottleGroup *g = member->group;
    List wake = LIST_INIT(wake);

    pthread_mutex_lock(&g->lock);
    throttle_limits_set(&g->limits, config);
    if (g->leader) {
        claim(g->leader, &wake); /* its timer may be far too late */
    }
    pthread_mutex_unlock(&g->lock);
    wake_all(&wake);
    list_for_each(it, &g->members) { /* main alone changes it */
        end_debt(list_entry(it, ThrottleMember, link));
    }
}

/* --- groups --- */

static ThrottleGroup *find_group(const char *name)
{
    list_for_each(node, &groups) {
        ThrottleGroup *g = list_entry(node, ThrottleGroup, link);

        if (name && g->name && strcmp(g->name, name) == 0) {
            return g;
        }
    }
    return NULL;
}

ThrottleConfig throttle_find_config(const char *name)
{
    ThrottleGroup *g = find_group(name);

    return g ? get_config(g) : (ThrottleConfig){ 0 };
}

static void group_destroy(ThrottleGroup *g)
{
    if (list_linked(&g->link)) {
        list_remove(&g->link);
    }
    pthread_mutex_destroy(&g->lock);
    free(g->name);
    free(g);
}

static ThrottleGroup *group_create(const char *name, const ThrottleConfig *config)
{
    ThrottleGroup *g = calloc(1, sizeof(*g));

    if (!g) {
        return NULL;
    }
    pthread_mutex_init(&g->lock, NULL);
    list_init(&g->members);
    if (config) {
        throttle_limits_set(&g->limits, config);
    }
    if (name && !(g->name = strdup(name))) {
        group_destroy(g);
        return NULL;
    }
    list_push_back(&groups, &g->link);
    return g;
}

int throttle_member_open(ThrottleMember *member, const char *name, const ThrottleConfig *config,
                         ThrottleDebtFn *tell_debt, Error *err)
{
    ThrottleGroup *g = find_group(name);

    if (g && config) {
        ThrottleConfig has = get_config(g);

        if (!throttle_config_equal(&has, config)) {
            return error_set(err, -EINVAL, "group '%s' has other limits already", name);
        }
    }
    if (!g && !(g = group_create(name, config))) {
        return error_set(err, -ENOMEM, "out of memory");
    }
    *member = (ThrottleMember){ .group = g, .tell_debt = tell_debt };
    aio_timer_init(&member->debt_timer, aio_main(), debt_timer_cb, member);
    list_init(&member->lines[THROTTLE_READ]);
    list_init(&member->lines[THROTTLE_WRITE]);
    pthread_mutex_lock(&g->lock);
    list_push_back(&g->members, &member->link);
    g->nb_members++;
    pthread_mutex_unlock(&g->lock);
    return 0;
}

void throttle_member_close(ThrottleMember *member)
{
    ThrottleGroup *g = member->group;
    bool unused;

    aio_timer_disarm(&member->debt_timer);
    pthread_mutex_lock(&g->lock);
    assert(list_empty(&member->lines[THROTTLE_READ]) && list_empty(&member->lines[THROTTLE_WRITE]));
    if (g->last == member) {
        g->last = NULL;
    }
    list_remove(&member->link);
    unused = --g->nb_members == 0;
    pthread_mutex_unlock(&g->lock);
    if (unused) {
        group_destroy(g);
    }
}
