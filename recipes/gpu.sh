#!/usr/bin/env bash
# Everything that is to be known of an NVIDIA GPU, in ten minutes at most:
#     bash recipes/gpu.sh [OUT] [--minutes N]
# tests, speed of layers, recurrences and models beside others', and a comparison by training, the most important first, each part
# within its time. Results go to OUT (recipes/results/gpu/CARD) after each part. Run again, it does what is not done.
# FAIRSEQ_SRU_GPU_DRY=1: all of it at small sizes on a machine without a GPU.
# On a machine without network, what it needs beside torch comes from the folder wheels: recipes/gpu_wheels.py makes it.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
if [ -d wheels ]; then
    python=$(command -v python || command -v python3)
    PYTHONPATH=$PWD:$PWD/recipes "$python" -m gpu.packages install wheels runs/gpu/site
    export PYTHONPATH=$PWD/runs/gpu/site:$PWD/runs/gpu/fairseq PATH=$PWD/runs/gpu/fairseq/bin:$PATH
else
    . recipes/setup.sh
    python=python
    cuda=$(python -c 'import torch; print((torch.version.cuda or "").partition(".")[0])')
    [ -z "$cuda" ] || _sru_run python -m pip install -q ".[cuda$cuda]" # nothing to do where it is there
fi
case ${1:-} in '' | /* | -*) ;; *) set -- "$here/$1" "${@:2}" ;; esac
PYTHONPATH=$PWD:$PWD/recipes${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m gpu "$@"
