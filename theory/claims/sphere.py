"""Claims on attacks on the L2 sphere: Lemma 5, eq. 22, formulas C.2, C.3; E1, E10, E11, E12."""

import jax
import jax.numpy as jnp
import numpy as np

from .registry import IMPLIED, OURS, PRINTED, Trial, claim, norm, pair, unit, within
from .trust_region import solve_sphere


def _stationary(rng, count: int, dims):
    """Random stationary points on spheres: per instance (n, mu, H, T), with eps = 1."""
    for index in range(count):
        d = int(dims[index % len(dims)])
        n = unit(rng.normal(size=d))
        tangent = np.linalg.svd(n[None, :])[2][1:].T
        # Eigenvalues of W_T away from 0, half of the instances strict maxima.
        signs = rng.choice([-1.0, 1.0], size=d - 1)
        signs = signs if index // len(dims) % 2 else -np.ones(d - 1)
        basis = np.linalg.qr(rng.normal(size=(d - 1, d - 1)))[0]
        w_t = basis @ np.diag(signs * rng.uniform(0.3, 3, size=d - 1)) @ basis.T
        mu, mixed = rng.uniform(0.1, 2), tangent @ rng.normal(size=(d - 1, 1)) @ n[None, :]
        hessian = tangent @ (w_t + mu * np.eye(d - 1)) @ tangent.T + mixed + mixed.T
        yield n, mu, hessian + rng.normal() * np.outer(n, n), tangent


def _bordered(n, mu, hessian) -> np.ndarray:
    w = hessian - mu * (np.eye(len(n)) - np.outer(n, n))
    return np.block([[np.zeros((1, 1)), n[None, :]], [n[:, None], w]])


def _is_maximum(n, mu, hessian, tangent, rng) -> bool:
    """Whether no point of the sphere nearby has a larger loss, by trying some."""
    loss = lambda x: mu * ((x - n) @ n) + 0.5 * np.einsum("...i,ij,...j", x - n, hessian, x - n)
    ends = np.linalg.eigh(tangent.T @ hessian @ tangent)[1].T  # one per curvature
    steps = np.concatenate([ends, -ends, rng.normal(size=(20, tangent.shape[1]))]) @ tangent.T
    return bool(np.max(loss(unit(n + 1e-4 * unit(steps)))) < 0)


DIMS = (2, 3, 4, 5, 6, 8)


def _determinants(rng, count: int, maximum) -> np.ndarray:
    """Rows d, det K, det W_T, and whether the point is a maximum, of random stationary points."""
    rows = []
    for n, mu, hessian, tangent in _stationary(rng, count, DIMS):
        k = _bordered(n, mu, hessian)
        w_t = tangent.T @ hessian @ tangent - mu * np.eye(len(n) - 1)
        rows.append(
            (
                len(n),
                np.linalg.det(k),
                np.linalg.det(w_t),
                maximum(n, mu, hessian, tangent, rng),
            )
        )
    return np.array(rows, float).T


def _minimum(n, mu, hessian, tangent, rng) -> bool:
    return _is_maximum(n, -mu, -hessian, tangent, rng)


@claim(
    "det K > 0 is sufficient",
    "Lemma 5, eq. 22; E1",
    PRINTED,
    "a stationary point of the sphere with det K > 0 is a local maximum (number of larger "
    "neighbors, 0 or 1)",
    "det K = -det W_T, so its sign at a strict maximum is (-1)^d",
    sabotage={
        "det K = det W_T": dict(sign=1.0),
        "every stationary point taken for a maximum": dict(maximum=lambda *_: True),
    },
    cost=2,
)
def _sufficient(rng, count, *, sign=-1.0, maximum=_is_maximum):
    d, det, det_w, largest = _determinants(rng, count, maximum)

    def words(i: int) -> str:
        none = 1 - largest[(d == d[i]) & (det > 0)].mean()
        return (
            f"d = {d[i]:.0f}, det K = {det[i]:.3f}, larger values nearby (as for {none:.0%} of the "
            "points with det K > 0)"
        )

    printed = Trial(np.where(det > 0, 1 - largest, 0), np.zeros(len(d)), words)
    agree = np.abs(det - sign * det_w) / np.abs(det_w)
    wrong = np.where(largest > 0, np.abs(np.sign(det) - (-1.0) ** d), 0.0)
    plain = lambda i: f"d = {d[i]:.0f}, det K = {det[i]:.3f}"
    return printed, within(agree + wrong, 1e-9, plain)


