r"""AutoAttack: an ensemble of parameter-free attacks with one verdict per image.

The standard version runs APGD on the cross-entropy, APGD on the targeted DLR loss, targeted FAB and
Square, in this order, each on the images that are still robust and from the clean image.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxadv.attacks import autoattack
    >>> weights = jax.random.normal(jax.random.key(0), (16, 4))
    >>> logits_fn = lambda x: x.reshape(x.shape[0], -1) @ weights
    >>> images = jnp.full((2, 4, 4, 1), 0.5)
    >>> labels = logits_fn(images).argmax(1).astype("int32")
    >>> result = autoattack(jax.random.key(1), logits_fn, images, labels, eps=0.2, progress=False)
    >>> result.robust.tolist(), result.broken_by.tolist()
    ([False, False], ['apgd-ce', 'apgd-ce'])

References:
    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", 2020; "Mind the box: l1-APGD", 2021; and the code they published.
"""

import contextlib
import functools
import operator
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from ..._program import program_of
from ..._transfers import on_host
from ...checks import check_choice, check_count, check_labels, check_norm
from ...keys import as_key
from ...types import Array, Key, LogitsFn, Norm
from .. import _model
from .._apgd.state import Rule
from .._driver import code_of
from .._kernel import Kernel
from . import checks
from .chunks import Chunks
from .ledger import Ledger
from .plan import make_plan
from .problem import PRECISIONS, Problem
from .progress import Progress, Reporter
from .result import AutoAttackResult
from .store import Store

_CHECKED = 16  # images that the checks before the attacks look at


@on_host
def autoattack(
    key: Key,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    norm: Norm = "linf",
    eps: float | str | None = None,
    version: str = "standard",
    attacks: str | Kernel | Sequence[str | Kernel] | None = None,
    batch_size: int | None = None,
    store: str | os.PathLike[str] | None = None,
    shard: tuple[int, int] | None = None,
    progress: bool | Callable[[Progress], object] = True,
    num_steps: int = 100,
    num_queries: int = 5000,
    early_exit: bool = True,
    individual: bool = False,
    few_classes: str = "adapt",
    apgd_rule: Rule = "repo",
    square_shared: bool = False,
    square_full_range: bool = False,
    devices: Sequence[Any] | None = None,
    precision: str = "default",
) -> AutoAttackResult:
    r"""Robust accuracy by the AutoAttack ensemble.

    Settings follow the published code. Deliberate differences: every image has its own random
    numbers, from (key, attack, run, index), so verdicts do not depend on the batch size, other
    images, the number of devices or interruptions; Square places its squares image by image; with
    fewer than 10 classes the targeted attacks have K - 1 targets, and the attacks whose loss does
    not exist (3 and 2 classes) use DLR or the margin; an image stops at its first misclassified
    point (the verdict is the same). Every adversarial image is re-evaluated alone in float32, at
    the highest precision, and its norm and box are checked: a violation makes the image robust
    again and is reported in ``checks``. ``square_shared``, ``few_classes="error"`` and
    ``early_exit=False`` restore the published behavior; the individual attacks :func:`apgd`,
    :func:`apgd_targeted`, :func:`fab`, :func:`square` accept explicit draws, and with the published
    code's draws they reproduce it.

    Args:
        key: PRNG key, or a seed.
        logits_fn: maps images of shape (B, H, W, C) to logits of shape (B, K), deterministic and
            computing each image independently of the rest of the batch. For ``version="rand"`` it
            takes a key as second argument. It is traced at every call, on CPU for batches of 8
            images (fewer above 64x64 pixels); models that differ only in their arrays share one
            compilation.
        images: (N, H, W, C), float32 in [0, 1]; the model must do its own normalization.
        labels: (N,) integers.
        norm: "linf", "l2" or "l1".
        eps: radius, in the units of the images; default 8/255 for "linf", none for the others.
        version: "standard", "plus", "rand" (gradients averaged over 20 draws, success decided by
        majority of 10 evaluations) or "custom".
        attacks: for "custom": names among apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square, and your
        own kernels (:class:`jaxadv.attacks.Kernel`), in the order to run.
        batch_size: images in flight, rounded up to such batches on CPU; default: as many as fit.
        store: folder for saving progress, or None. A second call with the same arguments
            resumes; the batch size may differ.
        shard: (i, n) evaluates the images i, i + n, i + 2n, ... only, and returns their result;
            n processes with a shard each may share a store at the same time. A call without it on
            the same store then merges: the result is that of one process (on CPU bit for bit), and
            only what shards did not finish is computed.
        progress: a line on stderr, nothing, or a function of a :class:`Progress`.
        num_steps: iterations of APGD and FAB; 100 in every version.
        num_queries: queries of Square; 5000 in every version.
        early_exit: take images out of an attack as soon as they are broken. Verdicts are the same
        without it; adversarial images may differ.
        individual: run every attack on all correctly classified images, not only the remaining
        ones, and also report each attack's own verdicts; ``robust`` is the worst case.
        few_classes: "adapt" as described above, or "error".
        apgd_rule: "repo", or "paper" for the checkpoints and comparisons of the paper.
        square_shared: use the same squares and signs for all images, as in the published code.
        square_full_range: allow squares to touch the last row and column, unlike the published
        code.
        devices: devices that share the work; default all accelerators, or one CPU.
        precision: of the float32 matrix products and convolutions in the attacks: "high",
            "highest", or "default" for what JAX is set to, which is less than float32 on many
            accelerators. Verdicts always have the highest: those of the clean images, and of every
            adversarial image. A precision that a layer asks for itself has priority.

    Returns:
        An :class:`AutoAttackResult`.

    Raises:
        ValueError: on images outside [0, 1] or of a wrong dtype or shape, labels out of range,
            unknown names, an invalid radius or shard, or another evaluation's store.

    Example:
        >>> import jax.numpy as jnp
        >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), 2 - x.sum((1, 2, 3))], 1)
        >>> x, y = jnp.full((1, 2, 2, 1), 0.9), jnp.array([0])
        >>> result = autoattack(jax.random.key(0), logits_fn, x, y, eps=0.1, progress=False)
        >>> result.robust_accuracy, result.evaluations["square"].forward
        (1.0, 5003)

    References:
        Croce and Hein 2020, section 5.
    """
    randomized = version == "rand"
    key = as_key(key)
    if eps is None:
        eps = _default_radius(norm)
    eps = float(_model.check_attack(images, labels, norm, eps))
    if images.dtype != np.float32:
        raise ValueError(f"images has dtype {images.dtype}; pass images.astype('float32')")
    pixels, classes = jax.device_get((images, labels))
    shape = pixels.shape[1:]
    check_choice("precision", precision, PRECISIONS)
    shard = _check_shard(shard, store, len(pixels))
    trace = _tracer(logits_fn, shape, randomized)
    model = trace(1, precision)
    num_classes = program_of(model).out.shape[1]
    check_labels(labels, len(pixels), num_classes=num_classes)
    _model.check_devices(model, images)
    check_count("num_steps", num_steps, 3)
    check_count("num_queries", num_queries, 1)
    if batch_size is not None:
        check_count("batch_size", batch_size, 1)
    early_exit = early_exit and not randomized
    plan, notes = make_plan(
        version,
        norm,
        num_classes,
        attacks=attacks,
        num_steps=num_steps,
        num_queries=num_queries,
        few_classes=few_classes,
        apgd_rule=apgd_rule,
        square_shared=square_shared,
        square_full_range=square_full_range,
        early_stop=early_exit,
    )
    code = {name: code_of(kernel, shape, num_classes, norm) for name, kernel in plan.items()}
    problem = Problem(
        trace, precision, key, pixels, classes, num_classes, norm, eps, randomized, plan, code
    )
    settings = problem.describe() | {
        "version": version,
        "early_exit": early_exit,
        "individual": individual,
    }
    with Store(store, shard) as kept:  # rejected before anything is compiled
        chunks = Chunks(problem, batch_size, devices)
        if store is not None:
            kept.open(settings | {"code": code}, chunks.probe(_CHECKED) * (not randomized))
        started = time.monotonic()
        found = _check_model(logits_fn, problem)
        with contextlib.closing(Reporter(progress)) as reporter:
            rows = slice(None) if shard is None else slice(shard[0], None, shard[1])
            ledger = Ledger(chunks, kept, reporter, individual, rows)
            ledger.run()
    found = ledger.checks(found + [checks.Check("classes", False, note) for note in notes])
    settings |= _environment(precision) | {
        "devices": chunks.num_devices,
        "batch_size": chunks.in_flight,
        "total_seconds": time.monotonic() - started,
    }
    if shard is not None:
        settings["shard"] = list(shard)
    result = ledger.result(found, settings)
    if progress is True:
        print(result.summary())
    return result


