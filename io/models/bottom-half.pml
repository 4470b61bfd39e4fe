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
 *   BROKEN_CLEAR_AFTER       end state  the word is cleared after the call
 *   BROKEN_RELAXED_SCHEDULE  end state  changing the word does not release
 *   BROKEN_RELAXED_CLEAR     end state  clearing it does not acquire
 *   BROKEN_LOOK_AND_SET      end state  the word is looked at and then set: two push it
 *   BROKEN_RELAXED_PLACE     end state  the exchange on the tail does not release the cleared link
 *   BROKEN_OFFER_FIRST       end state  the link is cleared after it was offered
 *   BROKEN_PLAIN_TAIL        end state  the producer looks at the tail and then stores it
 *   BROKEN_LINK_FIRST        end state  the place is filled before the exchange that takes it
 *   BROKEN_NOTIFY_FIRST      end state  the producer notifies before it fills its place
 *   BROKEN_TAKE_AT_GAP       end state  the one before a gap is taken as if it were the last
 *   BROKEN_LATE_RESET        end state  the first link is cleared after the chain was cut off
 *   BROKEN_LINK_LATE         end state  the link is read after the word was cleared
 *   BROKEN_TOUCH_AFTER       assertion  the producer looks at it once more after the push
 */
#define PRODUCERS 2
#define BHS       2
#define NONE      255

#define FIRST     BHS /* the link in which the chain begins */
#define SCHEDULED 1
#define DELETED   2

byte tail = FIRST;
byte next[BHS + 1]; /* the links: each bottom half's, and FIRST */
bool notified;
byte asked[BHS]; /* number 1 is a oneshot */
byte data[PRODUCERS]; /* what each has written: the number of its schedules */

/* --- what the checks look at --- */
bool linked[BHS]; /* in the queue or the ready list */
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

/* The exchange of bh_ask(), which releases unless a variant says otherwise */
inline ask(bh, what)
{
#ifdef BROKEN_LOOK_AND_SET
    atomic { assert(!freed[bh]); old = asked[bh] };
    asked[bh] = what
#else
    atomic { assert(!freed[bh]); old = asked[bh]; asked[bh] = what }
#endif
}

inline store_link(me, at, value)
{
    atomic { link_of[me] == NONE -> link_of[me] = at; link_value[me] = value }
}

/* A place in a bottom half that is gone must not be written to. */
inline check_place()
{
    assert(place == FIRST || !freed[place])
}

/* mpsc_push() and aio_notify() */
inline push(me, bh)
{
#ifndef BROKEN_OFFER_FIRST
    store_link(me, bh, NONE);
#endif
#ifndef BROKEN_RELAXED_PLACE
    RELEASED(me);
#endif
#ifdef BROKEN_LINK_FIRST
    place = tail;
    store_link(me, place, bh);
    RELEASED(me);
#endif
#ifdef BROKEN_PLAIN_TAIL
    place = tail;
    atomic { tail = bh; linked[bh] = true };
#else
    atomic { assert(!linked[bh]); linked[bh] = true; place = tail; tail = bh };
#endif
#ifdef BROKEN_OFFER_FIRST
    store_link(me, bh, NONE);
#endif
#ifdef BROKEN_NOTIFY_FIRST
    RELEASED(me);
    notified = true;
#endif
#ifndef BROKEN_LINK_FIRST
#ifndef BROKEN_RELAXED_PLACE
    RELEASED(me);
#endif
    check_place();
    store_link(me, place, bh);
#endif
#ifndef BROKEN_NOTIFY_FIRST
    RELEASED(me);
    notified = true;
#endif
    place = NONE
}

proctype producer(byte me; byte first_bh; byte second_bh)
{
    byte old, place = NONE, bh = first_bh;

    do
    :: true ->
        atomic {
            data_buffer[me] == 0 -> written[me]++;
            data_buffer[me] = written[me]
        };
#ifndef BROKEN_RELAXED_SCHEDULE
        RELEASED(me);
#endif
        ask(bh, SCHEDULED);
        if
        :: old != 0
        :: else ->
            push(me, bh);
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

/* mpsc_collect(): the chain goes to the end of the ready list. */
inline collect()
{
    if
    :: next[FIRST] == NONE
    :: else ->
        first = next[FIRST];
#ifdef BROKEN_LATE_RESET
        atomic { new_end = tail; tail = FIRST };
        next[FIRST] = NONE;
#else
        next[FIRST] = NONE;
        atomic { new_end = tail; tail = FIRST };
#endif
        if
        :: ready == NONE -> ready = first
        :: else -> next[end_of_ready] = first
        fi;
        atomic { end_of_ready = new_end; first = NONE; new_end = NONE }
    fi
}

#ifdef BROKEN_TAKE_AT_GAP
#define AT_GAP false
#else
#define AT_GAP (next[ready] == NONE && end_of_ready != ready)
#endif

/* bh_take() and what follows */
inline run_ready()
{
    do
    :: (ready == NONE || AT_GAP) -> break
    :: else ->
        bh = ready;
        assert(linked[bh]);
#ifndef BROKEN_LINK_LATE
        ready = next[bh];
#endif
        linked[bh] = false;
#ifdef BROKEN_RELAXED_CLEAR
        atomic { early[0] = data[0]; early[1] = data[1] };
#endif
#ifdef BROKEN_CLEAR_AFTER
        taken = asked[bh];
#else
        atomic { taken = asked[bh]; asked[bh] = 0 };
#endif
#ifdef BROKEN_LINK_LATE
        ready = next[bh];
#endif
        if
        :: taken == DELETED || bh == 1 -> atomic { assert(!freed[bh]); freed[bh] = true }
        :: else
        fi;
        if
        :: taken == SCHEDULED -> call()
        :: else
        fi;
#ifdef BROKEN_CLEAR_AFTER
        asked[bh] = 0;
#endif
        atomic {
            bh = NONE;
            taken = 0;
            end_of_ready = (ready == NONE -> NONE : end_of_ready)
        }
    od
}

/* aio_bh_destroy(), in the home thread */
inline destroy(victim)
{
    ask(victim, DELETED);
    if
    :: old != 0
    :: else ->
        atomic {
            assert(!linked[victim]);
            linked[victim] = true;
            next[victim] = NONE;
            place = tail;
            tail = victim
        };
        next[place] = victim;
        place = NONE;
        notified = true
    fi;
    old = 0
}

active proctype home()
{
    byte first = NONE, new_end = NONE, ready = NONE, end_of_ready = NONE;
    byte bh = NONE, taken = 0, old = 0, place = NONE;
    bool destroyed = false;
#ifdef BROKEN_RELAXED_CLEAR
    byte early[PRODUCERS];
#endif

    atomic {
        next[0] = NONE;
        next[1] = NONE;
        next[FIRST] = NONE;
        link_of[0] = NONE;
        link_of[1] = NONE;
        run producer(0, 0, 0);
        run producer(1, 0, 1)
    };
    do
    :: notified -> notified = false; collect(); run_ready()
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
