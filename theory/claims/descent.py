"""Claims on descent, Hessians and sharpness: eqs. 4, 13, 73 to 75, formulas B.3 to B.6, H.2."""

import numpy as np

from jaxadv import theory

from .linear import EPS, HIGH, LOW, X, rows
from .registry import IMPLIED, OURS, PRINTED, Trial, claim, join, norm, pair, spectral, unit, within

LOG_2 = float(np.log(2))  # the loss at theta = 0


def mean_loss(theta, points, labels, eps, kind="l2"):
    """Mean adversarial loss of the linear model and its gradient, in NumPy.

    Args:
        theta: shape (n, d).
        points: shape (n, N, d), a data set per row.
        labels: shape (n, N).
        eps: radius.
        kind: "l2" or "linf".
    """
    size = np.abs(theta).sum(1) if kind == "linf" else norm(theta)
    slope = np.sign(theta) if kind == "linf" else theta / np.where(size > 0, size, 1.0)[:, None]
    margin = labels * np.einsum("nkd,nd->nk", points, theta) - eps * size[:, None]
    weight = 1 / (1 + np.exp(margin))
    attacked = labels[..., None] * points - eps * slope[:, None, :]
    gradient = -np.einsum("nk,nkd->nd", weight, attacked) / points.shape[1]
    return np.logaddexp(0, -margin).mean(1), gradient


def datasets(rng, count: int, size: int = 40):
    """Data sets like that of Figure 4: normal points and the signs of their first coordinates."""
    points = rng.normal(size=(count, size, 2))
    return points, np.sign(points[..., 0])


@claim(
    "Descent below L(0)",
    "eq. 4, after Theorem 1",
    PRINTED,
    "from a loss below L_eps(0), gradient descent with step 1/C, C the constant of Theorem 1, "
    "meets |grad|^2 <= 2 C (L(theta_0) - L(theta_T))/T (L2)",
    sabotage={
        "the sign of the gradient": dict(sense=-1.0),
        "Linf, which has kinks on the way": dict(kind="linf"),
    },
    cost=100,
)
def _descent(rng, count, *, sense=1.0, kind="l2"):
    points, labels = datasets(rng, count)
    eps, largest, steps = 0.5, 10.0, 3000
    theta = unit(np.einsum("nk,nkd->nd", labels, points)) + 0.3 * rng.normal(size=(count, 2))
    first, _ = mean_loss(theta, points, labels, eps)
    keep = first < 0.65
    theta, points, labels, first = theta[keep], points[keep], labels[keep], first[keep]
    constant = np.array(
        [
            theory.theorem1_bound(
                p,
                eps=eps,
                theta_min=theory.theta_min_from_loss(float(c), p, p=2.0, eps=eps),
                theta_max=largest,
            )
            for p, c in zip(points, first, strict=True)
        ]
    )
    start, farthest, smallest = theta, norm(theta), np.full(len(theta), np.inf)
    for _ in range(steps):
        _, gradient = mean_loss(theta, points, labels, eps, kind)
        smallest = np.minimum(smallest, norm(gradient))
        theta = theta - sense * gradient / constant[:, None]
        farthest = np.maximum(farthest, norm(theta))
    ends = [mean_loss(t, points, labels, eps, kind)[0] for t in (start, theta)]
    bound = 2 * constant * (ends[0] - ends[1]) / steps
    bound = np.where(farthest <= largest, bound, np.nan)  # where C no longer applies
    return Trial(smallest**2, bound, lambda i: f"data set {i}, |grad|^2"), None


@claim(
    "Norm from the loss",
    "after Theorem 1, formulas B.4",
    IMPLIED,
    "a loss c < log 2 = L_eps(0) keeps |theta| >= (log 2 - c)/C_th (L2, Linf)",
    sabotage={"C_th divided by 4": dict(scale=4.0), "log 4 for log 2": dict(start=2 * LOG_2)},
    cost=4,
)
def _distance(rng, count, *, scale=1.0, start=LOG_2):
    points, labels = datasets(rng, count, 4)
    theta = 10.0 ** rng.uniform(-3, 0.5, size=(count, 1)) * unit(rng.normal(size=(count, 2)))
    theta[::2, 0] = np.abs(theta[::2, 0])
    trials = []
    for kind, p in (("l2", 2.0), ("linf", np.inf)):
        loss, _ = mean_loss(theta, points, labels, 0.02, kind)
        reach = np.asarray(theory.adversarial_radius(points, p=p, eps=0.02)).mean(1)
        least = scale * np.maximum(start - loss, 0) / reach
        trials.append(Trial(least, norm(theta), lambda i, t=theta: f"theta = {t[i].round(4)}"))
    return join(*trials), None


def _spectrum(theta, x, y, *, p, eps):
    del p  # L2
    return theory.linear_spectrum(theta, x, y, eps=eps)


