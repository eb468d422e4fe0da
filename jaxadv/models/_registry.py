"""Models by name, for configuration files."""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from ._convnext import convnext_base, convnext_large, convnext_small, convnext_tiny
from ._layers import unknown_name
from ._preact_resnet import dm_preact_resnet18, preact_resnet18
from ._resnet import resnet18, resnet18_cifar, resnet50, resnet50_cifar, wide_resnet50_2
from ._small import cifar_convnet, mlp, small_convnet
from ._wide_resnet import dm_wide_resnet, wide_resnet, wide_resnet34_10
from ._xcit import xcit_large12, xcit_medium12, xcit_small12

MODELS: dict[str, Callable[..., nn.Module]] = {
    "preact_resnet18": preact_resnet18,
    "dm_preact_resnet18": dm_preact_resnet18,
    "wide_resnet": wide_resnet,
    "wrn34_10": wide_resnet34_10,
    "dm_wide_resnet": dm_wide_resnet,
    "resnet18_cifar": resnet18_cifar,
    "resnet50_cifar": resnet50_cifar,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "wrn50_2": wide_resnet50_2,
    "xcit_small12": xcit_small12,
    "xcit_medium12": xcit_medium12,
    "xcit_large12": xcit_large12,
    "convnext_tiny": convnext_tiny,
    "convnext_small": convnext_small,
    "convnext_base": convnext_base,
    "convnext_large": convnext_large,
    "small_convnet": small_convnet,
    "cifar_convnet": cifar_convnet,
    "mlp": mlp,
}


def build(name: str, **options: Any) -> nn.Module:
    """Make a model by name, with its function's options.

    Args:
      name: a key of `MODELS`.
      **options: options of the function.

    Returns:
      A linen module.

    Raises:
      ValueError: for an unknown name or option; suggests the closest one.

    Example:
      >>> build("small_convnet", num_classes=3).num_classes
      3
    """
    if name not in MODELS:
        raise unknown_name("name", name, MODELS)
    known = _options(MODELS[name])
    for option in options:
        if option not in known:
            raise unknown_name(f"option of {name!r}", option, known)
    return MODELS[name](**options)


def _options(function: Callable[..., nn.Module]) -> list[str]:
    """The options of a model's function, including those it passes on as ``**options``."""
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    if len(known) < len(parameters):
        module = function.__annotations__["return"]
        for other in MODELS.values():
            if other.__annotations__["return"] is module and "options" not in other.__annotations__:
                known += [option for option in _options(other) if option not in known]
    return known
