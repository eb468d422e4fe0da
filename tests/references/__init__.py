"""What the library is held against: NumPy and PyTorch."""
