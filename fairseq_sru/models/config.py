"""The models' options and the architecture presets."""

# ruff: noqa: RUF009 (the defaults are fields)
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import II, OmegaConf

from ..recurrence import ACTIVATIONS
from .options import attention, count, numbers, option, probability, vectors
from .units import UNITS

# A folder a model, in it one YAML a preset; fairseq-hydra-train reads the same files, as
# --config-dir .../fairseq_sru/config model=sru/NAME.
PRESETS = Path(__file__).parent.parent / "config" / "model"


@dataclass
class DropoutConfig(FairseqDataclass):
    """Options of all models.

    fairseq reads the types at run time, so no postponed annotations here, and ``Optional[...]`` for what may be None.
    ``II(...)`` is set elsewhere on the command line.
    """

    dropout: float = probability(0.1, "dropout probability")


@dataclass
class CommonConfig(DropoutConfig):
    """Options of all models that predict tokens."""

    adaptive_softmax_cutoff: str = option(
        "10000,50000,200000",
        "comma separated list of adaptive softmax cutoff points, used with --criterion adaptive_loss; "
        "those beyond the vocabulary are left out",
        "increasing numbers of words from 2 on, as 2000,10000",
        lambda value: (cuts := numbers(value)) and cuts[0] > 1 and sorted(set(cuts)) == cuts,
    )
    share_decoder_input_output_embed: bool = option(False, "share decoder input and output embeddings")
    # --model-overrides may put the criterion's options here
    criterion: Any = II("criterion._name")


@dataclass
class RecurrentConfig(DropoutConfig):
    """Options of recurrent layers wherever they stand."""

    rnn_dropout: float = probability(
        0.0, "variational dropout on the input of each recurrent layer, one draw a sentence"
    )
    recurrent_unit: str = option("sru", "recurrent unit of all layers: sru or lstm", UNITS)
    sru_activation: str = option(
        "tanh", "g in SRU's output r g(c): tanh, identity or relu; LSTM keeps its tanh", ACTIVATIONS
    )


@dataclass
class TranslationConfig(CommonConfig):
    """Options of the models with encoder and decoder."""

    share_all_embeddings: bool = option(
        False, "share encoder, decoder and output embeddings (requires shared dictionary and embed dim)"
    )
    attention_dropout: float = probability(0.0, "dropout probability for attention weights")
    decoder_coverage: str = option(
        "False",
        "BOOL or auto: the top layer's attention reads what the one below has attended to so far; "
        "auto: where there is one below",
        "True, False or auto",
        lambda value: str(value).lower() in ("true", "false", "auto"),
    )
    max_source_positions: int = II("task.max_source_positions")
    max_target_positions: int = II("task.max_target_positions")


@dataclass
class EmbeddingConfig(DropoutConfig):
    """Options of the embedding that an encoder has, spelled as those of ``--arch lstm``."""

    encoder_embed_dim: int = count(512, "encoder embedding dimension")
    encoder_embed_path: Optional[str] = vectors("encoder")
    encoder_freeze_embed: bool = option(False, "freeze encoder embeddings")


@dataclass
class EncoderConfig(EmbeddingConfig, RecurrentConfig):
    """Options of the recurrent encoder, and of its layers wherever they stand; spelled as those of ``--arch lstm``."""

    encoder_hidden_size: Optional[int] = count(
        None, "encoder hidden size of each direction", follows="encoder_embed_dim"
    )
    encoder_layers: int = count(2, "number of encoder layers")
    encoder_bidirectional: bool = option(False, "make all layers of encoder bidirectional")
    encoder_kernel_size: int = count(1, "positions that a depthwise convolution in each encoder layer sees; 1: none")
    encoder_dropout_in: Optional[float] = probability(
        None, "dropout probability for encoder input embedding", follows="dropout"
    )
    encoder_dropout_out: Optional[float] = probability(
        None, "dropout probability for encoder layer outputs", follows="dropout"
    )
    no_residual: bool = option(
        False,
        "stack the recurrent layers plainly, without layer norms and residual connections; "
        "SRU layers then have their highway term",
    )


@dataclass
class DecoderConfig(CommonConfig, RecurrentConfig):
    """Options of the recurrent decoder."""

    decoder_embed_dim: int = count(512, "decoder embedding dimension")
    decoder_hidden_size: Optional[int] = count(None, "decoder hidden size", follows="decoder_embed_dim")
    decoder_layers: int = count(2, "number of decoder layers")
    decoder_out_embed_dim: Optional[int] = count(
        None, "decoder output embedding dimension", follows="decoder_embed_dim"
    )
    decoder_dropout_in: Optional[float] = probability(
        None, "dropout probability for decoder input embedding", follows="dropout"
    )
    decoder_dropout_out: Optional[float] = probability(
        None, "dropout probability for decoder layer outputs and output features", follows="dropout"
    )


