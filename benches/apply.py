#!/usr/bin/env python3
"""What plans and applies of many units cost: cargo build --release && benches/apply.py

Prints the table on deployments of docs/PERFORMANCE.md. Each unit is a file of its own. Processor time
and the largest resident size are of the command and of the daemon, each for this command alone.
"""

import argparse
import ctypes
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
PR_SET_CHILD_SUBREAPER = 36
TICKS = os.sysconf("SC_CLK_TCK")
UNIT = """command: [sleep, infinity]
description: unit {i} of many
env: {{PORT: "{port}", RELEASE: "{release}"}}
working_dir: /tmp
restart: {{policy: always, delay: 1s}}
logs: {{to: null}}
{more}"""


class Machine:
    """A directory with units, and a daemon over them."""

    def __init__(self, opm, scratch, count, more):
        self.opm, self.count, self.more = os.path.abspath(opm), count, more
        self.dir = tempfile.mkdtemp(prefix="opm-apply-", dir=scratch)
        self.units = self.dir + "/units"
        os.makedirs(self.units)
        for i in range(count):
            self.write(i, "1")
        self.daemon = None

    def write(self, i, release):
        with open(f"{self.units}/s{i:05}.yaml", "w") as unit:
            unit.write(UNIT.format(i=i, port=1024 + i % 60000, release=release, more=self.more))

    def measure(self, *args):
        """Milliseconds, and processor milliseconds and KiB of the command and of the daemon."""
        if self.daemon:
            before = self.daemon_cpu()
            with open(f"/proc/{self.daemon}/clear_refs", "w") as file:
                file.write("5")  # The high-water mark begins anew: proc_pid_clear_refs(5).
        began = time.monotonic()
        # A program's largest size includes that of the process which executes it. A shell is small;
        # it leaves the command to us, who are a subreaper.
        shell = subprocess.Popen(
            ["sh", "-c", '"$@" &', "sh", self.opm, "--root", self.dir + "/root", *args],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        said = shell.stdout.read()
        shell.wait()
        _, status, usage = os.wait4(-1, 0)
        wall = (time.monotonic() - began) * 1e3
        assert status == 0, said[-2000:].decode()
        own = (usage.ru_utime + usage.ru_stime) * 1e3
        if not self.daemon:
            with open(self.dir + "/root/state/lock") as lock:
                self.daemon = int(lock.read())
            before = 0
        peak = next(line for line in open(f"/proc/{self.daemon}/status") if line.startswith("VmHWM"))
        return wall, own, usage.ru_maxrss, self.daemon_cpu() - before, int(peak.split()[1]), said

    def daemon_cpu(self):
        with open(f"/proc/{self.daemon}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) * 1000 / TICKS

    def end(self):
        """Ends the daemon, which is our child by now."""
        subprocess.run([self.opm, "--root", self.dir + "/root", "shutdown"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.waitpid(self.daemon, 0)
        shutil.rmtree(self.dir, ignore_errors=True)


def rows(machine, what, repeats):
    """The first apply, then medians of a plan, an apply of the same, and one that changes a unit."""
    units = machine.units

    def row(name, found):
        numbers = [statistics.median(each) for each in list(zip(*found))[:5]]
        cells = [f"{number:.0f}" for number in numbers]
        print("| " + " | ".join([f"{machine.count}, {what}", name, *cells]) + " |", flush=True)

    def change():
        machine.write(machine.count // 2, str(time.monotonic_ns()))
        found = machine.measure("apply", units)
        assert b"1 changed" in found[5], found[5]
        return found

    row("first apply", [machine.measure("apply", units)])
    row("plan", [machine.measure("plan", units) for _ in range(repeats)])
    row("apply, no change", [machine.measure("apply", units) for _ in range(repeats)])
    row("apply, one changes", [change() for _ in range(repeats)])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--opm", default=HERE + "/../target/release/opm")
    parser.add_argument("--up", default="1000", help="so many units that run sleep(1)")
    parser.add_argument("--known", default="1000,10000", help="so many that are not enabled")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scratch", default="/dev/shm", help="a tmpfs, as /run is")
    args = parser.parse_args()
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    print(f"{os.cpu_count()} processors, Linux {platform.release()}, load {os.getloadavg()[0]:.1f} "
          f"at the start; medians of {args.repeats}\n")
    head = ["units", "command", "ms", "its CPU ms", "its KiB", "daemon's CPU ms", "daemon's KiB"]
    print("| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|")
    sorts = [("up", args.up, ""), ("not enabled", args.known, "enabled: false\n")]
    for what, counts, more in sorts:
        for count in filter(None, counts.split(",")):
            machine = Machine(args.opm, args.scratch, int(count), more)
            try:
                rows(machine, what, args.repeats)
            finally:
                machine.end()


if __name__ == "__main__":
    main()
