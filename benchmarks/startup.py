r"""Time to the first minibatch of an entry point, with a cold and a warm compilation cache.

    python -m benchmarks.startup
    python -m benchmarks.startup --method=at_ensgd --dataset=digits

A fresh process imports, reads the data, builds, and takes its first two steps, once with an empty
cache folder and once with the cache the first one left; that is repeated with new folders. Prints
the seconds of each part and how many programs were compiled rather than found in the cache.
(tests/experiments/run/test_train.py checks that a whole run compiles no more.) Beside them the
seconds of ``import jaxadv`` and of the entry point's ``--help``. In the JSON "kinds" are the
seconds up to the end of the first step by what JAX does in them, "slowest" those of the slowest
programs.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from experiments.cli.options import Parser

from ._report import provenance, save
from ._timing import summary


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--method", default="at")
    parser.add_argument("--scale", default="laptop")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", help="JSON")
    return parser.parse_args(arguments)


def run(options, cache: str) -> dict:
    """Runs a fresh process with that cache folder."""
    words = [options.method, options.scale, options.dataset]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._startup_child", *words],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found = json.loads(done.stdout.splitlines()[-1])
    found["compiled"] = found.pop("programs") - found.pop("from_cache")
    return found


def seconds_of(*words: str) -> float:
    """Seconds that Python takes for a command line."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def first_minibatch(found: dict) -> float:
    """Seconds from the start of the imports to the end of the first step."""
    return sum(found["seconds"].values()) - found["seconds"]["next step"]


def main(arguments=None) -> dict:
    """Runs all and returns the report it writes."""
    options = parse(arguments)
    runs, times = {"cold": [], "warm": []}, {}
    commands = {
        "import jaxadv": ("-c", "import jaxadv"),
        "--help": ("-m", f"experiments.{options.dataset}", "--help"),
    }
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as cache:
            for name, found in runs.items():
                found.append(row := run(options, cache))
                parts = ", ".join(f"{part} {t:.1f}" for part, t in row["seconds"].items())
                print(f"{name}: {first_minibatch(row):6.1f} s to the first minibatch ({parts}); "
                      f"{row['compiled']} programs compiled")  # fmt: skip
        for name, words in commands.items():
            times.setdefault(name, []).append(seconds_of(*words))
    times |= {name: [first_minibatch(row) for row in found] for name, found in runs.items()}
    report = {**provenance(options), **runs, "seconds": summary(times)}
    report["profile"] = {
        f"jaxadv, {name} cache": {
            "kinds": {kind: statistics.median(row["kinds"][kind] for row in found)
                      for kind in found[0]["kinds"]}
        }
        for name, found in runs.items()
    }  # fmt: skip
    for name, row in report["seconds"].items():
        print(f"{name}: {row['median']:.2f} s ({row['least']:.2f} to {row['greatest']:.2f})")
    save(report, options.output)
    return report


if __name__ == "__main__":
    main()
