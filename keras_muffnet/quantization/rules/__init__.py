"""Rules, by kind of layer or operation: how each is written in steps."""

from keras_muffnet.quantization.rules import activations
from keras_muffnet.quantization.rules import arithmetic
from keras_muffnet.quantization.rules import convolutions
from keras_muffnet.quantization.rules import einsum
from keras_muffnet.quantization.rules import normalizations
from keras_muffnet.quantization.rules import resizing
from keras_muffnet.quantization.rules import scaling
from keras_muffnet.quantization.rules import shapes
from keras_muffnet.quantization.writer import Rules

# By the name of a layer's class, or of an operation's behind "op".
RULES: Rules = {
    **activations.RULES,
    **arithmetic.RULES,
    **convolutions.RULES,
    **einsum.RULES,
    **normalizations.RULES,
    **resizing.RULES,
    **scaling.RULES,
    **shapes.RULES,
}
