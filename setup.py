"""Name, version, dependencies, extras and console scripts; no logic beyond reading them."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "wsod/__init__.py").read_text("utf-8")).group(1)

TEST = [
    "captum>=0.7",
    "grad-cam>=1.5.4",
    "h5py>=3.8",
    "hypothesis>=6.100",
    "mypy>=1.10",
    "onnx>=1.16",
    "onnxruntime>=1.18",
    "onnxscript>=0.3",
    "opencv-python-headless>=4.8",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff>=0.5",
    "scikit-learn>=1.4",
    "selenium>=4.20",
    "timm>=1.0",
    "torchcam>=0.5",
    "zennit>=0.5.1",
]

setup(
    name="wsod-atcon",
    version=VERSION,
    description="Attention maps to masks and boxes, scored; and training that makes the attention better",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["weakly supervised localization", "class activation map", "attention", "evaluation"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[*find_packages(include=["wsod*", "atcon*"]), "wsod.eval_configs"],
    package_dir={"wsod.eval_configs": "eval_configs"},
    package_data={
        "wsod": ["py.typed", "report/templates/*"],
        "wsod.eval_configs": ["*.toml"],
        "atcon": ["py.typed", "recipes/*.toml"],
    },
    install_requires=[
        "click>=8.2.1",
        "defusedxml>=0.7.1",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "matplotlib>=3.8",
        "numba>=0.59",
        "numpy>=1.26",
        "pillow>=10",
        "pycocotools>=2.0.7",
        "rich>=13.7",
        "safetensors>=0.4",
        "scikit-image>=0.22",
        "scipy>=1.11",
        "tomli-w>=1.0",
        "torch>=2.4",
        "torchvision>=0.19",
    ],
    extras_require={
        "captum": ["captum>=0.7"],
        "coco": ["faster-coco-eval>=1.8"],
        "onnx": ["onnx>=1.16", "onnxscript>=0.3"],
        "svhn": ["h5py>=3.8"],
        "tensorboard": ["tensorboard>=2.14"],
        "timm": ["timm>=1.0"],
        "test": TEST,
    },
    entry_points={"console_scripts": ["wsod=wsod.cli:main", "atcon=atcon.cli:main"]},
)
