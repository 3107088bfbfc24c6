"""The images of a recipe."""

import dataclasses

from keras_muffnet.data import CIFAR
from keras_muffnet.data import IMAGENET
from keras_muffnet.data import PLAIN
from keras_muffnet.data import make_feed
from keras_muffnet.data import open_source
from keras_muffnet.training import devices
from keras_muffnet.training.recipe import Recipe
from keras_muffnet.training.tasks import Feed

_AUGMENTATIONS = {
    "plain": PLAIN,
    "cifar": CIFAR,
    "imagenet": IMAGENET,
}
# Operations of RandAugment on an image, as its paper has them on ImageNet.
_RAND_AUGMENT_OPERATIONS = 2


def open_feed(recipe: Recipe) -> Feed:
    """Opens the images that a recipe names, augmented as it says.

    Args:
        recipe: the recipe. Keras must be configured for it before, since the
            images have Keras's type and data format; and `use_devices` be
            called, since a process gets its share of each batch.

    Raises:
        ValueError: if the recipe names no images, or they are not as
            `keras_muffnet.data` wants them.
        ImportError: if a package that the images need is not installed.
    """
    if recipe.data is None:
        raise ValueError(
            "`data` must name the images: a folder, 'tfds:NAME' or 'digits'. "
            "Received: data=None"
        )
    augmentation = dataclasses.replace(
        _AUGMENTATIONS[recipe.augmentation],
        mixup=recipe.mixup,
        cutmix=recipe.cutmix,
        erasing=recipe.erasing,
        rand_augment=(
            None
            if recipe.rand_augment is None
            else (_RAND_AUGMENT_OPERATIONS, recipe.rand_augment)
        ),
    )
    source = open_source(
        recipe.data,
        validation_split=recipe.validation_split,
        seed=recipe.seed,
        nested=recipe.nested,
    )
    if not {"val", "test"} & set(source.splits):
        raise ValueError(
            "`validation_split` must be given for data without validation and "
            "test images, such as 0.2. "
            f"Received: data={recipe.data!r}, validation_split=None"
        )
    # With one of the two alone it is what epochs are compared on, too.
    both = {"val", "test"} <= set(source.splits)
    return make_feed(
        source,
        augmentation,
        size=(recipe.size, recipe.size),
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        one_hot=bool(recipe.mixup or recipe.cutmix),
        class_weight=recipe.class_weight,
        val_split="val" if both else None,
        on_bad_image=recipe.on_bad,
        shard=devices.process(),
        fill=devices.device_count() > 1,
    )
