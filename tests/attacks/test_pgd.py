"""PGD and FGSM: the contract of every attack, degenerate cases, and an independent NumPy PGD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, balls, losses
from tests.helpers.compilations import compilations

NORMS = ["linf", "l2", "l1"]
THREATS = {
    "linf": dict(norm="linf", eps=0.1, step_size=0.025),
    "l2": dict(norm="l2", eps=0.5, step_size=0.125),
    "l1": dict(norm="l1", eps=2.0, step_size=0.5),
}
KEY = jax.random.key(0)
SHAPE = (4, 4, 2)


class Tensor:
    """An array whose dtype NumPy does not know, as PyTorch's."""

    __module__, dtype = "torch", object.__new__(type("dtype", (), {}))

    def __init__(self, array):
        self.shape = array.shape


def test_tensors_of_other_frameworks_are_refused_by_name():
    x, y = np.full((2, *SHAPE), 0.5, np.float32), np.zeros(2, np.int32)
    for images, labels, message in [
        (Tensor(x), y, "images is a torch Tensor; pass images.numpy() in NHWC, or use jaxadv"),
        (x, Tensor(y), "labels is a torch Tensor; pass labels.numpy(), or use jaxadv.interop."),
    ]:
        with pytest.raises(ValueError) as caught:
            attacks.fgsm(0, lambda x: x[:, 0, 0], images, labels, norm="linf", eps=0.1)
        assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def network(dtype=np.float32, seed=0, classes=5):
    rng = np.random.default_rng(seed)
    size = int(np.prod(SHAPE))
    first = jnp.array(rng.normal(size=(size, 16)) / 3, dtype)
    second = jnp.array(rng.normal(size=(16, classes)), dtype)

    def logits_fn(images):
        return jnp.tanh(images.reshape(images.shape[0], -1) @ first) @ second

    return logits_fn


LOGITS_FN = network()


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    images = jnp.array(rng.uniform(size=(12, *SHAPE)), jnp.float32)
    return images, LOGITS_FN(images).argmax(1).astype(jnp.int32)


def run(images, labels, norm="linf", key=KEY, **options):
    options = THREATS.get(norm, {}) | dict(num_steps=8) | options
    return attacks.pgd(key, LOGITS_FN, images, labels, **options)


def norms(deltas, norm):
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    return np.linalg.norm(np.asarray(deltas).reshape(len(deltas), -1), order, axis=1)


def loss_at(images, labels):
    return np.asarray(losses.cross_entropy(LOGITS_FN(images), labels))


