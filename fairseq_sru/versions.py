"""The one place where versions are pinned. It imports nothing: setup.py and install_fairseq.py read it before anything
is installed. requirements.txt follows from it:

    python fairseq_sru/versions.py > requirements.txt
"""

__version__ = "0.1.0"
PYTHON = ">=3.11,<3.15"  # later ones were not tried

# Ranges: whoever has a torch of their own (CUDA, ROCm, CPU) keeps it.
TORCH = "torch>=2.6"
NUMPY = "numpy>=1.26"

# The official sdist, which fairseq_sru/patches mends.
FAIRSEQ = "0.12.2"
FAIRSEQ_SHA256 = "34f1b18426bf3844714534162f065ab733e049597476daa35fffb4d06a92b524"
# 01-build.patch repeats these two; tests/test_setup.py compares them.
FAIRSEQ_BUILD = ("setuptools==80.9.0", "cython==3.2.4", "numpy==2.4.6")
FAIRSEQ_RUN = ("hydra-core==1.3.2", "omegaconf==2.3.0")

RECIPES = (
    *FAIRSEQ_RUN,
    "editdistance==0.8.1",
    "filelock==4.3.1",
    "joblib==1.6.0",
    "kaldi-native-fbank==1.23.0",
    "matplotlib==3.11.2",
    "PyYAML==6.0.3",
    "sacrebleu==2.6.0",
    "sacremoses==0.2.0",
    "safetensors==0.8.0",
    "sentencepiece==0.2.1",
    "soundfile==0.14.0",
    "subword-nmt==0.3.8",
    "tqdm==4.67.3",
)

# pynvrtc 9.2 is marked as yanked: pip takes it only by this exact pin.
CUDA = ("pynvrtc==9.2", "cuda-pathfinder==1.9.0")
CUDA12 = ("cupy-cuda12x==14.2.0", *CUDA)
CUDA13 = ("cupy-cuda13x==14.2.0", *CUDA)

# What speed.py measures on a GPU next to the published sru; fla-core has the kernels of flash-linear-attention.
RIVALS = ("accelerated-scan==0.3.1", "fla-core==0.6.0", "einops")
ANTLR = "antlr4-python3-runtime==4.9.3"  # hydra-core's own choice, which has no wheel

# NVRTC compiles for GPUs that aren't there; sru is the published package, to compare with.
TEST = (
    "coverage==7.17.4",
    "hypothesis==6.170.17",
    "import-linter==2.17",
    "mypy==2.4.1",
    "nvidia-cuda-nvrtc==13.0.88; sys_platform == 'linux'",
    *CUDA,
    "pytest==9.0.3",
    "pytest-xdist==3.8.0",
    "ruff==0.17.6",
    "sru==2.6.0",
    "types-PyYAML==6.0.12.20261113",
    "types-tqdm==4.70.0.20261106",
)

REQUIREMENTS = (TORCH, NUMPY, *RECIPES, *TEST)

if __name__ == "__main__":
    print("# Recipes and tests. Written by: python fairseq_sru/versions.py > requirements.txt")
    print("# fairseq itself comes from: python fairseq_sru/install_fairseq.py", *REQUIREMENTS, sep="\n")
