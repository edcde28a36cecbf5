"""For `pip install .`. Versions are those of fairseq_sru/versions.py. fairseq: python -m fairseq_sru.install_fairseq"""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSIONS = runpy.run_path(str(ROOT / "fairseq_sru" / "versions.py"))

packages = find_packages(include=["fairseq_sru", "fairseq_sru.*"])
if (ROOT / "kernels").is_dir():
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
    # The CUDA source lies beside the package in a checkout, and inside it where it is installed.
    package_dir={"fairseq_sru.kernels": "kernels"},
    package_data={
        "fairseq_sru": ["*.patch", "py.typed", "config/**/*.yaml"],
        "fairseq_sru.kernels": ["*.cu", "*.cpp", "*.h"],
    },
    zip_safe=False,
    # A line of sys.path; a finder would come behind a folder of this name, which a checkout is for the folder above it
    options={"editable_wheel": {"mode": "compat"}},
)
