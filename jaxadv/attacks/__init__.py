"""Attacks: functions from a model and clean images to adversarial images."""

from ._apgd import apgd as apgd
from ._apgd import apgd_targeted as apgd_targeted
from ._apgd.kernel import APGD as APGD
from ._autoattack import AutoAttackResult as AutoAttackResult
from ._autoattack import autoattack as autoattack
from ._fab import fab as fab
from ._fab import fab_targeted as fab_targeted
from ._fab.kernel import FAB as FAB
from ._kernel import Batch as Batch
from ._kernel import Kernel as Kernel
from ._kernel import Outcome as Outcome
from ._kernel import Search as Search
from ._pgd import fgsm as fgsm
from ._pgd import pgd as pgd
from ._pgd import pgd_stateful as pgd_stateful
from ._square import square as square
from ._square.kernel import Square as Square
