"""Downloads from a server of our own that breaks off, goes on, or sends something else."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

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
    assert [path.name for path in tmp_path.iterdir()] == ["file.lock"]


def test_no_server_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(KdxError, match="start again to go on") as error:
        fetch("http://127.0.0.1:9/file", tmp_path / "file", MD5)
    assert "\n" not in str(error.value)
