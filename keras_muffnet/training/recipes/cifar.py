"""CIFAR-10 and CIFAR-100 as in section 5.1 of the paper.

    muffnet train cifar --data tfds:cifar10 --alpha 1.0

Cost: 300 epochs of 390 steps; time not measured. Result: not run. The paper
gives the accuracies in its table 5.
"""

from keras_muffnet.training.recipe import Recipe

RECIPE = Recipe(
    data="tfds:cifar10",
    size=32,
    augmentation="cifar",
    batch_size=128,
    epochs=300,
    learning_rate=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    decay_all=True,
)
