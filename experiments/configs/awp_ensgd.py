"""Adversarial weight perturbation with EntropySGD (AWP+EnSGD).

Command:   python -m experiments.cifar10 --config=configs/awp_ensgd.py
Time:      as AWP.
Paper:     Table 1, CIFAR-10, PreActResNet-18: 50.5 +- 0.2 % under AutoAttack (mean +- std, 3 runs;
           checkpoint chosen on test PGD-20). n_in 30; gamma_A is half its value with SGD.
"""

from experiments import settings


def get_config(scale=None):
    config = settings.base(scale)
    config.method = "awp_ensgd"
    config.awp.enabled = True
    config.optimizer = "entropy_sgd"
    return config.lock()
