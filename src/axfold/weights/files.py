"""Parameter files: what they hold is found from their first bytes, and read one tensor at a time.

DeepMind's `.npz` (alone or in the released tar), OpenFold's `.pt`, and axfold's own `.safetensors`. Nothing is
unpickled: NumPy files are read without objects, PyTorch's by its loader for tensors only.
"""

import lzma
import os
import re
import shutil
import struct
import tarfile
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Literal

import numpy as np

from axfold.config import PRESETS, Config
from axfold.errors import AxfoldError, WeightsError
from axfold.weights import fit, openfold
from axfold.weights.names import released_shapes
from axfold.weights.tensors import Tensors

FORMAT, FORMAT_VERSION = "axfold", "1"
"""`format` and `format_version` in the metadata of axfold's own files."""

Kind = Literal["npz", "torch", "tar", "tar.gz", "safetensors"]

_DAMAGED = (  # what reading a zip, a tar or a NumPy array raises where bytes are wrong
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,  # of a NumPy header
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,  # an encrypted zip, or a compression that Python lacks
    OSError,
)


@contextmanager
def opened(path: Path, config: Config) -> Iterator[Tensors]:
    """The tensors of the parameter file `path`, checked to be those of `config`; valid inside the `with`.

    Names and shapes are checked here, before any value is read. From DeepMind's and OpenFold's files come
    DeepMind's tensors, from axfold's own come the state dict's (`Tensors.naming` says which).
    Raises WeightsError, which names the file, the first wrong tensor and what to do.
    """
    with ExitStack() as stack:
        match kind(path):
            case "npz":
                yield _npz(stack, str(path), path, config)
            case "tar":
                yield _tar_member(stack, path, config, compressed=False)
            case "tar.gz":
                yield _tar_member(stack, path, config, compressed=True)
            case "torch":
                yield openfold.parameters(str(path), _torch_state(path), config.model)
            case "safetensors":
                yield _safetensors(stack, path, config)


def kind(path: Path) -> Kind:
    """What sort of parameter file `path` is; WeightsError where it is none."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such file; see `axfold weights list`.") from None
    except OSError as error:
        raise WeightsError(f"{path}: can't be read ({error.strerror}).") from None
    if start.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    if start[257:262] == b"ustar":
        return "tar"
    if start.startswith(b"\x1f\x8b"):
        return "tar.gz"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 27:
        return "safetensors"
    if not start:
        what = "is empty: download or copy it again"
    elif start.lstrip()[:1] == b"<":
        what = "is a web page, not parameters: the download was answered by a login or error page"
    elif start[0] == 0x80:
        what = (
            "is a Python pickle, which axfold does not open since it can run code: "
            "save its state dict with torch.save of PyTorch 1.6 or later, or as .npz"
        )
    else:
        what = "is no parameter file: .npz, .tar, .pt or .safetensors are read"
    raise WeightsError(f"{path} {what}.")


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write axfold's own format: a state dict, and the `model`, `source` and `licence` of `metadata`.

    The file appears under its name only when it is complete. Raises AxfoldError where it can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    about = {"format": FORMAT, "format_version": FORMAT_VERSION, **metadata}
    with replacing(path) as temporary:
        try:
            save_file(
                {name: np.ascontiguousarray(array) for name, array in tensors.items()}, temporary, about
            )
        except SafetensorError as error:
            raise AxfoldError(f"{path}: can't be written ({error}).") from error


def origin(path: Path) -> str:
    """What axfold's own file was converted from, as `write` was told; "" for any other file."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        return ""
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("source", "")
    except (SafetensorError, OSError):
        return ""  # `opened` says what is wrong with it


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name at the end, or vanishes if anything fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise AxfoldError(f"{path}: can't be written ({error.strerror or error}).") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def _zip_kind(path: Path) -> Kind:
    """PyTorch's files and NumPy's are both zip archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except _DAMAGED as error:
        raise _damaged(str(path), error) from error
    if any(name.endswith("/data.pkl") for name in members):
        return "torch"
    if members and all(name.endswith(".npy") for name in members):
        return "npz"
    raise WeightsError(
        f"{path} is a zip archive, but holds neither NumPy arrays (.npz) nor a state dict (.pt)."
    )


def _npz(stack: ExitStack, where: str, file: Path | IO[bytes], config: Config) -> Tensors:
    """DeepMind's file: one NumPy array a tensor, named `scope//name`."""
    try:
        archive = stack.enter_context(zipfile.ZipFile(file))
        headers = {}
        for member in archive.namelist():
            with archive.open(member) as data:
                headers[member.removesuffix(".npy")] = _header(data)
    except _DAMAGED as error:
        raise _damaged(where, error) from error
    found = {name: shape for name, (shape, _) in headers.items()}
    fit.check(where, found, config.model, released_shapes)
    for name, (_, dtype) in headers.items():
        if dtype != np.float32:
            raise WeightsError(f"{where}: tensor {name} has dtype {dtype}, and float32 is wanted.")
    _check_name(where, config)

    def read(name: str) -> np.ndarray:
        try:
            with archive.open(f"{name}.npy") as data:
                return np.lib.format.read_array(data, allow_pickle=False)
        except _DAMAGED as error:
            raise _damaged(f"{where}: tensor {name}", error) from error

    return Tensors(where, found, read)


