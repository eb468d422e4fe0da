"""Networks as linen modules, with weights loaded from PyTorch files.

Every module maps images (B, H, W, C) in [0, 1] to logits (B, K) and includes normalization:

>>> import jax, jax.numpy as jnp
>>> module = preact_resnet18(10, width=4)
>>> variables = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
>>> logits_fn = lambda images: module.apply(variables, images)
>>> logits_fn(jnp.zeros((2, 32, 32, 3))).shape
(2, 10)

With ``train=True`` BatchNorm uses the statistics of the batch, and
``module.apply(variables, images, train=True, mutable=["batch_stats"])`` also returns the updated
running statistics.
"""

from .._rewrite import fast_convolutions as fast_convolutions
from .._rewrite import native_convolutions as native_convolutions
from . import zoo as zoo
from ._conv import Conv as Conv
from ._conv import Gradients as Gradients
from ._conv import conv2d as conv2d
from ._convnext import ConvNeXt as ConvNeXt
from ._convnext import convnext_base as convnext_base
from ._convnext import convnext_large as convnext_large
from ._convnext import convnext_small as convnext_small
from ._convnext import convnext_tiny as convnext_tiny
from ._layers import ACTIVATIONS as ACTIVATIONS
from ._layers import BatchNorm as BatchNorm
from ._layers import MeanSparse as MeanSparse
from ._load import load as load
from ._preact_resnet import PreActResNet as PreActResNet
from ._preact_resnet import dm_preact_resnet18 as dm_preact_resnet18
from ._preact_resnet import preact_resnet18 as preact_resnet18
from ._registry import MODELS as MODELS
from ._registry import build as build
from ._resnet import ResNet as ResNet
from ._resnet import resnet18 as resnet18
from ._resnet import resnet18_cifar as resnet18_cifar
from ._resnet import resnet50 as resnet50
from ._resnet import resnet50_cifar as resnet50_cifar
from ._resnet import wide_resnet50_2 as wide_resnet50_2
from ._small import MLP as MLP
from ._small import SmallConvNet as SmallConvNet
from ._small import cifar_convnet as cifar_convnet
from ._small import mlp as mlp
from ._small import small_convnet as small_convnet
from ._torch import from_torch_state_dict as from_torch_state_dict
from ._torch import load_torch as load_torch
from ._torch import save_safetensors as save_safetensors
from ._torch import save_torch as save_torch
from ._torch import to_torch_state_dict as to_torch_state_dict
from ._wide_resnet import WideResNet as WideResNet
from ._wide_resnet import dm_wide_resnet as dm_wide_resnet
from ._wide_resnet import wide_resnet as wide_resnet
from ._wide_resnet import wide_resnet34_10 as wide_resnet34_10
from ._xcit import XCiT as XCiT
from ._xcit import xcit_large12 as xcit_large12
from ._xcit import xcit_medium12 as xcit_medium12
from ._xcit import xcit_small12 as xcit_small12
