"""TRADES with AWP and EntropySGD (TRADES+AWP+EnSGD).

Command:   python -m experiments.cifar10 --config=configs/trades_awp_ensgd.py
Time:      as TRADES+AWP.
Paper:     Table 2, CIFAR-10, WideResNet-34-10: 55.8 +- 0.3 % under AutoAttack (mean +- std, 3 runs;
           checkpoint chosen on test PGD-20). Both are off for the first epochs, as in TRADES+AWP.

The paper uses alpha = 0.3 here "because training becomes slow" with 0.75. As elsewhere, alpha is
read as the weight of the old average, so the newest iterate has weight 0.7.
"""

from experiments import settings


def get_config(scale=None):
    config = settings.base(scale)
    config.method = "trades_awp_ensgd"
    config.objective = "trades"
    config.awp.enabled = True
    config.optimizer = "entropy_sgd"
    config.entropy.alpha = 0.3
    return config.lock()
