"""The documentation site: built with warnings as errors, whole, and readable without a network."""

import html.parser
import importlib.util
import pathlib
import re
import subprocess
import sys
import types

import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SITE = ROOT / "docs" / "site"


def load(name: str) -> types.ModuleType:
    """A script of docs/site, as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_site_{name}", SITE / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build, notebooks = load("build"), load("notebooks")


class Page(html.parser.HTMLParser):
    """Links, what is loaded, and anchors of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loaded, self.ids, self.formulas = [], [], set(), 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if values.get("id"):
            self.ids.add(values["id"])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        elif tag in ("script", "img", "iframe") and values.get("src"):
            self.loaded.append(values["src"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(values["href"])
        self.formulas += "math" in (values.get("class") or "").split()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
    output = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(SITE / "build.py"), f"--output={output}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]:
    found = {path.relative_to(site).as_posix(): path for path in site.rglob("*.html")}
    return {name: Page(path.read_text(encoding="utf-8")) for name, path in found.items()}


def test_every_link_leads_to_a_page_and_a_place(site, pages):
    lost = []
    for name, page in pages.items():
        for link in page.links:
            if re.match(r"https?:|mailto:", link):
                continue
            target, _, fragment = link.partition("#")
            path = ((site / name).parent / target).resolve() if target else site / name
            if not path.exists():
                lost.append((name, link))
            elif fragment and path.suffix == ".html":
                if fragment not in pages[path.relative_to(site).as_posix()].ids:
                    lost.append((name, link))
    assert not lost


def test_pages_load_nothing_from_elsewhere(site, pages):
    for name, page in pages.items():
        assert not [source for source in page.loaded if re.match(r"(https?:)?//", source)], name
        for source in page.loaded:
            if not source.startswith("data:"):
                assert ((site / name).parent / source.partition("?")[0]).resolve().is_file(), source
    assert (site / "_static/mathjax/tex-svg.js").stat().st_size > 1e6


def test_formulas_are_formulas(pages):
    assert pages["formulas.html"].formulas > 300 and pages["errata.html"].formulas > 50
    assert pages["api/optim.html"].formulas > 10


def test_the_reference_has_every_export(site):
    for name in build.PACKAGES:
        text = (site / "api" / f"{name}.html").read_text(encoding="utf-8")
        names = re.search(":members: (.+)", build.api_page(name))[1].split(", ")
        assert names and all(f'id="jaxadv.{name}.{each}"' in text for each in names)
    assert "jaxadv.attacks.autoattack" in (site / "api/attacks.html").read_text(encoding="utf-8")


def test_every_page_of_docs_is_in_the_site(pages):
    stems = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"README"}
    assert stems <= {name.removesuffix(".html") for name in pages}


def test_a_link_that_leads_nowhere_is_an_error(tmp_path):
    stage = build.Stage(tmp_path)
    with pytest.raises(ValueError, match=r"docs/theory\.md: the link to gone\.md leads nowhere"):
        stage.rewritten("[x](gone.md)", "docs/theory.md")
    text = stage.rewritten("[x](errata.md#E1) `[y](gone.md)`", "docs/theory.md")
    assert text == "[x](place:errata.html#E1) `[y](gone.md)`"


# Notebooks


NAMES = sorted(path.stem for path in (ROOT / "theory" / "notebooks").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_those_of_the_scripts(name):
    """`make notebooks` was run after the last change of the script."""
    stored = nbformat.read(ROOT / "docs" / "notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(stored)
    made = notebooks.convert(name)
    assert [c.source for c in stored.cells] == [c.source for c in made.cells]
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any(output.output_type == "stream" for output in outputs)


def test_outputs_are_what_a_cell_prints_and_shows():
    cells = [("code", "print('a')\nx = 2"), ("markdown", "# t"), ("code", "x + 1")]
    make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
    notebook = nbformat.v4.new_notebook(cells=[make[kind](source) for kind, source in cells])
    notebooks.execute(notebook)
    first, _, last = notebook.cells
    assert first.outputs[0].text == "a\n" and last.outputs[0].data["text/plain"] == "3"
    notebook.cells[0].source = "1 / 0"
    with pytest.raises(ZeroDivisionError):
        notebooks.execute(notebook)
