r"""Single attacks on published networks, beside PyTorch on the same images.

    python -m benchmarks.single_attacks pgd --checkpoint=FILE.npz --num_steps=40
    python -m benchmarks.single_attacks fab --checkpoint=FILE.npz --norm=l2 --eps=1
    python -m benchmarks.single_attacks apgd --checkpoint=FILE.npz --number=1000 --runs=10

"pgd" starts at the clean images and uses no random numbers: verdicts can be compared image by
image. "fab" gives the norms of what untargeted FAB finds, without random start. "apgd" runs APGD-CE
with independent random numbers on both sides, is their difference chance?, and once more with those
that the reference drew. The reference is the package ``pyautoattack``; for checkpoints and images,
see ``_checkpoints.py``.
"""

import contextlib
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cli.options import Parser
from jaxadv.attacks import FAB, apgd, fab, pgd

from ._checkpoints import ARCHITECTURES, jax_model, load_both, torch_model
from ._reference import NORMS, run_reference, to_torch
from ._report import provenance, save


def _parts(options, number: int):
    """Slices of the images, a batch each."""
    return [slice(i, i + options.batch_size) for i in range(0, number, options.batch_size)]


def pgd_verdicts(checkpoint, x, y, options) -> dict:
    """What PGD without random start leaves correctly classified, on both sides."""
    import torch  # pyright: ignore[reportMissingImports]

    model, torch_fn = jax_model(checkpoint), torch_model(checkpoint)
    clean, ours, theirs = [], [], []
    for part in _parts(options, len(y)):
        images, labels = jnp.asarray(x[part]), jnp.asarray(y[part])
        found = pgd(
            jax.random.key(0), model, images, labels, norm="linf", eps=options.eps,
            step_size=options.step_size, num_steps=options.num_steps, init="zero",
        )  # fmt: skip
        clean.append(np.asarray(model(images).argmax(1)) == y[part])
        ours.append(np.asarray(model(found).argmax(1)) == y[part])
        start, targets = to_torch(x[part], y[part])
        moved = start.clone()
        for _ in range(options.num_steps):
            given = moved.requires_grad_()
            loss = torch.nn.functional.cross_entropy(torch_fn(given), targets, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, given)
            moved = given.detach() + options.step_size * gradient.sign()
            moved = torch.clamp(moved, start - options.eps, start + options.eps).clamp(0, 1)
        with torch.no_grad():
            theirs.append((torch_fn(moved).argmax(1) == targets).numpy())
    good, ours, theirs = (np.concatenate(flags) for flags in (clean, ours, theirs))
    return {
        "images": len(y),
        "clean": int(good.sum()),
        "jaxadv": int(ours.sum()),
        "PyTorch": int(theirs.sum()),
        "different": int((ours != theirs).sum()),
    }


def fab_norms(checkpoint, x, y, options) -> dict:
    """Norms of what FAB finds on the correctly classified images, on both sides.

    With ``options.first_alpha``, ours reproduces the bug in the code behind advertorch's figures
    (all images of a batch of 100 use the bias of the first correctly classified one; the AutoAttack
    repository fixed it in October 2020), and there is no reference, which has no bug.
    """
    model = jax_model(checkpoint)
    correct = [np.asarray(model(x[part]).argmax(1)) == y[part] for part in _parts(options, len(y))]
    own, change = FAB.bias, contextlib.nullcontext()
    if options.first_alpha:
        first = lambda self, *parts: jnp.full_like(parts[0], own(self, *parts)[0])
        change = mock.patch.object(FAB, "bias", first)
    ours, theirs = [], []
    for part, good in zip(_parts(options, len(y)), correct, strict=True):
        # The first image must be classified correctly; the others are put in place below.
        order = np.argsort(~good, kind="stable")
        with change:
            found = fab(
                jax.random.key(0), model, x[part][order], y[part][order], norm=options.norm,
                eps=options.eps, num_steps=options.num_steps,
                indices=jnp.arange(len(y))[part][order],
            )  # fmt: skip
        ours.append(np.asarray(found.norms)[np.argsort(order)])
        if not options.alone:
            theirs.append(_reference_norms(checkpoint, x[part], y[part], options))
    good, ours = np.concatenate(correct), np.concatenate(ours)
    report = {"jaxadv": _moments(ours[good])}
    if theirs:
        others = np.concatenate(theirs)
        near = np.isclose(ours[good], others[good], rtol=1e-3) | (ours[good] == others[good])
        report |= {"reference": _moments(others[good]), "within 0.1 %": float(near.mean())}
    return report