@claim(
    "Gradient and Hessian in closed form",
    "formulas B.3",
    OURS,
    "grad l_eps = -s(-M) v, its Hessian s(M) s(-M) v v^T + eps s(-M) N, and the spectrum from four "
    "numbers (against differences of the loss; L2, Linf)",
    sabotage={
        "attack motion dropped": dict(motion=0.0),
        "the sign of the motion": dict(motion=-1.0),
        "the sign of the gradient": dict(sense=-1.0),
    },
    cost=10,
)
def _closed(rng, count, *, motion=1.0, sense=1.0):
    theta = unit(rng.normal(size=(count, 3))) * rng.uniform(0.5, 3, size=(count, 1))
    theta = theta + 0.05 * np.sign(theta)
    v, h = unit(rng.normal(size=(count, 3))), 1e-4
    trials = []
    for kind in ("l2", "linf"):
        size = norm if kind == "l2" else lambda t: np.abs(t).sum(1)
        loss = lambda t, size=size: np.logaddexp(0, -(t @ X - EPS * size(t)))
        middle, up, down = loss(theta), loss(theta + h * v), loss(theta - h * v)
        gradient = sense * rows(theory.linear_gradient, theta, kind)
        hessian = rows(theory.linear_hessian, theta, kind)
        attacked = rows(theory.linear_attack, theta, kind)
        curved = np.exp(-np.sum(theta * attacked, 1))
        weight = curved / (1 + curved) ** 2
        frozen = weight[:, None, None] * attacked[:, :, None] * attacked[:, None, :]
        hessian = frozen + motion * (hessian - frozen)
        first = np.abs((up - down) / (2 * h) - np.sum(gradient * v, 1))
        second = np.abs((up - 2 * middle + down) / h**2 - np.einsum("ni,nij,nj->n", v, hessian, v))
        words = lambda i, k=kind: f"{k}, theta = {theta[i].round(4).tolist()}, difference"
        trials += [within(first, 1e-7, words), within(second, 1e-5, words)]
        if kind == "l2":
            spectrum = np.sort(rows(_spectrum, theta, kind), axis=1)
            apart = np.abs(spectrum - np.linalg.eigvalsh(hessian)).max(1)
            trials.append(within(apart, 1e-12, words))
    return join(*trials), None


def _on_the_annulus(rng, count: int, radius: float):
    """Random theta in the annulus and x in a ball, half of them where the Hessian is largest."""
    theta = unit(rng.normal(size=(count, 3))) * rng.uniform(LOW, HIGH, size=(count, 1))
    x = unit(rng.normal(size=(count, 3))) * radius * rng.uniform(0.5, 1, size=(count, 1))
    angle = rng.uniform(0, np.pi, size=count)
    theta[::2] = LOW * np.array([1.0, 0, 0])
    x[::2] = radius * np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)[::2]
    return theta, x


@claim(
    "Sharper than Theorem 1",
    "formulas B.6",
    OURS,
    "|Hess l_eps| <= R'^2/4 + eps s(-M)/|theta|, and its largest value over an annulus of theta "
    "and a ball of x is a maximum over two numbers, below the constant of Theorem 1",
    sabotage={
        "bounds 1 % smaller": dict(scale=0.99),
        "attack motion dropped from the bounds": dict(eps=1e-9),
    },
)
def _sharper(rng, count, *, scale=1.0, eps=EPS):
    radius = 1.5
    theta, x = _on_the_annulus(rng, count, radius)
    size = spectral(rows(theory.linear_hessian, theta, "l2", x))
    options = dict(eps=eps, theta_min=LOW, theta_max=HIGH)
    best = scale * theory.annulus_smoothness(radius, **options)
    theorem = theory.theorem1_bound(np.array([radius, 0.0, 0.0]), **options)
    margin = np.sum(theta * x, 1) - EPS * norm(theta)
    local = (norm(x) + eps) ** 2 / 4 + eps / (1 + np.exp(margin)) / norm(theta)
    words = lambda i: f"theta = {theta[i].round(3).tolist()}, x = {x[i].round(3).tolist()}"
    return join(
        Trial(size, scale * local, words),
        within(size, best, words),
        within(np.array([best]), theorem, "Theorem 1"),
    ), None


@claim(
    "Smoothness bounds the Hessian",
    "eqs. 13 and 75",
    PRINTED,
    "the largest singular value of the Hessian is at most C_s (C_s from pairs of points)",
    sabotage={
        "pairs across the top direction": dict(direction=0),
        "C_s halved": dict(scale=0.5),
    },
)
def _hessian(rng, count, *, direction=-1, scale=1.0):
    theta, x = _on_the_annulus(rng, count, 1.5)
    values, vectors = np.linalg.eigh(rows(theory.linear_hessian, theta, "l2", x))
    v, h = vectors[:, :, direction], 1e-4
    ends = [rows(theory.linear_gradient, theta + s * h * v, "l2", x) for s in (1, -1)]
    constant = scale * norm(ends[0] - ends[1]) / (2 * h)
    return Trial(values[:, -1], constant * (1 + 1e-6), pair(theta, x)), None


