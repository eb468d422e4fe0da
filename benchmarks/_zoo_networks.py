"""What RobustBench's public networks are: class, sizes, normalization, tensors' names and shapes.

Networks are made without numbers: PyTorch's constructors of tensors are sent to its "meta" device,
and only what is made from numbers, such as a mean to subtract, exists.
"""

import contextlib
import io
import math
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import numpy as np

from jaxadv.models import zoo

_DATASETS = {"cifar10": "cifar_10", "cifar100": "cifar_100", "imagenet": "imagenet"}
_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_SIDES = {"Crop288": 288}
# Files with weights of several epochs, and those that RobustBench takes.
_PARTS = {"Andriushchenko2020Understanding": "last"}
# Wrappers whose forward normalizes the images and calls that of the class they derive from.
_WRAPPERS = {
    "Augustin2020AdversarialNet", "Augustin2020AdversarialWideNet", "Chen2020EfficientNet",
    "Ding2020MMANet", "Engstrom2019RobustnessNet", "Hendrycks2019UsingNet",
    "Rice2020OverfittingNet", "Rice2020OverfittingNetL2", "Rony2019DecouplingNet",
    "Wong2020FastNet", "Wu2020AdversarialNet",
}  # fmt: skip


def describe(name: str, dataset: str, threat: str) -> dict[str, Any]:
    """The part of a registry's entry that its network determines.

    Args:
        name: RobustBench's id.
        dataset: "cifar10", "cifar100" or "imagenet".
        threat: "linf" or "l2".

    Returns:
        network: the public class; architecture and options of :func:`jaxadv.models.build`, or None
        if there is none for the class; mean, std, preprocessing, side, part, parameters and
        tensors, see :class:`jaxadv.models.zoo.Entry`.
    """
    model, preprocessing = make(name, dataset, threat)
    side = 32 if dataset != "imagenet" else _SIDES.get(preprocessing or "", 224)
    shapes = tensors(model)
    wrapped = list(model.children())[-1] if _is_normalizer(model) else model
    architecture, options = _architecture(wrapped)
    normalization = _normalization(model, side) if architecture else None
    if normalization is None:
        mean, std, architecture, options = None, None, None, {}
    elif normalization == "standardize":
        mean, std, options = None, None, options | {"standardize": "image"}
    else:
        mean, std = normalization
    return {
        "network": type(wrapped).__name__,
        "architecture": architecture,
        "options": options,
        "mean": mean,
        "std": std,
        "preprocessing": preprocessing,
        "side": side,
        "part": _PARTS.get(name),
        "parameters": _parameters(model, shapes),
        "tensors": zoo.fingerprint(shapes),
    }


def make(name: str, dataset: str, threat: str) -> tuple[Any, str | None]:
    """The public network without its numbers, and the name of its images' preparation."""
    import timm  # pyright: ignore[reportMissingImports]
    from robustbench.model_zoo import enums, models  # pyright: ignore[reportMissingImports]

    norm = {"linf": "Linf", "l2": "L2"}[threat]
    known = f"{name.lower().replace('-', '_')}_{dataset}_{threat}"
    if timm.is_model(known):
        model = _made(
            lambda: timm.create_model(known, num_classes=_CLASSES[dataset], pretrained=False)
        )
        return model, _timm_preparation(model) if dataset == "imagenet" else None
    data = getattr(enums.BenchmarkDataset, _DATASETS[dataset])
    row = models.model_dicts[data][enums.ThreatModel(norm)][name]
    return _made(row["model"]), row.get("preprocessing")


def tensors(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that a network's file must have, by name.

    Left out are counters and thresholds' statistics of training, a normalization's mean and
    deviation, and the copy of the first stage that WideResNet's forward never calls.
    """
    found = {}
    for name, value in model.state_dict().items():
        name = name.removeprefix("model.")
        parts = name.split(".")
        if parts[0] == "sub_block1" or parts[-1] in zoo.UNCOUNTED:
            continue
        if len(parts) <= 2 and parts[-1] in ("mean", "std", "mu", "sigma"):
            continue
        found[name] = tuple(value.shape)
    return found


def _parameters(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Numbers that training learns, of those tensors."""
    named = ((name.removeprefix("model."), value) for name, value in model.named_parameters())
    return sum(value.numel() for name, value in named if name in shapes)


def _made(build: Callable[[], Any]) -> Any:
    try:
        return _constructed(build, numbers=False)
    except RuntimeError:  # a constructor that looks at its numbers
        return _constructed(build, numbers=True)


def _constructed(build: Callable[[], Any], *, numbers: bool) -> Any:
    import torch  # pyright: ignore[reportMissingImports]
    import torchvision  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]
    from torch.overrides import TorchFunctionMode  # pyright: ignore[reportMissingImports]

    constructors = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full}

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            if function in constructors and not numbers:
                kwargs["device"] = "meta"
            return function(*args, **kwargs)

    nothing = lambda *args, **kwargs: {}
    itself = lambda self, *args, **kwargs: self
    with contextlib.ExitStack() as stack:
        patch = lambda *place: stack.enter_context(mock.patch.object(*place))
        patch(torch.hub, "load_state_dict_from_url", nothing)
        patch(torchvision.models._api, "load_state_dict_from_url", nothing)
        patch(nn.Module, "load_state_dict", nothing)
        patch(nn.Module, "cuda", itself)
        patch(torch.Tensor, "cuda", itself)
        stack.enter_context(Mode())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # some tell of their sizes
        return build().eval()


