"""Attacks: functions from a model and clean images to adversarial images."""

from ._pgd import fgsm as fgsm
from ._pgd import pgd as pgd
from ._pgd import pgd_stateful as pgd_stateful
