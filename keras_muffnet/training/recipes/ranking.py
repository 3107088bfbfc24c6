r"""A few epochs of Tiny ImageNet at 32x32, to rank networks on a CPU.

    python tools/reproduce.py --only table4 --accuracy ranking \
        --data tiny_imagenet/ --row average+geometric+none --row none+none+none
    muffnet train ranking --data tiny_imagenet/

For the patterns of tables 1 to 4, whose networks have 11.5 M multiply-adds each
at this size.

Cost: 20 minutes of one core a network and seed, with PyTorch. Result: in
`results/paper/ranking.csv`.
"""

from keras_muffnet.training.recipe import Recipe

RECIPE = Recipe(
    size=32,
    stem="tiny_imagenet",
    augmentation="cifar",
    batch_size=128,
    epochs=3,
    learning_rate=0.2,
    schedule="one_cycle",
    warm_up_epochs=0.5,
    nesterov=True,
    weight_decay=1e-4,
    jit_compile=False,
)
