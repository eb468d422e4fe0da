"""Theory of adversarial losses: attack Jacobians, true smoothness, EntropySGD, landscapes.

Everything here computes in float64 by itself and leaves the precision of other code alone. To
transform a function of the theory (``jax.jit``, ``jax.vmap``, ...), enable 64 bits round the call:
``with jax.enable_x64(True): ...``.
"""

from ._entropy import GibbsMeasure as GibbsMeasure
from ._entropy import LocalEntropy as LocalEntropy
from ._entropy import gibbs_measure as gibbs_measure
from ._entropy import local_entropy as local_entropy
from ._entropy import local_entropy_grid as local_entropy_grid
from ._entropy_bounds import CovarianceBounds as CovarianceBounds
from ._entropy_bounds import covariance_bounds as covariance_bounds
from ._entropy_bounds import kink_curvature as kink_curvature
from ._entropy_bounds import lipschitz_bound as lipschitz_bound
from ._entropy_bounds import lipschitz_variance_bound as lipschitz_variance_bound
from ._entropy_bounds import weakly_convex_bounds as weakly_convex_bounds
from ._langevin import AverageWeights as AverageWeights
from ._langevin import LangevinDiagnostics as LangevinDiagnostics
from ._langevin import average_weights as average_weights
from ._langevin import effective_temperature as effective_temperature
from ._langevin import langevin_diagnostics as langevin_diagnostics
from ._langevin import langevin_trace as langevin_trace
from ._linear import linear_attack as linear_attack
from ._linear import linear_attack_jacobian as linear_attack_jacobian
from ._linear import linear_gradient as linear_gradient
from ._linear import linear_hessian as linear_hessian
from ._linear import linear_loss as linear_loss
from ._linear import linear_margin as linear_margin
from ._linear import linear_spectrum as linear_spectrum
from ._linear_bounds import LogisticConstants as LogisticConstants
from ._linear_bounds import adversarial_radius as adversarial_radius
from ._linear_bounds import annulus_smoothness as annulus_smoothness
from ._linear_bounds import collapse_threshold as collapse_threshold
from ._linear_bounds import cross_smoothness as cross_smoothness
from ._linear_bounds import local_smoothness_bound as local_smoothness_bound
from ._linear_bounds import logistic_constants as logistic_constants
from ._linear_bounds import theorem1_bound as theorem1_bound
from ._linear_bounds import theorem2_bound as theorem2_bound
from ._linear_bounds import theta_min_from_loss as theta_min_from_loss
from ._linear_kinks import LinearKinks as LinearKinks
from ._linear_kinks import LinearRegularity as LinearRegularity
from ._linear_kinks import linear_kinks as linear_kinks
from ._linear_kinks import linear_regularity as linear_regularity
from ._moreau import MoreauEnvelope as MoreauEnvelope
from ._moreau import moreau_envelope as moreau_envelope
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
