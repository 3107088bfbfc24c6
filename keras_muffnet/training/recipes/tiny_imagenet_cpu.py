r"""Tiny ImageNet in three cycles, on a CPU.

Progressive resizing: the first two cycles see smaller images, which are a
fourth and 9/16 of the work, and this recipe as it is makes the last one.

    muffnet train tiny_imagenet_cpu --data tiny_imagenet/ --size 32 \
        --epochs 12 --learning-rate 0.3 --warm-up-epochs 2 \
        --label-smoothing 0 --output runs/tiny_32
    muffnet train tiny_imagenet_cpu --data tiny_imagenet/ --size 48 \
        --epochs 6 --learning-rate 0.1 --label-smoothing 0 --seed 1 \
        --weights runs/tiny_32/last.keras --output runs/tiny_48
    muffnet train tiny_imagenet_cpu --data tiny_imagenet/ --seed 2 \
        --weights runs/tiny_48/last.keras --output runs/tiny_64

It makes the weights `tiny_imagenet` that ship.

Cost: an epoch of 390 steps takes some 3 minutes of two cores with PyTorch at
32x32, 5 at 48x48 and 8 at 64x64. Result: 41.25% of the validation images at
32x32 after the first, 47.73% at 48x48 after the second, 50.77% at 64x64 after
the third.
"""

from keras_muffnet.training.recipe import Recipe

RECIPE = Recipe(
    size=64,
    stem="tiny_imagenet",
    alpha=0.5,
    augmentation="cifar",
    batch_size=256,
    epochs=5,
    learning_rate=0.05,
    schedule="one_cycle",
    warm_up_epochs=0.5,
    nesterov=True,
    weight_decay=1e-4,
    label_smoothing=0.1,
    jit_compile=False,
    checkpoint_steps=100,
)
