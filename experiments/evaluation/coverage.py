"""Which of RobustBench's models load, as lines and as a page."""

from jaxadv.models import zoo

_BOARDS = {
    ("cifar10", "linf"): "CIFAR-10, Linf 8/255",
    ("cifar10", "l2"): "CIFAR-10, L2 0.5",
    ("cifar100", "linf"): "CIFAR-100, Linf 8/255",
    ("imagenet", "linf"): "ImageNet, Linf 4/255",
}
HEAD = f"{'id':<42} {'data':<9}{'threat':<7}{'eps':<7}{'clean':>6}{'AA':>7}  loads  architecture"


def line(entry: zoo.Entry, reason: str | None) -> str:
    """An entry in a line of a list.

    Args:
        entry: the entry.
        reason: why it does not load, or None.
    """
    loads = "yes  " if reason is None else "no   "
    why = "" if reason is None else f": {reason}"
    return (
        f"{entry.id:<42} {entry.dataset:<9}{entry.threat:<7}{entry.eps:<7}{entry.clean:>6.2f}"
        f"{entry.autoattack:>7.2f}  {loads}  {entry.described}{why}"
    )


def page() -> str:
    """Markdown: the share of every leaderboard that loads, and what does not, with reasons."""
    reasons = {
        board: [(entry, zoo.problem(entry)) for entry in zoo.entries(dataset=name, threat=threat)]
        for board, (name, threat) in zip(_BOARDS.values(), _BOARDS, strict=True)
    }
    package = zoo.source()["package"]
    lines = [
        "# RobustBench's models by name",
        "",
        f"`jaxadv.models.zoo` knows every entry of the leaderboards of {package} against Linf and",
        "L2: its network, normalization, radius, and published accuracies.",
        "`python -m experiments.zoo` lists them;",
        "[evaluation](evaluation.md#a-published-model-by-name) evaluates one. Leaderboards of",
        "corruptions are left out, since their figures are not AutoAttack's. ImageNet's are",
        "evaluated on RobustBench's own 5,000 validation images, in its order.",
        "",
        "An entry loads if its network exists here and the names and shapes of its tensors, found",
        "by tracing it, are those of RobustBench's class. Weights are not part of this package.",
        "`python -m experiments.zoo --coverage --output=docs/zoo.md` writes this page.",
        "",
        "| leaderboard | entries | load | share | without XCiT |",
        "|---|---|---|---|---|",
    ]
    for board, found in reasons.items():
        loading = [entry for entry, reason in found if reason is None]
        plain = [entry for entry in loading if "XCiT" not in entry.described]
        share, without = (f"{100 * len(part) / len(found):.0f} %" for part in (loading, plain))
        lines.append(f"| {board} | {len(found)} | {len(loading)} | {share} | {without} |")
    lines += ["", '"Without XCiT" leaves its entries out of those that load, not of all.', ""]
    lines += ["| does not load | leaderboard | reason |", "|---|---|---|"]
    lines += [
        f"| {entry.id} | {board} | {reason} |"
        for board, found in reasons.items()
        for entry, reason in found
        if reason is not None
    ]
    return "\n".join(lines) + "\n"
