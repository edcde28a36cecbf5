"""For `pip install .`. Versions are those of fairseq_sru/versions.py. fairseq: python -m fairseq_sru.install_fairseq"""

import runpy
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSIONS = runpy.run_path(str(ROOT / "fairseq_sru" / "versions.py"))

# The CUDA source lies next to the package in a checkout, and inside it where it is installed. Without that, an editable
# install is a line of sys.path; what it is else comes behind any folder named fairseq_sru, as a checkout may be.
INSIDE = (ROOT / "kernels").is_dir() and "editable_wheel" not in sys.argv
packages = find_packages(include=["fairseq_sru", "fairseq_sru.*"])
if INSIDE:
    packages.append("fairseq_sru.kernels")

setup(
    name="fairseq_sru",
    version=VERSIONS["__version__"],
    description="Simple Recurrent Units for translation with fairseq",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=["SRU", "simple recurrent unit", "fairseq", "machine translation", "LSTM"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Linguistic",
        "Typing :: Typed",
    ],
    project_urls={
        "Paper (2017)": "https://arxiv.org/abs/1709.02755v1",
        "Paper (2018)": "https://aclanthology.org/D18-1477",
        "fairseq": "https://github.com/facebookresearch/fairseq",
    },
    license="MIT",
    license_files=["LICENSE"],
    python_requires=VERSIONS["PYTHON"],
    install_requires=[VERSIONS["TORCH"], VERSIONS["NUMPY"]],
    extras_require={
        "cuda12": VERSIONS["CUDA12"],
        "cuda13": VERSIONS["CUDA13"],
        "recipes": VERSIONS["RECIPES"],
        "test": VERSIONS["TEST"],
    },
    packages=packages,
    package_dir={"fairseq_sru.kernels": "kernels"} if INSIDE else {"": "."},
    package_data={
        "fairseq_sru": ["patches/*", "py.typed", "config/**/*.yaml"],
        "fairseq_sru.kernels": ["*.cu", "*.cpp", "*.h"],
    },
    zip_safe=False,
)
