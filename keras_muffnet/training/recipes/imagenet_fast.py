"""ImageNet at 128x128 in 16 epochs: a trial before the full recipe.

    muffnet train imagenet_fast --alpha 0.5

Cost: 16 epochs of 1251 steps; time not measured, and half an hour of one GPU
only where images are decoded fast enough, 11,000 a second. Result: not run.
"""

from keras_muffnet.training.recipe import Recipe

RECIPE = Recipe(
    data="tfds:imagenet2012",
    size=128,
    alpha=0.5,
    stem="imagenet",
    augmentation="imagenet",
    batch_size=1024,
    epochs=16,
    learning_rate=1.0,
    schedule="one_cycle",
    warm_up_epochs=2,
    nesterov=True,
    weight_decay=5e-5,
    label_smoothing=0.1,
    ema=0.999,
    precision="mixed_bfloat16",
    steps_per_execution=10,
    checkpoint_steps=500,
)
