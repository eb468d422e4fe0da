"""Optimizers: EntropySGD of both orders, the Langevin chain that it is made of, and AWP."""

from ._awp import awp_perturbation as awp_perturbation
from ._awp import awp_value_and_grad as awp_value_and_grad
from ._entropy_sgd import EntropySGDState as EntropySGDState
from ._entropy_sgd import entropy_sgd as entropy_sgd
from ._sgld import LangevinAverages as LangevinAverages
from ._sgld import add_weight_decay as add_weight_decay
from ._sgld import langevin_chain as langevin_chain
from ._sgld import langevin_step as langevin_step
from ._sgld import nesterov_momentum as nesterov_momentum
from ._sgld import noise_std as noise_std
from ._slow_params import slow_params as slow_params
from ._stepwise import EntropySGDStepwiseState as EntropySGDStepwiseState
from ._stepwise import entropy_sgd_stepwise as entropy_sgd_stepwise
