"""Builds the documentation site: `python docs/site/build.py --output=runs/site`.

Pages are the Markdown files that GitHub shows too. They are staged in one folder with their links
rewritten, beside the notebooks and an API reference that is made of the docstrings; then Sphinx
runs with warnings as errors. A link that leads nowhere is an error.
"""

import argparse
import base64
import importlib
import importlib.metadata
import os
import pathlib
import re
import shutil
import sys
import tempfile

import nbformat

SITE = pathlib.Path(__file__).resolve().parent
ROOT = SITE.parents[1]

# (caption, page, source); the order is that of the navigation.
PAGES = (
    ("Start", "index", "README.md"),
    ("Tutorials", "tutorial-evaluate", "docs/tutorial-evaluate.md"),
    ("Tutorials", "tutorial-train", "docs/tutorial-train.md"),
    ("Tutorials", "tutorial-explain", "docs/tutorial-explain.md"),
    ("How to", "howto-attack", "docs/howto-attack.md"),
    ("How to", "howto-optimizer", "docs/howto-optimizer.md"),
    ("How to", "scale", "docs/scale.md"),
    ("How to", "evaluation", "docs/evaluation.md"),
    ("How to", "interop", "docs/interop.md"),
    ("How to", "zoo", "docs/zoo.md"),
    ("How to", "training", "docs/training.md"),
    ("How to", "autoattack", "docs/autoattack.md"),
    ("Theory", "theory", "docs/theory.md"),
    ("Theory", "figures", "docs/figures.md"),
    ("Theory", "formulas", "docs/formulas.md"),
    ("Theory", "errata", "docs/errata.md"),
    ("Results", "results", "docs/results.md"),
    ("Results", "benchmarks", "benchmarks/README.md"),
    ("Project", "contributing", "CONTRIBUTING.md"),
    ("Project", "changes", "CHANGELOG.md"),
    ("Project", "security", "SECURITY.md"),
)
NOTEBOOKS = "docs/notebooks"
PACKAGES = (
    *("attacks", "optim", "objectives", "training", "models", "models.zoo", "interop", "theory"),
    *("losses", "balls", "augment", "intervals"),
)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
# A measurement stays on one line: 68.6 ± 1.1, 5 %, and the ends of [24.5, 28.3] and [2 %, 3 %].
_MEASURED = re.compile(r"(?<=\d) ± (?=\d)|(?<=\d) (?=%)|(?<=[\d%],) (?=[-+]?[\d.]+( %)?\])")
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)


