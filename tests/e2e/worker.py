"""A worker as people write them: it needs the database, takes its time, and says when it is ready.

It answers each request with its pid, what GREETING says, and how often a worker was started (the
database counts). It witnesses doubles in two ways: it holds a lock for as long as it lives, and it
writes down every bind of its port.
"""

import fcntl
import http.server
import os
import signal
import socket
import sys
import time


def note(file, text):
    with open(file, "a") as out:
        out.write(text + "\n")


def redis(*words):
    """One command to the database, and its answer's first line."""
    with socket.socket(socket.AF_UNIX) as to:
        to.connect("redis.sock")
        parts = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        to.sendall(f"*{len(words)}\r\n{parts}".encode())
        return to.makefile("r").readline().strip()


def ready():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.connect(os.environ["NOTIFY_SOCKET"])
        to.sendall(b"STATUS=serving\nREADY=1")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{os.getpid()} {os.environ['GREETING']} {count}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


lock = open("worker.lock", "a")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    note("doubles", f"worker {os.getpid()}")
    sys.exit(99)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
count = redis("INCR", "starts").lstrip(":")
time.sleep(float(os.environ["STARTS_IN"]))
port = int(os.environ["PORT"])
try:
    server = http.server.HTTPServer(("127.0.0.1", port), Handler)
except OSError as error:
    note("binds", f"{os.getpid()} {error}")
    raise
note("binds", f"{os.getpid()} bound {port}")
ready()
server.serve_forever()
