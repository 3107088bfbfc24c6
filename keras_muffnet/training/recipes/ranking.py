r"""A few epochs of Tiny ImageNet at 32x32, to rank networks on a CPU.

    python tools/reproduce.py --accuracy ranking --only table4 \
        --row average+geometric+none --row none+none+none
    muffnet train ranking --data tiny_imagenet/

With 200 classes the seeds differ less than on CIFAR-10, and the stem halves the
sides: an epoch is two thirds of one of CIFAR-10.

Cost: 15 to 20 minutes of one core a network. Result: in
`results/paper/ranking.csv`.
"""

from keras_muffnet.training.recipe import Recipe

RECIPE = Recipe(
    data="tiny_imagenet/",
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
