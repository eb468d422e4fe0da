"""Every citation of a formula, an erratum or a document leads somewhere in this repository."""

import ast
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("jaxadv", "experiments", "theory", "benchmarks", "tests", "docs")
ENDINGS = {".py", ".md", ".txt", ".toml", ".cfg", ".yml", ".ipynb"}
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS.append(ROOT / "benchmarks" / "README.md")
CLAIMS = ROOT / "benchmarks" / "results" / "theory-claims" / "claims.json"

# "formulas C.1, C.2 and A.9 (F1, F3)": sections, each with or without labels of statements.
SECTION = r"[A-L](?:\.\d+[a-z]?)?(?![\w.]*\w)"
LABELS = r"\s*\((?:[A-Z]?\d|[a-h]|[A-Z]{3,})(?:(?:,| and)\s(?:[A-Z]?\d|[a-h]))*\)|\s*\(U\)"
ITEM = rf"{SECTION}(?:{LABELS})*"
JOIN = r"(?:,\s|,?\s(?:and|to|or)\s)"
CITATION = re.compile(rf"\b[Ff]ormulas(?:\.md)?:?\s({ITEM}(?:{JOIN}{ITEM})*)")
BARE = re.compile(r"(?<![\w./#*-])([A-L]\.\d{1,2})([a-z]?)\b(?!\.?\d)")  # "D.2a" too, of figures
ERRATUM = re.compile(r"(?<![\w#])E(\d{1,2})\b")
NO_ERRATUM = 99  # examples of a number that none has
OUTSIDE = re.compile(r"\bSPEC(?:\.md)?\b|\b[A-Z]+\.md\b")


def sources() -> list[pathlib.Path]:
    """Every text file that could cite something, this one apart."""
    files = [path for path in ROOT.glob("*") if path.is_file()]
    for package in PACKAGES:
        files += (ROOT / package).rglob("*")
    wanted = lambda p: p.suffix in ENDINGS or p.name == "Makefile" or p == CLAIMS
    return sorted(path for path in files if wanted(path) and path != pathlib.Path(__file__))


def prose(text: str) -> str:
    """Text with its lines joined, so that a citation may go over the end of a line."""
    joined = re.sub(r"[ \t]*\n[ \t]*(?:#[ \t]|>[ \t]|\*[ \t])?", " ", text)
    return re.sub(r"[\"'] [rf]?[\"']", " ", joined)


def anchors(path: pathlib.Path) -> set[str]:
    """What a link to a Markdown file may end in: explicit anchors, and slugs of the headings."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(r'<a id="([^"]+)"></a>', text)
    assert len(found) == len(set(found)), f"{path.name} has an anchor twice"
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        found.append(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
    return set(found)


FORMULAS, ERRATA = anchors(ROOT / "docs" / "formulas.md"), anchors(ROOT / "docs" / "errata.md")


def cited(text: str) -> set[str]:
    """The anchors in formulas.md that a text needs."""
    text, found = prose(text), set()
    for citation in CITATION.findall(text):
        for section, labels in re.findall(rf"({SECTION})((?:{LABELS})*)", citation):
            found.add(section)
            for label in re.findall(r"\b(?:[A-Z]?\d|[a-h]|[A-Z]+)\b", labels):
                found.add(label if label in ("DET", "MON", "CURV", "SHARP") else
                          f"{section}.{label}")  # fmt: skip
    for section, label in BARE.findall(text):
        found.add(section)
        if label:
            found.add(f"{section}.{label}")
    return {re.sub(r"(\d)([a-z])$", r"\1.\2", anchor) for anchor in found}


def lost(text: str, errata: bool = True) -> list[str]:
    """Citations of a text that lead nowhere."""
    found = [f"formulas {anchor}" for anchor in sorted(cited(text) - FORMULAS)]
    numbers = {int(number) for number in ERRATUM.findall(prose(text))} - {NO_ERRATUM}
    if errata:
        found += [f"erratum E{n}" for n in sorted(numbers) if f"E{n}" not in ERRATA]
    documents = {name for name in OUTSIDE.findall(text) if not (ROOT / name).is_file()}
    # A single capital is a file that a test makes.
    return found + sorted(name for name in documents if not re.fullmatch(r"[A-Z]\.md", name))


def test_every_citation_has_its_anchor():
    wrong = {}
    for path in sources():
        found = lost(path.read_text(encoding="utf-8"))
        if found:
            wrong[str(path.relative_to(ROOT))] = found
    assert not wrong, json.dumps(wrong, indent=1)


def test_citations_are_found_where_they_stand():
    """If the patterns stopped matching, the test above would hold of nothing."""
    texts = [path.read_text(encoding="utf-8") for path in sources() if path.suffix == ".py"]
    assert sum(len(CITATION.findall(prose(text))) for text in texts) > 90
    assert sum(len(ERRATUM.findall(text)) for text in texts) > 90
    everything = set().union(*map(cited, texts))
    assert {"A.9.F2", "C.3.U2", "D.2.c", "D.2.a", "G.4.b", "D.1.I1", "K.9", "H.1"} <= everything


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see formulas A.9 (F2), G.1", []),
        ("formulas C.1, C.2 and Z.1", []),  # Z is no section: the citation ends before it
        ("formulas B.12", ["formulas B.12"]),
        ("formulas B.4 to\n    # B.17", ["formulas B.17"]),
        ("formulas J", ["formulas J"]),
        ("formulas A.9 (F1, F7)", ["formulas A.9.F7"]),
        ("formulas D.2 (z)", []),
        ("formulas D.2 (h)", []),
        ('"D.2c"', []),
        ('"K.7, B.14"', ["formulas B.14"]),
        ("erratum E36", ["erratum E36"]),
        ("(E0)", ["erratum E0"]),
        ("(E35), E99", []),
        ("SPEC B.4", ["SPEC"]),
        ("DESIGN.md, README.md", ["DESIGN.md"]),
    ],
)
def test_a_wrong_citation_is_noticed(text, expected):
    assert lost(text) == expected


def links(path: pathlib.Path) -> list[tuple[str, str]]:
    """(file, anchor) of every link of a page that stays in the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    inside = [target for target in targets if not target.startswith(("http:", "https:"))]
    return [(target.partition("#")[0], target.partition("#")[2]) for target in inside]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(path):
    for name, anchor in links(path):
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{path.name} links to {name}"
        assert target.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(target), f"{path.name} links to {name}#{anchor}"


