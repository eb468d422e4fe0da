"""Trains and evaluates robust classifiers on ImageNet.

    python -m experiments.imagenet --config=configs/at.py --config.weight_decay=1e-4

The images are read from array_record files, decoded on the host, and cropped, resized and mirrored
on the device. ``--help`` lists the methods, the scales and every field.
"""

from .cli.train import main

if __name__ == "__main__":
    main("imagenet")
