"""The smoothness of the adversarial loss of trained networks."""
