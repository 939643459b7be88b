"""Downloads from a server of our own that breaks off, goes on, or sends something else."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from filelock import FileLock

from kdx.data.download import fetch
from kdx.errors import KdxError

CONTENT = bytes(range(256)) * 2000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(HTTPServer):
    breaks_after: int | None = None
    knows_ranges = True
    starts: list[int]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.knows_ranges else 0
        self.server.starts.append(start)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        until = self.server.breaks_after
        self.wfile.write(CONTENT[start : None if until is None else start + until])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.starts = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/file"


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_broken_transfer_goes_on_where_it_stopped(server: Server, tmp_path: Path, knows_ranges: bool) -> None:
    path = tmp_path / "a" / "file.npz"
    server.breaks_after, server.knows_ranges = 100_000, knows_ranges
    with pytest.raises(KdxError, match="0.1 MB are kept: start again to go on"):
        fetch(address(server), path, MD5)
    assert not path.exists()
    server.breaks_after = None
    fetch(address(server), path, MD5)
    assert path.read_bytes() == CONTENT and not path.with_name("file.npz.part").exists()
    assert server.starts == [0, 100_000 if knows_ranges else 0]
    fetch(address(server), path, MD5)
    assert len(server.starts) == 2  # what is there is not fetched again


def test_another_file_is_discarded(server: Server, tmp_path: Path) -> None:
    with pytest.raises(KdxError, match="its md5 is .*, not 0123: what came is discarded"):
        fetch(address(server), tmp_path / "file", "0123")
    assert not list(tmp_path.iterdir())


def test_no_server_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(KdxError, match="; nothing came$") as error:
        fetch("http://127.0.0.1:9/file", tmp_path / "new" / "data" / "file", MD5)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())  # neither the folders nor a lock


class Hostile(HTTPServer):
    """Answers every request with the pieces that a test gives, with a wait after each."""

    pieces: list[bytes]
    wait = 0.0
    endless = False
    stop: threading.Event


class HostileHandler(BaseHTTPRequestHandler):
    server: Hostile

    def do_GET(self) -> None:
        try:
            for piece in self.server.pieces:
                self.wfile.write(piece)
                self.server.stop.wait(self.server.wait)
            while self.server.endless and not self.server.stop.is_set():
                self.wfile.write(self.server.pieces[-1])
                self.server.stop.wait(self.server.wait)
        except OSError:  # whoever asked has gone
            pass

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    server = Hostile(("127.0.0.1", 0), HostileHandler)
    server.stop = threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()
    thread.join()


OK = b"HTTP/1.0 200 OK\r\n"
LENGTH = f"Content-Length: {len(CONTENT)}\r\n\r\n".encode()
ANSWERS: dict[str, tuple[list[bytes], str]] = {
    "garbage": ([b"\x00\xff\x1b[31mgarbage\n" * 9], "BadStatusLine|x00"),
    "nothing": ([], "closed|without response"),
    "416 at once": ([b"HTTP/1.0 416 No\r\n\r\n"], "416"),
    "500": ([b"HTTP/1.0 500 \x1b[31mOh\r\n\r\n"], "500"),
    "500 headers": ([OK, *(f"X-{n}: y\r\n".encode() for n in range(500)), b"\r\n"], "got more than 100 headers"),
    "a long header": ([OK, b"X: " + b"y" * 100_000 + b"\r\n\r\n"], "header line"),
    "too little": ([OK, LENGTH, CONTENT[:1000]], "the connection ended after 1000 of 512000 bytes"),
    "too short a length": ([OK, b"Content-Length: 1000\r\n\r\n", CONTENT], "its md5 is"),
    "no number as length": ([OK, b"Content-Length: many\r\n\r\n", CONTENT[:9]], "its md5 is"),
    "a negative length": ([OK, b"Content-Length: -5\r\n\r\n", CONTENT[:9]], "its md5 is"),
    "too much": ([OK, b"\r\n", CONTENT + b"x"], "its md5 is"),
    "an empty body": ([OK, b"Content-Length: 0\r\n\r\n"], "nothing came"),
    "a web page": ([OK, b"Content-Type: text/html\r\n\r\n", b"\n <!DOCTYPE html><html>log in"], "a web page instead"),
    "broken chunks": ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc"], "IncompleteRead|invalid literal"),
    "a circle": ([b"HTTP/1.0 302 Found\r\nLocation: /file\r\n\r\n"], "redirect"),
    "a local file": ([b"HTTP/1.0 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"], "redirect|not allowed"),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ANSWERS)
def test_whatever_a_server_answers_is_one_line(hostile: Hostile, tmp_path: Path, kind: str) -> None:
    hostile.pieces, message = ANSWERS[kind]
    with pytest.raises(KdxError, match=message) as error:
        fetch(address(hostile), tmp_path / "file.npz", MD5)
    assert str(error.value).isprintable() and len(str(error.value)) < 500
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == ({"file.npz.part"} if kind == "too little" else set())


SLOW = {
    "before the status": ([b"H"] * 100, False),
    "in the headers": ([OK, *[b"X"] * 100], False),
    "in the body": ([OK, LENGTH, *[b"y"] * 100], False),
    "without an end": ([OK, LENGTH, b"y"], True),
    "silent": ([OK, LENGTH], True),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", SLOW)
def test_a_server_that_trickles_is_given_up(hostile: Hostile, tmp_path: Path, kind: str, monkeypatch) -> None:
    """Each byte comes before any timeout of the connection; all of them together never would."""
    monkeypatch.setattr("kdx.data.download.STALL_SECONDS", 0.5)
    hostile.pieces, hostile.endless = SLOW[kind]
    hostile.wait = 30.0 if kind == "silent" else 0.1
    with pytest.raises(KdxError, match=r"fewer than 10000 bytes came in|timed out"):
        fetch(address(hostile), tmp_path / "file.npz", MD5)
    assert not (tmp_path / "file.npz").exists()


def test_a_server_without_an_end_does_not_fill_the_disk(hostile: Hostile, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("kdx.data.download.SPARE_BYTES", 1 << 62)
    hostile.pieces, hostile.endless = [OK, b"\r\n", CONTENT], True
    with pytest.raises(KdxError, match="the disk of data_dir has .* MB free"):
        fetch(address(hostile), tmp_path / "file.npz", MD5)


def test_a_web_page_does_not_replace_what_is_kept(hostile: Hostile, tmp_path: Path) -> None:
    (tmp_path / "file.npz.part").write_bytes(CONTENT[:1000])
    hostile.pieces = [OK, b"\r\n", b"<html>"]
    with pytest.raises(KdxError, match="a web page instead of the file; 0.0 MB are kept"):
        fetch(address(hostile), tmp_path / "file.npz", MD5)
    assert (tmp_path / "file.npz.part").read_bytes() == CONTENT[:1000]


@pytest.mark.parametrize("place", [0, 7])
def test_an_answer_from_another_place_is_not_appended(hostile: Hostile, tmp_path: Path, place: int) -> None:
    (tmp_path / "file.npz.part").write_bytes(CONTENT[:1000])
    rest = f"Content-Range: bytes {place}-511999/512000\r\n\r\n".encode()
    hostile.pieces = [b"HTTP/1.0 206 Partial\r\n", rest, CONTENT[place:]]
    if place:
        with pytest.raises(KdxError, match="the server sends 'bytes 7-"):
            fetch(address(hostile), tmp_path / "file.npz", MD5)
    else:
        fetch(address(hostile), tmp_path / "file.npz", MD5)
        assert (tmp_path / "file.npz").read_bytes() == CONTENT


def test_a_whole_part_needs_no_byte_more(hostile: Hostile, tmp_path: Path) -> None:
    (tmp_path / "file.npz.part").write_bytes(CONTENT)
    hostile.pieces = [b"HTTP/1.0 416 No\r\n\r\n"]
    fetch(address(hostile), tmp_path / "file.npz", MD5)
    assert (tmp_path / "file.npz").read_bytes() == CONTENT


@pytest.mark.timeout(20)
@pytest.mark.parametrize("folder", ["/proc", "/sys", "/dev/null"])
def test_folders_that_hold_no_lock_are_one_line(folder: str) -> None:
    with pytest.raises(KdxError, match=f"cannot (write|make).*{folder}.*choose another"):
        fetch("http://127.0.0.1:9/file", Path(folder) / "file.npz", MD5)


@pytest.mark.timeout(20)
def test_another_process_that_does_not_go_on_is_waited_for_in_vain(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("kdx.data.waiting.LOCK_SECONDS", 0.3)
    caplog.set_level("INFO")
    with (
        FileLock(tmp_path / "file.npz.lock"),
        pytest.raises(KdxError, match=r"another process holds .*file.npz.lock, and file.npz.part has not grown"),
    ):
        fetch("http://127.0.0.1:9/file", tmp_path / "file.npz", MD5)
    assert caplog.text.count("waiting for another process that downloads file.npz") == 1
