"""PyTorch modules as ``logits_fn``, by callbacks or compiled through ``torchax``."""

import concurrent.futures
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from ..checks import check_choice
from ..types import Array, LogitsFn
from ._foreign import Foreign

T = TypeVar("T")
_CASTS = {"float32": "float", "float64": "double", "float16": "half"}


def torch_logits_fn(module: Any, *, via: str = "callback", randomized: bool = False) -> LogitsFn:
    """A PyTorch module as ``logits_fn`` of every attack; needs PyTorch.

    The module stays as it is, on its own device, and is called during the attack: weights that
    change between two calls of an attack take effect, also in place, and nothing recompiles, not
    even for another module. It gets contiguous NCHW images, a copy of JAX's NHWC that it may
    change in place; other copies are made only between devices. All calls of PyTorch come from one
    thread, with gradients of the images alone, so that ``.grad`` of the weights is left as it is. A
    gradient takes a forward and a backward pass of the module.

    With ``via="torchax"`` the module becomes operations of JAX, which compile with the attack and
    run on JAX's device. Weights are read at every call of the attack.

    Args:
        module: a ``torch.nn.Module`` in evaluation mode that maps images of shape (B, C, H, W) in
            [0, 1] to logits of shape (B, K): normalization is a part of it. Its parameters are on
            one device and have the dtype of the images, float32.
        via: "callback", or "torchax" if that package is installed and supports your PyTorch.
        randomized: whether the module draws random numbers in evaluation mode. Then the function
            takes a key too, which seeds PyTorch's generators of that thread and device, as
            ``version="rand"`` of AutoAttack expects; Dropout may be in training mode. Only by
            callback.

    Returns:
        A function of images of shape (B, H, W, C), and of a key if randomized, which can be
        compiled, differentiated once, and mapped.

    Raises:
        ValueError: if this is not a module. When the function is called: in training mode, for
            parameters of another dtype, or buffers that give the logits another or make it fail,
            tensors on several devices, or without logits (B, K).
        ImportError: if torchax is asked for and missing, or does not support this PyTorch.

    Example:
        >>> import jax
        >>> from jaxadv.attacks import autoattack
        >>> from jaxadv.interop import torch_logits_fn
        >>> def robust_accuracy(module, images, labels):
        ...     logits_fn = torch_logits_fn(module.eval())
        ...     return autoattack(0, logits_fn, images, labels, eps=8 / 255).robust_accuracy
    """
    import torch  # pyright: ignore[reportMissingImports]

    check_choice("via", via, ("callback", "torchax"))
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"module is a {type(module).__name__}; pass a torch.nn.Module")
    if via == "torchax":
        if randomized:
            raise ValueError("randomized=True needs via='callback'")
        return _through_torchax(module)
    return Foreign(
        _TorchModel(module),
        describe=lambda: _fingerprint(module),
        check=lambda dtype: _check(module, dtype, randomized),
        randomized=randomized,
    )


class _TorchModel:
    """A module on NumPy arrays."""

    name = "module"

    def __init__(self, module: Any) -> None:
        self.module = module

    def logits(self, images: np.ndarray, seed: np.ndarray | None) -> np.ndarray:
        """(B, K)."""
        return in_torch(self._logits, images, seed)

    def gradients(
        self, images: np.ndarray, cotangents: np.ndarray, seed: np.ndarray | None
    ) -> np.ndarray:
        """(M, B, H, W, C)."""
        return in_torch(self._gradients, images, cotangents, seed)

    def _logits(self, images: np.ndarray, seed: np.ndarray | None) -> Any:
        import torch  # pyright: ignore[reportMissingImports]

        with torch.no_grad():
            found = self._call(self._placed(self._from_numpy(images)), seed)
        return found.cpu().numpy() if isinstance(found, torch.Tensor) else found

    def _gradients(
        self, images: np.ndarray, cotangents: np.ndarray, seed: np.ndarray | None
    ) -> np.ndarray:
        import torch  # pyright: ignore[reportMissingImports]

        points = self._from_numpy(images).requires_grad_()
        logits = self._call(self._placed(points), seed)  # a copy, so modules may write to it
        out = np.empty((len(cotangents), *images.shape), images.dtype)
        if not logits.requires_grad:  # constant logits
            out[...] = 0
            return out
        for n, cotangent in enumerate(cotangents):
            weights = torch.from_numpy(np.array(cotangent)).to(logits.device)
            (gradient,) = torch.autograd.grad(
                logits, points, weights, retain_graph=n + 1 < len(cotangents), allow_unused=True
            )
            out[n] = 0 if gradient is None else gradient.numpy()
        return out

    def _from_numpy(self, images: np.ndarray) -> Any:
        import torch  # pyright: ignore[reportMissingImports]

        # PyTorch has no read-only tensors.
        return torch.from_numpy(images if images.flags.writeable else images.copy())

    def _placed(self, points: Any) -> Any:
        """NHWC of the host as contiguous NCHW on the module's device, always a copy."""
        import torch  # pyright: ignore[reportMissingImports]

        return points.permute(0, 3, 1, 2).to(
            _device(self.module), copy=True, memory_format=torch.contiguous_format
        )

    def _call(self, points: Any, seed: np.ndarray | None) -> Any:
        import torch  # pyright: ignore[reportMissingImports]

        dtype = points.dtype
        try:
            found = self._draw(points, seed)
        except RuntimeError as error:
            _check_dtypes("buffers", self.module.named_buffers(), dtype, error)
            raise
        if isinstance(found, torch.Tensor) and found.dtype != dtype:
            _check_dtypes("buffers", self.module.named_buffers(), dtype)
        return found

    def _draw(self, points: Any, seed: np.ndarray | None) -> Any:
        import torch  # pyright: ignore[reportMissingImports]

        if seed is None:
            return self.module(points)
        devices = [points.device] if points.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            # PyTorch's CUDA generators take 63 bits.
            torch.manual_seed((int(seed[0]) << 32 | int(seed[1])) >> 1)
            return self.module(points)


