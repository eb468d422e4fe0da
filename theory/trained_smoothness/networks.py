"""Networks along their training, and the smoothness of their adversarial loss at exact attacks."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments import settings
from experiments.run import build
from experiments.run.task import Stream, key_for, load_task
from jaxadv import theory, training

MODEL = "mlp"  # of swish units: the statements need a loss with two derivatives (erratum E21)
OPTIMIZERS = {"at": "sgd", "at_ensgd": "entropy_sgd"}
NUM_RESTARTS, LANCZOS_STEPS = 1, 12
SWITCH = 0.25  # an attack that moves by this fraction of the diameter switched to another maximum


class Snapshot(NamedTuple):
    """Parameters at one point of training, and a little later.

    Attributes:
        step: minibatches taken.
        params: the parameters.
        later: parameters after one more outer step of EntropySGD, or as many minibatches of SGD.
    """

    step: int
    params: Any
    later: Any


class Run(NamedTuple):
    """A network and its training trajectory.

    Attributes:
        config: resolved configuration.
        apply: maps (params, images) to logits.
        images: probe images, float64 of shape (N, H, W, C), the first training images.
        labels: probe labels.
        snapshots: snapshots along training.
        batches_per_epoch: minibatches per epoch.
    """

    config: Any
    apply: Callable[[Any, jax.Array], jax.Array]
    images: np.ndarray
    labels: np.ndarray
    snapshots: list[Snapshot]
    batches_per_epoch: int


def train(
    method: str,
    norm: str,
    *,
    seed: int,
    num_epochs: int,
    fractions: Sequence[float],
    num_images: int,
) -> Run:
    """Trains like ``experiments.digits`` at laptop scale and saves parameters along the way.

    Args:
        method: "at" or "at_ensgd".
        norm: "linf" or "l2", with the radius of the experiments.
        seed: seed of the run.
        num_epochs: epochs of the run.
        fractions: positions of the snapshots, as ascending fractions of the run.
        num_images: size of the probe.
    """
    config = settings.base("laptop")
    config.method, config.optimizer = method, OPTIMIZERS[method]
    config.seed, config.num_epochs, config.model = seed, num_epochs, MODEL
    config.threat.norm = norm
    config = settings.resolve(config, "digits")
    task = load_task(config)
    run = build.build(config, task)
    data = jax.device_put(training.DeviceData(*map(jnp.asarray, task.train)))
    group = config.entropy.n_in
    last = num_epochs * run.batches_per_epoch // group - 1
    wanted = {round(fraction * last) * group for fraction in fractions}
    state, key, step = run.make_state(), key_for(config, Stream.TRAIN), 0
    snapshots = []
    while step <= max(wanted):
        before = jax.device_get(state.params) if step in wanted else None
        count = run.program.call_length(step, left=group)
        state, _ = run.program.advance(state, data, key, count)
        if before is not None:
            snapshots.append(Snapshot(step, before, jax.device_get(state.params)))
        step += count
    # Training is in float32; the theory applies the same network in float64.
    double = config.copy_and_resolve_references()
    double.precision = "float64"
    apply_fn = build.make_apply(build.build_model(double, task.dataset))
    return Run(
        config,
        lambda params, images: apply_fn(params, {}, images, False)[0],
        np.asarray(task.train.images[:num_images], np.float64) / 255,
        np.asarray(task.train.labels[:num_images]),
        snapshots,
        run.batches_per_epoch,
    )


class Probe:
    """The mean adversarial loss over probe images, at exact attacks, in float64.

    The parameters are arguments: one probe serves all runs with the same norm, and compiles once.
    """

    def __init__(self, run: Run):
        self.norm, self.eps = run.config.threat.norm, float(run.config.threat.eps)
        self.images, labels = run.images, jnp.asarray(run.labels)
        options = dict(norm=self.norm, eps=self.eps, bounds=(0.0, 1.0))

        def one(label, x, params):
            logits = run.apply(params, x[None])[0]
            return jax.nn.logsumexp(logits) - logits[label]

        def mean(x_adv, params):
            return jnp.mean(jax.vmap(one, (0, 0, None))(labels, x_adv, params))

        def attack(params):
            def find(given):
                label, x = given
                loss = lambda x, params: one(label, x, params)
                return theory.optimal_attack(
                    jax.random.key(0), loss, params, x, num_restarts=NUM_RESTARTS, **options
                )

            return jax.lax.map(find, (labels, jnp.asarray(self.images)))

        def jacobian(params, x_adv):
            def differentiate(given):
                label, x, point = given
                loss = lambda x, params: one(label, x, params)
                found = theory.attack_jacobian(loss, params, x, x_adv=point, **options)
                leaves = jax.tree.leaves(found.jacobian)
                flat = jnp.concatenate([leaf.reshape(x.size, -1) for leaf in leaves], axis=1)
                return found._replace(jacobian=flat, multiplier_jacobian=None)

            return jax.lax.map(differentiate, (labels, jnp.asarray(self.images), x_adv))

        def frozen(params, x_adv, u):
            gradient = lambda params: jax.grad(mean, argnums=1)(x_adv, params)
            return jax.jvp(gradient, (params,), (u,))[1]

        def motion(params, x_adv, jacobian, u):
            moved = (jacobian @ ravel_pytree(u)[0]).reshape(x_adv.shape)
            gradient = lambda x: jax.grad(mean, argnums=1)(x, params)
            return jax.jvp(gradient, (x_adv,), (moved,))[1]

        self._mean, self._gradient = jax.jit(mean), jax.jit(jax.grad(mean, argnums=1))
        self._attack, self._jacobian = jax.jit(attack), jax.jit(jacobian)
        self._frozen, self._motion = jax.jit(frozen), jax.jit(motion)

    def measure(self, snapshot: Snapshot, spacings: Sequence[float]) -> dict[str, Any]:
        """Every number of the figure at one snapshot.

        Args:
            snapshot: the snapshot.
            spacings: lengths of the displacements along the direction of training, as parts of
                the norm of the parameters.
        """
        with jax.enable_x64(True):
            params, later = (
                jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
                for tree in (snapshot.params, snapshot.later)
            )
            found = self._attack(params)
            x_adv = np.asarray(found.x_adv)
            row: dict[str, Any] = {"step": snapshot.step, "loss": float(self._mean(x_adv, params))}
            row |= self._local(params, x_adv)
            size, step = _length(params), jax.tree.map(np.subtract, later, params)
            row |= {"size": size, "update": _length(step)}
            row["secants"] = [
                self._secant(params, x_adv, jax.tree.map(np.multiply, step, _like(step, amount)))
                for amount in np.asarray(spacings) * size / row["update"]
            ]
        return row

    def _local(self, params, x_adv) -> dict[str, Any]:
        """Jacobians of the attacks, and both ends of the curvature."""
        found = self._jacobian(params, x_adv)
        kinds = [str(kind) for kind in found.kind]
        regular = ~np.isin(kinds, ["degenerate", "unconverged"])
        jacobian = np.where(regular[:, None, None], np.asarray(found.jacobian), 0.0)
        frozen = lambda u: self._frozen(params, x_adv, u)
        motion = lambda u: self._motion(params, x_adv, jacobian, u)
        total = lambda u: jax.tree.map(np.add, frozen(u), motion(u))
        top = {
            name: theory.extreme_eigenvalues(
                jax.random.key(0), product, params, num_steps=LANCZOS_STEPS, tolerance=1e-3
            ).largest
            for name, product in (("frozen", frozen), ("motion", motion), ("total", total))
        }
        gather = lambda values: np.asarray(values)[regular].tolist()
        return {
            "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
            "norms": gather(found.norm),
            "sharp_bounds": gather(found.sharp_bound),
            "tangent_dims": gather(found.certificates.tangent_dim),
            "largest_residual": float(np.max(found.certificates.relative_residual)),
            "eigenvalues": top,
        }

    def _secant(self, params, x_adv, step) -> dict[str, float]:
        """The gradient change over a displacement, split into parameters and attacks."""
        moved = jax.tree.map(np.add, params, step)
        x_moved = np.asarray(self._attack(moved).x_adv)
        reach = self.eps if self.norm == "linf" else np.inf
        low, high = np.maximum(self.images - reach, 0), np.minimum(self.images + reach, 1)
        attacks = {id(params): x_adv, id(moved): x_moved}
        split = theory.smoothness_along(
            lambda x, theta: self._gradient(x, theta),
            lambda theta: attacks[id(theta)],
            [params, moved],
            bounds=(jnp.asarray(low), jnp.asarray(high)) if self.norm == "linf" else None,
        )
        apart = np.linalg.norm((x_moved - x_adv).reshape(len(x_adv), -1), axis=1)
        diameter = np.linalg.norm((high - low).reshape(len(x_adv), -1), axis=1)
        diameter = np.minimum(diameter, 2 * self.eps) if self.norm == "l2" else diameter
        values = {
            name: float(getattr(split, name)[0])
            for name in ("step", "total", "parameter", "attack", "attack_share")
        }
        values["motion"] = float(np.mean(apart)) / values["step"]
        values["switches"] = float(np.mean(apart > SWITCH * diameter))
        if self.norm == "linf":
            values["flips"] = float(split.flips[0])
        return values


def _length(tree) -> float:
    return float(np.linalg.norm(ravel_pytree(tree)[0]))


def _like(tree, value):
    return jax.tree.map(lambda leaf: np.full_like(leaf, value), tree)
