"""Every record names the commit that made it; those with uncommitted changes are all known."""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
COMMIT = re.compile(r"\b[0-9a-f]{7,40}\+")

# Made before this rule, too long to repeat; the pages that show them say so. Only ever shorter.
UNCOMMITTED = {
    "parity_mnist_10000.json",
}
PAGES = ["README.md", "docs/results.md", "docs/autoattack.md", "docs/scale.md",
         "benchmarks/README.md"]  # fmt: skip


def records():
    """The text of every file of results, by its path below the folder."""
    for path in sorted(RESULTS.rglob("*")):
        if path.suffix in (".json", ".jsonl", ".md"):
            yield path.relative_to(RESULTS).as_posix(), path.read_text(encoding="utf-8")


def commits(value):
    """Every commit in a record."""
    if isinstance(value, dict):
        found = [value["commit"]] if isinstance(value.get("commit"), str) else []
        return found + [name for entry in value.values() for name in commits(entry)]
    return [name for entry in value for name in commits(entry)] if isinstance(value, list) else []


def test_exactly_these_records_come_from_trees_with_uncommitted_changes():
    assert {name for name, text in records() if COMMIT.search(text)} == UNCOMMITTED


def test_every_table_of_results_names_commits():
    for name, text in records():
        drawn = name.startswith("theory-figures/")  # exact values, which anybody can draw again
        if drawn or name.endswith(("/curves.json", ".jsonl", ".md")):
            continue  # of the runs of the table beside it
        found = commits(json.loads(text))
        assert found, name
        assert all(re.fullmatch(r"[0-9a-f]{12}([0-9a-f]{28})?\+?", commit) for commit in found), (
            name
        )


def test_pages_say_which_of_their_records_do():
    for name in UNCOMMITTED:
        where = [page for page in PAGES if name.split("/")[-1] in _text(page)]
        for page in where:
            assert "uncommitted changes" in _text(page), f"{page} shows {name}"


def _text(page):
    return (ROOT / page).read_text(encoding="utf-8")
