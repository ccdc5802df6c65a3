"""Files on disk: atomic writes, digests, locks and result folders.

Every file of the project is written here. A file is written under a temporary name, flushed to the
disk and moved into place, so that it is complete or absent. A folder of results lists the files
that were written there, with digests, in its marker `.fedlora-sim.json`. No command deletes or
overwrites a file that is not in such a list. docs/reliability.md describes the policy.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora_sim.errors import InputError, expected
from fedlora_sim.version import __version__, versions

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

try:
    import fcntl
except ImportError:  # not a POSIX system: no locks, and leftovers of killed runs remain
    fcntl = None  # type: ignore[assignment]

MARKER, FORMAT = ".fedlora-sim.json", 1
LOCK = ".lock"
PACKAGE = Path(__file__).parent
TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")

SIGNED = {
    ".nc": (b"\x89HDF\r\n", b"fedlora_sim_version"),
    ".json": (b"{", b'"fedlora_sim_version"'),
    ".html": (b"<!doctype html>", b'<meta name="generator" content="fedlora-sim">'),
    ".png": (b"\x89PNG", b"Software\0fedlora-sim"),
    ".pdf": (b"%PDF", b"/Creator (fedlora-sim)"),
}
"""First bytes of a file by this project, and further content that identifies it."""

_ENCODING = threading.Lock()
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


# Atomic writes


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name to write to, then move the file to its final name atomically.

    Missing folders are created. The file is flushed to the disk before the move, and the move
    before this returns. On an error nothing remains, including the folders that were created.

    Raises:
        OSError: names the file, not the temporary one.
    """
    target = Path(path)
    made = _make_folder(target.parent)
    try:
        with _temporary(target) as temporary:
            yield temporary
            _flush(temporary)
            temporary.replace(target)
        _flush(target.parent)
    except BaseException as error:
        _remove_empty(made)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


def write_bytes(path: str | Path, content: bytes | memoryview) -> Path:
    """Write a file atomically."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file atomically, in UTF-8."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, content: object) -> Path:
    """Write a JSON file atomically."""
    return write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file atomically; tensors that share memory are copied.

    Raises:
        OSError: if there is no space or no permission.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stored = tensor.contiguous()
        if stored.untyped_storage().data_ptr() in seen:
            stored = stored.clone()
        seen.add(stored.untyped_storage().data_ptr())
        own[name] = stored
    with replacing(path) as temporary:
        try:
            save_file(own, temporary, None if metadata is None else dict(metadata))
        except SafetensorError as error:  # it does not report the system's error number
            found = re.search(r"os error (\d+)", str(error))
            number = int(found[1]) if found else errno.EIO
            raise OSError(number, os.strerror(number) if found else str(error)) from error
    return Path(path)


def save_dataset(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write a netCDF file atomically.

    The file is built in memory, because HDF5 crashes if the disk is full.
    """
    return write_bytes(path, encode_dataset(dataset))


def load_dataset(path: str | Path) -> xr.Dataset:
    """Read a dataset into memory and close its file.

    Raises:
        InputError: if the file is damaged; names it.
    """
    import xarray as xr

    if not Path(path).is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        with xr.open_dataset(path, engine="h5netcdf") as dataset:
            return dataset.load()
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise damaged(path, "a complete netCDF file", error) from None


def encode_dataset(dataset: xr.Dataset) -> memoryview:
    """Return a dataset as netCDF in memory, encoded in a separate thread.

    The layout of an HDF5 file depends on when its objects are released. The profiler of a Dask
    worker keeps references to objects of the threads that it observes, so that encoding in a worker
    thread would make the bytes depend on the profiler's timing.
    """
    with _ENCODING, ThreadPoolExecutor(1) as thread:  # HDF5 writes one file at a time
        return thread.submit(encode_here, dataset).result()


def encode_here(dataset: xr.Dataset) -> memoryview:
    """Return a dataset as netCDF in memory, encoded in this thread.

    It writes to an open store, because `to_netcdf` would request a lock from the scheduler of a
    Dask client if there is one, although the data belong to this process alone.
    """
    import h5netcdf
    from xarray.backends import H5NetCDFStore

    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        dataset.dump_to_store(H5NetCDFStore(file))
    return buffer.getbuffer()


