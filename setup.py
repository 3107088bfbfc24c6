"""Packaging of keras_muffnet.

The ranges admit the versions that the tests were run with and end where the
next release could break them.
"""

import pathlib
import re

from setuptools import find_packages
from setuptools import setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "keras_muffnet/__init__.py").read_text()
).group(1)

TENSORFLOW = ["tensorflow>=2.18,<2.22"]
# TensorFlow Datasets imports importlib_resources without asking for it.
DATASETS = [
    *TENSORFLOW,
    "pillow>=11,<14",
    "importlib_resources",
    "tensorflow-datasets>=4.9.10,<5",
]
# Images for training where there is no TensorFlow.
ARRAYS = ["pillow>=11,<14"]
# HEIC images, as phones take them.
HEIF = [*ARRAYS, "pillow-heif>=0.18,<2"]
# Images with boxes, which Pillow decodes; COCO's evaluation; YOLO's lists.
DETECTION = [*ARRAYS, "pycocotools>=2.0.11,<3", "pyyaml>=6,<7"]
# Videos for `muffnet detect`.
VIDEO = ["imageio[ffmpeg]>=2.34,<3"]
QUANTIZATION = [
    *TENSORFLOW,
    "ai-edge-litert>=2.3,<3",
    "tensorflow-model-optimization>=0.8.1,<0.9",
    "tf_keras>=2.18,<2.22",
]
# What serves .tflite files; TensorFlow comes on top for SavedModels and gRPC.
LITERT_SERVING = [
    "ai-edge-litert>=2.3,<3",
    "httptools>=0.6",
    "orjson>=3.10,<4",
    "pillow>=11,<14",
    "protobuf>=5",
    # Optional: tensors in JSON are read without it, more slowly.
    "pysimdjson>=7,<8",
    "uvicorn>=0.30,<1",
    "uvloop>=0.19",
]
GRPC = ["grpcio>=1.70,<2", "tensorflow-serving-api>=2.18,<2.22"]
# The server's own services by flags: health, and reflection.
GRPC_SERVICES = [
    "grpcio-health-checking>=1.70,<2",
    "grpcio-reflection>=1.70,<2",
]
SERVING = [*TENSORFLOW, *LITERT_SERVING, *GRPC, *GRPC_SERVICES]
# serving/client.py, and with GRPC its gRPC; serving/loadtest.
CLIENT = ["httpx>=0.28,<1", "orjson>=3.10,<4", "tenacity>=9,<10"]
LOADTEST = [*SERVING, "locust>=2.40,<3", "matplotlib>=3.8,<4", "psutil>=6"]
# Pictures, and the digits that the quickstart trains on.
EXAMPLES = ["matplotlib>=3.8,<4", "scikit-learn>=1.5,<2"]
# Completion of `muffnet` in a shell.
COMPLETION = ["shtab>=1.7,<2"]
ALL = sorted(
    {
        *DATASETS,
        *HEIF,
        *DETECTION,
        *VIDEO,
        *QUANTIZATION,
        *SERVING,
        *EXAMPLES,
        *COMPLETION,
    }
)
# The documentation's site, and what runs its blocks and notebooks.
DOCS = [
    "ipykernel>=6,<8",
    "mkdocs-material>=9.6,<10",
    "mkdocstrings[python]>=0.30,<2",
    "nbclient>=0.10,<1",
]

setup(
    name="keras-muffnet",
    version=VERSION,
    description="MuffNet, a small image network, for Keras 3",
    author="The keras_muffnet developers",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="keras mobile cnn quantization litert tflite serving ssd",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["keras_muffnet", "keras_muffnet.*"]),
    package_data={
        "keras_muffnet": [
            "py.typed",
            "model_server/page.html",
            "training/fast/kernels.c",
            "weights/*",
        ]
    },
    entry_points={
        "console_scripts": [
            "muffnet=keras_muffnet.cli.main:main",
            "muffnet-model-server=keras_muffnet.cli.serve:alias",
        ]
    },
    python_requires=">=3.11,<3.14",
    # keras_muffnet/graph.py walks Keras's graph of nodes, which is not a public
    # interface: hence the upper limit. Keras 3.8 lacks CutMix.
    install_requires=["keras>=3.10,<3.16", "numpy>=2,<3", "packaging>=23"],
    extras_require={
        # Pillow decodes what TensorFlow does not.
        "tensorflow": [*TENSORFLOW, *ARRAYS],
        "datasets": DATASETS,
        "arrays": ARRAYS,
        "heif": HEIF,
        "detection": DETECTION,
        "video": VIDEO,
        "examples": EXAMPLES,
        "completion": COMPLETION,
        "quantization": QUANTIZATION,
        "serving": SERVING,
        "litert-serving": LITERT_SERVING,
        "client": CLIENT,
        "client-grpc": [*CLIENT, *TENSORFLOW, *GRPC],
        "loadtest": LOADTEST,
        "docs": DOCS,
        "all": ALL,
        "test": [
            *ALL,
            *CLIENT,
            *DOCS,
            *LOADTEST,
            "check-jsonschema>=0.39,<1",
            "cryptography>=44",
            "hypothesis>=6,<7",
            "jax>=0.10,<0.11",
            "kubernetes-validate>=1.37,<2",
            "mypy>=2.4,<3",
            # Keras's export to ONNX, for tests/transfer_guide.py.
            "onnx>=1.19,<2",
            "prometheus-client>=0.22,<1",
            "pytest>=9,<10",
            "pytest-xdist>=3.8,<4",
            "pyyaml>=6,<7",
            "ruff>=0.17,<0.18",
            "selenium>=4.40,<5",
            "setuptools>=68",
            "tf2onnx>=1.17,<2",
            "torch==2.13.0",
            "twine>=6,<7",
            "wheel",
        ],
    },
)