@claim(
    "det K > 0 in odd dimension",
    "Lemma 5, eq. 22; E1",
    PRINTED,
    "strict maxima on the sphere have det K > 0, as the lemma assumes",
    "only in even dimension; in odd dimension none has",
    sabotage={
        "odd for even": dict(odd=0.0),
        "minima for maxima": dict(maximum=_minimum),
    },
    cost=2,
)
def _odd(rng, count, *, odd=1.0, maximum=_is_maximum):
    d, det, _, largest = _determinants(rng, count, maximum)
    d, det = d[largest > 0], det[largest > 0]
    words = lambda i: f"d = {d[i]:.0f}, strict maximum, -det K"
    return (
        Trial(np.maximum(-det, 0), np.zeros(len(d)), words),
        Trial(np.maximum(np.where(d % 2 == odd, det, -det), 0), np.zeros(len(d)), words),
    )


@claim(
    "Border of K",
    "eq. 22; E10",
    PRINTED,
    "K is the Hessian of the Lagrangian l - mu (|x' - x| - eps) in (mu, x')",
    "K = diag(-1, I) Hess diag(-1, I): same singular values and determinant",
    sabotage={
        "no change of sign": dict(flip=1.0),
        "the Lagrangian with +mu": dict(sense=-1.0),
    },
    cost=20,
)
def _border(rng, count, *, flip=-1.0, sense=1.0):
    measured = {"printed": [], "corrected": []}
    with jax.enable_x64(True):

        def lagrangian(z, n, mu, hessian):
            step = z[1:] - n
            loss = mu * (n @ step) + 0.5 * step @ hessian @ step
            return loss - sense * z[0] * (jnp.sqrt(jnp.sum(z[1:] ** 2)) - 1)

        exact = jax.jit(jax.hessian(lagrangian))
        for n, mu, hessian, _ in _stationary(rng, count, (4,)):
            of_j = np.asarray(exact(jnp.append(mu, n), n, mu, hessian))
            k, signs = _bordered(n, mu, hessian), np.diag([flip, 1, 1, 1, 1])
            measured["printed"].append(np.abs(k - of_j).max())
            measured["corrected"].append(np.abs(k - signs @ of_j @ signs).max())
    words = lambda i: f"stationary point {i} of a quadratic, d = 4, largest difference"
    return tuple(within(np.array(v), 1e-9, words) for v in measured.values())


def bordered_constants(rng, count: int) -> np.ndarray:
    """Rows c_T and sigma_min(K) of random strict maxima."""
    rows = []
    for n, mu, hessian, tangent in _stationary(rng, count, (3, 4, 5, 6)):
        curvature = mu - np.linalg.eigvalsh(tangent.T @ hessian @ tangent)[-1]
        if curvature > 0:
            rows.append([curvature, np.linalg.svd(_bordered(n, mu, hessian))[1][-1]])
    return np.array(rows).T


@claim(
    "sigma_min(K) measures curvature",
    "Lemma 5; E11",
    IMPLIED,
    "the c = sigma_min(K) of Lemma 5 is as large as the curvature c_T of the loss on the sphere",
    "sigma_min(K) <= min(1, c_T)",
    sabotage={"0.9 min(1, c_T)": dict(scale=0.9), "c_T alone, halved": dict(cap=np.inf, scale=0.5)},
    cost=2,
)
def _sigma(rng, count, *, scale=1.0, cap=1.0):
    curvature, sigma = bordered_constants(rng, count)
    words = lambda i: f"c_T = {curvature[i]:.4f}, sigma_min(K) = {sigma[i]:.4f}"
    bound = scale * np.minimum(cap, curvature)
    return Trial(curvature, sigma, words), Trial(sigma, bound, words)


