"""Where the files of a data set are, on disk or in the user's cache, and their bytes."""

from __future__ import annotations

import gzip
import lzma
import os
import zlib
from pathlib import Path

__all__ = ["find_file", "find_folder", "read_bytes"]


def find_folder(name: str, root: str | os.PathLike[str] | None, probe: str) -> Path | None:
    """Return the folder that holds `probe` (compressed or plain); None where it is to be downloaded to the cache."""
    given = root if root is not None else os.environ.get("ISOMETRY_DATA")
    if given is None:
        return None
    for folder in (Path(given) / name, Path(given)):
        if any(present(folder, probe)):
            return folder
    if root is not None:
        raise FileNotFoundError(
            f"data.load({name!r}, root={os.fspath(root)!r}) found no {probe} (compressed or plain) there or in its "
            f"subfolder {name!r}. Leave root out to download the set: data.load({name!r})."
        )
    return None


def present(folder: Path, file: str) -> list[Path]:
    """Return the variants of `file` in `folder`: as named, and with the suffix .gz or .xz taken away or changed."""
    plain = file.removesuffix(".gz").removesuffix(".xz")
    return [path for suffix in (".gz", ".xz", "") if (path := folder / (plain + suffix)).is_file()]


def find_file(name: str, folder: Path | None, file: str, url: str, md5: str) -> Path:
    if folder is not None:
        if found := present(folder, file):
            return found[0]
        raise FileNotFoundError(f"data.load({name!r}) found other files of the set in {folder}, but not {file}.")
    import pooch  # downloads only

    cache = Path(pooch.os_cache("isometry")) / name
    return Path(pooch.retrieve(url + file, known_hash=f"md5:{md5}", fname=file, path=cache, progressbar=True))


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
