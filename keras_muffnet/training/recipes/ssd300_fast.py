r"""A small detector for some hundreds of images, on a CPU.

    KERAS_BACKEND=tensorflow muffnet train ssd300_fast \
        --data bccd/ --on-bad skip --weights cifar10

The weights are published ones or those of a classifier of the same alpha, of
any images. Colors distinguish cells and a microscope's scale is fixed: hues
turn less than in GluonCV, and images shrink less.

Cost: 80 epochs of BCCD's 292 images, 25 minutes of two cores.
Result: AP50 80.92% on BCCD's 72 test images, seed 0, from weights `cifar10` of
85.90% on CIFAR-10 (JPEG), which shipped before today's; from the weights
`tiny_imagenet` 79.32%, which on so few images is as good.
"""

from keras_muffnet.training.recipe import DetectionRecipe

RECIPE = DetectionRecipe(
    size=300,
    alpha=0.5,
    extra_width=0.5,
    anchor_scale=0.7,
    hue=0.2,
    expansion=2.0,
    train_split=None,
    batch_size=8,
    epochs=80,
    learning_rate=0.01,
    schedule="one_cycle",
    warm_up_epochs=8,
    weight_decay=5e-4,
    ema=0.99,
    jit_compile=False,
)
