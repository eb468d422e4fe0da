"""Small sizes of every model: one line puts a model through the tests of all of them."""

SMALL = {
    "preact_resnet18": dict(width=2, blocks=(1, 1)),
    "dm_preact_resnet18": dict(width=2, blocks=(1, 1)),
    "wide_resnet": dict(depth=10, width=1, bias_last=False, cosine=True),
    "wrn34_10": dict(depth=10, widen_factor=1),
    "dm_wide_resnet": dict(depth=10, width=1, mean_sparse=True, squeeze=0.25),
    "resnet18_cifar": dict(width=2, blocks=(1, 1)),
    "resnet50_cifar": dict(width=2, blocks=(1, 1)),
    "resnet18": dict(width=2, blocks=(1, 1)),
    "resnet50": dict(width=2, blocks=(1, 1)),
    "wrn50_2": dict(width=2, blocks=(1,)),
    "xcit_small12": dict(patch_size=4, width=16, depth=1, heads=2),
    "xcit_medium12": dict(width=16, depth=1, heads=2),
    "xcit_large12": dict(patch_size=4, width=16, depth=1, heads=1),
    "convnext_tiny": dict(width=4, blocks=(1, 1), conv_stem=True),
    "convnext_small": dict(width=4, blocks=(1,)),
    "convnext_base": dict(width=4, blocks=(1, 1), conv_stem=True),
    "convnext_large": dict(width=4, blocks=(1, 1)),
    "small_convnet": dict(features=(2, 3), hidden=5),
    "cifar_convnet": dict(width=2),
    "mlp": dict(hidden=(6, 5)),
}