@claim(
    "sigma_min(K) is a property of the attack",
    "Lemma 5; E11",
    IMPLIED,
    "c does not depend on how the constraint is written, |r| - eps or (|r|^2 - eps^2)/2, eps = 1",
    "it does; the Jacobian of the attack does not (B = I)",
    sabotage={
        "another multiplier in one of the two": dict(multiplier=0.5),
        "the same constraint twice": dict(normal=0.0),
    },
    cost=4,
)
def _written(rng, count, *, multiplier=1.0, normal=1.0):
    constants, apart = [], []
    for n, mu, hessian, _ in _stationary(rng, count, (3, 4, 5, 6)):
        first = _bordered(n, mu, hessian)
        second = _bordered(n, multiplier * mu, hessian)
        second[1:, 1:] -= normal * mu * np.outer(n, n)
        constants.append([np.linalg.svd(m)[1][-1] for m in (first, second)])
        jacobians = [np.linalg.inv(m)[1:, 1:] for m in (first, second)]
        apart.append(np.abs(jacobians[0] - jacobians[1]).max() / np.abs(jacobians[0]).max())
    a, b = np.array(constants).T
    words = lambda i: f"c = {a[i]:.4f} and {b[i]:.4f}, distance"
    return within(np.abs(a - b), 1e-9, words), within(np.array(apart), 1e-9, "Jacobians")


def _flat_losses(rng, count):
    """Sphere problems with Hessians from size 1 down to 1e-6, and how far their attacks move."""
    flatness = 10.0 ** rng.uniform(-6, 0, size=count)
    q = rng.normal(size=(count, 4, 4))
    q = flatness[:, None, None] * (q + np.swapaxes(q, 1, 2)) / 2
    theta = (2 + 6 * flatness)[:, None] * unit(rng.normal(size=(count, 4)))
    x, mu = solve_sphere(q, theta, 1.0)
    normal = np.eye(4) - x[:, :, None] * x[:, None, :]
    # The tangent part of H; along the normal a number that no eigenvalue reaches.
    tangent = normal @ q @ normal - 1e6 * x[:, :, None] * x[:, None, :]
    top = np.linalg.eigvalsh(tangent)[:, -1]
    step = np.einsum("nij,nj->ni", normal, np.linalg.eigh(tangent)[1][:, :, -1])
    ends = [solve_sphere(q, theta + s * 1e-5 * step, 1.0)[0] for s in (1, -1)]
    return np.linalg.norm(q, 2, axis=(1, 2)), mu, top, norm(ends[0] - ends[1]) / 2e-5


@claim(
    "Flatness in the input space",
    "after Lemma 5; E12",
    PRINTED,
    "small singular values of H make c small: the attack moves by |B|/|H| or more (L2 sphere, "
    "B = I)",
    "by 1/c_T with c_T = |g|/eps - lambda_max(H_T): the gradient decides, not the Hessian",
    sabotage={
        "the multiplier dropped": dict(multiplier=0.0),
        "the sign of H": dict(sense=-1.0),
    },
    cost=2,
)
def _flat(rng, count, *, multiplier=1.0, sense=1.0):
    size, mu, top, motion = _flat_losses(rng, count)
    words = lambda i: f"|H| = {size[i]:.2e}, |g| = {mu[i]:.3f}; moves by {motion[i]:.4f}"
    deviation = np.abs(motion * (multiplier * mu - sense * top) - 1)
    return Trial(1 / size, motion, words), within(deviation, 1e-6, words)


@claim(
    "Lipschitz attack on the sphere",
    "formulas C.3 (U2)",
    OURS,
    "|x'(a) - x'(b)| <= C_thx/(kappa/eps - rho) |a - b| if |g| >= kappa and H <= rho I (L2)",
    sabotage={
        "bound halved": dict(scale=0.5),
        "the sign of rho": dict(sense=-1.0),
        "the opposite point, which minimizes, at one end": dict(end=-1.0),
    },
)
def _global_sphere(rng, count, *, scale=1.0, sense=1.0, end=1.0):
    q = rng.normal(size=(count, 4, 4))
    q = (q + np.swapaxes(q, 1, 2)) / 2
    rho = np.linalg.eigvalsh(q)[:, -1]
    # The input gradient Q x + theta is at least |theta| - |Q|.
    size = np.linalg.norm(q, 2, axis=(1, 2))
    length = size + np.maximum(rho, 0) + 10.0 ** rng.uniform(-2, 1, size=count)
    a, b = length[:, None] * unit(rng.normal(size=(2, count, 4)))
    b[::2] = a[::2] + 1e-3 * b[::2]
    b = unit(b) * np.maximum(norm(b), length)[:, None]
    points, multipliers = zip(*(solve_sphere(q, t, 1.0) for t in (a, b)), strict=True)
    kappa = np.minimum(*multipliers)  # |g| at the two attacks, which is what the proof uses
    bound = scale * norm(a - b) / (kappa - sense * rho)
    return Trial(norm(points[0] - end * points[1]), bound, pair(a, b)), None
