"""Locations of the files of a data set, on disk or in the user's cache, and their contents."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

__all__ = ["check_content", "download", "find_file", "find_folder", "read_bytes"]


def find_folder(name: str, root: str | os.PathLike[str] | None, probe: str) -> Path | None:
    """Return the folder that contains `probe` (compressed or plain), None where the set is not on disk.

    Args:
        name: of the set, and of the subfolder to look into first.
        root: the folder to look into; None means $ISOMETRY_DATA.
        probe: the name of one of the set's files.

    Raises:
        FileNotFoundError: `root` is given and does not contain the file.
    """
    start = root if root is not None else os.environ.get("ISOMETRY_DATA")
    if start is None:
        return None
    for folder in (Path(start) / name, Path(start)):
        if _variants(folder, probe):
            return folder
    if root is not None:
        raise FileNotFoundError(
            f"data.load({name!r}, root={os.fspath(root)!r}) found no {probe} (compressed or plain) there or in its "
            f"subfolder {name!r}. Leave root out to download the set: data.load({name!r})."
        )
    return None


def _variants(folder: Path, file: str) -> list[Path]:
    """Return the paths in `folder` at which `file` exists: with the suffix .gz, with .xz, and with neither."""
    plain = file.removesuffix(".gz").removesuffix(".xz")
    return [path for suffix in (".gz", ".xz", "") if (path := folder / (plain + suffix)).is_file()]


def find_file(name: str, folder: Path | None, file: str, url: str = "", md5: str = "") -> Path:
    """Return the path of one of a set's files, which is downloaded to the user's cache where `folder` is None.

    Args:
        name: of the set.
        folder: that contains the set's files.
        file: the name of the file, with or without the suffix .gz or .xz.
        url: the folder to download it from.
        md5: its checksum.

    Raises:
        FileNotFoundError: `folder` is given and does not contain the file.
    """
    if folder is not None:
        if paths := _variants(folder, file):
            return paths[0]
        raise FileNotFoundError(f"data.load({name!r}) found other files of the set in {folder}, but not {file}.")
    return download(name, url + file, file, md5, [file])[0]


def download(name: str, url: str, file: str, md5: str, wanted: Sequence[str], *, unpack: bool = False) -> list[Path]:
    """Download a file of a set into the user's cache, unless it is there; return its path, or those of its content.

    Args:
        name: of the set.
        url: of the file.
        file: its name in the cache.
        md5: its checksum.
        wanted: the files of the set that it holds, for the error.
        unpack: whether it is an archive to unpack.

    Raises:
        ConnectionError: it cannot be downloaded, or is another file; the message says what to put where by hand.
    """
    import pooch  # only where something is downloaded

    cache = Path(pooch.os_cache("isometry")) / name
    options = {"processor": pooch.Untar(extract_dir=".")} if unpack else {}
    try:
        found = pooch.retrieve(url, known_hash=f"md5:{md5}", fname=file, path=cache, progressbar=True, **options)
    except Exception as error:  # whatever the network, the disk and the checksum raise
        root = os.environ.get("ISOMETRY_DATA")
        told = "is not set" if root is None else f"is {root!r}"
        raise ConnectionError(
            f"data.load({name!r}) could not download {url} ({type(error).__name__}: {error}). Get it by other means and put "
            f"{', '.join(wanted)} into the folder {name} of the one that ISOMETRY_DATA names ({told}): $ISOMETRY_DATA/{name}/"
            f"{wanted[0]}; or name the folder, e.g. data.load({name!r}, root='path/to/files')."
        ) from error
    return [Path(path) for path in ([found] if isinstance(found, str) else found)]


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes, decompressed where its name ends in .gz or .xz.

    Raises:
        ValueError: the compressed file is truncated or corrupt.
    """
    unpack = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(path.suffix)
    content = path.read_bytes()
    try:
        return unpack(content) if unpack else content
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise ValueError(
            f"{path} is truncated or corrupt: expected a whole {path.suffix} file, found {path.stat().st_size} bytes "
            f"that do not decompress ({error}). Delete it and load the set again."
        ) from error


def check_content(path: Path, content: bytes | memoryview, sha256: str | None) -> str:
    """Return the SHA-256 digest of a file's decompressed content; raise a ValueError where it is not the published one.

    Args:
        path: the file.
        content: what `read_bytes` returned.
        sha256: of the published content, None where it is not known.
    """
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise ValueError(
            f"{path} is not the published file: expected the SHA-256 {sha256[:16]}... of its content, found {found[:16]}.... "
            "Delete it and download the set again; for a data set of your own, build isometry.data.Data from tensors."
        )
    return found
