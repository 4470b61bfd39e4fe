# shellcheck shell=bash
# Shared by the scripts of this folder and of guest-tests/linux: where things
# are kept, how progress is told, how long steps are logged. Source it; it
# changes nothing but sets these names:
#
#   PENSTOCK_SRC   the checkout
#   PENSTOCK_CACHE what was fetched, unpacked and built; may be deleted
#   PENSTOCK_BUILD this checkout's build directories inside the cache

PENSTOCK_SRC=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# Services and containers may have no HOME; then it is what the system knows.
PENSTOCK_CACHE=${PENSTOCK_CACHE:-${XDG_CACHE_HOME:-${HOME:-$(getent passwd "$(id -u)" |
    cut -d: -f6)}/.cache}/penstock}
# A build directory belongs to one checkout: its path, as a checksum, names it.
# shellcheck disable=SC2034
PENSTOCK_BUILD=$PENSTOCK_CACHE/build-$(printf %s "$PENSTOCK_SRC" | cksum | cut -d' ' -f1)
export PENSTOCK_CACHE
mkdir -p "$PENSTOCK_CACHE/log"

say()
{
    printf '==> %s\n' "$*" >&2
}

warn()
{
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

die()
{
    warn "$@"
    exit 1
}

usage_error()
{
    warn "$*; see --help"
    exit 2
}

# usage - print the comment block that heads the calling script
usage()
{
    sed -n '2,/^$/{/^$/d;s/^# \{0,1\}//;p;}' "$0"
}

# need_value OPTION COUNT - an option that takes a value must have one
need_value()
{
    [ "$2" -ge 2 ] || usage_error "$1 needs a value"
}

# run_logged LOG WHAT COMMAND... - a long step: tell that it goes on, keep its
# output in the cache's LOG and show the end of it when the step fails
run_logged()
{
    local log=$PENSTOCK_CACHE/log/$1 what=$2 pid ticks=0 status=0
    shift 2
    say "$what"
    printf '\n# %s: %s\n' "$(date -u +%FT%TZ)" "$*" >>"$log"
    "$@" >>"$log" 2>&1 </dev/null &
    pid=$!
    # A background child of a script does not hear Ctrl-C.
    # shellcheck disable=SC2064
    trap "kill $pid 2>/dev/null; exit 130" INT TERM
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.2
        ticks=$((ticks + 1))
        if [ $((ticks % 75)) -eq 0 ]; then
            say "$what: $((ticks / 5)) s so far"
        fi
    done
    wait "$pid" || status=$?
    trap - INT TERM
    if [ "$status" -ne 0 ]; then
        tail -n 25 "$log" >&2
        warn "$what failed (status $status); all of it is in $log"
    fi
    return "$status"
}

# is_fresh TARGET SOURCE... - true when TARGET exists and no SOURCE is newer
is_fresh()
{
    local target=$1 source
    shift
    [ -e "$target" ] || return 1
    for source; do
        [ ! "$source" -nt "$target" ] || return 1
    done
}

# become_root - set the array as_root to what makes a command run as root
become_root()
{
    as_root=()
    [ "$(id -u)" -ne 0 ] || return 0
    command -v sudo >/dev/null || die "$1 needs root, and there is no sudo"
    sudo -v || die "$1 needs root, and sudo refused"
    as_root=(sudo)
}

# update_package_lists - apt-get update, again when the network stumbles. A
# source that cannot be reached is no failure as long as lists are there: what
# is then missing shows when it is asked for.
update_package_lists()
{
    local attempt
    become_root "apt-get update"
    for attempt in 1 2 3; do
        if run_logged setup.log "updating the package lists" "${as_root[@]}" \
            apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=2 update; then
            return 0
        fi
        if apt-cache show busybox-static >/dev/null 2>&1; then
            warn "going on with the package lists that are there"
            return 0
        fi
        warn "attempt $attempt of 3 failed"
        sleep $((attempt * 3))
    done
    die "no package lists; is the network there, and are apt's sources right?"
}

# make_work_dir - set work to a folder that is gone when the script ends; in the
# cache, for kernels and images are large and /tmp may be memory
make_work_dir()
{
    work=$(mktemp -d "$PENSTOCK_CACHE/work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
}

# list_libraries PROGRAM - the shared libraries and the loader that it needs
list_libraries()
{
    ldd "$1" 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// { print $1 }'
}

# copy_program ROOT PROGRAM [PATH] - copy into the tree ROOT, as PATH, a program
# with the libraries it needs; these keep the names that the loader looks for
copy_program()
{
    local root=$1 program=$2 path=${3-$2} library
    mkdir -p "$root${path%/*}"
    cp -L "$program" "$root$path"
    while read -r library; do
        mkdir -p "$root${library%/*}"
        [ -e "$root$library" ] || cp -L "$library" "$root$library"
    done < <(list_libraries "$program")
}

# copy_busybox ROOT - busybox under all its names in ROOT/bin
copy_busybox()
{
    local root=$1 name
    mkdir -p "$root/bin"
    cp "$(command -v busybox)" "$root/bin/busybox"
    while read -r name; do
        [ "$name" = busybox ] || ln -sf busybox "$root/bin/$name"
    done < <(busybox --list)
}

# list_modules MODULES_DIR NAME... - paths below MODULES_DIR of the named modules
# and all that they need, what is needed first; built-in ones are left out
list_modules()
{
    local dir=$1
    shift
    awk -v wanted="$*" '
        function name(path) { sub(/.*\//, "", path); sub(/\.ko.*/, "", path)
                              gsub(/-/, "_", path); return path }
        function visit(path,  need, n, i) {
            if (path in seen) return
            seen[path] = 1
            n = split(needs[path], need, " ")
            for (i = n; i >= 1; i--) visit(need[i])
            print path
        }
        FILENAME ~ /builtin$/ { builtin[name($1)] = 1; next }
        { path = $1; sub(/:$/, "", path); $1 = ""; needs[path] = $0; at[name(path)] = path }
        END { n = split(wanted, want, " ")
              for (i = 1; i <= n; i++) {
                  m = want[i]; gsub(/-/, "_", m)
                  if (m in at) visit(at[m])
                  else if (!(m in builtin)) { print "no module " want[i] >"/dev/stderr"; exit 1 }
              } }' "$dir/modules.builtin" "$dir/modules.dep"
}

# copy_modules MODULES_DIR TO NAME... - put modules into the folder TO and the
# order in which to load them into TO/order
copy_modules()
{
    local dir=$1 to=$2 paths path
    shift 2
    mkdir -p "$to"
    paths=$(list_modules "$dir" "$@")
    while read -r path; do
        cp "$dir/$path" "$to/"
        echo "${path##*/}"
    done <<<"$paths" >"$to/order"
}

# make_cpio ROOT - write the tree as an initramfs to standard output
make_cpio()
{
    (cd "$1" && find . -mindepth 1 | LC_ALL=C sort |
        cpio --quiet --reproducible -o -H newc -R 0:0)
}

# build_penstock NAME MESON_OPTION... - configure and compile this checkout in the
# cache's build directory NAME; sets build_dir
build_penstock()
{
    local name=$1
    shift
    build_dir=$PENSTOCK_BUILD/$name
    mkdir -p "$PENSTOCK_BUILD"
    if [ ! -e "$build_dir/build.ninja" ]; then
        rm -rf "$build_dir"
        run_logged "build-$name.log" "configuring the $name build" \
            meson setup "$@" "$build_dir" "$PENSTOCK_SRC" || return
    fi
    run_logged "build-$name.log" "compiling the $name build" ninja -C "$build_dir"
}
