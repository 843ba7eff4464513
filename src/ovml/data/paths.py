"""Checks the paths of images in data files: inside the data set's folder, and not on a server."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ovml.utils.errors import UserError

LOCAL_PROTOCOLS = {"file", "hf", "zip", "tar", "gzip", "bz2", "xz", "lz4", "zstd"}
"""Protocols of files on this machine, inside archives, or on the Hub."""


class PathCheck:
    r"""Refuses paths of images that a data file of a stranger must not name.

    These are addresses on servers, which reading would ask for; absolute paths and `..` that leave the data set's
    folders; and names with line breaks or other control characters, which would break lists of paths. Links inside the
    folders are followed.

    Args:
        folders: Folders that paths may lead to. Relative paths without `..` are always inside.
        allow_outside: Allow paths that leave the folders.
        allow_urls: Allow addresses on servers.
        advice: What a user can do about a path that leaves the folders.

    Example:
        >>> inside = PathCheck(["/data"])
        >>> paths = ["a.png", "/data/a/../b.png", "zip://a.png::/data/a.zip", "../a.png", "http://10.0.0.1/a.png"]
        >>> [bool(inside.fault(path)) for path in paths]
        [False, False, False, True, True]
    """

    def __init__(
        self,
        folders: Iterable[str | Path] = (),
        allow_outside: bool = False,
        allow_urls: bool = False,
        advice: str = "correct it",
    ) -> None:
        self.folders = [kind(folder) for folder in folders for kind in (os.path.abspath, os.path.realpath)]
        self.allow_outside = allow_outside
        self.allow_urls = allow_urls
        self.advice = advice

    def fault(self, path: str) -> str | None:
        """Why a path is refused, and what to do; `None` if it is not."""
        if re.search(r"[\x00-\x1f]", path):
            return "has a line break or another control character; rename the file"
        protocols = re.findall(r"([\w.+-]*)://", path.lower())
        if not set(protocols) <= LOCAL_PROTOCOLS:
            advice = "download the images, or allow addresses if you trust the data set (allow_urls=true)"
            return None if self.allow_urls else f"is an address on a server; {advice}"
        place = path.split("::")[-1].removeprefix("file://")  # after the paths inside archives
        if self.allow_outside or "://" in place:
            return None
        place = os.path.normpath(os.path.expanduser(place) if protocols else place)  # as what opens addresses does
        if os.path.isabs(place):
            inside = any(Path(place).is_relative_to(folder) for folder in self.folders)
        else:
            inside = place.split(os.sep)[0] != os.pardir
        where = f" {self.folders[0]}" if self.folders else ""
        return None if inside else f"leaves the folder{where}; {self.advice}, or allow such paths (allow_outside=true)"

    def check(self, path: str | None, where: str) -> None:
        """Raise a `UserError` about a path that is refused.

        Args:
            path: Of an image; `None` for none.
            where: The file or data set that names it.
        """
        if path is not None and (fault := self.fault(path)):
            raise UserError(f"{where}: image path {path!r} {fault}")

    def check_all(self, paths: pa.Array | pa.ChunkedArray, where: str) -> None:
        """Check many paths; only those that need it are looked at one by one."""
        paths = paths.cast(pa.string())  # of a column without any path the type is null
        suspect = pc.match_substring_regex(paths, r"[\x00-\x1f]|://")
        if not self.allow_outside:
            outside = pc.match_substring_regex(paths, r"^([/\\]|\w:)")
            for folder in self.folders:
                outside = pc.and_not(outside, pc.starts_with(paths, os.path.join(folder, "")))
            suspect = pc.or_(suspect, pc.or_(outside, pc.match_substring_regex(paths, r"(^|/)\.\.(/|$)")))
        for path in pc.unique(paths.filter(suspect)).to_pylist():
            self.check(path, where)

    def check_images(self, images: pa.ChunkedArray, where: str) -> None:
        """Check the paths of a column of `datasets.Image`; images that are part of their row need no path."""
        paths, content = (pc.struct_field(images, name) for name in ("path", "bytes"))
        self.check_all(paths.filter(content.is_null()), where)

    def check_row(self, image: Any, where: str) -> None:
        """Check the path of an undecoded image."""
        if isinstance(image, Mapping) and image.get("bytes") is None:
            self.check(image.get("path"), where)
