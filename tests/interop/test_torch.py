"""PyTorch modules under every attack, as on the same network in JAX. Skipped without PyTorch."""

import copy
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from jaxadv import attacks
from jaxadv.interop import torch_attack, torch_logits_fn
from tests.helpers import autoattack_cases as cases
from tests.helpers.compilations import compilations
from tests.helpers.small_attacks import SMALL

SIZE = (8, 8, 3)


class Network(torch.nn.Module):
    """The network of the parity cases, with a BatchNorm that does nothing in evaluation mode."""

    def __init__(self, net):
        super().__init__()
        features = len(net.kernel)
        self.conv = torch.nn.Conv2d(3, features, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(features, eps=0)
        self.head = torch.nn.Linear(net.weights.shape[1], len(net.weights), bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.from_numpy(net.kernel))
            self.conv.bias.copy_(torch.from_numpy(net.bias))
            self.head.weight.copy_(torch.from_numpy(net.weights))
        self.threads = set()

    def forward(self, x):
        self.threads.add(threading.get_ident())
        assert x.is_contiguous() and x.shape[1:] == (3, *SIZE[:2])
        y = torch.relu(self.norm(self.conv(x * 2 - 1)))
        return self.head(y.view(len(y), -1))


def pair(seed=5):
    net = cases.net(seed, SIZE, classes=5, activation="relu", dtype=np.float32)
    return Network(net).eval(), cases.jax_logits(net)


def data(same, number=12):
    x = cases.images(6, number, SIZE, np.float32)
    return x, np.asarray(same(jnp.asarray(x)).argmax(1)).astype(np.int32)


@pytest.mark.parametrize("name", SMALL)
def test_every_attack_does_what_it_does_to_the_network_in_jax(name):
    module, same = pair()
    x, y = data(same)
    attack = getattr(attacks, name)
    run = lambda logits_fn: attack(
        jax.random.key(0), logits_fn, x, y, norm="linf", eps=0.02, **SMALL[name]
    )
    ours, wanted = jax.tree.leaves(run(torch_logits_fn(module))), jax.tree.leaves(run(same))
    for one, other in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)
    assert len(module.threads) == 1 and threading.get_ident() not in module.threads
    assert all(parameter.grad is None for parameter in module.parameters())


def test_autoattack_under_no_grad_and_its_counts():
    module, same = pair()
    x, y = data(same, 40)
    options = dict(eps=0.01, num_steps=10, num_queries=50, progress=False)
    with torch.no_grad():
        found = attacks.autoattack(0, torch_logits_fn(module), x, y, **options)
    wanted = attacks.autoattack(0, same, x, y, **options)
    assert (found.robust == wanted.robust).all() and found.evaluations == wanted.evaluations
    assert 0 < found.robust.sum() < 40


def test_weights_changed_in_place_and_another_module_take_effect_without_compilation():
    module, _ = pair()
    logits_fn = torch_logits_fn(module)
    x = cases.images(1, 4, SIZE, np.float32)
    y = np.zeros(4, np.int32)
    run = lambda f: np.asarray(
        attacks.pgd(jax.random.key(0), f, x, y, norm="linf", eps=0.1, step_size=0.05, num_steps=3)
    )
    first = run(logits_fn)
    other, same = pair(9)
    with compilations() as compiled:
        second = run(torch_logits_fn(other))
        module.load_state_dict(other.state_dict())
        third = run(logits_fn)
    assert not compiled
    np.testing.assert_array_equal(second, third)
    np.testing.assert_allclose(second, run(same), atol=1e-4)
    assert np.abs(first - second).max() > 0.01


def test_a_store_tells_weights_apart(tmp_path):
    module, same = pair()
    module.unused = torch.nn.Parameter(torch.zeros(1))  # the logits are the same with another
    x, y = data(same, 4)
    options = dict(eps=0.01, version="custom", attacks="square", num_queries=5, progress=False)
    run = lambda module: attacks.autoattack(
        0, torch_logits_fn(module), x, y, store=tmp_path / "store", **options
    )
    run(module)
    run(copy.deepcopy(module))  # equal weights resume
    with torch.no_grad():
        module.unused += 1
    with pytest.raises(ValueError, match="store"):
        run(module)