_threads: list[concurrent.futures.ThreadPoolExecutor] = []
os.register_at_fork(after_in_child=_threads.clear)


def in_torch(function: Callable[..., T], *args: Any) -> T:
    """Calls a function in the one thread that calls PyTorch.

    JAX runs callbacks in any of its threads. One thread of PyTorch has one set of helpers, modules
    need not be thread-safe, and the modes of the caller's threads (``no_grad``, autocast) are not
    those of the evaluation.
    """
    if not _threads:
        _threads.append(concurrent.futures.ThreadPoolExecutor(1, "jaxadv-torch"))
    return _threads[0].submit(function, *args).result()


def _tensors(module: Any) -> Iterator[Any]:
    yield from module.parameters()
    yield from module.buffers()


def _device(module: Any) -> Any:
    return next((tensor.device for tensor in _tensors(module)), None)


def _check(module: Any, dtype: np.dtype, randomized: bool) -> None:
    """Raises a ``ValueError`` if the module's results would not be what is evaluated."""
    import torch  # pyright: ignore[reportMissingImports]

    for name, part in module.named_modules():
        batch_norm = isinstance(part, torch.nn.modules.batchnorm._BatchNorm)
        if part.training and (batch_norm or not randomized):
            where = f" ({name})" if name else ""
            raise ValueError(f"module is in training mode{where}; call module.eval() first")
    devices = {str(tensor.device) for tensor in _tensors(module)}
    if len(devices) > 1 or "meta" in devices:
        listed = " and ".join(sorted(devices))
        raise ValueError(f"module is on {listed}; move it to one device with module.to(device)")
    if str(dtype) not in _CASTS:
        raise ValueError(f"images has dtype {dtype}; pass images.astype('float32') to a module")
    _check_dtypes("parameters", module.named_parameters(), dtype)


def _check_dtypes(
    kind: str, named: Iterable[tuple[str, Any]], dtype: Any, cause: Exception | None = None
) -> None:
    wanted = str(dtype).removeprefix("torch.")
    for name, tensor in named:
        found = str(tensor.dtype).removeprefix("torch.")
        if tensor.is_floating_point() and found != wanted:
            raise ValueError(
                f"module has {found} {kind} ({name}) and the images are {wanted}; convert it "
                f"with copy.deepcopy(module).{_CASTS[wanted]}()"
            ) from cause


def _fingerprint(module: Any) -> str:
    """SHA-256 of a module's layers and of its parameters and buffers."""
    import torch  # pyright: ignore[reportMissingImports]

    sha = hashlib.sha256(f"{type(module).__qualname__}\n{module!r}".encode())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(data.numpy().data)
    return sha.hexdigest()


def _through_torchax(module: Any) -> LogitsFn:
    try:
        import torchax  # pyright: ignore[reportMissingImports]

        torchax.default_env()  # loads its table of operations
    except ImportError as error:
        raise ImportError("via='torchax' needs torchax: pip install torchax") from error
    except AttributeError as error:  # of an operation that this PyTorch does not have
        import torch  # pyright: ignore[reportMissingImports]

        raise ImportError(
            f"torchax does not support PyTorch {torch.__version__} ({error}); leave out via"
        ) from error

    def logits_fn(images: Array) -> Array:
        _check(module, np.dtype(images.dtype), False)
        weights, call = torchax.extract_jax(module)
        return call(weights, (jnp.transpose(images, (0, 3, 1, 2)),))

    return logits_fn
