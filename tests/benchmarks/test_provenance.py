"""Every record names the commit that made it, without uncommitted changes."""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
COMMIT = re.compile(r"\b[0-9a-f]{7,40}\+")


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


def test_no_record_comes_from_a_tree_with_uncommitted_changes():
    assert [name for name, text in records() if COMMIT.search(text)] == []


def test_every_table_of_results_names_commits():
    for name, text in records():
        drawn = name.startswith("theory-figures/")  # exact values, which anybody can draw again
        if drawn or name.endswith(("/curves.json", ".jsonl", ".md")):
            continue  # of the runs of the table beside it
        found = commits(json.loads(text))
        assert found, name
        assert all(re.fullmatch(r"[0-9a-f]{12}([0-9a-f]{28})?", commit) for commit in found), name
