"""The reference attacks of ``pyautoattack`` in PyTorch, with draws that are injected.

Run as a script to write the golden files again: numbers only, for the tests that run without
PyTorch: ``python -m tests.references.autoattack tests/golden``
"""

import contextlib
import pathlib
import sys
from unittest import mock

import numpy as np
import torch
from pyautoattack import autopgd_base, fab_projections, fab_pt, square

from tests.helpers import autoattack_cases as cases

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def to_torch(images) -> torch.Tensor:
    """NHWC to NCHW."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(images), -1, 1)))


def to_numpy(images: torch.Tensor) -> np.ndarray:
    """NCHW to NHWC."""
    return np.moveaxis(images.detach().numpy(), 1, -1)


def torch_logits(model: cases.Net):
    kernel, bias = torch.from_numpy(model.kernel), torch.from_numpy(model.bias)
    weights = torch.from_numpy(model.weights)

    def logits_fn(images):
        y = torch.nn.functional.conv2d(images * 2 - 1, kernel, bias, padding=1)
        y = torch.tanh(y) if model.activation == "tanh" else torch.relu(y)
        return y.flatten(1) @ weights.T

    return logits_fn


def project_l1_exact(x, d, eps):
    """Float64 replacement of the reference's projection: sorted breakpoints, closed form."""
    pairs = zip(x.flatten(1).double(), d.flatten(1).double(), strict=True)
    steps = torch.stack([_project_row(*pair, eps) for pair in pairs])
    return steps.view(x.shape).to(x.dtype)


def _project_row(center, delta, eps):
    magnitude = delta.abs()
    cap = torch.minimum(magnitude, torch.where(delta > 0, 1 - center, center))
    if cap.sum() <= eps:
        return delta.sign() * cap - delta
    breaks = torch.cat([magnitude - cap, magnitude]).sort()[0]
    low, high = 0, len(breaks) - 1
    while high - low > 1:
        middle = (low + high) // 2
        length = torch.minimum(cap, (magnitude - breaks[middle]).clamp(min=0)).sum()
        low, high = (middle, high) if length > eps else (low, middle)
    tau = 0.5 * (breaks[low] + breaks[high])
    capped = magnitude - tau >= cap
    free = (magnitude > tau) & ~capped
    if free.any():
        tau = (cap[capped].sum() + magnitude[free].sum() - eps) / free.sum()
    return delta.sign() * torch.minimum(cap, (magnitude - tau).clamp(min=0)) - delta


@contextlib.contextmanager
def injected(**draws):
    """Replaces ``torch.rand`` and friends by functions of the caller."""
    with contextlib.ExitStack() as stack:
        for name, draw in draws.items():
            stack.enter_context(mock.patch.object(torch, name, draw))
        yield


def apgd_single_run(
    logits_fn, x, y, noise, *, norm, eps, loss, num_steps, targets=None, start=None
):
    """One run in the dtype of ``x``; also every point that the model saw."""
    seen = []

    def recording(points):
        seen.append(to_numpy(points).copy())
        return logits_fn(points)

    kind = autopgd_base.APGDAttack_targeted if targets is not None else autopgd_base.APGDAttack
    attack = kind(recording, n_iter=num_steps, norm=NORMS[norm], eps=eps, seed=0, device="cpu")
    attack.loss = loss
    images, labels = to_torch(x), torch.from_numpy(y.astype(np.int64))
    attack.init_hyperparam(images)
    if targets is not None:
        attack.y_target = torch.from_numpy(targets.astype(np.int64))
    draw = to_torch(noise)
    exact = images.dtype == torch.float64 and norm == "l1"
    patch = mock.patch.object(autopgd_base, "L1_projection", project_l1_exact)
    before = torch.get_default_dtype()
    torch.set_default_dtype(images.dtype)
    try:
        with injected(rand=lambda *_, **__: (draw + 1) / 2, randn=lambda *_, **__: draw):
            with patch if exact else contextlib.nullcontext():
                begin = None if start is None else to_torch(start)
                best, robust, losses, adversarial = attack.attack_single_run(images, labels, begin)
    finally:
        torch.set_default_dtype(before)
    return dict(
        best_images=to_numpy(best),
        robust=robust.numpy().astype(bool),
        best_losses=losses.numpy(),
        adversarial=to_numpy(adversarial),
        points=np.stack(seen),
    )


def apgd_case(case: cases.ApgdCase, dtype=np.float64):
    """The inputs of a case and what the reference makes of them."""
    model = cases.net(case.seed, dtype=dtype)
    x = cases.images(100 + case.seed, dtype=dtype)
    logits = torch_logits(model)(to_torch(x)).numpy()
    y = logits.argmax(1).astype(np.int32)
    targets = logits.argsort(1)[:, -2] if "targeted" in case.loss else None
    drawn = cases.noise(200 + case.seed, x.shape, case.norm, dtype)
    found = apgd_single_run(
        torch_logits(model),
        x,
        y,
        drawn,
        norm=case.norm,
        eps=cases.EPS[case.norm],
        loss=case.loss,
        num_steps=case.num_steps,
        targets=targets,
    )
    return model, x, y, drawn, found


