"""Downloads against a real HTTP server on loopback that can be told to misbehave."""

import hashlib
import http.server
import socket
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pooch
import pytest

from fmeta import InputError
from fmeta.tasks import cache_folder, fetch

CONTENT = bytes(i * 31 % 251 for i in range(100_000))
CHECKSUM = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT, with ranges, and writes down what it was asked for. Each request takes one of the `faults`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = []  # the Range header of each request, None where it had none
        self.headers = []
        self.faults = []  # what the next requests meet: None, "cut", "whole", "wrong", or a status number
        self.always = None  # what all requests after those meet

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/data/drawings.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers["Range"]
        server.ranges.append(wanted)
        server.headers.append(dict(self.headers))
        fault = server.faults.pop(0) if server.faults else server.always
        if isinstance(fault, int):
            return self.send_error(fault)
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and fault != "whole" else 0
        if begin >= len(CONTENT):
            return self.send_error(416)
        body = CONTENT[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "wrong":
            body = bytes(len(body))
        if fault == "cut":
            body = body[:30_000]
        self.wfile.write(body)  # HTTP/1.0: the connection closes after each answer
        return None

    def log_message(self, *args):
        """Silent."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(
        pooch.core, "time", types.SimpleNamespace(sleep=lambda seconds: None)
    )  # pooch waits between its tries
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(timeout=10)


def get(server, folder, checksum=CHECKSUM):
    return fetch(server.url, checksum, folder, progress=False)


def begins(server):
    """Where each request began."""
    return [int(r.removeprefix("bytes=").rstrip("-")) if r else 0 for r in server.ranges]


def test_downloads_into_a_new_folder(server, tmp_path):
    """One request, the file under its own name, nothing left beside it."""
    path = get(server, tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b" / "drawings.bin"
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None]
    assert [p.name for p in path.parent.iterdir() if p.suffix != ".lock"] == ["drawings.bin"]


def test_asks_for_the_file_as_it_is(server, tmp_path):
    """A compressed answer would have other byte ranges than the file."""
    get(server, tmp_path)
    assert server.headers[0]["Accept-Encoding"] == "identity"


def test_progress_bar_changes_nothing(server, tmp_path, capsys):
    """The default shows a bar, where tqdm is there, and gives the same file."""
    pytest.importorskip("tqdm")
    assert fetch(server.url, CHECKSUM, tmp_path).read_bytes() == CONTENT
    assert "100%" in capsys.readouterr().err


def test_second_call_asks_nobody(server, tmp_path):
    """A file that is there and matches is not downloaded again."""
    first = get(server, tmp_path)
    second = get(server, tmp_path)
    assert first == second
    assert len(server.ranges) == 1


def test_md5_checksums_count_too(server, tmp_path):
    """The official checksums of Omniglot are md5."""
    assert get(server, tmp_path, "md5:" + hashlib.md5(CONTENT).hexdigest()).read_bytes() == CONTENT
    with pytest.raises(InputError, match="md5:0000"):
        get(server, tmp_path, "md5:" + "0" * 32)


def test_a_damaged_file_is_downloaded_again(server, tmp_path):
    """What lies in the folder is checked, not trusted."""
    get(server, tmp_path).write_bytes(CONTENT[:-1])
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_broken_transfer_goes_on_where_it_broke(server, tmp_path):
    """A cut connection costs what was not received, not the whole file."""
    server.faults = ["cut"]
    assert get(server, tmp_path).read_bytes() == CONTENT
    first, second = begins(server)
    assert first == 0
    assert 0 < second <= 30_000
    assert 30_000 - second < 1024  # all but the last chunk was kept


def test_broken_transfers_add_up_over_calls(server, tmp_path):
    """What three tries in vain have received is there for the next call, also that of another process."""
    server.faults = ["cut"] * 3
    with pytest.raises(InputError, match="run it again to go on"):
        get(server, tmp_path)
    part = tmp_path / "drawings.bin.part"
    kept = part.stat().st_size
    assert 85_000 < kept <= 90_000
    assert part.read_bytes() == CONTENT[:kept]
    assert not (tmp_path / "drawings.bin").exists()
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert begins(server)[3:] == [kept]
    assert not part.exists()


def test_server_that_ignores_the_range_is_asked_for_the_whole_file(server, tmp_path):
    """A whole file appended to a part has the wrong checksum; the next try begins again."""
    server.faults, server.always = ["cut"], "whole"
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert begins(server)[0] == begins(server)[2] == 0
    assert begins(server)[1] > 0
    assert len(server.ranges) == 3


def test_part_of_another_file_is_thrown_away(server, tmp_path):
    """A part that does not belong to the file is found out by the checksum."""
    (tmp_path / "drawings.bin.part").write_bytes(b"another file" * 100)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1200-", None]


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 500])
def test_part_that_leaves_no_range_is_thrown_away(server, tmp_path, length):
    """A part as long as the file, or longer, is answered with 416; the next try begins again."""
    (tmp_path / "drawings.bin.part").write_bytes((CONTENT + CONTENT)[:length])
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={length}-", None]


def test_recovers_from_a_server_that_refuses_ranges(server, tmp_path):
    """416 to any range: begin again."""
    server.faults = ["cut", 416]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert begins(server)[0] == begins(server)[2] == 0
    assert begins(server)[1] > 0


def test_wrong_bytes_once_are_tried_again(server, tmp_path):
    """One answer with wrong bytes leaves no trace."""
    server.faults = ["wrong"]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_wrong_bytes_always_are_an_error(server, tmp_path):
    """The message names url and checksum; neither the file nor a part of it is left to be trusted."""
    server.always = "wrong"
    with pytest.raises(InputError) as caught:
        get(server, tmp_path)
    assert server.url in str(caught.value)
    assert CHECKSUM in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert len(server.ranges) == 3
    assert [p for p in tmp_path.iterdir() if p.suffix != ".lock"] == []


def test_wrong_checksum_is_an_error(server, tmp_path):
    """The right bytes for another checksum are not taken."""
    other = "sha256:" + "ab" * 32
    with pytest.raises(InputError) as caught:
        get(server, tmp_path, other)
    assert server.url in str(caught.value)
    assert other in str(caught.value)
    assert not (tmp_path / "drawings.bin").exists()


@pytest.mark.parametrize("status", [404, 500])
def test_refusal_is_an_error_that_names_the_status(server, tmp_path, status):
    """A file that is not there, or a server out of order: tried three times, then said so."""
    server.always = status
    with pytest.raises(InputError, match=str(status)):
        get(server, tmp_path)
    assert len(server.ranges) == 3


def test_no_server_is_an_error(server, tmp_path):
    """No connection: the message says what to do by hand."""
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/drawings.bin"
        with pytest.raises(InputError, match="put the file into") as caught:
            fetch(url, CHECKSUM, tmp_path, progress=False)
    assert url in str(caught.value)
    assert CHECKSUM in str(caught.value)


def test_folder_that_cannot_be_made_is_an_error(server, tmp_path):
    """A file where the folder should be."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=r"fetch\("):
        get(server, tmp_path / "taken")
    assert server.ranges == []


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    """$FMETA_CACHE, read at each call; unset or empty means the system's cache folder."""
    monkeypatch.setenv("FMETA_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("FMETA_CACHE", "")
    system = cache_folder()
    monkeypatch.delenv("FMETA_CACHE")
    assert cache_folder() == system
    assert system.name == "fmeta"


def test_processes_that_fetch_at_once_all_get_the_file(server, tmp_path):
    """They share one partial file: without a lock the first rename pulls it away from the others."""
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: get(server, tmp_path), range(4)))
    assert all(path.read_bytes() == CONTENT for path in paths)
    assert len(server.ranges) == 1
