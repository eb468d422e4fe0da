"""Files of ours in the public PyTorch classes: they load strictly, and give equal logits.

Skipped where the packages are absent; ``make test-parity`` installs torch and robustbench, and the
networks of timm need timm and torchvision too.
"""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import models

torch = pytest.importorskip("torch")


def public(file):
    """A file of RobustBench's architectures, without its package, which needs many others."""
    package = importlib.util.find_spec("robustbench")
    if package is None:
        pytest.skip("robustbench is not installed")
    folder = pathlib.Path(package.submodule_search_locations[0])
    path = folder / "model_zoo" / "architectures" / f"{file}.py"
    spec = importlib.util.spec_from_file_location(file, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def deepmind(name, file="dm_wide_resnet", **options):
    return lambda: getattr(public(file), name)(activation_fn=torch.nn.SiLU, **options)


def resnet(block, kind="ResNet", **options):
    def make():
        file = public("resnet")
        return getattr(file, kind)(getattr(file, block), [1, 1, 1, 1], **options)

    return make


def timm(module, name, **options):
    def make():
        pytest.importorskip("timm")
        return getattr(importlib.import_module(f"timm.models.{module}"), name)(**options)

    return make


FEW = dict(blocks=(1, 1, 1, 1))
CASES = {
    "wide_resnet": (
        lambda: public("wide_resnet").WideResNet(10, 10, 2, bias_last=False),
        dict(depth=10, width=2, bias_last=False, mean=None, std=None),
    ),
    "dm_wide_resnet": (deepmind("DMWideResNet", depth=10, width=2), dict(depth=10, width=2)),
    "dm_preact_resnet18": (deepmind("DMPreActResNet"), {}),
    "preact_resnet18": (
        resnet("PreActBlock", "PreActResNet", bn_before_fc=True, out_shortcut=True),
        dict(mean=None, std=None, **FEW),
    ),
    "resnet18_cifar": (resnet("BasicBlock"), dict(mean=None, std=None, **FEW)),
    "resnet50_cifar": (resnet("Bottleneck"), dict(mean=None, std=None, **FEW)),
    "xcit_small12": (
        timm("xcit", "Xcit", embed_dim=32, depth=2, num_heads=4, num_classes=10, tokens_norm=True),
        dict(width=32, depth=2, heads=4, mean=None, std=None),
    ),
    "convnext_tiny": (
        timm("convnext", "ConvNeXt", depths=(1, 1, 2, 1), dims=(8, 16, 32, 64), num_classes=10),
        dict(width=8, blocks=(1, 1, 2, 1), mean=None, std=None),
    ),
}


def compare(tmp_path, name, peer, options):
    module = models.build(name, num_classes=10, **options)
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(3, 32, 32, 3)).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if path[-1].key == "kernel":
            return noise / np.sqrt(np.prod(leaf.shape[:-1]))
        return (path[-1].key in ("scale", "var", "gamma")) + 0.3 * np.tanh(noise)

    variables = jax.tree.map_with_path(lambda p, s: jnp.asarray(draw(p, s), s.dtype), shapes)
    models.save_torch(tmp_path / "weights.pt", module, variables)
    peer.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)
    # In float64: in float32 rounding decides which values near its bound MeanSparse snaps.
    images = images.astype(np.float64)
    with torch.no_grad():
        expected = peer.double().eval()(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    assert np.abs(expected).max() > 0.1
    variables = models.load_torch(tmp_path / "weights.pt", module, dtype=np.float64)
    logits = jax.jit(module.apply)(variables, images)
    np.testing.assert_allclose(logits, expected, atol=1e-6 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", CASES)
def test_the_public_class_takes_our_file(tmp_path, x64, name):
    make, options = CASES[name]
    compare(tmp_path, name, make(), options)


def test_the_public_mean_sparse_takes_our_file(tmp_path, x64):
    make = deepmind("MeanSparse_DMWideResNet", "Meansparse_wrn_94_16", depth=10, width=2)
    compare(tmp_path, "dm_wide_resnet", make(), dict(depth=10, width=2, mean_sparse=True))
