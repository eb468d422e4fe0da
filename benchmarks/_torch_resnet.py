"""PreActResNet-18 as a plain PyTorch function of a dictionary of tensors."""

import numpy as np

from jaxadv import models


def weights(module, variables, *, trainable: bool = False, device: str = "cpu") -> dict:
    """A ``jaxadv.models`` model's variables as PyTorch tensors, by PyTorch name.

    Args:
        module: the model.
        variables: its parameters and running statistics.
        trainable: whether parameters (not running statistics) require gradients.
        device: PyTorch device.
    """
    import torch  # pyright: ignore[reportMissingImports]

    state = models.to_torch_state_dict(module, variables)
    tensors = {name: torch.from_numpy(np.array(v)).to(device) for name, v in state.items()}
    if trainable:
        for name, tensor in tensors.items():
            tensor.requires_grad_(tensor.is_floating_point() and "running" not in name)
    return tensors


def forward(tensors: dict, images, mean, std, *, train: bool = False):
    """Logits of NCHW images in [0, 1]; ``train`` uses and updates batch statistics."""
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    def norm(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        parts = (tensors[f"{name}.{n}"] for n in names)
        return functional.relu(functional.batch_norm(x, *parts, training=train))

    def conv(x, name, stride=1, padding=1):
        return functional.conv2d(x, tensors[f"{name}.weight"], stride=stride, padding=padding)

    def block(x, name, stride):
        out = norm(x, f"{name}.bn1")
        if f"{name}.shortcut.0.weight" in tensors:
            x = conv(out, f"{name}.shortcut.0", stride, 0)
        out = norm(conv(out, f"{name}.conv1", stride), f"{name}.bn2")
        return x + conv(out, f"{name}.conv2")

    x = conv((images - mean) / std, "conv1")
    for stage in range(4):
        for part in range(2):
            x = block(x, f"layer{stage + 1}.{part}", 2 if stage and not part else 1)
    x = norm(x, "bn").mean(dim=(2, 3))
    return functional.linear(x, tensors["linear.weight"], tensors["linear.bias"])


def constants(module, device: str = "cpu"):
    """Mean and standard deviation of the model, for :func:`forward`."""
    import torch  # pyright: ignore[reportMissingImports]

    return tuple(torch.tensor(v).view(1, 3, 1, 1).to(device) for v in (module.mean, module.std))


def eval_fn(subject):
    """A model of :mod:`experiments.evaluation.subjects` as a PyTorch function of NCHW images."""
    variables = {"params": subject.params, "batch_stats": subject.batch_stats}
    tensors, (mean, std) = weights(subject.module, variables), constants(subject.module)
    return lambda images: forward(tensors, images, mean, std)
