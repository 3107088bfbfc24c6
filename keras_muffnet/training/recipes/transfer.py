"""From published or one's own weights to a classifier of a folder of images.

    muffnet train transfer --data photos/
    muffnet train transfer --data photos/ --weights best.keras

For a quarter of the epochs the classifier alone is trained, then all layers, at
two fifths of the learning rate. `--unfreeze-from stage2` trains the mid-level
stage and what follows it alone, and `--freeze-norms` leaves batch normalization
as it is; both are faster and less accurate. `--size`, `--alpha` and `--stem`
are those of the weights; of published ones only `--alpha` must be. The images
behind `tiny_imagenet` are for research: see its model card.

Cost: minutes on a CPU for some thousand images of 64x64.
Result: the means of seeds 0 to 2, from 30 training images a class: 52.2% of 300
test images of CIFAR-10 (JPEG), 97.8% of 90 cells of 3 classes, cut out of BCCD,
97.9% of 300 digits; from random weights 27.4%, 58.5% and 96.4%; from `cifar10`
98.5% of the cells and 97.1% of the digits
(`python -m tools.benchmarks.transfer`). From 500 images a class and after 10
epochs 73.4% of CIFAR-10 (JPEG), from random weights 43.4%.
"""

from keras_muffnet.training.recipe import Recipe

RECIPE = Recipe(
    size=64,
    alpha=0.5,
    stem="tiny_imagenet",
    weights="tiny_imagenet",
    freeze_epochs=0.25,
    augmentation="imagenet",
    batch_size=32,
    epochs=20,
    learning_rate=0.05,
    unfrozen_learning_rate=0.02,
    warm_up_epochs=0.5,
    nesterov=True,
    weight_decay=1e-4,
    label_smoothing=0.1,
)
