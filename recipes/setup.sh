# Leaves a Python with torch, the patched fairseq and all that recipes and tests need on PATH. To be sourced by a bash script:
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
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
}

# What the stamp says: the places of environment and project, the pins, the patch, and the Python that they were installed for.
_sru_state() { # ENVIRONMENT ROOT
    { printf '%s\n' "$1" "$2" && "$1/bin/python" --version && cat "$2"/fairseq_sru/versions.py "$2"/fairseq_sru/*.patch; } 2>/dev/null | cksum
}

_sru_is_ready() { # ENVIRONMENT ROOT
    [ -x "$1/bin/fairseq-train" ] && [ "$(cat "$1/fairseq_sru.stamp" 2>/dev/null)" = "$(_sru_state "$1" "$2")" ]
}

# Not the rest of an interrupted `python -m venv`, nor copied from elsewhere. No pip at all is fine: uv makes such ones.
_sru_is_venv() { # FOLDER
    [ -f "$1/bin/activate" ] || return
    [ -e "$1/bin/pip" ] || return 0
    case "$("$1/bin/pip" --version 2>/dev/null)" in *" $1/lib"*) ;; *) return 1 ;; esac
}

_sru_make_venv() { # FOLDER
    local python without_venv=
    for python in python3 python3.13 python3.12 python3.11; do
        _sru_is_recent "$python" || continue
        if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            _sru_run "$python" -m venv --clear "$1"
            return
        fi
        without_venv=${without_venv:-$python}
    done
    if [ -n "$without_venv" ]; then
        _sru_fail "$without_venv cannot make a venv; Debian, Ubuntu: apt install $without_venv-venv"
    else
        _sru_fail "no Python 3.11, 3.12 or 3.13 on PATH; install one, or activate an environment that has one"
    fi
}

# Whether there is an NVIDIA GPU whose driver runs nothing newer than CUDA 12.
_sru_has_old_driver() {
    nvidia-smi 2>/dev/null | grep -Eq 'CUDA [A-Z ]*Version: *1[0-2]\.'
}

_sru_setup() {
    local root prefix
    root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P) || return
    prefix=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
    if [ -z "$prefix" ]; then
        prefix=$root/.venv
        if [ -L "$prefix" ]; then # leads to another's environment, which isn't ours to clear
            prefix=$(CDPATH='' cd -- "$prefix" && pwd -P) || return
        else
            _sru_is_ready "$prefix" "$root" || _sru_is_venv "$prefix" || _sru_make_venv "$prefix" || return
        fi
        export VIRTUAL_ENV=$prefix
    fi
    export PATH="$prefix/bin:$PATH"
    ! _sru_is_ready "$prefix" "$root" || return 0

    _sru_is_recent "$prefix/bin/python" ||
        _sru_fail "no Python 3.11, 3.12 or 3.13 in $prefix; activate an environment that has one, or deactivate or remove this one" || return
    python -c 'import pip' 2>/dev/null || _sru_run python -m ensurepip --default-pip ||
        _sru_fail "no pip in $prefix; install it there" || return
    # fairseq first: where it cannot be built, that shows before torch is downloaded.
    _sru_run python "$root/fairseq_sru/install_fairseq.py" || return
    if _sru_has_old_driver && ! python -c 'import torch' 2>/dev/null; then
        _sru_run python -m pip install 'torch>=2.6,<2.11' || return # the last of PyPI's for CUDA 12
    fi
    _sru_run python -m pip install -r "$root/requirements.txt" || return
    _sru_run python -m pip install --no-deps -e "$root" || return # so that the recipes find the package
    _sru_state "$prefix" "$root" >"$prefix/fairseq_sru.stamp.new" && mv -- "$prefix/fairseq_sru.stamp.new" "$prefix/fairseq_sru.stamp"
}

_sru_setup
