"""Models by name, for configuration files."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from ._resnet import resnet50, wide_resnet50_2
from ._layers import unknown_name
from ._preact_resnet import preact_resnet18
from ._small import mlp, small_convnet
from ._wide_resnet import wide_resnet34_10

MODELS: dict[str, Callable[..., nn.Module]] = {
    "preact_resnet18": preact_resnet18,
    "wrn34_10": wide_resnet34_10,
    "resnet50": resnet50,
    "wrn50_2": wide_resnet50_2,
    "small_convnet": small_convnet,
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
    known = [k for k in MODELS[name].__annotations__ if k != "return"]
    for option in options:
        if option not in known:
            raise unknown_name(f"option of {name!r}", option, known)
    return MODELS[name](**options)
