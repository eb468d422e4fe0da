"""AutoAttack for users of PyTorch: tensors in, tensors out."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from ..attacks import AutoAttackResult, autoattack
from ..keys import as_key
from ..types import Key
from ._torch import torch_logits_fn


class TorchAttackResult(NamedTuple):
    """The outcome of :func:`torch_attack`.

    Attributes:
        images: a tensor of shape (N, C, H, W) on the CPU, adversarial where an adversarial image
            was found, else the clean image.
        robust: a boolean tensor of shape (N,): classified correctly and survived every attack.
        result: everything else, as arrays of shape (N, ...) and numbers.
    """

    images: Any
    robust: Any
    result: AutoAttackResult


def torch_attack(
    module: Any,
    data: Any,
    *,
    key: Key | int = 0,
    via: str = "callback",
    **options: Any,
) -> TorchAttackResult:
    """AutoAttack on a PyTorch module and its data; needs PyTorch.

    Args:
        module: a module in evaluation mode from images (B, C, H, W) in [0, 1] to logits (B, K), see
            :func:`torch_logits_fn`.
        data: a pair of images, a float32 tensor of shape (N, C, H, W) in [0, 1] on any device, and
            labels, an integer tensor of shape (N,); or a loader, an iterable of such pairs.
        key: PRNG key, or a seed.
        via: see :func:`torch_logits_fn`.
        **options: keyword arguments of :func:`jaxadv.attacks.autoattack`, such as norm, eps,
            version, batch_size and store.

    Returns:
        A :class:`TorchAttackResult`.

    Raises:
        ValueError: as in :func:`torch_logits_fn` and :func:`jaxadv.attacks.autoattack`, if labels
            are missing, images differ in size, or a loader is empty.

    Example:
        >>> from jaxadv.interop import torch_attack
        >>> def evaluate(model, loader):
        ...     found = torch_attack(model.eval(), loader, norm="linf", eps=8 / 255)
        ...     print(f"robust accuracy {found.result.robust_accuracy:.2%}")
        ...     return found.images
    """
    import torch  # pyright: ignore[reportMissingImports]

    if "device" in options:
        raise ValueError(
            f"device={str(options['device'])!r} is not an option, the module's own is used; move "
            "it with module.to(device)"
        )
    if "randomized" in options or options.get("version") == "rand":
        raise ValueError(
            "version='rand' needs a randomized module: call autoattack(key, "
            "torch_logits_fn(module, randomized=True), ..., version='rand')"
        )
    if isinstance(data, torch.Tensor):
        raise ValueError("data is a tensor without labels; pass (images, labels), or a loader")
    is_pair = isinstance(data, tuple | list) and len(data) == 2 and torch.is_tensor(data[0])
    pairs: Iterable[Any] = [data] if is_pair else data
    batches = [_pair(batch) for batch in pairs]
    if not batches:
        raise ValueError("data is an empty loader; pass one with images and labels")
    first = batches[0][0].shape
    for pixels, _ in batches:
        if pixels.shape[1:] != first[1:]:
            shapes = " and ".join(str((*s[:1], s[3], *s[1:3])) for s in (first, pixels.shape))
            raise ValueError(f"data has images of shapes {shapes}; resize them to one size")
    pixels, classes = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    result = autoattack(
        as_key(key),
        torch_logits_fn(module, via=via),
        jax.device_put(pixels),
        jax.device_put(classes),
        **options,
    )
    points = torch.from_numpy(np.ascontiguousarray(result.images.transpose(0, 3, 1, 2)))
    return TorchAttackResult(points, torch.from_numpy(result.robust.copy()), result)


def _pair(batch: Any) -> tuple[np.ndarray, np.ndarray]:
    """A batch of a loader as NHWC and labels on the host."""
    import torch  # pyright: ignore[reportMissingImports]

    if not (isinstance(batch, list | tuple) and len(batch) == 2):
        raise ValueError(f"a batch is a {type(batch).__name__}; expected (images, labels)")
    images, labels = batch
    for name, value in (("images", images), ("labels", labels)):
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{name} is a {type(value).__name__}; pass a tensor")
    if images.ndim != 4 or images.shape[1] > min(images.shape[2:]):
        raise ValueError(f"images has shape {tuple(images.shape)}; expected (N, C, H, W)")
    if images.dtype != torch.float32:
        scale = "" if images.is_floating_point() else " / 255"
        raise ValueError(f"images has dtype {images.dtype}; pass images.float(){scale} in [0, 1]")
    if labels.is_floating_point():
        raise ValueError(f"labels has dtype {labels.dtype}; pass class indices, labels.long()")
    return images.detach().permute(0, 2, 3, 1).cpu().numpy(), labels.detach().cpu().numpy()
