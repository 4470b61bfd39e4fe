# shellcheck shell=sh
# Runs boots one after the other and prints TAP. scripts/testbed runs this under
# busybox; guest-tests/linux/run writes the calls that follow it.
#
#   DISK   the image or block device that the guests write to
#   LIMIT  how many seconds one boot may take
#   FIRST  the number of the first boot

count=$((FIRST - 1))
failures=0
console=/tmp/penstock-case-console

# What no boot may leave: processes, and files in the places for such.
list_leftovers()
{
    ls -A /dev/shm
    for process in /proc/[0-9]*; do
        case $(readlink "$process/exe") in
        */penstock*) echo "process ${process#/proc/}" ;;
        esac
    done 2>/dev/null
}

# result NAME [WHY-NOT] - one line of TAP, the console as comments before it
result()
{
    count=$((count + 1))
    sed 's/^/# /; s/\r$//' "$console"
    if [ -z "$2" ]; then
        echo "ok $count - $1"
    else
        echo "# $2"
        echo "not ok $count - $1"
        failures=$((failures + 1))
    fi
}

# await TEXT PID - wait until the console has TEXT or the process is gone
await()
{
    tenths=0
    while ! grep -q "$1" "$console"; do
        kill -0 "$2" 2>/dev/null || return 1
        tenths=$((tenths + 1))
        [ "$tenths" -lt 1200 ] || return 1
        sleep 0.1
    done
}

# show_threads PID - what each thread of a guest that does not end is doing: name,
# state, processor time in ticks, where in the kernel it sleeps
show_threads()
{
    echo
    echo "not ended after $LIMIT s; its threads, now and a second later:"
    for moment in now later; do
        for thread in "/proc/$1/task"/*; do
            read -r name <"$thread/comm"
            echo "$moment $name $(cut -d' ' -f3,14,15 "$thread/stat") $(cat "$thread/wchan")"
        done
        sleep 1
    done 2>/dev/null
}

# start COMMAND... - start a guest in the background, with its time limited; sets
# pid and guard
start()
{
    : >"$console"
    "$@" </dev/null >>"$console" 2>&1 &
    pid=$!
    (
        trap 'kill "$sleeper"; exit' TERM
        sleep "$LIMIT" &
        sleeper=$!
        wait "$sleeper"
        show_threads "$pid" >>"$console"
        kill -KILL "$pid"
    ) &
    guard=$!
}

# await_end - wait for what start began; sets status
await_end()
{
    status=0
    wait "$pid" || status=$?
    kill "$guard" 2>/dev/null
    wait "$guard"
}

# find_fault STATUS EXPECTED LAST-WORD - why this boot was not right, in a line
find_fault()
{
    if [ "$1" != "$2" ]; then
        echo "penstock ended with status $1, not $2"
    elif [ "$3" = clean ] && ! grep -q '^penstock-guest-status: 0' "$console"; then
        echo "the guest did not say that all was well"
    elif [ "$3" != panic ] &&
        grep -E 'BUG:|Oops|Call Trace|Kernel panic|I/O error|blocked for more' "$console"; then
        echo "the guest's kernel complains"
    elif grep -E 'Sanitizer|runtime error:' "$console"; then
        echo "a sanitizer complains"
    elif [ "$(list_leftovers)" != "$before" ]; then
        echo "left behind: $(list_leftovers | tr '\n' ' ')"
    elif sum=$(sed -n 's/^penstock-sum: .*sha256=\([0-9a-f]*\).*/\1/p' "$console" | tail -n 1) &&
        [ -n "$sum" ]; then
        length=$(sed -n 's/^penstock-sum: jobs=\([0-9]*\) size=\([0-9]*\).*/\1 \2/p' "$console" |
            tail -n 1 | { read -r jobs size; echo $((jobs * size)); })
        [ "$(head -c "$length" "$DISK" | sha256sum | cut -d' ' -f1)" = "$sum" ] ||
            echo "the disk's sha256 is not the guest's"
    fi
}

# boot NAME EXPECTED LAST-WORD COMMAND... - run a guest to its end
#   LAST-WORD clean: all the guest's checks must have passed; panic: its kernel
#   panics; any: it says nothing at the end
boot()
{
    name=$1 expected=$2 last_word=$3
    shift 3
    before=$(list_leftovers)
    start "$@"
    await_end
    result "$name" "$(find_fault "$status" "$expected" "$last_word")"
}

# boot_and_signal NAME EXPECTED SIGNAL COMMAND... - end it in the midst of I/O
boot_and_signal()
{
    name=$1 expected=$2 signal=$3
    shift 3
    before=$(list_leftovers)
    start "$@"
    if await 'load starts' "$pid"; then
        sleep 1
        kill "-$signal" "$pid"
    fi
    await_end
    result "$name" "$(find_fault "$status" "$expected" any)"
}

# sum_disk - of the range that the guest writes to under load
sum_disk()
{
    dd if="$DISK" bs=1M count=2 2>/dev/null | sha256sum
}

# boot_and_pause NAME PENSTOCK COMMAND... - stop the guest and let it go on, over and
# over, while it verifies what it writes; while it is stopped nothing is written
boot_and_pause()
{
    name=$1 penstock=$2 control=/tmp/penstock-case-control
    shift 2
    before=$(list_leftovers)
    start "$@" --control "$control"
    pauses=0 fault=
    await 'load starts' "$pid" || fault="the guest does not start"
    while [ -z "$fault" ] && ! grep -q 'load ends' "$console"; do
        "$penstock" ctl "$control" stop >/dev/null || break
        sum=$(sum_disk)
        sleep 0.3
        [ "$(sum_disk)" = "$sum" ] || fault="the stopped guest has written"
        "$penstock" ctl "$control" cont >/dev/null || break
        pauses=$((pauses + 1))
        sleep 0.2
    done
    await_end
    [ -n "$fault" ] || fault=$(find_fault "$status" 0 clean)
    [ -n "$fault" ] || [ "$pauses" -ge 3 ] || fault="only $pauses pauses"
    echo "# $pauses pauses"
    result "$name" "$fault"
}

# boot_and_press NAME PENSTOCK COMMAND... - press the power button of a guest, once as
# it runs and once while it is stopped; then it switches itself off
boot_and_press()
{
    name=$1 penstock=$2 control=/tmp/penstock-case-control
    shift 2
    before=$(list_leftovers)
    start "$@" --control "$control"
    fault=
    await 'waiting for the power button' "$pid" || fault="the guest does not start"
    if [ -z "$fault" ]; then
        "$penstock" ctl "$control" system_powerdown >/dev/null
        await 'waiting to be stopped' "$pid" || fault="the guest has not heard of the press"
    fi
    if [ -z "$fault" ]; then
        for command in stop system_powerdown cont; do
            "$penstock" ctl "$control" "$command" >/dev/null || fault="$command is refused"
        done
    fi
    await_end
    [ -n "$fault" ] || fault=$(find_fault "$status" 0 clean)
    result "$name" "$fault"
}
