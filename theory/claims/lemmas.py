"""Claims on Lemmas 4 and 5 for networks: formulas A.9 (F3), C.1, C.2, C.4, E8, E11, E14."""

import numpy as np

from .branches import SIMPSON, branches
from .registry import OURS, PRINTED, Trial, claim, join, norm

EXCESS = 1 + 1e-4  # the constants are taken at nine points of a segment
_SHAKEN = {"attacks that are no maximizers": dict(shake=0.02)}


def _moved(rng, branch, shake: float) -> np.ndarray:
    noise = shake * rng.normal(size=(2, *branch.nodes[0].x.shape))
    return norm(branch.nodes[0].x + noise[0] - branch.nodes[-1].x - noise[1])


def _paper(rng, count, kind: str, scale: float, constant: str, shake: float) -> Trial:
    """How far attacks move against C_thx/c |a - b|, both constants over the segment."""
    trials = []
    for branch in branches(rng, count, "l2", kind):
        ratio = branch.along("mixed").max(0) / branch.along(constant).min(0)
        bound = scale * EXCESS * ratio * branch.step()
        trials.append(Trial(_moved(rng, branch, shake), bound, branch.words))
    return join(*trials)


@claim(
    "Lemma 4",
    "Lemma 4",
    PRINTED,
    "an interior attack moves by at most C_thx/c |dtheta| along its branch, -H >= c there "
    "(pairs up to 0.6 apart; seven architectures, d = 2 to 8)",
    sabotage={
        "bound halved": dict(scale=0.5),
        "the largest eigenvalue of -H for the smallest": dict(constant="top"),
        **_SHAKEN,
    },
    cost=20,
)
def _lemma4(rng, count, *, scale=1.0, constant="sigma", shake=0.0):
    return _paper(rng, count, "interior", scale, constant, shake), None


@claim(
    "Lemma 4, size of the neighborhood",
    "Lemma 4; E8",
    PRINTED,
    "the bound C_thx/c holds near theta with the c of that one point, c = c_0",
    "it holds with any c < c_0 in the ball of radius (c_0 - c)/(C_H (1 + C_thx/c))",
    sabotage={
        "bound a tenth smaller": dict(scale=0.9),
        "a ball eight times as large": dict(reach=8.0),
        "a quadratic loss, C_H = 0": dict(cubic=0.0),
    },
)
def _neighborhood(rng, count, *, scale=1.0, reach=1.0, cubic=1.0):
    # g = theta - c_0 x + k x^3/3: the attack at 0 is 0, C_thx = 1, C_H = k on |x| <= 1/2.
    slope, k = rng.uniform(0.8, 2.0, size=count), rng.uniform(0.3, 1.0, size=count)

    def attack(theta):
        x = theta / slope
        for _ in range(60):
            bend = cubic * k
            x = x - (slope * x - bend * x**3 / 3 - theta) / (slope - bend * x**2)
        return x

    c = 0.9 * slope
    radius = reach * (slope - c) / (k * (1 + 1 / c))
    a, b = radius * rng.uniform(-1, 1, size=(2, count))
    change, step = np.abs(attack(a) - attack(b)), np.abs(a - b)
    words = lambda i: f"c_0 = {slope[i]:.4f}, k = {k[i]:.4f}, theta = {a[i]:.4g} and {b[i]:.4g}"
    return Trial(change, step / slope, words), Trial(change, scale * step / c, words)


@claim(
    "Lemma 5",
    "Lemma 5",
    PRINTED,
    "an attack on the L2 sphere moves by at most C_thx/c |dtheta| along its branch, "
    "sigma_min(K) >= c there (d even and odd)",
    sabotage={
        "the largest singular value of K for the smallest": dict(constant="top"),
        "bound divided by 4": dict(scale=0.25),
        **_SHAKEN,
    },
    cost=40,
)
def _lemma5(rng, count, *, scale=1.0, constant="sigma", shake=0.0):
    return _paper(rng, count, "sphere", scale, constant, shake), None