def golden_apgd() -> dict:
    out = {}
    for case in cases.APGD_CASES:
        *_, found = apgd_case(case)
        out[f"{case.name}/points"] = np.stack([cases.fingerprint(p) for p in found["points"]])
        out[f"{case.name}/best_losses"] = found["best_losses"]
        out[f"{case.name}/robust"] = found["robust"]
        out[f"{case.name}/best"] = cases.fingerprint(found["best_images"])
        out[f"{case.name}/adversarial"] = cases.fingerprint(found["adversarial"])
    return out


def square_case(case: cases.SquareCase):
    """The square attack with draws in place of its generator: best points, queries, inputs."""
    model = cases.net(case.seed, dtype=np.float32)
    x = cases.images(100 + case.seed, dtype=np.float32)
    y = torch_logits(model)(to_torch(x)).argmax(1)
    positions, signs, flips, initial_signs, initial_flips = cases.square_draws(case, len(x))
    attack = square.SquareAttack(
        torch_logits(model),
        norm=NORMS[case.norm],
        n_queries=case.num_queries,
        eps=case.eps,
        resc_schedule=False,
        device="cpu",
    )
    attack.init_hyperparam(to_torch(x))
    tiles = np.moveaxis(initial_signs, -1, 1)
    if case.norm == "linf":
        first = [torch.from_numpy(tiles[:, :, None])]
        turns = iter(())
    else:
        first = [
            torch.from_numpy(tiles[:, :, i, j, None, None])
            for i, j in np.ndindex(*initial_flips.shape)
        ]
        turns = iter([*initial_flips.ravel(), *flips])
    choices = iter([*first, *(torch.from_numpy(s[:, None, None]) for s in signs)])
    # The reference asks for row and column of window 1, then of window 2.
    places = iter(positions.ravel())
    attack.random_choice = lambda shape: next(choices).float().expand(shape)
    attack.random_int = lambda low=0, high=1, shape=(1,): torch.from_numpy(
        np.floor([next(places) * np.float32(high)]).astype(np.int64)
    )
    with injected(rand=lambda *_: torch.tensor([1.0 if next(turns) else 0.0])):
        queries, points = attack.attack_single_run(to_torch(x), y)
    return model, x, y.numpy().astype(np.int32), queries.numpy().astype(int), to_numpy(points)


def golden_square() -> dict:
    out = {}
    for case in cases.SQUARE_CASES:
        *_, queries, points = square_case(case)
        name = f"{case.norm}_{case.num_queries}"
        out[f"{name}/queries"], out[f"{name}/points"] = queries, cases.fingerprint(points)
    for norm in ("l2", "l1"):
        attack = square.SquareAttack(None, norm=NORMS[norm], eps=1.0, device="cpu")
        for side in (3, 5, 6, 7, 11, 15, 21, 29):
            with injected(rand=lambda *_: torch.zeros(1)):
                out[f"pattern_{norm}_{side}"] = attack.eta(side).numpy().astype(np.float32)
    return out


def fab_case(case: cases.FabCase):
    """One run of FAB in float64: the nearest adversarial images (clean where none)."""
    x = cases.images(100 + case.seed)
    return x, fab_run(case, cases.net(case.seed), x, 2, cases.EPS[case.norm])


def fab_run(case: cases.FabCase, model: cases.Net, x: np.ndarray, target: int, eps: float):
    """The same on given images; the target is the class of this rank, 1 being the largest logit."""
    logits = torch_logits(model)(to_torch(x))
    attack = fab_pt.FABAttack_PT(
        torch_logits(model),
        norm=NORMS[case.norm],
        n_iter=case.num_steps,
        eps=eps,
        targeted=case.targeted,
        device="cpu",
    )
    attack.target_class = target
    drawn = to_torch(cases.noise(200 + case.seed, x.shape, case.norm))
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.object(torch.Tensor, "float", lambda values: values.double()),
            injected(rand=lambda *_: (drawn + 1) / 2, randn=lambda *_: drawn),
        ):
            found = attack.attack_single_run(
                to_torch(x),
                logits.argmax(1),
                use_rand_start=case.random_start,
                is_targeted=case.targeted,
            )
    finally:
        torch.set_default_dtype(torch.float32)
    return to_numpy(found)


def golden_fab() -> dict:
    out = {}
    for case in cases.FAB_CASES:
        _, found = fab_case(case)
        out[case.name] = cases.fingerprint(found)
    points, normals, offsets = map(torch.from_numpy, cases.hyperplanes(0))
    for norm in ("linf", "l2", "l1"):
        project = getattr(fab_projections, f"projection_{norm}")
        out[f"projection_{norm}"] = project(points, normals, offsets).numpy()
    return out


GOLDEN = {
    "autoattack_apgd": golden_apgd,
    "autoattack_square": golden_square,
    "autoattack_fab": golden_fab,
}


def main(folder):
    for name, make in GOLDEN.items():
        path = pathlib.Path(folder) / f"{name}.npz"
        np.savez_compressed(path, **make())
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main(*sys.argv[1:])
