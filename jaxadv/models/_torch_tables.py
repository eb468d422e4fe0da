"""Names in PyTorch's state dicts: a table for each architecture, in the order of the state dict.

A row is a module's name in PyTorch, its path in the Flax variables, and its kind, which says what
tensors it has. Rows with {stage} (from 0), {stage1} (from 1) or {block} (from 0) are repeated for
as long as the network has such modules. Modules that a network lacks, such as a shortcut, are
skipped.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import numpy as np

from ._convnext import ConvNeXt
from ._preact_resnet import PreActResNet
from ._resnet import ResNet
from ._small import MLP, SmallConvNet
from ._wide_resnet import WideResNet
from ._xcit import XCiT

Axes: TypeAlias = tuple[int, ...] | Literal["flat"] | None
Table: TypeAlias = tuple[str, ...]


class Leaf(NamedTuple):
    """A tensor of a module.

    Attributes:
      suffix: of its name in PyTorch.
      collection: of the Flax variables, or "" for a buffer that has no counterpart.
      name: in Flax; "" if the module's path is already the tensor's.
      axes: the axes of ours in PyTorch's order; None keeps them. "flat" is a matrix that is applied
        to flattened images, channels first in PyTorch and last here.
      value: of a buffer that has no counterpart.
    """

    suffix: str
    collection: str = ""
    name: str = ""
    axes: Axes = None
    value: Any = None


_BIAS = Leaf(".bias", "params", "bias")
_AFFINE = (Leaf(".weight", "params", "scale"), _BIAS)
_RUNNING = (
    Leaf(".running_mean", "batch_stats", "mean"),
    Leaf(".running_var", "batch_stats", "var"),
)
KINDS: dict[str, tuple[Leaf, ...]] = {
    "conv": (Leaf(".weight", "params", "kernel", (3, 2, 0, 1)), _BIAS),
    "linear": (Leaf(".weight", "params", "kernel", (1, 0)), _BIAS),
    "layer": _AFFINE,
    "value": (Leaf("", "params"),),
    "flat": (Leaf(".weight", "params", "kernel", "flat"), _BIAS),
    "norm": (*_AFFINE, *_RUNNING, Leaf(".num_batches_tracked", value=np.int64(0))),
    "sparse": (
        *_RUNNING,
        Leaf(".threshold", "batch_stats", "threshold"),
        Leaf(".flag_update_statistics", value=np.int64(0)),
        Leaf(".batch_num", value=np.float32(0)),
    ),
}
# Buffers that a file may have and that are not read.
UNREAD = tuple({leaf.suffix for kind in KINDS.values() for leaf in kind if not leaf.collection})

PREACT_AWP: Table = (
    """
    conv1                          conv1                          conv
    """,
    """
    layer{stage1}.{block}.bn1         layer{stage1}_{block}.bn1       norm
    layer{stage1}.{block}.conv1       layer{stage1}_{block}.conv1     conv
    layer{stage1}.{block}.bn2         layer{stage1}_{block}.bn2       norm
    layer{stage1}.{block}.conv2       layer{stage1}_{block}.conv2     conv
    layer{stage1}.{block}.shortcut.0  layer{stage1}_{block}.shortcut  conv
    """,
    """
    bn                             bn                             norm
    linear                         linear                         linear
    """,
)
PREACT_DEEPMIND: Table = (
    """
    conv_2d                        conv1                          conv
    """,
    """
    layer_{stage}.{block}.batchnorm_0  layer{stage1}_{block}.bn1       norm
    layer_{stage}.{block}.conv_2d_1    layer{stage1}_{block}.conv1     conv
    layer_{stage}.{block}.batchnorm_1  layer{stage1}_{block}.bn2       norm
    layer_{stage}.{block}.conv_2d_2    layer{stage1}_{block}.conv2     conv
    layer_{stage}.{block}.shortcut     layer{stage1}_{block}.shortcut  conv
    """,
    """
    batchnorm                      bn                             norm
    logits                         linear                         linear
    """,
)


def _wide_resnet(stem: str, block: str, parts: str, last: str) -> Table:
    """From the names of a block's five parts and of the last two modules."""
    bn1, conv1, bn2, conv2, shortcut = parts.split()
    bn, linear = last.split()
    ours = "block{stage1}_{block}"
    return (
        f"{stem} conv1 conv",
        f"""
    {block}.{bn1}         {ours}.bn1       norm
    {block}.meansparse_0  {ours}.sparse1   sparse
    {block}.{conv1}       {ours}.conv1     conv
    {block}.{bn2}         {ours}.bn2       norm
    {block}.meansparse_1  {ours}.sparse2   sparse
    {block}.{conv2}       {ours}.conv2     conv
    {block}.{shortcut}    {ours}.shortcut  conv
    {block}.se.fc1        {ours}.se.fc1    conv
    {block}.se.fc2        {ours}.se.fc2    conv
    {block}.meansparse_2  {ours}.sparse3   sparse
    """,
        f"{bn} bn1 norm\n {linear} fc linear\n meansparse_end sparse1 sparse",
    )


