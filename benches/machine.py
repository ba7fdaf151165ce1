#!/usr/bin/env python3
"""What opm costs on this machine: cargo build --release && benches/machine.py

Prints the tables of docs/PERFORMANCE.md. Needs a C compiler, and strace for one column.
"""

import argparse
import os
import platform
import re
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
STAMP = struct.Struct("=iiq")
BEGIN = -1
IDLE_SECONDS = 10
PATIENCE = 120
STORM_SECONDS = 5


class Bench:
    """A scratch directory with the C program and its FIFO."""

    def __init__(self, opm, scratch):
        self.opm = os.path.abspath(opm)
        self.dir = tempfile.mkdtemp(prefix="opm-bench-", dir=scratch)
        self.floor = self.dir + "/floor"
        subprocess.run(["cc", "-O2", "-static", "-o", self.floor, HERE + "/floor.c"], check=True)
        self.fifo = self.dir + "/fifo"
        os.mkfifo(self.fifo)
        # Open at both ends: nobody waits for us, and no stamp is lost.
        self.stamps = os.open(self.fifo, os.O_RDWR)
        self.runs = 0
        self.running = []

    def stamp(self):
        return STAMP.unpack(os.read(self.stamps, STAMP.size))

    def run(self, argv):
        """Starts a program; the time of its exec."""
        process = subprocess.Popen(
            [self.floor, "stamp", self.fifo, *argv],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.running.append(process)
        ident, _, began = self.stamp()
        assert ident == BEGIN, ident
        return process, began

    def all_begun(self, count):
        """Waits for the stamps of all services; their pids, and the time of the last."""
        signal.alarm(PATIENCE)
        pids, last = {}, 0
        while len(pids) < count:
            ident, pid, nanos = self.stamp()
            pids[ident], last = pid, max(last, nanos)
        signal.alarm(0)
        return pids, last

    def units(self, count, more, act="service", target=False):
        self.runs += 1
        root = f"{self.dir}/{self.runs}"
        os.makedirs(root + "/units")
        for i in range(count):
            with open(f"{root}/units/s{i:04}.yaml", "w") as unit:
                unit.write(f"command: [{self.floor}, {act}, {self.fifo}, '{i}']\n{more}")
        if target:
            with open(f"{root}/units/default.yaml", "w") as unit:
                unit.write("kind: target\nrequires:\n")
                unit.writelines(f"  - s{i:04}\n" for i in range(count))
        return root

    def opm_run(self, count, more, act="service", target=False):
        root = self.units(count, more, act, target)
        process, began = self.run([self.opm, "--root", root, "run", "--quiet", root + "/units"])
        pids, last = self.all_begun(count)
        return Opm(self, root, process, pids, (last - began) / 1e6)

    def forget(self):
        """Reads away the stamps of what was killed."""
        os.set_blocking(self.stamps, False)
        try:
            while True:
                time.sleep(0.05)
                os.read(self.stamps, 65536)
        except BlockingIOError:
            os.set_blocking(self.stamps, True)

    def stamps_until(self, when):
        """How many stamps come until then."""
        stamps = 0
        os.set_blocking(self.stamps, False)
        while time.monotonic() < when:
            try:
                stamps += len(os.read(self.stamps, 65536 // STAMP.size * STAMP.size)) // STAMP.size
            except BlockingIOError:
                time.sleep(0.01)
        os.set_blocking(self.stamps, True)
        return stamps

    def loop(self, count):
        """The C loop, its services, and the milliseconds it took."""
        process, began = self.run([self.floor, "loop", self.fifo, str(count)])
        pids, last = self.all_begun(count)
        return process, pids, (last - began) / 1e6

    def kills(self, pids, count):
        """Kills services; the milliseconds until the replacement of each runs."""
        times = []
        for i in range(count):
            victim = i % len(pids)
            time.sleep(0.02)
            began = time.monotonic_ns()
            os.kill(pids[victim], signal.SIGKILL)
            signal.alarm(PATIENCE)
            ident, pid, nanos = self.stamp()
            signal.alarm(0)
            assert ident == victim, (ident, victim)
            pids[victim] = pid
            times.append((nanos - began) / 1e6)
        return times


class Opm:
    """A running supervisor."""

    def __init__(self, bench, root, process, pids, boot):
        self.bench, self.root, self.process, self.pids, self.boot = bench, root, process, pids, boot

    def opm(self, *args):
        return subprocess.run(
            [self.bench.opm, "--root", self.root, *args], check=True, capture_output=True, text=True
        ).stdout

    def processes(self):
        """Pids of the supervisor, and of the log keeper where there is one."""
        children = [child for task in tasks(self.process.pid) for child in read(f"{task}/children").split()]
        keeper = [int(pid) for pid in children if b"log-keeper" in read(f"/proc/{pid}/cmdline", "rb")]
        return [self.process.pid, *keeper]

    def settle(self):
        """Waits until it has nothing to do any more."""
        before = None
        while before != (now := [switches(pid) for pid in self.processes()]):
            before = now
            time.sleep(1)

    def end(self):
        return end(self.process)


def end(process):
    """Ends a supervisor; the milliseconds that it took."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    # With a timeout, Popen.wait looks only every now and then.
    signal.alarm(PATIENCE)
    process.wait()
    signal.alarm(0)
    return (time.monotonic() - began) * 1e3


def read(path, mode="r"):
    with open(path, mode) as file:
        return file.read()


def pss(pid):
    """Proportional and private memory in KiB."""
    text = read(f"/proc/{pid}/smaps_rollup")
    field = lambda name: int(re.search(rf"^{name}:\s+(\d+)", text, re.M)[1])
    return field("Pss"), field("Private_Clean") + field("Private_Dirty")


def tasks(pid):
    """The threads of a process, by their directories."""
    return [f"/proc/{pid}/task/{task}" for task in os.listdir(f"/proc/{pid}/task")]


def switches(pid):
    text = "".join(read(f"{task}/status") for task in tasks(pid))
    return sum(int(number) for number in re.findall(r"ctxt_switches:\s+(\d+)", text))


def cpu(pid):
    """Nanoseconds on a processor."""
    return sum(int(read(f"{task}/schedstat").split()[0]) for task in tasks(pid))


def system_calls(pid):
    """System calls in some idle seconds; `None` without strace."""
    if not shutil.which("strace"):
        return None
    with tempfile.NamedTemporaryFile("r") as out:
        strace = subprocess.Popen(
            ["strace", "-f", "-q", "-p", str(pid), "-o", out.name], stderr=subprocess.DEVNULL
        )
        time.sleep(IDLE_SECONDS)
        strace.send_signal(signal.SIGINT)
        strace.wait()
        threads = {}
        for line in out.read().splitlines():
            thread, call = line.split(maxsplit=1)
            threads.setdefault(thread, []).append(call)
        # Attaching interrupts the wait of each: what comes before the next one is strace's own doing.
        waits = ("epoll_wait(", "futex(", "restart_syscall(")
        begins = [[call.startswith(waits) for call in calls].index(True) for calls in threads.values()]
        return sum(len(calls) - 1 - begin for calls, begin in zip(threads.values(), begins))


def table(title, head, rows):
    print(f"\n### {title}\n")
    for row in [head, ["---"] * len(head), *rows]:
        print("| " + " | ".join(str(cell) for cell in row) + " |")


def ms(values):
    """Median, and the least."""
    return f"{statistics.median(values):.1f} ({min(values):.1f})"


LOGS = {"null": "logs: {to: null}\n", "file": ""}


def boot(bench, sizes, repeats):
    rows, memory, stops = [], [], []
    for count in sizes:
        loop, boots, ends, held = [], {kind: [] for kind in LOGS}, [], []
        loop_ends = []
        for _ in range(repeats):
            process, _, took = bench.loop(count)
            loop_ends.append(end(process))
            loop.append(took)
            for kind, more in LOGS.items():
                opm = bench.opm_run(count, more)
                boots[kind].append(opm.boot)
                opm.settle()
                held.append((kind, [pss(pid) for pid in opm.processes()]))
                ends.append(opm.end()) if kind == "null" else opm.end()
        floor = statistics.median(loop)
        ratio = {kind: statistics.median(times) / floor for kind, times in boots.items()}
        rows.append([
            count, ms(loop), ms(boots["null"]), f"{ratio['null']:.2f}",
            ms(boots["file"]), f"{ratio['file']:.2f}",
        ])
        stops.append([
            count, ms(loop_ends), ms(ends),
            f"{statistics.median(ends) / statistics.median(loop_ends):.2f}",
        ])
        for kind in LOGS:
            all_of = [pids for of, pids in held if of == kind]
            median = lambda which, part: statistics.median(pids[which][part] for pids in all_of)
            keeper = [median(1, 0), median(1, 1)] if len(all_of[0]) > 1 else ["–", "–"]
            memory.append([count, kind, median(0, 0), median(0, 1), *keeper,
                           f"{median(0, 1) / count:.1f}"])
    table("Boot: exec of opm to the first instruction of the last service, ms: median (least)",
          ["services", "C loop", "opm, `logs: {to: null}`", "× loop", "opm, logs kept", "× loop"], rows)
    table("Stop of all, from SIGTERM to the end of opm, ms: median (least)",
          ["services", "C loop of kill and wait", "opm, `logs: {to: null}`", "× loop"], stops)
    table("Memory, KiB, medians",
          ["services", "logs", "supervisor PSS", "private", "keeper PSS", "private", "supervisor private per service"], memory)


def idle(bench, sizes):
    rows = []
    for count in sizes:
        opm = bench.opm_run(count, LOGS["file"])
        opm.settle()
        pids = opm.processes()
        before = [(switches(pid), cpu(pid)) for pid in pids]
        time.sleep(IDLE_SECONDS)
        after = [(switches(pid), cpu(pid)) for pid in pids]
        for name, pid, (s0, c0), (s1, c1) in zip(["supervisor", "keeper"], pids, before, after):
            calls = system_calls(pid)
            rows.append([count, name, s1 - s0, f"{(c1 - c0) / 1e6:.2f}", "–" if calls is None else calls])
        opm.end()
    table(f"Idle for {IDLE_SECONDS} seconds, logs kept",
          ["services", "process", "context switches", "CPU ms", "system calls"], rows)


def restart(bench, sizes, kills):
    more = "restart: {policy: always, delay: 0s}\n"
    rows = []

    def row(count, name, times, floor=None):
        median, p99 = statistics.median(times), sorted(times)[int(len(times) * 0.99)]
        ratio = "1.00" if floor is None else f"{median / floor:.2f}"
        rows.append([count, name, f"{median:.2f}", ratio, f"{p99:.2f}", f"{min(times):.2f}"])
        return median

    for count in sizes:
        process, pids, _ = bench.loop(count)
        floor = row(count, "C loop", bench.kills(pids, kills))
        end(process)
        for kind in LOGS:
            opm = bench.opm_run(count, more + LOGS[kind])
            opm.settle()
            row(count, f"opm, logs: {kind}", bench.kills(opm.pids, kills), floor)
            opm.end()
    table(f"kill -9 of a service to the first instruction of its replacement, {kills} kills, ms",
          ["services", "supervisor", "median", "× loop", "p99", "least"], rows)


def hub(bench, sizes):
    """A target that requires all services: what its looks at them cost."""
    rows = []
    for count in sizes:
        used = []
        for target in (False, True):
            opm = bench.opm_run(count, LOGS["null"], target=target)
            opm.opm("wait", *(["default"] if target else []))
            used.append(cpu(opm.process.pid) / 1e6)
            opm.process.terminate()
            opm.process.wait(PATIENCE)
            bench.forget()
        rows.append([count, *(f"{ms:.0f}" for ms in used)])
    table("CPU of opm until all are up, ms, logs: null",
          ["services", "each for itself", "and a target that requires all"], rows)


def storm(bench, count):
    """Services that cannot stay up and are started again at once: the CPU time of each restart."""
    rows = []
    for kind in LOGS:
        more = "restart: {policy: always, delay: 0s}\n" + LOGS[kind]
        opm = bench.opm_run(count, more, "flash")
        began, before = time.monotonic(), cpu(opm.process.pid)
        stamps = bench.stamps_until(began + STORM_SECONDS)
        used, seconds = cpu(opm.process.pid) - before, time.monotonic() - began
        rows.append([count, kind, f"{stamps / seconds:.0f}", f"{used / stamps / 1e3:.0f}"])
        opm.process.kill()
        opm.process.wait()
        bench.forget()
    table(f"Restart storm: services that end at once, for {STORM_SECONDS} seconds",
          ["services", "logs", "restarts per second", "CPU of opm per restart, µs"], rows)


def orphans(bench, count, repeats):
    """Processes that lose their parent and end all at once, below pid 1 of a namespace."""
    inits = {"opm": [bench.opm, "run", "--"]}
    for name, argv in {"tini": ["tini", "--"], "dumb-init": ["dumb-init", "--"]}.items():
        if shutil.which(name):
            inits[name] = argv
    times = {name: [] for name in inits}
    for _ in range(repeats):
        for name, argv in inits.items():
            process = subprocess.Popen([
                "unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *argv,
                bench.floor, "orphans", bench.fifo, str(count),
            ])
            bench.running.append(process)
            signal.alarm(PATIENCE)
            (_, _, began), (_, _, over) = bench.stamp(), bench.stamp()
            process.wait()
            signal.alarm(0)
            times[name].append((over - began) / 1e6)
    table(f"{count} orphans that end at once, as pid 1: until none is left, ms: median (least)",
          list(times), [[ms(values) for values in times.values()]])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--opm", default=HERE + "/../target/release/opm")
    parser.add_argument("--sizes", default="10,100,1000")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--scratch", default="/dev/shm", help="a tmpfs, as /run is")
    parser.add_argument("--only", default="boot,idle,restart,hub,storm,orphans")
    parser.add_argument("--orphans", type=int, default=10000)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sizes = [int(size) for size in args.sizes.split(",")]
    bench = Bench(args.opm, args.scratch)
    parts = args.only.split(",")
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} processors, Linux {platform.release()}, load {load:.1f} at the start; "
          f"{args.repeats} repeats")
    try:
        if "boot" in parts:
            boot(bench, sizes, args.repeats)
        if "idle" in parts:
            idle(bench, sizes)
        if "restart" in parts:
            restart(bench, sorted({min(sizes), max(sizes)}), args.kills)
        if "hub" in parts:
            hub(bench, sizes)
        if "storm" in parts:
            storm(bench, 100)
        if "orphans" in parts:
            orphans(bench, args.orphans, args.repeats)
    finally:
        for process in bench.running:
            process.terminate()
        for process in bench.running:
            process.wait(PATIENCE)
        shutil.rmtree(bench.dir, ignore_errors=True)


if __name__ == "__main__":
    main()
