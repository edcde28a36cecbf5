#!/usr/bin/env bash
# Sets up what is missing, then lints, checks types and tests:
#     bash tests/run.sh [--all] [--coverage] [pytest arguments]
# A process for each core, files in turns; -n 0 for one process. --all adds the tests marked slow. --coverage ends with the lines
# and branches that no test ran, in child processes either. CuPy (70 MB) is installed, where there is none, for tests on a GPU and,
# with --all, for the one that needs it and no GPU.
set -euo pipefail
trap 'exit 130' INT # also where what was interrupted ends as if it had failed
CDPATH='' cd -- "$(dirname -- "$0")/.."
. recipes/setup.sh

unset PYTHONDONTWRITEBYTECODE # with it, as in many images, each of some thousand processes compiles the package
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # threads of several processes on one core wait for one another
tier=(-m "not slow")
all=
pytest=(python -m pytest)
while true; do
    case "${1:-}" in
    --all)
        tier=(--hypothesis-profile search)
        all=yes
        ;;
    --coverage)
        pytest=(python -m coverage run -m pytest)
        python -m coverage erase # of a run that failed
        ;;
    *) break ;;
    esac
    shift
done
pick='import importlib.util, runpy, sys, torch; pins = runpy.run_path("fairseq_sru/versions.py"); '
pick+='lacks = importlib.util.find_spec("cupy") is None and (sys.argv[1] or torch.cuda.is_available()); '
pick+='print(pins["CUDA12" if (torch.version.cuda or "").startswith("12.") else "CUDA13"][0] if lacks else "")'
cupy=$(python -c "$pick" "$all")
[ -z "$cupy" ] || _sru_run python -m pip install "$cupy" ||
    echo "run.sh: $cupy can't be installed (is there no network?); tests of the real CuPy are skipped, or fail on a GPU" >&2
python -m ruff check .
python -m ruff format --check .
python -m mypy
# A container's share of the cores, which pytest-xdist doesn't see.
cores=$(PYTHONPATH=recipes python -c 'from common.machine import cores; print(cores())')
export PYTEST_XDIST_AUTO_NUM_WORKERS=${PYTEST_XDIST_AUTO_NUM_WORKERS:-$cores}
"${pytest[@]}" -n auto --dist loadfile --no-loadscope-reorder -ra "${tier[@]}" "$@"
if [ "${pytest[2]}" = coverage ]; then
    python -m coverage combine --quiet
    python -m coverage report
fi
