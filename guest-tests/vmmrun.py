"""vmmrun - start a VMM with a bare-metal payload, watch its console, end it

Shared by guest-tests/run and scripts/bench. One description of the
guest makes the command line of either VMM, so that both get the same machine.
"""

import dataclasses
import fcntl
import json
import os
import selectors
import signal
import socket
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
CONTROL_WAIT_S = 60
STOP = object()     # what on_line() returns to have the VMM killed


@dataclasses.dataclass
class Guest:
    """One guest with one disk, or a small second one beside it."""
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
    transport: str = "pci"              # or mmio
    second_disk: str = ""               # the path of a raw image
    serial: str = ""
    stats: str = ""                     # penstock: where to write counters
    control: str = ""                   # where a QMP client is served

    def command(self):
        return getattr(self, "_" + self.vmm)()

    def _poll(self):
        return ("" if self.poll_max_ns is None
                else f",poll-max-ns={self.poll_max_ns}")

    def _penstock(self):
        words = [self.binary, "run", "--kernel", self.payload,
                 "--append", self.append, "--cpus", str(self.cpus),
                 "--memory", self.memory, "--no-reboot"]
        names = [f"io{i}" for i in range(self.iothreads or self.queues)]
        for name in names:
            words += ["--iothread", f"id={name}{self._poll()}"]
        disk = (f"driver=null,size={self.size_bytes}" if self.disk == "null"
                else f"path={self.disk},discard=unmap")
        disk += (f",queues={self.queues},queue-size={self.queue_size}"
                 f",iothreads={':'.join(names)},transport={self.transport}")
        disk += ",cache=none" if self.direct else ""
        disk += ",readonly=on" if self.readonly else ""
        disk += ",packed=on" if self.packed else ""
        disk += f",serial={self.serial}" if self.serial else ""
        words += ["--disk", disk]
        if self.second_disk:
            words += ["--disk", f"path={self.second_disk},queues=1"
                      f",iothreads={names[0]},transport={self.transport}"]
        words += ["--stats", self.stats] if self.stats else []
        words += ["--control", self.control] if self.control else []
        return words

    def _qemu_disk(self, name, back, options):
        bus = "pci,disable-legacy=on" if self.transport == "pci" else "device"
        return ["-blockdev", f"{back},node-name={name}",
                "-device", f"virtio-blk-{bus},drive={name},iothread=io0,"
                + options]

    def _qemu(self):
        machine = ["-machine", "q35"]
        # SeaBIOS takes seconds where kernel-mode code is emulated.
        if self.transport == "mmio":
            machine = ["-machine", "microvm,acpi=on,ioapic2=off",
                       "-global", "virtio-mmio.force-legacy=false"]
        elif os.path.exists(QBOOT):
            machine += ["-bios", QBOOT]
        # Without O_DIRECT the io_uring engine is slower than threads.
        back = (f"driver=null-co,size={self.size_bytes}"
                if self.disk == "null" else
                f"driver=file,filename={self.disk},discard=unmap,"
                + ("cache.direct=on,aio=io_uring" if self.direct
                   else "aio=threads"))
        back += ",read-only=" + ("on" if self.readonly else "off")
        options = f"num-queues={self.queues},queue-size={self.queue_size}"
        options += ",packed=on" if self.packed else ""
        options += f",serial={self.serial}" if self.serial else ""
        words = [self.binary, *machine, "-accel", "kvm",
                 "-cpu", "qemu64,pni=off", "-smp", str(self.cpus),
                 "-m", self.memory, "-nodefaults", "-no-user-config",
                 "-name", "guest,debug-threads=on",
                 "-display", "none", "-serial", "stdio", "-no-reboot",
                 "-kernel", self.payload, "-append", self.append,
                 "-object", f"iothread,id=io0{self._poll()}",
                 *self._qemu_disk("d0", back, options)]
        if self.second_disk:
            words += self._qemu_disk(
                "d1", f"driver=file,filename={self.second_disk},aio=threads",
                "num-queues=1")
        if self.control:
            words += ["-qmp", f"unix:{self.control},server=on,wait=off"]
        return words


class Control:
    """A QMP client of a VMM that listens at @path, from the first command on."""

    def __init__(self, path):
        self.path = path
        self.socket = None
        self.lines = None

    def _connect(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(CONTROL_WAIT_S)
        self.socket.connect(self.path)
        self.lines = self.socket.makefile("r", encoding="utf-8")
        self.lines.readline()   # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command):
        """Returns when it has been carried out; an error is an OSError."""
        if not self.socket:
            self._connect()
        self.socket.sendall(json.dumps({"execute": command}).encode())
        for line in self.lines:
            answer = json.loads(line)
            if "error" in answer:
                raise OSError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return
        raise OSError(f"{command}: the connection has ended")

    def close(self):
        if self.lines:
            self.lines.close()
        if self.socket:
            self.socket.close()


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
    """Console lines until their end or until on_line() says STOP; and whether
    that was before the deadline."""
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
                if on_line and on_line(line, process.pid) is STOP:
                    process.kill()
                    on_line = None


def run(command, timeout_s, on_line=None):
    """Run a VMM to its end; it is killed when the time is up.

    on_line(line, pid) is called with each line of the console."""
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
