"""APGD, auto-PGD."""

from .attack import apgd as apgd
from .attack import apgd_targeted as apgd_targeted
