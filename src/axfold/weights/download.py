"""Fetch the released parameters into the cache: continued where it broke off, checked, safely unpacked."""

import hashlib
import http.client
import json
import os
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from axfold.errors import AxfoldError, WeightsError
from axfold.weights.files import replacing
from axfold.weights.registry import ALPHAFOLD, Release, cache_folder

Progress = Callable[[str, int, int], None]
"""Called with the step ("download", "check", "unpack"), the bytes done and all bytes of that step."""

CHECKSUMS = "checksums.json"
"""File in the cache: name of each unpacked file -> its sha256."""

_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_ATTEMPTS = 4  # in a row without a new byte
_PAUSE = 0.5  # seconds before another attempt; twice as long after each that brought nothing


@dataclass(frozen=True)
class Downloaded:
    """What is in `folder` after a download; `fetched` is False where everything was there before."""

    folder: Path
    files: tuple[Path, ...]
    release: Release
    fetched: bool


def download(
    cache: Path | None = None,
    *,
    mirror: str | None = None,
    progress: Progress = lambda step, done, total: None,
    release: Release = ALPHAFOLD,
) -> Downloaded:
    """Fetch and unpack `release`, from `mirror` or $AXFOLD_WEIGHTS_MIRROR if given.

    A mirror is the address of the archive, or of the folder that holds it. Run again, it continues; files that
    are there are not fetched again. Raises WeightsError where the address does not give the released file, and
    AxfoldError where disk or network fail.
    """
    folder = cache_folder(cache)
    files = tuple(folder / name for name in release.members)
    recorded = checksums(folder)
    if all(file.is_file() and file.name in recorded for file in files):
        return Downloaded(folder, files, release, fetched=False)
    address = _address(release, mirror or os.environ.get("AXFOLD_WEIGHTS_MIRROR"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        archive = folder / release.archive
        if not archive.exists():
            part = folder / f"{release.archive}.part"
            _check_disk(folder, part, release)
            fetch(address, part, release.size, progress)
            part.replace(archive)
        _check_sum(archive, release, progress)
        _unpack(archive, folder, release, progress)
        archive.unlink()
    except OSError as error:
        raise AxfoldError(
            f"{folder}: can't be written ({error.strerror or error}); choose another folder with --cache."
        ) from error
    return Downloaded(folder, files, release, fetched=True)


def fetch(address: str, part: Path, size: int, progress: Progress) -> None:
    """Bring the file of `size` bytes at `address` to `part`, continuing with what is there."""
    failures = 0
    while (done := _size(part)) != size:
        if done > size:
            part.unlink()
            continue
        try:
            _fetch_rest(address, part, done, size, progress)
            why = "the connection was closed"
        except urllib.error.HTTPError as error:
            why = f"it answers {error.code} {error.reason}"
            error.close()
            if error.code == 416:  # what is there is longer than the file
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code != 429:
                raise WeightsError(
                    f"{address}: {why}. Check the address (--mirror, AXFOLD_WEIGHTS_MIRROR) or try another mirror."
                ) from None
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            TimeoutError,
            ConnectionError,
            ssl.SSLError,
        ) as error:
            why = str(getattr(error, "reason", "") or error or type(error).__name__)
        failures = 0 if _size(part) > done else failures + 1
        if failures == _ATTEMPTS:
            raise AxfoldError(
                f"{address}: {why}; {_gigabytes(_size(part))} of {_gigabytes(size)} are here. Check the network and "
                "run the same command again to continue, choose a --mirror, or fetch the file elsewhere and name it "
                "with --params."
            )
        if _size(part) != size:
            time.sleep(_PAUSE * 2**failures)


def checksums(folder: Path) -> dict[str, str]:
    """What was recorded when the files of `folder` were unpacked: name -> sha256."""
    try:
        recorded = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        return {str(name): str(digest) for name, digest in recorded.items()}
    except (OSError, ValueError, AttributeError):  # none, or not ours: then nothing is recorded
        return {}


def sha256(path: Path, report: Callable[[int], None] = lambda done: None) -> str:
    """Hex digest of a file; `report` gets the bytes done."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report(done)
    return digest.hexdigest()


def _address(release: Release, mirror: str | None) -> str:
    if mirror is None:
        return release.address
    if not mirror.startswith(("http://", "https://")):
        raise WeightsError(f"--mirror {mirror}: the address must begin with https:// or http://.")
    return mirror if mirror.endswith(release.archive) else f"{mirror.rstrip('/')}/{release.archive}"


def _check_disk(folder: Path, part: Path, release: Release) -> None:
    need = 2 * release.size - _size(part)  # the archive, and what it holds
    free = shutil.disk_usage(folder).free
    if free < need:
        raise AxfoldError(
            f"{folder} needs {_gigabytes(need)} of free disk, and {_gigabytes(free)} are free: "
            "choose another folder with --cache or AXFOLD_CACHE."
        )


def _fetch_rest(address: str, part: Path, done: int, size: int, progress: Progress) -> None:
    """One connection: append to `part` what it sends after the first `done` bytes."""
    headers = {"User-Agent": "axfold", "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        if answer.headers.get_content_type() == "text/html":
            raise WeightsError(
                f"{address}: answers with a web page, not with the archive (a login or proxy page?)."
            )
        continues = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(
            f"bytes {done}-"
        )
        start = done if continues else 0  # a server may not know ranges
        length = answer.headers.get("Content-Length")
        if length and length.isdigit() and start + int(length) != size:
            raise WeightsError(
                f"{address}: has {start + int(length)} bytes, and the released archive has {size}: it is another file."
            )
        with part.open("ab" if continues else "wb") as file:
            done = start
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                progress("download", done, size)
                if done > size:
                    raise WeightsError(
                        f"{address}: sends more than the {size} bytes of the released archive."
                    )


def _check_sum(archive: Path, release: Release, progress: Progress) -> None:
    found = sha256(archive, lambda done: progress("check", done, release.size))
    if found != release.sha256:
        archive.unlink()
        raise WeightsError(
            f"{archive} was not as released and has been removed: its sha256 was {found}, and {release.sha256} is "
            "wanted. Download again, or from another mirror."
        )


def _unpack(archive: Path, folder: Path, release: Release, progress: Progress) -> None:
    """Unpack the members of `release`, each under its own name in `folder`; nothing else may be in the archive."""
    recorded: dict[str, str] = {}
    done = 0
    try:
        with tarfile.open(archive, "r:") as tar:
            members = _checked_members(tar, archive, release)
            for name, member in members.items():
                content = tar.extractfile(member)
                assert content is not None  # it is a regular file
                with content, replacing(folder / name) as temporary:
                    recorded[name] = _copy(
                        content, temporary, lambda n: progress("unpack", n, release.size), done
                    )
                done += member.size
    except tarfile.TarError as error:
        raise WeightsError(f"{archive}: can't be read ({error}); remove it and download again.") from error
    with replacing(folder / CHECKSUMS) as temporary:
        temporary.write_text(json.dumps(recorded, indent=1) + "\n")


def _checked_members(tar: tarfile.TarFile, archive: Path, release: Release) -> dict[str, tarfile.TarInfo]:
    """Name in the cache -> member: exactly the files of `release`, none of them a link or a device."""
    members: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        name = member.name.removeprefix("./")
        if name not in release.members or not member.isreg() or member.issparse():
            raise WeightsError(
                f"{archive}: member {member.name!r} is not of the release; nothing was unpacked; remove it."
            )
        members[name] = member
    if missing := [name for name in release.members if name not in members]:
        raise WeightsError(f"{archive}: has no {missing[0]}; remove it and download again.")
    return members


def _copy(content: IO[bytes], path: Path, report: Callable[[int], None], done: int) -> str:
    """Copy to `path`; the sha256 of what was copied."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while chunk := content.read(_CHUNK):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            report(done)
    return digest.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
