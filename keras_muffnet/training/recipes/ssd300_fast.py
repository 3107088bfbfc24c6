"""A small detector for some hundreds of images, on a CPU.

    python tools/train_detector.py ssd300_fast --data bccd/ \
        --weights runs/cifar/best.keras

The weights are those of a classifier of the same alpha, of any images.
"""

from keras_muffnet.training.recipe import DetectionRecipe

RECIPE = DetectionRecipe(
    size=300,
    alpha=0.5,
    extra_width=0.5,
    anchor_scale=0.7,
    hue=0.2,
    expansion=2.0,
    train_split="trainval",
    batch_size=8,
    epochs=80,
    learning_rate=0.01,
    schedule="one_cycle",
    warm_up_epochs=8,
    weight_decay=5e-4,
    ema=0.99,
    jit_compile=False,
)
