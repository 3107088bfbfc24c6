"""CIFAR-10 in one cycle, for half an hour of one GPU.

    muffnet train cifar_fast --data tfds:cifar10 --alpha 0.5

Cost: 60 epochs of 97 steps; time not measured. Result: not run.
"""

from keras_muffnet.training.recipe import Recipe

RECIPE = Recipe(
    data="tfds:cifar10",
    size=32,
    alpha=0.5,
    augmentation="cifar",
    batch_size=512,
    epochs=60,
    learning_rate=0.4,
    schedule="one_cycle",
    warm_up_epochs=12,
    nesterov=True,
    weight_decay=5e-4,
    label_smoothing=0.1,
    ema=0.995,
    precision="mixed_bfloat16",
    steps_per_execution=16,
)
