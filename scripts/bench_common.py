"""bench_common - what bench-block, bench-nbd and bench-vhost-user share"""

import argparse
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
NAME = os.path.basename(sys.argv[0])
BUILD = """set -e
. "$1"
shift
"$PENSTOCK_SRC/scripts/setup" build "$@" >&2
build_penstock gcc --buildtype=debugoptimized >&2
echo "$build_dir/vmm/penstock"
"""
CACHE = '. "$1"; echo "$PENSTOCK_CACHE"'
FILL_BYTES = 1 << 20


def die(text, status=1):
    print(f"{NAME}: {text}", file=sys.stderr)
    sys.exit(status)


def ask_lib(script, *args):
    done = subprocess.run(["bash", "-c", script, NAME,
                           os.path.join(HERE, "lib.sh"), *args],
                          stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout.strip()


def build_penstock(*groups):
    """This checkout's penstock, built in the cache if need be; needs the
    packages of these groups of scripts/setup as well."""
    return ask_lib(BUILD, *groups)


def cached_image(name, size_bytes):
    """The path of an image of random bytes in the cache, made once."""
    path = os.path.join(ask_lib(CACHE), name)
    if os.path.exists(path) and os.path.getsize(path) == size_bytes:
        return path
    with open(path + ".new", "wb") as f:
        for _ in range(size_bytes // FILL_BYTES):
            f.write(os.urandom(FILL_BYTES))
        f.flush()
        os.fsync(f.fileno())
    os.rename(path + ".new", path)
    return path


def output_of(args):
    done = subprocess.run(args, stdout=subprocess.PIPE, text=True,
                          stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        die(f"{args[0]} failed with status {done.returncode}")
    return done.stdout


def json_of(args):
    """The JSON that a command prints, maybe behind something else."""
    text = output_of(args)
    return json.loads(text[text.index("{"):])


def write_json(path, results):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(results, f, indent=1)


def in_turns(names, rounds):
    """Every contestant has its turn in each round, in alternating order."""
    for i in range(rounds):
        yield from names if i % 2 == 0 else reversed(names)


def number(text):
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no number above 0")
    return int(text)


def numbers(text):
    return [number(word) for word in text.split(",")]


def choices(*allowed):
    def parse(text):
        words = text.split(",")
        for word in words:
            if word not in allowed:
                raise argparse.ArgumentTypeError(
                    f"'{word}' is none of {', '.join(allowed)}")
        return words
    return parse


class Parser(argparse.ArgumentParser):
    """Prints the script's own text for --help, dies in one line."""

    def __init__(self, text):
        super().__init__(add_help=False, allow_abbrev=False)
        self.text = text

    def error(self, message):
        die(f"{message}; see --help", 2)

    def parse(self):
        if "--help" in sys.argv[1:]:
            print(self.text.strip())
            sys.exit(0)
        return self.parse_args()