_TRADES = "bn1 conv1 bn2 conv2 convShortcut"
_DEEPMIND = "batchnorm_0 conv_0 batchnorm_1 conv_1 shortcut"
WIDE: dict[str, Table] = {
    "trades": _wide_resnet("conv1", "block{stage1}.layer.{block}", _TRADES, "bn1 fc"),
    "deepmind": _wide_resnet(
        "init_conv", "layer.{stage}.block.{block}", _DEEPMIND, "batchnorm logits"
    ),
    "huang2021": _wide_resnet("stem_conv", "blocks.{stage}.layer.{block}", _TRADES, "bn1 fc"),
    "huang2022": _wide_resnet(
        "stem_conv", "blocks.{stage}.layer.{block}", "bn1 conv1 bn2 conv2 shortcut.0", "norm1 fc"
    ),
}


XCIT: Table = (
    "cls_token                     cls_token                      value",
    *(
        f"""
    patch_embed.proj.{2 * i}.0     patch{i}                       conv
    patch_embed.proj.{2 * i}.1     patch{i}_bn                    norm
    """
        for i in range(4)
    ),
    "pos_embed.token_projection    pos_embed                      conv",
    """
    blocks.{block}.gamma1          block_{block}.gamma1           value
    blocks.{block}.gamma3          block_{block}.gamma3           value
    blocks.{block}.gamma2          block_{block}.gamma2           value
    blocks.{block}.norm1           block_{block}.norm1            layer
    blocks.{block}.attn.temperature  block_{block}.attn.temperature  value
    blocks.{block}.attn.qkv        block_{block}.attn.qkv         linear
    blocks.{block}.attn.proj       block_{block}.attn.proj        linear
    blocks.{block}.norm3           block_{block}.norm3            layer
    blocks.{block}.local_mp.conv1  block_{block}.local1           conv
    blocks.{block}.local_mp.bn     block_{block}.local_bn         norm
    blocks.{block}.local_mp.conv2  block_{block}.local2           conv
    blocks.{block}.norm2           block_{block}.norm2            layer
    blocks.{block}.mlp.fc1         block_{block}.mlp.fc1          linear
    blocks.{block}.mlp.fc2         block_{block}.mlp.fc2          linear
    """,
    """
    cls_attn_blocks.{block}.gamma1    class_{block}.gamma1        value
    cls_attn_blocks.{block}.gamma2    class_{block}.gamma2        value
    cls_attn_blocks.{block}.norm1     class_{block}.norm1         layer
    cls_attn_blocks.{block}.attn.q    class_{block}.attn.q        linear
    cls_attn_blocks.{block}.attn.k    class_{block}.attn.k        linear
    cls_attn_blocks.{block}.attn.v    class_{block}.attn.v        linear
    cls_attn_blocks.{block}.attn.proj  class_{block}.attn.proj    linear
    cls_attn_blocks.{block}.norm2     class_{block}.norm2         layer
    cls_attn_blocks.{block}.mlp.fc1   class_{block}.mlp.fc1       linear
    cls_attn_blocks.{block}.mlp.fc2   class_{block}.mlp.fc2       linear
    """,
    """
    norm                           norm                           layer
    head                           head                           linear
    """,
)