def remove_stale(folder: Path) -> None:
    """Remove temporary files and folders that killed processes left in a folder.

    A running process holds a lock on its temporary file; the system releases it when the process
    ends. A folder that was being replaced is restored first, see `replacing_folder`.
    """
    if fcntl is None or not folder.is_dir():
        return
    for path in folder.iterdir():
        named = TEMPORARY.fullmatch(path.name)
        if named is None or path.is_symlink():
            continue
        if path.is_dir() and not {entry.name for entry in path.iterdir()} <= {"new", "old"}:
            continue  # not written by this project
        if _is_pending(path):
            continue  # complete results, which the next command of a `ResultFolder` moves
        held = _lock(path, create=False)
        if held is None:
            continue
        try:
            if path.is_file():
                path.unlink(missing_ok=True)
                continue
            if (path / "old").exists() and not (folder / named[1]).exists():
                (path / "old").rename(folder / named[1])
                _flush(folder)
            shutil.rmtree(path)
        finally:
            os.close(held)


def damaged(path: str | Path, wanted: str, error: object, remedy: str = "") -> InputError:
    """Return the error for a file that cannot be read, with the remedy."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    told = remedy or "delete it and run the same command again"
    return expected("file", str(path), f"{wanted} ({reason}): {told}")


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder `new` in a hidden folder next to `target`, removed at the end.

    The hidden folder is locked while this process runs. It remains if it holds `old`, the previous
    content of `target`, while `target` is missing, and if the marker next to it says that its
    results must still be moved.
    """
    work = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    work.mkdir()
    held = _lock(work, create=False)
    try:
        (work / "new").mkdir()
        yield work / "new"
    finally:
        is_needed = (work / "old").exists() and not target.exists()
        if not is_needed and not _is_pending(work):
            shutil.rmtree(work, ignore_errors=True)
        if held is not None:
            os.close(held)


def _is_pending(work: Path) -> bool:
    """Return True if the marker of a folder says that results must still be moved from this one."""
    try:
        pending = _read_marker(work.parent).get("pending")
    except InputError:
        return True  # a damaged marker: assume so
    return pending is not None and Path(pending["from"]).parts[0] == work.name


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """Yield a temporary file next to `target`, locked while this process runs."""
    while True:
        path = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}.tmp")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # removed as a leftover before it was locked
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _flush(path: Path) -> None:
    """Flush a file or folder to the disk."""
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> list[Path]:
    """Create a folder and its parents, and return those created, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


# Digests


def digest(content: bytes | memoryview) -> str:
    """Return the SHA-256 digest in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor as they are in memory, for a digest."""
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def file_digest(path: Path) -> str:
    """Return the SHA-256 digest of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_fingerprint(folder: Path) -> str:
    """Return a hash of the Python sources below a folder, which marks results of other code."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


@cache
def code_versions() -> dict[str, str]:
    """Return package versions and a hash of the simulator's code, on which results depend."""
    import numpy as np

    code = source_fingerprint(PACKAGE)[:12]
    return {**versions(), "numpy_version": np.__version__, "code": code}


# Locks