OPTIONS = {
    "plain": {},
    "restarts": {"num_restarts": 3},
    "keep best": {"keep_best": True},
    "zero start": {"init": "zero"},
    "early stop": {"early_stop": True},
    "no steps": {"num_steps": 0},
    "dlr": {"loss": losses.dlr},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_contract_of_an_attack(batch, norm, options):
    images, labels = batch
    adversarial = run(images, labels, norm, **options)
    assert adversarial.shape == images.shape and adversarial.dtype == images.dtype
    assert (norms(adversarial - images, norm) <= THREATS[norm]["eps"] * (1 + 1e-5)).all()
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    np.testing.assert_array_equal(adversarial, run(images, labels, norm, **options))


@pytest.mark.parametrize("norm", NORMS)
def test_attack_raises_the_loss_and_breaks_the_linear_regime(batch, norm):
    images, labels = batch
    adversarial = run(images, labels, norm, num_steps=20)
    assert (loss_at(adversarial, labels) > loss_at(images, labels)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_no_radius_is_the_identity(batch, norm):
    images, labels = batch
    adversarial = run(images, labels, norm, eps=0.0)
    np.testing.assert_allclose(adversarial, images, atol=1e-7)


@pytest.mark.parametrize("options", ["plain", "restarts", "keep best"])
@pytest.mark.parametrize("norm", NORMS)
def test_an_image_alone_or_in_another_batch_gets_the_same_attack(batch, norm, options):
    images, labels = batch
    options = OPTIONS[options]
    whole = run(images, labels, norm, **options)
    order = jnp.array([9, 0, 3])
    some = run(images[order], labels[order], norm, indices=order, **options)
    np.testing.assert_allclose(some, whole[order], atol=2e-6)


def test_another_key_or_index_is_another_start(batch):
    images, labels = batch
    start = lambda **o: np.asarray(run(images, labels, num_steps=0, **o))
    assert not np.allclose(start(), start(key=jax.random.key(1)))
    assert not np.allclose(start(), start(indices=jnp.arange(12) + 12))


@pytest.mark.parametrize("norm", NORMS)
def test_inside_jit_and_vmap_as_outside(batch, norm):
    images, labels = batch
    expected = run(images, labels, norm)
    inside = jax.jit(lambda key, x, y: run(x, y, norm, key=key))(KEY, images, labels)
    np.testing.assert_allclose(inside, expected, atol=1e-6)
    pairs = lambda a: a.reshape(2, 6, *a.shape[1:])
    mapped = jax.vmap(lambda x, y, i: run(x, y, norm, indices=i))(
        pairs(images), pairs(labels), pairs(jnp.arange(12))
    )
    np.testing.assert_allclose(mapped.reshape(images.shape), expected, atol=2e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_against_an_independent_numpy_pgd(x64, norm):
    rng = np.random.default_rng(3)
    images = rng.uniform(size=(6, *SHAPE))
    labels = rng.integers(0, 5, 6)
    logits_fn = network(np.float64)
    gradient_of = jax.grad(lambda x: losses.cross_entropy(logits_fn(x), jnp.array(labels)).sum())
    threat = THREATS[norm]
    eps, eta = threat["eps"], threat["step_size"]
    start = np.clip(images + rng.uniform(-eps, eps, images.shape) / 20, 0, 1)
    points = start.copy()
    for _ in range(7):
        g = np.asarray(gradient_of(jnp.array(points)))
        for i in range(6):
            if norm == "linf":
                delta = np.clip(points[i] + eta * np.sign(g[i]) - images[i], -eps, eps)
            elif norm == "l2":
                delta = points[i] + eta * g[i] / (np.linalg.norm(g[i]) + 1e-10) - images[i]
                delta *= min(1.0, eps / np.linalg.norm(delta))
            else:
                free = np.where(g[i] > 0, points[i] < 1, points[i] > 0)
                k = np.unravel_index(np.argmax(np.abs(g[i]) * free), g[i].shape)
                delta = points[i] - images[i]
                delta[k] += eta * np.sign(g[i][k])
                while np.abs(delta).sum() > eps + 1e-13:  # soft threshold, one coordinate at a time
                    support = np.abs(delta) > 0
                    cut = (np.abs(delta).sum() - eps) / support.sum()
                    cut = min(cut, np.abs(delta)[support].min())
                    delta = np.sign(delta) * np.maximum(np.abs(delta) - cut, 0)
            points[i] = np.clip(images[i] + delta, 0, 1)
    got = attacks.pgd(
        KEY,
        logits_fn,
        jnp.array(images),
        jnp.array(labels),
        num_steps=7,
        init=jnp.array(start),
        **threat,
    )
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, points, atol=1e-10)


def test_one_step_of_size_eps_from_the_image_is_fgsm(batch):
    images, labels = batch
    gradients = jax.grad(lambda x: losses.cross_entropy(LOGITS_FN(x), labels).sum())(images)
    expected = jnp.clip(images + 0.1 * jnp.sign(gradients), 0, 1)
    fgsm = attacks.fgsm(KEY, LOGITS_FN, images, labels, norm="linf", eps=0.1)
    np.testing.assert_allclose(fgsm, expected, atol=1e-6)
    one = run(images, labels, init="zero", num_steps=1, step_size=0.1)
    np.testing.assert_array_equal(one, fgsm)


@pytest.mark.parametrize("norm", NORMS)
def test_fgsm_contract(batch, norm):
    images, labels = batch
    eps = THREATS[norm]["eps"]
    adversarial = attacks.fgsm(KEY, LOGITS_FN, images, labels, norm=norm, eps=eps)
    assert (norms(adversarial - images, norm) <= eps * (1 + 1e-5)).all()
    assert loss_at(adversarial, labels).mean() > loss_at(images, labels).mean()
    random_start = attacks.fgsm(
        KEY, LOGITS_FN, images, labels, norm=norm, eps=eps, init="uniform", step_size=1.25 * eps
    )
    assert not np.allclose(random_start, adversarial)


def test_no_steps_from_zero_is_the_image_and_from_uniform_the_sample(batch):
    images, labels = batch
    np.testing.assert_array_equal(run(images, labels, init="zero", num_steps=0), images)
    first = balls.sample(jax.random.fold_in(KEY, 0), images, norm="linf", eps=0.1)
    np.testing.assert_allclose(run(images, labels, num_steps=0), first, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_more_restarts_never_lower_the_loss(batch, norm):
    images, labels = batch
    one = loss_at(run(images, labels, norm, num_restarts=1), labels)
    five = loss_at(run(images, labels, norm, num_restarts=5), labels)
    assert (five >= one - 1e-5).all() and (five > one + 1e-4).any()


@pytest.mark.parametrize("norm", NORMS)
def test_keep_best_is_the_best_iterate(batch, norm):
    images, labels = batch
    # On a wavy loss the last iterate is often not the best.
    wavy = lambda x: jnp.sin(20 * LOGITS_FN(x))
    attack = lambda **o: attacks.pgd(KEY, wavy, images, labels, **THREATS[norm] | o)
    loss = lambda x: np.asarray(losses.cross_entropy(wavy(x), labels))
    best = loss(attack(num_steps=3, keep_best=True))
    iterates = [loss(attack(num_steps=n)) for n in range(4)]
    np.testing.assert_allclose(best, np.max(iterates, axis=0), atol=1e-3)
    assert (best > iterates[-1] + 1e-2).any()


def test_early_stop_freezes_what_is_misclassified_and_nothing_else(batch):
    images, labels = batch
    labels = labels.at[:4].set((labels[:4] + 1) % 5)
    stopped = run(images, labels, init="zero", early_stop=True)
    np.testing.assert_array_equal(stopped[:4], images[:4])
    free = run(images, labels, init="zero")
    kept = np.asarray(LOGITS_FN(free).argmax(1) == labels)
    np.testing.assert_array_equal(stopped[kept], free[kept])


def test_a_given_start_is_projected_first(batch):
    images, labels = batch
    far = jnp.ones_like(images)
    start = run(images, labels, init=far, num_steps=0)
    np.testing.assert_allclose(start, jnp.minimum(images + 0.1, 1.0), atol=1e-7)


def test_no_gradient_reaches_parameters_through_the_attack(batch):
    images, labels = batch

    def loss(scale):
        logits_fn = lambda x: LOGITS_FN(x) * scale
        adversarial = attacks.pgd(KEY, logits_fn, images, labels, num_steps=3, **THREATS["l2"])
        return adversarial.sum()

    assert jax.grad(loss)(1.0) == 0.0


def test_an_image_without_gradient_stays_at_its_start(batch):
    images, labels = batch
    flat = lambda x: jnp.zeros((x.shape[0], 5)) * x.sum()
    adversarial = attacks.pgd(
        KEY, flat, images, labels, num_steps=5, init="zero", **THREATS["linf"]
    )
    np.testing.assert_array_equal(adversarial, images)


def test_another_radius_compiles_nothing(batch):
    images, labels = batch
    call = lambda eps: attacks.pgd(
        KEY, LOGITS_FN, images, labels, norm="linf", eps=eps, step_size=0.01, num_steps=3
    )
    call(0.1)
    with compilations() as compiled:
        call(0.2)
    assert not compiled


BAD = {
    "dtype": (lambda x, y: (jnp.asarray(x * 255, jnp.uint8), y), {}, r"dtype uint8.*/ 255"),
    "range": (lambda x, y: (x * 255, y), {}, r"spans \[.*rescale to \[0, 1\]"),
    "negative": (lambda x, y: (x - 0.5, y), {}, r"images spans"),
    "nan": (lambda x, y: (x.at[0].set(jnp.nan), y), {}, "not finite"),
    "rank": (lambda x, y: (x[0], y), {}, r"images\[None\]"),
    "empty": (lambda x, y: (x[:0], y[:0]), {}, "empty"),
    "label range": (lambda x, y: (x, y.at[0].set(5)), {}, r"labels contains 5.*5 classes"),
    "label sign": (lambda x, y: (x, y.at[0].set(-1)), {}, r"labels contains -1"),
    "label dtype": (lambda x, y: (x, y.astype(float)), {}, r"labels.astype"),
    "label shape": (lambda x, y: (x, y[:3]), {}, r"labels has shape \(3,\) for 12 images"),
    "eps sign": (lambda x, y: (x, y), {"eps": -0.1}, r"eps=-0.1"),
    "eps size": (lambda x, y: (x, y), {"eps": 8.0}, r"eps=8.0.*8/255"),
    "eps nan": (lambda x, y: (x, y), {"eps": float("nan")}, "finite"),
    "step": (lambda x, y: (x, y), {"step_size": -1.0}, r"step_size=-1.0"),
    "norm": (lambda x, y: (x, y), {"norm": "L2"}, r"norm='L2'.*did you mean 'l2'"),
    "steps": (lambda x, y: (x, y), {"num_steps": -1}, r"num_steps=-1"),
    "restarts": (lambda x, y: (x, y), {"num_restarts": 0}, r"num_restarts=0"),
    "init": (lambda x, y: (x, y), {"init": "unifrom"}, r"did you mean 'uniform'"),
    "init shape": (lambda x, y: (x, y), {"init": jnp.zeros((1, 2))}, r"init has shape \(1, 2\)"),
    "indices": (lambda x, y: (x, y), {"indices": jnp.arange(3)}, r"indices has shape \(3,\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_error(batch, name):
    change, options, message = BAD[name]
    images, labels = change(*batch)
    with pytest.raises(ValueError, match=message):
        attacks.pgd(KEY, LOGITS_FN, images, labels, **THREATS["linf"] | dict(num_steps=1) | options)


def test_a_model_without_logits_is_an_error(batch):
    images, labels = batch
    with pytest.raises(ValueError, match=r"logits_fn returns shape \(12,\)"):
        attacks.pgd(KEY, lambda x: x.sum((1, 2, 3)), images, labels, num_steps=1, **THREATS["linf"])
