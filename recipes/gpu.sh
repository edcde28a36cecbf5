#!/usr/bin/env bash
# Tests, speed and training on an NVIDIA GPU, in ten minutes (what installing takes counts, but isn't stopped):
#     bash recipes/gpu.sh [OUT] [--minutes N]
# tests, speed of layers, recurrences and models next to others', and a comparison by training, the most important first, each part
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
for folder in "${CUDA_HOME:-/usr/local/cuda}" /usr/local/cuda-*; do PATH=$PATH:$folder/bin; done # nvcc and compute-sanitizer
. recipes/setup.sh
site=$PWD/runs/gpu/site
export PYTHONPATH=$PWD:$PWD/recipes:$site${PYTHONPATH:+:$PYTHONPATH}
cuda=$(python -c 'import torch; print((torch.version.cuda or "").partition(".")[0])')
if [ -n "$cuda" ]; then
    python -c 'import cupy' 2>/dev/null || PIP_CONSTRAINT='' PIP_USER=0 python -m pip install -e ".[cuda$cuda]"
    sru=$(python -c 'from importlib import util; print(*util.find_spec("sru").submodule_search_locations)' 2>/dev/null) || sru=
    if [ -n "$sru" ] && [ ! -d "$site/sru" ]; then # its CUDA source, as torch 2.6 and later compile it, on torch's stream
        mkdir -p "$site" && cp -r "$sru" "$site/sru"
        sed -i -e 's/U\.type()/U.scalar_type()/; s/<<<blocks, threads>>>/<<<blocks, threads, 0, c10::cuda::getCurrentCUDAStream()>>>/' \
            -e '1i #include <c10/cuda/CUDAStream.h>' "$site/sru/csrc/sru_cuda_kernel.cu"
    fi
    rivals=$(python -c 'import runpy; print(*runpy.run_path("fairseq_sru/versions.py")["RIVALS"])')
    # shellcheck disable=SC2086 # several packages; without torch and Triton, which are there
    [ -d "$site/fla" ] || PIP_CONSTRAINT='' PIP_USER=0 PIP_RETRIES=1 PIP_DEFAULT_TIMEOUT=10 python -m pip -q install --no-deps --target "$site" $rivals ||
        echo "gpu.sh: going on without others' kernels" >&2
fi
export PATH=$site/bin:$PATH
export TORCH_EXTENSIONS_DIR=$PWD/runs/gpu/extensions # where others' kernels are built
find "$TORCH_EXTENSIONS_DIR" -name lock -delete 2>/dev/null || true # of a build that was stopped: torch would wait for its end
export FAIRSEQ_SRU_CACHE=${FAIRSEQ_SRU_CACHE:-${TMPDIR:-/tmp}/fairseq_sru_gpu_$UID} # our kernels: tests and measurements share them
mkdir -p -m 700 "$FAIRSEQ_SRU_CACHE"
arch=$(python -c 'import torch; print(*torch.cuda.get_device_capability(), sep=".")' 2>/dev/null) || arch=
case $arch in [0-9]*) export TORCH_CUDA_ARCH_LIST=$arch ;; esac # for this card only
export NVIDIA_TF32_OVERRIDE=0 # by default cuDNN's LSTM has less precision than the others
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # several processes test and train
export FAIRSEQ_SRU_GPU_BEGUN=$(($(date +%s) - SECONDS))
FAIRSEQ_SRU_GPU_FROM=$here exec python -m gpu "$@" # OUT is below it
