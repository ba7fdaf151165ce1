#!/usr/bin/env python3
"""What keeping logs costs: cargo build --release && benches/logs.py

Prints the tables on logs of docs/PERFORMANCE.md. Every logger reads the same FIFOs, one for each
service, and each service is a program that writes lines of 100 bytes in pieces of 4,000, as the C
library does into a pipe. A round ends when the logger has: it is told to end when the writers have.
svlogd, s6-log and supervisord are measured where they are installed.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
LINE = b"x" * 99 + b"\n"
PIECE = LINE * 40
FILE_BYTES = 64 << 20
KEEP = 4
WRITER = """
import os, sys
out, left, piece = int(sys.argv[1]), int(sys.argv[2]), (b"x" * 99 + b"\\n") * 40
if len(sys.argv) == 3:
    os.write(1, b"r")
    os.read(0, 1)
while left > 0:
    left -= os.write(out, piece)
"""


class Round:
    """A directory with FIFOs, and what reads them."""

    def __init__(self, opm, scratch, services):
        self.opm = opm
        self.dir = tempfile.mkdtemp(prefix="opm-logs-", dir=scratch)
        self.names = [f"s{number}" for number in range(services)]
        self.readers, self.ends, self.memory = [], [], 0
        os.makedirs(self.dir + "/log")

    def fifo(self, name):
        return f"{self.dir}/log/{name}.fifo"

    def make_fifos(self):
        for name in self.names:
            os.mkfifo(self.fifo(name))
            # As opm opens them for a service: nobody has to wait for anybody.
            self.ends.append(os.open(self.fifo(name), os.O_RDWR))

    def spawn(self, argv, **more):
        self.readers.append(subprocess.Popen(argv, stderr=subprocess.DEVNULL, **more))

    def write(self, total):
        share = total // len(self.names)
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, str(end), str(share)], pass_fds=[end],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for end in self.ends
        ]
        for writer in writers:
            assert writer.stdout.read(1) == b"r"
        begun = time.monotonic()
        for writer in writers:
            writer.stdin.close()
        for writer in writers:
            assert writer.wait() == 0
            writer.stdout.close()
        self.measure()
        for end in self.ends:
            os.close(end)
        self.ends = []
        return begun

    def measure(self):
        """The most memory that the readers had, while all of them live."""
        for reader in self.readers:
            with open(f"/proc/{reader.pid}/status", encoding="utf-8") as file:
                self.memory += next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

    def end(self, begun, total):
        """MB/s, CPU seconds and KiB of all readers."""
        cpu = 0
        for reader in self.readers:
            _, status, used = os.wait4(reader.pid, 0)
            reader.returncode = status
            cpu += used.ru_utime + used.ru_stime
        return total / (time.monotonic() - begun) / 1e6, cpu, self.memory

    def remove(self):
        for reader in self.readers:
            if reader.returncode is None:
                reader.kill()
                reader.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


def keeper(round_, **more):
    """opm's log keeper, told as the supervisor tells it."""
    for name in round_.names:
        told = {"to": "file", "max_size": FILE_BYTES, "keep": KEEP, "dir": f"{round_.dir}/kept/{name}"}
        with open(f"{round_.dir}/log/{name}.json", "w", encoding="utf-8") as file:
            json.dump({**told, **more}, file)
    round_.spawn([round_.opm, "log-keeper", "--run-dir", round_.dir], stdout=subprocess.DEVNULL)


def opm(**more):
    def run(round_, total):
        round_.make_fifos()
        keeper(round_, **more)
        for name in round_.names:
            wait_for(lambda: is_open(round_.readers[0].pid, round_.fifo(name)))
        begun = round_.write(total)
        round_.readers[0].terminate()
        return round_.end(begun, total)

    return run


def each(command):
    """One process for each FIFO, that ends when its FIFO does."""

    def run(round_, total):
        round_.make_fifos()
        for name in round_.names:
            os.makedirs(f"{round_.dir}/kept/{name}")
            with open(f"{round_.dir}/kept/{name}/config", "w", encoding="utf-8") as file:
                file.write(f"s{FILE_BYTES}\nn{KEEP}\n")
            argv = command(f"{round_.dir}/kept/{name}")
            with open(round_.fifo(name), "rb") as fifo, open(round_.dir + "/" + name, "wb") as out:
                round_.spawn(argv, stdin=fifo, stdout=out)
        begun = round_.write(total)
        return round_.end(begun, total)

    return run


