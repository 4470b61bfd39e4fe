/*
 * bottom-half.pml - how a bottom half is scheduled, run and destroyed (io/aio/aio-bh.c)
 *
 * Producers write something and schedule a bottom half, twice each; the last of these schedules is
 * of a oneshot. home() runs what comes, and destroys the other one when all was seen and nobody
 * schedules it any more. README.md says what stands for what.
 *
 * Checked: a bottom half is in one list once, is not touched after it was freed, and the list is
 * what it should be (assertions). Each schedule is followed by a call that sees what was written
 * before it (invalid end state; and, under weak fairness, the ltl below).
 *
 * Broken on purpose, and how each must fail:
 *   BROKEN_CLEAR_AFTER       end state  the flags are cleared after the call
 *   BROKEN_RELAXED_SCHEDULE  end state  setting the flags does not release
 *   BROKEN_RELAXED_CLEAR     end state  clearing them does not acquire
 *   BROKEN_LOOK_AND_SET      end state  the flags are looked at and then set: two push it
 *   BROKEN_RELAXED_PUSH      end state  the push does not release the link
 *   BROKEN_LINK_LATE         assertion  the link is read after the flags were cleared
 *   BROKEN_TOUCH_AFTER       assertion  the producer looks at it once more after the push
 *   BROKEN_STALE_FIRST       cycle      a push that fails does not look at the stack again
 */
#define PRODUCERS 2
#define BHS       2
#define NONE      255

#define QUEUED    1
#define SCHEDULED 2
#define ONESHOT   4
#define DELETED   8

byte incoming = NONE;
byte next[BHS];
byte flags[BHS];
byte data[PRODUCERS]; /* what each has written: the number of its schedules */

/* --- what the checks look at --- */
bool linked[BHS]; /* in the stack or the ready list */
bool freed[BHS];
byte written[PRODUCERS];   /* how often it has begun to schedule */
byte scheduled[PRODUCERS]; /* how often it has finished */
byte seen[PRODUCERS];
byte nb_users = PRODUCERS; /* of bottom half 0 */

/*
 * A store that is no read-modify-write waits in its thread's store buffer: memory() commits it at
 * any later time, and a release waits until that was done.
 */
byte data_buffer[PRODUCERS]; /* 0: empty */
byte link_of[PRODUCERS], link_value[PRODUCERS]; /* link_of NONE: empty */

inline commit(i)
{
    if
    :: data_buffer[i] != 0 -> data[i] = data_buffer[i]; data_buffer[i] = 0
    :: link_of[i] != NONE -> next[link_of[i]] = link_value[i]; link_of[i] = NONE; link_value[i] = 0
    fi
}

active proctype memory()
{
end:
    do
    :: atomic { commit(0) }
    :: atomic { commit(1) }
    od
}

#define RELEASED(i) (data_buffer[i] == 0 && link_of[i] == NONE)

/* The fetch-or of bh_enqueue(), which releases unless a variant says otherwise */
inline set_flags(bh, new)
{
#ifdef BROKEN_LOOK_AND_SET
    atomic { assert(!freed[bh]); old = flags[bh] };
    flags[bh] = flags[bh] | new | QUEUED
#else
    atomic { assert(!freed[bh]); old = flags[bh]; flags[bh] = flags[bh] | new | QUEUED }
#endif
}

