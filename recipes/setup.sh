# Leaves a Python with torch, fairseq and all that recipes and tests need on PATH. To be sourced by a bash script:
#     . "$(dirname "$0")/setup.sh"
# or run on its own: bash recipes/setup.sh
#
# Installs into the active environment (venv or conda) and keeps a torch there that is recent enough; with none active, into
# .venv in the project's root, which it makes. Cheap to repeat: it does nothing while the stamp in the environment holds.
# It neither exits nor sets shell options, for the sake of the shell that sources it.

_sru_run() {
    printf '+%s\n' "$(printf ' %q' "$@")" >&2
    "$@"
}

_sru_fail() {
    printf 'setup.sh: %s\n' "$1" >&2
    return 1
}

_sru_is_recent() { # PYTHON
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null
}

# Print the stamp: of the places of environment and project, the pins, the patches, and the Python that they were installed for.
_sru_state() { # ENVIRONMENT ROOT
    { printf '%s\n' "$1" "$2" && "$1/bin/python" --version && cat "$2"/fairseq_sru/versions.py "$2"/fairseq_sru/patches/*; } 2>/dev/null | cksum
}

_sru_is_ready() { # ENVIRONMENT ROOT
    [ -x "$1/bin/fairseq-train" ] && [ "$(cat "$1/fairseq_sru.stamp" 2>/dev/null)" = "$(_sru_state "$1" "$2")" ]
}

_sru_is_here() { # VENV: it was neither moved nor copied, nor is it unfinished
    [ -L "$1" ] || grep -qsF -- "$1" "$1/bin/activate"
}

_sru_make_venv() { # FOLDER
    local python without_venv=
    if [ -e "$1" ]; then # moved, copied, never finished, or its Python is gone
        _sru_fail "$1 doesn't work; remove it and run this again, or activate an environment that works" || return
    fi
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        _sru_is_recent "$python" || continue
        if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            _sru_run "$python" -m venv "$1"
            return
        fi
        without_venv=${without_venv:-$python}
    done
    if [ -n "$without_venv" ]; then
        _sru_fail "$without_venv cannot make a venv; Debian, Ubuntu: apt install $without_venv-venv"
    else
        _sru_fail "no Python 3.11 to 3.14 on PATH; install one, or activate an environment that has one"
    fi
}

# Install what is missing in the environment, whose python is the first on PATH.
_sru_install() { # ENVIRONMENT ROOT
    local pins=$2/requirements.txt isolation=
    local -x PIP_USER=0 PIP_CONSTRAINT='' # NVIDIA's containers set it for their own packages
    _sru_is_recent "$1/bin/python" ||
        _sru_fail "no Python 3.11 to 3.14 in $1; activate an environment that has one, or deactivate this one" || return
    python -c 'import pip._internal.cli.main' 2>/dev/null || _sru_run python -m ensurepip --default-pip ||
        _sru_fail "no pip in $1; install it there" || return
    # a driver that runs nothing newer than CUDA 12 takes the last torch for it; fairseq would bring the newest
    if timeout 60 nvidia-smi 2>/dev/null | grep -E 'CUDA [A-Z ]*Version: *1[0-2]\.' >/dev/null &&
        ! python -c 'import torch; assert [*map(int, torch.__version__.split(".")[:2])] >= [2, 6]' 2>/dev/null; then
        _sru_run python -m pip install 'torch>=2.6,<2.11' || return
    fi
    # fairseq first: where it cannot be built, that shows before torch is downloaded
    _sru_run python "$2/fairseq_sru/install_fairseq.py" || return
    if [ -n "$(python -c 'from importlib.metadata import version as v; print(v("nvidia-cuda-nvrtc"))' 2>/dev/null)" ]; then
        pins=$1/fairseq_sru.requirements # that of a torch of CUDA 13 stays, or pip would replace that torch
        grep -v '^nvidia-cuda-nvrtc' "$2/requirements.txt" >"$pins" || return
    fi
    _sru_run python -m pip install -r "$pins" || return
    # so that the recipes find the package; isolation would download setuptools, which is there but for an old torch
    python -c 'import setuptools; assert int(setuptools.__version__.split(".")[0]) >= 77' 2>/dev/null && isolation=--no-build-isolation
    _sru_run python -m pip install --no-deps ${isolation:+"$isolation"} -e "$2" || return
    _sru_state "$1" "$2" >"$1/fairseq_sru.stamp"
}

_sru_setup() {
    local root prefix
    root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P) || return
    prefix=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
    if [ -z "$prefix" ]; then
        prefix=$root/.venv
        export VIRTUAL_ENV=$prefix
    fi
    export PATH="$prefix/bin:$PATH"
    ! _sru_is_ready "$prefix" "$root" || return 0
    if [ "$prefix" = "$root/.venv" ] && ! { _sru_is_recent "$prefix/bin/python" && _sru_is_here "$prefix"; }; then
        _sru_make_venv "$prefix" || return
        hash -r
    fi
    _sru_install "$prefix" "$root"
}

if [ "${BASH_SOURCE[0]}" = "$0" ] && [ $# -gt 0 ]; then # it is run, not sourced
    _sru_fail "takes no arguments; got: $*"
    exit 2
fi
_sru_setup