class Noisy(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module, self.dropout = module, torch.nn.Dropout(0.2)

    def forward(self, x):
        return self.dropout(self.module(x + 0.02 * torch.randn_like(x)))


def test_a_randomized_module_draws_from_the_key_of_each_image():
    module, same = pair()
    noisy = Noisy(module).eval()
    noisy.dropout.train()
    logits_fn = torch_logits_fn(noisy, randomized=True)
    x, y = data(same)
    before = torch.get_rng_state()
    options = dict(eps=0.01, version="rand", num_steps=3, progress=False)
    first = attacks.autoattack(0, logits_fn, x, y, **options)
    again = attacks.autoattack(0, logits_fn, x, y, batch_size=4, **options)
    assert first.broken_by.tolist() == again.broken_by.tolist()
    np.testing.assert_array_equal(first.images, again.images)
    assert torch.equal(before, torch.get_rng_state())
    draw = lambda seed: np.asarray(logits_fn(x[:1], jax.random.key(seed)))
    assert (draw(1) == draw(1)).all() and (draw(1) != draw(2)).any()


def test_float64():
    module, same = pair()
    with jax.enable_x64(True):
        x = jnp.asarray(cases.images(1, 2, SIZE))
        found = jax.grad(lambda x: (torch_logits_fn(module.double())(x) ** 2).sum())(x)
        assert found.dtype == np.float64
        wanted = jax.grad(lambda x: (same(x) ** 2).sum())(x.astype(np.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def train(module):
    module.norm.train()
    return module


def half(module):
    return module.half()


def scattered(module):
    module.head.to("meta")
    return module


def tuples(module):
    module.register_forward_hook(lambda module, inputs, output: (output, 0))
    return module


def flat(module):
    module.register_forward_hook(lambda module, inputs, output: output[:, 0])
    return module


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (train, "module is in training mode (norm); call module.eval() first"),
        (half, "module has float16 parameters (conv.weight) and the images are float32"),
        (scattered, "module is on cpu and meta; move it to one device"),
        (tuples, "module returns a tuple; return the logits alone"),
        (flat, "module returns shape (1,) for 1 images"),
    ],
)
def test_modules_that_would_be_evaluated_wrongly(spoil, message):
    module, same = pair()
    x, y = data(same, 2)
    with pytest.raises(ValueError) as caught:
        attacks.fgsm(0, torch_logits_fn(spoil(module)), x, y, norm="linf", eps=0.1)
    assert message in str(caught.value)


class InPlace(torch.nn.Module):
    """Normalizes its input in place, as ``torchvision.transforms.functional.normalize`` can."""

    def __init__(self, module):
        super().__init__()
        self.module, self.act = module, torch.nn.ReLU(inplace=True)

    def forward(self, x):
        return self.module(self.act(x.mul_(0.5).add_(0.25)))


def test_a_module_may_change_its_images_in_place():
    module, same = pair()
    x, y = data(same, 4)
    given = x.copy()
    logits_fn, wanted = torch_logits_fn(InPlace(module).eval()), lambda x: same(x * 0.5 + 0.25)
    grad = lambda f: jax.grad(lambda x: (f(x) ** 2).sum())(jnp.asarray(x))
    np.testing.assert_allclose(grad(logits_fn), grad(wanted), rtol=1e-3, atol=1e-3)
    attack = lambda f: attacks.pgd(0, f, x, y, norm="linf", eps=0.1, step_size=0.05, num_steps=3)
    np.testing.assert_allclose(attack(logits_fn), attack(wanted), atol=1e-4)
    np.testing.assert_array_equal(x, given)


class Shifted(torch.nn.Module):
    """Subtracts a float64 buffer, as one made from a NumPy array is."""

    def __init__(self, module, cast):
        super().__init__()
        self.module, self.cast = module, cast
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5, dtype=torch.float64))

    def forward(self, x):
        y = x - (self.mean.to(x.dtype) if self.cast else self.mean)
        return y.flatten(1)[:, :5] if self.module is None else self.module(y)


@pytest.mark.parametrize("bare", [False, True])
def test_buffers_of_another_dtype_matter_only_where_the_module_does_not_convert_them(bare):
    x = cases.images(1, 2, SIZE, np.float32)
    whole = lambda cast: Shifted(None if bare else pair()[0], cast).eval()
    wanted = np.asarray(torch_logits_fn(whole(True).float())(x))
    np.testing.assert_array_equal(torch_logits_fn(whole(True))(x), wanted)
    with pytest.raises(
        ValueError, match=r"float64 buffers \(mean\).*deepcopy\(module\).float\(\)$"
    ):
        torch_logits_fn(whole(False))(x)
    np.testing.assert_allclose(torch_logits_fn(whole(False).float())(x), wanted, atol=1e-5)


class Double(torch.nn.Module):
    def forward(self, x):
        return 2 * x


def test_a_part_replaced_by_a_custom_one_is_in_training_mode_until_eval():
    module, same = pair()
    x = cases.images(1, 2, SIZE, np.float32)
    module.norm = Double()
    with pytest.raises(ValueError, match=r"training mode \(norm\); call module.eval\(\) first"):
        torch_logits_fn(module)(x)
    np.testing.assert_allclose(torch_logits_fn(module.eval())(x), 2 * same(x), atol=1e-3)


def test_images_without_a_dtype_in_common_are_refused():
    module, _ = pair()
    x = cases.images(1, 2, SIZE, np.float32)
    with pytest.raises(ValueError, match=r"images has dtype bfloat16; pass images.astype"):
        torch_logits_fn(module)(jnp.asarray(x, jnp.bfloat16))
    for name in ("bfloat16", "double"):
        other = getattr(copy.deepcopy(module), name)()
        found = str(other.head.weight.dtype).removeprefix("torch.")
        with pytest.raises(ValueError, match=rf"module has {found} parameters.*\.float\(\)$"):
            torch_logits_fn(other)(x)


