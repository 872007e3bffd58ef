"""Getting data sets: against a local server that does everything wrong, and hostile archives."""

import errno
import gzip
import hashlib
import http.server
import io
import json
import shutil
import tarfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest

from backspike import data
from backspike.cli import main
from backspike.data import fetch
from backspike.data.sets.mnist import MNIST
from backspike.data.source import Archive, File, Layout
from backspike.data.unpack import unpack
from backspike.errors import DataError

CONTENT = bytes(range(256)) * 2000  # several blocks


def md5(content):
    return hashlib.md5(content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """GET /BEHAVIOUR/...; the server has `contents` by the last part of the path."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        behaviour, name = self.path.strip("/").split("/")[:2]
        body = server.contents.get(name, b"")
        count = sum(path == self.path for path, _ in server.requests)
        getattr(self, behaviour.replace("-", "_"))(body, count)

    def good(self, body, count, status=200):
        asked, start = self.headers.get("Range"), 0
        if asked:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_error(416)
                return
            status = 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:])

    def without_ranges(self, body, count):
        del self.headers["Range"]
        self.good(body, count)

    def truncated(self, body, count):
        """Every answer ends after 200,000 bytes of what was asked for."""
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : start + 200_000])

    def cut_once(self, body, count):
        (self.truncated if count == 1 else self.good)(body, count)

    def stalled(self, body, count):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:1000])
        self.wfile.flush()
        self.server.released.wait(20)

    def forbidden(self, body, count):
        self.send_error(403)

    def corrupted(self, body, count):
        self.good(b"x" + body[1:], count)

    def shorter(self, body, count):
        self.good(body[:-1], count)

    def endless(self, body, count):
        self.send_response(200)
        self.end_headers()
        for _ in range(40):
            self.wfile.write(body)

    def other_range(self, body, count):
        self.send_response(206)
        self.send_header("Content-Range", f"bytes 0-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def redirected(self, body, count):
        self.send_response(302)
        self.send_header("Location", f"/good/{self.path.split('/')[2]}")
        self.end_headers()

    def to_a_file(self, body, count):
        self.send_response(302)
        self.send_header("Location", "file:///etc/passwd")
        self.end_headers()

    def in_a_circle(self, body, count):
        self.send_response(302)
        self.send_header("Location", self.path)
        self.end_headers()

    def log_message(self, *_):
        pass

    def handle(self):
        with suppress(ConnectionError):  # the other side has enough
            super().handle()


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.contents, server.requests = {"a.npy": CONTENT}, []
    server.released = threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def source(server, *behaviours, size=None, known=True):
    urls = tuple(f"{server.url}/{behaviour}/a.npy" for behaviour in behaviours)
    file = File("a.npy", size, md5(CONTENT) if known else None, urls=urls)
    return replace(MNIST, name="toy", layouts=(Layout(("toy",), (file,)),))


def visible(root):
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if not p.name.startswith("."))


@pytest.mark.parametrize(
    "behaviours",
    [
        ("good",),
        ("without-ranges",),
        ("redirected",),
        ("cut-once",),
        ("truncated",),  # three attempts, each with progress
        ("forbidden", "good"),
        ("corrupted", "good"),
        ("shorter", "good"),
        ("to-a-file", "good"),
        ("in-a-circle", "good"),
    ],
)
def test_a_file_arrives_whole_in_spite_of_the_server(server, tmp_path, behaviours):
    toy = source(server, *behaviours, size=len(CONTENT))
    assert fetch.get(toy, tmp_path) == [tmp_path / "toy" / "a.npy"]
    assert (tmp_path / "toy" / "a.npy").read_bytes() == CONTENT
    assert visible(tmp_path) == ["toy", "toy/a.npy"]
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("forbidden", "HTTP 403 Forbidden"),
        ("corrupted", "has MD5 [0-9a-f]{32}, the official one"),
        ("shorter", "offers 511,999 bytes, the official file has 512,000"),
        ("endless", "sends more than 512,000 bytes"),
        ("to-a-file", "HTTP 302 .*file:///etc/passwd. is not allowed"),
        ("in-a-circle", "HTTP 302 .*infinite loop"),
    ],
)
def test_a_bad_server_leaves_nothing_but_one_line(server, tmp_path, behaviour, reason, capsys):
    with pytest.raises(DataError, match=reason) as e:
        fetch.get(source(server, behaviour, size=len(CONTENT)), tmp_path)
    assert "\n" not in str(e.value)
    assert "try again later" in str(e.value)
    assert visible(tmp_path) == []


def test_a_server_that_stalls_is_left_and_continued_later(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT", 0.3)
    with pytest.raises(DataError, match=r"no byte for 0\.3 s"):
        fetch.get(source(server, "stalled"), tmp_path)
    assert visible(tmp_path) == []
    (part,) = tmp_path.glob(".*.part")
    assert part.read_bytes() == CONTENT[:1000]
    server.requests.clear()
    fetch.get(source(server, "good"), tmp_path)
    assert server.requests == [("/good/a.npy", "bytes=1000-")]
    assert (tmp_path / "toy" / "a.npy").read_bytes() == CONTENT


@pytest.mark.parametrize("new", ["http://b/x", "ftp://b/x"])
def test_redirects_from_https_lead_to_https_only(new):
    request = urllib.request.Request("https://a/x")
    handler = fetch._WebOnly()
    assert handler.redirect_request(request, None, 302, "", {}, "https://b/x").host == "b"
    with pytest.raises(urllib.error.HTTPError, match="refused"):
        handler.redirect_request(request, None, 302, "", {}, new)


def test_nothing_answers(tmp_path):
    toy = replace(MNIST, layouts=(Layout(("x",), (File("a", urls=("http://127.0.0.1:9/a",)),)),))
    with pytest.raises(DataError, match="Connection refused"):
        fetch.get(toy, tmp_path)


def test_a_part_of_another_file_is_not_continued(server, tmp_path):
    toy = source(server, "good")
    (tmp_path / ".toy-a.npy.part").write_bytes(b"something else")
    with pytest.raises(DataError, match="has MD5"):
        fetch.get(toy, tmp_path)  # it cannot be known before the end
    fetch.get(toy, tmp_path)
    assert (tmp_path / "toy" / "a.npy").read_bytes() == CONTENT


def test_a_part_that_is_complete_is_not_downloaded_again(server, tmp_path):
    (tmp_path / ".toy-a.npy.part").write_bytes(CONTENT)
    fetch.get(source(server, "good"), tmp_path)
    assert (tmp_path / "toy" / "a.npy").read_bytes() == CONTENT
    assert server.requests == []


def test_an_answer_with_another_range_is_refused(server, tmp_path):
    (tmp_path / ".toy-a.npy.part").write_bytes(CONTENT[:1000])
    with pytest.raises(DataError, match=r"answers with another range than asked for \('bytes 0-"):
        fetch.get(source(server, "other-range"), tmp_path)


def test_of_a_file_without_an_md5_no_part_is_continued(server, tmp_path):
    (tmp_path / ".toy-a.npy.part").write_bytes(b"something else")
    fetch.get(source(server, "good", known=False), tmp_path)
    assert (tmp_path / "toy" / "a.npy").read_bytes() == CONTENT


def test_what_is_here_is_not_downloaded_again_and_a_damaged_file_is(server, tmp_path):
    toy = source(server, "good")
    fetch.get(toy, tmp_path)
    server.requests.clear()
    assert fetch.get(toy, tmp_path) == []
    assert server.requests == []
    (tmp_path / "toy" / "a.npy").write_bytes(b"damaged")
    fetch.get(toy, tmp_path)
    assert (tmp_path / "toy" / "a.npy").read_bytes() == CONTENT


def test_a_full_disk_is_noticed_before_the_download(server, tmp_path, monkeypatch):
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"needs 512,000 bytes and .* has 1,000 free"):
        fetch.get(source(server, "good"), tmp_path)
    assert visible(tmp_path) == []


# ---- archives ------------------------------------------------------------------------------------


def zipped(members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def tarred(members, change=lambda info: None):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            change(info)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


FILES = (File("Train", recordings=2), File("note.txt", 2))
MEMBERS = {"wrapped/Train/0/1.bin": b"a", "wrapped/Train/1/2.bin": b"b", "wrapped/note.txt": b"hi"}


@pytest.mark.parametrize(("pack", "name"), [(zipped, "x.zip"), (tarred, "x.tar.gz")])
def test_archives_are_unpacked_wherever_the_files_are_in_them(tmp_path, pack, name):
    archive = tmp_path / name
    archive.write_bytes(pack(MEMBERS))
    unpack(archive, name, FILES, tmp_path / "set")
    assert [f.state(tmp_path / "set")[:7] for f in FILES] == ["present", "present"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set", name]


def test_a_second_archive_of_a_set_goes_beside_the_first(tmp_path):
    for name, members in (("a.zip", {"cat/1.bin": b"1"}), ("b.zip", {"dog/2.bin": b"2"})):
        (tmp_path / name).write_bytes(zipped(members))
        file = File((name[0] == "a" and "cat") or "dog", recordings=1, pattern="*.bin")
        unpack(tmp_path / name, name, (file,), tmp_path / "set")
    assert visible(tmp_path / "set") == ["cat", "cat/1.bin", "dog", "dog/2.bin"]


def symlink(info):
    info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc", 0


def hardlink(info):
    info.type, info.linkname, info.size = tarfile.LNKTYPE, "../../x", 0


def pipe(info):
    info.type, info.size = tarfile.FIFOTYPE, 0


BOMB = bytes(20_000_000)


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        (zipped({"../evil": b"x", **MEMBERS}), "x.zip", "'../evil' would leave the folder"),
        (zipped({"/evil": b"x", **MEMBERS}), "x.zip", "'/evil' would leave"),
        (zipped({"C:\\evil": b"x"}), "x.zip", "would leave"),
        (zipped({"..\\evil": b"x"}), "x.zip", "would leave"),
        (tarred({"../evil": b"x", **MEMBERS}), "x.tar.gz", "'../evil' would leave"),
        (tarred({"/evil": b"x"}), "x.tar.gz", "would leave"),
        (tarred({"link": b""}, symlink), "x.tar.gz", "'link' is no file or folder"),
        (tarred({"link": b""}, hardlink), "x.tar.gz", "'link' is no file or folder"),
        (tarred({"pipe": b""}, pipe), "x.tar.gz", "'pipe' is no file or folder"),
        (zipped({"bomb": BOMB}), "x.zip", "unpacks to more than"),
        (tarred({"bomb": BOMB}), "x.tar.gz", "unpacks to more than"),
        (tarred({f"bomb{i}": BOMB[:900_000] for i in range(9)}), "x.tar.gz", "unpacks to more"),
        (gzip.compress(BOMB), "x.tar.gz", "has no Train; it is not"),
        (zipped(MEMBERS)[:-30], "x.zip", "damaged archive"),
        (tarred(MEMBERS)[:-30], "x.tar.gz", "damaged archive"),
        (b"<html>not found</html>", "x.zip", "damaged archive"),
        (b"<html>not found</html>", "x.tar.gz", "damaged archive"),
        (zipped({"a": b"x", "a/b": b"y"}), "x.zip", "damaged archive"),
        (zipped({"a" * 300: b"x"}), "x.zip", "damaged archive"),
        (zipped({"other": b"x"}), "x.zip", "has no Train; it is not the official archive"),
    ],
    ids=lambda value: value if isinstance(value, str) else "archive",
)
def test_hostile_and_damaged_archives_leave_nothing(tmp_path, content, name, reason):
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / name).write_bytes(content)
    with pytest.raises(DataError, match=reason) as e:
        unpack(inside / name, name, FILES, inside / "set")
    assert "\n" not in str(e.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["inside", name]


def test_a_full_disk_is_not_called_a_damaged_archive(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "x.zip").write_bytes(zipped(MEMBERS))
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(tmp_path / "x.zip", "x.zip", FILES, tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == ["x.zip"]


def test_a_zip_that_lies_about_its_sizes_is_damaged(tmp_path):
    content = zipped({"Train/0/1.bin": bytes(100_000)})
    archive = tmp_path / "x.zip"
    archive.write_bytes(content.replace((100_000).to_bytes(4, "little"), (9).to_bytes(4, "little")))
    with pytest.raises(DataError, match="damaged archive"):
        unpack(archive, "x.zip", FILES, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def archive_source(server, content, recordings=2):
    server.contents["t.zip"] = content
    archive = Archive("t.zip", md5(content), (f"{server.url}/good/t.zip",))
    files = (File("Train", recordings=recordings, archive=archive),)
    return replace(MNIST, name="toy", layouts=(Layout(("toy",), files),))


def test_an_archive_is_downloaded_once_for_its_files_and_deleted(server, tmp_path):
    toy = archive_source(server, zipped(MEMBERS))
    fetch.get(toy, tmp_path)
    assert toy.presence(tmp_path) == "complete"
    assert len(server.requests) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [".get.lock", "toy"]


def test_an_incomplete_folder_of_the_users_is_not_touched(server, tmp_path):
    toy = archive_source(server, zipped(MEMBERS))
    (tmp_path / "toy" / "Train" / "0").mkdir(parents=True)
    (tmp_path / "toy" / "Train" / "0" / "mine.bin").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"incomplete: 1 of 2 recordings.* move it away"):
        fetch.get(toy, tmp_path)
    assert (tmp_path / "toy" / "Train" / "0" / "mine.bin").read_bytes() == b"mine"


# ---- the verb ------------------------------------------------------------------------------------


@pytest.fixture
def toy_in_catalogue(server, monkeypatch):
    toy = source(server, "good", size=len(CONTENT))
    monkeypatch.setattr(data, "source", lambda name: toy)
    return toy


def test_the_verb_shows_licence_size_and_address_first(toy_in_catalogue, tmp_path, capsys):
    assert main(["data", "toy", "--get", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "licence: none known here" in out[0]
    assert "a.npy: 512,000 bytes, from http://127.0.0.1" in out[1]
    assert fetch.UNTRIED in out[1]
    assert out[2].startswith("a.npy: complete, in ")
    assert main(["data", "toy", "--get", "--root", str(tmp_path), "--json"]) == 0
    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["data"]


def test_without_get_nothing_is_requested(toy_in_catalogue, server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data, "check", lambda name, root: toy_in_catalogue.check(root))
    assert main(["data", "toy", "--root", str(tmp_path)]) == 0
    assert server.requests == []


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--get"], 2, "--get needs the name of a data set"),
        (["imagenet", "--get"], 1, "no address is known from which a program may download"),
        (["dvs128-gesture", "--get"], 1, "research.ibm.com"),
    ],
)
def test_what_cannot_be_downloaded_is_said_in_one_line(words, code, text, tmp_path, capsys):
    assert main(["data", *words, "--root", str(tmp_path)]) == code
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_addresses_are_of_the_web_and_archives_of_a_known_kind():
    for entry in data.catalogue():
        for file in (file for layout in entry.layouts for file in layout.files):
            origin = file.archive or file
            assert all(url.startswith(("http://", "https://")) for url in origin.urls)
            if origin.urls:
                assert isinstance(origin, File) or origin.name.endswith((".zip", ".tar.gz"))
    offered = {e.name for e in data.catalogue() if e.layouts and fetch.missing_items(e, e_path())}
    assert {"mnist", "fashion-mnist", "cifar10", "cifar100", "nmnist", "shd", "ssc"} <= offered


def e_path():
    from pathlib import Path

    return Path("/nowhere")


def test_a_second_download_into_the_folder_waits_for_the_first(server, tmp_path):
    from backspike.system import disk

    with disk.lock(tmp_path / ".get.lock"), pytest.raises(DataError, match="is running"):
        fetch.get(source(server, "good"), tmp_path)


def test_progress_of_a_slow_download_is_shown(server, tmp_path, monkeypatch, capsys):
    now = iter(range(0, 10**6, 20))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    fetch.get(source(server, "good"), tmp_path)
    assert "downloading a.npy: " in capsys.readouterr().err