@claim(
    "Lemma 5, sharp",
    "formulas C.2; E11",
    OURS,
    "by at most |T^T B|/c_T |dtheta|, and that is no more than Lemma 5",
    sabotage={
        "bound halved": dict(scale=0.5),
        "the multiplier dropped": dict(constant="flat"),
        "the largest curvature for the smallest": dict(constant="largest"),
        **_SHAKEN,
    },
    cost=40,
)
def _sharp(rng, count, *, scale=1.0, constant="curvature", shake=0.0):
    trials = []
    for branch in branches(rng, count, "l2", "sphere"):
        sharp = branch.along("tangent") / branch.along(constant)
        paper = branch.along("mixed") / branch.along("sigma")
        bound = scale * EXCESS * sharp.max(0) * branch.step()
        trials.append(Trial(_moved(rng, branch, shake), bound, branch.words))
        trials.append(Trial((sharp / paper).max(0), np.ones(len(bound)), branch.words))
    return join(*trials), None


@claim(
    "Hessian of the adversarial loss",
    "formulas C.1, C.2, C.4",
    OURS,
    "from a to b the gradient of l_eps changes by the integral of (A + B^T D)(b - a) "
    "(relative difference; L2, Linf)",
    sabotage={"attack motion dropped": dict(motion=0.0), "the sign of D": dict(motion=-1.0)},
    cost=40,
)
def _bend(rng, count, *, motion=1.0):
    trials = []
    for ball in ("l2", "linf"):
        for branch in branches(rng, count, ball, "interior", "sphere", "face"):
            step = branch.b - branch.a
            moves = motion * np.einsum("kndm,nm->knd", branch.along("jacobian"), step)
            slopes = [
                branch.net.derivatives(theta, point.x, step, move)[3]
                for theta, point, move in zip(branch.thetas, branch.nodes, moves, strict=True)
            ]
            change = branch.nodes[-1].slope - branch.nodes[0].slope
            apart = norm(change - np.einsum("k,knm->nm", SIMPSON, np.stack(slopes)))
            # Nine nodes are enough for the integral where the curvature hardly changes.
            curvature = branch.along("curvature")
            near = (branch.step() < 0.1) & (curvature.max(0) < 1.3 * curvature.min(0))
            apart, change = apart[near], norm(change)[near]
            places = np.flatnonzero(near)
            words = lambda i, w=branch.words, p=places: w(p[i])
            trials.append(Trial(apart, 1e-3 * change, words))
    return join(*trials), None


@claim(
    "(CURV)",
    "formulas A.9 (F3)",
    OURS,
    "the motion of the attack only adds curvature: along a segment the gradient of l_eps changes "
    "by no less than with A alone (L2)",
    sabotage={"minimizers for maximizers": dict(sense=-1.0), "A doubled": dict(scale=2.0)},
    cost=40,
)
def _curvature(rng, count, *, sense=1.0, scale=1.0):
    trials = []
    for branch in branches(rng, count, "l2", "interior", "sphere", sense=sense):
        step = branch.b - branch.a
        frozen = [
            np.sum(step * branch.net.derivatives(theta, point.x, step)[3], 1)
            for theta, point in zip(branch.thetas, branch.nodes, strict=True)
        ]
        change = np.sum(step * (branch.nodes[-1].slope - branch.nodes[0].slope), 1)
        missing = np.maximum(scale * (SIMPSON @ np.stack(frozen)) - change, 0)
        trials.append(Trial(missing, 1e-4 * np.abs(change) + 1e-13, branch.words))
    return join(*trials), None


@claim(
    "Linf attacks with a fixed active set",
    "formulas C.4; E14",
    OURS,
    "the attack moves by at most |B_F|/min(-H_FF) |dtheta|, at a vertex not at all (networks)",
    sabotage={
        "bound halved": dict(scale=0.5),
        "the largest eigenvalue of -H_FF for the smallest": dict(constant="largest"),
        **_SHAKEN,
    },
    cost=40,
)
def _active(rng, count, *, scale=1.0, constant="curvature", shake=0.0):
    trials = []
    for branch in branches(rng, count, "linf", "face", "vertex", "interior"):
        ratio = branch.along("tangent").max(0) / branch.along(constant).min(0)
        ratio = np.where(branch.kind == "vertex", 0.0, ratio)
        moved = _moved(rng, branch, shake)
        trials.append(Trial(moved, scale * EXCESS * ratio * branch.step(), branch.words))
    return join(*trials), None
