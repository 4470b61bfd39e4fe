"""vmmrun - start a VMM with a bare-metal payload, watch its console, end it

Shared by guest-tests/run-payload and scripts/bench. One description of the
guest makes the command line of either VMM, so that both get the same machine.
"""

import dataclasses
import fcntl
import os
import selectors
import signal
import subprocess
import tempfile
import time
from typing import Optional

QBOOT = "/usr/share/qemu/qboot.rom"
QEMU = "qemu-system-x86_64"
# What a payload's last act, a reset through the keyboard controller with
# --no-reboot, ends the VMM with.
STATUS_AFTER_RESET = {"penstock": 4, "qemu": 0}

KVM_CREATE_VM = 0xAE01
KVM_CREATE_VCPU = 0xAE41
KVM_GET_TSC_KHZ = 0xAEA3
LINE_LIMIT = 1 << 16


@dataclasses.dataclass
class Guest:
    """One guest with one disk."""
    vmm: str
    binary: str
    payload: str
    append: str = ""
    cpus: int = 1
    memory: str = "256M"
    disk: str = "null"              # or the path of a raw image
    size_bytes: int = 1 << 30       # of a null disk
    queues: int = 1
    queue_size: int = 256
    iothreads: Optional[int] = None     # penstock: default one a queue
    poll_max_ns: Optional[int] = None   # None: the VMM's own default
    direct: bool = False                # O_DIRECT
    readonly: bool = False
    packed: bool = False                # offer packed rings
    serial: str = ""
    stats: str = ""                     # penstock: where to write counters

    def command(self):
        return getattr(self, "_" + self.vmm)()

    def _penstock(self):
        words = [self.binary, "run", "--kernel", self.payload,
                 "--append", self.append, "--cpus", str(self.cpus),
                 "--memory", self.memory, "--no-reboot"]
        poll = ("" if self.poll_max_ns is None
                else f",poll-max-ns={self.poll_max_ns}")
        names = [f"io{i}" for i in range(self.iothreads or self.queues)]
        for name in names:
            words += ["--iothread", f"id={name}{poll}"]
        disk = (f"driver=null,size={self.size_bytes}" if self.disk == "null"
                else f"path={self.disk},discard=unmap")
        disk += (f",queues={self.queues},queue-size={self.queue_size}"
                 f",iothreads={':'.join(names)}")
        disk += ",cache=none" if self.direct else ""
        disk += ",readonly=on" if self.readonly else ""
        disk += ",packed=on" if self.packed else ""
        disk += f",serial={self.serial}" if self.serial else ""
        words += ["--disk", disk]
        words += ["--stats", self.stats] if self.stats else []
        return words

    def _qemu(self):
        poll = ("" if self.poll_max_ns is None
                else f",poll-max-ns={self.poll_max_ns}")
        read_only = "on" if self.readonly else "off"
        # Without O_DIRECT the io_uring engine is slower than threads.
        back = (f"driver=null-co,size={self.size_bytes}"
                if self.disk == "null" else
                f"driver=file,filename={self.disk},discard=unmap,"
                + ("cache.direct=on,aio=io_uring" if self.direct
                   else "aio=threads"))
        device = (f"virtio-blk-pci,drive=d0,iothread=io0,disable-legacy=on,"
                  f"num-queues={self.queues},queue-size={self.queue_size}")
        device += ",packed=on" if self.packed else ""
        device += f",serial={self.serial}" if self.serial else ""
        words = [self.binary, "-machine", "q35", "-accel", "kvm",
                 "-cpu", "qemu64,pni=off", "-smp", str(self.cpus),
                 "-m", self.memory, "-nodefaults", "-no-user-config",
                 "-name", "guest,debug-threads=on",
                 "-display", "none", "-serial", "stdio", "-no-reboot",
                 "-kernel", self.payload, "-append", self.append,
                 "-object", f"iothread,id=io0{poll}",
                 "-blockdev", f"{back},node-name=d0,read-only={read_only}",
                 "-device", device]
        # SeaBIOS takes seconds where kernel-mode code is emulated.
        return words + (["-bios", QBOOT] if os.path.exists(QBOOT) else [])


@dataclasses.dataclass
class Result:
    """How a VMM's life went."""
    lines: list
    stderr: str
    status: int         # as a shell has it: 128 + N for signal N
    timed_out: bool
    wall_s: float
    user_s: float
    sys_s: float

    @property
    def cpu_s(self):
        return self.user_s + self.sys_s


def kvm_problem():
    """Why there is no KVM here, in words, or None."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        return f"no KVM: /dev/kvm: {e.strerror}"
    return None


def tsc_khz():
    """The frequency of a guest's time stamp counter, or None."""
    fds = []
    try:
        fds.append(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
        fds.append(fcntl.ioctl(fds[0], KVM_CREATE_VM, 0))
        fds.append(fcntl.ioctl(fds[1], KVM_CREATE_VCPU, 0))
        return fcntl.ioctl(fds[2], KVM_GET_TSC_KHZ, 0)
    except OSError:
        return None
    finally:
        for fd in reversed(fds):
            os.close(fd)


def read_lines(process, deadline, on_line):
    """Console lines until the end of it; False if the deadline came first."""
    lines, rest = [], b""
    fd = process.stdout.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                return lines, False
            data = os.read(fd, 65536)
            if not data:
                return lines + ([rest.decode(errors="replace")]
                                if rest else []), True
            *whole, rest = (rest + data).split(b"\n")
            rest = rest[-LINE_LIMIT:]
            for raw in whole:
                line = raw.rstrip(b"\r").decode(errors="replace")
                lines.append(line)
                if on_line:
                    on_line(line, process.pid)


def run(command, timeout_s, on_line=None):
    """Run a VMM to its end; it is killed when the time is up."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as stderr:
        # No resource outlives this function: the process is always reaped.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=stderr)
        reaped = None
        lines, in_time = [], False
        try:
            lines, in_time = read_lines(process, start + timeout_s, on_line)
            while in_time and reaped is None:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    reaped = (status, usage)
                elif time.monotonic() > start + timeout_s:
                    in_time = False
                else:
                    time.sleep(0.002)
        finally:
            if reaped is None:
                os.kill(process.pid, signal.SIGKILL)
                _, *reaped = os.wait4(process.pid, 0)
            process.stdout.close()
            code = os.waitstatus_to_exitcode(reaped[0])
            process.returncode = code
        stderr.seek(0)
        text = stderr.read().decode(errors="replace")
    usage = reaped[1]
    return Result(lines, text, code if code >= 0 else 128 - code,
                  not in_time, time.monotonic() - start,
                  usage.ru_utime, usage.ru_stime)
