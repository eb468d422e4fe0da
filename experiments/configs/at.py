"""Adversarial training (AT) with SGD.

Command:   python -m experiments.cifar10 --config=configs/at.py
Time:      200 epochs of PreActResNet-18; the AWP authors report 276 s per epoch on their GPU. On a
           CPU it is impractical: use --config=configs/at.py:laptop.
Paper:     Table 1, CIFAR-10, PreActResNet-18: 48.0 +- 0.2 % under AutoAttack (mean +- std, 3 runs;
           checkpoint chosen on test PGD-20).
"""

from experiments import settings


def get_config(scale=None):
    config = settings.base(scale)
    config.method = "at"
    return config.lock()