@claim(
    "Sharpness at a smooth minimum",
    "eqs. 73 and 74",
    PRINTED,
    "max (L(t) - L(theta))/(1 + L(theta)) over |t - theta| <= r is |Hess L| r^2/(2 (1 + L(theta))) "
    "for small r (relative difference, r = 0.003; L2 loss of data sets)",
    sabotage={
        "attack frozen in the Hessian": dict(motion=0.0),
        "the factor 1/2 dropped": dict(factor=1.0),
        "a point that is no minimum": dict(shift=0.1),
    },
    cost=100,
)
def _quadratic(rng, count, *, motion=1.0, factor=0.5, shift=0.0):
    points, labels = datasets(rng, count)
    eps, r = 0.5, 0.003
    theta = unit(np.einsum("nk,nkd->nd", labels, points))
    for _ in range(60):  # Newton
        _, gradient = mean_loss(theta, points, labels, eps)
        hessian = _mean_hessian(theta, points, labels, eps)
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        theta = theta - step * np.minimum(1, 0.3 / np.maximum(norm(step), 1e-300))[:, None]
    _, gradient = mean_loss(theta, points, labels, eps)
    keep = (norm(gradient) < 1e-10) & (norm(theta) > 0.1) & (norm(theta) < 4)
    theta, points, labels = theta[keep] + shift, points[keep], labels[keep]
    loss, _ = mean_loss(theta, points, labels, eps)
    angles = np.linspace(0, 2 * np.pi, 721)
    circle = r * np.stack([np.cos(angles), np.sin(angles)], 1)
    rises = [mean_loss(theta + c, points, labels, eps)[0] - loss for c in circle]
    sharpness = np.max(rises, 0) / (1 + loss)
    top = np.linalg.eigvalsh(_mean_hessian(theta, points, labels, eps, motion))[:, -1]
    approximation = factor * top * r**2 / (1 + loss)
    words = lambda i: f"minimum at {theta[i].round(3).tolist()}, relative difference"
    return within(np.abs(sharpness / approximation - 1), 0.02, words), None


def _mean_hessian(theta, points, labels, eps, motion=1.0):
    size = norm(theta)
    u = theta / size[:, None]
    margin = labels * np.einsum("nkd,nd->nk", points, theta) - eps * size[:, None]
    weight = 1 / (1 + np.exp(margin))
    v = labels[..., None] * points - eps * u[:, None, :]
    frozen = np.einsum("nk,nki,nkj->nij", weight * (1 - weight), v, v) / points.shape[1]
    across = (np.eye(2) - u[:, :, None] * u[:, None, :]) / size[:, None, None]
    return frozen + motion * eps * weight.mean(1)[:, None, None] * across


@claim(
    "Sharpness at a kink",
    "eq. 74; E23",
    PRINTED,
    "sharpness grows like r^2 at a minimum of the adversarial loss (deviation of the exponent)",
    "at the kink of the collapsed linear model it grows like r, by (eps - |mean yx|)/2 at least",
    sabotage={
        "a radius eps below collapse": dict(excess=-0.3),
        "twice the rate": dict(rate=2.0),
    },
    cost=100,
)
def _kink(rng, count, *, excess=0.3, rate=1.0):
    points, labels = datasets(rng, count)
    eps = norm(np.einsum("nk,nkd->nd", labels, points) / points.shape[1]) + excess
    angles = np.linspace(0, 2 * np.pi, 361)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    rises = np.array(
        [np.max([_collapsed(r * c, points, labels, eps) for c in circle], 0) for r in (0.02, 0.01)]
    )
    order = np.log2(rises[0] / np.where(rises[1] > 0, rises[1], np.nan))
    words = lambda i: f"data set {i}, eps = {eps[i]:.3f}, r = 0.01"
    lower = np.min([_collapsed(0.01 * c, points, labels, eps) for c in circle], 0)
    return within(np.abs(order - 2), 0.1, words), join(
        within(np.abs(order - 1), 0.1, words),
        Trial(np.full(count, rate * excess * 0.01 / 2) if excess > 0 else 0 * eps, lower, words),
    )


def _collapsed(theta, points, labels, eps):
    """Rise of the mean L2 loss from 0 to ``theta``, of shape (d,), with a radius per data set."""
    margin = labels * (points @ theta) - eps[:, None] * np.linalg.norm(theta)
    return np.logaddexp(0, -margin).mean(1) - np.log(2)
