r"""What a newcomer waits for: the README's commands in a fresh clone of the last commit.

    python -m benchmarks.fresh_clone --output=fresh_clone.json

Seconds of `make setup` (the package index included, without pip's cache), of `make reproduce` after
it, with ``--test`` of `make test`, and of `pip install .` in an environment of its own; the
megabytes that each environment takes, and the memory of the largest process. Every repeat clones
anew.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

from experiments.cli.options import Parser

from ._clone_table import FIRST
from ._report import provenance, save
from ._timing import summary

ROOT = pathlib.Path(__file__).parents[1]


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--test", action="store_true", help="make test, too")
    parser.add_argument("--output", help="JSON")
    return parser.parse_args(arguments)


def timed(words: list[str], folder: pathlib.Path) -> tuple[float, float]:
    """Seconds of a command, and GiB of the largest of its processes.

    Raises:
        SystemExit: if it fails, with the end of what it printed.
    """
    log = folder.with_suffix(".log")
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as out:
        cold = os.environ | {"PIP_NO_CACHE_DIR": "1"}
        child = subprocess.Popen(words, cwd=folder, env=cold, stdout=out, stderr=out)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds, gib = time.perf_counter() - started, usage.ru_maxrss / 2**20
    if child.returncode:
        raise SystemExit(f"{' '.join(words)}: {log.read_text(encoding='utf-8')[-2000:]}")
    return seconds, gib


def megabytes(folder: pathlib.Path) -> float:
    """Size of all files in a folder."""
    files = (path for path in folder.rglob("*") if not path.is_symlink() and path.is_file())
    return sum(path.stat().st_size for path in files) / 1e6


def measure(folder: pathlib.Path, targets: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Runs every command once, in a clone in this folder."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    found = {f"make {name}": timed(["make", name], folder) for name in targets}
    own = folder.parent / "own"
    subprocess.run([sys.executable, "-m", "venv", str(own)], check=True)
    pip = [str(own / "bin" / "python"), "-m", "pip", "install", "--quiet", "."]
    found["pip install ."] = timed(pip, folder)
    seconds = {name: seconds for name, (seconds, _) in found.items()}
    seconds[FIRST] = seconds["make setup"] + seconds["make reproduce"]
    return {
        "seconds": seconds,
        "gib": {name: gib for name, (_, gib) in found.items()},
        "megabytes": {"make setup": megabytes(folder / ".venv"), "pip install .": megabytes(own)},
    }


def main(arguments=None) -> dict:
    """Measures and returns the report it writes."""
    options = parse(arguments)
    report = provenance(options)
    targets = ("setup", "reproduce", *["test"] * options.test)
    rows = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(pathlib.Path(folder) / "clone", targets))
        print(", ".join(f"{name} {s:.0f} s" for name, s in rows[-1]["seconds"].items()), flush=True)
    for kind in rows[0]:
        report[kind] = summary({name: [row[kind][name] for row in rows] for name in rows[0][kind]})
    save(report, options.output)
    return report


if __name__ == "__main__":
    main()
