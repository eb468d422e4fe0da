"""One small call of every public function, with its arrays already on the device."""

import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxadv import attacks, augment, balls, losses, models, objectives, optim, training
from tests.helpers.small_attacks import SMALL
from tests.helpers.small_models import SMALL as SMALL_MODELS

KEY_DATA = jax.random.key_data(jax.random.key(0))
IMAGES = jax.random.uniform(jax.random.key(1), (3, 4, 4, 1))
LABELS = jnp.array([0, 1, 2])
INDICES = jnp.arange(3)
WEIGHTS = jax.random.normal(jax.random.key(2), (16, 4))
LOGITS = jax.random.normal(jax.random.key(3), (3, 4))
OTHER = jax.random.normal(jax.random.key(4), (3, 4))
EIGHT_BIT = jnp.arange(8 * 16, dtype=jnp.uint8).reshape(8, 4, 4, 1)
CLASSES, PLACES = jnp.arange(8) % 4, jnp.arange(8)
PARAMS = {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
BATCHES = jnp.ones((2, 2))
ZERO, TWO, PAIR = (
    jnp.zeros(2),
    jnp.array([0.0, 2.0]),
    (jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])),
)
FOUR, HALF = jnp.int32(4), jnp.float32(0.5)
POINT = jnp.array([0.5, -0.1])
BOX = {"norm": "linf", "eps": 0.1}
FEW = {"num_steps": 3}
ORIGIN, ONES = np.zeros(2), np.ones(2)
THETA, X = np.array([3.0, -4.0]), np.array([1.0, 1.0])


def new_key():
    """The same key, never seen before by the checker of key reuse."""
    return jax.random.wrap_key_data(KEY_DATA)


def logits_fn(images):
    return images.reshape(images.shape[0], -1) @ WEIGHTS.astype(images.dtype)


def apply_fn(params, batch_stats, images, train):
    del train
    return images.reshape(images.shape[0], -1) @ params, batch_stats


def quadratic(params, batch=None):
    x = ONES.astype(np.float32) if batch is None else batch
    return jnp.sum((params["kernel"] @ x + params["bias"]) ** 2)


def grad_fn(params, batch, carry):
    return jax.grad(quadratic)(params, batch), carry


def concave(x, theta):
    return -0.5 * jnp.sum((x - theta) ** 2)


def bilinear(x, theta):
    return x @ theta


def bowl(theta):
    return 0.5 * jnp.sum(theta * theta)


def _attack(name, **options):
    attack = getattr(attacks, name)

    def call():
        for norm, eps in (("linf", 0.1), ("l2", 0.5), ("l1", 2.0)):
            found = attack(new_key(), logits_fn, IMAGES, LABELS, norm=norm, eps=eps, **options)
            images = getattr(found, "images", found)
            assert images.shape == IMAGES.shape and images.dtype == IMAGES.dtype
            sizes = balls.norm_of(images - IMAGES, norm)
            size, low, high = jax.device_get((sizes.max(), images.min(), images.max()))
            assert size <= eps * (1 + 1e-5) and low >= 0 and high <= 1

    return call


def _stateful():
    def forward(points, carry):
        return logits_fn(points), carry

    run = lambda key, images, eps, step: attacks.pgd_stateful(
        key,
        forward,
        (),
        images,
        LABELS,
        indices=INDICES,
        eps=eps,
        step_size=step,
        norm="l2",
        num_steps=2,
    )
    return jax.jit(lambda key, images: run(key, images, 0.1, 0.05))(new_key(), IMAGES)


ATTACKS = {name: _attack(name, **options) for name, options in SMALL.items()} | {
    "pgd_stateful": _stateful,
    "autoattack": lambda: attacks.autoattack(new_key(), logits_fn, IMAGES, LABELS, **BOX),
}

LOSSES = {
    "cross_entropy": lambda: losses.cross_entropy(LOGITS, LABELS),
    "log_softmax": lambda: losses.log_softmax(LOGITS),
    "margin": lambda: losses.margin(LOGITS, LABELS),
    "dlr": lambda: losses.dlr(LOGITS, LABELS),
    "dlr_targeted": lambda: losses.dlr_targeted(LOGITS, LABELS, INDICES),
    "kl_divergence": lambda: losses.kl_divergence(LOGITS, OTHER),
}


def _per_norm(function):
    return lambda: [function(norm) for norm in ("linf", "l2", "l1")]


BALLS = {
    "norm_of": _per_norm(lambda norm: balls.norm_of(IMAGES, norm)),
    "project": _per_norm(
        lambda norm: [
            balls.project(IMAGES, IMAGES, norm=norm, eps=0.1, exact=exact)
            for exact in (False, True)
        ]
    ),
    "sample": _per_norm(lambda norm: balls.sample(new_key(), IMAGES, norm=norm, eps=0.1)),
    "ascent_step": _per_norm(
        lambda norm: balls.ascent_step(IMAGES, IMAGES, norm=norm, step_size=0.1)
    ),
}

