"""EntropySGD: the factory, its options, and its two forms."""
