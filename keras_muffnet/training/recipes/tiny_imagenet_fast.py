"""Tiny ImageNet in one cycle, for half an hour of one GPU.

    muffnet train tiny_imagenet_fast --data tiny_imagenet/ --alpha 1.0

Cost: 40 epochs of 195 steps; time not measured. Result: not run.
"""

from keras_muffnet.training.recipe import Recipe

RECIPE = Recipe(
    size=64,
    stem="tiny_imagenet",
    augmentation="imagenet",
    batch_size=512,
    epochs=40,
    learning_rate=0.5,
    schedule="one_cycle",
    warm_up_epochs=8,
    nesterov=True,
    weight_decay=2e-4,
    label_smoothing=0.1,
    ema=0.995,
    precision="mixed_bfloat16",
    steps_per_execution=16,
)