@contextmanager
def only_writer(target: Path, argument: str = "out", *, inside: bool = True) -> Iterator[None]:
    """Hold the lock of an output; the system releases it when the process ends.

    Args:
        target: the output. A folder is created, and removed again if it is still empty at the end.
        argument: the caller's name of the output.
        inside: whether the target is a folder that stays; otherwise the lock lies next to the
            target.

    Raises:
        InputError: if another process holds the lock; names the process.
    """
    folder = target if inside else target.parent
    made = _make_folder(folder)
    path = folder / (LOCK if inside else f".{target.name}{LOCK}")
    refused = expected(argument, str(target), f"no other process at work there ({_holder(path)})")
    try:
        if fcntl is None:
            with _file_lock(path, refused):
                yield
            return
        held = _lock(path, create=True)
        if held is None:
            raise refused
        try:
            with contextlib.suppress(OSError):  # a full disk: the lock is valid without a name
                os.ftruncate(held, 0)
                os.write(held, f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(held)
    finally:
        _remove_empty(made)


@contextmanager
def _file_lock(path: Path, refused: InputError) -> Iterator[None]:
    """Yield a lock on systems without flock; its empty file remains."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise refused from None
    try:
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    try:
        return f"{path.read_text(encoding='utf-8') or 'one'} is"
    except OSError:
        return "one has just ended"


def _lock(path: Path, *, create: bool) -> int | None:
    """Return a descriptor that locks a file or folder; None if another process holds the lock."""
    while fcntl is not None:
        try:
            flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
            descriptor = os.open(path, flags, 0o666)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            if create:
                raise
            return None
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # the holder removed it between the two calls
    return None


# Result folders


def is_signed(path: Path) -> bool:
    """Return True if a single file states that this project wrote it."""
    start, mark = SIGNED.get(path.suffix.lower(), (b"", b""))
    if not mark or not path.is_file():
        return False
    content = path.read_bytes()
    return content[: len(start)].lower() == start.lower() and mark in content


def check_file(path: Path, argument: str, *, force: bool) -> None:
    """Refuse to overwrite a file without `--force`, or one that this project did not write.

    Raises:
        InputError: names the file.
    """
    if not path.exists() and not path.is_symlink():
        return
    if path.is_dir():
        raise expected(argument, str(path), "a file (this is a folder)")
    if path.is_symlink() or not is_signed(path):
        raise expected(argument, str(path), "a new file: fedlora-sim did not write this one")
    if not force:
        raise expected(argument, str(path), "a new file (or --force to replace the old one)")


class ResultFolder:
    """A folder whose marker lists its results with digests.

    New results are completed in a hidden folder inside it. Then the marker names them, which makes
    them valid; each is moved into place, and older results of the same command are removed. If the
    process is stopped meanwhile, the next command in this folder completes the move.

    Args:
        folder: may be missing; may hold other files, which are never changed.
        command: the writing command; it replaces only its own older results.
        argument: the caller's name of the folder.
        force: whether results that were edited since may be replaced; None if there is no such
            option.
    """

    def __init__(
        self,
        folder: str | Path,
        command: str,
        *,
        argument: str = "--out",
        force: bool | None = None,
    ) -> None:
        self.folder, self.command = Path(folder), command
        self.argument, self.force = argument, force

    @contextmanager
    def only_writer(self) -> Iterator[None]:
        """Hold the folder's lock; first complete and remove what a killed process left.

        Raises:
            InputError: if another process writes there.
        """
        with only_writer(self.folder, self.argument):
            self._complete()
            remove_stale(self.folder)
            yield

    def files(self) -> dict[str, dict[str, str]]:
        """Return the listed files by path: `sha256` and `command`."""
        return dict(_read_marker(self.folder).get("files", {}))

    def check(self, names: Iterable[str], *, drop_older: bool = True) -> None:
        """Refuse to overwrite files that are not unchanged results of this project.

        Args:
            names: paths within the folder that will be written.
            drop_older: whether all other results of the command will be removed.

        Raises:
            InputError: names the first such file.
        """
        older = [n for n, own in self.files().items() if own["command"] == self.command]
        for name in dict.fromkeys((*names, *(older if drop_older else ()))):
            self._check_one(name)

    @contextmanager
    def replace(self, *, drop_older: bool = True) -> Iterator[Path]:
        """Yield a folder whose content then replaces the results of the command.

        Args:
            drop_older: whether all other results of the command are removed.

        Raises:
            InputError: if a file prevents it, before anything is replaced.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with temporary_folder(self.folder / "results") as new:
            yield new
            written = _digests(new)
            self.check(written, drop_older=drop_older)
            own, listed = {"command": self.command}, self.files()
            found = {name: {"sha256": content, **own} for name, content in written.items()}
            gone = [
                name
                for name, entry in listed.items()
                if drop_older and entry["command"] == self.command and name not in found
            ]
            place = new.relative_to(self.folder).as_posix()
            pending = {"from": place, "files": found, "drop": gone}
            _write_marker(self.folder, {"files": listed, "pending": pending})
            self._complete()

    def put(self, name: str, text: str) -> Path:
        """Replace one text result."""
        with self.only_writer(), self.replace(drop_older=False) as new:
            write_text(new / name, text)
        return self.folder / name

    def _check_one(self, name: str) -> None:
        path, content = self.folder / name, _read_marker(self.folder)
        # Some pending results may already be in place.
        lists = (content.get("files", {}), (content.get("pending") or {}).get("files", {}))
        known = [listed[name]["sha256"] for listed in lists if name in listed]
        for parent in path.relative_to(self.folder).parents:
            place = self.folder / parent
            is_folder = place.is_dir() and not place.is_symlink()
            if place != self.folder and place.exists() and not is_folder:
                raise self._refusal(f"{parent} is not a folder of results")
        if not path.exists() and not path.is_symlink():
            return
        is_file = path.is_file() and not path.is_symlink()
        if is_file and file_digest(path) in known:
            return
        if not is_file or name not in lists[0]:
            raise self._refusal(f"fedlora-sim did not write {name} there: move it away")
        if not self.force:
            remedy = "move it away" if self.force is None else "move it away, or --force"
            raise self._refusal(f"{name} was changed since it was written: {remedy}")

    def _refusal(self, reason: str) -> InputError:
        return expected(self.argument, str(self.folder), f"a folder to write to ({reason})")

    def _complete(self) -> None:
        """Move pending results into place and remove those that they replace."""
        content = _read_marker(self.folder)
        pending = content.get("pending")
        if pending is None:
            return
        new = self.folder / pending["from"]
        for name in (*pending["files"], *pending["drop"]):
            self._check_one(name)  # checked again: it may have been created or changed meanwhile
        for name in pending["files"]:
            if (new / name).exists():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).replace(self.folder / name)
        for name in pending["drop"]:
            (self.folder / name).unlink(missing_ok=True)
        for folder in {(self.folder / name).parent for name in pending["drop"]} - {self.folder}:
            with contextlib.suppress(OSError):  # the folder is not empty
                folder.rmdir()
        for folder in {(self.folder / name).parent for name in pending["files"]}:
            _flush(folder)
        kept = {n: own for n, own in content["files"].items() if n not in pending["drop"]}
        _write_marker(self.folder, {"files": kept | pending["files"]})


