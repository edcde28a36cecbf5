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

# What the stamp says: the places of environment and project, the pins, the patches, and the Python that they were installed for.
_sru_state() { # ENVIRONMENT ROOT
    { printf '%s\n' "$1" "$2" && "$1/bin/python" --version && cat "$2"/fairseq_sru/versions.py "$2"/fairseq_sru/patches/*; } 2>/dev/null | cksum
}

_sru_is_ready() { # ENVIRONMENT ROOT
    [ -x "$1/bin/fairseq-train" ] && [ "$(cat "$1/fairseq_sru.stamp" 2>/dev/null)" = "$(_sru_state "$1" "$2")" ]
}

# Not the rest of an interrupted `python -m venv`, nor copied from elsewhere. No pip at all is fine: uv makes such ones.
_sru_is_venv() { # FOLDER
    local pip
    [ -f "$1/bin/activate" ] || return
    [ -e "$1/bin/pip" ] || return 0
    pip=$(unset PYTHONPATH && "$1/bin/pip" --version 2>/dev/null) || return # pip 1.2.3 from FOLDER/lib/...
    pip=${pip#* from }
    [ "${pip%/lib*/site-packages/*}" -ef "$1" ]
}

_sru_make_venv() { # FOLDER
    local python without_venv= why="doesn't work here: it was moved or copied, is of another system, was never finished, or its Python is gone"
    if [ -d "$1" ] && [ ! -e "$1/pyvenv.cfg" ] && ! rmdir -- "$1" 2>/dev/null; then # what conda makes, for one
        _sru_fail "$1 is no venv; activate it if it is an environment, else remove it" || return
    fi
    if [ -e "$1/pyvenv.cfg" ] && ! grep -qs -- ' -m venv --clear ' "$1/pyvenv.cfg"; then # one of the user's, with what they put there
        _sru_fail "$1 $why; remove it, and run this again or make your own" || return
    fi
    if [ -e "$1/fairseq_sru.stamp" ] && [ -e "$1.old" ]; then
        _sru_fail "$1 $why, and $1.old is there; remove one of them, and run this again" || return
    fi
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        _sru_is_recent "$python" || continue
        if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            if [ -e "$1/fairseq_sru.stamp" ]; then # the user may have added to it
                mv -- "$1" "$1.old" || return
                printf 'setup.sh: %s %s; it is now %s.old\n' "$1" "$why" "$1" >&2
            fi
            _sru_run "$python" -m venv --clear "$1"
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

# Whether there is an NVIDIA GPU whose driver runs nothing newer than CUDA 12.
_sru_has_old_driver() {
    timeout 60 nvidia-smi 2>/dev/null | grep -E 'CUDA [A-Z ]*Version: *1[0-2]\.' >/dev/null
}

# What is missing in the environment, whose python is the first on PATH. One at a time, where there is flock.
_sru_install() { # ENVIRONMENT ROOT [OURS: it is made where there is none]
    local pins=$2/requirements.txt isolation=
    local -x PIP_USER=0 PIP_CONSTRAINT='' # NVIDIA's containers set it for their own packages; install_fairseq.py leaves it out, too
    if command -v flock >/dev/null && ! flock -n 8; then
        printf 'setup.sh: waiting for another set-up\n' >&2
        flock 8 || : # a file system without locks
    fi
    ! _sru_is_ready "$1" "$2" || return 0
    if [ -n "${3:-}" ]; then
        _sru_is_venv "$1" || _sru_make_venv "$1" || return
        hash -r
    fi
    _sru_is_recent "$1/bin/python" ||
        _sru_fail "no Python 3.11 to 3.14 in $1; activate an environment that has one, or deactivate or remove this one" || return
    python -c 'import pip._internal.cli.main' 2>/dev/null || _sru_run python -m ensurepip --default-pip ||
        _sru_fail "no pip in $1; install it there" || return
    # before fairseq, which brings the newest
    if _sru_has_old_driver && ! python -c 'import torch; assert [*map(int, torch.__version__.split(".")[:2])] >= [2, 6]' 2>/dev/null; then
        _sru_run python -m pip install 'torch>=2.6,<2.11' || return # the last of PyPI's for CUDA 12
    fi
    # fairseq first: where it cannot be built, that shows before torch is downloaded.
    _sru_run python "$2/fairseq_sru/install_fairseq.py" || return
    if [ -n "$(python -c 'from importlib.metadata import version as v; print(v("nvidia-cuda-nvrtc"))' 2>/dev/null)" ]; then
        pins=$1/fairseq_sru.requirements # that of a torch of CUDA 13 stays, or pip would replace that torch
        grep -v '^nvidia-cuda-nvrtc' "$2/requirements.txt" >"$pins" || return
    fi
    _sru_run python -m pip install -r "$pins" || return
    # so that the recipes find the package; isolation would download setuptools, which is there but for an old torch
    python -c 'import setuptools; assert int(setuptools.__version__.split(".")[0]) >= 77' 2>/dev/null && isolation=--no-build-isolation
    _sru_run python -m pip install --no-deps ${isolation:+"$isolation"} -e "$2" || return
    _sru_state "$1" "$2" >"$1/fairseq_sru.stamp.new" && mv -- "$1/fairseq_sru.stamp.new" "$1/fairseq_sru.stamp"
}

_sru_setup() {
    local root prefix lock ours=
    root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P) || return
    prefix=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
    if [ -z "$prefix" ]; then
        prefix=$root/.venv
        if [ -L "$prefix" ]; then # leads to another's environment, which isn't ours to clear
            prefix=$(CDPATH='' cd -- "$prefix" && pwd -P) || return
        else
            ours=yes
        fi
        export VIRTUAL_ENV=$prefix
    fi
    export PATH="$prefix/bin:$PATH"
    ! _sru_is_ready "$prefix" "$root" || return 0
    [ -w "$root" ] || _sru_fail "$root can't be written; make a checkout of your own" || return
    # before the lock, which may be the same user's
    [ ! -e "$prefix" ] || [ -w "$prefix" ] ||
        _sru_fail "$prefix can't be written; deactivate it, or activate one of your own" || return
    lock=$root/.setup.lock # of .venv, which may be made anew, activated or not; others may be those of more checkouts
    if [ -w "$prefix" ] && { [ -L "$root/.venv" ] || ! [ "$prefix" -ef "$root/.venv" ]; }; then
        lock=$prefix/fairseq_sru.lock
    fi
    _sru_install "$prefix" "$root" "$ours" 8>"$lock"
}

if [ "${BASH_SOURCE[0]}" = "$0" ] && [ $# -gt 0 ]; then # it is run, not sourced
    _sru_fail "takes no arguments; got: $*"
    exit 2
fi
_sru_setup
