"""What EntropySGD smooths: exact integrals on a toy with two parameters."""

# %% [markdown]
# # What EntropySGD smooths
#
# EntropySGD minimizes -F, the loss smoothed by a Gaussian of variance 1/gamma within the
# logarithm of an integral. On a toy with two parameters F can be integrated exactly. Run from the
# repository root: `python -m theory.notebooks.entropy_sgd`.

# %%
import numpy as np
from matplotlib.figure import Figure

from jaxadv import theory

axis = np.linspace(-2, 2, 21)
loss = lambda theta: theory.toy_loss(theta, model="linear", norm="linf")

# %% [markdown]
# The adversarial loss has kinks along both axes. The Hessian of -F exists everywhere; as the loss
# is convex its eigenvalues are in [0, gamma] (sharper than Theorem 3, erratum E15).

# %%
for gamma in (0.1, 1.0, 5.0):
    smoothed = theory.local_entropy_grid(loss, [axis, axis], gamma=gamma, num_nodes=9)
    eigenvalues = np.linalg.eigvalsh(smoothed.hessian)
    bounds = theory.covariance_bounds(smoothed.covariance, gamma=gamma)
    print(
        f"gamma = {gamma}: eigenvalues {eigenvalues.min():.3f} to {eigenvalues.max():.3f},",
        f"paper's bound {bounds.paper:.2f}, spectral bound {bounds.spectral:.2f}",
    )
    assert eigenvalues.min() >= -1e-9
    assert eigenvalues.max() <= min(gamma, bounds.spectral) + 1e-9 <= bounds.paper + 1e-9

# %% [markdown]
# Cuts at theta_2 = 1: the smaller gamma, the rounder the kink at 0.

# %%
figure = Figure(figsize=(7, 3), layout="constrained")
panel = figure.subplots()
row = int(np.argmin(abs(axis - 1)))
cut = [float(loss(np.array([place, axis[row]]))) for place in axis]
panel.plot(axis, cut, color="black", label="the loss")
for gamma, color in ((0.1, "#0072B2"), (1.0, "#D55E00"), (5.0, "#009E73")):
    smoothed = theory.local_entropy_grid(loss, [axis, axis], gamma=gamma, num_nodes=9)
    values = smoothed.smoothed[:, row]
    panel.plot(axis, values - values.min() + min(cut), color=color, label=f"-F, gamma = {gamma}")
panel.set(xlabel=r"$\theta_1$", ylabel="loss, minima aligned")
panel.legend()
figure

# %% [markdown]
# Smoothing is not free. A kink of jump J turns into curvature of about J sqrt(gamma/2 pi), so a
# large gamma smooths little; and the minimum of -F is not the minimum of the loss (erratum E18).

# %%
points, labels = theory.toy_dataset()
fine = np.linspace(-2, 2, 41)
dataset = lambda theta: theory.toy_dataset_loss(theta, points, labels, norm="l2")
grid = [[float(dataset(np.array([a, b]))) for b in fine[18:24]] for a in fine[20:]]
place = np.unravel_index(np.argmin(grid), np.shape(grid))
print("minimum of the loss near", fine[20:][place[0]], fine[18:24][place[1]])
smoothed = theory.local_entropy_grid(dataset, [fine, fine], gamma=1.0, num_nodes=6).smoothed
place_smoothed = np.unravel_index(smoothed.argmin(), smoothed.shape)
print("minimum of -F at", fine[list(place_smoothed)])
assert abs(fine[place_smoothed[0]] - fine[20:][place[0]]) > 0.5

# %% [markdown]
# What the algorithm runs is colder: its noise means a temperature 1/beta of 5e-9, where -F/beta is
# the Moreau envelope (erratum E27). On the absolute value, where the envelope is Huber's function:

# %%
for beta in (1.0, 10.0, 1000.0):
    cold = theory.local_entropy(lambda t: abs(t[0]), [0.5], gamma=1.0, beta=beta)
    print(f"beta = {beta:g}: curvature at 0.5 {float(cold.hessian[0, 0]) / beta:.4f}")
assert abs(float(cold.hessian[0, 0]) / beta - 1) < 0.01  # Huber's curvature inside is gamma
