#!/usr/bin/env bash
# Sets up what is missing, then lints, checks types and tests:
#     bash tests/run.sh [--all] [--coverage] [pytest arguments]
# A process for each core, files in turns; -n 0 for one process. --all adds the tests marked slow, and CuPy, where there is none
# (70 MB), for the one that needs it and no GPU. --coverage ends with the lines and branches that no test ran, in child
# processes either.
set -euo pipefail
trap 'exit 130' INT # also where what was interrupted ends as if it had failed
CDPATH='' cd -- "$(dirname -- "$0")/.."
. recipes/setup.sh

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # threads of several processes on one core wait for one another
tier=(-m "not slow")
pytest=(python -m pytest)
while true; do
    case "${1:-}" in
    --all)
        tier=(--hypothesis-profile search)
        pick='import runpy, torch; pins = runpy.run_path("fairseq_sru/versions.py"); '
        pick+='print(pins["CUDA12" if (torch.version.cuda or "").startswith("12.") else "CUDA13"][0])'
        cupy=$(python -c "$pick")
        python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("cupy") is None)' ||
            _sru_run python -m pip install "$cupy" ||
            echo "run.sh: $cupy can't be installed (is there no network?); the test of the real CuPy is skipped" >&2
        ;;
    --coverage)
        pytest=(python -m coverage run -m pytest)
        python -m coverage erase # of a run that failed
        ;;
    *) break ;;
    esac
    shift
done
python -m ruff check .
python -m ruff format --check .
python -m mypy
# A container's share of the cores, which pytest-xdist doesn't see.
if read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max && [ "$quota" != max ]; then
    export PYTEST_XDIST_AUTO_NUM_WORKERS=${PYTEST_XDIST_AUTO_NUM_WORKERS:-$(((quota + period - 1) / period))}
fi
"${pytest[@]}" -n auto --dist loadfile --no-loadscope-reorder -ra "${tier[@]}" "$@"
if [ "${pytest[2]}" = coverage ]; then
    python -m coverage combine --quiet
    python -m coverage report
fi
