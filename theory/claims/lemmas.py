"""Claims on Lemmas 4 and 5: formulas C.1 to C.3 and A.9, E1, E8, E10, E11, E12."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .networks import EXCESS, motion_trial, solved, witness
from .registry import Trial, claim, norm, pair, unit
from .trust_region import solve_sphere


@claim("Lemma 4", "Lemma 4", "an interior attack moves by at most C_thx/c |dtheta|, c = min(-H)")
def _lemma4(rng, count):
    del rng, count
    return motion_trial("l2", "paper_bound", "interior"), None


@claim(
    "Lemma 4, size of the neighbourhood",
    "Lemma 4; E8",
    "the bound C_thx/c holds near theta with the c of that one point, c = c_0",
    "it holds with any c < c_0 in the ball of radius (c_0 - c)/(C_H (1 + C_thx/c))",
)
def _neighbourhood(rng, count):
    # g = theta - c_0 x + k x^3/3: the attack at 0 is 0, C_thx = 1, C_H = k on |x| <= 1/2.
    slope, k = rng.uniform(0.8, 2.0, size=count), rng.uniform(0.3, 1.0, size=count)

    def attack(theta):
        x = theta / slope
        for _ in range(60):
            x = x - (slope * x - k * x**3 / 3 - theta) / (slope - k * x**2)
        return x

    c = 0.9 * slope
    radius = (slope - c) / (k * (1 + 1 / c))
    a, b = radius * rng.uniform(-1, 1, size=(2, count))
    change, step = np.abs(attack(a) - attack(b)), np.abs(a - b)
    words = lambda i: f"c_0 = {slope[i]:.4f}, k = {k[i]:.4f}, theta = {a[i]:.4g} and {b[i]:.4g}"
    return Trial(change, step / slope, words), Trial(change, step / c, words)


@claim(
    "Lemma 5", "Lemma 5", "an attack on the L2 sphere moves by at most C_thx/sigma_min(K) |dtheta|"
)
def _lemma5(rng, count):
    del rng, count
    return motion_trial("l2", "paper_bound", "sphere"), None


@claim(
    "Lemma 5, sharp",
    "formulas C.2; E11",
    "by at most |T^T B|/c_T |dtheta|, and that is no more than Lemma 5",
)
def _sharp(rng, count):
    del rng, count
    found = solved("l2")
    places = found.places("sphere")
    sharp, paper = (a[places] for a in (found.result.sharp_bound, found.result.paper_bound))
    both = np.concatenate([places, places])
    measured = np.concatenate([found.motion[places], sharp])
    return Trial(measured, np.concatenate([EXCESS * sharp, paper]), witness(found, both)), None


@claim(
    "Hessian of the adversarial loss",
    "formulas C.1, C.2",
    "|grad l_eps| changes by |A + B^T D| |dtheta|",
)
def _bend(rng, count):
    del rng, count
    trials = [(solved(n), solved(n).places("interior", "sphere", "face")) for n in ("l2", "linf")]
    top = [np.linalg.eigvalsh(f.hessian.total[p])[:, -1] for f, p in trials]
    measured = np.abs(np.concatenate([f.bend[p] for f, p in trials]) / np.concatenate(top) - 1)
    words = lambda i: f"regular point {i}, relative distance"
    return Trial(measured, np.full(len(measured), 1e-6), words), None


@claim(
    "(CURV)",
    "formulas A.9 (F3)",
    "the Hessian of the loss with frozen attack is that of l_eps",
    "the motion of the attack adds B^T D, which is positive semidefinite",
)
def _curvature(rng, count):
    del rng, count
    found = solved("l2")
    places = found.places("interior", "sphere")
    total, motion = found.hessian.total[places], found.hessian.motion[places]
    size = np.linalg.norm(total, 2, axis=(1, 2))
    lowest = np.linalg.eigvalsh(motion)[:, 0]
    printed = Trial(np.linalg.norm(motion, 2, axis=(1, 2)), 1e-6 * size, witness(found, places))
    return printed, Trial(np.maximum(-lowest, 0), 1e-10 * size, witness(found, places))


def _stationary(rng, count: int, dims):
    """Random stationary points on spheres: per instance (n, mu, H, T), with eps = 1."""
    for index in range(count):
        d = int(dims[index % len(dims)])
        n = unit(rng.normal(size=d))
        tangent = np.linalg.svd(n[None, :])[2][1:].T
        # Eigenvalues of W_T away from 0, half of the instances strict maxima.
        signs = rng.choice([-1.0, 1.0], size=d - 1) if index % 2 else -np.ones(d - 1)
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


@functools.cache
def _determinants(seed: int, count: int):
    rng = np.random.default_rng(seed)
    rows = []
    for n, mu, hessian, tangent in _stationary(rng, count, (2, 3, 4, 5, 6)):
        k = _bordered(n, mu, hessian)
        w_t = tangent.T @ hessian @ tangent - mu * np.eye(len(n) - 1)
        rows.append(
            (
                len(n),
                np.linalg.det(k),
                np.linalg.det(w_t),
                _is_maximum(n, mu, hessian, tangent, rng),
            )
        )
    return np.array(rows, float).T


@claim(
    "det K > 0 is sufficient",
    "Lemma 5, eq. 22; E1",
    "a stationary point of the sphere with det K > 0 is a local maximum (number of larger "
    "neighbors, 0 or 1)",
    "det K = -det W_T, so its sign at a strict maximum is (-1)^d",
)
def _sufficient(rng, count):
    d, det, det_w, maximum = _determinants(int(rng.integers(2**31)), min(count, 500))
    words = lambda i: f"d = {d[i]:.0f}, det K = {det[i]:.3f}, larger values nearby"
    printed = Trial(np.where(det > 0, 1 - maximum, 0), np.zeros(len(d)), words)
    agree = np.abs(det + det_w) / np.abs(det_w)
    sign = np.where(maximum > 0, np.abs(np.sign(det) - (-1.0) ** d), 0.0)
    return printed, Trial(agree + sign, np.full(len(d), 1e-9), words)


@claim(
    "det K > 0 in odd dimension",
    "Lemma 5, eq. 22; E1",
    "strict maxima on the sphere have det K > 0, as the lemma assumes",
    "only in even dimension; in odd dimension none has",
)
def _odd(rng, count):
    d, det, _, maximum = _determinants(int(rng.integers(2**31)), min(count, 500))
    d, det = d[maximum > 0], det[maximum > 0]
    words = lambda i: f"d = {d[i]:.0f}, strict maximum, -det K"
    even = d % 2 == 0
    return (
        Trial(np.maximum(-det, 0), np.zeros(len(d)), words),
        Trial(np.maximum(np.where(even, -det, det), 0), np.zeros(len(d)), words),
    )


@claim(
    "Border of K",
    "eq. 22; E10",
    "K is the Hessian of the Lagrangian l - mu (|x' - x| - eps) in (mu, x')",
    "K = diag(-1, I) Hess diag(-1, I): same singular values and determinant",
)
def _border(rng, count):
    measured = {"printed": [], "corrected": []}
    with jax.enable_x64(True):

        def lagrangian(z, n, mu, hessian):
            step = z[1:] - n
            loss = mu * (n @ step) + 0.5 * step @ hessian @ step
            return loss - z[0] * (jnp.sqrt(jnp.sum(z[1:] ** 2)) - 1)

        exact = jax.jit(jax.hessian(lagrangian))
        for n, mu, hessian, _ in _stationary(rng, min(count, 200), (4,)):
            of_j = np.asarray(exact(jnp.append(mu, n), n, mu, hessian))
            k, flip = _bordered(n, mu, hessian), np.diag([-1.0, 1, 1, 1, 1])
            measured["printed"].append(np.abs(k - of_j).max())
            measured["corrected"].append(np.abs(k - flip @ of_j @ flip).max())
    words = lambda i: f"stationary point {i} of a quadratic, d = 4, largest difference"
    rounding = np.full(len(measured["printed"]), 1e-9)
    return tuple(Trial(np.array(v), rounding, words) for v in measured.values())


@functools.cache
def bordered_constants(seed: int, count: int) -> np.ndarray:
    """Rows c_T, sigma_min(K), and sigma_min for the constraint (|r|^2 - 1)/2 <= 0."""
    rows = []
    for n, mu, hessian, tangent in _stationary(np.random.default_rng(seed), count, (3, 4, 5, 6)):
        curvature = mu - np.linalg.eigvalsh(tangent.T @ hessian @ tangent)[-1]
        if curvature > 0:
            k = _bordered(n, mu, hessian)
            squared = k.copy()
            squared[1:, 1:] -= mu * np.outer(n, n)
            rows.append([curvature, *(np.linalg.svd(m)[1][-1] for m in (k, squared))])
    return np.array(rows).T


@claim(
    "sigma_min(K) measures curvature",
    "Lemma 5; E11",
    "the c = sigma_min(K) of Lemma 5 is as large as the curvature c_T of the loss on the sphere",
    "sigma_min(K) <= min(1, c_T)",
)
def _sigma(rng, count):
    curvature, sigma, _ = bordered_constants(int(rng.integers(2**31)), min(count, 2000))
    words = lambda i: f"c_T = {curvature[i]:.4f}, sigma_min(K) = {sigma[i]:.4f}"
    return (
        Trial(curvature, sigma, words),
        Trial(sigma, np.minimum(1.0, curvature), words),
    )


@claim(
    "sigma_min(K) is a property of the attack",
    "Lemma 5; E11",
    "c does not depend on how the constraint is written, |r| - eps or (|r|^2 - eps^2)/2, eps = 1",
)
def _written(rng, count):
    _, sigma, squared = bordered_constants(int(rng.integers(2**31)), min(count, 2000))
    words = lambda i: f"c = {sigma[i]:.4f} and {squared[i]:.4f}, distance"
    return Trial(np.abs(sigma - squared), np.full(len(sigma), 1e-9), words), None


def _flat_losses(rng, count):
    """Sphere problems with Hessians from size 1 down to 1e-6, and how far their attacks move."""
    flatness = 10.0 ** rng.uniform(-6, 0, size=count)
    q = rng.normal(size=(count, 4, 4))
    q = flatness[:, None, None] * (q + np.swapaxes(q, 1, 2)) / 2
    theta = (2 + 6 * flatness)[:, None] * unit(rng.normal(size=(count, 4)))
    x, mu = solve_sphere(q, theta, 1.0)
    normal = np.eye(4) - x[:, :, None] * x[:, None, :]
    hessian = normal @ q @ normal + 1e6 * x[:, :, None] * x[:, None, :] * -1.0
    curvature = mu - np.linalg.eigvalsh(hessian)[:, -1]
    step = np.einsum("nij,nj->ni", normal, np.linalg.eigh(hessian)[1][:, :, -1])
    ends = [solve_sphere(q, theta + s * 1e-5 * step, 1.0)[0] for s in (1, -1)]
    motion = norm(ends[0] - ends[1]) / 2e-5
    return np.linalg.norm(q, 2, axis=(1, 2)), mu, curvature, motion


@claim(
    "Flatness in the input space",
    "after Lemma 5; E12",
    "small singular values of H make c small: the attack moves by |B|/|H| or more (L2 sphere, "
    "B = I)",
    "by 1/c_T with c_T = |g|/eps - lambda_max(H_T): the gradient decides, not the Hessian",
)
def _flat(rng, count):
    size, mu, curvature, motion = _flat_losses(rng, min(count, 2000))
    words = lambda i: f"|H| = {size[i]:.2e}, |g| = {mu[i]:.3f}; moves by {motion[i]:.4f}"
    deviation = np.abs(motion * curvature - 1)
    return Trial(1 / size, motion, words), Trial(deviation, np.full(len(size), 1e-6), words)


@claim(
    "Lipschitz attack on the sphere",
    "formulas C.3 (U2)",
    "|x'(a) - x'(b)| <= C_thx/(kappa/eps - rho) |a - b| if |g| >= kappa and H <= rho I (L2)",
)
def _global_sphere(rng, count):
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
    bound = norm(a - b) / (kappa - rho)
    return Trial(norm(points[0] - points[1]), bound, pair(a, b)), None
