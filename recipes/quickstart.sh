#!/usr/bin/env bash
# The main job on text that ships with the project: set up, prepare, train an SRU model, translate the test set, score.
#     bash recipes/quickstart.sh [OUT [options of fairseq-train]]
# OUT is runs/quickstart unless given. Run again, it goes on where it stopped and repeats nothing that is done.
set -euo pipefail
trap 'exit 130' INT # also where what was interrupted ends as if it had failed
case "${1:-} $* " in -* | *" -h "* | *" --help "*)
    sed -n '2,4s/^# //p' "$0"
    exit 2
    ;;
esac
here=$PWD
CDPATH='' cd -- "$(dirname -- "$0")/.."
[ -f recipes/setup.sh ] || cd -- "${SLURM_SUBMIT_DIR:-.}" # sbatch runs a copy
. recipes/setup.sh

export PYTHONUTF8=1 # what a locale of another encoding would print could not be read again
if [ -z "${OMP_NUM_THREADS:-}" ]; then # torch sees no container's share
    threads='import torch; from common.machine import cores; print(min(torch.get_num_threads(), cores()))'
    OMP_NUM_THREADS=$(PYTHONPATH=recipes python -c "$threads")
    export OMP_NUM_THREADS
fi
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1} # large pages for small tensors, too: training is faster

out=${1:-runs/quickstart}
case $out in /*) ;; *) [ $# = 0 ] || out=$here/$out ;; esac
shift $(($# > 0))

# One quick start at a time holds OUT: as long as a process of it lives, since all have file 9 open.
mkdir -p "$out"
exec 9<>"$out/.fairseq_sru.lock"
PYTHONPATH=recipes python -m common.hold "$out" 9

# Print a command as it can be copied, and run it.
run() {
    echo >&2
    _sru_run "$@"
}

# Settings were chosen on the validation set.
flags=(--arch sru_tiny --share-all-embeddings --cpu --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0
    --lr 4e-3 --lr-scheduler polynomial_decay --warmup-updates 300 --total-num-update 4000 --max-update 4000
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --weight-decay 0.1 --max-tokens 1000
    --no-epoch-checkpoints --log-interval 500 --num-workers 0 "$@")
model=$out/checkpoints/checkpoint_last.pt
if ! [ -e "$model" ]; then # nothing is trained yet
    printf '%s\n' "${flags[*]}" >"$out/options"
elif [ "$(cat "$out/options")" != "${flags[*]}" ]; then
    printf '%s was begun with the options "%s", not "%s": name another OUT\n' "$out" "$(cat "$out/options")" "${flags[*]}" >&2
    exit 2
fi

run python recipes/prepare.py lohelp-en-de --out "$out/data" --vocab-size 2000

# fairseq goes on from checkpoint_last.pt by itself, in the precision that was measured at the start.
if ! [ -e "$out/trained" ] || ! [ -e "$model" ]; then
    [ -s "$out/amp" ] ||
        python -c 'from fairseq_sru.layers.linear import bfloat16_pays as p; print("--amp" if p() else "")' >"$out/amp"
    # shellcheck disable=SC2046 # no word, or one
    run fairseq-train "$out/data/bin" --user-dir fairseq_sru $(cat "$out/amp") --save-dir "$out/checkpoints" "${flags[@]}"
    if ! [ -e "$model" ]; then
        printf '%s holds no checkpoint_last.pt, so there is nothing to translate with: were such options given?\n' "${model%/*}" >&2
        exit 1
    fi
    touch "$out/trained"
else
    printf '\n%s is trained already\n' "${model%/*}" >&2
fi

file=$out/generate-test.txt
if [ -e "$file" ] && ! [ "$model" -nt "$file" ]; then # it is newer than the model
    printf '\n%s is there already\n' "$file" >&2
else
    generate=(fairseq-generate "$out/data/bin" --user-dir fairseq_sru --cpu --gen-subset test
        --path "$model" --beam 5 --max-tokens 4000 --required-batch-size-multiple 1
        --remove-bpe sentencepiece)
    printf '\n+%s > %q\n' "$(printf ' %q' "${generate[@]}")" "$file" >&2
    "${generate[@]}" >"$file.part"
    mv "$file.part" "$file"
fi

run python recipes/score.py --data-set lohelp-en-de --checkpoint "$model" \
    --generated "$file"
