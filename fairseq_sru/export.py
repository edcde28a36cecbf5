"""Write a trained model as a folder for the translator.

    python -m fairseq_sru.export --path checkpoint_best.pt --sentencepiece-model spm.model --out model [--int8]

The folder can be carried to another machine; python -m fairseq_sru.translate reads it, and needs neither fairseq nor
the training data.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

from .decoding.files import Model, ModelError, of_text, save
from .decoding.program import LONGEST_SOURCE
from .decoding.text import TextOptions

REFUSED = (
    "the translator can't run this model, only --arch sru with SRU units, residual connections and attention in its "
    "layers, and --arch transformer_sru with ssru or sru in its decoder and linear feed-forward blocks; both without "
    "adaptive softmax"
)


def model_of(trained: Any, task: Any, text: TextOptions) -> Model:
    """Return a fairseq model as the translator needs it.

    Args:
        trained: the model, in evaluation.
        task: with the dictionaries.
        text: how its text was prepared.

    Raises:
        ModelError: the translator can't run such a model.
    """
    from fairseq.tasks.translation import TranslationTask

    from .models.search import programs
    from .models.step import as_written
    from .models.translation import TranslationModel

    known = isinstance(trained, TranslationModel) and as_written(trained.encoder) and as_written(trained.decoder)
    written = programs(trained) if known else None
    if written is None:
        raise ModelError(REFUSED)
    usual = TranslationTask.build_dataset_for_inference
    if getattr(type(task), "build_dataset_for_inference", usual) is not usual:
        raise ModelError(
            f"the model was trained with {type(task).__name__}, whose sentences have tokens of their own, as that of a "
            "language; the translator knows --task translation"
        )
    source, target = task.source_dictionary.symbols, task.target_dictionary.symbols
    most = min(trained.encoder.max_source_positions, LONGEST_SOURCE)
    return Model(*written, list(source), list(target), text, most, min(trained.decoder.max_target_positions, 2**20))


def loaded(path: Path, data: Path | None) -> tuple[Any, Any]:
    """Return the model of a checkpoint, in evaluation, and its task.

    Raises:
        ModelError: it isn't a checkpoint that can be read, or its dictionaries are missing, or they are others.
        ImportError: fairseq isn't installed.
    """
    from . import models  # noqa: F401,I001  first: it says how to install fairseq
    from fairseq import checkpoint_utils
    from fairseq.models import ARCH_MODEL_REGISTRY

    from .models.translation import TranslationModel

    overrides: dict[str, Any] = {"encoder_embed_path": None, "decoder_embed_path": None}  # they are in the checkpoint
    if data is not None:
        overrides["data"] = str(data)
    try:
        state = checkpoint_utils.load_checkpoint_to_cpu(str(path), overrides)
        cfg = state["cfg"]["model"]
        arch = getattr(cfg, "_name", None) or cfg.arch
        if not issubclass(ARCH_MODEL_REGISTRY.get(arch, object), TranslationModel):  # others may run what it says
            raise ModelError(REFUSED)
        (trained,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], overrides, state=state)
    except ModelError:
        raise
    except FileNotFoundError as error:
        wrong = f"no such file: {error.filename}" if error.filename else error
        raise ModelError(f"{wrong}; --data names the folder of the dictionaries") from None
    except Exception as error:  # of torch, pickle, omegaconf, fairseq: whatever lies in the file
        said = " ".join(str(error).split())[:300]
        wrong = f"{path} can't be read, or not with its dictionaries (--data names their folder)"
        raise ModelError(f"{wrong}: {said}") from None
    return trained.float().eval(), task


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_sru.export", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--path", type=Path, required=True, metavar="CHECKPOINT", help="the trained model")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--sentencepiece-model", type=Path, metavar="FILE", help="the text's spm.model")
    kind.add_argument("--subword-nmt-codes", type=Path, metavar="FILE", help="the text's bpe.codes, on Moses' tokens")
    parser.add_argument("--lowercase", action="store_true", help="the text was in lower case (iwslt14)")
    parser.add_argument(
        "--no-normalise",
        action="store_true",
        help="with --subword-nmt-codes: Moses neither normalised punctuation nor split at hyphens (iwslt14)",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="the binarised data, if it has moved since training")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write; new or empty")
    parser.add_argument(
        "--int8", action="store_true", help="weights in int8: a quarter of the size, and faster with AVX2"
    )
    args = parser.parse_args(argv)
    subword_model = args.sentencepiece_model or args.subword_nmt_codes
    for flag in ("path", "sentencepiece_model", "subword_nmt_codes"):
        if (path := getattr(args, flag)) and not os.path.isfile(path):
            parser.error(f"argument --{flag.replace('_', '-')}: no such file: {path}")
    if args.no_normalise and not args.subword_nmt_codes:
        parser.error("argument --no-normalise: is for --subword-nmt-codes")
    logging.basicConfig(level=logging.WARNING)
    try:
        trained, task = loaded(args.path, args.data)
        languages = (getattr(task.cfg, "source_lang", None) or "", getattr(task.cfg, "target_lang", None) or "")
        chosen = "sentencepiece" if args.sentencepiece_model else "moses-bpe"
        text = TextOptions(chosen, *languages, args.lowercase, not args.no_normalise)
        model = model_of(trained, task, text)
        save(model, subword_model, args.out, args.int8)
    except (OSError, ValueError, ImportError) as error:
        parser.error(str(error))
    if not args.lowercase and "".join(of_text(model.source)).islower():
        logging.warning("the source dictionary has no capital letter: was the text in lower case? That is --lowercase")
    size = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"{args.out}: {size / 1e6:.1f} MB, {'int8' if args.int8 else 'float32'}")


if __name__ == "__main__":
    main()
