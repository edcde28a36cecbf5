"""The models' options, their checks and the architecture presets."""

from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import II, OmegaConf

from .recurrent import ACTIVATIONS, UNITS

# A folder a model, in it one YAML a preset; fairseq-hydra-train reads the same files, as
# --config-dir .../fairseq_sru/config model=sru/NAME.
PRESETS = Path(__file__).parent.parent / "config" / "model"

UNLIMITED = 10**6  # as fairseq writes it for a decoder without a longest sequence


@dataclass
class CommonConfig(FairseqDataclass):
    """Options of all models.

    fairseq reads the types at run time, so no postponed annotations here, and ``Optional[...]`` for what may be None.
    """

    dropout: float = field(default=0.1, metadata={"help": "dropout probability"})
    adaptive_softmax_cutoff: str = field(
        default="10000,50000,200000",
        metadata={
            "help": "comma separated list of adaptive softmax cutoff points, used with --criterion adaptive_loss; "
            "those beyond the vocabulary are left out"
        },
    )
    # set elsewhere on the command line
    criterion: str = II("criterion._name")


@dataclass
class TranslationConfig(CommonConfig):
    """Options of the models with encoder and decoder."""

    share_decoder_input_output_embed: bool = field(
        default=False, metadata={"help": "share decoder input and output embeddings"}
    )
    share_all_embeddings: bool = field(
        default=False,
        metadata={"help": "share encoder, decoder and output embeddings (requires shared dictionary and embed dim)"},
    )
    # set elsewhere on the command line
    max_source_positions: int = II("task.max_source_positions")
    max_target_positions: int = II("task.max_target_positions")


@dataclass
class SRUConfig(TranslationConfig):
    """Options of ``--arch sru``, spelled as those of ``--arch lstm`` wherever it has them."""

    encoder_embed_dim: int = field(default=512, metadata={"help": "encoder embedding dimension"})
    encoder_embed_path: Optional[str] = field(default=None, metadata={"help": "path to pre-trained encoder embedding"})
    encoder_freeze_embed: bool = field(default=False, metadata={"help": "freeze encoder embeddings"})
    encoder_hidden_size: Optional[int] = field(
        default=None, metadata={"help": "encoder hidden size of each direction (default: --encoder-embed-dim)"}
    )
    encoder_layers: int = field(default=2, metadata={"help": "number of encoder layers"})
    encoder_bidirectional: bool = field(default=False, metadata={"help": "make all layers of encoder bidirectional"})
    encoder_kernel_size: int = field(
        default=1, metadata={"help": "positions that a depthwise convolution in each encoder layer sees; 1: none"}
    )
    decoder_embed_dim: int = field(default=512, metadata={"help": "decoder embedding dimension"})
    decoder_embed_path: Optional[str] = field(default=None, metadata={"help": "path to pre-trained decoder embedding"})
    decoder_freeze_embed: bool = field(default=False, metadata={"help": "freeze decoder embeddings"})
    decoder_hidden_size: Optional[int] = field(
        default=None, metadata={"help": "decoder hidden size (default: --decoder-embed-dim)"}
    )
    decoder_layers: int = field(default=2, metadata={"help": "number of decoder layers"})
    decoder_out_embed_dim: Optional[int] = field(
        default=None, metadata={"help": "decoder output embedding dimension (default: --decoder-embed-dim)"}
    )
    decoder_attention: str = field(
        default="True",
        metadata={
            "help": "BOOL or N: attention over the encoder outputs in each decoder layer, or in each N-th, "
            "counted from the top; global: once, after the top layer"
        },
    )
    decoder_attention_heads: int = field(default=4, metadata={"help": "attention heads; divides --decoder-hidden-size"})
    encoder_dropout_in: Optional[float] = field(
        default=None, metadata={"help": "dropout probability for encoder input embedding (default: --dropout)"}
    )
    encoder_dropout_out: Optional[float] = field(
        default=None, metadata={"help": "dropout probability for encoder layer outputs (default: --dropout)"}
    )
    decoder_dropout_in: Optional[float] = field(
        default=None, metadata={"help": "dropout probability for decoder input embedding (default: --dropout)"}
    )
    decoder_dropout_out: Optional[float] = field(
        default=None,
        metadata={"help": "dropout probability for decoder layer outputs and output features (default: --dropout)"},
    )
    rnn_dropout: float = field(
        default=0.0, metadata={"help": "variational dropout on the input of each recurrent layer, one draw a sentence"}
    )
    recurrent_unit: str = field(default="sru", metadata={"help": "recurrent unit of all layers: sru or lstm"})
    sru_activation: str = field(
        default="tanh", metadata={"help": "g in SRU's output r g(c): tanh, identity or relu; LSTM keeps its tanh"}
    )
    no_residual: bool = field(
        default=False,
        metadata={
            "help": "stack the recurrent layers plainly, without layer norms and residual connections; "
            "SRU layers then have their highway term"
        },
    )


