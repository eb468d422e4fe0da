"""The attack Jacobian of a small network, and what it implies for training."""

# %% [markdown]
# # The attack Jacobian in ten minutes
#
# An optimal attack x'(theta) maximizes the loss over a ball. When the parameters move, so does the
# attack; its derivative D decides how smooth the adversarial loss is. Run from the repository root:
# `python -m theory.notebooks.attack_jacobian`.

# %%
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxadv import theory

rng = np.random.default_rng(0)
theta = {"w1": rng.normal(size=(6, 3)), "w2": rng.normal(size=(3, 6))}
x = rng.uniform(0.2, 0.8, size=3)


def loss(x, theta):
    """Cross-entropy of a tanh network, label 0."""
    logits = theta["w2"] @ jnp.tanh(theta["w1"] @ x)
    return jax.nn.logsumexp(logits) - logits[0]


# %% [markdown]
# One call finds the attack to machine precision, says what kind of point it is, and differentiates
# it. The Jacobian is a pytree like theta, with the shape of x in front.

# %%
result = theory.attack_jacobian(loss, theta, x, norm="l2", eps=0.3)
print(result.kind, "relative residual", float(result.certificates.relative_residual))
print(jax.tree.map(np.shape, result.jacobian))
assert result.kind == "sphere"

# %% [markdown]
# Is D right? Move theta a little, let the attack follow, and compare.

# %%
direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), theta)
step = 1e-5
ends = [
    theory.polish_attack(
        loss,
        jax.tree.map(lambda t, d, s=s: t + s * step * d, theta, direction),
        x,
        result.x_adv,
        norm="l2",
        eps=0.3,
    ).x_adv
    for s in (1, -1)
]
measured = (ends[0] - ends[1]) / (2 * step)
predicted = sum(np.tensordot(result.jacobian[n], direction[n], axes=2) for n in theta)
print("moved", measured, "predicted", predicted)
np.testing.assert_allclose(predicted, measured, rtol=1e-6, atol=1e-9)

# %% [markdown]
# The norm of D, a sharp bound, and the bound of the paper (Lemma 5). The paper requires det K > 0,
# which no strict maximum in an odd dimension has (erratum E1): here d = 3.

# %%
print("norm", float(result.norm))
print("sharp bound", float(result.sharp_bound), "paper's", float(result.paper_bound))
print("hypothesis of Lemma 5 as printed:", bool(result.paper_applies))
assert result.norm <= result.sharp_bound <= result.paper_bound
assert not result.paper_applies

# %% [markdown]
# For training: the Hessian of the adversarial loss is A + B^T D. Differentiating with a frozen
# attack misses the second part, the motion of the attack.

# %%
hessian = theory.adversarial_hessian(loss, theta, x, norm="l2", eps=0.3, x_adv=result.x_adv)
for name in ("total", "frozen", "motion"):
    print(f"{name:>7}: largest eigenvalue {np.linalg.eigvalsh(getattr(hessian, name))[-1]:.4f}")
assert np.linalg.eigvalsh(hessian.motion)[0] > -1e-10

# %% [markdown]
# The spectra: motion only adds.

# %%
figure = Figure(figsize=(7, 3), layout="constrained")
axis = figure.subplots()
for name, color in (("total", "black"), ("frozen", "#0072B2"), ("motion", "#D55E00")):
    eigenvalues = np.linalg.eigvalsh(getattr(hessian, name))[::-1]
    axis.plot(1 + np.arange(len(eigenvalues)), eigenvalues, ".-", color=color, label=name)
axis.set(xlabel="eigenvalue number", ylabel="eigenvalue of the Hessian")
axis.legend()
figure