def _convnext(module: ConvNeXt) -> Table:
    stem = "stem.0 stem0 conv\n stem.1 stem0_norm layer"
    if module.stem_convs:
        stem = "\n".join(
            f"stem.stem.{3 * i} stem{i} conv\n stem.stem.{3 * i + 1} stem{i}_norm layer"
            for i in range(module.stem_convs)
        )
    stages = [
        line
        for stage in range(len(module.blocks))
        for line in (
            f"""
    stages.{stage}.downsample.0        down{stage}_norm               layer
    stages.{stage}.downsample.1        down{stage}                    conv
    """,
            f"""
    stages.{stage}.blocks.{{block}}.gamma    stage{stage}_{{block}}.gamma    value
    stages.{stage}.blocks.{{block}}.conv_dw  stage{stage}_{{block}}.conv_dw  conv
    stages.{stage}.blocks.{{block}}.norm     stage{stage}_{{block}}.norm     layer
    stages.{stage}.blocks.{{block}}.mlp.fc1  stage{stage}_{{block}}.mlp.fc1  linear
    stages.{stage}.blocks.{{block}}.mlp.fc2  stage{stage}_{{block}}.mlp.fc2  linear
    """,
        )
    ]
    return (stem, *stages, "head.norm norm layer\n head.fc fc linear")


def _resnet(shortcut: str, linear: str) -> Table:
    return (
        """
    conv1                          conv1                          conv
    bn1                            bn1                            norm
    """,
        f"""
    layer{{stage1}}.{{block}}.conv1        layer{{stage1}}_{{block}}.conv1          conv
    layer{{stage1}}.{{block}}.bn1          layer{{stage1}}_{{block}}.bn1            norm
    layer{{stage1}}.{{block}}.conv2        layer{{stage1}}_{{block}}.conv2          conv
    layer{{stage1}}.{{block}}.bn2          layer{{stage1}}_{{block}}.bn2            norm
    layer{{stage1}}.{{block}}.conv3        layer{{stage1}}_{{block}}.conv3          conv
    layer{{stage1}}.{{block}}.bn3          layer{{stage1}}_{{block}}.bn3            norm
    layer{{stage1}}.{{block}}.{shortcut}.0 layer{{stage1}}_{{block}}.conv_shortcut  conv
    layer{{stage1}}.{{block}}.{shortcut}.1 layer{{stage1}}_{{block}}.bn_shortcut    norm
    """,
        f"""
    {linear}                       fc                             linear
    """,
    )


def _small_convnet(module: SmallConvNet) -> Table:
    """``Sequential``: convolutions and activations in turn, Flatten, Linear, activation, Linear."""
    count = len(module.features)
    convs = "".join(f"{2 * i} conv{i + 1} conv\n" for i in range(count))
    return (f"{convs} {2 * count + 1} hidden flat\n {2 * count + 3} linear linear",)


def _mlp(module: MLP) -> Table:
    """``Sequential``: Flatten (of channels-last images), Linear and activations in turn."""
    names = [*(f"hidden{i + 1}" for i in range(len(module.hidden))), "linear"]
    kinds = ["flat"] + ["linear"] * len(module.hidden)
    rows = enumerate(zip(names, kinds, strict=True))
    return ("\n".join(f"{2 * i + 1} {name} {kind}" for i, (name, kind) in rows),)


# By module; those with an attribute ``names`` have several.
TABLES: dict[type[nn.Module], Callable[[Any], Table]] = {
    PreActResNet: lambda m: {"awp": PREACT_AWP, "deepmind": PREACT_DEEPMIND}[m.names],
    WideResNet: lambda m: WIDE[m.names],
    ResNet: lambda m: _resnet(
        *{"torchvision": ("downsample", "fc"), "cifar": ("shortcut", "linear")}[m.names]
    ),
    XCiT: lambda m: XCIT,
    ConvNeXt: _convnext,
    SmallConvNet: _small_convnet,
    MLP: _mlp,
}
