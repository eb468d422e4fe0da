"""The programs that are compiled for the H100, lowered from shapes alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxadv import attacks, models, objectives, optim, training

NUM_IMAGES, IMAGE = 50_000, (32, 32, 3)  # CIFAR-10
ROWS = 512  # images a device in a segment of AutoAttack

NETWORKS = {
    "preact_resnet18": models.preact_resnet18,
    "wrn34_10": models.wide_resnet34_10,
    # small enough to compile in seconds: to see that sizes do not depend on numbers of steps
    "tiny": lambda classes, **options: models.preact_resnet18(
        classes, width=8, blocks=(1, 1, 1, 1), **options
    ),
}
# The kernels of the standard ensemble; the span of steps is an argument of a segment.
KERNELS = {
    "apgd-ce": attacks.APGD(),
    "apgd-t": attacks.APGD(loss="dlr-targeted", num_targets=9),
    "fab-t": attacks.FAB(num_targets=9),
    "square": attacks.Square(num_steps=5000),
}


class Spec(NamedTuple):
    """A program.

    Attributes:
        what: "at", "awp", "trades", "entropy_sgd", or an attack of AutoAttack.
        network: a key of ``NETWORKS``.
        dtype: of the computation.
        devices: number of devices.
        batch: images a device in a minibatch.
        num_steps: PGD steps.
        n_in: inner iterations of EntropySGD.
        attack_bn: BatchNorm during the attack.
        sync: whether BatchNorm's statistics are those of the minibatch on all devices.
    """

    what: str
    network: str = "preact_resnet18"
    dtype: str = "float32"
    devices: int = 1
    batch: int = 128
    num_steps: int = 10
    n_in: int = 20
    attack_bn: str = "train"
    sync: bool = True


WRN = Spec("at", "wrn34_10")
TINY = Spec("at", "tiny", batch=16)
# In the order of what they tell.
PROGRAMS: dict[str, Spec] = {
    "at": Spec("at"),
    "at_4": Spec("at", devices=4),
    "tiny_at": TINY,
    "tiny_at_20_steps": TINY._replace(num_steps=20),
    "tiny_entropy_sgd": TINY._replace(what="entropy_sgd"),
    "tiny_entropy_sgd_n_in_40": TINY._replace(what="entropy_sgd", n_in=40),
    "wrn": WRN,
    "entropy_sgd": Spec("entropy_sgd"),
    "apgd-ce_4": Spec("apgd-ce", devices=4),
    "wrn_bfloat16": WRN._replace(dtype="bfloat16"),
    "square_4": Spec("square", devices=4),
    "fab-t_4": Spec("fab-t", devices=4),
    "wrn_256": WRN._replace(batch=256),
    "wrn_bfloat16_256": WRN._replace(dtype="bfloat16", batch=256),
    "wrn_2048": WRN._replace(batch=2048),
    "at_4_eval": Spec("at", devices=4, attack_bn="eval"),
    "at_4_local": Spec("at", devices=4, sync=False),
    "at_bfloat16": Spec("at", dtype="bfloat16"),
    "entropy_sgd_4": Spec("entropy_sgd", devices=4),
    "wrn_4": WRN._replace(devices=4),
    "wrn_bfloat16_4": WRN._replace(dtype="bfloat16", devices=4),
    "apgd-t_4": Spec("apgd-t", devices=4),
    "awp": Spec("awp"),
    "trades": Spec("trades"),
}


def lower(spec: Spec, devices: list) -> Any:
    """The program, lowered for the platform of the devices."""
    mesh = Mesh(np.asarray(devices[: spec.devices]), ("batch",), axis_types=(AxisType.Auto,))
    build = _segment if spec.what in KERNELS else _training
    function, arguments = build(spec, mesh)
    return function.lower(*arguments)


def _like(mesh: Mesh, tree: Any, *axes: str) -> Any:
    """Shapes in place of arrays, laid out over the devices."""
    layout = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout), tree
    )


def _network(spec: Spec) -> tuple[Any, Any]:
    """The network and the shapes of its variables."""
    dtype = None if spec.dtype == "float32" else jnp.dtype(spec.dtype)
    module = NETWORKS[spec.network](10, dtype=dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)
    return module, jax.eval_shape(module.init, key, image)


def _training(spec: Spec, mesh: Mesh) -> tuple[Any, tuple]:
    """A training step and the shapes of its arguments."""
    module, variables = _network(spec)

    def apply_fn(params, batch_stats, x, train):
        both = {"params": params, "batch_stats": batch_stats}
        logits, changed = module.apply(both, x, train=train, mutable=["batch_stats"])
        return logits, changed["batch_stats"]

    if spec.what == "trades":
        objective = objectives.trades(apply_fn, num_steps=spec.num_steps)
    else:
        objective = objectives.adversarial_cross_entropy(
            apply_fn,
            num_steps=spec.num_steps,
            attack_bn=spec.attack_bn,
            weights_move=spec.what == "awp",
        )
    program = training.Program(
        apply_fn,
        objective,
        batch_size=spec.batch * spec.devices,
        # as published: the clean pass costs a forward pass
        clean_pass=spec.what == "at" and spec.attack_bn == "train",
        weight_perturbation=0.01 if spec.what == "awp" else 0.0,
        sharding=NamedSharding(mesh, PartitionSpec("batch")) if spec.devices > 1 else None,
        sync_batch_norm=spec.sync,
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    if spec.what == "entropy_sgd":
        tx = optim.entropy_sgd(0.1, key=jax.random.key(0), n_in=spec.n_in)
        step, more = program.entropy_step(tx, spec.n_in), ()
    else:
        tx = training.sgd(0.1)
        step, more = program.sgd_steps(tx), (jax.ShapeDtypeStruct((), jnp.int32),)
    state = jax.eval_shape(
        lambda both: training.TrainState.create(both["params"], both["batch_stats"], tx), variables
    )
    data = training.DeviceData(
        jax.ShapeDtypeStruct((NUM_IMAGES, *IMAGE), jnp.uint8),
        jax.ShapeDtypeStruct((NUM_IMAGES,), jnp.int32),
    )
    return step, _like(mesh, (state, data, key, *more))


def _segment(spec: Spec, mesh: Mesh) -> tuple[Any, tuple]:
    """A span of steps of one attack on a block of images a device, as AutoAttack runs them."""
    module, variables = _network(spec)
    kernel = KERNELS[spec.what]

    def block(variables, key, span, images, labels, indices, state):
        logits = lambda points, number: module.apply(variables, points)
        batch = attacks.Batch(
            images, labels, jnp.ones(labels.shape, bool), "linf", jnp.float32(8 / 255), key,
            indices, jnp.int32(0), logits,
        )  # fmt: skip
        if state is None:
            return kernel.begin(batch)
        state = kernel.advance(batch, state, span[0], span[1])
        return state, kernel.outcome(batch, state)

    def chunk(variables, key, span, *blocks):
        return jax.lax.map(lambda block_: block(variables, key, span, *block_), blocks)

    split = PartitionSpec("batch")
    specs = (PartitionSpec(), PartitionSpec(), PartitionSpec(), split, split, split, split)
    mapped = jax.shard_map(chunk, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
    rows = (spec.devices, ROWS)
    images = jax.ShapeDtypeStruct((*rows, *IMAGE), jnp.float32)
    labels = jax.ShapeDtypeStruct(rows, jnp.int32)
    key, span = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((2,), jnp.int32)

    def begin(variables, key, span, *rows):
        first = lambda images, labels, indices: block(
            variables, key, span, images, labels, indices, None
        )
        return jax.vmap(first)(*rows)

    shared = variables, key, span
    state = jax.eval_shape(begin, *shared, images, labels, labels)
    arguments = _like(mesh, shared), _like(mesh, (images, labels, labels, state), "batch")
    return jax.jit(mapped, donate_argnums=6), (*arguments[0], *arguments[1])