def _read_marker(folder: Path) -> dict[str, Any]:
    """Return the marker of a folder; empty if there is none.

    Raises:
        InputError: if it is damaged.
    """
    path = folder / MARKER
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
        pending = content.get("pending") or {"from": ".", "files": {}, "drop": []}
        for entry in (*content["files"].values(), *pending["files"].values()):
            _ = entry["sha256"] + entry["command"]
        names = [*content["files"], *pending["files"], *pending["drop"], pending["from"]]
        if content["format"] != FORMAT or any(_leads_out(name) for name in names):
            raise ValueError(f"format {content['format']}")
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = "move the folder away, or delete this file, and all files there count as yours"
        raise damaged(path, "a list of results", error, remedy) from None
    return content


def _write_marker(folder: Path, content: Mapping[str, Any]) -> None:
    write_json(folder / MARKER, {"format": FORMAT, "fedlora_sim_version": __version__, **content})


def _leads_out(name: str) -> bool:
    return Path(name).is_absolute() or ".." in Path(name).parts


def _digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file below a folder, by its relative path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def result_file(path: Path, command: str, *, argument: str = "--out") -> Callable[[str], Path]:
    """Check that a result may be written, before it is computed.

    Returns:
        A function that writes its text and lists the file in the marker of its folder.

    Raises:
        InputError: if there is a file that is not an unchanged result.
    """
    results = ResultFolder(path.parent, command, argument=argument)
    results.check([path.name], drop_older=False)
    return partial(results.put, path.name)


# Folders that are replaced as a whole


@contextmanager
def replacing_folder(out: Path, command: str, *, force: bool) -> Iterator[Path]:
    """Yield a folder next to `out` to write to, then put it at `out` in one step.

    The marker lists all its files. The previous folder is removed afterwards; on an error it is
    kept.

    Raises:
        InputError: if something else was created at `out` meanwhile, see `check_folder`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(out) as new:
        yield new
        files = {n: {"sha256": d, "command": command} for n, d in _digests(new).items()}
        _write_marker(new, {"files": files})
        for folder in (*(path for path in new.rglob("*") if path.is_dir()), new):
            _flush(folder)
        check_folder(out, force=force)  # checked again: it may have changed
        _put_in_place(new, out, new.with_name("old"), force)


def check_folder(out: Path, argument: str = "out", *, force: bool) -> None:
    """Refuse to replace a folder without `--force`, or one with files of others.

    Raises:
        InputError: names the folder and its files.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise expected(argument, str(out), "a place to write to (it is a file)")
    if not force:
        raise expected(argument, str(out), "a folder that does not exist yet (or --force)")
    listed = _read_marker(out).get("files", {})
    ours = {MARKER, *listed}
    folders = {parent.as_posix() for name in listed for parent in Path(name).parents}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_symlink() or name not in (folders if path.is_dir() else ours):
            what = f"a folder that fedlora-sim wrote, but it also holds {name}: move that away"
            raise expected(argument, str(out), what)


def _put_in_place(new: Path, out: Path, old: Path, force: bool) -> None:
    """Move `new` to `out`; the previous content is at `new` or `old` afterwards."""
    if not out.exists():
        new.rename(out)
    elif _exchange(new, out):
        try:
            check_folder(new, force=force)  # files created between the check and the exchange
        except InputError:
            _exchange(new, out)
            raise
    else:
        out.rename(old)
        try:
            new.rename(out)
        except BaseException:
            old.rename(out)
            raise
    _flush(out.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders atomically.

    Return False if the system or file system does not support it.
    """
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    first, second = os.fsencode(one), os.fsencode(other)
    if call(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))