def _reference_norms(checkpoint, x, y, options) -> np.ndarray:
    """The reference's norms, infinite where it finds nothing."""
    import torch  # pyright: ignore[reportMissingImports]
    from pyautoattack.fab_pt import FABAttack_PT  # pyright: ignore[reportMissingImports]

    torch_fn = torch_model(checkpoint)
    attack = FABAttack_PT(torch_fn, NORMS[options.norm], n_iter=options.num_steps, eps=options.eps)
    images, labels = to_torch(x, y)
    found = attack.attack_single_run(images, labels)
    order = math.inf if options.norm == "linf" else int(options.norm[1:])
    norms = torch.linalg.vector_norm((found - images).flatten(1), order, dim=1)
    with torch.no_grad():
        norms[torch_fn(found).argmax(1) == labels] = math.inf
    return norms.numpy()


def _moments(norms: np.ndarray) -> dict:
    """Of the finite norms; the median's 95 % interval is by order statistics."""
    finite = np.sort(norms[np.isfinite(norms)])
    count = len(finite)
    around = 0.98 * math.sqrt(count)  # 1.96 standard deviations of the binomial at 1/2
    low, high = math.floor(count / 2 - around), math.ceil(count / 2 + around)
    return {
        "images": len(norms),
        "found": count,
        "median": float(np.median(finite)),
        "median_95": [float(finite[max(low, 0)]), float(finite[min(high, count - 1)])],
        "mean": float(finite.mean()),
        "mean_95": float(1.96 * finite.std(ddof=1) / math.sqrt(count)),
        "greatest": float(finite.max()),
    }


def apgd_runs(checkpoint, x, y, options) -> dict:
    """Robust accuracy after APGD-CE alone, over independent runs of both sides."""
    model, torch_fn = jax_model(checkpoint), torch_model(checkpoint)
    found = {"images": len(y), "jaxadv": [], "reference": [], "reference's draws": [], "same": []}

    def ours(seed: int, noise: np.ndarray | None) -> np.ndarray:
        robust = [
            apgd(
                jax.random.key(seed), model, x[part], y[part], norm=options.norm, eps=options.eps,
                indices=jnp.arange(len(y))[part],
                noise=None if noise is None else jnp.asarray(noise[None, part]),
            ).robust
            for part in _parts(options, len(y))
        ]  # fmt: skip
        return np.concatenate(robust)

    for run in range(options.runs):
        noise = np.zeros_like(x)  # of images misclassified as they are: they have no draw
        verdicts, _ = run_reference(
            torch_fn, x, y, norm=options.norm, eps=options.eps, seed=run,
            batch_size=options.batch_size, attacks=("apgd-ce",), drawn=noise,
        )  # fmt: skip
        theirs, again = verdicts["apgd-ce"], ours(run, noise)
        found["jaxadv"].append(int(ours(run, None).sum()))
        found["reference"].append(int(theirs.sum()))
        found["reference's draws"].append(int(again.sum()))
        found["same"].append(int((again == theirs).sum()))
        print({name: v[-1] for name, v in found.items() if name != "images"}, flush=True)
    return found


ATTACKS = {"pgd": pgd_verdicts, "fab": fab_norms, "apgd": apgd_runs}
STEPS = {"pgd": 40, "fab": 20, "apgd": 100}


def parse(arguments=None):
    """The command line."""
    parser = Parser(description=str(__doc__).split("\n")[0])
    parser.add_argument("attack", choices=ATTACKS)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--arch", choices=ARCHITECTURES)
    parser.add_argument("--data", help="data set, npz or idx file; default: the checkpoint's")
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--norm", default="linf", choices=("linf", "l2"))
    parser.add_argument("--eps", type=float, help="default: the checkpoint's")
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--num_steps", type=int, help="default: 40 of PGD, 20 of FAB")
    parser.add_argument("--step_size", type=float, default=0.01, help="of PGD")
    parser.add_argument("--runs", type=int, default=10, help="of APGD")
    parser.add_argument(
        "--first_alpha", action="store_true", help="of FAB: reproduce the bug of its first version"
    )
    parser.add_argument("--alone", action="store_true", help="of FAB: without the reference")
    parser.add_argument("--output", help="JSON")
    options = parser.parse_args(arguments)
    options.num_steps = options.num_steps or STEPS[options.attack]
    options.alone |= options.first_alpha
    if options.attack == "pgd" and options.norm != "linf":
        raise SystemExit("--norm: pgd is compared in linf only")
    if options.attack == "apgd" and options.num_steps != STEPS["apgd"]:
        raise SystemExit("--num_steps: apgd is compared with 100 steps only")
    return options


def main(arguments=None) -> dict:
    """Runs the comparison and returns the report it writes."""
    options = parse(arguments)
    checkpoint, x, y = load_both(options)
    found = ATTACKS[options.attack](checkpoint, x, y, options)
    print(found)
    report: dict = {**provenance(options), "network": checkpoint.name, options.attack: found}
    save(report, options.output)
    return report


if __name__ == "__main__":
    main()
