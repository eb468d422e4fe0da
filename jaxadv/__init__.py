"""Adversarial robustness in JAX: training, attacks and the theory of smoothness.

Value contract of the whole library: images are float32 of shape (B, H, W, C) in [0, 1];
radii and step sizes are in the same units (``8 / 255``); labels are int32 of shape (B,);
a model is a function from images to logits of shape (B, K); losses are per example.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from . import attacks as attacks
    from . import augment as augment
    from . import balls as balls
    from . import interop as interop
    from . import losses as losses
    from . import models as models
    from . import objectives as objectives
    from . import optim as optim
    from . import theory as theory
    from . import training as training

__all__ = [
    "__version__",
    "attacks",
    "augment",
    "balls",
    "interop",
    "losses",
    "models",
    "objectives",
    "optim",
    "theory",
    "training",
]


def __getattr__(name: str) -> ModuleType:
    """Imports a subpackage on first use, so that ``import jaxadv`` stays cheap."""
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
