"""Parts of a self-contained HTML page: tables, confusion matrices, images; all text is escaped."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from urllib.parse import quote

import numpy as np

from ..run import accuracy
from .images import Example

# The content security policy blocks loading anything external.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 68rem; margin: 2rem auto;
  padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; margin-bottom: .2rem; }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ddd; }}
p.note, figcaption {{ color: #555; font-size: .85rem; text-align: left; }}
.scroll {{ overflow-x: auto; max-width: 100%; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #eee; }}
th:first-child, td:first-child {{ text-align: left; }}
td, th[scope=row] {{ white-space: nowrap; }}
table.facts td {{ text-align: left; white-space: normal; overflow-wrap: anywhere; }}
table.confusion td, table.confusion th {{ padding: .1rem; min-width: 2.1rem; text-align: center;
  border: 1px solid #fff; font-size: .8rem; }}
table.confusion td.diagonal {{ font-weight: bold; }}
.side {{ display: flex; flex-wrap: wrap; gap: 1rem 2rem; }}
.side > * {{ max-width: 100%; }}
.examples {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(17.5rem, 1fr));
  gap: .8rem; }}
.examples figure {{ margin: 0; border: 1px solid #ddd; padding: .5rem; }}
.examples img {{ width: 80px; height: 80px; image-rendering: pixelated; }}
.examples img + img {{ margin-left: 5px; }}
.right {{ color: #00664a; }}
.wrong {{ color: #a23b00; }}
img.wide {{ max-width: 100%; height: auto; }}
img.map {{ width: 28rem; max-width: 100%; image-rendering: pixelated; }}
details {{ margin: .5rem 0; }}
code {{ word-break: break-word; }}
ul.files {{ columns: 18rem; padding-left: 1.2rem; }}
figure {{ margin: 0; }}
</style>
</head>
<body>
"""

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page; ``parts`` are HTML."""
    return _HEAD.format(title=escape(title)) + "\n".join(parts) + "\n</body>\n</html>\n"


def escape(value: object) -> str:
    """Any value as page text."""
    return html.escape(str(value), quote=True)


def percent(value: float | None, images: int) -> str:
    """An accuracy with its 95 % interval, or "" if there is none."""
    return accuracy.with_interval(value, images)


def size(count: int) -> str:
    """A file size.

    Example:
        >>> size(2_340_000)
        '2.3 MB'
    """
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count} bytes"


def table(head: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """A table with a heading row, which scrolls where it is wider than the screen.

    A cell is text, or a :class:`Markup`.
    """
    titles = "".join(f'<th scope="col">{_inner(cell)}</th>' for cell in head)
    body = "".join(_row(row) for row in rows)
    caption = f'<p class="note">{escape(caption)}</p>' if caption else ""
    return caption + scrolling(
        f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
    )


def facts(pairs: Iterable[tuple[object, object]]) -> str:
    """Names and values."""
    rows = "".join(_row(pair) for pair in pairs)
    return scrolling(f'<table class="facts"><tbody>{rows}</tbody></table>')


def scrolling(content: str) -> str:
    """Content that scrolls sideways by itself, also by keyboard."""
    return f'<div class="scroll" tabindex="0">{content}</div>'


class Markup(str):
    """Text that is HTML already."""


def link(target: str, text: object) -> Markup:
    """A link to a file beside the page."""
    return Markup(f'<a href="{escape(quote(target))}">{escape(text)}</a>')


def _row(cells: Sequence[object]) -> str:
    first, *rest = cells
    cells_after = "".join(f"<td>{_inner(cell)}</td>" for cell in rest)
    return f'<tr><th scope="row">{_inner(first)}</th>{cells_after}</tr>'


def _inner(cell: object) -> str:
    return cell if isinstance(cell, Markup) else escape(cell)


def details(summary: str, content: str) -> str:
    """A collapsible section."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def image(png: bytes, alternative: str, kind: str = "wide") -> str:
    """An inline image."""
    data = base64.b64encode(png).decode()
    return f'<img class="{kind}" alt="{escape(alternative)}" src="data:image/png;base64,{data}">'


