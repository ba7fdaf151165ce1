#!/usr/bin/env python3
"""opm beside other supervisors, in one run: cargo build --release && benches/peers.py

Prints the tables under "Beside others" in docs/PERFORMANCE.md, for those of s6, runit, supervisor and
horust that are installed. Needs a C compiler. What is measured, and the loop beside it, are those of
machine.py. Everything is started below this process, which is the subreaper of all: nobody gets
away, and a stop is over when nobody is left.
"""

import argparse
import ctypes
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time

from machine import Bench, IDLE_SECONDS, STORM_SECONDS, cpu, ms, pss, read, switches, table, tasks

PR_SET_CHILD_SUBREAPER = 36
SETTLE_SECONDS = 10
KILLS = 30
CRASHED = 10
# The slowest here starts a service that was lost within so many seconds.
CRASH_SECONDS = 6


def write(path, text, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, mode)


class Peer:
    """A supervisor with COUNT services that it is to start again at once."""

    name, program, stop = None, None, signal.SIGTERM

    def __init__(self, bench):
        self.bench = bench

    def version(self):
        return ""

    def argv(self, root, services):
        """Writes what it reads below `root`; the command that starts it."""
        raise NotImplementedError

    def services(self, count, act="service"):
        return {f"s{i:04}": [self.bench.floor, act, self.bench.fifo, str(i)] for i in range(count)}


def package(name):
    """The version of a Debian package."""
    return subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", name], capture_output=True, text=True
    ).stdout


class Loop(Peer):
    name, program = "C loop", "cc"

    def argv(self, root, services):
        return [self.bench.floor, "loop", self.bench.fifo, str(len(services))]


class Opm(Peer):
    name, program = "opm", "true"

    def version(self):
        return subprocess.run([self.bench.opm, "--version"], capture_output=True, text=True).stdout.split()[-1]

    def argv(self, root, services):
        for name, command in services.items():
            write(f"{root}/units/{name}.yaml",
                  f"command: [{', '.join(command[:3])}, '{command[3]}']\n"
                  "restart: {policy: always, delay: 0s}\nlogs: {to: null}\n")
        return [self.bench.opm, "--root", root, "run", "--quiet", root + "/units"]


class S6(Peer):
    name, program = "s6", "s6-svscan"

    def version(self):
        return package("s6")

    def argv(self, root, services):
        for name, command in services.items():
            write(f"{root}/scan/{name}/run", without_shell(command), 0o755)
        return ["s6-svscan", "-c", str(2 * len(services) + 50), root + "/scan"]


class Runit(Peer):
    # TERM leaves its services running.
    name, program, stop = "runit", "runsvdir", signal.SIGHUP

    def version(self):
        return package("runit")

    def argv(self, root, services):
        for name, command in services.items():
            write(f"{root}/scan/{name}/run", without_shell(command), 0o755)
        return ["runsvdir", root + "/scan"]


class Supervisord(Peer):
    name, program = "supervisord", "supervisord"

    def version(self):
        return package("supervisor")

    def argv(self, root, services):
        text = [f"[supervisord]\nnodaemon=true\nlogfile={root}/log\npidfile={root}/pid\nuser=root\n"
                f"minfds={1024 + 3 * len(services)}\n"]
        text += [f"[program:{name}]\ncommand={' '.join(command)}\nautorestart=true\nstartsecs=0\n"
                 "startretries=1000000\nstdout_logfile=NONE\nstderr_logfile=NONE\n"
                 for name, command in services.items()]
        write(root + "/conf", "\n".join(text))
        return ["supervisord", "-n", "-c", root + "/conf"]


class Horust(Peer):
    name, program = "horust", "horust"

    def argv(self, root, services):
        os.makedirs(root + "/sockets")
        for name, command in services.items():
            write(f"{root}/services/{name}.toml",
                  f'command = "{" ".join(command)}"\n'
                  '[restart]\nstrategy = "always"\nbackoff = "0s"\nattempts = 1000000\n')
        return ["horust", "--services-path", root + "/services", "--uds-folder-path", root + "/sockets"]


