"""Against a server on this machine that behaves, or not."""

import hashlib
import io
import json
import re
import tarfile
import threading
from collections import namedtuple
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from axfold.errors import AxfoldError, WeightsError
from axfold.weights import download as module
from axfold.weights.download import CHECKSUMS, checksums, download
from axfold.weights.registry import ALPHAFOLD

CONTENT = {
    "params_model_1.npz": bytes(range(256)) * 700,
    "params_model_2.npz": b"two" * 40_000,
    "LICENSE": b"CC BY 4.0\n",
}


def pack(content):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for member, data in content.items():
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def release_of(archive):
    return replace(
        ALPHAFOLD,
        archive="params.tar",
        address="http://unset.invalid/params.tar",
        size=len(archive),
        sha256=hashlib.sha256(archive).hexdigest(),
        models=("model_1", "model_2"),
    )


ARCHIVE = pack(CONTENT)
RELEASE = release_of(ARCHIVE)


@dataclass
class Server:
    """Serves `body` as /params.tar; each request takes the next of `faults`, if any is left."""

    address: str = ""
    body: bytes = ARCHIVE
    ranges: bool = True
    kind: str = "application/x-tar"
    faults: list = field(default_factory=list)
    requests: list = field(default_factory=list)  # the Range of each


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    for name in ("AXFOLD_WEIGHTS_MIRROR", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers["Range"]
            state.requests.append(wanted)
            fault = state.faults.pop(0) if state.faults else None
            if self.path != "/params.tar":
                return self.send_error(404)
            if isinstance(fault, int):
                return self.send_error(fault)
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and state.ranges else 0
            if start >= len(state.body):
                return self.send_error(416)
            body = state.body[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", state.kind)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.body) - 1}/{len(state.body)}")
            if fault != "no length":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if fault == "cut" else b"" if fault == "silent" else body)
            return None

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.address = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


def fetched(tmp_path, server, release=RELEASE):
    return download(tmp_path, mirror=server.address, release=release)


def assert_complete(folder):
    assert {path.name for path in folder.iterdir()} == {*CONTENT, CHECKSUMS}
    for name, data in CONTENT.items():
        assert (folder / name).read_bytes() == data
    assert checksums(folder) == {name: hashlib.sha256(data).hexdigest() for name, data in CONTENT.items()}


def refused(tmp_path, server, release=RELEASE):
    """The message; nothing may lie in the cache but a part to continue with."""
    with pytest.raises(AxfoldError) as caught:
        fetched(tmp_path, server, release)
    left = (
        {path.name for path in (tmp_path / "params").iterdir()} if (tmp_path / "params").exists() else set()
    )
    assert not left & {*CONTENT, CHECKSUMS}
    return caught.value


def test_a_download(tmp_path, server):
    done = fetched(tmp_path, server)
    assert done.fetched
    assert done.folder == tmp_path / "params"
    assert [path.name for path in done.files] == list(CONTENT)
    assert done.release.licence == "CC BY 4.0"
    assert_complete(done.folder)


def test_a_second_download_asks_nothing(tmp_path, server):
    fetched(tmp_path, server)
    before = len(server.requests)
    again = fetched(tmp_path, server)
    assert not again.fetched
    assert len(server.requests) == before


def test_a_lost_file_is_fetched_again(tmp_path, server):
    folder = fetched(tmp_path, server).folder
    (folder / "params_model_2.npz").unlink()
    assert fetched(tmp_path, server).fetched
    assert_complete(folder)


def test_progress(tmp_path, server):
    seen = []
    download(tmp_path, mirror=server.address, release=RELEASE, progress=lambda *report: seen.append(report))
    steps = [step for step, _, _ in seen]
    assert list(dict.fromkeys(steps)) == ["download", "check", "unpack"]
    for step in set(steps):
        done = [count for name, count, _ in seen if name == step]
        assert done == sorted(done)
    assert ("download", RELEASE.size, RELEASE.size) in seen
    assert {total for _, _, total in seen} == {RELEASE.size}


