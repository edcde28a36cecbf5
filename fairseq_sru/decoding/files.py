"""A model for the translator as a folder: ``config.json``, ``vocabulary.json``, ``weights.safetensors`` and the subword
model. Nothing in it is code; what is read is checked before any of it reaches compiled code, but for the subword model,
which sentencepiece reads as it is."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..versions import __version__
from .program import LONGEST_INT8, Program, Quantised, quantised
from .text import FILES, Subwords, TextOptions, subwords

FORMAT = 1
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
TENSORS = ("weight", "bias", "positions", "coverage")
LARGEST = 2**20  # numbers a row of all slots
ASIDE = ".fairseq_sru-export-"  # begins the name of a folder that an export works in, and leaves when it is killed
ENCODER = ("embed", "norm", "linear", "scan", "convolve", "self_attend", "source")
DECODER = ("embed", "norm", "linear", "recur", "attend")


class ModelError(ValueError):
    """A folder isn't a model that can be read, or a model none that can be written; one line that says why."""


class Model(NamedTuple):
    """What the translator needs of a model.

    ``encoder`` ends with a ``source`` for each attention of ``decoder``, whose last slot are the logits.
    ``max_source``: tokens of a sentence at most, with its end; ``max_target``: of a translation, likewise.
    """

    encoder: Program
    decoder: Program
    source: list[str]
    target: list[str]
    text: TextOptions
    max_source: int
    max_target: int


def save(model: Model, subword_model: Path, folder: Path, int8: bool = False) -> None:
    """Write a model; config.json comes last, without which it is none.

    Args:
        model: what to write.
        subword_model: a file that is copied.
        folder: to be made, or empty.
        int8: matrices in int8.

    Raises:
        ModelError: the folder is there and not empty, the subword model is none or of other text, or the model is too
            large.
        OSError: it can't be written; the folder is then empty.
    """
    if folder.exists() and (not folder.is_dir() or any(not path.name.startswith(ASIDE) for path in folder.iterdir())):
        raise ModelError(f"{folder} is there already")
    content = subword_model.read_bytes()
    try:
        made_of = subwords(model.text, content)
    except ValueError as error:
        raise ModelError(str(error).replace(FILES[model.text.kind], str(subword_model))) from None
    _check_subwords(made_of, model, subword_model)
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[int, torch.Size], str] = {}
    written: dict[str, Any] = {}
    for side, program in (("encoder", model.encoder), ("decoder", model.decoder)):
        ops = []
        for i, (op, call) in enumerate(program.calls):
            made: dict[str, Any] = {"op": op}
            for key, value in call.items():
                if isinstance(value, Tensor):
                    at = (value.data_ptr(), value.shape)
                    name = names.setdefault(at, f"{side}.{i}.{key}")
                    tensors[name] = value.detach().float().contiguous()
                    if not tensors[name].isfinite().all():
                        raise ModelError(f"{name} has numbers that are not finite: training has failed")
                    quantisable = (op, key) in (("linear", "weight"), ("embed", "weight"))
                    if int8 and quantisable and value.size(1) < LONGEST_INT8:
                        tensors[name], tensors[f"{name}.scale"] = quantised(tensors[name])
                    value = name
                made[key] = value
            ops.append(made)
        if (wide := sum(program.widths)) > LARGEST:
            raise ModelError(f"a dictionary and layers of {wide:,} are too large: at most {LARGEST:,} together")
        written[side] = {"slots": program.widths, "ops": ops}
    config: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "weights": "int8" if int8 else "float32",
        "max_source": model.max_source,
        "max_target": model.max_target,
        "text": model.text._asdict(),
        **written,
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write(model, content, folder, config, tensors)


