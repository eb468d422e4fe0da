"""Command line: `python -m experiments.data NAME...` downloads and verifies data sets."""

import sys
import warnings
from collections.abc import Sequence

import numpy as np

from ..cli.options import Parser
from ._archives import extract
from ._dataset import DataError, DataMissingError, Dataset
from ._fetch import fetch
from ._registry import EMBEDDED, NAMES, OPENED, SPECS, check_name
from ._sources import cache_path, data_folder


def summary(dataset: Dataset) -> str:
    """A text summary of a data set: sizes, images per class, source and verification."""
    height, width, channels = dataset.image_shape
    parts = ((dataset.train_labels, "train"), (dataset.test_labels, "test"))
    counts = [np.bincount(labels, minlength=dataset.num_classes) for labels, _ in parts]
    wide = max(len(name) for name in dataset.class_names)
    lines = [
        f"{dataset.name}: {len(dataset.train_labels)} training and {len(dataset.test_labels)} "
        f"test images of {height}x{width}x{channels}, {dataset.num_classes} classes",
        f"  source    {dataset.source}",
        f"  verified  {dataset.verification}",
        f"  {'class':{wide}}  {'train':>6}  {'test':>6}",
    ]
    for name, train, test in zip(dataset.class_names, *counts, strict=True):
        lines.append(f"  {name:{wide}}  {train:6d}  {test:6d}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0, or 2 after an error."""
    parser = Parser(
        prog="python -m experiments.data",
        description="Downloads data sets and verifies them against their published checksums.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--list", action="store_true", help="list the data sets on this machine")
    parser.add_argument("--data-dir", help="folder with the data (default: $JAXADV_DATA, data)")
    parser.add_argument(
        "--extract",
        metavar="ARCHIVE",
        help="safely extract a tar archive into the data folder, for programs that need folders",
    )
    options = parser.parse_args(argv)
    if not (options.names or options.list or options.extract):
        parser.error(f"NAME is missing; give one of {', '.join(NAMES)}, or --list")
    # Print a warning (the verified copy can't be kept) as one line, without a source line.
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(
            f"Warning: {message}", file=sys.stderr
        )
        warnings.simplefilter("always", UserWarning)
        try:
            if options.list:
                _list(options.data_dir)
            if options.extract:
                for path in extract(options.extract, data_folder(options.data_dir)):
                    print(f"Extracted {path}")
            for name in options.names:
                check_name(name)
            for name in options.names:
                print(summary(_get(name, options.data_dir)))
        except (DataError, DataMissingError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("Interrupted; run the same command to resume", file=sys.stderr)
            return 130
    return 0


def _get(name: str, data_dir: str | None) -> Dataset:
    if name in OPENED:
        return OPENED[name](data_dir)
    return EMBEDDED[name]() if name in EMBEDDED else fetch(SPECS[name], data_dir)


def _opened(name: str, data_dir: str | None) -> str:
    try:
        return OPENED[name](data_dir).source
    except DataMissingError:
        return "missing: its files must be prepared by hand"


def _list(data_dir: str | None) -> None:
    folder = data_folder(data_dir)
    for name in NAMES:
        if name in EMBEDDED:
            print(f"{name:10} needs no files")
            continue
        if name in OPENED:
            print(f"{name:10} {_opened(name, data_dir)}")
            continue
        spec = SPECS[name]
        searched = (folder, folder / name)
        found = (reader.what for reader in spec.readers if reader.find(searched) is not None)
        if cache_path(spec, folder).exists():
            where = f"verified copy in {folder}"
        else:
            where = next(found, f"missing: python -m experiments.data {name}")
        print(f"{name:10} {where}")


if __name__ == "__main__":
    sys.exit(main())
