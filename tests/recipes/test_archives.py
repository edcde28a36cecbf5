"""Downloads, against a server on this machine: whole, resumed, cut off, damaged, refused."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import re
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from common.errors import RecipeError
from corpora import archives
from corpora.archives import Archive, Unreachable

CONTENT = b"".join(b"%06d " % number for number in range(40_000))  # 280 kB, no two places alike


@dataclass
class Server:
    """A server's behaviour, and the requests that it got."""

    url: str = ""
    content: bytes = CONTENT
    ranges: bool = True  # does it know the header Range?
    length: bool = True  # does it say how long the file is?
    status: int = 200
    cut: int | None = None  # bytes after which it closes the connection
    asked: list[str | None] = field(default_factory=list)  # the header Range of each request


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    it = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            it.asked.append(asked)
            start = int(asked.split("=")[1].rstrip("-")) if asked and it.ranges else 0
            if it.status != 200:
                self.send_error(it.status)
                return
            if start >= len(it.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(it.content)}")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(it.content) - 1}/{len(it.content)}")
            if it.length:
                self.send_header("Content-Length", str(len(it.content) - start))
            self.end_headers()
            sent = it.content[start:][: it.cut]
            self.wfile.write(sent)

        def log_message(self, *words: object) -> None:
            pass

    monkeypatch.setattr(archives, "PAUSE", 0.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        it.url = f"http://127.0.0.1:{running.server_port}/some/text.bin"
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield it
        running.shutdown()


def archive(server: Server, content: bytes = CONTENT) -> Archive:
    return Archive(server.url, len(content), hashlib.sha256(content).hexdigest())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        paths, facts = archives.fetch([archive(server)], None, tmp_path / "archives")
    assert paths["text.bin"].read_bytes() == CONTENT
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert facts == [{"name": "text.bin", "url": server.url, "bytes": len(CONTENT), "sha256": digest}]
    assert names(tmp_path / "archives") == {"text.bin"}
    assert server.asked == [None]


@pytest.mark.parametrize(
    ("part", "asked"),
    [
        (CONTENT[:100_000], ["bytes=100000-"]),
        (CONTENT, []),
        (CONTENT + b"more", [f"bytes={len(CONTENT) + 4}-", None]),
    ],
    ids=["begun", "whole", "too long"],
)
def test_a_download_goes_on_where_it_stopped(
    part: bytes, asked: list[str | None], server: Server, tmp_path: Path
) -> None:
    (tmp_path / "text.bin.part").write_bytes(part)
    assert archives.download(archive(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == asked
    assert names(tmp_path) == {"text.bin"}


def test_a_download_of_unknown_size_goes_on(server: Server, tmp_path: Path) -> None:
    (tmp_path / "text.bin.part").write_bytes(CONTENT[:100_000])
    assert archives.download(Archive(server.url), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=100000-"]


def test_connections_that_break_are_taken_up_again(server: Server, tmp_path: Path) -> None:
    server.cut = 30_000
    assert archives.download(archive(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == [None] + [f"bytes={at}-" for at in range(30_000, len(CONTENT), 30_000)]


def test_a_server_without_range_begins_anew(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "text.bin.part").write_bytes(b"x" * 1000)
    assert archives.download(archive(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


@pytest.mark.parametrize("kind", ["sha256", "bytes", "md5"])
def test_a_wrong_file_is_no_file(kind: str, server: Server, tmp_path: Path) -> None:
    wanted = {
        "sha256": archive(server),
        "bytes": Archive(server.url, len(CONTENT) + 6),
        "md5": Archive(server.url, md5=hashlib.md5(CONTENT).hexdigest()),
    }[kind]
    server.content = CONTENT.replace(b"000777", b"000778")
    server.length = False
    with pytest.raises(RecipeError, match=r"the download has .*, not"):
        archives.download(wanted, tmp_path)
    assert names(tmp_path) == set()


def test_a_web_page_is_no_archive(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network may answer everything with its own page."""
    server.content = b"\n<html>log in</html>"
    with pytest.raises(RecipeError, match="the download is a web page"):
        archives.download(Archive(server.url), tmp_path)
    assert names(tmp_path) == set()
    server.content = CONTENT
    archives.fetch([Archive(server.url)], None, tmp_path)
    assert hashlib.sha256(CONTENT).hexdigest() in capsys.readouterr().out


def test_files_that_are_there_are_not_fetched(server: Server, tmp_path: Path) -> None:
    local, cached = tmp_path / "local", tmp_path / "cache"
    for folder in (local, cached):
        folder.mkdir()
    (local / "text.bin").write_bytes(CONTENT)
    (cached / "its.name").write_bytes(CONTENT)
    local.chmod(0o500)
    paths, _ = archives.fetch([archive(server)], local, tmp_path / "archives")
    assert paths["text.bin"] == local / "text.bin"
    paths, _ = archives.fetch([replace(archive(server), cached=cached / "its.name")], None, tmp_path / "archives")
    assert paths["text.bin"] == cached / "its.name"
    assert server.asked == []
    (cached / "its.name").write_bytes(b"damaged")
    with pytest.raises(RecipeError, match=r"cache/its\.name has 7 bytes, not 280,000"):
        archives.fetch([replace(archive(server), cached=cached / "its.name")], None, tmp_path / "archives")
    assert names(local) == {"text.bin"}


def test_without_internet_the_message_says_what_to_do(server: Server, tmp_path: Path) -> None:
    first, second = archive(server), Archive(server.url.replace("text", "other"))
    closed = "http://127.0.0.1:9/third.tgz"  # nobody listens there
    with pytest.raises(Unreachable) as error:
        archives.fetch([first, Archive(closed, 12_345), second], None, tmp_path)
    lines = str(error.value).splitlines()
    assert re.fullmatch(rf"{closed} cannot be downloaded \(.*[Cc]onnection refused.*\)", lines[0])
    assert "--local-dir" in lines[1]
    assert lines[2:] == [f"  {closed} (bytes 12345)", f"  {second.url}"]  # the first is there by now
    assert names(tmp_path) == {"text.bin"}


def test_a_refusal_is_not_repeated(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(Unreachable, match="HTTP 404"):
        archives.download(archive(server), tmp_path)
    assert len(server.asked) == 1
    server.status = 503  # for the moment
    with pytest.raises(Unreachable, match="HTTP 503"):
        archives.download(archive(server), tmp_path)
    assert len(server.asked) == 1 + archives.TRIES


@pytest.mark.parametrize("name", ["../b.txt", "below/../../d.txt", "link"])
def test_a_tar_writes_only_below_its_folder(name: str, tmp_path: Path):
    with tarfile.open(tmp_path / "some.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo(name)
        if name == "link":
            member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(member, io.BytesIO())
    with pytest.raises(RecipeError, match=r"some\.tar\.gz .*(outside|absolute)"):
        archives.unpack_all(tmp_path / "some.tar.gz", tmp_path / "to" / "there")
    assert {path.name for path in tmp_path.rglob("*")} <= {"some.tar.gz", "to", "there"}


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_a_tar_that_is_cut_off_is_an_error(kind: str, tmp_path: Path):
    (tmp_path / "some.txt").write_bytes(os.urandom(2000))
    with tarfile.open(tmp_path / f"some.tar.{kind}", f"w:{kind}") as tar:
        tar.add(tmp_path / "some.txt", "some.txt")
    cut_off = tmp_path / f"cut.tar.{kind}"
    cut_off.write_bytes((tmp_path / f"some.tar.{kind}").read_bytes()[:-300])
    with pytest.raises(RecipeError, match="is cut off or damaged"):
        archives.unpack_all(cut_off, tmp_path / "to")