@dataclass
class SRUConfig(EncoderConfig, DecoderConfig, TranslationConfig):
    """Options of ``--arch sru``, spelled as those of ``--arch lstm`` wherever it has them."""

    decoder_embed_path: Optional[str] = vectors("decoder")
    decoder_freeze_embed: bool = option(False, "freeze decoder embeddings")
    decoder_attention: str = option(
        "True",
        "BOOL or N: attention over the encoder outputs in each decoder layer, or in each N-th, "
        "counted from the top; global: once, after the top layer",
        "True, False, global or a number of layers",
        lambda value: attention(value) is not None,
    )
    decoder_attention_heads: int = count(4, "heads of layers' attention; divides --decoder-hidden-size")


@dataclass
class TransformerSRUConfig(TranslationConfig):
    """Options of ``--arch transformer_sru``, spelled as those of ``--arch transformer`` wherever it has them."""

    rnn_dropout: float = probability(0.0, "variational dropout on the input of each SRU, one draw a sentence")
    encoder_embed_dim: int = count(512, "encoder embedding dimension", least=4)  # sinusoids of two frequencies
    encoder_ffn_embed_dim: int = count(2048, "encoder embedding dimension for FFN")
    encoder_layers: int = count(6, "number of encoder layers")
    encoder_attention_heads: int = count(8, "encoder attention heads; divides --encoder-embed-dim")
    decoder_embed_dim: int = count(512, "decoder embedding dimension", least=4)
    decoder_ffn_embed_dim: int = count(2048, "decoder embedding dimension for FFN")
    decoder_layers: int = count(6, "number of decoder layers")
    decoder_attention_heads: int = count(8, "decoder attention heads; divides --decoder-embed-dim")
    decoder_autoreg: str = option(
        "ssru",
        "what lets a decoder layer see the earlier target words: ssru (SRU without reset gate, with ReLU), "
        "sru or self-attention",
        ("ssru", "sru", "self-attention"),
    )
    feed_forward: str = option(
        "linear", "inner layer of the feed-forward blocks: linear (with ReLU) or sru", ("linear", "sru")
    )


@dataclass
class SRULanguageModelConfig(DecoderConfig):
    """Options of ``--arch sru_lm``, spelled as those of ``--arch lstm_lm`` wherever it has them."""

    decoder_kernel_size: int = count(
        1,
        "positions that a depthwise convolution in each decoder layer sees, its own and those before it; 1: none",
    )
    max_target_positions: Optional[int] = II("task.max_target_positions")


@dataclass
class SpeechConfig(SRUConfig):
    """Options of ``--arch s2t_sru``: those of ``--arch sru``, and of the convolutions those of ``--arch
    s2t_transformer``. There, --encoder-embed-dim is what they make of a frame."""

    conv_kernel_sizes: str = option(
        "5,5",
        "kernel sizes of Conv1d subsampling layers",
        "odd numbers of frames, as 5,5",
        lambda value: (sizes := numbers(value)) and all(size % 2 for size in sizes),
    )
    conv_channels: int = option(
        1024,
        "# of channels in Conv1d subsampling layers but the last, before their gates",
        "even and at least 2",
        lambda value: value > 0 and value % 2 == 0,
    )
    # the task sets these from the data's configuration
    input_feat_per_channel: int = count(80, "set by the data")
    input_channels: int = count(1, "set by the data")
    speaker_to_id: Any = option(None, "not used")


@dataclass
class ClassifierConfig(EncoderConfig):
    """Options of ``--arch sru_classifier``."""

    pooling: str = option(
        "max", "what makes one vector of the encoder outputs: max, mean or last", ("max", "mean", "last")
    )
    max_source_positions: int = II("task.max_positions")


@dataclass
class CNNClassifierConfig(EmbeddingConfig):
    """Options of ``--arch cnn_classifier``."""

    filter_widths: str = option(
        "3,4,5",
        "comma separated list of how many words the filters see",
        "numbers of words, as 3,4,5",
        lambda value: (widths := numbers(value)) and min(widths) > 0,
    )
    filters: int = count(100, "number of filters of each width")
    max_source_positions: int = II("task.max_positions")


def presets(model: str = "sru") -> dict[str, dict[str, Any]]:
    """Return the options of each architecture preset of a model, by name."""
    files = sorted((PRESETS / model).glob("*.yaml"))
    loaded = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in files}
    return {name: {k: v for k, v in options.items() if k != "_name"} for name, options in loaded.items()}  # type: ignore[union-attr,misc]
