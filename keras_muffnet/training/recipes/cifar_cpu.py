r"""CIFAR-10 in one cycle, on a CPU.

    KERAS_BACKEND=tensorflow muffnet train cifar_cpu --data cifar10/
    KERAS_BACKEND=tensorflow muffnet train cifar_cpu --data cifar10/ \
        --weights runs/cifar_cpu/last.keras --epochs 6 --learning-rate 0.05 \
        --warm-up-epochs 0.5 --seed 1 --output runs/cifar_cpu_second
    KERAS_BACKEND=torch muffnet train cifar_cpu --data cifar10/ \
        --weights runs/cifar_cpu_second/last.keras --epochs 12 \
        --learning-rate 0.08 --warm-up-epochs 1 --output runs/cifar_cpu_third
    KERAS_BACKEND=torch muffnet train cifar_cpu --data cifar10/ \
        --weights runs/cifar_cpu_third/best.keras --epochs 20 \
        --learning-rate 0.08 --warm-up-epochs 1 --erasing 0.5 \
        --output runs/cifar_cpu_fourth

Each is a cycle from where the one before ended. A fifth of 30 epochs, in two
runs that the card of the weights `cifar10` tells, makes those that ship. Small
batches and no compilation by XLA. On a CPU PyTorch is now the
fastest of the three backends (see `keras_muffnet.training.accelerate`), and the
one that is chosen without KERAS_BACKEND.

Cost: an epoch is 781 steps, some 4 minutes of two cores with TensorFlow and 2
with PyTorch. Result: 83.72% on CIFAR-10 (JPEG) after the first, 85.90% after
the second, 87.90% after the third, 88.47% after the fourth, 89.61% after the
fifth.
"""

from keras_muffnet.training.recipe import Recipe

RECIPE = Recipe(
    data="tfds:cifar10",
    size=32,
    alpha=0.5,
    augmentation="cifar",
    batch_size=64,
    epochs=8,
    learning_rate=0.1,
    schedule="one_cycle",
    warm_up_epochs=2,
    nesterov=True,
    weight_decay=5e-4,
    jit_compile=False,
    checkpoint_steps=220,
)
