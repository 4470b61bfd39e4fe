"""bench_measure - run payloads in turns and collect what they and the host say

One Case is a back end, polling on or off, and a number of queues. One run boots
a guest that goes through all depths. The payload says on the console when a
depth begins and ends; at these moments the host reads the processor time of the
VMM's threads, so that time is known for each depth and each kind of thread.
"""

import dataclasses
import json
import os
import re
import tempfile
import time

import vmmrun

MARGIN_S = 60
RAM_BYTES = 256 << 20
RAW_BYTES = 256 << 20
FILL_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class Case:
    """What is compared."""
    backend: str        # null or raw
    polling: bool
    queues: int

    def __str__(self):
        return (f"{self.backend}, polling {'on' if self.polling else 'off'}, "
                f"{self.queues} queue{'s' if self.queues > 1 else ''}")


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Who is compared: a VMM, and how it spreads queues over threads."""
    name: str
    vmm: str
    binary: str
    iothreads: int = 0      # penstock: 0 means one a queue


@dataclasses.dataclass
class Settings:
    payloads: str           # folder of the ELF files
    work: str               # folder for the image and for scratch files
    depths: tuple = (1, 8, 32, 64)
    ms: int = 400
    warmup_ms: int = 150
    tsc_khz: int = 0


class RunFailed(Exception):
    """A VMM or payload did not do what it should; the message says what."""


def make_image(path):
    """A raw image without holes, made once."""
    if os.path.exists(path) and os.path.getsize(path) == RAW_BYTES:
        return
    block = os.urandom(FILL_BYTES)
    with open(path + ".new", "wb") as f:
        for _ in range(RAW_BYTES // FILL_BYTES):
            f.write(block)
        f.flush()
        os.fsync(f.fileno())
    os.rename(path + ".new", path)


def thread_times_ns(pid):
    """Processor time so far: (vCPU threads, all other threads)."""
    vcpu = other = 0
    try:
        tids = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return 0, 0
    for tid in tids:
        try:
            with open(f"/proc/{pid}/task/{tid}/comm") as f:
                name = f.read().strip()
            with open(f"/proc/{pid}/task/{tid}/schedstat") as f:
                ns = int(f.read().split()[0])
        except OSError:
            continue        # the thread has just ended
        if re.match(r"vcpu\d|CPU \d+/KVM", name):
            vcpu += ns
        else:
            other += ns
    return vcpu, other


def own_memory_bytes(pid):
    """Resident memory without guest RAM."""
    own = 0
    is_ram = False
    with open(f"/proc/{pid}/smaps") as f:
        for line in f:
            head = re.match(r"([0-9a-f]+)-([0-9a-f]+) .{4} \S+ \S+ \S+\s*(.*)",
                            line)
            if head:
                size = int(head[2], 16) - int(head[1], 16)
                is_ram = "guest-ram" in head[3] or size == RAM_BYTES
            elif line.startswith("Rss:") and not is_ram:
                own += int(line.split()[1]) << 10
    return own


def parse_line(line):
    """The key=value words of a payload's line."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


class Watch:
    """Follows the console of one blk-perf run."""

    def __init__(self):
        self.samples = {}
        self.memory_bytes = 0
        self.begin = None

    def __call__(self, line, pid):
        now = time.monotonic_ns()
        times = thread_times_ns(pid)
        if line.startswith("perf-begin "):
            self.begin = (now, times)
        elif line.startswith("perf "):
            self.add(parse_line(line), now, times)
            self.memory_bytes = max(self.memory_bytes, own_memory_bytes(pid))

    def add(self, words, now, times):
        if "ns_per_req" not in words or not self.begin:
            return
        start, start_times = self.begin
        wall = max(now - start, 1)
        ns = float(words["ns_per_req"])
        requests = int(words["requests"])
        # A share of the time between the two lines, which holds the warm-up
        # too, times the time a request took.
        vcpu, other = ((b - a) / wall * ns
                       for a, b in zip(start_times, times))
        self.samples[int(words["depth"])] = {
            "ns": ns, "requests": requests, "errors": int(words["errors"]),
            "p50_ns": int(words["p50_ns"]), "p99_ns": int(words["p99_ns"]),
            "kicks_per_req": int(words["kicks"]) / requests,
            "batch": requests / max(int(words["batches"]), 1),
            "vcpu_cpu_ns": vcpu, "other_cpu_ns": other,
        }


