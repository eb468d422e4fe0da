"""AutoAttack, the ensemble."""

from .ensemble import autoattack as autoattack
from .result import AutoAttackResult as AutoAttackResult
