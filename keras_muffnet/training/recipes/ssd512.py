"""SSD512 as in section 5.4 of the paper, with GluonCV's settings.

    muffnet train ssd512 --data tfds:voc --weights best.keras

The weights are those of a classifier trained on ImageNet. GluonCV trains on
four GPUs, without scaling the learning rate.

Cost: 240 epochs; time not measured. Result: not run. The paper gives the mAP
on COCO in its table 7.
"""

from keras_muffnet.training.recipe import DetectionRecipe

RECIPE = DetectionRecipe(
    data="tfds:voc",
    size=512,
    batch_size=32,
    epochs=240,
    learning_rate=1e-3,
    schedule="steps",
    momentum=0.9,
    weight_decay=5e-4,
    decay_all=True,
)