@dataclass
class TransformerSRUConfig(TranslationConfig):
    """Options of ``--arch transformer_sru``, spelled as those of ``--arch transformer`` wherever it has them."""

    rnn_dropout: float = field(
        default=0.0, metadata={"help": "variational dropout on the input of each SRU, one draw a sentence"}
    )
    encoder_embed_dim: int = field(default=512, metadata={"help": "encoder embedding dimension"})
    encoder_ffn_embed_dim: int = field(default=2048, metadata={"help": "encoder embedding dimension for FFN"})
    encoder_layers: int = field(default=6, metadata={"help": "number of encoder layers"})
    encoder_attention_heads: int = field(
        default=8, metadata={"help": "encoder attention heads; divides --encoder-embed-dim"}
    )
    decoder_embed_dim: int = field(default=512, metadata={"help": "decoder embedding dimension"})
    decoder_ffn_embed_dim: int = field(default=2048, metadata={"help": "decoder embedding dimension for FFN"})
    decoder_layers: int = field(default=6, metadata={"help": "number of decoder layers"})
    decoder_attention_heads: int = field(
        default=8, metadata={"help": "decoder attention heads; divides --decoder-embed-dim"}
    )
    decoder_autoreg: str = field(
        default="ssru",
        metadata={
            "help": "what lets a decoder layer see the earlier target words: ssru (SRU without reset gate, with ReLU), "
            "sru or self-attention"
        },
    )
    feed_forward: str = field(
        default="linear",
        metadata={"help": "inner layer of the feed-forward blocks: linear (with ReLU) or sru"},
    )


@dataclass
class SRULanguageModelConfig(CommonConfig):
    """Options of ``--arch sru_lm``, spelled as those of ``--arch lstm_lm`` wherever it has them."""

    decoder_embed_dim: int = field(default=512, metadata={"help": "embedding dimension"})
    decoder_hidden_size: Optional[int] = field(
        default=None, metadata={"help": "channels of each layer (default: --decoder-embed-dim)"}
    )
    decoder_layers: int = field(default=2, metadata={"help": "number of layers"})
    decoder_out_embed_dim: Optional[int] = field(
        default=None, metadata={"help": "output embedding dimension (default: --decoder-embed-dim)"}
    )
    decoder_dropout_in: Optional[float] = field(
        default=None, metadata={"help": "dropout probability for the input embedding (default: --dropout)"}
    )
    decoder_dropout_out: Optional[float] = field(
        default=None,
        metadata={"help": "dropout probability for layer outputs and output features (default: --dropout)"},
    )
    rnn_dropout: float = field(
        default=0.0, metadata={"help": "variational dropout on the input of each SRU layer, one draw a block"}
    )
    sru_activation: str = field(default="tanh", metadata={"help": "g in SRU's output r g(c): tanh, identity or relu"})
    share_decoder_input_output_embed: bool = field(
        default=False, metadata={"help": "share input and output embeddings"}
    )
    # set elsewhere on the command line
    max_target_positions: Optional[int] = II("task.max_target_positions")


