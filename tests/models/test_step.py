"""The compiled step of decoding: the modules' results, whatever a beam search does, and torch where it can't run."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from support.processes import forget, under_sanitizers
from support.small_models import VARIANTS, made, prefixes, reorder, run, sources
from torch import nn

from fairseq_sru.decoding import program as program_module
from fairseq_sru.layers.cell import SRUCell
from fairseq_sru.models import base_decoder, step, units
from fairseq_sru.recurrence import build, dispatch

TRANSLATING = [name for name in VARIANTS if not name.startswith("sru_lm")]
# what has no compiled step: other units than the fast SRU, and layers, attention and output layers of other kinds
TORCHS = ("lstm", "no attention", "global", "no residual", "2017", "adaptive", "feed-forward", "ffn")
SELF_ATTENTION = ("transformer_sru, transformer", "transformer_sru, coverage")
COMPILED = {n for n in TRANSLATING if n not in SELF_ATTENTION and not any(word in n for word in TORCHS)}
pytestmark = pytest.mark.filterwarnings("ignore:SRU runs")


def model_of(name: str, dictionary: Dictionary) -> Any:
    kind, options = VARIANTS[name]
    return made(kind, dictionary, **options).float().eval()


def program(model: Any) -> Any:
    """The compiled step that the decoder last used, if it has one."""
    known = step._known.get(model.decoder)
    return None if known is None else known.code


@pytest.fixture
def model(dictionary: Dictionary) -> Any:
    return model_of("sru, coverage", dictionary)


def steps(model: Any, src: torch.Tensor, target: torch.Tensor, begin: int = 1, encoded: Any = None) -> torch.Tensor:
    """The logits of each position, one step at a time; ``begin`` positions in the first."""
    encoded, state = model.encoder(src) if encoded is None else encoded, {}
    found = [
        model.decoder(target[:, :t], encoded, incremental_state=state)[0] for t in range(begin, target.size(1) + 1)
    ]
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("name", TRANSLATING)
def test_steps_are_those_of_torch_in_float64(name: str, dictionary: Dictionary) -> None:
    model = model_of(name, dictionary)
    src, target = sources(dictionary, [5, 3, 7]), prefixes(dictionary, 3, 9)
    with torch.no_grad():
        got = [steps(model, src, target, begin) for begin in (1, 4)]
        assert (program(model) is not None) is (name in COMPILED)
        expected = run(model.double(), src, target)[0]
    for logits in got:
        torch.testing.assert_close(logits, expected.float(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", sorted(COMPILED))
@torch.no_grad()
def test_a_beam_that_is_reordered_and_shrinks(name: str, dictionary: Dictionary) -> None:
    """With the weights of the top attention; every row at each step as by torch in float64 from its beginning."""
    model, rng, beam = model_of(name, dictionary), torch.Generator().manual_seed(5), 4
    exact = copy.deepcopy(model).double()
    src, alive = sources(dictionary, [5, 7, 3]), [0, 1, 2]
    encoded = model.encoder.reorder_encoder_out(model.encoder(src), torch.arange(3).repeat_interleave(beam))
    target, state = prefixes(dictionary, 3 * beam, 1), {}
    for t in range(8):
        logits, attended = model.decoder(target, encoded, incremental_state=state)
        expected, extra = exact.decoder(target, exact.encoder(src[alive].repeat_interleave(beam, 0)))
        torch.testing.assert_close(logits[:, -1], expected[:, -1].float(), rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(attended["attn"][0][:, 0], extra["attn"][0][:, -1].float(), rtol=1e-4, atol=1e-5)
        stay = [row for row, n in enumerate(alive) if (t, n) not in ((2, 1), (5, 0))]
        alive = [alive[row] for row in stay]
        order = torch.cat([row * beam + torch.randint(beam, (beam,), generator=rng) for row in stay])
        encoded = reorder(model, state, encoded, order)
        words = torch.randint(dictionary.nspecial, len(dictionary), (len(order), 1), generator=rng)
        target = torch.cat([target[order], words], dim=1)
    assert program(model) is not None


@torch.no_grad()
@pytest.mark.parametrize("begin", [1, 3])
def test_weights_that_change_are_seen(begin: int, model: Any, dictionary: Dictionary) -> None:
    src, target = sources(dictionary, [5, 3]), prefixes(dictionary, 2, 5)
    other = model_of("sru, coverage", dictionary)

    def in_place() -> None:
        nn.init.normal_(model.decoder.layers[1].attention.query.weight)

    def by_an_optimizer() -> None:
        model.train()
        model.decoder.project_out.weight.data.mul_(2)
        model.eval()

    for change in (in_place, by_an_optimizer, lambda: model.load_state_dict(other.state_dict())):
        before = steps(model, src, target, begin)
        change()
        after = steps(model, src, target, begin)
        assert not torch.allclose(before, after, atol=1e-3)
        torch.testing.assert_close(after, run(model, src, target)[0], rtol=1e-4, atol=2e-5)
    copied = copy.deepcopy(model)
    nn.init.normal_(copied.decoder.layers[3].rnn.sru.weight)
    torch.testing.assert_close(steps(model, src, target, begin), after, rtol=0, atol=0)
    torch.testing.assert_close(steps(copied, src, target), run(copied, src, target)[0], rtol=1e-4, atol=2e-5)


def test_where_it_must_not_run_torch_does(model: Any, dictionary: Dictionary, monkeypatch: pytest.MonkeyPatch) -> None:
    src, target = sources(dictionary, [5, 3]), prefixes(dictionary, 2, 5)
    calls: list[int] = []
    monkeypatch.setattr(step.Step, "run", lambda *_: calls.append(1))
    assert steps(model, src, target).requires_grad
    with torch.no_grad():
        for dtype in (torch.float64, torch.bfloat16):
            steps(copy.deepcopy(model).to(dtype), src, target)
        with torch.autocast("cpu", torch.bfloat16):
            steps(model, src, target)
        hooked = copy.deepcopy(model)
        seen: list[int] = []
        hooked.decoder.layers[0].register_forward_hook(lambda *_: seen.append(1))
        steps(hooked, src, target)
        assert len(seen) == 5
        with monkeypatch.context() as asked:
            asked.setenv(dispatch.BACKEND_VARIABLE, "torch")
            forget()
            steps(copy.deepcopy(model), src, target)
        forget()
        monkeypatch.setattr(base_decoder, "available", lambda: False)
        steps(copy.deepcopy(model), src, target)
    assert not calls


def test_a_cell_of_ones_own_is_torchs() -> None:
    """docs/extending.md has such units: export, too, would take its weights for those of an SRU."""

    class Own(SRUCell):
        def forward(self, *args: Any) -> Any:
            h, c = super().forward(*args)
            return 2 * h, c

    assert step.plain(SRUCell(4, 4, highway=False)) and step.plain(units.SRU(4, 4, highway=False))
    assert not step.plain(Own(4, 4, highway=False))


@pytest.mark.parametrize("token", [-1, 10**6])
@torch.no_grad()
def test_a_token_that_is_none_is_an_error(token: int, model: Any, dictionary: Dictionary) -> None:
    src, target = sources(dictionary, [5, 3]), prefixes(dictionary, 2, 1)
    target[1] = token
    with pytest.raises(IndexError, match=r"^tokens must be of the dictionary; got -?\d+ to \d+$"):
        steps(model, src, target)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_torchs_default_dtype_changes_nothing(dtype: torch.dtype, model: Any, dictionary: Dictionary) -> None:
    src, target = sources(dictionary, [5, 3]), prefixes(dictionary, 2, 5)
    expected = steps(model, src, target)
    torch.set_default_dtype(dtype)
    try:
        found = steps(model, src, target)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_a_model_made_in_inference_mode_decodes(dictionary: Dictionary) -> None:
    with torch.inference_mode():
        model = model_of("sru, coverage", dictionary)
        src, target = sources(dictionary, [5, 3]), prefixes(dictionary, 2, 5)
        torch.testing.assert_close(steps(model, src, target), run(model, src, target)[0], rtol=1e-4, atol=2e-5)
    assert program(model) is not None


@torch.no_grad()
def test_torch_can_go_on_where_compiled_steps_stopped(model: Any, dictionary: Dictionary) -> None:
    src, target = sources(dictionary, [5, 3]), prefixes(dictionary, 2, 6)
    encoded, state = model.encoder(src), {}
    for t in range(1, 5):
        model.decoder(target[:, :t], encoded, incremental_state=state)
    features, _ = model.decoder(target[:, :5], encoded, incremental_state=state, features_only=True)
    torch.testing.assert_close(
        model.decoder.output_layer(features)[:, 0], run(model, src, target)[0][:, 4], rtol=1e-4, atol=2e-5
    )
    assert program(model) is not None
    torch.testing.assert_close(
        model.decoder(target, encoded, incremental_state=state)[0][:, 0],
        run(model, src, target)[0][:, 5],
        rtol=1e-4,
        atol=2e-5,
    )


@torch.no_grad()
def test_threads_change_no_bit(dictionary: Dictionary) -> None:
    kind, options = VARIANTS["sru, sru_tiny"]
    wide = {"encoder_embed_dim": 128, "encoder_hidden_size": 64, "decoder_embed_dim": 128, "decoder_hidden_size": 128}
    model = made(kind, dictionary, **{**options, **wide}).float().eval()
    src, target = sources(dictionary, [9] * 24), prefixes(dictionary, 24, 6)
    encoded, before = model.encoder(src), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3, 4):
            torch.set_num_threads(threads)
            found.append(steps(model, src, target, encoded=encoded))
    finally:
        torch.set_num_threads(before)
    assert program(model) is not None
    assert all(torch.equal(found[0], other) for other in found)


@torch.no_grad()
@pytest.mark.parametrize(
    "what",
    ["rows", "state", "keys of 16 bits", "fewer heads", "a layer less", "tokens of 32 bits", "training", "forward"],
)
def test_what_compiled_code_does_not_check_is_torchs(
    what: str, model: Any, dictionary: Dictionary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads where it is told to: torch computes, or says what is wrong."""
    ran: list[int] = []
    src, target = sources(dictionary, [5, 3]), prefixes(dictionary, 2, 1)
    encoded, state = model.encoder(src), {}
    monkeypatch.setattr(step.Step, "run", lambda *_: ran.append(1))
    with contextlib.suppress(AttributeError):  # of None
        model.decoder(target, encoded, incremental_state={})
    assert ran == [1], "what is changed below is why it doesn't run"
    ran.clear()

    def changed(how: Any) -> dict[str, Any]:
        read = encoded["read"][model.decoder]
        return {**encoded, "read": {model.decoder: read._replace(state=state, sources=how(read.sources))}}

    if what == "rows":
        target = prefixes(dictionary, 3, 1)
    elif what == "state":
        model.decoder.set_incremental_state(state, "cached_state", {"0.c": torch.zeros(1, 3)})
    elif what == "keys of 16 bits":
        encoded = changed(lambda sources: [source._replace(key=source.key.bfloat16()) for source in sources])
    elif what == "fewer heads":
        encoded = changed(lambda sources: [source._replace(key=source.key[:, 1:]) for source in sources])
    elif what == "a layer less":
        encoded = changed(lambda sources: sources[1:])
    elif what == "tokens of 32 bits":
        target = target.int()
    elif what == "training":
        model.decoder.layers[0].train()
    else:
        model.decoder.layers[0].forward = model.decoder.layers[0].forward
    wrong = what in ("rows", "state", "keys of 16 bits", "fewer heads", "a layer less")
    with contextlib.suppress(Exception) if wrong else contextlib.nullcontext():
        logits, _ = model.decoder(target, encoded, incremental_state=state)
        assert wrong or logits.shape == (2, 1, len(dictionary))
    assert not ran


def test_a_compiler_that_fails_means_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: Any) -> Any:
        raise build.Unavailable("none here")

    monkeypatch.setattr(program_module, "host_library", unavailable)
    program_module.library.cache_clear()
    program_module.available.cache_clear()
    try:
        with pytest.warns(UserWarning, match="^decoding runs in plain PyTorch on the CPU, which is slower: none here$"):
            assert not program_module.available()
    finally:
        program_module.library.cache_clear()
        program_module.available.cache_clear()


SANITIZED = """
import torch
from fairseq_sru.models import step
from support.small_models import *
words = numbered(37)
with torch.no_grad():
    for name in {names!r}:
        kind, options = VARIANTS[name]
        model = made(kind, words, **options).float().eval()
        for rows in (1, 3, 17):
            src, target = sources(words, [4] * rows), prefixes(words, rows, 4)
            encoded, state = model.encoder(src), {{}}
            for t in range(1, 5):
                model.decoder(target[:, :t], encoded, incremental_state=state)
        assert step._known[model.decoder].code is not None
"""


@pytest.mark.slow
def test_no_access_is_out_of_bounds(tmp_path: Path) -> None:
    under_sanitizers(SANITIZED.format(names=sorted(COMPILED)), tmp_path)
