"""fairseq's beam search as compiled code: what fairseq's own finds, and fairseq's own where it can't run."""

from __future__ import annotations

import copy
import functools
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fairseq import search as strategies
from fairseq.data import Dictionary
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from support.builds import patched
from support.exported import SENTENCEPIECE, torch_alone, words
from support.small_models import VARIANTS, made
from torch.nn.modules.module import register_module_forward_hook

from fairseq_sru.decoding.files import ModelError
from fairseq_sru.export import model_of as model_for_export
from fairseq_sru.models import search, step
from fairseq_sru.models.encoder import RecurrentEncoder, SRUEncoder

KINDS = [
    "sru, defaults",
    "sru, bidirectional",
    "sru, coverage",
    "sru, tied",
    "sru, sru_tiny",
    "transformer_sru, ssru",
    "transformer_sru, sizes differ",
    "transformer_sru, ssru, coverage",
]
LENGTHS = [5, 1, 9, 3, 7]


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    kind, options = VARIANTS[name]
    model = made(kind, words(), **options).float().eval()
    for parameter in model.decoder.parameters():
        parameter.data.mul_(1.5)  # not near to uniform
    model.decoder.need_attn = False  # as fairseq-generate has it
    return model


@pytest.fixture
def model() -> Any:
    return model_of("sru, coverage")


def sample_of(lengths: list[int]) -> dict[str, Any]:
    """Sentences, padded on the left as fairseq does."""
    rng = torch.Generator().manual_seed(1)
    src = torch.full((len(lengths), max(lengths) + 1), words().pad())
    for line, length in zip(src, lengths, strict=True):
        line[-1] = words().eos()
        line[-1 - length : -1] = torch.randint(4, len(words()), (length,), generator=rng)
    return {"net_input": {"src_tokens": src, "src_lengths": torch.tensor(lengths) + 1}}


def generator_of(model: Any, **options: Any) -> SequenceGenerator:
    return SequenceGenerator([model], words(), **{"max_len_b": 12, "beam_size": 4, **options})


def found(model: Any, sample: dict[str, Any], **options: Any) -> list[list[dict[str, torch.Tensor]]]:
    return generator_of(model, **options).generate([model], sample)