def presets(model: str = "sru") -> dict[str, dict[str, Any]]:
    """Name and options of each architecture preset of a model, by name."""
    files = sorted((PRESETS / model).glob("*.yaml"))
    loaded = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in files}
    return {name: {k: v for k, v in options.items() if k != "_name"} for name, options in loaded.items()}  # type: ignore[union-attr,misc]


def completed(cfg: Any, options: type[FairseqDataclass]) -> Namespace:
    """A model's options alone, those that cfg lacks or leaves at None at their defaults."""
    return Namespace(**{name: option(cfg, name, options) for name in options.__dataclass_fields__})


def option(cfg: Any, name: str, options: type[FairseqDataclass] = SRUConfig) -> Any:
    """An option's value; options left at None take the value that their help text names. What fairseq's command line
    fills in from the task or the criterion is, where nothing has, UNLIMITED for a longest sequence, or else None."""
    value = getattr(cfg, name, None)
    follows = {
        "encoder_hidden_size": "encoder_embed_dim",
        "decoder_hidden_size": "decoder_embed_dim",
        "decoder_out_embed_dim": "decoder_embed_dim",
        **{f"{side}_dropout_{end}": "dropout" for side in ("encoder", "decoder") for end in ("in", "out")},
    }
    if value is None and name in follows:
        return option(cfg, follows[name], options)
    if value is None:
        value = options.__dataclass_fields__[name].default
    if isinstance(value, str) and value.startswith("${"):
        return UNLIMITED if name.endswith("_positions") else None
    return value


def flag(name: str) -> str:
    """The command line's spelling of an option."""
    return "--" + name.replace("_", "-")


def check(cfg: Any) -> None:
    """Check the options against one another.

    Raises:
        ValueError: naming the flag, its value and what is allowed.
    """
    for side in ("encoder", "decoder"):
        for name in (f"{side}_embed_dim", f"{side}_hidden_size", f"{side}_layers"):
            at_least_one(cfg, name)
        path = option(cfg, f"{side}_embed_path")
        if path and not Path(path).is_file():
            raise ValueError(f"{flag(f'{side}_embed_path')}: no such file: {path}")
        if path:
            _check_embedding_file(cfg, side, Path(path))
    for name in ("encoder_kernel_size", "decoder_out_embed_dim"):
        at_least_one(cfg, name)
    names = ["dropout", "rnn_dropout", *(f"{s}_dropout_{e}" for s in ("encoder", "decoder") for e in ("in", "out"))]
    probabilities(cfg, names)
    one_of(cfg, "recurrent_unit", UNITS)
    one_of(cfg, "sru_activation", ACTIVATIONS)
    if attention(cfg) not in (0, "global"):
        at_least_one(cfg, "decoder_attention_heads")
        heads, size = option(cfg, "decoder_attention_heads"), option(cfg, "decoder_hidden_size")
        if size % heads:
            raise ValueError(f"--decoder-attention-heads must divide --decoder-hidden-size {size}; got {heads}")
    cutoffs(cfg, None)
    if option(cfg, "share_all_embeddings"):
        must_match(cfg, "share_all_embeddings", "encoder_embed_dim", "decoder_embed_dim")
        decoder_path = option(cfg, "decoder_embed_path")
        if decoder_path and decoder_path != option(cfg, "encoder_embed_path"):
            raise ValueError(
                f"--share-all-embeddings takes the embedding from --encoder-embed-path; "
                f"--decoder-embed-path must be the same or left out, got {decoder_path}"
            )
    for shared in ("share_all_embeddings", "share_decoder_input_output_embed"):
        if option(cfg, shared):
            must_match(cfg, shared, "decoder_embed_dim", "decoder_out_embed_dim")


