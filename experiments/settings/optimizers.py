"""First-order optimizers of training, by their name in ``config.optimizer``."""

from collections.abc import Callable

import optax

from jaxadv import training

# From (learning rate or schedule, momentum=..., weight_decay=...) to an optax optimizer.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"sgd": training.sgd}
