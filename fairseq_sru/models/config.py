"""The models' options and the architecture presets."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import II, OmegaConf

# A folder a model, in it one YAML a preset; fairseq-hydra-train reads the same files, as
# --config-dir .../fairseq_sru/config model=sru/NAME.
PRESETS = Path(__file__).parent.parent / "config" / "model"


@dataclass
class DropoutConfig(FairseqDataclass):
    """Options of all models.

    fairseq reads the types at run time, so no postponed annotations here, and ``Optional[...]`` for what may be None.
    """

    dropout: float = field(default=0.1, metadata={"help": "dropout probability"})


@dataclass
class CommonConfig(DropoutConfig):
    """Options of all models that predict tokens."""

    adaptive_softmax_cutoff: str = field(
        default="10000,50000,200000",
        metadata={
            "help": "comma separated list of adaptive softmax cutoff points, used with --criterion adaptive_loss; "
            "those beyond the vocabulary are left out"
        },
    )
    share_decoder_input_output_embed: bool = field(
        default=False, metadata={"help": "share decoder input and output embeddings"}
    )
    # set elsewhere on the command line; --model-overrides may put the criterion's options here
    criterion: Any = II("criterion._name")  # noqa: RUF009


@dataclass
class RecurrentConfig(DropoutConfig):
    """Options of recurrent layers wherever they stand."""

    rnn_dropout: float = field(
        default=0.0, metadata={"help": "variational dropout on the input of each recurrent layer, one draw a sentence"}
    )
    recurrent_unit: str = field(default="sru", metadata={"help": "recurrent unit of all layers: sru or lstm"})
    sru_activation: str = field(
        default="tanh", metadata={"help": "g in SRU's output r g(c): tanh, identity or relu; LSTM keeps its tanh"}
    )


@dataclass
class TranslationConfig(CommonConfig):
    """Options of the models with encoder and decoder."""

    share_all_embeddings: bool = field(
        default=False,
        metadata={"help": "share encoder, decoder and output embeddings (requires shared dictionary and embed dim)"},
    )
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout probability for attention weights"})
    decoder_coverage: str = field(
        default="False",
        metadata={
            "help": "BOOL or auto: tell the top layer's attention what the one below has attended to so far; "
            "auto: where there is one below"
        },
    )
    # set elsewhere on the command line
    max_source_positions: int = II("task.max_source_positions")
    max_target_positions: int = II("task.max_target_positions")


@dataclass
class EmbeddingConfig(DropoutConfig):
    """Options of the embedding of what an encoder reads, spelled as those of ``--arch lstm``."""

    encoder_embed_dim: int = field(default=512, metadata={"help": "encoder embedding dimension"})
    encoder_embed_path: Optional[str] = field(default=None, metadata={"help": "path to pre-trained encoder embedding"})
    encoder_freeze_embed: bool = field(default=False, metadata={"help": "freeze encoder embeddings"})


@dataclass
class EncoderConfig(EmbeddingConfig, RecurrentConfig):
    """Options of the recurrent encoder, and of its layers wherever they stand; spelled as those of ``--arch lstm``."""

    encoder_hidden_size: Optional[int] = field(
        default=None, metadata={"help": "encoder hidden size of each direction (default: --encoder-embed-dim)"}
    )
    encoder_layers: int = field(default=2, metadata={"help": "number of encoder layers"})
    encoder_bidirectional: bool = field(default=False, metadata={"help": "make all layers of encoder bidirectional"})
    encoder_kernel_size: int = field(
        default=1, metadata={"help": "positions that a depthwise convolution in each encoder layer sees; 1: none"}
    )
    encoder_dropout_in: Optional[float] = field(
        default=None, metadata={"help": "dropout probability for encoder input embedding (default: --dropout)"}
    )
    encoder_dropout_out: Optional[float] = field(
        default=None, metadata={"help": "dropout probability for encoder layer outputs (default: --dropout)"}
    )
    no_residual: bool = field(
        default=False,
        metadata={
            "help": "stack the recurrent layers plainly, without layer norms and residual connections; "
            "SRU layers then have their highway term"
        },
    )


@dataclass
class DecoderConfig(CommonConfig, RecurrentConfig):
    """Options of the recurrent decoder."""

    decoder_embed_dim: int = field(default=512, metadata={"help": "decoder embedding dimension"})
    decoder_hidden_size: Optional[int] = field(
        default=None, metadata={"help": "decoder hidden size (default: --decoder-embed-dim)"}
    )
    decoder_layers: int = field(default=2, metadata={"help": "number of decoder layers"})
    decoder_out_embed_dim: Optional[int] = field(
        default=None, metadata={"help": "decoder output embedding dimension (default: --decoder-embed-dim)"}
    )
    decoder_dropout_in: Optional[float] = field(
        default=None, metadata={"help": "dropout probability for decoder input embedding (default: --dropout)"}
    )
    decoder_dropout_out: Optional[float] = field(
        default=None,
        metadata={"help": "dropout probability for decoder layer outputs and output features (default: --dropout)"},
    )


@dataclass
class SRUConfig(EncoderConfig, DecoderConfig, TranslationConfig):
    """Options of ``--arch sru``, spelled as those of ``--arch lstm`` wherever it has them."""

    decoder_embed_path: Optional[str] = field(default=None, metadata={"help": "path to pre-trained decoder embedding"})
    decoder_freeze_embed: bool = field(default=False, metadata={"help": "freeze decoder embeddings"})
    decoder_attention: str = field(
        default="True",
        metadata={
            "help": "BOOL or N: attention over the encoder outputs in each decoder layer, or in each N-th, "
            "counted from the top; global: once, after the top layer"
        },
    )
    decoder_attention_heads: int = field(
        default=4, metadata={"help": "heads of layers' attention; divides --decoder-hidden-size"}
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
class SRULanguageModelConfig(DecoderConfig):
    """Options of ``--arch sru_lm``, spelled as those of ``--arch lstm_lm`` wherever it has them."""

    decoder_kernel_size: int = field(
        default=1,
        metadata={
            "help": "positions that a depthwise convolution in each decoder layer sees, its own and those before it; "
            "1: none"
        },
    )
    # set elsewhere on the command line
    max_target_positions: Optional[int] = II("task.max_target_positions")


@dataclass
class SpeechConfig(SRUConfig):
    """Options of ``--arch s2t_sru``: those of ``--arch sru``, and of the convolutions those of ``--arch
    s2t_transformer``. There, --encoder-embed-dim is what they make of a frame."""

    conv_kernel_sizes: str = field(default="5,5", metadata={"help": "kernel sizes of Conv1d subsampling layers"})
    conv_channels: int = field(
        default=1024, metadata={"help": "# of channels in Conv1d subsampling layers but the last, before their gates"}
    )
    # the task sets these from the data's configuration
    input_feat_per_channel: int = field(default=80, metadata={"help": "set by the data"})
    input_channels: int = field(default=1, metadata={"help": "set by the data"})
    speaker_to_id: Any = field(default=None, metadata={"help": "not used"})


@dataclass
class ClassifierConfig(EncoderConfig):
    """Options of ``--arch sru_classifier``."""

    pooling: str = field(
        default="max", metadata={"help": "what makes one vector of the encoder outputs: max, mean or last"}
    )
    # set elsewhere on the command line
    max_source_positions: int = II("task.max_positions")


@dataclass
class CNNClassifierConfig(EmbeddingConfig):
    """Options of ``--arch cnn_classifier``."""

    filter_widths: str = field(
        default="3,4,5", metadata={"help": "comma separated list of how many words the filters see"}
    )
    filters: int = field(default=100, metadata={"help": "number of filters of each width"})
    # set elsewhere on the command line
    max_source_positions: int = II("task.max_positions")


def presets(model: str = "sru") -> dict[str, dict[str, Any]]:
    """Name and options of each architecture preset of a model, by name."""
    files = sorted((PRESETS / model).glob("*.yaml"))
    loaded = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in files}
    return {name: {k: v for k, v in options.items() if k != "_name"} for name, options in loaded.items()}  # type: ignore[union-attr,misc]
