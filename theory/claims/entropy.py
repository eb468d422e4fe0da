"""Claims on EntropySGD's smoothed loss: Theorem 3, formulas D.1 and D.2, E15, E16, E17.

The measured side is differences of F, by quadrature in NumPy; the bounds use moments, which for the
toys come from `jaxadv.theory`.
"""

import functools

import jax.numpy as jnp
import numpy as np

from jaxadv import theory

from .. import surfaces
from .quadrature import Line, toy_plane, wells
from .registry import OURS, PRINTED, Trial, claim, join, norm, spectral, unit, within

GAMMAS = (0.5, 1.0, 5.0)
CASES = [(m, k, g) for m in ("linear", "swish") for k in ("l2", "linf") for g in GAMMAS]


@functools.cache
def _loss(model, kind):
    return surfaces.toy_loss(model, kind)


@functools.lru_cache(maxsize=64)
def _moments(model, kind, gamma, axis: tuple) -> np.ndarray:
    """Covariances on axis x axis, from jaxadv."""
    axes = [np.array(axis)] * 2
    found = theory.local_entropy_grid(_loss(model, kind), axes, gamma=gamma, num_nodes=9)
    return found.covariance


def _random(covariance, rng):
    half = rng.normal(size=covariance.shape)
    return half @ np.swapaxes(half, -1, -2)


_SCALED = {
    "the covariance times 50": dict(change=lambda c, rng: 50 * c),
    "the covariance halved": dict(change=lambda c, rng: c / 2),
    "random positive matrices for the covariance": dict(change=_random),
}


class _Toy:
    """One toy, one scope: slopes of grad F between pairs, and covariances."""

    def __init__(self, rng, case, pairs: int, change):
        model, kind, self.gamma = case
        plane = toy_plane(model, kind, self.gamma)
        axis = np.sort(np.concatenate([np.linspace(-2, 2, 13), rng.uniform(-2, 2, size=5)]))
        covariance = change(_moments(model, kind, self.gamma, tuple(axis)), rng)
        self.covariance = covariance.reshape(-1, 2, 2)
        places = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        self.a = rng.uniform(-2, 2, size=(pairs, 2))
        self.b = rng.uniform(-2, 2, size=(pairs, 2))
        self.b[::2] = self.a[::2] + 0.01 * unit(rng.normal(size=self.a[::2].shape))
        # Away from the flat middle the curvature is largest: near the origin.
        self.a[::4], self.b[::4] = 0.2 * self.a[::4], 0.2 * self.b[::4]
        self.change = plane.gradient(self.a) - plane.gradient(self.b)
        self.step = norm(self.a - self.b)
        # Second differences at grid points, which the covariance must explain.
        at = rng.integers(len(places), size=pairs)
        v, h = unit(rng.normal(size=(pairs, 2))), 3e-3 / np.sqrt(self.gamma)
        ends = plane(places[at] + h * v) + plane(places[at] - h * v) - 2 * plane(places[at])
        form = np.einsum("ni,nij,nj->n", v, self.covariance[at], v)
        self.unexplained = np.abs(-ends / h**2 - (self.gamma - self.gamma**2 * form))
        self.words = lambda i: f"{model} model, {kind}, gamma = {self.gamma:g}, pair {i}"

    def slopes(self, bound: float) -> Trial:
        return Trial(norm(self.change), bound * self.step, self.words)

    def explained(self) -> Trial:
        return within(self.unexplained, 2e-4 * self.gamma, self.words)


