"""Where the peers shrink their feature maps, stem by stem."""

# Strides of the five reductions of a network for 224x224. As in MuffNet's
# stems the first ones are left out for small images.
STRIDES = {
    # name             224 -> 7 in five steps
    "imagenet": (2, 2, 2, 2, 2),
    "tiny_imagenet": (1, 1, 2, 2, 2),  # 64 -> 64, 64, 32, 16, 8
    "cifar": (1, 1, 1, 2, 2),  # 32 -> 32, 32, 32, 16, 8
}