def attention(cfg: Any) -> int | str:
    """Where the decoder has attention: N, in each N-th layer from the top (0: nowhere), or ``global``, after it."""
    value = str(option(cfg, "decoder_attention"))
    found = {"true": "1", "false": "0"}.get(value.lower(), value.lower())
    if found != "global" and not (found.isascii() and found.isdecimal()):
        raise ValueError(f"--decoder-attention must be True, False, global or a number of layers; got {value!r}")
    return found if found == "global" else int(found)


def cutoffs(cfg: Any, vocabulary: int | None) -> list[int] | None:
    """The adaptive softmax's cutoffs below the vocabulary's size, or None for a full softmax."""
    if option(cfg, "criterion") != "adaptive_loss":
        return None
    text = str(option(cfg, "adaptive_softmax_cutoff"))
    words = text.strip("[]()").split(",")
    # read as numbers, not evaluated as fairseq does: the options of a checkpoint come from whoever wrote it
    values = [int(word) for word in words if word.strip().isdecimal()]
    if len(values) < len(words) or sorted(set(values)) != values or values[0] < 1:
        raise ValueError(f"--adaptive-softmax-cutoff must be increasing numbers of words, as 2000,10000; got {text!r}")
    return values if vocabulary is None else [v for v in values if v < vocabulary] or [vocabulary]


def at_least_one(cfg: Any, name: str) -> None:
    """Raise a ValueError that names the flag if a size is below 1."""
    if option(cfg, name) < 1:
        raise ValueError(f"{flag(name)} must be at least 1; got {option(cfg, name)}")


def one_of(cfg: Any, name: str, allowed: Iterable[str]) -> None:
    """Raise a ValueError that names the flag if a choice is not one of those."""
    if option(cfg, name) not in allowed:
        raise ValueError(f"{flag(name)} must be one of {', '.join(allowed)}; got {option(cfg, name)!r}")


def probabilities(cfg: Any, names: Iterable[str]) -> None:
    """Raise a ValueError that names the flag if a probability is outside [0, 1)."""
    for name in names:
        if not 0.0 <= option(cfg, name) < 1.0:
            raise ValueError(f"{flag(name)} must be in [0, 1); got {option(cfg, name)}")


def must_match(cfg: Any, shared: str, one: str, other: str) -> None:
    """Raise a ValueError that names the flags if two sizes differ that a shared embedding has both."""
    a, b = option(cfg, one), option(cfg, other)
    if a != b:
        raise ValueError(f"{flag(shared)} requires {flag(one)} to match {flag(other)}; got {a} and {b}")


def joint_dictionary(cfg: Any, source: Any, target: Any) -> None:
    """Raise a ValueError if --share-all-embeddings is asked for dictionaries that differ."""
    if option(cfg, "share_all_embeddings") and source != target:
        raise ValueError("--share-all-embeddings requires a joint dictionary (fairseq-preprocess --joined-dictionary)")


def _check_embedding_file(cfg: Any, side: str, path: Path) -> None:
    """The first line of fairseq's embedding format is ``words dimensions``, each other one a word and its numbers."""
    try:
        with path.open(encoding="utf-8") as lines:
            header = next(lines, "").split()
            first = next(lines, "").rstrip().split(" ")
    except UnicodeDecodeError:
        raise ValueError(f"{flag(f'{side}_embed_path')}: {path} is not UTF-8 text") from None
    if len(header) != 2 or not all(h.isdigit() for h in header):
        raise ValueError(f"{flag(f'{side}_embed_path')}: {path} must begin with a line `words dimensions`")
    dim = option(cfg, f"{side}_embed_dim")
    if len(first) - 1 != dim or int(header[1]) != dim:
        raise ValueError(
            f"{flag(f'{side}_embed_path')}: {path} holds vectors of {len(first) - 1} numbers, "
            f"{flag(f'{side}_embed_dim')} is {dim}"
        )