class Stage:
    """The folder that Sphinx reads.

    Attributes:
        folder: where pages go.
        pages: source file, relative to the repository, to page.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.pages = {source: page for _, page, source in PAGES if (ROOT / source).is_file()}
        self.pages["docs/README.md"] = "index"
        for path in sorted((ROOT / NOTEBOOKS).glob("*.ipynb")):
            self.pages[f"{NOTEBOOKS}/{path.name}"] = f"notebooks/{path.stem}"

    def run(self) -> None:
        """Writes all pages."""
        for source, page in self.pages.items():
            if source.endswith(".ipynb"):
                text = notebook_page(ROOT / source, self.folder / page)
            elif source == "docs/README.md":
                continue
            else:
                text = (ROOT / source).read_text(encoding="utf-8")
            text = self.rewritten(text, source)
            if page == "index":
                text += self._contents()
            self._write(f"{page}.md", text)
        for name in PACKAGES:
            self._write(f"api/{name}.rst", api_page(name))

    def rewritten(self, text: str, source: str) -> str:
        """A page with its links as the site needs them.

        Args:
            text: Markdown.
            source: its file, relative to the repository.

        Raises:
            ValueError: if a link leads nowhere.
        """
        depth = self.pages[source].count("/")

        def link(match: re.Match) -> str:
            mark, words, target = match.groups()
            if re.match(r"[a-z]+:", target):
                return match[0]
            if target.startswith("#"):
                target = os.path.basename(source) + target
            name, _, fragment = target.partition("#")
            path = os.path.normpath(os.path.join(os.path.dirname(source), name))
            up = "../" * depth
            if path in self.pages:
                there = f"{up}{self.pages[path]}.html"
                return f"[{words}]({f'place:{there}#{fragment}' if fragment else f'page:{there}'})"
            if mark and f"{NOTEBOOKS}/" in source:
                return match[0]
            if not (ROOT / path).exists():
                raise ValueError(f"{source}: the link to {target} leads nowhere")
            if (ROOT / path).is_dir():
                return f"{words} (folder `{path}`)"
            copy = self.folder / "files" / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, copy)
            if mark:
                return f"[![{words}]({up}files/{path})](page:{up}files/{path})"
            return f"[{words}](page:{up}files/{path})"

        parts = _CODE.split(text)
        return "".join(
            part if number % 2 else _LINK.sub(link, _MEASURED.sub(_unbroken, part))
            for number, part in enumerate(parts)
        )

    def _contents(self) -> str:
        groups: dict[str, list[str]] = {}
        for caption, page, source in PAGES[1:]:
            if source in self.pages:
                groups.setdefault(caption, []).append(page)
        notebooks = [page for page in self.pages.values() if page.startswith("notebooks/")]
        groups["Theory"] += notebooks
        groups["Reference"] = [f"api/{name}" for name in PACKAGES]
        return "".join(
            "\n```{toctree}\n:hidden:\n:caption: " + caption + "\n\n" + "\n".join(pages) + "\n```\n"
            for caption, pages in groups.items()
        )

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _unbroken(found: re.Match) -> str:
    return found[0].replace(" ", "\N{NO-BREAK SPACE}")


def api_page(name: str) -> str:
    """The reference of a public module: what it defines, or a package imports from its files."""
    title = f"jaxadv.{name}"
    module = importlib.import_module(title)

    def is_public(name: str) -> bool:
        value = getattr(module, name)
        home = str(getattr(value, "__module__", ""))
        is_own = home == title or (hasattr(module, "__path__") and home.startswith(f"{title}."))
        return callable(value) and is_own and not name.startswith("_")

    members = ", ".join(filter(is_public, vars(module)))
    options = [f"   :members: {members}", "   :imported-members:"]
    return "\n".join([title, "=" * len(title), "", f".. automodule:: {title}", *options, ""])


def notebook_page(path: pathlib.Path, page: pathlib.Path) -> str:
    """An executed notebook as Markdown; its pictures are written beside the page."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    parts, number = [], 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            if output.output_type == "stream":
                parts.append(f"```text\n{output.text.rstrip()}\n```")
            elif "image/png" in output.data:
                number += 1
                picture = page.parent / f"{page.name}-{number}.png"
                picture.parent.mkdir(parents=True, exist_ok=True)
                picture.write_bytes(base64.b64decode(output.data["image/png"]))
                parts.append(f"![Figure {number} of the notebook]({picture.name})")
            else:
                parts.append(f"```text\n{output.data['text/plain']}\n```")
    head, *rest = parts
    note = f"This page is the notebook [{path.name}]({path.name}), executed."
    return "\n\n".join([head, note, *rest]) + "\n"


def mathjax(folder: pathlib.Path) -> None:
    """Copies MathJax and its fonts, one file of the package sphinx-mathjax-offline."""
    files = importlib.metadata.files("sphinx-mathjax-offline") or ()
    [found] = [file for file in files if file.name == "tex-svg.js"]
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(pathlib.Path(str(found.locate())), folder / "tex-svg.js")


def build(output: pathlib.Path) -> int:
    """Builds the site into a folder.

    Returns:
        Sphinx's exit status, 0 if nothing is wrong.
    """
    from sphinx.cmd.build import main as sphinx

    with tempfile.TemporaryDirectory() as folder:
        stage = pathlib.Path(folder) / "pages"
        stage.mkdir()
        Stage(stage).run()
        status = sphinx(
            ["-b", "html", "-W", "--keep-going", "-q", "-c", str(SITE), "-d", f"{folder}/trees",
             str(stage), str(output)]
        )  # fmt: skip
        mathjax(output / "_static" / "mathjax")
        if (stage / "files").is_dir():
            shutil.copytree(stage / "files", output / "files", dirs_exist_ok=True)
        for path in (ROOT / NOTEBOOKS).glob("*.ipynb"):
            shutil.copyfile(path, output / "notebooks" / path.name)
    return status


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "runs" / "site")
    options = parser.parse_args()
    status = build(options.output.resolve())
    if status == 0:
        print(f"written: {options.output / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
