"""From trained weights to a classifier of one's own folder of images.

    python tools/train.py transfer --data photos/ --weights best.keras

For 5 epochs the classifier alone is trained, then the high-level stage and
what follows it too, at a tenth of the learning rate. `--size`, `--alpha` and
`--stem` are those of the weights; `--unfreeze-from none` trains all layers.

Cost: minutes on a CPU for some thousand images of 64x64. Result: not run.
"""

from keras_muffnet.training.recipe import Recipe

# Named here so that the recipe is whole; --weights gives the real file.
RECIPE = Recipe(
    size=64,
    alpha=1.0,
    stem="tiny_imagenet",
    weights="tiny_imagenet",
    freeze_epochs=5,
    unfreeze_from="stage3",
    augmentation="imagenet",
    batch_size=32,
    epochs=20,
    learning_rate=0.05,
    unfrozen_learning_rate=0.005,
    warm_up_epochs=1,
    nesterov=True,
    weight_decay=1e-4,
    label_smoothing=0.1,
)
