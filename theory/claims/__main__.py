"""Checks the paper's statements and their corrections numerically, and reports which hold.

python -m theory.claims --output=runs/theory
python -m theory.claims --instances=20000 --seed=1 --only="Lemma 2"

Writes claims.json, claims.md and claims.html, a page with figures. Fails if a correction fails.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.cli.options import Parser

from . import (
    constraints,
    entropy,
    general,
    lemmas,
    linear,
    practice,
)
from .errata import register
from .page import to_html
from .registry import BROKEN, CLAIMS, Result, check, finite

# Importing these modules registers their claims, which are shown in this order.
_MODULES = (
    linear,
    general,
    lemmas,
    constraints,
    entropy,
    practice,
)


def to_markdown(results: Sequence[Result], settings: dict) -> str:
    """The page: a table, then the counterexamples."""
    lines = ["# Claims of the paper, checked", ""]
    lines += [f"{name}: {value}  " for name, value in settings.items()]
    lines += [
        "",
        "| claim | place | verdict | instances | measured | bound | tightness |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        tightness = "" if r.tightness is None else f"{r.tightness:.6f}"
        numbers = f"{r.instances} | {r.measured:.6g} | {r.bound:.6g} | {tightness}"
        lines.append(f"| {r.name} | {r.place} | **{r.verdict}** | {numbers} |")
    lines += ["", "## Statements", ""]
    for r in results:
        lines.append(f"* **{r.name}** ({r.place}): {r.statement}.")
        if r.correction:
            lines.append(f"  Corrected: {r.correction}.")
        if r.counterexample:
            lines.append(f"  Counterexample: `{r.counterexample}`.")
    lines += ["", "## Errata", ""]
    for number, entry in register().items():
        words = entry if isinstance(entry, str) else ", ".join(entry)
        lines.append(f"* {number}: {'not checkable, ' if isinstance(entry, str) else ''}{words}")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the claims selected on the command line.

    Args:
        arguments: command line arguments, by default the process's.

    Returns:
        0, or 1 if a correction fails.
    """
    parser = Parser(prog="python -m theory.claims", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, default=Path("runs/theory"), help="folder")
    parser.add_argument("--instances", type=int, default=4000, help="random instances per claim")
    parser.add_argument("--seed", type=int, default=0, help="seed of the instances")
    parser.add_argument("--only", default="", help="run only claims whose name contains this")
    options = parser.parse_args(arguments)
    if options.instances < 8:
        parser.error(f"--instances={options.instances} must be at least 8")
    chosen = [c for c in CLAIMS if options.only.lower() in c.name.lower()]
    if not chosen:
        parser.error(f"--only={options.only!r} matches none of {[c.name for c in CLAIMS]}")
    order = [module.__name__ for module in _MODULES]
    chosen.sort(key=lambda claim: order.index(claim.run.__module__))
    results, start = [], time.perf_counter()
    for claim in chosen:
        result = check(claim, seed=options.seed, instances=options.instances)
        results.append(result)
        print(f"{result.verdict:>20}  {result.name}  {result.counterexample}")
    settings = {
        "instances": options.instances,
        "seed": options.seed,
        "seconds": round(time.perf_counter() - start, 1),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    records = [
        {name: finite(v) if isinstance(v, float) else v for name, v in r._asdict().items()}
        for r in results
    ]
    errata = register()
    page = {"settings": settings, "claims": records, "errata": errata}
    text = json.dumps(page, indent=1, allow_nan=False) + "\n"
    (options.output / "claims.json").write_text(text, encoding="utf-8")
    (options.output / "claims.md").write_text(to_markdown(results, settings), encoding="utf-8")
    page_of = options.output / "claims.html"
    page_of.write_text(to_html(results, settings, errata), encoding="utf-8")
    print(f"{page_of}, {options.output / 'claims.md'}, {options.output / 'claims.json'}")
    return 1 if any(result.verdict == BROKEN for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
