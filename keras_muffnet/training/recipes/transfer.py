"""From published or one's own weights to a classifier of a folder of images.

    muffnet train transfer --data photos/
    muffnet train transfer --data photos/ --weights best.keras

For a quarter of the epochs the classifier alone is trained, then the mid-level
stage and what follows it too, at a tenth of the learning rate. Batch
normalization keeps its statistics, scale and offset throughout, as Keras's
guide to fine-tuning advises; `--no-freeze-norms` trains it too.
`--size`, `--alpha` and `--stem` are those of the weights; of published ones
only `--alpha` must be. `--unfreeze-from none` trains all layers.

Cost: minutes on a CPU for some thousand images of 64x64.
Result: on 1,000 images of 20 classes of Tiny ImageNet, 8 epochs at 32x32,
34.73%, and 22.20% from scratch (means of 3 seeds of
`tools/benchmarks/transfer.py`, with batch normalization trained; not measured
yet with it frozen).
"""

from keras_muffnet.training.recipe import Recipe

RECIPE = Recipe(
    size=64,
    alpha=0.5,
    stem="tiny_imagenet",
    weights="cifar10",
    freeze_epochs=0.25,
    freeze_norms=True,
    unfreeze_from="stage2",
    augmentation="imagenet",
    batch_size=32,
    epochs=20,
    learning_rate=0.05,
    unfrozen_learning_rate=0.005,
    warm_up_epochs=0.5,
    nesterov=True,
    weight_decay=1e-4,
    label_smoothing=0.1,
)