def test_the_mirror_may_be_the_archive_or_come_from_the_environment(tmp_path, server, monkeypatch):
    download(tmp_path / "a", mirror=f"{server.address}/params.tar", release=RELEASE)
    monkeypatch.setenv("AXFOLD_WEIGHTS_MIRROR", f"{server.address}/")
    download(tmp_path / "b", release=RELEASE)
    assert_complete(tmp_path / "a" / "params")
    assert_complete(tmp_path / "b" / "params")


def test_without_a_mirror_the_official_address_is_asked(tmp_path, server):
    download(tmp_path, release=replace(RELEASE, address=f"{server.address}/params.tar"))
    assert_complete(tmp_path / "params")


@pytest.mark.parametrize("mirror", ["file:///etc/passwd", "ftp://host/", "/some/folder"])
def test_a_mirror_must_be_on_the_web(mirror, tmp_path):
    with pytest.raises(WeightsError, match="must begin with https:// or http://"):
        download(tmp_path, mirror=mirror, release=RELEASE)


def test_it_continues_where_it_was_interrupted(tmp_path, server):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "params.tar.part").write_bytes(ARCHIVE[:1000])
    folder = fetched(tmp_path, server).folder
    assert server.requests == ["bytes=1000-"]
    assert_complete(folder)


def test_cut_connections_are_continued(tmp_path, server):
    server.faults = ["cut", "cut", 503, "cut", "no length"]
    folder = fetched(tmp_path, server).folder
    starts = [int(wanted[6:-1]) if wanted else 0 for wanted in server.requests]
    assert starts == sorted(starts)
    assert len(starts) == 5
    assert starts[1] > 0
    assert_complete(folder)


def test_a_server_without_ranges_starts_anew(tmp_path, server):
    server.ranges, server.faults = False, ["cut"]
    assert_complete(fetched(tmp_path, server).folder)
    assert server.requests[1] is not None


def test_a_part_that_is_too_long_starts_anew(tmp_path, server):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "params.tar.part").write_bytes(ARCHIVE + b"more")
    assert_complete(fetched(tmp_path, server).folder)


def test_a_server_that_never_sends_is_given_up(tmp_path, server):
    server.faults = ["cut"] + ["silent"] * 20
    error = refused(tmp_path, server)
    assert not isinstance(error, WeightsError)  # the network's fault
    for words in (server.address, "run the same command again to continue", "--mirror", "--params"):
        assert words in str(error)
    assert len(server.requests) == 1 + module._ATTEMPTS
    server.faults = []
    assert_complete(fetched(tmp_path, server).folder)


def test_no_network(tmp_path, server):
    dead = replace(server, address="http://127.0.0.1:1")
    assert "refused" in str(refused(tmp_path, dead))


def test_a_wrong_address(tmp_path, server):
    with pytest.raises(
        WeightsError, match=r"elsewhere/params\.tar: it answers 404 Not Found\. Check the address"
    ):
        download(tmp_path, mirror=f"{server.address}/elsewhere", release=RELEASE)
    assert len(server.requests) == 1


def test_a_web_page(tmp_path, server):
    server.body, server.kind = b"<html>Sign in</html>", "text/html; charset=utf-8"
    assert "answers with a web page" in str(refused(tmp_path, server))


@pytest.mark.parametrize("body", [ARCHIVE[:-512], ARCHIVE + b"\0" * 512])
def test_a_file_of_another_size(body, tmp_path, server):
    server.body = body
    assert f"has {len(body)} bytes, and the released archive has {len(ARCHIVE)}" in str(
        refused(tmp_path, server)
    )


def test_a_file_that_does_not_end(tmp_path, server):
    server.body, server.faults = ARCHIVE + b"\0" * 512, ["no length"]
    assert f"sends more than the {len(ARCHIVE)} bytes" in str(refused(tmp_path, server))


