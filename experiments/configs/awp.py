"""Adversarial training with adversarial weight perturbation (AWP), SGD.

Command:   python -m experiments.cifar10 --config=configs/awp.py
Time:      one more forward and backward pass per minibatch than AT; the AWP authors report 301 s
           per epoch on their GPU, and 276 s for AT.
Paper:     Table 1, CIFAR-10, PreActResNet-18: 49.9 +- 0.4 % under AutoAttack (mean +- std, 3 runs;
           checkpoint chosen on test PGD-20).
"""

from experiments import settings


def get_config(scale=None):
    config = settings.base(scale)
    config.method = "awp"
    config.awp.enabled = True
    return config.lock()
