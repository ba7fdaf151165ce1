"""A web program and its worker over one database, which they ask through psql.

`app.py web` answers each request with its release, its pid and what the database says of itself;
`app.py worker` does the jobs that it finds, one after the other.
"""

import http.server
import os
import shlex
import signal
import socket
import subprocess
import sys
import time

RELEASE = os.environ["RELEASE"]
PSQL = shlex.split(os.environ["PSQL"]) + ["-v", "ON_ERROR_STOP=1", "-qAt", "-c"]
JOB = """update jobs set done = done + 1, by = '%s' where id =
         (select id from jobs where done = 0 order by id limit 1 for update skip locked)
         returning id""" % RELEASE


def ask(statement):
    return subprocess.run(PSQL + [statement], check=True, capture_output=True, text=True).stdout.strip()


def ready():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.connect(os.environ["NOTIFY_SOCKET"])
        to.sendall(b"READY=1")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        title = ask("select title from pages where id = 1")
        body = f"{RELEASE} {os.getpid()} {title}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def end(*_):
    sys.exit(0)


signal.signal(signal.SIGTERM, end)
if sys.argv[1] == "web":
    http.server.ThreadingHTTPServer.allow_reuse_address = True
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
    ready()
    server.serve_forever()
ask("select count(*) from jobs")
ready()
while True:
    if not ask(JOB):
        time.sleep(0.05)