def supervisord(round_, total):
    """It has pipes of its own: the writers are its programs."""
    share = total // len(round_.names)
    marks = [f"{round_.dir}/{name}.done" for name in round_.names]
    with open(round_.dir + "/writer.py", "w", encoding="utf-8") as file:
        file.write(WRITER + "\nopen(sys.argv[3], 'w')\n")
    text = f"[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={round_.dir}/pid\n"
    for name, mark in zip(round_.names, marks):
        text += (f"[program:{name}]\ncommand={sys.executable} {round_.dir}/writer.py 1 {share} {mark}\n"
                 f"autorestart=false\nstartsecs=0\nredirect_stderr=true\nstdout_logfile={round_.dir}/{name}.log\n"
                 f"stdout_logfile_maxbytes={FILE_BYTES}\nstdout_logfile_backups={KEEP}\n")
    with open(round_.dir + "/conf", "w", encoding="utf-8") as file:
        file.write(text)
    begun = time.monotonic()
    round_.spawn(["supervisord", "-c", round_.dir + "/conf"], stdout=subprocess.DEVNULL)
    wait_for(lambda: all(os.path.exists(mark) for mark in marks))
    round_.measure()
    round_.readers[0].terminate()
    return round_.end(begun, total)


LOGGERS = {
    "`cat > file`": ("cat", each(lambda _: ["cat"])),
    "opm": (None, opm()),
    "opm, `compress`": (None, opm(compress=True)),
    "svlogd -tt": ("svlogd", each(lambda path: ["svlogd", "-tt", path])),
    "s6-log T": ("s6-log", each(lambda path: ["s6-log", f"n{KEEP}", f"s{FILE_BYTES}", "T", path])),
    "supervisord, no times": ("supervisord", supervisord),
}


def wait_for(fact, patience=120):
    end = time.monotonic() + patience
    while not fact():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.001)


def is_open(pid, path):
    descriptors = f"/proc/{pid}/fd"
    try:
        return any(os.readlink(f"{descriptors}/{fd}") == path for fd in os.listdir(descriptors))
    except OSError:
        return False


def table(title, heads, rows):
    print(f"\n### {title}\n\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |")
    sys.stdout.flush()


def throughput(args):
    for services in (1, 16):
        found = {name: [] for name, (needed, _) in LOGGERS.items() if not needed or shutil.which(needed)}
        # In turn, so that what else the machine does meets all of them.
        for _ in range(args.repeats):
            for name, results in found.items():
                round_ = Round(args.opm, args.scratch, services)
                try:
                    results.append(LOGGERS[name][1](round_, args.bytes))
                finally:
                    round_.remove()
        rows = []
        for name, results in found.items():
            rate, cpu, memory = (statistics.median(column) for column in zip(*results))
            rows.append([name, f"{rate:.0f}", f"{cpu:.2f}", f"{memory:.0f}"])
        table(f"{args.bytes >> 20} MiB of 100-byte lines from {services} at once, medians of {args.repeats}",
              ["logger", "MB/s", "CPU s", "memory KiB"], rows)


def write_log(path, total):
    """Records a millisecond apart, in files of 64 MiB."""
    os.makedirs(path)
    size, number, second = 0, 0, 0
    while size < total:
        number += 1
        with open(f"{path}/{number:08}.log", "wb") as file:
            while file.tell() < FILE_BYTES:
                head = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(1_700_000_000 + second)).encode()
                file.write(b"".join(b"%s.%06dZ stdout F " % (head, ms * 1000) + LINE for ms in range(1000)))
                second += 1
        size += FILE_BYTES
    return second


