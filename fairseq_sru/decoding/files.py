"""A model for the translator as a folder: ``config.json``, ``vocabulary.json``, ``weights.safetensors`` and the subword
model. Nothing in it is code; what is read is checked before any of it reaches compiled code, but for the subword model,
which sentencepiece reads as it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from ..versions import __version__
from .program import LONGEST_INT8, Program, Quantised, quantised
from .text import FILES, Subwords, TextOptions, subwords

FORMAT = 1
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
TENSORS = ("weight", "bias", "positions", "coverage")
LARGEST = 2**20  # numbers a row of all slots
ENCODER = ("embed", "norm", "linear", "scan", "convolve", "self_attend", "source")
DECODER = ("embed", "norm", "linear", "recur", "attend")


class ModelError(ValueError):
    """Says in one line why a folder can't be read, or a model can't be written."""


class Model(NamedTuple):
    """Programs, vocabularies and text of a model.

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
        model: to write.
        subword_model: a file that is copied.
        folder: to be made, or empty.
        int8: matrices in int8.

    Raises:
        ModelError: the folder is there and not empty, or the subword model is none or of other text.
    """
    from safetensors.torch import save as as_bytes

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} is there already")
    try:
        _check_subwords(subwords(model.text, subword_model.read_bytes()), model, subword_model)
    except ValueError as error:
        raise ModelError(str(error).replace(FILES[model.text.kind], str(subword_model))) from None
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[int, torch.Size], str] = {}
    sides: dict[str, Any] = {}
    for side, program in (("encoder", model.encoder), ("decoder", model.decoder)):
        ops = []
        for i, (op, call) in enumerate(program.calls):
            written: dict[str, Any] = {"op": op}
            for key, value in call.items():
                if isinstance(value, Tensor):
                    name = names.setdefault((value.data_ptr(), value.shape), f"{side}.{i}.{key}")
                    tensors[name] = value.detach().float().contiguous()
                    quantisable = (op, key) in (("linear", "weight"), ("embed", "weight"))
                    if int8 and quantisable and value.size(1) < LONGEST_INT8:
                        tensors[name], tensors[f"{name}.scale"] = quantised(tensors[name])
                    value = name
                written[key] = value
            ops.append(written)
        sides[side] = {"slots": program.widths, "ops": ops}
    config: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "weights": "int8" if int8 else "float32",
        "max_source": model.max_source,
        "max_target": model.max_target,
        "text": model.text._asdict(),
        **sides,
    }
    words = {"source": model.source, "target": model.target}
    contents = {
        "vocabulary.json": json.dumps(words, ensure_ascii=False, indent=0).encode(),
        "weights.safetensors": as_bytes(tensors),
        FILES[model.text.kind]: subword_model.read_bytes(),
    }
    config["sha256"] = {name: _sum(content) for name, content in contents.items()} | {"config.json": _sum_of(config)}
    contents["config.json"] = json.dumps(config, indent=1).encode()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    except BaseException:  # of a full disk, or Ctrl-C: the folder is as empty for the next try
        for name in contents:
            (folder / name).unlink(missing_ok=True)
        raise


def of_text(words: Sequence[str]) -> list[str]:
    """Return a dictionary's words without those that fairseq puts into each, the last to fill it up."""
    return [word for word in words[len(SPECIAL) :] if not word.startswith("madeupword")]


def _check_subwords(subword_model: Subwords, model: Model, path: Path) -> None:
    one = model.text.kind == "sentencepiece"  # for both sides; of codes, those of the target are not needed
    for words in (model.source, model.target) if one else (model.source,):
        own = of_text(words)
        strange = [word for word in own if not subword_model.makes(word)]
        if len(strange) > 0.2 * len(own):  # rare characters may be outside of it
            share = f"{len(strange)} of {len(own)} words of the dictionary are no subwords, such as {strange[0]!r}"
            raise ModelError(f"{path} is of other text than the model: {share}")


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sum_of(config: dict[str, Any]) -> str:
    return _sum(json.dumps({key: value for key, value in config.items() if key != "sha256"}, sort_keys=True).encode())


def load(folder: Path) -> tuple[Model, Subwords]:
    """Read a model.

    Raises:
        ModelError: it isn't one that this version can read.
        ImportError: safetensors, or the package of the subword model, isn't installed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as of_bytes

    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; python -m fairseq_sru.export makes one")
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        if (version := config.get("format")) != FORMAT:
            raise ModelError(f"{folder}: format {version!r} is unknown, this one reads {FORMAT}: export it again")
        text = TextOptions(**config["text"])
        names = ("vocabulary.json", "weights.safetensors", FILES[text.kind])
        contents = {name: (folder / name).read_bytes() for name in names}
        sums = {name: _sum(content) for name, content in contents.items()} | {"config.json": _sum_of(config)}
        for name, digest in sums.items():
            if config["sha256"].get(name) != digest:
                raise ModelError(f"{folder}/{name} is damaged: copy or export it again")
        words = json.loads(contents["vocabulary.json"])
        tensors = {name: x.clone() for name, x in of_bytes(contents["weights.safetensors"]).items()}
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
        return model, subwords(text, contents[FILES[text.kind]])
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"{error.filename}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError, SafetensorError) as error:
        message = " ".join(str(error).split())
        raise ModelError(f"{folder}/config.json describes no model: {type(error).__name__}: {message}") from None


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
        arguments = dict(call)
        if (op := arguments.pop("op")) not in allowed:
            raise ValueError(f"op must be one of {', '.join(allowed)}; got {op!r}")
        method = getattr(program, op)
        kinds = get_type_hints(method)
        for name, value in arguments.items():
            if name in TENSORS and value is not None:
                arguments[name] = value = _tensor(value, tensors)
            if not isinstance(value, kinds[name]):
                raise ValueError(f"{name} of {op} must be {kinds[name]}; got {type(value).__name__}")
        method(**arguments)
    return program


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
    """Refuse an encoder, decoder and vocabularies that don't fit."""
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