def _tracer(
    logits_fn: Callable[..., Array], shape: tuple[int, ...], randomized: bool
) -> Callable[[int, str], Partial]:
    """The model traced for a number of rows and a precision, once each."""

    @functools.cache
    def trace(rows: int, precision: str) -> Partial:
        own = precision == "default"
        with contextlib.nullcontext() if own else jax.default_matmul_precision(precision):
            return _model.trace_model(logits_fn, (rows, *shape), np.float32, randomized)

    return trace


def _check_shard(shard: Any, store: Any, number: int) -> tuple[int, int] | None:
    """The shard as two integers, checked."""
    if shard is None:
        return None
    try:
        index, count = map(operator.index, shard)
    except (TypeError, ValueError):
        raise ValueError(f"shard={shard!r} is not a pair (i, n); pass, e.g., (0, 4)") from None
    if not 0 <= index < count <= number:
        raise ValueError(
            f"shard={shard!r} of {number} images is not one of (0, n) to (n - 1, n) with n from 1 "
            f"to {number}"
        )
    if store is None:
        raise ValueError(f"shard={shard!r} needs store=..., a folder that all shards share")
    return index, count


def _environment(precision: str) -> dict[str, Any]:
    """What else a result may depend on besides its arguments."""
    if precision == "default":
        precision = jax.config.values["jax_default_matmul_precision"] or precision
    return {
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "precision": f"{precision} float32",
        "backend": jax.default_backend(),
    }


def _check_model(logits_fn: Callable[..., Array], problem: Problem) -> list[checks.Check]:
    """The checks of the model on a few images, before the attacks."""
    images, labels = problem.images[:_CHECKED], problem.labels[:_CHECKED]
    if problem.randomized:
        key = problem.key
        call = lambda images, number: logits_fn(images, jax.random.fold_in(key, number))
        gradient = functools.partial(checks.margin_gradient, lambda images: call(images, 0))
    else:
        call = lambda images, number: logits_fn(images)
        gradient = functools.partial(checks.compiled_gradient, problem.model(len(images)))
    points, classes = jax.device_put((images, labels))
    return checks.check_model(call, gradient, points, classes, problem.randomized)


def _default_radius(norm: str) -> float:
    check_norm(norm)
    usual = {"l2": "0.5 for CIFAR-10, 3.0 for ImageNet", "l1": "12 for CIFAR-10, 60 for ImageNet"}
    if norm in usual:
        raise ValueError(f"norm={norm!r} needs eps; usual radii: {usual[norm]} (eps=...)")
    return 8 / 255
