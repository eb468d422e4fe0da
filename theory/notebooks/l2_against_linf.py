"""L2 against Linf: where the adversarial loss of the linear model breaks."""

# %% [markdown]
# # L2 against Linf: where the loss breaks
#
# The linear model with the logistic loss has closed-form attacks, so nothing here is approximate.
# Run from the repository root: `python -m theory.notebooks.l2_against_linf`.

# %%
import jax
import numpy as np
from matplotlib.figure import Figure

from jaxadv import theory

x, eps = np.array([-1.0, 1.0]), 0.6
gradient = {
    norm: jax.jit(lambda theta, p=p: theory.linear_gradient(theta, x, 1.0, p=p, eps=eps))
    for norm, p in (("l2", 2.0), ("linf", np.inf))
}

# %% [markdown]
# Walk along a line that crosses theta_1 = 0 and theta_2 = 0, away from the origin, and look for
# places where the gradient jumps.

# %%
start, direction = np.array([-1.0, 1.5]), np.array([1.0, -0.8])
kinks = {
    norm: theory.find_kinks(g, start, direction, length=3.0, signature_fn=np.sign)
    for norm, g in gradient.items()
}
for norm, found in kinks.items():
    print(norm, "jumps", found.jumps.round(4), "of coordinates", found.responsible)
assert len(kinks["l2"].places) == 0
assert kinks["linf"].responsible == ((0,), (1,))

# %% [markdown]
# The jump is 2 eps s(-M): it depends on the margin M alone, and is never 0 at finite margins.
# Averaging over data does not help, for the kinks of all samples are at the same theta.

# %%
unit = direction / np.linalg.norm(direction)
for place, jump in zip(kinks["linf"].places, kinks["linf"].jumps, strict=True):
    theta = start + place * unit
    margin = theta @ x - eps * np.abs(theta).sum()
    print("measured", jump, "formula", 2 * eps / (1 + np.exp(margin)))
    np.testing.assert_allclose(jump, 2 * eps / (1 + np.exp(margin)), rtol=1e-5)

# %% [markdown]
# The first component of the gradient along the line:

# %%
walk = np.linspace(0, 3, 151)
figure = Figure(figsize=(7, 3), layout="constrained")
axis = figure.subplots()
for norm, color in (("l2", "#0072B2"), ("linf", "#D55E00")):
    p = 2.0 if norm == "l2" else np.inf
    slope = [
        float(theory.linear_gradient(start + place * unit, x, 1.0, p=p, eps=eps)[0])
        for place in walk
    ]
    axis.plot(walk, slope, ".", ms=2, color=color, label=norm)
for place in kinks["linf"].places:
    axis.axvline(place, color="0.6", lw=0.8, ls=":")
axis.set(xlabel="distance along the line", ylabel=r"$\partial \ell_\epsilon / \partial \theta_1$")
axis.legend(markerscale=4)
figure

# %% [markdown]
# L2 breaks only at the origin, and its smoothness depends on how close a path comes to it: the
# attack is (eps/|theta|)-Lipschitz (Lemma 2).

# %%
for radius in (1.0, 0.1, 0.01):
    jacobian = theory.linear_attack_jacobian(np.array([radius, 0.0]), 1.0, p=2.0, eps=eps)
    print(f"|theta| = {radius}: norm of the attack Jacobian {np.linalg.norm(jacobian, 2):.3f}")
    np.testing.assert_allclose(np.linalg.norm(jacobian, 2), eps / radius)
