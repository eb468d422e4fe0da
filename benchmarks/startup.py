r"""Time to the first minibatch of an entry point, with a cold and a warm compilation cache.

    python -m benchmarks.startup
    python -m benchmarks.startup --method=at_ensgd --dataset=digits

A fresh process imports, reads the data, builds, and takes its first two steps, once with an empty
cache folder and once with the cache the first one left. Prints the seconds of each part and how
many programs were compiled rather than found in the cache. (tests/experiments/run/test_train.py
checks that a whole run compiles no more.)
"""

import json
import os
import subprocess
import sys
import tempfile

from experiments.cli.options import Parser

from ._report import provenance, save


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--method", default="at")
    parser.add_argument("--scale", default="laptop")
    parser.add_argument("--dataset", default="cifar10")
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


def main(arguments=None) -> dict:
    """Runs both and returns the report it writes."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as cache:
        found = {"cold": run(options, cache), "warm": run(options, cache)}
    for name, row in found.items():
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in row["seconds"].items())
        total = sum(row["seconds"].values())
        print(f"{name}: {total:6.1f} s ({parts}); {row['compiled']} programs compiled")
    report = {**provenance(options), **found}
    save(report, options.output)
    return report


if __name__ == "__main__":
    main()
