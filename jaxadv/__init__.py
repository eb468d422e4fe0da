"""Adversarial robustness in JAX: training, attacks and the theory of smoothness.

Value contract of the whole library: images are float32 of shape (B, H, W, C) in [0, 1];
radii and step sizes are in the same units (``8 / 255``); labels are int32 of shape (B,);
a model is a function from images to logits of shape (B, K); losses are per example.
"""

__version__ = "0.1.0"
