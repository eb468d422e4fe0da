"""Is the attack on a trained network Lipschitz? Active sets of a checkpoint."""

# %% [markdown]
# # Is your network's attack Lipschitz?
#
# For a checkpoint from `make reproduce`: are the attacks vertices of the Linf ball, how far may the
# parameters move before a pixel jumps to its opposite bound, and how large is the resulting jump of
# the gradient? Run from the repository root: `python -m theory.notebooks.lipschitz_attack`; the
# environment variable WORKDIR selects another run. The network has ReLUs: what follows holds on the
# linear piece that the attack is on (E21).

# %%
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.evaluation import subjects
from jaxadv import attacks, theory

workdir = Path(os.environ.get("WORKDIR", "runs/digits-laptop/at/seed0"))
if not (workdir / "config.json").is_file():
    raise FileNotFoundError(
        f"{workdir} is not a finished run: run `make reproduce`, or set WORKDIR"
    )
subject = subjects.from_run(workdir, "last", "test").first(8)
images = jnp.asarray(subject.images, jnp.float32) / 255
labels = jnp.asarray(subject.labels)
eps = float(subject.eps)
print(workdir, "eps", eps)

# %% [markdown]
# The attack by PGD with many small steps, and its loss as a function of the image and of the
# parameters.

# %%
logits_fn = subject.logits_fn()
adversarial = attacks.pgd(
    subject.key, logits_fn, images, labels,
    norm="linf", eps=eps, step_size=eps / 10, num_steps=50, init="zero", keep_best=True,
)  # fmt: skip
variables = {"batch_stats": subject.batch_stats} if subject.batch_stats else {}


def loss_of(label):
    """Loss of one image as a function of (x, theta)."""

    def loss(x, theta):
        logits = subject.module.apply({"params": theta} | variables, x[None])[0]
        return jax.nn.logsumexp(logits) - logits[label]

    return loss


# %% [markdown]
# At a vertex every pixel is at a bound with the gradient pointing outward: the attack does not
# move at all until a gradient component changes sign. `radius` is how far theta may move before
# one does, to first order; a pixel with a small gradient makes it tiny.

# %%
found = []
for image, point, label in zip(images, adversarial, labels, strict=True):
    low, high = jnp.maximum(image - eps, 0), jnp.minimum(image + eps, 1)
    found.append(
        theory.active_set_stability(loss_of(int(label)), subject.params, point, low=low, high=high)
    )
size = np.sqrt(sum(float(jnp.sum(p**2)) for p in jax.tree.leaves(subject.params)))
print("image  active  radius/|theta|  largest predicted jump of the gradient")
for index, one in enumerate(found):
    print(f"{index:5d}  {one.active.mean():6.1%}  {one.radius / size:14.2e}  {one.jumps.max():.3g}")
assert all(one.radius >= 0 and np.isfinite(one.jumps).all() for one in found)

# %% [markdown]
# The answer for Linf: locally constant, hence Lipschitz with constant 0, within that radius, and
# not Lipschitz on any region in which a pixel flips. Compare the radius with the length of a step
# of training: lr |gradient|.

# %%
steps = []
for point, label in zip(adversarial, labels, strict=True):
    slope = jax.grad(loss_of(int(label)), argnums=1)(point, subject.params)
    steps.append(0.1 * np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(slope))))
crossed = np.mean([step > one.radius for step, one in zip(steps, found, strict=True)])
print(f"a step of learning rate 0.1 leaves that radius on {crossed:.0%} of these images")

# %% [markdown]
# Every image, with its radius and its step: points above the line leave the piece they are on.

# %%
figure = Figure(figsize=(5, 3.4), layout="constrained")
axis = figure.subplots()
radii = np.array([max(one.radius, 1e-12) for one in found])
axis.loglog(radii, steps, "o", color="#D55E00")
ends = np.array([min(radii.min(), min(steps)), max(radii.max(), max(steps))])
axis.loglog(ends, ends, color="0.5", lw=0.8, label="step = radius")
axis.set(xlabel="radius of constancy", ylabel="length of a step")
axis.legend()
figure