AUGMENT = {
    "random_crop": lambda: augment.random_crop(new_key(), IMAGES, padding=1),
    "random_flip": lambda: augment.random_flip(new_key(), IMAGES),
    "random_resized_crop": lambda: augment.random_resized_crop(new_key(), IMAGES, size=3),
    "random_rotation": lambda: augment.random_rotation(new_key(), IMAGES),
    "augmentation": lambda: augment.augmentation("zero_crop_flip_rotate")(new_key(), IMAGES),
}


def _objective(factory):
    def call():
        objective = factory(apply_fn, eps=0.1, step_size=0.02, num_steps=2)

        @jax.jit
        def run(key, params, images, labels):
            adversarial, _ = objective.perturb(key, params, {}, images, labels)
            return jax.value_and_grad(objective.loss, has_aux=True)(
                params, {}, images, adversarial, labels
            )

        return run(new_key(), WEIGHTS, IMAGES, LABELS)

    return call


OBJECTIVES = {
    "adversarial_cross_entropy": _objective(objectives.adversarial_cross_entropy),
    "trades": _objective(objectives.trades),
}


def _entropy_sgd(**options):
    tx = optim.entropy_sgd(0.1, key=new_key(), n_in=2, **options)
    update = jax.jit(lambda s, p, b: tx.update(None, s, p, grad_fn=grad_fn, batches=b))
    return update(jax.jit(tx.init)(PARAMS), PARAMS, BATCHES)


def _stepwise():
    tx = optim.entropy_sgd_stepwise(0.1, key=new_key(), n_in=2)
    state, params = jax.jit(tx.init)(PARAMS), PARAMS
    step = jax.jit(lambda s, p: tx.update(jax.grad(quadratic)(p), s, p))
    for _ in range(3):
        updates, state = step(state, params)
        params = jax.jit(optax.apply_updates)(params, updates)
    return state, params


OPTIM = {
    "entropy_sgd": lambda: [_entropy_sgd(second_order=second) for second in (False, True)],
    "entropy_sgd_stepwise": _stepwise,
    "slow_params": lambda: optim.slow_params(*_stepwise()),
    "awp_value_and_grad": lambda: jax.jit(
        optim.awp_value_and_grad(quadratic, 0.1, weight_decay=0.1)
    )(PARAMS),
    "awp_perturbation": lambda: jax.jit(optim.awp_perturbation)(PARAMS, PARAMS, HALF),
    "langevin_chain": lambda: jax.jit(
        lambda key, params, batches: optim.langevin_chain(
            key, params, grad_fn, batches, (), step_size=0.1, gamma=0.1, noise_std=0.1, momentum=0.5
        )
    )(new_key(), PARAMS, BATCHES),
    "langevin_step": lambda: jax.jit(
        lambda key, p: optim.langevin_step(key, p, p, p, step_size=0.1, gamma=0.1, noise_std=0.1)
    )(new_key(), PARAMS),
    "noise_std": lambda: jax.jit(
        lambda x: [
            optim.noise_std(x, step_size=0.1, convention=name)
            for name in ("ucla", "paper", "temperature")
        ]
    )(TWO),
    "nesterov_momentum": lambda: jax.jit(lambda p: optim.nesterov_momentum(p, p, momentum=0.9))(
        PARAMS
    ),
    "add_weight_decay": lambda: jax.jit(lambda p: optim.add_weight_decay(p, p, 0.1))(PARAMS),
}


def _objective_of(**options):
    return objectives.adversarial_cross_entropy(
        apply_fn, eps=0.1, step_size=0.05, num_steps=1, **options
    )


def _program(**options):
    return training.Program(apply_fn, _objective_of(), batch_size=4, **options)


def _train():
    tx = training.sgd(training.step_decay(0.1, num_epochs=4, batches_per_epoch=2))
    create = jax.jit(lambda params: training.TrainState.create(params, {}, tx))
    data = training.DeviceData(EIGHT_BIT, CLASSES)
    program = _program(weight_perturbation=0.01, clean_pass=True)
    return program.sgd_steps(tx)(create(WEIGHTS), data, new_key(), FOUR)


def _advance():
    phases = [
        training.Phase(3, lambda first, n_in: training.sgd(0.1)),
        training.Phase(5, lambda first, n_in: optim.entropy_sgd(0.1, n_in=n_in, noise=0.0), n_in=2),
    ]
    program, key = _program(phases=phases), new_key()
    state = jax.jit(lambda params: training.TrainState.create(params, {}, program))(WEIGHTS)
    data = training.DeviceData(EIGHT_BIT, CLASSES)
    for count in (2, 1, 2):
        state, metrics = program.advance(state, data, key, count)
    return metrics


