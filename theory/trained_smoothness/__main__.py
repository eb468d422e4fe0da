"""How smooth the adversarial loss of trained networks is, at optimal attacks.

python -m theory.trained_smoothness --output=runs/trained-smoothness
python -m theory.trained_smoothness --output=benchmarks/results/trained-smoothness --redraw

Trains small smooth networks with both norms, with AT and AT+EnSGD, 8 seeds each, and measures the
mean adversarial loss on images drawn anew for each seed. A step along the direction of training,
of one update or of 1 % or 0.1 % of the weights' norm, changes the gradient because the parameters
move and because the attacks move. Every attack is searched for from 16 random starts at both ends
of the step and from what the other ends found, and followed from one end to the other, which tells
a switch to another maximum from continuous motion. One file is written per setting, norm and seed;
the command continues where it was stopped. Setting mnist14 needs MNIST (--data-dir).

Registered before the results of seeds 0 to 7 existed; the design was tried on seeds 100 and 101.

Question: the paper explains the slow convergence of adversarial training by a loss that is not
smooth because the attack moves with the parameters (Lemma 1), smooth under L2 but not under Linf
(Theorems 1 and 2), and the gain of EntropySGD by smoothing.

A value is one number per seed and method, over 8 images (4 of mnist14). Summaries are medians over
the 8 seeds with 95 % percentile intervals of 10,000 bootstrap samples of seeds; comparisons are
ratios (of shares, differences) within a seed. "Change" is the change of the gradient of the mean
loss per length of step; "part of the attacks" and "part of the parameters" as in formulas I.4. An
update is the displacement of 20 minibatches, one update of EntropySGD. Snapshots: "late" compares
AT and AT+EnSGD at equal epoch, "equal loss" at equal training loss.

H1. The attacks' motion is the larger source of roughness. Value: part of the attacks over part of
    the parameters, AT, late, step of 0.1 %. For: interval above 1. Against: interval below 1.
H2. Linf is rougher than L2. Value: that ratio under Linf over the ratio under L2, same seed.
    For: interval above 1. Against: below 1.
H3. Linf has kinks, L2 has none. Value: part of the attacks per length at 0.1 % over that at 1 %,
    AT, late: jumps make it grow as the step shrinks, to 10 at most. For: interval above 1 under
    Linf and not under L2. Against: above 1 under L2, or below 1 under Linf.
H4. Optimal L2 attacks do not switch. Value: share of images whose attack switches within 1 %, AT,
    late, L2. For: 0 in all seeds. Against: interval of the median above 0.
H5. EntropySGD ends where the loss is smoother. Values: AT+EnSGD over AT, of the change at 0.1 % and
    of the largest eigenvalue of the true Hessian. For: interval below 1, late and at equal loss.
    Against: interval above 1 in one of the two.
H6. Its attacks switch less. Value: AT+EnSGD minus AT, of the share that switches within 1 %. For:
    interval below 0, late and at equal loss. Against: above 0 in one of the two.

H5 and H6 are judged under each norm. A hypothesis is "supported" if the base setting (digits,
swish, width 32) is for it and the medians of the three other settings (softplus; MNIST at 14x14;
width 16) are on the same side; "contradicted" if the base setting is against it; and "not shown"
otherwise. Six hypotheses at 95 % are not corrected for their number.

The attacks are checked by the monotonicity audit (formulas A.9, MON), each image by itself: a
violation proves that an attack was no global maximum. After the ends have exchanged candidates
until none leads to a better attack it can't fail for the two ends of a step, so it is reported
before it too, for one start and for one end's starts.
If one start shows no violations, the audit proves nothing; if one end's starts show as many, the
search is too weak and no hypothesis counts.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.cli.options import Parser
from experiments.run import environment

from .. import style
from . import summary
from .design import SETTINGS, Sizes
from .figure import draw
from .run import run


def _count(text: str) -> int:
    """An integer >= 1."""
    value = int(text)
    if value < 1:
        raise ValueError(f"{text} is not an integer >= 1")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is missing, then draws what exists.

    Args:
        arguments: command line arguments, by default the process's.

    Returns:
        0.
    """
    parser = Parser(prog="python -m theory.trained_smoothness")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, default=Path("runs/trained-smoothness"))
    parser.add_argument("--cache", type=Path, default=Path("runs/trained-smoothness-networks"))
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST")
    for name in ("seeds", "epochs", "starts"):
        parser.add_argument(f"--{name}", type=_count, default=getattr(Sizes(), name))
    parser.add_argument(
        "--settings",
        default=",".join(setting.name for setting in SETTINGS),
        help="names, separated by commas",
    )
    parser.add_argument("--redraw", action="store_true", help="only draw what exists")
    parser.add_argument("--page", type=Path, help="also write the tables into this page")
    options = parser.parse_args(arguments)
    names = options.settings.split(",")
    unknown = sorted(set(names) - {setting.name for setting in SETTINGS})
    if unknown:
        known = ", ".join(setting.name for setting in SETTINGS)
        parser.error(f"--settings={options.settings!r}: {unknown[0]!r} is not one of {known}")
    if options.redraw:
        return _show(options.output, options.page, parser)
    environment.configure()
    sizes = Sizes(options.seeds, options.epochs, options.starts)
    run(
        options.output,
        sizes=sizes,
        settings=[setting for setting in SETTINGS if setting.name in names],
        data_dir=options.data_dir,
        cache=options.cache,
    )
    return _show(options.output, options.page, parser)


def _show(folder: Path, page: Path | None, parser: Parser) -> int:
    try:
        data = summary.Data(summary.load(folder))
        if page is not None:
            page.write_text(summary.fill(page.read_text("utf-8"), data), encoding="utf-8")
    except ValueError as error:
        parser.error(str(error))
    figure = draw(data)
    for suffix, metadata in ((".png", None), (".pdf", {"CreationDate": None})):
        file = folder / f"trained_smoothness{suffix}"
        figure.savefig(file, metadata=metadata, dpi=style.DPI)
    print(summary.text(data))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
