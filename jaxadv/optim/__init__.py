"""Optimizers: first- and second-order EntropySGD, its Langevin chain, and AWP."""

from ._awp import awp_perturbation as awp_perturbation
from ._awp import awp_value_and_grad as awp_value_and_grad
from ._entropy_sgd.factory import entropy_sgd as entropy_sgd
from ._entropy_sgd.factory import entropy_sgd_stepwise as entropy_sgd_stepwise
from ._entropy_sgd.forms import EntropySGDState as EntropySGDState
from ._entropy_sgd.forms import EntropySGDStepwiseState as EntropySGDStepwiseState
from ._entropy_sgd.options import ENTROPY_SGD_PRESETS as ENTROPY_SGD_PRESETS
from ._entropy_sgd.options import EntropySGDOptions as EntropySGDOptions
from ._entropy_sgd.slow_params import slow_params as slow_params
from ._langevin import LangevinAverages as LangevinAverages
from ._langevin import langevin_chain as langevin_chain
from ._langevin import langevin_step as langevin_step
from ._langevin import noise_std as noise_std
from ._momentum import add_weight_decay as add_weight_decay
from ._momentum import nesterov_momentum as nesterov_momentum