def _is_normalizer(model: Any) -> bool:
    return [name for name, _ in model.named_children()] == ["normalize", "model"]


def _architecture(model: Any) -> tuple[str | None, dict[str, Any]]:
    """A name and options of :func:`jaxadv.models.build`; None where there is no such network."""
    kind = type(model).__name__
    place = type(model).__module__
    if kind in _WRAPPERS:
        kind, place = type(model).__mro__[1].__name__, type(model).__mro__[1].__module__
    make = _ARCHITECTURES.get((place.removeprefix("robustbench.model_zoo.architectures."), kind))
    return (None, {}) if make is None else make(model)


def _wide(model: Any) -> tuple[str, dict[str, Any]]:
    blocks = len(model.block1.layer)
    width = model.block1.layer[0].conv1.out_channels // 16
    return "wide_resnet", {"depth": 6 * blocks + 4, "width": width}


def _dm_wide(model: Any) -> tuple[str | None, dict[str, Any]]:
    first = model.layer[0].block
    if type(first[0].relu_0).__name__ not in ("Swish", "SiLU"):
        return None, {}
    sizes = {"depth": 6 * len(first) + 4, "width": first[0].conv_0.out_channels // 16}
    sparse = {"mean_sparse": True} if hasattr(model, "meansparse_end") else {}
    return "dm_wide_resnet", sizes | {"activation": "silu"} | sparse


def _robust_wide(model: Any) -> tuple[str | None, dict[str, Any]]:
    """WideResNets with numbers of blocks and channels of their own."""
    deepmind = hasattr(model, "init_conv")
    stages = [
        part.block if deepmind else part.layer
        for part in (model.layer if deepmind else model.blocks)
    ]
    stem = model.init_conv if deepmind else model.stem_conv
    second = "conv_1" if deepmind else "conv2"
    options: dict[str, Any] = {
        "blocks": [len(stage) for stage in stages],
        "channels": [
            part.out_channels for part in (stem, *(getattr(stage[0], second) for stage in stages))
        ],
    }
    activation = getattr(model, "act1" if hasattr(model, "act1") else "relu")
    options["activation"] = {"SiLU": "silu", "ReLU": "relu"}[type(activation).__name__]
    if not deepmind:
        names = "huang2022" if hasattr(model, "norm1") else "huang2021"
        return "wide_resnet", options | {"names": names}
    first: Any = stages[0][0]
    if first.se is None or first.se_order != 2:
        return None, {}
    options["squeeze"] = first.se.fc1.out_channels / options["channels"][1]
    sparse = {"mean_sparse": True} if hasattr(model, "meansparse_end") else {}
    return "dm_wide_resnet", options | sparse


def _preact(model: Any) -> tuple[str | None, dict[str, Any]]:
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    if [len(stage) for stage in stages] != [2, 2, 2, 2]:
        return None, {}
    # The second version of the block ignores the option: its shortcut reads what is activated.
    second = type(model.layer1[0]).__name__ == "PreActBlockV2"
    activated = second or model.layer2[0].out_shortcut
    return "preact_resnet18", {
        "last_norm": bool(model.bn_before_fc),
        "shortcut_input": "activated" if activated else "raw",
    }


def _small_resnet(model: Any) -> tuple[str | None, dict[str, Any]]:
    stages = [len(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)]
    names: dict[tuple[str, tuple[int, ...]], str] = {
        ("BasicBlock", (2, 2, 2, 2)): "resnet18",
        ("Bottleneck", (3, 4, 6, 3)): "resnet50",
    }
    name = names.get((type(model.layer1[0]).__name__, tuple(stages)))
    return (None, {}) if name is None else (f"{name}_cifar", {})


def _resnet(model: Any) -> tuple[str | None, dict[str, Any]]:
    blocks = [len(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)]
    kinds: dict[tuple[str, int], str] = {
        ("BasicBlock", 64): "resnet18",
        ("Bottleneck", 64): "resnet50",
        ("Bottleneck", 128): "wrn50_2",
    }
    name = kinds.get((type(model.layer1[0]).__name__, model.layer1[0].conv1.out_channels))
    expected = [2, 2, 2, 2] if name == "resnet18" else [3, 4, 6, 3]
    return (name, {}) if name and blocks == expected else (None, {})


def _xcit(model: Any) -> tuple[str | None, dict[str, Any]]:
    name = {384: "xcit_small12", 512: "xcit_medium12", 768: "xcit_large12"}.get(model.embed_dim)
    if name is None or len(model.blocks) != 12:
        return None, {}
    return name, {"patch_size": int(model.patch_embed.patch_size)}


def _convnext(model: Any) -> tuple[str | None, dict[str, Any]]:
    depths = [len(stage.blocks) for stage in model.stages]
    width = model.stages[0].blocks[0].conv_dw.out_channels
    sizes = {(96, 9): "tiny", (96, 27): "small", (128, 27): "base", (192, 27): "large"}
    name = sizes.get((width, depths[2]))
    if name is None or any(
        type(part).__name__.startswith("MeanSparse") for part in model.modules()
    ):
        return None, {}
    stem = {"ConvBlock1": {"conv_stem": True}, "ConvBlock3": {"conv_stem": True}}
    return f"convnext_{name}", stem.get(type(model.stem).__name__, {})


_ARCHITECTURES: dict[tuple[str, str], Callable[[Any], tuple[str | None, dict[str, Any]]]] = {
    ("wide_resnet", "WideResNet"): _wide,
    ("dm_wide_resnet", "DMWideResNet"): _dm_wide,
    ("Meansparse_wrn_70_16", "DMWideResNet"): _dm_wide,
    ("Meansparse_wrn_94_16", "MeanSparse_DMWideResNet"): _dm_wide,
    ("Meansparse_ra_wrn_70_16", "NormalizedWideResNet"): _robust_wide,
    ("robustarch_wide_resnet", "NormalizedWideResNet"): _robust_wide,
    ("robust_wide_resnet", "RobustWideResNet"): _robust_wide,
    ("robust_resnet", "PreActResNet"): _robust_wide,
    ("boosting_wide_resnet", "BoostingWideResNet"): lambda model: (
        "wide_resnet",
        _wide(model)[1] | {"bias_last": False, "cosine": True},
    ),
    ("dm_wide_resnet", "DMPreActResNet"): lambda model: (
        "dm_preact_resnet18",
        {"activation": "silu"},
    ),
    ("resnet", "PreActResNet"): _preact,
    ("resnet", "ResNet"): _small_resnet,
    ("torchvision.models.resnet", "ResNet"): _resnet,
    ("timm.models.xcit", "Xcit"): _xcit,
    ("timm.models.convnext", "ConvNeXt"): _convnext,
}


class _Reached(Exception):
    """The input of the first convolution."""


def _normalization(model: Any, side: int) -> Any:
    """Mean and deviation, measured at the input of the first convolution.

    Returns:
        (None, None) for images as they are, two lists, "standardize" for every image's own mean
        and deviation, or None for anything else.
    """
    rng = np.random.default_rng(0)
    random = rng.uniform(size=(1, 3, side, side)).astype(np.float32)
    zeros, ones = np.zeros_like(random), np.ones_like(random)
    seen = [_first_input(model, images) for images in (zeros, ones, random)]
    inner = tuple((have - side) // 2 for have in seen[2].shape[2:])
    if any(margin < 0 for margin in inner) or seen[2].shape[1] != 3:
        return None
    cut = tuple(slice(margin, margin + side) for margin in inner)
    low, high, found = (part[:, :, *cut] for part in seen)
    own = (random - random.mean()) / random.std(ddof=1)
    if np.abs(found - own).max() < 1e-4:
        return "standardize"
    low, high = low[0, :, 0, 0].astype(np.float64), high[0, :, 0, 0].astype(np.float64)
    std = 1 / (high - low)
    mean = -low * std
    affine = (random - mean[:, None, None]) / std[:, None, None]
    if np.abs(found - affine).max() > 1e-4:
        return None
    if np.abs(mean).max() < 1e-6 and np.abs(std - 1).max() < 1e-6:
        return None, None
    return [_snapped(float(v), model) for v in mean], [_snapped(float(v), model) for v in std]


def _first_input(model: Any, images: np.ndarray) -> np.ndarray:
    import torch  # pyright: ignore[reportMissingImports]

    def stop(module, args):
        raise _Reached(args[0])

    hooks = [
        module.register_forward_pre_hook(stop)
        for module in model.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            model(torch.from_numpy(images))
    except _Reached as reached:
        return reached.args[0].numpy()
    finally:
        for hook in hooks:
            hook.remove()
    raise ValueError(f"{type(model).__name__} has no convolution")


def _snapped(value: float, model: Any) -> float:
    """The number of the network that a measured one must be, or else six digits of it."""
    names = ("mean", "std", "mu", "sigma")
    candidates = [
        float(str(np.float32(number)))
        for name, buffer in model.named_buffers()
        if name.split(".")[-1] in names and buffer.numel() == 3 and buffer.device.type == "cpu"
        for number in buffer.flatten().tolist()
    ]
    near = [number for number in candidates if math.isclose(number, value, rel_tol=2e-6)]
    return min(near, key=lambda number: abs(number - value)) if near else round(value, 6)


def _timm_preparation(model: Any) -> str:
    """Which pixels timm's configuration takes: scaled to a side, its central square."""
    config = (list(model.children())[-1] if _is_normalizer(model) else model).default_cfg
    side = config["input_size"][1]
    kind = "Bicubic" if config["interpolation"] == "bicubic" else ""
    return f"{kind}Res{math.floor(side / config['crop_pct'])}Crop{side}"
