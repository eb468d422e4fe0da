"""Checks the paper's statements and their corrections numerically, and reports which hold.

python -m theory.claims --output=runs/theory
python -m theory.claims --instances=20000 --seed=1 --only="Lemma 2"
python -m theory.claims --sabotage

Writes claims.json, claims.md and claims.html, a page with figures. With --sabotage every claim also
runs with deliberately wrong ingredients, which must change its verdict. Fails if a correction fails
or a wrong ingredient goes unnoticed.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.cli.options import Parser, nearest
from experiments.run import environment

from . import (
    constraints,
    descent,
    entropy,
    general,
    lemmas,
    linear,
    practice,
    sphere,
    toy,
)
from .errata import register
from .page import to_html, to_markdown
from .registry import BROKEN, CLAIMS, check, finite, sabotage

# Importing these modules registers their claims, which are shown in this order.
_MODULES = (
    linear,
    descent,
    general,
    lemmas,
    sphere,
    constraints,
    toy,
    entropy,
    practice,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the claims selected on the command line.

    Args:
        arguments: command line arguments, by default the process's.

    Returns:
        0, or 1 if a correction fails or a wrong ingredient leaves a verdict as it was.
    """
    parser = Parser(prog="python -m theory.claims", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, default=Path("runs/theory"), help="folder")
    parser.add_argument(
        "--instances", type=int, default=4000,
        help="random instances per claim; a fraction of them where an instance is expensive",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the instances")
    parser.add_argument("--only", default="", help="run only claims whose name contains this")
    parser.add_argument(
        "--sabotage", action="store_true", help="also run every claim with wrong ingredients"
    )
    options = parser.parse_args(arguments)
    if options.instances < 8:
        parser.error(f"--instances={options.instances} must be at least 8")
    chosen = [c for c in CLAIMS if options.only.lower() in c.name.lower()]
    if not chosen:
        near = nearest(options.only, [claim.name for claim in CLAIMS]) or "; leave it out for all"
        parser.error(f"--only={options.only!r} is in no name of the {len(CLAIMS)} claims{near}")
    order = [module.__name__ for module in _MODULES]
    chosen.sort(key=lambda claim: order.index(claim.run.__module__))
    results, turned, start = [], [], time.process_time()
    for claim in chosen:
        draw = dict(seed=options.seed, instances=options.instances)
        result = check(claim, **draw)
        results.append(result)
        print(f"{result.verdict:>20}  {result.name}  {result.counterexample}", flush=True)
        turned.append(sabotage(claim, result.verdict, **draw) if options.sabotage else [])
        for entry in turned[-1]:
            mark = "" if entry.turned else "  UNNOTICED"
            print(f"{entry.verdict:>20}      with {entry.ingredient}{mark}", flush=True)
    settings = {
        "instances": options.instances,
        "seed": options.seed,
        "cpu_seconds": round(time.process_time() - start, 1),
    }
    record = {n: v for n, v in environment.describe().items() if n != "command"}  # its paths
    options.output.mkdir(parents=True, exist_ok=True)
    records = [
        {name: finite(v) if isinstance(v, float) else v for name, v in r._asdict().items()}
        | {"sabotage": [entry._asdict() for entry in entries]}
        for r, entries in zip(results, turned, strict=True)
    ]
    errata = register()
    page = {"settings": settings, "environment": record, "claims": records, "errata": errata}
    text = json.dumps(page, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    (options.output / "claims.json").write_text(text, encoding="utf-8")
    shown = settings | {"commit": record["commit"], "on": record["device"]}
    markdown = to_markdown(results, turned, shown, errata)
    (options.output / "claims.md").write_text(markdown, encoding="utf-8")
    page_of = options.output / "claims.html"
    page_of.write_text(to_html(results, turned, shown, errata), encoding="utf-8")
    print(f"{page_of}, {options.output / 'claims.md'}, {options.output / 'claims.json'}")
    unnoticed = [entry for entries in turned for entry in entries if not entry.turned]
    return 1 if unnoticed or any(result.verdict == BROKEN for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