def finding(args):
    rows = []
    round_ = Round(args.opm, args.scratch, 1)
    try:
        log = round_.dir + "/kept/s0"
        seconds = write_log(log, 2 << 30)
        os.rename(log + f"/{(2 << 30) // FILE_BYTES:08}.log", log + "/current")
        os.rename(round_.dir + "/kept", round_.dir + "/root-log")
        os.makedirs(round_.dir + "/root")
        os.rename(round_.dir + "/root-log", round_.dir + "/root/log")
        at = lambda second: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1_700_000_000 + second))
        asked = {
            "one second in the middle": ["--since", at(seconds // 2), "--until", at(seconds // 2)],
            "the last second": ["--since", at(seconds - 1)],
            "the last 10 lines of the middle": ["--until", at(seconds // 2), "-n", "10"],
            "all, for one that is not there": ["--grep", "nowhere"],
        }
        for kind in ("plain", "compressed"):
            if kind == "compressed":
                compress(round_, log.replace("/kept/", "/root/log/"))
            for name, options in asked.items():
                times = []
                for _ in range(args.repeats):
                    begun = time.monotonic()
                    argv = [args.opm, "--root", round_.dir + "/root", "logs", "--raw", *options]
                    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
                    times.append((time.monotonic() - begun) * 1e3)
                rows.append([name, kind, f"{statistics.median(times):.1f}"])
    finally:
        round_.remove()
    table("`opm logs` on a log of 2 GiB in 32 files, ms", ["what", "files", "median"], rows)


def compress(round_, log):
    told = {"to": "file", "max_size": FILE_BYTES, "keep": 1000, "dir": log, "compress": True}
    with open(f"{round_.dir}/log/s0.json", "w", encoding="utf-8") as file:
        json.dump(told, file)
    round_.spawn([round_.opm, "log-keeper", "--run-dir", round_.dir], stdout=subprocess.DEVNULL)
    begun = time.monotonic()
    wait_for(lambda: all(name.endswith(".gz") or name == "current" for name in os.listdir(log)), 900)
    size = sum(os.path.getsize(f"{log}/{name}") for name in os.listdir(log) if name.endswith(".gz"))
    print(f"\ncompressed in {time.monotonic() - begun:.0f} s to {size >> 20} MiB")
    round_.readers[0].terminate()
    round_.readers[0].wait()


def latency(args, samples=200):
    round_ = Round(args.opm, args.scratch, 1)
    try:
        os.makedirs(round_.dir + "/root/log")
        round_.make_fifos()
        told = {"to": "file", "max_size": FILE_BYTES, "keep": KEEP, "dir": round_.dir + "/root/log/s0"}
        with open(f"{round_.dir}/log/s0.json", "w", encoding="utf-8") as file:
            json.dump(told, file)
        round_.spawn([args.opm, "log-keeper", "--run-dir", round_.dir], stdout=subprocess.DEVNULL)
        os.write(round_.ends[0], b"begin\n")
        argv = [args.opm, "--root", round_.dir + "/root", "logs", "-f", "--raw"]
        round_.spawn(argv, stdout=subprocess.PIPE)
        out = round_.readers[1].stdout
        assert out.readline() == b"begin\n"
        times = []
        for number in range(samples):
            begun = time.monotonic()
            os.write(round_.ends[0], b"%d\n" % number)
            assert out.readline() == b"%d\n" % number
            times.append((time.monotonic() - begun) * 1e3)
            time.sleep(0.005)
        times.sort()
        table(f"From the write of a line to its coming out of `opm logs -f`, {samples} lines, ms",
              ["median", "p99", "least"],
              [[f"{times[samples // 2]:.2f}", f"{times[samples * 99 // 100]:.2f}", f"{times[0]:.2f}"]])
    finally:
        round_.remove()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--opm", default=HERE + "/../target/release/opm")
    parser.add_argument("--bytes", type=int, default=1 << 30)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scratch", default="/dev/shm", help="a tmpfs: no disk is measured")
    parser.add_argument("--only", default="throughput,finding,latency")
    args = parser.parse_args()
    args.opm = os.path.abspath(args.opm)
    print(f"{os.cpu_count()} processors, Linux {platform.release()}, load {os.getloadavg()[0]:.1f} at the start")
    for part in args.only.split(","):
        {"throughput": throughput, "finding": finding, "latency": latency}[part](args)


if __name__ == "__main__":
    main()
