#!/usr/bin/env bash
# Sets up what is missing, then lints and tests:
#     bash tests/run.sh [--all] [pytest arguments]
# --all adds the tests marked slow.
set -euo pipefail
cd "$(dirname "$0")/.."
. recipes/setup.sh

tier=(-m "not slow")
if [ "${1:-}" = --all ]; then
    tier=()
    shift
fi
python -m ruff check .
python -m pytest -ra ${tier[@]+"${tier[@]}"} "$@"