proctype producer(byte me; byte first_bh; byte second_bh)
{
    byte old, first, bh = first_bh;
    bool pushed;

    do
    :: true ->
        atomic {
            data_buffer[me] == 0 -> written[me]++;
            data_buffer[me] = written[me]
        };
#ifndef BROKEN_RELAXED_SCHEDULE
        RELEASED(me);
#endif
        set_flags(bh, (bh == 0 -> SCHEDULED : SCHEDULED | ONESHOT));
        if
        :: old & QUEUED
        :: else ->
            first = incoming;
            pushed = false;
            do
            :: pushed -> break
            :: else ->
                atomic {
                    link_of[me] == NONE -> assert(!freed[bh]);
                    link_of[me] = bh;
                    link_value[me] = first
                };
#ifndef BROKEN_RELAXED_PUSH
                RELEASED(me);
#endif
                atomic {
                    if
                    :: incoming == first ->
                        assert(!linked[bh]);
                        linked[bh] = true;
                        incoming = bh;
                        pushed = true
#ifdef BROKEN_STALE_FIRST
                    :: else
#else
                    :: else -> first = incoming
#endif
                    fi
                }
            od;
#ifdef BROKEN_TOUCH_AFTER
            assert(!freed[bh])
#endif
        fi;
        atomic {
            scheduled[me]++;
            if
            :: scheduled[me] == 1 -> bh = second_bh
            :: else
            fi;
            if
            :: scheduled[me] == (second_bh == 0 -> 2 : 1) -> nb_users--
            :: else
            fi
        };
        if
        :: scheduled[me] == 2 -> break
        :: else
        fi
    od
}

/* --- the home thread --- */

/* Either bottom half's callback looks at everything. */
inline call()
{
    atomic {
#ifdef BROKEN_RELAXED_CLEAR
        seen[0] = (early[0] > seen[0] -> early[0] : seen[0]);
        seen[1] = (early[1] > seen[1] -> early[1] : seen[1])
#else
        seen[0] = data[0];
        seen[1] = data[1]
#endif
    }
}

/* bh_collect(): the stack, turned over, goes to the end of the ready list, which is empty here. */
inline collect()
{
    atomic { newest = incoming; incoming = NONE };
    ready = NONE;
    do
    :: newest == NONE -> break
    :: else ->
        assert(linked[newest]);
        older = next[newest];
        next[newest] = ready;
        ready = newest;
        newest = older
    od;
    older = NONE
}

/* bh_take() and what follows */
inline run_ready()
{
    do
    :: ready == NONE -> break
    :: else ->
        bh = ready;
#ifndef BROKEN_LINK_LATE
        ready = next[bh];
#endif
        assert(linked[bh]);
        linked[bh] = false;
#ifdef BROKEN_RELAXED_CLEAR
        atomic { early[0] = data[0]; early[1] = data[1] };
#endif
#ifdef BROKEN_CLEAR_AFTER
        taken = flags[bh];
#else
        atomic { taken = flags[bh]; flags[bh] = 0 };
#endif
#ifdef BROKEN_LINK_LATE
        ready = next[bh];
#endif
        if
        :: taken & (DELETED | ONESHOT) -> atomic { assert(!freed[bh]); freed[bh] = true }
        :: else
        fi;
        if
        :: (taken & SCHEDULED) && !(taken & DELETED) -> call()
        :: else
        fi;
#ifdef BROKEN_CLEAR_AFTER
        flags[bh] = 0;
#endif
        atomic { bh = NONE; taken = 0 }
    od
}

/* aio_bh_destroy(), in the home thread */
inline destroy(victim)
{
    set_flags(victim, DELETED);
    if
    :: old & QUEUED
    :: else ->
        atomic {
            assert(!linked[victim]);
            next[victim] = incoming;
            incoming = victim;
            linked[victim] = true
        }
    fi
}

active proctype home()
{
    byte newest = NONE, older = NONE, ready = NONE, bh = NONE, taken = 0, old = 0;
    bool destroyed = false;
#ifdef BROKEN_RELAXED_CLEAR
    byte early[PRODUCERS];
#endif

    atomic {
        next[0] = NONE;
        next[1] = NONE;
        link_of[0] = NONE;
        link_of[1] = NONE;
        run producer(0, 0, 0);
        run producer(1, 0, 1)
    };
    do
    :: incoming != NONE -> collect(); run_ready()
    :: !destroyed && seen[0] == 2 && seen[1] == 2 && nb_users == 0 ->
        destroyed = true;
        destroy(0)
    :: freed[0] && freed[1] -> break
    od
}

ltl schedule_is_seen {
    [] ((written[0] == 1 -> <> (seen[0] >= 1)) && (written[0] == 2 -> <> (seen[0] == 2)) &&
        (written[1] == 1 -> <> (seen[1] >= 1)) && (written[1] == 2 -> <> (seen[1] == 2)))
}