def test_tensors_given_to_attacks_are_refused():
    module, same = pair()
    x, y = data(same, 2)
    options = dict(eps=0.1, norm="linf")
    attack = lambda x, y: attacks.fgsm(0, torch_logits_fn(module), x, y, **options)
    with pytest.raises(
        ValueError, match=r"^images is a torch Tensor; pass images.numpy\(\) in NHWC"
    ):
        attack(torch.from_numpy(x), y)
    for labels in (torch.from_numpy(y), torch.from_numpy(y).long()):
        with pytest.raises(
            ValueError, match=r"^labels is a torch Tensor; pass labels.numpy\(\), or"
        ):
            attacks.autoattack(0, torch_logits_fn(module), x, labels, **options)


def test_an_error_of_the_module_during_an_attack_reaches_the_caller():
    module, same = pair()
    x, y = data(same, 2)

    def fail(module, inputs, output):
        if len(output) > 1:
            raise RuntimeError("the network is gone")

    module.register_forward_hook(fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="the network is gone"):
        jax.block_until_ready(attacks.fgsm(0, torch_logits_fn(module), x, y, norm="linf", eps=0.1))


def test_arguments():
    module, same = pair()
    with pytest.raises(ValueError, match="module is a function; pass a torch.nn.Module"):
        torch_logits_fn(same)
    with pytest.raises(ValueError, match="via='onnx'"):
        torch_logits_fn(module, via="onnx")
    with pytest.raises(ValueError, match="module takes images only"):
        torch_logits_fn(module)(np.zeros((1, *SIZE), np.float32), jax.random.key(0))


def test_torch_attack_on_tensors_and_on_a_loader():
    module, same = pair()
    x, y = data(same)
    images, labels = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y).long()
    options = dict(norm="linf", eps=0.01, num_steps=5, num_queries=20, progress=False)
    found = torch_attack(module, (images, labels), **options)
    wanted = attacks.autoattack(0, torch_logits_fn(module), x, y, **options)
    assert found.robust.tolist() == wanted.robust.tolist()
    assert found.images.shape == images.shape and found.images.dtype == torch.float32
    assert (found.images - images).abs().max() <= 0.01 + 1e-6
    still = module(found.images).argmax(1) == labels
    assert still.tolist() == found.robust.tolist()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 5)
    again = torch_attack(module, loader, **options)
    assert torch.equal(again.images, found.images)


def test_torch_attack_says_what_is_missing():
    module, same = pair()
    x, y = data(same, 2)
    images, labels = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)
    for given, message in [
        (images, "data is a tensor without labels"),
        ([], "data is an empty loader"),
        ([images], "a batch is a Tensor"),
        ([(images, y)], "labels is a ndarray; pass a tensor"),
        ((torch.from_numpy(x), labels), "expected (N, C, H, W)"),
        ((images.bfloat16(), labels), "images has dtype torch.bfloat16; pass images.float() in"),
        ((images.byte(), labels), "images has dtype torch.uint8; pass images.float() / 255"),
        ((images, labels.float()), "labels has dtype torch.float32; pass class indices"),
        (
            [(images, labels), (images[..., 1:], labels)],
            "data has images of shapes (2, 3, 8, 8) and (2, 3, 8, 7); resize",
        ),
    ]:
        with pytest.raises(ValueError) as caught:
            torch_attack(module, given, eps=0.1)
        assert message in str(caught.value)
    with pytest.raises(ValueError, match=r"device='cuda' is not an option.*module.to\(device\)"):
        torch_attack(module, (images, labels), eps=0.1, device="cuda")
    with pytest.raises(ValueError, match="randomized=True"):
        torch_attack(module, (images, labels), eps=0.1, version="rand")


def test_torchax_compiles_the_module():
    try:
        import torchax

        torchax.default_env()
    except ImportError:
        pytest.skip("torchax is not installed")
    except AttributeError as error:
        with pytest.raises(ImportError, match="torchax does not support PyTorch"):
            torch_logits_fn(pair()[0], via="torchax")
        pytest.skip(f"torchax does not support this PyTorch: {error}")
    module, same = pair()
    x, y = data(same)
    logits_fn = torch_logits_fn(module, via="torchax")
    module.threads.clear()
    options = dict(eps=0.01, num_steps=5, num_queries=20, progress=False)
    found = attacks.autoattack(0, logits_fn, x, y, **options)
    wanted = attacks.autoattack(0, same, x, y, **options)
    assert (found.robust == wanted.robust).all()
    assert "callback" not in str(jax.make_jaxpr(logits_fn)(x))
    with torch.no_grad():
        module.head.weight.mul_(2)
    np.testing.assert_allclose(logits_fn(x), 2 * same(jnp.asarray(x)), atol=1e-3)
