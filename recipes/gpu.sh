#!/usr/bin/env bash
# Everything that is to be known of an NVIDIA GPU, in ten minutes (what installing takes counts, but isn't stopped):
#     bash recipes/gpu.sh [OUT] [--minutes N]
# tests, speed of layers, recurrences and models beside others', and a comparison by training, the most important first, each part
# within its time. Results go to OUT (recipes/results/gpu/CARD) after each part. Run again, it does what is not done.
# FAIRSEQ_SRU_GPU_DRY=1: all of it at small sizes on a machine without a GPU.
set -euo pipefail
for word in "$@"; do
    case $word in --minutes | --minutes=* | [!-]*) continue ;; esac
    sed -n '2,7s/^# //p' "$0"
    exit 2
done
here=$PWD
CDPATH='' cd -P -- "$(dirname -- "$0")/.."
[ -f recipes/setup.sh ] || cd -P -- "${SLURM_SUBMIT_DIR:-.}" # sbatch runs a copy
site=$PWD/runs/gpu/site
packages() { # what is missing goes into a folder of its own: the environment stays as it is
    PYTHONPATH=$PWD:$PWD/recipes:$site python -m gpu.packages "$@" "$site"
}
has() { # MODULE
    python -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)" 2>/dev/null
}
for folder in "${CUDA_HOME:-/usr/local/cuda}" /usr/local/cuda-*; do PATH=$PATH:$folder/bin; done # nvcc and compute-sanitizer
. recipes/setup.sh
cuda=$(python -c 'import torch; print((torch.version.cuda or "").partition(".")[0])')
if [ -n "$cuda" ]; then
    has cupy || PIP_CONSTRAINT='' PIP_USER=0 _sru_run python -m pip install -e ".[cuda$cuda]"
    PIP_RETRIES=1 PIP_DEFAULT_TIMEOUT=10 packages others ||
        echo "gpu.sh: going on without others' kernels" >&2
fi
export PYTHONPATH=$PWD:$PWD/recipes:$site${PYTHONPATH:+:$PYTHONPATH}
export PATH=$site/bin:$PATH
export TORCH_EXTENSIONS_DIR=$PWD/runs/gpu/extensions # where others' kernels are built
kernels=$PWD/runs/gpu/kernels above=$PWD folders=()
while [ -n "$above" ]; do
    folders+=("$above")
    above=${above%/*}
done
if [ -n "$(find "${folders[@]}" -maxdepth 0 -perm -0002 ! -perm -1000)" ]; then # others could put kernels there
    kernels=${TMPDIR:-/tmp}/fairseq_sru_gpu_$UID
    mkdir -p -m 700 "$kernels"
fi
export FAIRSEQ_SRU_CACHE=${FAIRSEQ_SRU_CACHE:-$kernels} # and ours: tests and measurements share it
arch=$(python -c 'import torch; print(*torch.cuda.get_device_capability(), sep=".")' 2>/dev/null) || arch=
case $arch in [0-9]*) export TORCH_CUDA_ARCH_LIST=$arch ;; esac # and for this card alone
export NVIDIA_TF32_OVERRIDE=0 # float32 is that for all; by default cuDNN's LSTM alone has less
export FAIRSEQ_SRU_GPU_BEGUN=$(($(date +%s) - SECONDS))
FAIRSEQ_SRU_GPU_FROM=$here exec python -m gpu "$@" # OUT is below it
