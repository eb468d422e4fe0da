"""The local entropy of EntropySGD: quadrature, bounds, chains, and its zero-temperature limit."""