def check(result, who):
    if result.timed_out:
        raise RunFailed(f"{who.name}: no end in time")
    for line in result.lines:
        if line.startswith("Bail out!"):
            raise RunFailed(f"{who.name}: {line}")
    if result.status != vmmrun.STATUS_AFTER_RESET[who.vmm]:
        raise RunFailed(f"{who.name}: status {result.status}: "
                        + result.stderr.strip()[-300:])


def make_guest(settings, case, who, payload, append="", stats=""):
    raw = case.backend == "raw"
    return vmmrun.Guest(
        vmm=who.vmm, binary=who.binary,
        payload=os.path.join(settings.payloads, payload), append=append,
        memory=str(RAM_BYTES >> 20) + "M",
        disk=os.path.join(settings.work, "raw.img") if raw else "null",
        direct=raw, queues=case.queues, iothreads=who.iothreads or None,
        poll_max_ns=None if case.polling else 0, stats=stats)


def run_perf(settings, case, who, extra="", stats=""):
    """One boot through all depths: (samples by depth, memory in bytes)."""
    depths = ",".join(map(str, settings.depths))
    append = (f"queues={case.queues} depth={depths} ms={settings.ms} "
              f"warmup_ms={settings.warmup_ms} {extra}")
    if settings.tsc_khz:
        append += f" tsc_khz={settings.tsc_khz}"
    guest = make_guest(settings, case, who, "blk-perf.elf", append, stats)
    watch = Watch()
    result = vmmrun.run(guest.command(), MARGIN_S, watch)
    check(result, who)
    missing = set(settings.depths) - set(watch.samples)
    if missing or "perf-done" not in result.lines:
        raise RunFailed(f"{who.name}: no result for depth {sorted(missing)}")
    errors = sum(s["errors"] for s in watch.samples.values())
    if errors:
        raise RunFailed(f"{who.name}: {errors} requests failed")
    return watch.samples, watch.memory_bytes


def run_counters(settings, case, who):
    """penstock's own counters over a run in which it raises interrupts."""
    with tempfile.TemporaryDirectory(dir=settings.work) as scratch:
        path = os.path.join(scratch, "stats.json")
        run_perf(settings, case, who, extra="irq=on", stats=path)
        with open(path) as f:
            stats = json.load(f)
    passes = sum(t["passes"] for t in stats["iothreads"])
    queues = [q for d in stats["disks"] for q in d["queues"]]
    requests = sum(q["requests"] for q in queues)
    if not passes or not requests:
        raise RunFailed(f"{who.name}: the counters say that nothing was done")
    per_queue = [
        q["notifications"] / max(t["passes"], 1)
        for q, t in zip(queues, stats["iothreads"])
    ] if len(queues) == len(stats["iothreads"]) else [
        q["notifications"] / passes for q in queues]
    return {
        "passes": passes,
        "requests_per_pass": requests / passes,
        "enters_per_pass":
            sum(t["enters"] for t in stats["iothreads"]) / passes,
        "irqfd_writes_per_pass_and_queue": max(per_queue),
        "raw": stats,
    }


def run_start(settings, who):
    """A whole life that resets at the first instruction: CPU and wall ms."""
    case = Case("null", True, 4)
    guest = make_guest(settings, case, who, "boot-reset.elf")
    result = vmmrun.run(guest.command(), MARGIN_S)
    check(result, who)
    return {"cpu_ms": result.cpu_s * 1000, "wall_ms": result.wall_s * 1000}
