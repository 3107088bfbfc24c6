"""Tiny ImageNet: 200 classes of 500 images, 64x64.

    muffnet train tiny_imagenet --data tiny_imagenet/ --alpha 1.0

The folder holds `train/` and `val/`, each with a folder a class. The stem for
64x64 keeps the first layers at full size.

Cost: 150 epochs of 390 steps; time not measured. Result: not run.
"""

from keras_muffnet.training.recipe import Recipe

RECIPE = Recipe(
    size=64,
    stem="tiny_imagenet",
    augmentation="imagenet",
    batch_size=256,
    epochs=150,
    learning_rate=0.2,
    warm_up_epochs=5,
    nesterov=True,
    weight_decay=4e-4,
    label_smoothing=0.1,
    ema=0.999,
    precision="mixed_bfloat16",
)
