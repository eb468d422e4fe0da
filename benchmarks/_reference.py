"""The reference AutoAttack (``pyautoattack``, PyTorch on CPU), attack by attack, with verdicts."""

import contextlib
import time
from unittest import mock

import jax
import numpy as np

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def run_reference(
    logits_fn,
    x,
    y,
    *,
    norm: str,
    eps: float,
    seed: int,
    batch_size: int,
    attacks,
    num_steps: int = 100,
    num_queries: int = 5000,
    key=None,
    drawn: np.ndarray | None = None,
):
    """Verdicts after each attack and seconds.

    Args:
        logits_fn: PyTorch function of NCHW images.
        x: (N, H, W, C) float32.
        y: (N,) labels.
        norm: "linf", "l2" or "l1".
        eps: the radius.
        seed: seed of the reference's generator.
        batch_size: images in a batch.
        attacks: names among apgd-ce, apgd-t, fab-t, square, in order.
        num_steps: steps of APGD and FAB.
        num_queries: queries of Square.
        key: a jaxadv key: APGD gets the start noise that ``autoattack(key, ...)`` draws for each
        image, so that both agree up to rounding. FAB-T uses no random numbers; Square keeps its
        own.
        drawn: array like ``x`` that receives APGD-CE's start noise, for one run in Linf or L2.

    Returns:
        A dict of boolean verdicts by name ("clean" first), and a dict of seconds.
    """
    import torch  # pyright: ignore[reportMissingImports]
    from pyautoattack import AutoAttack  # pyright: ignore[reportMissingImports]

    images, labels = to_torch(x, y)
    with torch.no_grad():
        pieces = [logits_fn(part).argmax(1) for part in images.split(batch_size)]
    robust = (torch.cat(pieces) == labels).numpy()
    verdicts, seconds = {"clean": robust.copy()}, {}
    runner = AutoAttack(logits_fn, norm=NORMS[norm], eps=eps, seed=seed, version="standard")
    runner.square.n_queries = num_queries
    runner.apgd.n_iter = runner.apgd_targeted.n_iter = runner.fab.n_iter = num_steps
    for name in attacks:
        started = time.monotonic()
        runner.attacks = [name]
        left = np.flatnonzero(robust)
        for start in range(0, len(left), batch_size):
            ids = left[start : start + batch_size]
            with _same_noise(runner, attacks, name, x, ids, norm, key, drawn):
                found = _attack(runner, name, images[ids], labels[ids], seed)
            with torch.no_grad():
                robust[ids] = (logits_fn(found).argmax(1) == labels[ids]).numpy()
        verdicts[name], seconds[name] = robust.copy(), time.monotonic() - started
    return verdicts, seconds


def to_torch(x, y):
    """Images of shape (N, H, W, C) and labels as PyTorch tensors, NCHW."""
    import torch  # pyright: ignore[reportMissingImports]

    images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))
    return images, torch.from_numpy(y.astype(np.int64))


def _attack(runner, name, images, labels, seed):
    attack = {
        "apgd-ce": runner.apgd,
        "apgd-t": runner.apgd_targeted,
        "fab-t": runner.fab,
        "square": runner.square,
    }[name]
    attack.seed = seed
    if name == "apgd-ce":
        attack.loss = "ce"
    if name == "fab-t":
        attack.targeted, attack.n_restarts = True, 1
    return attack.perturb(images, labels)


def start_noise(key, places, run: int, shape, norm: str) -> np.ndarray:
    """APGD's start noise for images at these indices of a data set, (B, H, W, C)."""
    if norm == "linf":
        draw = lambda key: jax.random.uniform(key, shape, minval=-1, maxval=1)
    else:
        draw = lambda key: jax.random.normal(key, shape)
    fold = jax.random.fold_in
    one = lambda place: draw(fold(fold(key, place), run))
    return np.asarray(jax.vmap(one)(jax.numpy.asarray(places)))


@contextlib.contextmanager
def _same_noise(runner, attacks, name: str, x, ids, norm: str, key, drawn):
    """Replaces the start noise of the reference's APGD with jaxadv's for the same images.

    With ``drawn`` and no key, the noise is the reference's own and is written there.
    """
    if (key is None and drawn is None) or not name.startswith("apgd"):
        yield
        return
    import torch  # pyright: ignore[reportMissingImports]

    attack = runner.apgd if name == "apgd-ce" else runner.apgd_targeted
    stream = None if key is None else jax.random.fold_in(key, list(attacks).index(name) + 1)
    places = {x[place].tobytes(): place for place in ids}
    plain, runs = attack.attack_single_run, iter(range(10_000))
    function = "rand" if norm == "linf" else "randn"
    draw = getattr(torch, function)

    def single_run(images, *args, **kwargs):
        pixels = np.ascontiguousarray(np.moveaxis(images.numpy(), 1, -1))
        found = np.array([places[image.tobytes()] for image in pixels])

        def replaced(*sizes, **options):
            # The reference maps uniform numbers of [0, 1) to [-1, 1) itself.
            if stream is None:
                value = draw(*sizes, **options)
                noise = 2 * value - 1 if norm == "linf" else value
                drawn[found] = np.moveaxis(noise.numpy(), 1, -1)
                return value
            noise = start_noise(stream, found, next(runs), pixels.shape[1:], norm)
            value = torch.from_numpy(np.moveaxis(noise, -1, 1).copy())
            return (value + 1) / 2 if norm == "linf" else value

        with mock.patch.object(torch, function, replaced):
            return plain(images, *args, **kwargs)

    with mock.patch.object(attack, "attack_single_run", single_run):
        yield
