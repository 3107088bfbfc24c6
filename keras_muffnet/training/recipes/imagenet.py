"""ImageNet as in section 5.1, with the tricks of its reference [11].

    muffnet train imagenet --alpha 1.0

Of the paper: learning rate 0.5, batches of 1024, weight decay 4e-4. Of [11],
"Bag of Tricks for Image Classification" (He et al., 2019): warm-up, no decay
of biases and batch normalization, label smoothing, cosine, Nesterov's
momentum, 120 epochs.

Cost: 120 epochs of 1251 steps; time not measured. Result: not run. The paper
gives the accuracies in its table 6.
"""

from keras_muffnet.training.recipe import Recipe

RECIPE = Recipe(
    data="tfds:imagenet2012",
    size=224,
    augmentation="imagenet",
    batch_size=1024,
    epochs=120,
    learning_rate=0.5,
    warm_up_epochs=5,
    nesterov=True,
    weight_decay=4e-4,
    label_smoothing=0.1,
    precision="mixed_bfloat16",
    checkpoint_steps=500,
)