def test_every_page_is_in_the_index():
    docs = ROOT / "docs"
    listed = {name for name, _ in links(docs / "README.md")}
    assert {path.name for path in docs.glob("*.md")} - {"README.md"} <= listed


# The errata


ENTRIES = dict(
    re.findall(
        r'<a id="(E\d+)"></a>\n(### .*?)(?=\n<a id|\Z)',
        (ROOT / "docs" / "errata.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
)


def claims_in_the_sources() -> dict[str, set[str]]:
    """The claims of `theory` by the erratum that their place names, from the syntax trees."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "theory").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "claim":
                name, place = (ast.literal_eval(argument) for argument in node.args[:2])
                for erratum in re.findall(r"\bE\d+\b", place):
                    found.setdefault(erratum, set()).add(name)
    return found


def fields(entry: str) -> dict[str, str]:
    found = re.findall(r"^\* (\w+): (.*?)(?=^\* |\Z)", entry, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in found}


def test_there_are_35_errata_of_the_same_form():
    assert list(ENTRIES) == [f"E{number}" for number in range(1, 36)]
    for number, entry in ENTRIES.items():
        assert entry.startswith(f"### {number}: ")
        names = list(fields(entry))
        assert [n for n in names if n != "Found"] == ["Where", "Printed", "Correct", "Claims"]
        assert ("Found" in names) != fields(entry)["Claims"].startswith("none, ")


def test_the_claims_of_every_erratum_are_named():
    expected = claims_in_the_sources()
    assert len(expected) == 30
    for number, entry in ENTRIES.items():
        named = set(re.findall(r"`([^`]+)`", fields(entry)["Claims"]))
        assert named == expected.get(number, set()), number


def test_the_numbers_of_the_errata_are_those_of_the_run():
    """What "Found" quotes is a counterexample that the committed run printed, for this erratum.

    A bare decimal number in it is the tightness of one of its claims, or of one about the passage.
    """
    run = json.loads(CLAIMS.read_text(encoding="utf-8"))
    assert {"seed": 0, "instances": 4000}.items() <= run["settings"].items()
    printed, tightness = {}, {}
    for claim in run["claims"]:
        for number in re.findall(r"\bE\d+\b", claim["place"]):
            printed.setdefault(number, []).append(" ".join(claim["counterexample"].split()))
            tightness.setdefault(number, []).append(claim["tightness"])
        tightness.setdefault(claim["place"], []).append(claim["tightness"])
    for number, entry in ENTRIES.items():
        quoted = re.findall(r"`([^`]+)`", fields(entry).get("Found", ""))
        assert quoted == [text for text in printed.get(number, []) if text], number
        bare = re.sub(r"`[^`]+`|\$[^$]+\$", "", fields(entry).get("Found", ""))
        for decimal in re.findall(r"(?<![\d.])\d\.\d+", bare):
            digits = len(decimal) - 2
            known = tightness[number] + tightness.get(fields(entry)["Where"].strip("."), [])
            assert decimal in [f"{one:.{digits}f}" for one in known if one is not None], number
