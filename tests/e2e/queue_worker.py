"""A worker with a reliable queue, as the libraries for such queues do it.

It moves a job from `jobs` into a list of its own, does it, and takes it out. What it finds in its
list when it starts was left half done: it counts that as abandoned. SIGTERM ends it after the job at
hand. It has a port of its own by its index, as for metrics, and holds a lock for as long as it lives.
It writes down when it is ready and when it ends.
"""

import fcntl
import os
import signal
import socket
import sys
import time

NAME = os.environ["NAME"]
DOING = "doing:" + NAME
quiet = False


def note(file, text):
    with open(file, "a") as out:
        out.write(text + "\n")


class Redis:
    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect("redis.sock")
        self.lines = self.socket.makefile("rb")

    def ask(self, *words):
        parts = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        self.socket.sendall(f"*{len(words)}\r\n{parts}".encode())
        return self.answer()

    def answer(self):
        kind, rest = (line := self.lines.readline())[:1], line[1:].strip().decode()
        if kind == b"-":
            sys.exit(f"redis says {rest}")
        if kind == b"*":
            return None  # Nothing is asked that has a list for an answer; -1 of them is nothing.
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self.lines.read(size + 2)[:-2].decode()
        return rest


def end(*_):
    global quiet
    quiet = True


def main():
    signal.signal(signal.SIGTERM, end)
    lock = open(NAME + ".lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        note("doubles", NAME)
        sys.exit(99)
    redis = Redis()
    if redis.ask("LLEN", DOING) != "0":
        redis.ask("INCR", "abandoned")
    metrics = socket.socket()
    metrics.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    metrics.bind(("127.0.0.1", int(os.environ["BASE_PORT"]) + int(os.environ["INDEX"])))
    metrics.listen()
    note("turns", "+ " + NAME)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.connect(os.environ["NOTIFY_SOCKET"])
        to.sendall(b"READY=1")
    while not quiet:
        job = redis.ask("BLMOVE", "jobs", DOING, "LEFT", "RIGHT", "0.05")
        if job is None:
            continue
        redis.ask("HINCRBY", "begun", job, "1")
        time.sleep(0.02)
        redis.ask("HINCRBY", "done", job, "1")
        redis.ask("HINCRBY", "by", NAME, "1")
        redis.ask("LREM", DOING, "1", job)
    note("turns", "- " + NAME)


main()
