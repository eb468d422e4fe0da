"""Large images on CPU: rows one after the other, and blocks of fewer rows."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks
from jaxadv.attacks import _rows
from jaxadv.attacks._autoattack import memory
from jaxadv.attacks._fab import projections

SIDE = 106  # a row just large enough
NORMS = ["linf", "l2", "l1"]


def linear(x):
    flat = x.reshape(x.shape[0], -1)
    signs = jnp.where(jnp.arange(flat.shape[1]) % 3 == 0, 1.0, -1.0)
    return jnp.stack([flat @ signs, -(flat @ signs)], 1) / flat.shape[1]


def pictures(number):
    return jax.random.uniform(jax.random.key(0), (number, SIDE, SIDE, 3))


def loops(function, *args):
    """How many loops over rows a function has."""
    return str(jax.make_jaxpr(function)(*args)).count("platform_index")


@pytest.mark.parametrize("norm", NORMS)
def test_large_rows_are_projected_one_by_one_with_the_same_result(norm):
    points = pictures(3).reshape(3, -1)
    normals = jax.random.normal(jax.random.key(1), points.shape) * jnp.array([[1], [1e-9], [5]])
    offsets = (normals * points).sum(1) * jnp.array([0.1, -0.3, 2])  # the last is out of reach
    found = projections.project_to_hyperplane(points, normals, offsets, norm)
    together = projections._solve(points, normals, offsets, norm=norm)
    np.testing.assert_allclose(found, together, rtol=1e-4, atol=1e-6)
    project = functools.partial(projections.project_to_hyperplane, norm=norm)
    assert loops(project, points, normals, offsets)
    assert not loops(project, points[:1], normals[:1], offsets[:1])
    assert not loops(project, points[:, :3000], normals[:, :3000], offsets)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", ["apgd", "square"])
def test_an_attack_on_large_images_is_that_on_each_of_them(norm, attack):
    images, eps = pictures(2), {"linf": 1e-3, "l2": 0.1, "l1": 3.0}[norm]
    labels = linear(images).argmax(1).astype("int32")
    options = {"num_steps": 4} if attack == "apgd" else {"num_queries": 6}
    run = lambda rows: getattr(attacks, attack)(
        0, linear, images[rows], labels[rows], norm=norm, eps=eps, indices=jnp.arange(2)[rows],
        **options,
    )  # fmt: skip
    both = run(slice(0, 2))
    for row in range(2):
        alone = run(slice(row, row + 1))
        np.testing.assert_allclose(both.images[row], alone.images[0], atol=2e-6)
        assert both.success[row] == alone.success[0]


def test_rows_keep_their_place():
    rows = jnp.arange(3.0)[:, None] + jnp.zeros((3, 2**15))
    factors = jnp.array([1.0, 10.0, 100.0])
    scaled = _rows.one_by_one(lambda rows, factors: {"a": rows * factors[:, None], "b": factors})
    found = scaled(rows, factors)
    np.testing.assert_array_equal(found["a"][:, 7], [0, 10, 200])
    np.testing.assert_array_equal(found["b"], factors)


def test_blocks_of_large_images_have_fewer_rows():
    rows = {side: memory.cpu_rows((side, side, 3)) for side in (28, 32, 64, 96, 128, 160, 224, 384)}
    assert rows == {28: 8, 32: 8, 64: 8, 96: 2, 128: 2, 160: 1, 224: 1, 384: 1}


@pytest.mark.slow
def test_verdicts_on_large_images_do_not_depend_on_the_batch_size(tmp_path):
    images = pictures(3)
    labels = linear(images).argmax(1).astype("int32")
    found = [
        attacks.autoattack(
            jax.random.key(0), linear, images, labels, eps=0.002, num_steps=3, num_queries=20,
            progress=False, batch_size=batch_size, store=tmp_path / str(batch_size),
        )
        for batch_size in (1, 3)
    ]  # fmt: skip
    np.testing.assert_array_equal(found[0].images, found[1].images)
    assert found[0].robust.tolist() == found[1].robust.tolist()


@pytest.mark.slow
def test_accelerators_keep_the_batch_together():
    fab = lambda x, y: attacks.fab_targeted(
        jax.random.key(0), linear, x, y, norm="l2", eps=0.1, num_steps=2, num_targets=1
    )
    images = jax.ShapeDtypeStruct((2, SIDE, SIDE, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)
    loops = {}
    for platform in ("cpu", "cuda", "tpu"):
        lowered = jax.export.export(jax.jit(fab), platforms=[platform])(images, labels)
        loops[platform] = lowered.mlir_module().count("stablehlo.while")
    assert loops == {"cpu": 3, "cuda": 2, "tpu": 2}