def _train_entropy():
    tx = optim.entropy_sgd(0.1, key=new_key(), n_in=2)
    create = jax.jit(lambda params: training.TrainState.create(params, {}, tx))
    data = training.DeviceData(EIGHT_BIT, CLASSES)
    state, _ = _program().entropy_step(tx, 2)(create(WEIGHTS), data, new_key())
    objective = _objective_of(attack_bn="eval")
    return _program().refresh_stats(2, objective.perturb)(state, data, new_key())


TRAINING = {
    "sgd_steps": _train,
    "entropy_step": _train_entropy,
    "advance": _advance,
    "sgd": lambda: jax.jit(training.sgd(0.1).init)(WEIGHTS),
    "step_decay": lambda: jax.jit(training.step_decay(0.1, num_epochs=4, batches_per_epoch=2))(
        FOUR
    ),
    "make_predict": lambda: training.make_predict(apply_fn, **BOX, step_size=0.05, num_steps=1)(
        WEIGHTS, {}, new_key(), EIGHT_BIT, CLASSES, PLACES
    ),
    "to_float": lambda: training.to_float(EIGHT_BIT),
}


def _network(module, size, gradient=True):
    def call():
        images = jax.device_put(np.full((2, size, size, 3), 0.5, np.float32))
        variables = jax.jit(module.init)(new_key(), images)
        apply = lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"])
        if not gradient:
            return jax.jit(apply)(variables, images)
        loss = lambda p, v, x: (apply({**v, "params": p}, x)[0] ** 2).sum()
        return jax.jit(jax.grad(loss))(variables["params"], variables, images)

    return call


def _torch_files():
    module = models.preact_resnet18(4, width=2)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))

    def state_dicts():
        models.from_torch_state_dict(models.to_torch_state_dict(module, variables), module)

    def files():
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "weights.pt")
            for save in (models.save_torch, models.save_safetensors):
                save(file, module, variables)
                models.load(file, module)

    return {
        "save_safetensors": files,
        "to_torch_state_dict": state_dicts,
        "from_torch_state_dict": state_dicts,
        "save_torch": files,
        "load_torch": files,
        "load": files,
    }


def _convolved(images):
    kernel = jnp.ones((2, 1, 3, 3), images.dtype)
    return jax.lax.conv(images.transpose(0, 3, 1, 2), kernel, (1, 1), "SAME").sum()


def _natively():
    with models.native_convolutions():
        jax.jit(models.fast_convolutions(_convolved))(IMAGES)


MODELS = _torch_files() | {
    "preact_resnet18": _network(models.preact_resnet18(4, width=2), 8, gradient=False),
    "wide_resnet34_10": _network(
        models.wide_resnet34_10(4, depth=10, widen_factor=1), 8, gradient=False
    ),
    "wide_resnet": _network(
        models.wide_resnet(4, depth=10, width=1, mean=None, std=None, standardize="image"),
        8,
        gradient=False,
    ),
    "dm_wide_resnet": _network(
        models.dm_wide_resnet(4, depth=10, width=1, mean_sparse=True), 8, gradient=False
    ),
    "dm_preact_resnet18": _network(
        models.dm_preact_resnet18(4, width=2, blocks=(1, 1)), 8, gradient=False
    ),
    "resnet18_cifar": _network(models.resnet18_cifar(4, width=2, blocks=(1, 1)), 8, gradient=False),
    "resnet50_cifar": _network(models.resnet50_cifar(4, width=2, blocks=(1, 1)), 8, gradient=False),
    "resnet18": _network(models.resnet18(4, width=2, blocks=(1, 1)), 16, gradient=False),
    "resnet50": _network(models.resnet50(4, width=2, blocks=(1, 1)), 16, gradient=False),
    "wide_resnet50_2": _network(models.wide_resnet50_2(4, width=2, blocks=(1,)), 8, gradient=False),
    **{
        name: _network(models.build(name, num_classes=4, **SMALL_MODELS[name]), 8, gradient=False)
        for name in SMALL_MODELS
        if name.startswith(("xcit", "convnext"))
    },
    "small_convnet": _network(models.small_convnet(4), 8),
    "cifar_convnet": _network(models.cifar_convnet(4), 8),
    "mlp": _network(models.mlp(4, hidden=(5,)), 4),
    "build": _network(models.build("small_convnet", num_classes=3), 8),
    "conv2d": lambda: jax.jit(
        jax.grad(lambda x, k: models.conv2d(x, k, strides=2, padding=1).sum())
    )(IMAGES, jax.device_put(np.ones((3, 3, 1, 2), np.float32))),
    "fast_convolutions": lambda: jax.jit(jax.grad(models.fast_convolutions(_convolved)))(IMAGES),
    "native_convolutions": _natively,
}