def _write(model: Model, content: bytes, folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """content: of the subword model."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(dir=folder, prefix=ASIDE) as aside:
        new = Path(aside)
        words = {"source": model.source, "target": model.target}
        (new / "vocabulary.json").write_text(json.dumps(words, ensure_ascii=False, indent=0), "utf-8")
        try:
            save_file(tensors, new / "weights.safetensors")
        except SafetensorError as error:  # of a full disk
            raise OSError(f"{folder}: weights.safetensors can't be written: {error}") from None
        shutil.copymode(new / "vocabulary.json", new / "weights.safetensors")  # save_file's is for its writer alone
        (new / FILES[model.text.kind]).write_bytes(content)
        config["sha256"] = {path.name: _sum(path) for path in new.iterdir()} | {"config.json": _sum_of(config)}
        (new / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
        for path in sorted(new.iterdir(), key=lambda path: path.name == "config.json"):
            path.replace(folder / path.name)


def of_text(words: Sequence[str]) -> list[str]:
    """A dictionary's words without those that fairseq puts into each, the last to fill it up."""
    return [word for word in words[len(SPECIAL) :] if not word.startswith("madeupword")]


def _check_subwords(subword_model: Subwords, model: Model, path: Path) -> None:
    one = model.text.kind == "sentencepiece"  # for both sides; of codes, those of the target are not needed
    for words in (model.source, model.target) if one else (model.source,):
        own = of_text(words)
        strange = [word for word in own if not subword_model.makes(word)]
        if len(strange) > 0.2 * len(own):  # rare characters may be outside of it
            share = f"{len(strange)} of {len(own)} words of the dictionary are no subwords, such as {strange[0]!r}"
            raise ModelError(f"{path} is of other text than the model: {share}")


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sum_of(config: dict[str, Any]) -> str:
    content = json.dumps({key: value for key, value in config.items() if key != "sha256"}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def load(folder: Path) -> tuple[Model, Subwords]:
    """Read a model.

    Raises:
        ModelError: it isn't one that this version can read.
        ImportError: safetensors, or the package of the subword model, isn't installed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; python -m fairseq_sru.export makes one")
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        if (given := config.get("format")) != FORMAT:
            raise ModelError(f"{folder}: format {given!r} is unknown, this one reads {FORMAT}: export it again")
        if config["sha256"].get("config.json") != _sum_of(config):
            raise ModelError(f"{folder}/config.json is damaged: copy or export it again")
        for name in ("vocabulary.json", "weights.safetensors", FILES[config["text"]["kind"]]):
            if _sum(folder / name) != config["sha256"][name]:
                raise ModelError(f"{folder}/{name} is damaged: copy or export it again")
        words = json.loads((folder / "vocabulary.json").read_text("utf-8"))
        # copies: the file's own memory would change with the file
        tensors = {name: x.clone() for name, x in load_file(folder / "weights.safetensors").items()}
        text = TextOptions(**config["text"])
        model = Model(
            _program(config["encoder"], ENCODER, tensors),
            _program(config["decoder"], DECODER, tensors),
            _vocabulary(words["source"]),
            _vocabulary(words["target"]),
            text,
            _whole(config["max_source"], "max_source"),
            _whole(config["max_target"], "max_target"),
        )
        _check(model)
        return model, subwords(text, (folder / FILES[text.kind]).read_bytes())
    except ModelError:
        raise
    except json.JSONDecodeError as error:  # of config.json: all else has been checked
        raise ModelError(f"{folder}/config.json is damaged: {error}") from None
    except OSError as error:
        raise ModelError(f"{folder}: {Path(error.filename or folder).name}: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())
        raise ModelError(f"{folder} is no model: {type(error).__name__}: {said}") from None


def _whole(value: Any, name: str) -> int:
    if type(value) is not int or not 0 < value <= LARGEST:
        raise ValueError(f"{name} must be a whole number from 1 to {LARGEST}; got {value!r}")
    return value


def _vocabulary(words: Any) -> list[str]:
    if type(words) is not list or not all(type(word) is str for word in words) or words[:4] != SPECIAL:
        raise ValueError(f"a vocabulary must be a list of words that begins with {' '.join(SPECIAL)}")
    if wrong := next((word for word in words if "\n" in word or "\r" in word), None):
        raise ValueError(f"a vocabulary must have no word with the end of a line in it; got {wrong!r}")
    return words


def _program(written: Any, allowed: Sequence[str], tensors: dict[str, Tensor]) -> Program:
    program = Program()
    for width in written["slots"]:
        program.slot(_whole(width, "slots"))
    if sum(program.widths) > LARGEST:
        raise ValueError(f"slots must have {LARGEST} numbers together at most; got {sum(program.widths)}")
    for call in written["ops"]:
        given = dict(call)
        if (op := given.pop("op")) not in allowed:
            raise ValueError(f"op must be one of {', '.join(allowed)}; got {op!r}")
        method = getattr(program, op)
        takes = signature(method).parameters
        arguments = {k: _argument(k, str(takes[k].annotation), v, tensors) for k, v in given.items()}
        method(**arguments)
    return program


def _argument(name: str, kind: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    if name in TENSORS:
        tensor = None if value is None else _tensor(value, tensors)
        if isinstance(tensor, Quantised) and kind != "Weight":
            raise ValueError(f"{name} must be float32; got int8")
        return tensor
    if type(value).__name__ != kind:
        raise ValueError(f"{name} must be {kind}; got {value!r}")
    return value


def _tensor(name: str, tensors: dict[str, Tensor]) -> Tensor | Quantised:
    tensor, scale = tensors[name], tensors.get(f"{name}.scale")
    if scale is None:
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} must be float32; got {tensor.dtype}")
        return tensor
    if tensor.dtype != torch.int8 or scale.dtype != torch.float32 or scale.shape != tensor.shape[:1]:
        raise ValueError(f"{name} must be int8, with a scale a row")
    return Quantised(tensor, scale)


def _check(model: Model) -> None:
    """That encoder, decoder and vocabularies fit."""
    encoder, decoder = model.encoder, model.decoder
    sides = ((encoder, model.source, "encoder"), (decoder, model.target, "decoder"))
    for program, words, side in sides:
        if sum(op == "embed" for op, _ in program.calls) != 1 or program.words != len(words):
            raise ValueError(f"the {side} must have one embedding, of the vocabulary's {len(words)} words")
    if decoder.widths[-1] != len(model.target):
        raise ValueError("the decoder must end with a number for each word of the vocabulary")
    if encoder.handed_over != decoder.attentions:
        raise ValueError("what the encoder hands over and what the decoder attends to differ")
    if len({slot for slot, _ in encoder.sources}) < len(encoder.sources):
        raise ValueError("each attention must have a slot of its own")
    if decoder.positions is not None or (encoder.positions or model.max_source) < model.max_source:
        raise ValueError("positions must be the encoder's, and max_source of them")
