"""Makes the table of what can be quantized, beside TensorFlow's converter.

    python -m tools.benchmarks.quantization_coverage \
        --output results/quantization_coverage.csv

Each of the networks in `quantization_networks.py`, of random weights, is made
an int8 file in four ways: by TensorFlow's converter, by
`quantize_post_training`, and trained for a step under fake quantization by
either engine. The table has the signal-to-quantization-noise ratio of each
file's outputs, in dB, on inputs that no range was found on, and the number of
its operations in float. Half an hour on an idle CPU core. Interrupted, the same
command resumes with the next one; `--only` takes a few of them.

With few weights chance decides which of two files has the larger errors. Where
a way seems to be more than 1 dB behind the converter, `--draws 5` gives the
mean over five networks whose weights are drawn anew.
"""

import argparse
import gc
import os
import pathlib
import tempfile
from typing import Any
from typing import NamedTuple
from typing import cast

import numpy as np

from tools.benchmarks import common

# For deterministic kernels and a fair share of a machine.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

WAYS = ("converter", "post_training", "keras", "tfmot")
CALIBRATION, HELD_OUT = 128, 32


class Figures(NamedTuple):
    """What is measured of a file.

    Attributes:
        sqnr: signal-to-quantization-noise ratio of the outputs in dB.
        float_operations: number of operations on float tensors, but for those
            that quantize.
    """

    sqnr: float
    float_operations: int


def measure(network: Any, way: str, draws: int = 1) -> Figures:
    """Writes a network as a file and compares the file with it.

    Args:
        network: one of `quantization_networks.NETWORKS`.
        way: one of `WAYS`.
        draws: number of draws of the weights. Of several, the mean ratio and
            the most operations in float count.
    """
    from tools.benchmarks import quantization_networks

    data = quantization_networks.images(network, CALIBRATION)
    held_out = quantization_networks.images(network, HELD_OUT, seed=7)
    figures = []
    for seed in range(draws):
        model = quantization_networks.build(network, seed)
        content = make_file(model, data, way)
        figures.append(compare(model, content, held_out))
    ratios, counts = zip(*figures, strict=True)
    return Figures(float(np.mean(ratios)), max(counts))


def compare(model: Any, content: bytes, inputs: list[np.ndarray]) -> Figures:
    """Compares a file's outputs with those of the float model."""
    import keras

    from keras_muffnet.litert import read_operations

    x = inputs if len(inputs) > 1 else inputs[0]
    expected = keras.tree.flatten(model(x, training=False))
    expected = list(map(keras.ops.convert_to_numpy, expected))
    found = run_file(content, inputs)
    ratios = []
    for ours in expected:
        # Files have their outputs in an order of their own.
        fitting = [y for y in found if y.shape == ours.shape]
        noise = min(np.mean((ours - y) ** 2) for y in fitting)
        ratios.append(10 * np.log10(np.mean(ours**2) / max(noise, 1e-12)))
    floats = [
        name
        for name, dtypes in read_operations(content)
        if name not in ("QUANTIZE", "DEQUANTIZE")
        and any(dtype.startswith("FLOAT") for dtype in dtypes)
    ]
    return Figures(float(min(ratios)), len(floats))


def run_file(content: bytes, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs of an int8 file as floats, example by example."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    # The file's own order is another; the signature names them in the model's.
    named = interpreter.get_signature_runner().get_input_details()
    takes = [named[name] for name in sorted(named)]
    gives = interpreter.get_output_details()
    outputs: list[list[np.ndarray]] = [[] for _ in gives]
    for k in range(len(inputs[0])):
        for detail, x in zip(takes, inputs, strict=True):
            scale, zero = detail["quantization"]
            levels = np.clip(np.round(x[k : k + 1] / scale + zero), -128, 127)
            interpreter.set_tensor(detail["index"], levels.astype(np.int8))
        interpreter.invoke()
        for values, detail in zip(outputs, gives, strict=True):
            scale, zero = detail["quantization"]
            y = interpreter.get_tensor(detail["index"]).astype(np.float32)
            values.append((y - zero) * scale)
    return [np.concatenate(values) for values in outputs]


def make_file(model: Any, data: list[np.ndarray], way: str) -> bytes:
    """An int8 file of a model, with ranges from the data.

    Args:
        model: the model.
        data: an array for each input.
        way: of `WAYS`.
    """
    if way == "converter":
        return _by_converter(model, data)
    return _by_package(model, data, way)


def _by_converter(model: Any, data: list[np.ndarray]) -> bytes:
    import tensorflow as tf

    signature = [
        tf.TensorSpec((1, *x.shape[1:]), name=f"images_{k}")
        for k, x in enumerate(model.inputs)
    ]

    @tf.function(input_signature=signature)
    def serve(*images: Any) -> Any:
        return model(images if len(images) > 1 else images[0], training=False)

    module = tf.Module()
    with tempfile.TemporaryDirectory() as folder:
        function = serve.get_concrete_function()
        module.used = function.variables
        tf.saved_model.save(module, folder, signatures=function)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: (
            {f"images_{k}": x[n : n + 1] for k, x in enumerate(data)}
            for n in range(len(data[0]))
        )
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
        return converter.convert()


def _by_package(model: Any, data: list[np.ndarray], way: str) -> bytes:
    import keras

    from keras_muffnet import quantization

    x = data if len(data) > 1 else data[0]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.tflite")
        if way == "post_training":
            quantization.quantize_post_training(model, x, path)
            return path.read_bytes()
        quantized = quantization.quantize_aware(model, x, engine=cast(Any, way))
        # The float model's own outputs: the weights have little to learn.
        y = model(x, training=False)
        y = keras.tree.map_structure(keras.ops.convert_to_numpy, y)
        # A step of Adam does not grow with the outputs. This one changes them
        # by less than rounding does.
        quantized.compile("adam", "mse", run_eagerly=True)
        quantized.optimizer.learning_rate = 1e-5
        quantized.train_on_batch(x, y)
        return quantization.convert(quantized, path).read_bytes()


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--only", nargs="+", default=[], metavar="NETWORK")
    parser.add_argument("--draws", type=int, default=1, help="of the weights")
    arguments = parser.parse_args()

    import tensorflow as tf

    from keras_muffnet._files import write_csv
    from tools.benchmarks.quantization_networks import NETWORKS

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    names = arguments.only or NETWORKS
    header = ["network", "kind", "draws"]
    for way in WAYS:
        header += [f"{way}_sqnr", f"{way}_float_operations"]
    rows = common.read_rows(arguments.output, "network")
    for name in names:
        if name in rows:
            continue
        draws = str(arguments.draws)
        row = {"network": name, "kind": NETWORKS[name].kind, "draws": draws}
        for way in WAYS:
            row.update(_measured(name, NETWORKS[name], way, arguments.draws))
        rows[name] = row
        print(*row.values(), sep="\t", flush=True)
        write_csv(arguments.output, rows.values(), header)
        # Closed graphs sit in reference cycles.
        gc.collect()


def _measured(name: str, network: Any, way: str, draws: int) -> dict[str, str]:
    try:
        figures = measure(network, way, draws)
    except Exception as error:  # a network that a way does not take
        print(f"{name}: {way}: {common.shortened(error)}")
        return {f"{way}_sqnr": "fails"}
    return {
        f"{way}_sqnr": f"{figures.sqnr:.1f}",
        f"{way}_float_operations": str(figures.float_operations),
    }


if __name__ == "__main__":
    main()
