"""Theory of adversarial losses: attack Jacobians, true smoothness, EntropySGD, landscapes.

Everything here computes in float64 by itself and leaves the precision of other code alone. To
transform a function of the theory (``jax.jit``, ``jax.vmap``, ...), enable 64 bits round the call:
``with jax.enable_x64(True): ...``.
"""

from ._toy import SWISH_MINIMISER as SWISH_MINIMISER
from ._toy import TOY_EPS as TOY_EPS
from ._toy import TOY_POINT as TOY_POINT
from ._toy import ToyAttack as ToyAttack
from ._toy import toy_attack as toy_attack
from ._toy import toy_gradient as toy_gradient
from ._toy import toy_kink_jump as toy_kink_jump
from ._toy import toy_loss as toy_loss
from ._toy import toy_margin_loss as toy_margin_loss
from ._toy import toy_pgd as toy_pgd
from ._toy import toy_weak_convexity as toy_weak_convexity
from ._toy_data import toy_dataset as toy_dataset
from ._toy_data import toy_dataset_loss as toy_dataset_loss
