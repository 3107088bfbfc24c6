"""A short run, to compare networks side by side on small images.

    python tools/reproduce.py --accuracy quick --only table5
    muffnet train quick --data digits

Cost: on the digits, by default, some minutes a network on a CPU. Result: in
`results/paper/accuracy.csv`.
"""

from keras_muffnet.training.recipe import Recipe

RECIPE = Recipe(
    data="digits",
    size=32,
    batch_size=32,
    epochs=5,
    learning_rate=0.05,
    warm_up_epochs=1,
    nesterov=True,
    weight_decay=4e-4,
    label_smoothing=0.1,
)
