"""Executes the notebooks of theory/notebooks and writes them as .ipynb, with outputs and figures.

    python docs/site/notebooks.py            # all; one of them reads a run of `make reproduce`
    python docs/site/notebooks.py entropy_sgd

The text form is the source: a script with ``# %%`` cells. Its cells run in this process, in order;
what they print, and a figure or value in a cell's last line, become the outputs.
"""

import argparse
import ast
import base64
import contextlib
import io
import pathlib
import re
import sys
import traceback

import nbformat
from nbformat import v4

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES, NOTEBOOKS = ROOT / "theory" / "notebooks", ROOT / "docs" / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cells(text: str) -> list[tuple[str, str]]:
    """Cells of a script: "markdown" or "code", and the source.

    Raises:
        ValueError: if it has no cells.
    """
    parts = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)
    if len(parts) < 3:
        raise ValueError("the script has no cells; begin each with a line '# %%'")
    found = []
    for mark, source in zip(parts[1::2], parts[2::2], strict=True):
        source = source.strip("\n")
        if "[markdown]" in mark:
            lines = [line.removeprefix("#").removeprefix(" ") for line in source.splitlines()]
            found.append(("markdown", "\n".join(lines)))
        else:
            found.append(("code", source))
    return found


def convert(name: str) -> nbformat.NotebookNode:
    """A notebook without outputs."""
    made = []
    for number, (kind, source) in enumerate(cells((SOURCES / f"{name}.py").read_text("utf-8"))):
        make = v4.new_markdown_cell if kind == "markdown" else v4.new_code_cell
        made.append(make(source, id=f"cell-{number}"))
    notebook = v4.new_notebook(cells=made, metadata=METADATA)
    nbformat.validate(notebook)
    return notebook


def execute(notebook: nbformat.NotebookNode) -> None:
    """Runs the code cells in order and keeps their outputs."""
    names: dict = {"__name__": "__main__"}
    count = 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = _run(cell.source, names)
        cell.outputs = []
        if printed.getvalue():
            cell.outputs.append(v4.new_output("stream", name="stdout", text=printed.getvalue()))
        if value is not None:
            cell.outputs.append(
                v4.new_output("execute_result", data=_data(value), execution_count=count)
            )
    nbformat.validate(notebook)


def _run(source: str, names: dict):
    """Runs a cell; returns the value of its last line if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


def _data(value) -> dict[str, str]:
    data = {"text/plain": repr(value)}
    if hasattr(value, "savefig"):
        picture = io.BytesIO()
        value.savefig(picture, format="png", dpi=200)
        data["image/png"] = base64.b64encode(picture.getvalue()).decode()
    return data


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = sorted(path.stem for path in SOURCES.glob("*.py"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    chosen = parser.parse_args().names or known
    for name in chosen:
        if name not in known:
            parser.error(f"no notebook {name!r}; there are {', '.join(known)}")
    NOTEBOOKS.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT))
    for name in chosen:
        notebook = convert(name)
        try:
            execute(notebook)
        except Exception:
            traceback.print_exc()
            return 1
        nbformat.write(notebook, NOTEBOOKS / f"{name}.ipynb")
        print(f"written: {NOTEBOOKS / name}.ipynb")
    return 0


if __name__ == "__main__":
    sys.exit(main())