def without_shell(command):
    """A script that is the program itself: the kernel passes one argument."""
    return f"#!{command[0]} {':'.join(command[1:])}\n"


class Run:
    """A supervisor that was started."""

    def __init__(self, peer, count, act="service"):
        self.peer, self.bench = peer, peer.bench
        self.bench.runs += 1
        self.root = f"{self.bench.dir}/{self.bench.runs}"
        program, *args = peer.argv(self.root, peer.services(count, act))
        self.argv = [shutil.which(program), *args]
        # Who looks for directories that have changed starts nothing in one of this very second.
        time.sleep(1.2)
        self.start()
        self.pids, last = self.bench.all_begun(count)
        self.boot = (last - self.began) / 1e6

    def start(self):
        self.process, self.began = self.bench.run(self.argv)

    def own(self):
        """The pids of the supervisor and its helpers."""
        return [pid for pid, words in below(os.getpid()) if words[0] != self.bench.floor.encode()
                or words[1:2] == [b"loop"]]

    def alive(self):
        """How many processes of each service there are."""
        counts = {}
        for _, words in below(os.getpid()):
            if words[0] == self.bench.floor.encode() and words[1:2] != [b"loop"]:
                counts[words[3]] = counts.get(words[3], 0) + 1
        return counts

    def settle(self):
        """Waits until it has nothing to do, or for as long as one waits for those that never have."""
        until, before = time.monotonic() + SETTLE_SECONDS, None
        while time.monotonic() < until and before != (now := self.looks()):
            before = now
            # opm looks once more a second after the last start.
            time.sleep(2)

    def looks(self):
        """How often each of its processes was switched to or from; nothing where one ended meanwhile."""
        try:
            return [switches(pid) for pid in self.own()]
        except (FileNotFoundError, ProcessLookupError):
            return []

    def end(self):
        """Ends it; the milliseconds until nobody is left."""
        began = time.monotonic()
        self.process.send_signal(self.peer.stop)
        reap_all()
        took = (time.monotonic() - began) * 1e3
        self.process.wait()
        self.bench.running.remove(self.process)
        return took

    def kill(self):
        """Ends all that there is."""
        while pids := [pid for pid, _ in below(os.getpid())]:
            kill_all(pids)
            reap_all()
        self.process.wait()
        self.bench.running.remove(self.process)
        self.bench.forget()


def below(pid):
    """The pids of all descendants that are no zombies, and their command lines."""
    found, todo = [], [pid]
    while todo:
        try:
            lists = [read(f"{task}/children") for task in tasks(todo.pop())]
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in map(int, " ".join(lists).split()):
            todo.append(child)
            try:
                words = read(f"/proc/{child}/cmdline", "rb").split(b"\0")[:-1]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if words:
                found.append((child, words))
    return found