def _header(data: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(data)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in reader:
        raise ValueError(f"NumPy format {version} is unknown")
    shape, _, dtype = reader[version](data)
    return shape, dtype


def _check_name(where: str, config: Config) -> None:
    """Models of one shape differ by their file's name only."""
    released = re.search(r"params_(model_\d\w*)\.npz$", where)
    if released and released[1] != config.name and released[1] in PRESETS and config.name in PRESETS:
        raise WeightsError(
            f"{where}: by its name it holds {released[1]}, and {config.name} is wanted. "
            f"Choose --model {released[1]}, or rename the file if its name is wrong."
        )


def _tar_member(stack: ExitStack, path: Path, config: Config, *, compressed: bool) -> Tensors:
    """One model of the released archive, compressed or not, without unpacking the others."""
    wanted = f"params_{config.name}.npz"
    where = f"{path}:{wanted}"
    try:
        archive = stack.enter_context(tarfile.open(path, "r:gz" if compressed else "r:"))  # noqa: SIM115
        names: list[str] = []
        for member in archive:
            names.append(member.name)
            if member.isfile() and member.name.rsplit("/", 1)[-1] == wanted:
                break
        else:
            holds = ", ".join(map(repr, names[:20])) or "nothing"
            raise WeightsError(f"{path} has no {wanted}; it holds {holds}.")
        file = archive.extractfile(member)
        assert file is not None  # it is a regular file
        if compressed:
            # A zip is read from its end, and a compressed stream seeks by decompressing again: unpack this one.
            unpacked = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
            shutil.copyfileobj(file, unpacked, 1 << 20)
            return _npz(stack, where, unpacked, config)
        return _npz(stack, where, stack.enter_context(file), config)
    except _DAMAGED as error:
        raise _damaged(str(path), error) from error


def _torch_state(path: Path) -> Mapping[str, object]:
    """The state dict in a `.pt`: bare, or in a training checkpoint, where its moving average comes first."""
    import pickle

    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds Python objects beside tensors, which axfold does not open since they can run code. "
            "Save its state dict alone with torch.save."
        ) from error
    except Exception as error:  # on wrong bytes PyTorch's loader fails in any way
        raise _damaged(str(path), error) from error
    for keys in (("ema", "params"), ("state_dict",), ("model",), ("module",)):
        inner = state
        for key in keys:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping):
            state = inner
            break
    if not isinstance(state, Mapping) or not all(
        isinstance(tensor, torch.Tensor) for tensor in state.values()
    ):
        raise WeightsError(
            f"{path}: holds no state dict (names and tensors). Save the model's with torch.save."
        )
    return state


def _safetensors(stack: ExitStack, path: Path, config: Config) -> Tensors:
    """axfold's own file, written by `write`."""
    from safetensors import SafetensorError, safe_open

    try:
        file = stack.enter_context(safe_open(path, framework="numpy"))
    except (SafetensorError, OSError) as error:
        raise _damaged(str(path), error) from error
    about = file.metadata() or {}
    if about.get("format") != FORMAT:
        raise WeightsError(
            f"{path} is not axfold's: convert the original file with `axfold weights convert`."
        )
    if about.get("format_version") != FORMAT_VERSION:
        raise WeightsError(
            f"{path} has format version {about.get('format_version')}, and {FORMAT_VERSION} is read: "
            "convert the original file again with `axfold weights convert`."
        )
    if about.get("model") != config.name:
        raise WeightsError(
            f"{path} holds {about.get('model')}, and {config.name} is wanted: choose with --model."
        )
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    for name, part in slices.items():
        if part.get_dtype() not in ("F32", "F16"):
            raise WeightsError(
                f"{path}: tensor {name} has dtype {part.get_dtype()}, and F32 or F16 is wanted."
            )
    shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    fit.check(str(path), shapes, config.model, fit.state_shapes)

    def read(name: str) -> np.ndarray:
        return file.get_tensor(name).astype(np.float32, copy=False)

    return Tensors(str(path), shapes, read, naming="axfold")


def _damaged(what: str, error: Exception) -> WeightsError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return WeightsError(f"{what} can't be read ({reason}): damaged or incomplete; download or copy it again.")
