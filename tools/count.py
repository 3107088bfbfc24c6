"""Prints parameters and multiply-adds of MuffNet.

Without arguments: the nine counts that the paper publishes, from built models
and from the closed formulas. With any: one network, layer by layer.
"""

import argparse
import sys

from keras_muffnet.presets import PAPER_NOTATION
from keras_muffnet.presets import PRESETS
from keras_muffnet.presets import STEMS
from keras_muffnet.presets import closed_form_counts
from keras_muffnet.presets import stages_from_notation


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--alpha", type=float, default=1.0, help="width multiplier"
    )
    parser.add_argument(
        "--sharing", default=PAPER_NOTATION, help="sharing patterns"
    )
    parser.add_argument("--size", type=int, default=224, help="image size")
    parser.add_argument(
        "--stem", default="auto", choices=("auto", *STEMS), help="first layers"
    )
    parser.add_argument(
        "--classes", type=int, default=1000, help="units of the classifier"
    )
    flags = parser.parse_args()
    if len(sys.argv) == 1:
        return print_published_counts()
    # Imported here, since Keras starts slowly and --help needs it not.
    from keras_muffnet import MuffNet
    from keras_muffnet import count_complexity

    try:
        model = MuffNet(
            input_shape=(flags.size, flags.size, 3),
            stages=stages_from_notation(flags.sharing, flags.alpha),
            stem=flags.stem,
            classes=flags.classes,
        )
    except ValueError as error:
        parser.error(str(error))
    print(count_complexity(model))
    return 0


def print_published_counts() -> int:
    """Prints the nine counts; 1 if one differs from the paper or formula."""
    from keras_muffnet import MuffNet
    from keras_muffnet import count_complexity

    print("alpha  count              built model    closed formula   paper")
    agree = True
    for alpha, preset in PRESETS.items():
        stages = stages_from_notation(PAPER_NOTATION, alpha)
        large = count_complexity(MuffNet(alpha=alpha))
        small = count_complexity(
            MuffNet(input_shape=(32, 32, 3), alpha=alpha, classes=10)
        )
        formula_large = closed_form_counts(stages, 224, "imagenet")
        formula_small = closed_form_counts(stages, 32, "cifar", classes=10)
        for label, built, formula, paper, digits in (
            (
                "parameters",
                large.parameters,
                formula_large.parameters,
                preset.paper_parameters,
                1,
            ),
            (
                "MACs at 224",
                large.macs,
                formula_large.macs,
                preset.paper_macs_224,
                0,
            ),
            (
                "MACs at 32",
                small.macs,
                formula_small.macs,
                preset.paper_macs_32,
                0,
            ),
        ):
            same = built == formula and round(built / 1e6, digits) == paper
            agree = agree and same
            print(
                f"{alpha:<6} {label:<14} {built:>15,} {formula:>17,} "
                f"{paper:>6.{digits}f}M  {'' if same else 'DIFFERS'}".rstrip()
            )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
