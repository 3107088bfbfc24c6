"""Prints parameters and multiply-adds.

    muffnet count
    muffnet count --alpha 0.5 --size 32 --classes 10
    muffnet count --model bccd
    muffnet count --model backbone.keras --size 224

Without arguments: the nine counts that the paper publishes, from built models
and from the closed formulas. With any: one network, layer by layer.
"""

import argparse
from typing import TYPE_CHECKING
from typing import Any

from keras_muffnet._arguments import positive_integer
from keras_muffnet.presets import PAPER_NOTATION
from keras_muffnet.presets import PRESETS
from keras_muffnet.presets import STEMS
from keras_muffnet.presets import closed_form_counts
from keras_muffnet.presets import stages_from_notation

if TYPE_CHECKING:
    import keras

# Of the network that is built where no model is named.
DEFAULTS: dict[str, Any] = {
    "alpha": 1.0,
    "sharing": PAPER_NOTATION,
    "size": 224,
    "stem": "auto",
    "classes": 1000,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives a parser this command's flags."""
    parser.add_argument(
        "--model", help="name of one that ships, or .keras file"
    )
    built = parser.add_argument_group("a MuffNet that is built, in its place")
    for name, kind, text, choices in (
        ("alpha", float, "width multiplier", None),
        ("sharing", str, "sharing patterns", None),
        ("size", int, "image size, of a --model that takes any too", None),
        ("stem", str, "first layers", ("auto", *STEMS)),
        ("classes", int, "units of the classifier", None),
    ):
        built.add_argument(
            f"--{name}",
            type=kind,
            choices=choices,
            help=f"{text} (default: {DEFAULTS[name]})",
        )


def run(args: argparse.Namespace) -> None:
    """Counts and prints."""
    given = {
        name: value
        for name in DEFAULTS
        if (value := getattr(args, name)) is not None
    }
    if args.model is None and not given:
        print_published_counts()
        return
    from keras_muffnet import MuffNet
    from keras_muffnet import count_complexity
    from keras_muffnet.blocks import image_shape

    if args.model is not None:
        from keras_muffnet.cli import common
        from keras_muffnet.evaluation import load_keras_model

        others = tuple(name for name in DEFAULTS if name != "size")
        common.refuse(args, others, "where --model is given")
        model = load_keras_model(args.model)
        print(count_complexity(model, input_shape(model, args.size)))
        return
    settings = DEFAULTS | given
    model = MuffNet(
        input_shape=image_shape(settings["size"]),
        stages=stages_from_notation(settings["sharing"], settings["alpha"]),
        stem=settings["stem"],
        classes=settings["classes"],
    )
    print(count_complexity(model))


def input_shape(
    model: "keras.Model", size: int | None
) -> tuple[int, ...] | None:
    """Returns the shape of a model's images; None where it has its own.

    Args:
        model: of one input, or of inputs of static shape.
        size: what `--size` gives, for all sides that the model leaves open.

    Raises:
        ValueError: if `--size` is missing, or given for a model that has its
            own size.
    """
    shape = model.inputs[0].shape[1:]
    if None not in shape:
        if size is not None:
            raise ValueError(
                "--size must be left out for a model that takes one size: its "
                f"images are of shape {tuple(shape)}. Received: {size}"
            )
        return None
    if size is None:
        raise ValueError("--size must be given: the model takes any size")
    size = positive_integer("size", size)
    return tuple(size if side is None else side for side in shape)


def print_published_counts() -> None:
    """Prints the nine counts.

    Raises:
        RuntimeError: if one differs from the paper or the formula.
    """
    from keras_muffnet import MuffNet
    from keras_muffnet import count_complexity
    from keras_muffnet.blocks import image_shape

    print(
        f"{'alpha':<6} {'count':<26} {'built model':>15} "
        f"{'closed formula':>17}   paper"
    )
    agree = True
    for alpha, preset in PRESETS.items():
        stages = stages_from_notation(PAPER_NOTATION, alpha)
        large = count_complexity(MuffNet(alpha=alpha))
        small = count_complexity(
            MuffNet(input_shape=image_shape(32), alpha=alpha, classes=10)
        )
        formula_large = closed_form_counts(stages, 224, "imagenet")
        formula_small = closed_form_counts(stages, 32, "cifar", classes=10)
        for label, built, formula, paper, digits in (
            (
                "parameters, 1,000 classes",
                large.parameters,
                formula_large.parameters,
                preset.paper_parameters,
                1,
            ),
            (
                "MACs at 224, 1,000 classes",
                large.macs,
                formula_large.macs,
                preset.paper_macs_224,
                0,
            ),
            (
                "MACs at 32, 10 classes",
                small.macs,
                formula_small.macs,
                preset.paper_macs_32,
                0,
            ),
        ):
            same = built == formula and round(built / 1e6, digits) == paper
            agree = agree and same
            print(
                f"{alpha:<6} {label:<26} {built:>15,} {formula:>17,} "
                f"{paper:>6.{digits}f}M  {'' if same else 'DIFFERS'}".rstrip()
            )
    if not agree:
        raise RuntimeError("Not all counts agree, see DIFFERS")
