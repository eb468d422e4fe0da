"""TRADES with AWP and EntropySGD for three quarters of the run (tuned).

Command:   python -m experiments.cifar10 --config=configs/trades_awp_ensgd_tuned.py
Time:      as TRADES+AWP.
Paper:     Table 2, CIFAR-10, WideResNet-34-10: 56.3 +- 0.1 % under AutoAttack (mean +- std, 3 runs;
           checkpoint chosen on test PGD-20). EntropySGD for 150 of 200 epochs, then SGD; alpha is
           0.75 again.
"""

from experiments import settings


def get_config(scale=None):
    config = settings.base(scale)
    config.method = "trades_awp_ensgd_tuned"
    config.objective = "trades"
    config.awp.enabled = True
    config.optimizer = "entropy_sgd"
    config.entropy.alpha = 0.75
    config.entropy.stop_at = 0.75
    return config.lock()
