"""Errata E1 to E35 in docs/errata.md: their texts, and the claims that check each, or why none."""

import re
from pathlib import Path
from typing import Any

from .registry import CLAIMS

NUMBERS = tuple(f"E{number}" for number in range(1, 36))

# Errata that no computation on the loss, the attack or the optimizer could contradict.
NOT_CHECKABLE = {
    "E25": "an index: Algorithm 1 writes j <= d (inputs) where its vectors have m entries",
    "E26": "notation: a feasible set of perturbations is written as one of parameters",
    "E31": "which network the experiments used: the text and the code it cites differ",
    "E32": "hyper-parameters that contradict each other within the text",
    "E35": "protocol: which split chose the checkpoint, and at which weights accuracy was taken",
}

_PAGE = Path(__file__).parents[2] / "docs" / "errata.md"
_WORDS = {
    "theta": "θ", "Vert": "|", "gamma": "γ", "varepsilon": "ε", "eta": "η", "lambda": "λ",
    "beta": "β", "sqrt": "√", "delta": "δ", "Sigma": "Σ", "nabla": "∇", "top": "T", "tau": "τ",
    "sigma": "σ", "mu": "μ", "alpha": "α", "ell": "l", "infty": "∞", "mathrm": "", "mathbb": "",
    "lt": " < ", "gt": " > ", "le": " ≤ ", "ge": " ≥ ", "ne": " ≠ ", "prec": " ≺ ", "succeq": " ⪰ ",
    "mid": " | ", "cdot": " · ", "lbrace": "{ ", "rbrace": " }",
}  # fmt: skip


def plain(text: str) -> str:
    r"""Markdown with TeX as plain text.

    Example:
        >>> plain(r"$\det K \le -\theta_{\min}^{1/2}$, see [formulas](formulas.md#DET)")
        'det K ≤ -θ_min^(1/2), see formulas'
    """
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(text.split()))

    def formula(match: re.Match) -> str:
        words = match.group(1).replace(r"\frac\gamma2", "γ/2")
        words = re.sub(r"\^\{([^{}]*)\}", lambda m: f"^({m.group(1)})", words)
        words = re.sub(r"(_|\\sqrt)\{([^{}]*)\}", r"\1\2", words)
        words = re.sub(r"\\mathrm\{([^{}]*)\}", r"\1", words)
        return re.sub(r"\\([A-Za-z]+)", lambda m: _WORDS.get(m.group(1), m.group(1)), words)

    return re.sub(r" +", " ", re.sub(r"\$([^$]*)\$", formula, text)).replace("*", "").strip()


def claims_of(erratum: str) -> list[str]:
    """Names of the claims whose place cites an erratum.

    Example:
        >>> claims_of("E99")
        []
    """
    return [c.name for c in CLAIMS if erratum in _mentioned(c.place)]


def _mentioned(place: str) -> set[str]:
    """Errata in a place such as "Lemma 5; E1" or "formulas G.2, E9, E18"."""
    return set(re.findall(r"\bE\d+\b", place))


def texts() -> dict[str, dict[str, str]]:
    """For every erratum its title and what docs/errata.md says is printed and correct."""
    found = {}
    for entry in re.split(r'<a id="(?=E\d+"></a>)', _PAGE.read_text(encoding="utf-8"))[1:]:
        number, title = re.findall(r"^### (E\d+): (.*)$", entry, re.MULTILINE)[0]
        fields = dict(re.findall(r"^\* (\w+): (.*?)(?=^\* |\Z)", entry, re.MULTILINE | re.DOTALL))
        words = {name.lower(): plain(fields[name]) for name in ("Where", "Printed", "Correct")}
        found[number] = {"title": title, **words}
    return found


def register() -> dict[str, dict[str, Any]]:
    """For every erratum its texts, and the claims that check it or the reason why none does."""
    found = texts()
    return {
        number: {
            **found[number],
            "claims": claims_of(number),
            "reason": NOT_CHECKABLE.get(number, ""),
        }
        for number in NUMBERS
    }
