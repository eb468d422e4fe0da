"""Adversarial training in plain PyTorch: the baseline for `training.py`.

PGD-10 in train mode from a random start and SGD with plain momentum, as in the AWP code; the same
with adversarial weight perturbation; and one outer step of EntropySGD. Not for use: this is what
one would write without a library.
"""

import dataclasses

import torch  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from . import _torch_resnet


@dataclasses.dataclass
class Trainer:
    """Weights, momentum buffers and the attack.

    Attributes:
        tensors: tensors by name; those that require gradients are trained.
        constants: mean and standard deviation of the model.
        eps: radius of the Linf ball.
        step_size: PGD step size.
        num_steps: PGD steps.
        learning_rate: SGD learning rate.
        momentum: SGD momentum.
        weight_decay: SGD weight decay.
        autocast: whether to compute in bfloat16 where PyTorch supports it.
        compiled: whether the network runs under ``torch.compile``.
    """

    tensors: dict
    constants: tuple
    eps: float = 8 / 255
    step_size: float = 2 / 255
    num_steps: int = 10
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    autocast: bool = False
    compiled: bool = False

    def __post_init__(self):
        self.forward = (
            torch.compile(_torch_resnet.forward) if self.compiled else (_torch_resnet.forward)
        )
        self.trained = [t for t in self.tensors.values() if t.requires_grad]
        self.buffers = [torch.zeros_like(t) for t in self.trained]

    def logits(self, images):
        """Logits in train mode."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            return self.forward(self.tensors, images, *self.constants, train=True).float()

    def attack(self, images, labels):
        """PGD with a uniform random start."""
        noise = torch.empty_like(images).uniform_(-self.eps, self.eps)
        points = (images + noise).clamp(0, 1)
        self._freeze(True)
        for _ in range(self.num_steps):
            points.requires_grad_()
            loss = functional.cross_entropy(self.logits(points), labels)
            (gradient,) = torch.autograd.grad(loss, points)
            points = points.detach() + self.step_size * gradient.sign()
            points = torch.min(torch.max(points, images - self.eps), images + self.eps).clamp(0, 1)
        self._freeze(False)
        return points.detach()

    def _freeze(self, frozen: bool):
        # A compiled backward pass computes the gradients of all that require one.
        for tensor in self.trained:
            tensor.requires_grad_(not frozen)

    def gradient(self, points, labels):
        """Gradient of the mean cross-entropy in the trained tensors."""
        loss = functional.cross_entropy(self.logits(points), labels)
        return torch.autograd.grad(loss, self.trained)

    @torch.no_grad()
    def update(self, gradients):
        """An SGD step with momentum and weight decay."""
        for tensor, buffer, gradient in zip(self.trained, self.buffers, gradients, strict=True):
            buffer.mul_(self.momentum).add_(gradient + self.weight_decay * tensor)
            tensor.sub_(self.learning_rate * buffer)

    def sgd_step(self, images, labels):
        """One minibatch of adversarial training."""
        self.update(self.gradient(self.attack(images, labels), labels))

    def awp_step(self, images, labels, gamma: float = 0.01):
        """One minibatch with adversarially perturbed weights."""
        points = self.attack(images, labels)
        ascent = self.gradient(points, labels)
        saved = [t.detach().clone() for t in self.trained]
        with torch.no_grad():
            for tensor, direction in zip(self.trained, ascent, strict=True):
                if tensor.dim() > 1:
                    scale = gamma * tensor.norm() / (direction.norm() + 1e-20)
                    tensor.add_(scale * direction)
        gradients = self.gradient(points, labels)
        with torch.no_grad():
            for tensor, value in zip(self.trained, saved, strict=True):
                tensor.copy_(value)
        self.update(gradients)

    def entropy_step(self, minibatches, gamma: float = 0.03, noise: float = 1e-4):
        """One outer step of EntropySGD: a Langevin chain over the minibatches, then the average."""
        slow = [t.detach().clone() for t in self.trained]
        average = [t.clone() for t in slow]
        for images, labels in minibatches:
            gradients = self.gradient(self.attack(images, labels), labels)
            with torch.no_grad():
                for tensor, start, mean, gradient in zip(
                    self.trained, slow, average, gradients, strict=True
                ):
                    drift = gradient + self.weight_decay * tensor - gamma * (start - tensor)
                    tensor.sub_(self.learning_rate * drift)
                    tensor.add_(torch.randn_like(tensor), alpha=noise * self.learning_rate**0.5)
                    mean.mul_(0.75).add_(tensor, alpha=0.25)
        with torch.no_grad():
            for tensor, start, mean, buffer in zip(
                self.trained, slow, average, self.buffers, strict=True
            ):
                buffer.mul_(self.momentum).add_(start - mean)
                tensor.copy_(start - self.learning_rate * buffer)