def _toys(rng, count, change, cases=CASES) -> list[_Toy]:
    return [_Toy(rng, case, max(count // len(cases), 4), change) for case in cases]


def _well(rng, count: int, change):
    """Two wells in one dimension: curvatures between them from pairs, and the largest variance."""
    height, place = rng.uniform(4, 12, size=count), rng.uniform(0.5, 1.5, size=count)
    gamma = rng.uniform(1, 5, size=count)
    line = Line(wells(height, place), gamma, 16.0, 0.1)
    thetas = np.linspace(-0.5, 0.5, 21)
    variance = np.max([line.moments(np.full(count, t))[1] for t in thetas], 0)
    variance = change(variance[:, None, None], rng)[:, 0, 0]
    ends = [line.gradient(np.full(count, s * 0.02)) for s in (1, -1)]
    slope = np.abs(ends[0] - ends[1]) / 0.04
    words = lambda i: f"two wells, G = {height[i]:.2f}, a = {place[i]:.2f}, gamma = {gamma[i]:.2f}"
    return slope, gamma, variance, words


def _keep(covariance, rng):
    del rng
    return covariance


@claim(
    "Theorem 3",
    "Theorem 3",
    PRINTED,
    "grad F is (gamma + gamma^2 sup |Sigma|_F)-Lipschitz (slopes between pairs of points), and "
    "-Hess F = gamma I - gamma^2 Sigma (second differences of F)",
    sabotage={
        **_SCALED,
        "bound halved": dict(scale=0.5),
        "gamma alone, Sigma left out": dict(weight=0.0),
    },
    cost=20,
)
def _theorem3(rng, count, *, change=_keep, scale=1.0, weight=1.0):
    trials = []
    for toy in _toys(rng, count, change):
        frobenius = np.sqrt(np.sum(toy.covariance**2, axis=(1, 2))).max()
        bound = scale * (toy.gamma + weight * toy.gamma**2 * frobenius)
        trials += [toy.slopes(bound), toy.explained()]
    slope, gamma, variance, words = _well(rng, count, change)
    trials.append(Trial(slope, scale * (gamma + weight * gamma**2 * variance), words))
    return join(*trials), None


@claim(
    "Theorem 3, spectral",
    "Theorem 3; E15",
    OURS,
    "grad F is max(gamma, gamma^2 sup lambda_max(Sigma) - gamma)-Lipschitz",
    sabotage={**_SCALED, "bound 5 % smaller": dict(scale=0.95)},
    cost=20,
)
def _spectral(rng, count, *, change=_keep, scale=1.0):
    trials = []
    for toy in _toys(rng, count, change):
        top = np.linalg.eigvalsh(toy.covariance).max()
        bound = scale * max(toy.gamma, toy.gamma**2 * top - toy.gamma)
        trials += [toy.slopes(bound), toy.explained()]
    slope, gamma, variance, words = _well(rng, count, change)
    bound = scale * np.maximum(gamma, gamma**2 * variance - gamma)
    trials.append(Trial(slope, bound * (1 + 1e-4), words))
    return join(*trials), None


@claim(
    "Smoothed convex loss",
    "formulas D.2 (c)",
    OURS,
    "if L is convex, gamma lambda_max(Sigma) <= 1 (Brascamp and Lieb), -F is convex and "
    "gamma-smooth (linear model)",
    sabotage={
        **{name: _SCALED[name] for name in list(_SCALED)[::2]},
        "a concave loss": dict(sense=-1.0),
        "the swish neuron": dict(model="swish"),
    },
    cost=20,
)
def _convex(rng, count, *, change=_keep, sense=1.0, model="linear"):
    trials = []
    for toy in _toys(rng, count, change, [c for c in CASES if c[0] == model]):
        kind = toy.words(0).split(", ")[1]
        plane = toy_plane(model, kind, toy.gamma, sense)
        rise = -(plane.gradient(toy.a) - plane.gradient(toy.b))  # of the gradient of -F
        inner = np.sum(rise * (toy.a - toy.b), 1)
        trials.append(within(toy.gamma * spectral(toy.covariance), 1.0, toy.words))
        trials.append(Trial(np.maximum(-inner, 0), 1e-7 * toy.step, toy.words))
        trials.append(Trial(norm(rise), toy.gamma * toy.step, toy.words))
    return join(*trials), None


@claim(
    "Smoothed weakly convex loss",
    "formulas D.2 (d)",
    OURS,
    "if L is w-weakly convex and gamma > w, the curvature of -F is between -gamma w/(gamma - w) "
    "and gamma (L = -w t^2/2 attains it)",
    sabotage={"the lower bound halved": dict(lower=0.5), "w halved": dict(weak=0.5)},
    cost=10,
)
def _weakly(rng, count, *, lower=1.0, weak=1.0):
    w = rng.uniform(0.2, 2, size=count)
    gamma = w + rng.uniform(0.5, 3, size=count)
    k = rng.uniform(1, 4, size=count)
    waves = lambda t: (w / k**2)[:, None] * np.cos(k[:, None] * t)
    loss = lambda t: np.where(np.arange(count)[:, None] % 2, waves(t), -w[:, None] * t**2 / 2)
    curvature = Line(loss, gamma, 16.0).curvature(rng.uniform(-0.5, 0.5, size=count))
    limit = lower * gamma * weak * w / (gamma - weak * w)
    words = lambda i: f"w = {w[i]:.3f}, gamma = {gamma[i]:.3f}"
    return join(
        Trial(np.maximum(-curvature, 0), limit * (1 + 1e-5), words),
        Trial(curvature, gamma, words),
    ), None


def _radial(slope: float, gamma: float, dim: int) -> float:
    """Largest eigenvalue of the covariance of exp(G |t| - gamma |t|^2/2) in R^dim."""
    r = np.linspace(0, slope / gamma + 14 / np.sqrt(gamma), 20001)[1:]
    exponent = slope * r - gamma / 2 * r**2 + (dim - 1) * np.log(r)
    density = np.exp(exponent - exponent.max())
    return float(np.sum(density * r**2) / np.sum(density) / dim)


@claim(
    "Smoothed Lipschitz loss",
    "formulas D.2 (e)",
    OURS,
    "grad F is max(gamma, (G^2 + G sqrt(G^2 + 4 gamma))/2)-Lipschitz if L is G-Lipschitz (L = "
    "-G |t| in dimension 1, 2, 3, 10)",
    sabotage={"bound a tenth smaller": dict(scale=0.9), "G halved": dict(slope=0.5)},
    cost=100,
)
def _lipschitz(rng, count, *, scale=1.0, slope=1.0):
    heights, gamma = rng.uniform(1, 6, size=count), rng.uniform(0.5, 2, size=count)
    heights[:2], gamma[:2] = 6.0, 1.0
    line = Line(lambda t: -heights[:, None] * np.abs(t), gamma, 30.0)
    measured = [np.abs(line.curvature(np.zeros(count)))]
    for dim in (2, 3, 10):
        top = np.array([_radial(g, c, dim) for g, c in zip(heights, gamma, strict=True)])
        measured.append(np.abs(gamma - gamma**2 * top))
    limits = [
        scale * theory.lipschitz_bound(gamma=c, lipschitz=slope * g)
        for g, c in zip(heights, gamma, strict=True)
    ]
    words = lambda i: f"G = {heights[i]:.2f}, gamma = {gamma[i]:.2f}"
    return join(*(Trial(m, np.array(limits), words) for m in measured)), None


@claim(
    "Theorem 3 on all of R^m",
    "Theorem 3; E16",
    OURS,
    "with a Lipschitz loss one constant bounds Sigma everywhere (|theta| up to 1000; at 0 in "
    "dimension 1, 2, 3, 10)",
    sabotage={"bound a tenth smaller": dict(scale=0.9), "G halved": dict(slope=0.5)},
    cost=100,
)
def _unbounded(rng, count, *, scale=1.0, slope=1.0):
    limit = lambda g: scale * theory.lipschitz_variance_bound(gamma=1.0, lipschitz=slope * g)
    heights = np.where(np.arange(count) % 2, 6.0, rng.uniform(1, 6, size=count))
    places = np.where(np.arange(count) % 4 < 2, 0.0, 10.0 ** rng.uniform(-1, 3, size=count))
    far = np.abs(places) > 12  # beyond the kink the measure is a Gaussian around theta + G
    line = Line(lambda t: -heights[:, None] * np.abs(t), np.ones(count), 34.0)
    variance = np.where(far, 1.0, line.moments(np.where(far, 0.0, places))[1])
    bounds = np.array([limit(g) for g in heights])
    words = lambda i: f"G = {heights[i]:.2f}, theta = {places[i]:.3g}"
    dims = (1, 2, 3, 10)
    radial = np.array([_radial(6.0, 1.0, dim) for dim in dims])
    return join(
        Trial(variance, bounds, words),
        within(radial, limit(6.0), lambda i: f"G = 6, dimension {dims[i]}"),
    ), None


def _spread(k, gamma: float) -> np.ndarray:
    """Variance at the middle between the wells k^2 and (k + 1)^2 of min over k of (t - k^2)^2."""
    found = []
    for n in k:
        middle, bottoms = n * n + n + 0.5, np.arange(n + 40.0) ** 2
        nodes = middle + np.linspace(-n - 8, n + 8, 8001)
        loss = np.min((nodes[:, None] - bottoms[None, :]) ** 2, axis=1)
        exponent = -loss - gamma / 2 * (nodes - middle) ** 2
        density = np.exp(exponent - exponent.max())
        density /= density.sum()
        found.append(density @ (nodes - density @ nodes) ** 2)
    return np.array(found)


@claim(
    "Pointwise finite covariance",
    "proof of Theorem 3; E16",
    PRINTED,
    "a covariance that is finite at every theta has a finite supremum, say below 20 "
    "(L = min over k of (t - k^2)^2, gamma = 1)",
    "on bounded sets, where it is continuous: between the wells k^2 and (k + 1)^2 it is at most "
    "1 + (2 k + 1)^2/9",
    sabotage={
        "a bound that does not grow": dict(growth=0.0),
        "theta kept below 50": dict(largest=7),
    },
    cost=200,
)
def _pointwise(rng, count, *, growth=1.0, largest=60):
    k = rng.integers(1, largest, size=count).astype(float)
    variance = _spread(k, 1.0)
    words = lambda i: f"theta = {k[i] ** 2 + k[i] + 0.5:.1f}, variance"
    bound = 1 + growth * (2 * k + 1) ** 2 / 9
    return within(variance, 20.0, words), Trial(variance, bound, words)


@claim(
    "Integration by parts",
    "formulas D.1 (I1, I2)",
    OURS,
    "gamma (theta - E theta') = E grad L, and gamma I - gamma^2 Sigma = E Hess L - Cov grad L "
    "(differences of F; the first with kinks too)",
    sabotage={
        "the covariance of the gradient left out": dict(weight=0.0),
        "the sign of E grad L": dict(sense=-1.0),
    },
    cost=10,
)
def _parts(rng, count, *, weight=1.0, sense=1.0):
    a, k = rng.uniform(0.5, 2, size=(count, 1)), rng.uniform(0.5, 3, size=(count, 1))
    kink = (np.arange(count) % 2)[:, None] * rng.uniform(0.5, 2, size=(count, 1))
    gamma, theta = rng.uniform(0.5, 3, size=count), rng.uniform(-1, 1, size=count)
    line = Line(lambda t: a * np.cos(k * t) + kink * np.abs(t), gamma, 16.0)
    t = line.nodes[None, :]
    p = line.measure(theta)[1]
    slope = -a * k * np.sin(k * t) + kink * np.sign(t)
    first = np.abs(-line.gradient(theta) - sense * np.sum(p * slope, 1))
    mean = np.sum(p * slope, 1, keepdims=True)
    smooth = kink[:, 0] == 0
    second = np.sum(p * (-a * k**2 * np.cos(k * t)), 1) - weight * np.sum(
        p * (slope - mean) ** 2, 1
    )
    apart = np.abs(line.curvature(theta) - second)[smooth]
    words = lambda i: f"gamma = {gamma[i]:.3f}, theta = {theta[i]:.3f}, difference"
    return join(within(first, 1e-6, words), within(apart, 1e-4, "smooth loss")), None


@claim(
    "Smoothed kink",
    "formulas D.2 (f)",
    OURS,
    "a kink of jump J becomes curvature of about J sqrt(gamma/(2 pi)) (relative deviation, against "
    "J/sqrt(gamma))",
    sabotage={"J sqrt(gamma/pi)": dict(factor=np.sqrt(2)), "half the jump": dict(factor=0.5)},
    cost=10,
)
def _smoothed_kink(rng, count, *, factor=1.0):
    jump, gamma = rng.uniform(0.2, 1, size=count), 10.0 ** rng.uniform(2, 3, size=count)
    line = Line(lambda t: jump[:, None] * np.abs(t) / 2, gamma, 2.0, 0.02)
    expected = factor * np.array(
        [theory.kink_curvature(j, gamma=g) for j, g in zip(jump, gamma, strict=True)]
    )
    deviation = np.abs(line.curvature(np.zeros(count)) / expected - 1)
    words = lambda i: f"J = {jump[i]:.2f}, gamma = {gamma[i]:.0f}"
    return Trial(deviation, jump / np.sqrt(gamma), words), None


@claim(
    "Curvature between wells",
    "formulas D.2 (h)",
    OURS,
    "smoothing can add curvature: between two wells that of -F is below -gamma, yet within D.2 (e)",
    sabotage={
        "one well": dict(place=0.0),
        "G divided by 4 in the bound": dict(slope=0.25),
    },
    cost=20,
)
def _between(rng, count, *, place=1.0, slope=1.0):
    height = rng.uniform(8, 14, size=count)
    gamma, places = rng.uniform(3, 6, size=count), place * rng.uniform(1, 2, size=count)
    curvature = Line(wells(height, places), gamma, 16.0, 0.1).curvature(np.zeros(count))
    limits = np.array(
        [
            theory.lipschitz_bound(gamma=c, lipschitz=slope * g)
            for g, c in zip(height, gamma, strict=True)
        ]
    )
    words = lambda i: f"G = {height[i]:.2f}, a = {places[i]:.2f}, gamma = {gamma[i]:.2f}"
    return join(Trial(gamma, -curvature, words), Trial(np.abs(curvature), limits, words)), None


def _nothing(t):
    return jnp.zeros(()) * t[0]


@claim(
    "Covariance of the Gaussian",
    "eqs. 61 to 68; E17",
    PRINTED,
    "exp(-gamma/2 |theta - theta'|^2) has covariance gamma",
    "1/gamma",
    sabotage={
        "1/gamma^2": dict(power=-2.0),
        "gamma = 1 alone": dict(spread=0.0),
    },
    cost=200,
)
def _covariance(rng, count, *, power=-1.0, spread=1.0):
    gammas = 10.0 ** (spread * rng.uniform(-1, 1, size=count))
    found = np.array(
        [float(theory.local_entropy(_nothing, [0.3], gamma=g).covariance[0, 0]) for g in gammas]
    )
    witness = lambda i: f"gamma = {gammas[i]:.3f}, distance of the covariance"
    return (
        within(np.abs(found - gammas), 1e-9, witness),
        within(np.abs(found - gammas**power), 1e-9, witness),
    )
