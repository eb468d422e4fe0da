"""AWP with second-order EntropySGD (AWP+2ndEnSGD).

Command:   python -m experiments.cifar10 --config=configs/awp_2nd_ensgd.py
Time:      as AWP, with one more copy of the parameters in memory.
Paper:     Table 3, CIFAR-10, PreActResNet-18: 50.4 +- 0.3 % under AutoAttack (mean +- std, 3 runs;
           checkpoint chosen on test PGD-20).
"""

from experiments import settings


def get_config(scale=None):
    config = settings.base(scale)
    config.method = "awp_2nd_ensgd"
    config.awp.enabled = True
    config.optimizer = "entropy_sgd"
    config.entropy.second_order = True
    return config.lock()
