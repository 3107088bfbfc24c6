"""CIFAR-10 in one cycle, on a CPU.

    KERAS_BACKEND=tensorflow python tools/train.py cifar_cpu --data cifar10/

Small batches and no compilation by XLA: so TensorFlow is the fastest of the
three backends on a CPU.

Cost: 12 epochs of 781 steps, some 80 minutes of two cores that do nothing else.
Result: with `--epochs 8`, 83.72% on CIFAR-10 (JPEG), seed 0; the 12 epochs were
not run.
"""

from keras_muffnet.training.recipe import Recipe

RECIPE = Recipe(
    data="tfds:cifar10",
    size=32,
    alpha=0.5,
    augmentation="cifar",
    batch_size=64,
    epochs=12,
    learning_rate=0.1,
    schedule="one_cycle",
    warm_up_epochs=2,
    nesterov=True,
    weight_decay=5e-4,
    jit_compile=False,
    steps_per_execution=11,
    checkpoint_steps=220,
)