def confusion(counts: np.ndarray, names: Sequence[str], caption: str) -> str:
    """Confusion in % of the true class: a table or, for many classes, an image and worst pairs."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = 100 * counts / np.maximum(totals, 1)
    if len(names) > 20:
        return _confusion_map(counts, shares, names, caption)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = []
    for true, name in enumerate(names):
        cells = []
        for predicted in range(len(names)):
            share, count = shares[true, predicted], counts[true, predicted]
            ink = "#fff" if share > 55 else "#1a1a1a"
            color = "0,114,178" if predicted == true else "213,94,0"
            style = f"background:rgba({color},{share / 100:.3f});color:{ink}"
            kind = ' class="diagonal"' if predicted == true else ""
            text = f"{share:.0f}" if count else ""
            label = escape(f"{count} of {totals[true, 0]}")
            cells.append(f'<td{kind} style="{style}" title="{label}">{text}</td>')
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    content = scrolling(
        f'<table class="confusion"><thead><tr><th scope="col">true</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    return f'<div><p class="note">{escape(caption)}</p>{content}</div>'


def _confusion_map(counts, shares, names, caption) -> str:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:10]
    pairs = [np.unravel_index(place, wrong.shape) for place in order]
    worst = [(names[i], names[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]
    picture = image(_encoded(shares, cmap="Blues", vmin=0, vmax=100), caption, "map")
    return (
        f"<figure>{picture}<figcaption>{escape(caption)}</figcaption>"
        f"{table(('true', 'predicted', 'images'), worst, 'Most frequent confusions')}</figure>"
    )


def examples(found: Sequence[Example], names: Sequence[str], norm: str) -> str:
    """Clean image, perturbation and adversarial image side by side; broken images come first."""
    largest = max((float(np.abs(e.adversarial - e.image).max()) for e in found), default=0) or 1.0
    cards = []
    for e in sorted(found, key=lambda e: not e.is_broken):
        change = 0.5 + (e.adversarial - e.image) / (2 * largest)
        pictures = "".join(
            image(png(array), f"{what} of test image {e.index}", "")
            for what, array in (
                ("clean image", e.image),
                ("perturbation", change),
                ("adversarial image", e.adversarial),
            )
        )
        kinds = ["right" if guess == e.label else "wrong" for guess in (e.clean, e.robust)]
        said = " &rarr; ".join(
            f'<span class="{kind}">{escape(names[guess])}</span>'
            for kind, guess in zip(kinds, (e.clean, e.robust), strict=True)
        )
        outcome = f"{e.attack}, step {e.step}" if e.is_broken else f"withstands {e.attack}"
        if e.clean != e.label:
            outcome = "misclassified without an attack"
        text = (
            f"{escape(names[e.label])} (test image {e.index}), predicted {said}<br>"
            f"{escape(outcome)}, {escape(norm)} distance {e.distance:.4g}"
        )
        cards.append(f"<figure>{pictures}<figcaption>{text}</figcaption></figure>")
    return (
        f'<div class="examples">{"".join(cards)}</div>'
        '<p class="note">Clean, perturbation, adversarial. In the perturbation, gray is no change, '
        f"white is +{largest:.4g} and black is -{largest:.4g}, in units of the images in [0, 1]. "
        "Step: the iteration or query of the attack that was misclassified first.</p>"
    )


def png(array: np.ndarray) -> bytes:
    """An image in [0, 1] of shape (H, W, 1) or (H, W, 3) as PNG, one pixel per entry."""
    values = np.rint(255 * np.clip(np.asarray(array, np.float64), 0, 1)).astype(np.uint8)
    return _encoded(np.broadcast_to(values, (*values.shape[:2], 3)))


def _encoded(values: np.ndarray, **colors) -> bytes:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(values), format="png", **colors)
    return buffer.getvalue()
