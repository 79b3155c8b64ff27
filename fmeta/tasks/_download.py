"""Downloads through pooch: checksum, cache folder, and a partial file that the next try continues."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pooch
import requests
from filelock import FileLock

from fmeta.core import InputError


def fetch(url: str, checksum: str, folder: Path, *, progress: bool = True) -> Path:
    """The file at `url` in `folder`, downloaded if it is not there yet and matches `checksum` ("sha256:…" or "md5:…").

        url = "https://example.org/pictures.zip"
        path = fmeta.tasks.fetch(url, "sha256:9f86d081884c7d65…", fmeta.tasks.cache_folder() / "pictures")

    A download that breaks off leaves `NAME.part`; the next try asks the server for the rest.

    Raises:
        InputError: no connection, or a file that does not match after three tries.
    """
    name = url.rsplit("/", 1)[-1]
    remote = pooch.create(path=folder, base_url="", registry={name: checksum}, urls={name: url}, retry_if_failed=2)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):  # the processes of one machine share the partial file
            return Path(remote.fetch(name, downloader=_Resuming(folder / f"{name}.part", progress)))
    except (ValueError, OSError, requests.RequestException) as error:
        raise InputError(
            f"fetch({url}): {error}; expected a file with checksum {checksum}; run it again to go on from what "
            f"is there, or put the file into {folder} yourself"
        ) from error


class _Resuming:
    """A pooch downloader that appends to a partial file which outlives a failure."""

    def __init__(self, part: Path, progress: bool) -> None:
        self.part, self.progress = part, progress

    def __call__(self, url: str, output_file: Any, pooch_: Any) -> None:
        have = self.part.stat().st_size if self.part.exists() else 0
        # identity: a compressed answer has other byte ranges than the file
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        download = pooch.HTTPDownloader(progressbar=self.progress and _has_tqdm(), headers=headers, timeout=30)
        try:
            with self.part.open("ab") as partial:
                download(url, partial, pooch_)
        except requests.HTTPError as error:
            if error.response is not None and error.response.status_code == 416:  # no such range: begin again
                self.part.unlink()
            raise
        # a server that ignores the range sends the whole file again: the checksum tells, and the next try is fresh
        os.replace(self.part, output_file)


def _has_tqdm() -> bool:
    from importlib.util import find_spec

    return find_spec("tqdm") is not None