def check(model: Any, sample: dict[str, Any], **options: Any) -> None:
    """The compiled search finds what fairseq's finds with torch's decoder."""
    got = model.beam_search(generator_of(model, **options), sample)
    assert got is not None
    with torch_alone(model):
        expected = found(model, sample, **options)
    for ours, theirs in zip(got, expected, strict=True):
        assert [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.keys() == other.keys()
            for key in one:
                assert one[key].dtype == other[key].dtype
                torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("beam", [1, 5])
def test_hypotheses_are_those_of_fairseq(name: str, beam: int) -> None:
    check(model_of(name), sample_of(LENGTHS), beam_size=beam)


@pytest.mark.parametrize("beam", [1, 5])
def test_sentences_follow_those_that_are_done(beam: int, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "threads_here", lambda: 1)
    check(model, sample_of([1 + i % 9 for i in range(50)]), beam_size=beam)


@pytest.mark.parametrize("count", [130, 4500])
@pytest.mark.parametrize(
    "beam, no_repeat", [(1, 0), pytest.param(5, 2, marks=patched), (9, 0)]
)  # 9 rows are more than a product takes at a time
def test_of_many_words(count: int, beam: int, no_repeat: int, monkeypatch: pytest.MonkeyPatch) -> None:
    many = Dictionary()
    for i in range(count - 4):
        many.add_symbol(f"word{i}")
    monkeypatch.setattr(f"{__name__}.words", lambda: many)
    check(model_of("sru, coverage"), sample_of([*LENGTHS, 40]), beam_size=beam, no_repeat_ngram_size=no_repeat)


@pytest.mark.parametrize(
    "options",
    [
        {"len_penalty": 0.6},
        {"len_penalty": 2.0},
        {"normalize_scores": False},
        pytest.param({"no_repeat_ngram_size": 2}, marks=patched),
        {"max_len_a": 0.5, "max_len_b": 2},
        {"max_len": 4},
    ],
    ids=str,
)
def test_options_that_it_knows(options: dict[str, Any], model: Any) -> None:
    check(model, sample_of(LENGTHS), **options)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_share_the_sentences(threads: int, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "threads_here", lambda: threads)
    check(model, sample_of(LENGTHS))


@pytest.mark.parametrize(
    "options",
    [
        {"min_len": 2},
        {"unk_penalty": 1.0},
        {"temperature": 2.0},
        {"match_source_len": True},
        {"tokens_to_suppress": [words().symbols[5]]},
        {"search_strategy": strategies.DiverseBeamSearch(words(), 2, 0.5)},
        {"search_strategy": strategies.Sampling(words())},
        {"beam_size": len(words()) // 2},
        {"eos": 4},
    ],
    ids=str,
)
def test_with_other_options_fairseq_searches(options: dict[str, Any], model: Any) -> None:
    assert model.beam_search(generator_of(model, **options), sample_of(LENGTHS)) is None
    assert all(found(model, sample_of(LENGTHS), **options))


def test_attention_that_nobody_keeps_is_left_out(model: Any) -> None:
    """In --eval-bleu the model doesn't know that nobody does."""
    model.decoder.need_attn = True
    generator = generator_of(model)
    assert model.beam_search(generator, sample_of(LENGTHS)) is None
    generator.keeps_attention = False
    assert model.beam_search(generator, sample_of(LENGTHS)) is not None


def test_a_prefix_and_language_models_are_fairseqs(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "beam_search", lambda *_: pytest.fail("it knows nothing of them"))
    prefix = torch.tensor([[6], [7], [8], [9], [6]])
    prefixed = generator_of(model).generate([model], sample_of(LENGTHS), prefix_tokens=prefix)
    assert [int(h[0]["tokens"][0]) for h in prefixed] == prefix[:, 0].tolist()
    fusing = generator_of(model)
    fusing.lm_model = torch.nn.Identity()
    assert not search._usual(fusing, len(words()))


class Own(EnsembleModel):
    """Such as mixes in what neighbours say."""


class OwnBlock(NGramRepeatBlock):
    """Such as lets some words be repeated."""


def test_an_ensemble_a_blocker_and_parts_of_ones_own_are_asked(model: Any) -> None:
    sample, blocking = sample_of(LENGTHS), generator_of(model, no_repeat_ngram_size=2)
    assert model.beam_search(generator_of(model), sample) is not None
    assert model.beam_search(SequenceGenerator(Own([model]), words(), max_len_b=12, beam_size=4), sample) is None
    assert model.beam_search(blocking, sample) is not None
    blocking.repeat_ngram_blocker = OwnBlock(2)
    assert model.beam_search(blocking, sample) is None
    for part in ("encoder", "decoder"):
        other = model_of("sru, coverage")
        setattr(other, part, torch.nn.Identity())
        assert other.beam_search(generator_of(model), sample) is None


def norm_like(_: Any) -> torch.nn.LayerNorm:
    return torch.nn.LayerNorm(8)


class Factored(SRUEncoder):
    """An encoder of a file that a user put into the package's folder, which fairseq imports."""

    __module__ = "fairseq_sru.models.factored"

    def forward(self, src_tokens: torch.Tensor, *given: Any, **more: Any) -> dict[str, Any]:
        return super().forward(src_tokens.flip(0), *given, **more)


def replaced(part: str, name: str, by: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Replaces what a part of a model has under that name."""

    def change(model: Any) -> None:
        owner = model.get_submodule(part)
        setattr(owner, name, by(getattr(owner, name)))

    return change


CHANGES = {
    "a norm after the embedding": replaced("encoder", "dropout_in", lambda d: torch.nn.Sequential(d, norm_like(d))),
    "a norm instead of dropout": replaced("decoder", "dropout_in", norm_like),
    "another norm": replaced("decoder.layers.1", "attention_norm", lambda n: torch.nn.RMSNorm(n.normalized_shape)),
    "no norm": replaced("encoder.layers.0", "norm", lambda _: torch.nn.Identity()),
    "no last map": replaced("decoder", "project_out", lambda _: torch.nn.Identity()),
    "a norm without bias": replaced("encoder", "norm", lambda n: torch.nn.LayerNorm(n.normalized_shape, bias=False)),
    "two maps": replaced("decoder", "project_out", lambda m: torch.nn.Sequential(m, torch.nn.Identity())),
    "a method": replaced("decoder", "output_layer", lambda method: lambda x, **_: 2 * method(x)),
    "a subclass": replaced("encoder", "__class__", lambda _: Factored),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_no_program_says_is_torchs(change: str, model: Any) -> None:
    sample = sample_of(LENGTHS)
    assert model.beam_search(generator_of(model), sample) is not None
    CHANGES[change](model)
    assert model.beam_search(generator_of(model), sample) is None
    assert len(found(model, sample)) == len(LENGTHS)
    with pytest.raises(ModelError, match=r"^the translator can't run this model"):
        model_for_export(model, Namespace(source_dictionary=words(), target_dictionary=words()), SENTENCEPIECE)


def by(*words: Any) -> Callable[[Any], None]:
    """Call a method of the model."""
    return lambda model: getattr(model, words[0])(*words[1:])


@pytest.mark.parametrize(
    "change",
    [
        by("train"),
        by("double"),
        by("bfloat16"),
        lambda model: setattr(model.decoder, "need_attn", True),
        lambda model: model.encoder.layers[0].register_forward_hook(lambda *_: None),
        lambda model: model.make_generation_fast_(retain_dropout=True),
        lambda model: setattr(model, "get_normalized_probs", lambda *_, **__: None),  # as a plugin has its own
    ],
)
def test_where_torch_has_to_run_the_model_it_searches(change: Callable[[Any], Any], model: Any) -> None:
    assert model.beam_search(generator_of(model), sample_of(LENGTHS)) is not None
    generator = generator_of(model)
    change(model)
    assert model.beam_search(generator, sample_of(LENGTHS)) is None


def test_what_surrounds_a_search_may_leave_it_to_torch(model: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert model.beam_search(generator_of(model), sample_of(LENGTHS)) is None
    hook = register_module_forward_hook(lambda *_: None)
    assert model.beam_search(generator_of(model), sample_of(LENGTHS)) is None
    hook.remove()
    assert model.beam_search(generator_of(model), sample_of(LENGTHS)) is not None


def test_what_lies_beside_encoder_and_decoder_changes_nothing(model: Any) -> None:
    model.head = torch.nn.Linear(8, 2)
    model.__class__ = type("Mine", (type(model),), {"__module__": "mine"})
    check(model, sample_of(LENGTHS))
    model.encoder.layers[0].register_forward_hook(lambda *_: None)
    assert model.beam_search(generator_of(model), sample_of(LENGTHS)) is None


def test_a_class_that_was_patched_is_torchs(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin may do so when it is imported."""
    step._is_known.cache_clear()
    patch = functools.wraps(SRUEncoder.forward)(lambda *given, **more: RecurrentEncoder.forward(*given, **more))
    monkeypatch.setattr(SRUEncoder, "forward", patch)
    assert model.beam_search(generator_of(model), sample_of(LENGTHS)) is None
    monkeypatch.undo()
    step._is_known.cache_clear()
    assert model.beam_search(generator_of(model), sample_of(LENGTHS)) is not None


@torch.no_grad()
def test_an_ensemble_scores_by_the_mean_of_probabilities() -> None:
    """Step by step as all words at once in float64, whichever model is the first."""
    models, sample = [model_of("sru, coverage"), model_of("sru, tied")], sample_of(LENGTHS)
    net, exact = sample["net_input"], [copy.deepcopy(model).double() for model in models]
    for order in (models, models[::-1]):
        found = SequenceGenerator(order, words(), max_len_b=12, beam_size=4).generate(order, sample)
        for n, hypotheses in enumerate(found):
            for hypothesis in hypotheses:
                tokens = hypothesis["tokens"]
                before = torch.cat([tokens.new_tensor([words().eos()]), tokens[:-1]])[None]
                given = net["src_tokens"][n : n + 1], net["src_lengths"][n : n + 1], before
                mean = sum(model(*given)[0].softmax(-1)[0] for model in exact) / 2
                expected = mean.log().gather(1, tokens[:, None])[:, 0]
                torch.testing.assert_close(hypothesis["positional_scores"].double(), expected, rtol=1e-4, atol=1e-4)


def test_weights_that_change_are_seen(model: Any) -> None:
    sample = sample_of(LENGTHS)
    check(model, sample)
    before = found(model, sample)
    with torch.no_grad():
        model.encoder.embed_tokens.weight.mul_(-1)
    changed = found(model, sample)
    assert changed[0][0]["score"] != before[0][0]["score"]
    model.train()
    model.encoder.embed_tokens.weight.data.mul_(-1)
    model.eval()
    assert found(model, sample)[0][0]["score"] == before[0][0]["score"]


def test_where_evaluation_goes_on_the_search_stays(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator of fairseq's says eval(); the hub makes one at each call, and --eval-bleu at each batch."""
    first = model.beam_search(generator_of(model), sample_of(LENGTHS))
    monkeypatch.setattr(search, "_search", lambda _: pytest.fail("made again"))
    assert str(model.eval().beam_search(generator_of(model), sample_of(LENGTHS))) == str(first)


def test_padding_inside_a_line_is_torchs(model: Any) -> None:
    """The word <pad>: a convolution sees a place there, which compiled code would not."""
    sample = sample_of(LENGTHS)
    assert model.beam_search(generator_of(model), sample) is not None
    sample["net_input"]["src_tokens"][0, -3] = words().pad()
    assert model.beam_search(generator_of(model), sample) is None
    assert len(found(model, sample)) == len(LENGTHS)


def test_a_token_that_is_not_of_the_dictionary_is_an_error(model: Any) -> None:
    sample = sample_of(LENGTHS)
    sample["net_input"]["src_tokens"][0, -2] = len(words())
    with pytest.raises(IndexError):
        found(model, sample)
    sample["net_input"]["src_tokens"][0, -2] = -1
    with pytest.raises(IndexError):
        found(model, sample)


NAN = {
    "attention": ("sru, coverage", "decoder.layers.1.attention.query.weight"),
    "ssru": ("transformer_sru, ssru", "decoder.layers.0.sru.weight"),
    "feed-forward": ("transformer_sru, ssru", "decoder.layers.0.feed_forward.inner.bias"),
}


@pytest.mark.parametrize("name, weight", NAN.values(), ids=NAN)
def test_of_a_model_with_nan_fairseq_speaks(name: str, weight: str) -> None:
    """Also where it goes through a relu, which makes a 0 of what is not above 0 unless care is taken."""
    model = model_of(name)
    with torch.no_grad():
        model.get_parameter(weight).fill_(float("nan"))
    assert model.beam_search(generator_of(model), sample_of(LENGTHS)) is None