def test_one_flipped_bit(tmp_path, server):
    server.body = ARCHIVE[:5000] + bytes([ARCHIVE[5000] ^ 1]) + ARCHIVE[5001:]
    message = str(refused(tmp_path, server))
    assert RELEASE.sha256 in message
    assert hashlib.sha256(server.body).hexdigest() in message
    assert not list((tmp_path / "params").iterdir())
    server.body = ARCHIVE
    assert_complete(fetched(tmp_path, server).folder)


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "member",
    [
        "../evil.npz",
        "/tmp/evil.npz",
        "params/../../params_model_1.npz",
        "params_model_3.npz",
        link("params_model_1.npz", "/etc/passwd", tarfile.SYMTYPE),
        link("params_model_1.npz", "LICENSE", tarfile.LNKTYPE),
        link("params_model_1.npz", "", tarfile.FIFOTYPE),
        link("params_model_1.npz", "", tarfile.DIRTYPE),
    ],
    ids=str,
)
def test_an_archive_with_anything_else_is_not_unpacked(member, tmp_path, server):
    name = member if isinstance(member, str) else member.name
    rest = {key: data for key, data in CONTENT.items() if key != name}
    server.body = pack({**rest, member: b"" if isinstance(member, tarfile.TarInfo) else b"evil"})
    message = str(refused(tmp_path / "cache", server, release_of(server.body)))
    assert f"member {name!r} is not of the release" in message
    assert {path.name for path in tmp_path.rglob("*")} == {"cache", "params", "params.tar"}


def test_an_archive_that_lacks_a_member(tmp_path, server):
    server.body = pack({name: CONTENT[name] for name in ("params_model_1.npz", "LICENSE")})
    assert "has no params_model_2.npz" in str(refused(tmp_path, server, release_of(server.body)))


def test_members_may_be_written_with_a_dot(tmp_path, server):
    server.body = pack({f"./{name}": data for name, data in CONTENT.items()})
    assert_complete(fetched(tmp_path, server, release_of(server.body)).folder)


def test_an_archive_that_was_left_is_unpacked_without_the_network(tmp_path, server):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "params.tar").write_bytes(ARCHIVE)
    assert_complete(fetched(tmp_path, server).folder)
    assert server.requests == []


def test_an_archive_that_was_put_there_is_checked(tmp_path, server):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "params.tar").write_bytes(ARCHIVE[:-1024])
    assert "was not as released and has been removed" in str(refused(tmp_path, server))
    assert_complete(fetched(tmp_path, server).folder)


def test_too_little_disk_is_said_before_anything_is_fetched(tmp_path, server, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage(3_000_000_000))
    message = str(refused(tmp_path, server, ALPHAFOLD))
    assert "needs 11.2 GB of free disk, and 3.0 GB are free" in message
    assert "AXFOLD_CACHE" in message
    assert server.requests == []


def test_a_cache_that_can_not_be_written(tmp_path, server):
    (tmp_path / "file").touch()
    with pytest.raises(AxfoldError, match=r"can't be written .* choose another folder with --cache"):
        fetched(tmp_path / "file", server)


def test_what_is_released():
    assert ALPHAFOLD.members[0] == "params_model_1.npz"
    assert "params_model_5_multimer_v3.npz" in ALPHAFOLD.members
    assert len(ALPHAFOLD.members) == 16
    assert ALPHAFOLD.address.endswith(ALPHAFOLD.archive)


def test_checksums_of_a_foreign_file_are_none(tmp_path):
    for content in ("", "[]", "{", "null"):
        (tmp_path / CHECKSUMS).write_text(content)
        assert checksums(tmp_path) == {}
    (tmp_path / CHECKSUMS).write_text(json.dumps({"a": "b"}))
    assert checksums(tmp_path) == {"a": "b"}
