"""Shared by the tests: the hub's cache laid on disk, and a small hub of our own."""

import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(cache, repository, files, revision="main", commit=COMMIT):
    """Lays a repository into the hub's cache, as a download leaves it; returns the snapshot."""
    top = cache / f"models--{repository.replace('/', '--')}"
    snapshot = top / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (top / "refs").mkdir(exist_ok=True)
    (top / "refs" / revision).write_text(commit)
    (top / "blobs").mkdir(exist_ok=True)
    for name, content in files.items():
        blob = hashlib.sha256(content).hexdigest()
        (top / "blobs" / blob).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    return snapshot


@contextmanager
def served(repository, files, commit=COMMIT):
    """A hub with one repository, of the branch main; yields its address and the files it gave."""
    given = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.path.partition("?")[0]
            api = f"/api/models/{repository}"
            if path in (f"{api}/revision/main", f"{api}/revision/{commit}"):
                siblings = [{"rfilename": name} for name in files]
                self.answer(json.dumps({"id": repository, "sha": commit, "siblings": siblings}))
            elif path == f"{api}/tree/{commit}":
                listed = [
                    {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for n, c in files.items()
                ]
                self.answer(json.dumps(listed))
            elif found := re.fullmatch(f"/{repository}/resolve/{commit}/(.+)", path):
                given.append(found[1])
                self.answer(files[found[1]])
            else:
                known = path.startswith(api)
                code = "RevisionNotFound" if known else "RepoNotFound"
                self.answer("", 404, {"X-Error-Code": code, "X-Error-Message": "not found"})

        def answer(self, body, status=200, headers=()):
            body = body if isinstance(body, bytes) else body.encode()
            self.send_response(status)
            for name, value in dict(headers).items():
                self.send_header(name, value)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", given
    finally:
        server.shutdown()
        server.server_close()
