"""From files on disk to a verified `Dataset`: search, check, keep a copy.

A `Spec` describes a data set completely; no function here refers to one by name. To add a data set,
write a file with its `Spec` and register it in `_registry.py`.
"""

import contextlib
import dataclasses
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ._dataset import Arrays, DataError, DataMissingError, Dataset

ENVIRONMENT_VARIABLE = "JAXADV_DATA"

# Name of an official file, and a function that returns its bytes.
OfficialFile = tuple[str, Callable[[], bytes | np.ndarray]]


class Reader(NamedTuple):
    """One on-disk format of a data set.

    Attributes:
      what: description of the format.
      find: takes the folders to search and returns the file or folder to read, or None.
      read: takes the spec and that path and returns the arrays in official order.
      hint: extra information for a user who does not have it.
      checks: what `read` verifies beyond the arrays' checksums, for the description of the source.
    """

    what: str
    find: Callable[[Sequence[Path]], Path | None]
    read: Callable[["Spec", Path], Arrays]
    hint: str = ""
    checks: str = ""


class Download(NamedTuple):
    """Files on an official host.

    Attributes:
      base: URL of the folder, with a trailing slash.
      files: (name, MD5 of the downloaded file) for each.
    """

    base: str
    files: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Spec:
    """Everything about one data set.

    Attributes:
      name: the name `load` takes.
      image_shape: (height, width, channels).
      class_names: in label order.
      train_counts: images in each official training file.
      test_counts: images in each official test file.
      md5: MD5 of each file that `serialise` writes, in order: the official ones, uncompressed.
      serialise: serializes arrays into the official files.
      readers: on-disk formats, in the order they are tried.
      downloads: official hosts, in the order they are tried.
      npm: npm package with the same data, as `name@version`, or None.
      mean: channel means the model subtracts, or None.
      std: channel standard deviations the model divides by, or None.
      file_md5: MD5 of files on disk, for readers to check; see `check_md5`.
      verification: what `md5` covers, where it is not the whole data.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    md5: Mapping[str, str]
    serialise: Callable[["Spec", Arrays], Iterator[OfficialFile]]
    readers: tuple[Reader, ...]
    downloads: tuple[Download, ...]
    npm: str | None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    file_md5: Mapping[str, str] = dataclasses.field(default_factory=dict)
    verification: str | None = None

    @property
    def npm_archive(self) -> str | None:
        """Name of the file that `npm pack` writes."""
        return None if self.npm is None else self.npm.replace("@", "-") + ".tgz"


def named(*names: str) -> Callable[[Sequence[Path]], Path | None]:
    """A `Reader.find` that returns the first of these names in any of the folders."""

    def find(folders: Sequence[Path]) -> Path | None:
        paths = (folder / name for folder in folders for name in names)
        return next((path for path in paths if path.exists()), None)

    return find


def check_md5(spec: Spec, name: str, raw: bytes, where: str | Path, remedy: str) -> None:
    """Raises a `DataError` unless a file has the MD5 published for its name."""
    digest = hashlib.md5(raw).hexdigest()
    if digest != spec.file_md5[name]:
        problem = f"not the published file: its MD5 is {digest}, expected {spec.file_md5[name]}"
        raise DataError(where, problem, remedy)


def data_folder(data_dir: str | Path | None = None) -> Path:
    """The folder with the data: the argument, $JAXADV_DATA, or `data` in the current directory."""
    chosen = Path(data_dir or os.environ.get(ENVIRONMENT_VARIABLE) or "data").expanduser()
    if chosen.exists() and not chosen.is_dir():
        raise DataError(chosen, "is not a folder", "Set data_dir to the folder with the data")
    return chosen


def load_spec(spec: Spec, data_dir: str | Path | None = None, *, cache: bool = True) -> Dataset:
    """Finds, reads and verifies a data set; never downloads.

    Args:
      spec: the data set.
      data_dir: see `data_folder`.
      cache: whether to keep a verified copy, which the next call loads in a second.

    Returns:
      The data set.

    Raises:
      DataError: if the files found are damaged or are not the published data.
      DataMissingError: if nothing was found.
    """
    folder = data_folder(data_dir)
    copy = cache_path(spec, folder)
    if copy.exists():
        arrays, source = _read_cache(copy)
        return verified(spec, arrays, copy, f"{source}, from the verified copy {copy.name}")
    searched = (folder, folder / spec.name)
    for reader in spec.readers:
        if (path := reader.find(searched)) is not None:
            # Names without folders: the source appears in reports that others read.
            checks = f", {reader.checks}" if reader.checks else ""
            source = f"{reader.what} ({path.name}{checks})"
            dataset = verified(spec, reader.read(spec, path), path, source)
            if cache:
                _write_cache(copy, dataset)
            return dataset
    option = f" --data-dir {data_dir}" if data_dir else ""
    raise DataMissingError(
        f"{spec.name} is not on this machine: looked in {searched[0]} and {searched[1]} for "
        + ", ".join(reader.what + reader.hint for reader in spec.readers)
        + ".",
        f"Download it with: python -m experiments.data {spec.name}{option}",
    )


def cache_path(spec: Spec, folder: Path) -> Path:
    """Path of the verified copy of a data set."""
    return folder / f"{spec.name}-verified.npz"


def verified(spec: Spec, arrays: Arrays, where: Path, source: str) -> Dataset:
    """Checks shapes, label range and published checksums."""
    remedy = f"Move it away and run: python -m experiments.data {spec.name}"
    counts = {"train": sum(spec.train_counts), "test": sum(spec.test_counts)}
    for part, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        expected = (counts[part], *spec.image_shape)
        if images.dtype != np.uint8 or images.shape != expected:
            problem = f"{part} images are {images.dtype} {images.shape}, not uint8 {expected}"
            raise DataError(where, problem, remedy)
        if not np.issubdtype(labels.dtype, np.integer) or labels.shape != expected[:1]:
            problem = f"{part} labels are {labels.dtype} {labels.shape}, not int {expected[:1]}"
            raise DataError(where, problem, remedy)
        if labels.min() < 0 or labels.max() >= len(spec.class_names):
            problem = f"{part} labels go from {labels.min()} to {labels.max()}"
            raise DataError(where, f"{problem}, not 0..{len(spec.class_names) - 1}", remedy)
    files = list(spec.serialise(spec, arrays))
    # hashlib and NumPy copies release the GIL: twice as fast on two cores.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        digests = pool.map(lambda file: hashlib.md5(file[1]()).hexdigest(), files)
        for (name, _), digest in zip(files, digests, strict=True):
            if digest != spec.md5[name]:
                problem = (
                    f"not the published {spec.name}: its images and labels, serialized as the "
                    f"official {name}, have MD5 {digest}, expected {spec.md5[name]}"
                )
                raise DataError(where, problem, remedy)
    return Dataset(
        spec.name,
        arrays.train_images,
        arrays.train_labels.astype(np.int32),
        arrays.test_images,
        arrays.test_labels.astype(np.int32),
        class_names=spec.class_names,
        source=source,
        verification=spec.verification
        or "published MD5 of " + ", ".join(name for name, _ in files),
        mean=spec.mean,
        std=spec.std,
    )


def _read_cache(path: Path) -> tuple[Arrays, str]:
    try:
        # Open the file here: NumPy leaves it open when the archive is truncated.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return Arrays(*(archive[name] for name in Arrays._fields)), str(archive["source"])
    except Exception as e:  # zipfile, zlib, struct and NumPy raise many types on a damaged file.
        raise DataError(
            path,
            f"damaged, or not a copy written by this project ({e})",
            "Delete it: the next load recreates it from the original files",
        ) from e


def _write_cache(path: Path, dataset: Dataset) -> None:
    """Keeps a verified copy, or warns why it can't; the data are loaded either way."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                fields = {name: getattr(dataset, name) for name in Arrays._fields}
                np.savez(file, allow_pickle=False, source=np.array(dataset.source), **fields)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(
            f"could not keep a verified copy of {dataset.name} at {path} ({error.strerror}). The "
            f"data were loaded from {dataset.source}; to make the next load faster, free some "
            f"space or set {ENVIRONMENT_VARIABLE} to a writable folder.",
            stacklevel=3,
        )
