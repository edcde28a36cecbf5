"""The documentation is true: its Python runs, its formulas hold, its examples work, its links and flags exist."""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import io
import itertools
import math
import re
import shlex
import tarfile
import textwrap
from argparse import Namespace
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from common.arguments import file, folder, new_file, output_file
from comparison.settings import load
from conftest import ROOT, run_cli
from support.exported import exported
from support.processes import forget, python
from support.ptx import least
from support.small_models import prefixes, sources
from support.variants import COVERING, TENSORS, Case, assert_defined, fits, make, results
from torch import Tensor

from fairseq_sru import SRUCell, sru_recurrence
from fairseq_sru.models.attention import Coverage
from fairseq_sru.models.config import SRUConfig, presets
from fairseq_sru.models.options import completed
from fairseq_sru.recurrence import dispatch
from fairseq_sru.recurrence.kernels import VALUES, Variant
from fairseq_sru.versions import __version__

DOCS = ROOT / "docs"
PAGES = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")), *sorted(DOCS.glob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def fenced(text: str, language: str) -> list[str]:
    """The blocks that are marked as in ``language``."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def without_fenced(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?: {4}.*\n|\n(?= {4}))+")


def indented(text: str) -> list[str]:
    """The blocks that are indented by 4 spaces, without these."""
    return [textwrap.dedent(block) for block in INDENTED.findall(without_fenced(text))]


def is_python(text: str) -> bool:
    with contextlib.suppress(SyntaxError):
        compile(text, "a block", "exec")
        return True
    return False


# --- performance.md ---------------------------------------------------------------------------------------------------


class Recording:
    """A stand-in for torch.cuda's streams and graphs: it records nothing, and replays by calling again."""

    update: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def wait_stream(self, _: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        pass

    def replay(self) -> None:
        Recording.update()


def test_an_update_as_a_cuda_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the page has it where there is a GPU; elsewhere on the CPU, which needs no capturable optimizer."""
    (block,) = fenced((DOCS / "performance.md").read_text(), "python")
    before, after = block.split("graph = torch.cuda.CUDAGraph()\n")
    names: dict[str, Any] = {}
    if not torch.cuda.is_available():
        for name in ("Stream", "stream", "current_stream", "CUDAGraph", "graph"):
            monkeypatch.setattr(torch.cuda, name, Recording)
        before = before.replace(".cuda()", "").replace('device="cuda"', 'device="cpu"').replace(", capturable=True", "")
        before = before.replace("512", "16")
        after = after.replace("512", "16")
    exec(before, names)
    Recording.update = names["update"]
    weights = [p.detach().clone() for p in names["rnn"].parameters()]
    exec(f"graph = torch.cuda.CUDAGraph()\n{after}", names)
    assert torch.isfinite(names["loss"])
    assert not any(torch.equal(a, b) for a, b in zip(weights, names["rnn"].parameters(), strict=True))


# --- maths.md ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maths() -> dict[str, Any]:
    """What the page's Python defines."""
    names: dict[str, Any] = {}
    for block in fenced((DOCS / "maths.md").read_text(), "python"):
        exec(block, names)
    return names


def every_variant() -> Iterator[Case]:
    kinds, switches = ("k2", "k3-noskip", "k3-input", "k4"), (False, True)
    for kind, g, v, both, rest in itertools.product(kinds, ("identity", "tanh", "relu"), switches, switches, switches):
        case = Case(kind, torch.float64, g, v, both, dropout=rest, padding=rest, c0=rest, bias=rest, scaled=rest)
        yield case if fits(case._asdict()) else case._replace(scaled=False)


CASES = list(dict.fromkeys([*every_variant(), *(case._replace(dtype=torch.float64) for case in COVERING)]))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_gradients_are_those_of_the_definition(case: Case, maths: dict[str, Any]) -> None:
    class Page(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, named: dict[str, Any], *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
            ctx.cell = maths["Cell"](**named, **dict(zip(TENSORS, tensors, strict=True)))
            return ctx.cell.forward()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            found = maths["backward"](ctx.cell, *grads)
            needed = zip(TENSORS, ctx.needs_input_grad[1:], strict=True)
            return (None, *(found[name] if need else None for name, need in needed))

    def page(**arguments: Any) -> tuple[Tensor, Tensor]:
        tensors = [arguments.pop(name) for name in TENSORS]
        return Page.apply(arguments, *tensors)

    arguments = make(case)
    assert_defined(results(page, arguments), arguments)


V1 = [case for case in CASES if not case.v]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
@pytest.mark.parametrize("case", V1, ids=str)
def test_chunks_give_what_one_pass_gives(case: Case, chunk: int, maths: dict[str, Any]) -> None:
    cell = maths["Cell"](**make(case, requires_grad=False))
    h, c_n = cell.forward()
    torch.testing.assert_close(maths["states_by_chunks"](cell, chunk), cell.c, rtol=1e-12, atol=1e-13)
    grad_h, grad_c_n = torch.randn_like(h), torch.randn_like(c_n)
    q = maths["q_by_chunks"](cell, grad_h, grad_c_n, chunk)
    assert len(q) == math.ceil(7 / chunk)
    torch.testing.assert_close(q[0], maths["backward"](cell, grad_h, grad_c_n)["c0"], rtol=1e-12, atol=1e-13)


def test_coverage_is_that_of_the_page(maths: dict[str, Any]) -> None:
    module, weights = Coverage(3).double(), torch.rand(1, 6, 4).double()
    torch.nn.init.normal_(module.weight)
    bias, _ = module(weights, None, torch.zeros(1, 6).bool())
    torch.testing.assert_close(bias[0], maths["coverage"](weights[0], *module.weight.detach()))


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("planes, skip", [(2, 0), (3, 0), (3, 1), (4, 0)])
@pytest.mark.parametrize("activation", [0, 1, 2])
def test_bytes_are_those_of_the_compiled_kernels(
    value: torch.dtype, planes: int, skip: int, activation: int, maths: dict[str, Any]
) -> None:
    """least() is what the compiler's output is held to."""
    variant = Variant(VALUES[value], activation, planes, skip, 0)
    for kernel in ("sru_forward", "sru_backward", "sru_forward_summary", "sru_backward_summary"):
        sizes = value.itemsize, max(value.itemsize, 4)
        stated = maths["bytes_moved"](kernel, *sizes, planes, skip, slope=activation != 0)
        assert 2 * stated == sum(map(sum, least(variant, kernel))), kernel


def test_the_table_of_bytes_follows(maths: dict[str, Any]) -> None:
    rows = re.findall(r"^\| (forward|backward).*?\$k = (\d)\$(.*?) \|(.*)\|$", (DOCS / "maths.md").read_text(), re.M)
    assert len(rows) == 8
    for kernel, planes, skip, stated in rows:
        how = int(planes), int("is the input" in skip)
        sizes = [(4, 4), (2, 4), (8, 8)]
        expected = [maths["bytes_moved"](f"sru_{kernel}", *size, *how) for size in sizes]
        assert [int(number) for number in stated.split("|")] == expected, (kernel, planes, skip)


@pytest.mark.parametrize("v1", [True, False])
@pytest.mark.parametrize("options", [{}, {"highway_bias": -2.0, "dropout": 0.3, "rnn_dropout": 0.2}, {"layer_norm": 1}])
def test_layers_start_with_the_stated_variances(v1: bool, options: dict[str, Any], maths: dict[str, Any]) -> None:
    torch.manual_seed(0)
    n, width = 300, 400
    cell = SRUCell(n, width, v1=v1, **options)
    blocks = cell.weight.detach().view(4, -1)
    for block, expected in zip(blocks, maths["weight_variances"](n, v1, **options), strict=True):
        torch.testing.assert_close(block.var().item(), expected, rtol=0.02, atol=0.0)  # of 120,000 draws
        assert block.abs().max() <= math.sqrt(3 * expected) * (1 + 1e-6)
    if not v1:
        assert abs(cell.weight_c.var().item() - 0.5) < 0.1
    assert cell.bias[1].eq(options.get("highway_bias", 0.0)).all()
    rescaled = SRUCell(n, n, v1=v1, **options)
    stated = 1.0 if v1 else maths["skip_scale"](options.get("highway_bias", 0.0))
    assert math.isclose(rescaled.skip_scale, stated)


@pytest.mark.parametrize("highway_bias", [0.0, -2.0, 1.5])
@pytest.mark.parametrize("same", [True, False])
def test_the_second_moment_of_outputs_is_the_stated_one(highway_bias: float, same: bool, maths: dict[str, Any]) -> None:
    """With the gates at their biases; same: all steps have the same input."""
    torch.manual_seed(0)
    n = 512
    cell = SRUCell(n, n, use_tanh=0, v1=False, highway_bias=highway_bias)
    with torch.no_grad():
        cell.weight[n:].zero_()
        cell.weight_c.zero_()
    x = torch.randn(1 if same else 60, 64, n).expand(60, 64, n)
    with torch.no_grad():
        h, c = cell(x)
    state = 1.0 if same else 1 / 3
    stated = maths["output_moment"](highway_bias, state, maths["skip_scale"](highway_bias))
    assert math.isclose(c.square().mean().item(), state, rel_tol=0.05)
    assert math.isclose(h[-1].square().mean().item(), stated, rel_tol=0.05)
    assert not same or math.isclose(stated, 1.0)


# --- extending.md -----------------------------------------------------------------------------------------------------


@pytest.fixture
def extended() -> Iterator[None]:
    """What the page adds is there, for the length of a test."""
    from corpora.registry import CORPORA

    from fairseq_sru.models.units import UNITS

    places: tuple[dict[str, Any], ...] = (dispatch.BACKENDS, CORPORA, UNITS)
    before = [dict(place) for place in places]
    names: dict[str, Any] = {}
    for block in fenced((DOCS / "extending.md").read_text(), "python"):
        if "register_model" not in block:  # that has a process of its own
            exec(block, names)
    assert [list(place.keys() - old) for place, old in zip(places, before, strict=True)] == [
        ["recompute"],
        ["village-en-de"],
        ["ssru"],
    ]
    forget()
    yield
    for place, old in zip(places, before, strict=True):
        place.clear()
        place.update(old)
    forget()


def test_the_backend_of_the_page_is_right_in_every_variant(extended: None) -> None:
    for case in COVERING:
        arguments = make(case)
        recompute = functools.partial(sru_recurrence, backend="recompute")
        assert_defined(results(recompute, arguments), arguments, factor=2)
    layer, x = SRUCell(6, 6, backend="recompute"), torch.randn(5, 3, 6)
    grads = [
        torch.autograd.grad(run(x)[0].square().sum(), [*layer.parameters()])
        for run in (layer, torch.compile(layer, backend="aot_eager"))
    ]
    torch.testing.assert_close(grads[1], grads[0])


ALONE_AND_IN_A_BATCH = """
import sys
import mine, torch
from fairseq.checkpoint_utils import load_model_ensemble

(model,), _ = load_model_ensemble([sys.argv[1]], {"data": sys.argv[2]})
line = torch.tensor([[5, 6, 7, 2]])
padded = torch.nn.functional.pad(line, (5, 0), value=1)
alone, batch = model.eval().encoder(line, None), model.encoder(padded, None)
torch.testing.assert_close(batch["encoder_out"][0][5:], alone["encoder_out"][0])
assert not torch.allclose(model.encoder(line.flip(1), None)["encoder_out"][0].flip(0), alone["encoder_out"][0])
print("the same")
"""


def test_the_model_of_the_page_is_trained_and_translates(toy_data: Path, tmp_path: Path) -> None:
    [text] = [block for block in fenced((DOCS / "extending.md").read_text(), "python") if "register_model" in block]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(text)
    words = ["--user-dir", tmp_path / "mine", "--arch", "sru_positions", "--encoder-positions", 9, "--max-update", 2]
    words += ["--encoder-embed-dim", 16, "--decoder-embed-dim", 16, "--optimizer", "adam", "--max-tokens", 400, "--cpu"]
    run_cli("train", toy_data, *words, "--lr", 5e-3, "--save-dir", tmp_path / "save", "--num-workers", 0)
    checkpoint = tmp_path / "save" / "checkpoint_last.pt"
    assert torch.load(checkpoint, weights_only=False)["model"]["encoder.positions.weight"].shape == (9, 16)
    done = python("-c", ALONE_AND_IN_A_BATCH, checkpoint, toy_data, PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert done.stdout == "the same\n"
    words = ["--user-dir", tmp_path / "mine", "--path", checkpoint, "--cpu", "--gen-subset", "valid"]
    assert run_cli("generate", toy_data, *words).stdout.count("\nH-") == 50
    recipe = ["recipes/compare.py", "recipes/configs/lohelp.yaml", f"out={tmp_path / 'out'}", "--dry-run"]
    done = python(*recipe, f"user_dir={tmp_path / 'mine'}", "systems.mine={arch: sru_positions, encoder-positions: 9}")
    of_all = [line for line in done.stdout.splitlines() if line.startswith("fairseq-")]
    assert sum("--arch sru_positions --encoder-positions 9" in line for line in of_all) == 1 and len(of_all) == 7
    assert all(f"--user-dir {tmp_path / 'mine'} " in line for line in of_all)


def test_the_data_set_of_the_page_is_prepared(extended: None, tmp_path: Path) -> None:
    import prepare

    text = ROOT / "recipes" / "data" / "lohelp-en-de"
    (tmp_path / "archives").mkdir()
    with tarfile.open(tmp_path / "archives" / "village-1.0.tgz", "w:gz") as tar:
        for stem, split, count in (("train", "train", 300), ("dev", "valid", 50), ("test", "test", 60)):
            for language in ("en", "de"):
                lines = (text / f"{split}.{language}").read_bytes().splitlines(keepends=True)[:count]
                member = tarfile.TarInfo(f"village/{stem}.{language}")
                member.size = sum(map(len, lines))
                tar.addfile(member, io.BytesIO(b"".join(lines)))
    words = ["village-en-de", "--out", str(tmp_path / "out"), "--local-dir", str(tmp_path / "archives")]
    prepare.main([*words, "--vocab-size", "300"])
    for split, count in (("valid", 50), ("test", 60)):
        for language in ("en", "de"):
            lines = (text / f"{split}.{language}").read_bytes().splitlines(keepends=True)[:count]
            assert (tmp_path / "out" / f"{split}.{language}").read_bytes() == b"".join(lines)
    assert (tmp_path / "out" / "bin" / "train.en-de.en.bin").is_file()


def test_the_unit_of_the_page_decodes_as_it_trains(extended: None, build: Any, dictionary: Any) -> None:
    model = build(recurrent_unit="ssru").eval()
    assert model.decoder.layers[0].rnn.ssru.activation == "relu"
    source, target = sources(dictionary, [5, 3]), prefixes(dictionary, 2, 6)
    encoded = model.encoder(source)
    full, _ = model.decoder(target, encoded)
    state: dict[str, Any] = {}
    for t in range(6):
        step, _ = model.decoder(target[:, : t + 1], encoded, incremental_state=state)
        torch.testing.assert_close(step[:, 0], full[:, t])


# --- README.md and all pages ------------------------------------------------------------------------------------------


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block after the other, as a reader would."""
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in indented((ROOT / "README.md").read_text()) if is_python(block)]
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["outputs"].shape == (20, 32, 512) and names["state"].shape == (2, 32, 512)


def test_the_presets_have_the_sizes_of_the_readme() -> None:
    """Layers as `3 layers of 2 x 136` or `2 layers of 500`."""
    size = r"(\d+) layers of (?:(2) x )?(\d+)"
    found = re.findall(rf"^\| `(\w+)` \|.*\| {size} \| {size} \|$", (ROOT / "README.md").read_text(), re.M)
    assert {name for name, *_ in found} == {name for name in presets() if name.startswith("sru")} | {"sru"}
    for name, *rest in found:
        cfg = completed(Namespace(**presets().get(name, {})), SRUConfig)
        both = "2" if cfg.encoder_bidirectional else ""
        encoder = (str(cfg.encoder_layers), both, str(cfg.encoder_hidden_size))
        assert rest == [*encoder, str(cfg.decoder_layers), "", str(cfg.decoder_hidden_size)], name


def test_the_defaults_of_the_training_page_are_those_of_the_options() -> None:
    section = (DOCS / "training.md").read_text().partition("## Options of `--arch sru`")[2].partition("\n## ")[0]
    cfg = completed(Namespace(), SRUConfig)
    checked = 0
    for flags, default in re.findall(r"^\| (`--.*?) \| .* \| (.*?) \|$", section, re.M):
        given = default.partition(";")[0].strip("`")
        for flag in re.findall(r"`--([\w-]+)`", flags):
            value = getattr(cfg, flag.replace("-", "_"))
            if given == "off":
                assert value is False, flag
            elif given == "the embedding size":
                assert value == cfg.decoder_embed_dim, flag
            elif given:
                assert str(value) == given or value == float(given), flag
            checked += bool(given)
    assert checked > 15


def test_python_of_the_translators_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(tmp_path / "runs" / "mine" / "float32", "sru, defaults")
    monkeypatch.chdir(tmp_path)
    (block,) = fenced((DOCS / "translating.md").read_text(), "python")
    names: dict[str, Any] = {}
    exec(block, names)
    assert len(names["best"]) == 3 and all(h.text and h.score < 0 and h.tokens for h in names["best"])


def slugs(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_fenced(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^()\s]+)\)", without_fenced(page.read_text()))
    for link in links:
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in slugs(target), link


def test_the_changelog_has_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(.*?)\]", text, re.MULTILINE)[0] == __version__
    sections = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


class Parsed(Exception):
    pass


def parser_of(module: str) -> argparse.ArgumentParser:
    """What a script reads its command line with."""
    main = import_module(module).main
    found: list[argparse.ArgumentParser] = []

    def parse(self: argparse.ArgumentParser, *words: Any, **named: Any) -> None:
        found.append(self)
        raise Parsed

    with pytest.MonkeyPatch.context() as now, contextlib.suppress(Parsed):
        for name in ("parse_args", "parse_known_args", "parse_intermixed_args"):
            now.setattr(argparse.ArgumentParser, name, parse)
        main([]) if inspect.signature(main).parameters else main()
    return found[0]


def fairseq_parser(command: str) -> argparse.ArgumentParser:
    from fairseq import options

    made = {
        "train": options.get_training_parser,
        "generate": options.get_generation_parser,
        "interactive": options.get_interactive_generation_parser,
        "validate": options.get_validation_parser,
        "eval-lm": options.get_eval_lm_parser,
        "preprocess": options.get_preprocessing_parser,
    }
    return import_module("fairseq_cli.score").get_parser() if command == "score" else made[command]()


class Command(NamedTuple):
    words: list[str]
    whole: bool
    """Not a mention of it in a sentence, nor a synopsis."""


def commands(text: str) -> Iterator[Command]:
    """The commands in the blocks that aren't Python, and in the text."""
    blocks = [(block, True) for block in [*indented(text), *fenced(text, "bash")] if not is_python(block)]
    blocks += [(code, False) for code in re.findall(r"`([^`]+)`", INDENTED.sub("", without_fenced(text)))]
    for block, whole in blocks:
        for line in re.sub(r"\\\n", " ", block).splitlines():
            with contextlib.nullcontext() if whole else contextlib.suppress(ValueError):  # a text with a single quote
                words = shlex.split(line, comments=True)
                for piped, some in itertools.groupby(words, lambda word: word == "|"):
                    if not piped:
                        found = list(itertools.takewhile(lambda word: word not in ("<", ">"), some))
                        yield Command(found, whole and not any(w in {"NAME", "[options"} for w in found))


OTHERS = ("sru", "fixed", "hydra-train", "lstm", "0.12.2.patch")  # fairseq-... that is no command; lstm is a system
SCRIPT = re.compile(r"(?:recipes|tests)/(\w+)\.py")
FLAG = re.compile(r"(?<![\w{}-])--[a-z][\w-]*(?:\{[\w,]+\}[\w-]*)*|--\{[\w,]+\}[\w-]*(?:\{[\w,]+\})?")


def parse(words: list[str], whole: bool) -> argparse.ArgumentParser | None:
    """Read a command as its program would, with the parser that is returned; None where it is no program of ours.

    Raises:
        SystemExit: the program would refuse it.
    """
    words = list(itertools.dropwhile(re.compile(r"[A-Z_]+=").match, words))  # NAME=VALUE before a command
    if not words:
        return None
    program, *rest = words
    name = program.removeprefix("fairseq-")
    is_fairseq = program != name and name not in OTHERS
    if is_fairseq:
        parser = fairseq_parser(name)
    elif program == "python" and rest and (script := SCRIPT.fullmatch(rest[0])):
        parser, rest = parser_of(script[1]), rest[1:]
    elif program == "python" and rest[:1] == ["-m"] and rest[1].startswith("fairseq_sru."):
        parser, rest = parser_of(rest[1]), rest[2:]
    else:
        if whole and program == "bash" and rest:
            assert (ROOT / rest[0]).is_file(), words
        elif whole and program == "python" and rest[:1] == ["-m"]:
            file_of = rest[1].replace(".", "/") + ".py"
            assert any((ROOT / at / file_of).is_file() for at in ("recipes", "tests")) or find_spec(rest[1]), words
        return None
    if not whole:
        unknown = {word for word in rest if word.startswith("--")} - set(parser._option_string_actions)
        assert not unknown, words
    elif is_fairseq and name not in ("preprocess", "score"):
        from fairseq import options
        from fairseq.dataclass.utils import convert_namespace_to_omegaconf

        if "--user-dir" in rest:  # whose package has been imported
            at = rest.index("--user-dir")
            assert rest[at + 1].endswith("fairseq_sru"), words
            del rest[at : at + 2]
        args = options.parse_args_and_arch(parser, input_args=rest)
        if name in ("generate", "interactive"):
            options.check_search(parser, args)
        convert_namespace_to_omegaconf(args)
    else:
        for action in parser._actions:
            if action.type in (file, folder, new_file, output_file):
                action.type = None  # what a page names need not be there, and is not made
        args = parser.parse_intermixed_args(rest)
        if (recipe := ROOT / str(getattr(args, "recipe", "none"))).is_file():
            load(recipe, args.overrides)
    return parser


def expanded(flag: str) -> list[str]:
    """--{encoder,decoder}-x as the two that it stands for."""
    parts = [part.strip("{}").split(",") for part in re.split(r"(\{.*?\})", flag)]
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def test_the_options_of_translating_are_those_of_its_program() -> None:
    section = (ROOT / "docs" / "translating.md").read_text().partition("\n## Translate\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(--[\w-]+)[^`]*` \| (.*) \|$", section, re.MULTILINE))
    program = parser_of("fairseq_sru.translate")._option_string_actions
    assert rows.keys() == program.keys() - {"-h", "--help"}
    said = {flag: float(found[1]) for flag, text in rows.items() if (found := re.search(r"\(([\d.]+)\)", text))}
    assert said == {f: a.default for f, a in program.items() if a.default and type(a.default) in (int, float)}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_commands_and_flags_exist(
    toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command of the pages is read by its own program's parser, and each flag in the text by some of them."""
    from fairseq.models import MODEL_DATACLASS_REGISTRY
    from hydra._internal.utils import get_args_parser as hydra_parser
    from torch.distributed.run import get_args_parser as torchrun_parser

    from fairseq_sru.models import architectures  # and what the commands name is registered

    texts = {page.name: page.read_text() for page in PAGES}
    scripts = [(ROOT / name).read_text() for name in ("tests/run.sh", "recipes/gpu.sh")]
    known = {"--fix", "--no-index", "--find-links", "--upgrade"}  # of ruff and pip
    known |= set(re.findall(r"--[a-z]+", "".join(scripts)))
    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", lambda *_: None, raising=False)  # 3.14 refuses Hydra's
    known |= set(hydra_parser()._option_string_actions) | set(torchrun_parser()._option_string_actions)
    modules = [path.stem for path in (ROOT / "recipes").glob("*.py") if "\ndef main" in path.read_text()]
    for module in [
        *modules,
        *(f"fairseq_sru.{name}" for name in ("doctor", "install_fairseq", "export", "translate")),
        "corpora.lohelp",
    ]:
        known |= set(parser_of(module)._option_string_actions)
    for name in ("sru", "transformer_sru", "sru_lm", "sru_classifier", "cnn_classifier", "s2t_sru"):
        known |= {f"--{field.replace('_', '-')}" for field in MODEL_DATACLASS_REGISTRY[name].__dataclass_fields__}
    for name in ("preprocess", "score"):
        known |= set(fairseq_parser(name)._option_string_actions)

    monkeypatch.setattr(architectures, "check_data", lambda args: None)  # which isn't there
    torch.save({}, tmp_path / "checkpoint.pt")  # fairseq looks whether there is one
    folders = {name: str(tmp_path) for name in ("TEXT", "SENTENCES", "SPEECH")}
    prepared = ("DATA", "DIR/bin", *(f"runs/{name}/bin" for name in ("mine/data", "distilled", "lohelp/data")))
    folders |= dict.fromkeys(prepared, str(toy_data))
    checkpoint = re.compile(r"([\w/]+\.pt:?)+")

    read = set()
    for words, whole in itertools.chain.from_iterable(map(commands, texts.values())):
        try:
            parser = parse(
                [checkpoint.sub(str(tmp_path / "checkpoint.pt"), folders.get(word, word)) for word in words], whole
            )
        except SystemExit:
            pytest.fail(f"{shlex.join(words)}\n{capsys.readouterr().err}")
        if parser:
            read.add(words[0])
            known |= set(parser._option_string_actions)
    assert {"fairseq-train", "fairseq-generate", "python"} <= read
    for name, text in texts.items():
        for flag in FLAG.findall(text):
            assert known >= set(expanded(flag)), f"{name}: {flag}"