def kill_all(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def reap_all():
    """Waits until there is no descendant any more."""
    signal.alarm(120)
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass
    signal.alarm(0)


def sizes_and_speed(peers, count, repeats):
    """Boot, stop, memory, idle."""
    held = {peer.name: ([], [], [], [], []) for peer in peers}
    for _ in range(repeats):
        for peer in peers:
            boots, stops, memory, helpers, idle = held[peer.name]
            run = Run(peer, count)
            boots.append(run.boot)
            run.settle()
            pids = run.own()
            helpers.append(len(pids))
            memory.append(sum(pss(pid)[0] for pid in pids))
            if not idle:
                before = sum(cpu(pid) for pid in pids), sum(switches(pid) for pid in pids)
                time.sleep(IDLE_SECONDS)
                idle += [(sum(cpu(pid) for pid in pids) - before[0]) / 1e6,
                         sum(switches(pid) for pid in pids) - before[1]]
            stops.append(run.end())
    loop = statistics.median(held["C loop"][0]), statistics.median(held["C loop"][1])
    table(f"{count} services: ms, median (least); KiB; in {IDLE_SECONDS} idle seconds",
          ["supervisor", "boot", "× loop", "stop", "× loop", "its processes", "PSS KiB", "idle CPU ms", "switches"],
          [[name, ms(boots), f"{statistics.median(boots) / loop[0]:.2f}",
            ms(stops), f"{statistics.median(stops) / loop[1]:.1f}",
            max(helpers), statistics.median(memory), f"{idle[0]:.1f}", idle[1]]
           for name, (boots, stops, memory, helpers, idle) in held.items()])


def restarts(peers, count):
    rows = []
    for peer in peers:
        run = Run(peer, count)
        run.settle()
        times = run.bench.kills(run.pids, KILLS)
        rows.append([peer.name, f"{statistics.median(times):.2f}", f"{max(times):.2f}", f"{min(times):.2f}"])
        run.end()
    table(f"Among {count}: kill -9 of a service to the first instruction of its replacement, {KILLS} kills, ms",
          ["supervisor", "median", "most", "least"], rows)


def storm(peers, count):
    rows = []
    for peer in peers:
        if peer.name == "C loop":
            continue
        run = Run(peer, count, "flash")
        pids = run.own()
        began, before = time.monotonic(), {pid: cpu(pid) for pid in pids}
        stamps = run.bench.stamps_until(began + STORM_SECONDS)
        seconds = time.monotonic() - began
        used = sum(cpu(pid) - before[pid] for pid in pids)
        rows.append([peer.name, f"{stamps / seconds:.0f}", f"{used / max(stamps, 1) / 1e3:.0f}"])
        run.kill()
    table(f"{count} services that end at once, for {STORM_SECONDS} seconds",
          ["supervisor", "restarts per second", "CPU of it per restart, µs"], rows)


def crash(peers):
    """kill -9 of the supervisor, or of all that is its own; then the same command again."""
    rows = []
    for peer in peers:
        if peer.name == "C loop":
            continue
        row = [peer.name]
        for everything in (False, True):
            run = Run(peer, CRASHED)
            run.settle()
            first = set(run.pids.values())
            kill_all(run.own() if everything else [run.process.pid])
            run.process.wait()
            run.bench.running.remove(run.process)
            run.start()
            time.sleep(CRASH_SECONDS)
            alive = run.alive()
            kept = first & {pid for pid, _ in below(os.getpid())}
            row += [len(kept), sum(1 for many in alive.values() if many > 1), CRASHED - len(alive)]
            run.kill()
        rows.append(row)
    table(f"{CRASHED} services, kill -9 of the supervisor alone, or of all its processes; {CRASH_SECONDS} s after the same command again",
          ["supervisor", "alone: services that went on", "twice", "gone", "all: went on", "twice", "gone"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--opm", default=os.path.dirname(os.path.abspath(__file__)) + "/../target/release/opm")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", help="names, with commas between; default: all that are installed")
    parser.add_argument("--scratch", default="/dev/shm", help="a tmpfs, as /run is")
    parser.add_argument("--only", default="boot,restart,storm,crash")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    bench = Bench(args.opm, args.scratch)
    peers = [kind(bench) for kind in (Loop, Opm, S6, Runit, Supervisord, Horust) if shutil.which(kind.program)]
    if args.peers:
        wanted = ["C loop", *args.peers.split(",")]
        peers = [peer for peer in peers if peer.name in wanted]
    print(f"{os.cpu_count()} processors, Linux {platform.release()}, load {os.getloadavg()[0]:.1f} at the start; "
          f"{args.repeats} repeats; " + ", ".join(f"{peer.name} {peer.version()}".strip() for peer in peers))
    parts = args.only.split(",")
    try:
        if "boot" in parts:
            sizes_and_speed(peers, args.count, args.repeats)
        if "restart" in parts:
            restarts(peers, args.count)
        if "storm" in parts:
            storm(peers, 100)
        if "crash" in parts:
            crash(peers)
    finally:
        kill_all([pid for pid, _ in below(os.getpid())])
        shutil.rmtree(bench.dir, ignore_errors=True)


if __name__ == "__main__":
    main()
