"""Models of other frameworks as ``logits_fn``, and the attacks for their users."""

from ._numpy import numpy_logits_fn as numpy_logits_fn
from ._torch import torch_logits_fn as torch_logits_fn
from ._torch_attack import TorchAttackResult as TorchAttackResult
from ._torch_attack import torch_attack as torch_attack
