"""Tests of the pages: their Python runs, formulas hold, links lead somewhere, commands and flags exist."""

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
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, run_cli
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import MODEL_DATACLASS_REGISTRY
from support.exported import exported
from support.processes import forget
from support.small_models import prefixes, sources
from support.variants import COVERING, TENSORS, Case, assert_defined, make, results
from torch import Tensor
from torch.distributed.run import get_args_parser as torchrun_parser

from fairseq_sru import SRUCell, sru_recurrence
from fairseq_sru.models import architectures
from fairseq_sru.models.attention import Coverage
from fairseq_sru.models.config import SRUConfig, presets
from fairseq_sru.models.options import completed
from fairseq_sru.recurrence import dispatch

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


# --- maths.md ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maths() -> dict[str, Any]:
    """Return the names that the page's Python defines."""
    names: dict[str, Any] = {}
    for block in fenced((DOCS / "maths.md").read_text(), "python"):
        exec(block, names)
    return names


# kind, activation, v (gates see the state), both directions; the rest are switches in the order of Case
CORNERS = [
    ("k2", "identity", 0, 0, ""),
    ("k2", "tanh", 1, 1, "dropout padding c0 bias"),
    ("k3-noskip", "relu", 0, 1, "padding c0"),
    ("k3-noskip", "tanh", 1, 0, "dropout bias"),
    ("k3-input", "identity", 1, 1, "dropout padding c0 bias scaled"),
    ("k3-input", "tanh", 0, 0, "scaled"),
    ("k3-input", "relu", 0, 1, "c0 bias"),
    ("k3-input", "tanh", 1, 0, "padding"),
    ("k4", "identity", 0, 1, "dropout padding"),
    ("k4", "tanh", 1, 1, "c0 bias"),
    ("k4", "relu", 1, 0, "dropout padding c0 bias"),
    ("k4", "tanh", 0, 0, ""),
]
SWITCHES = ("dropout", "padding", "c0", "bias", "scaled")
CASES = [
    Case(kind, torch.float64, activation, bool(v), bool(both), **{name: name in on.split() for name in SWITCHES})
    for kind, activation, v, both, on in CORNERS
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_gradients_of_the_page_equal_the_definition(case: Case, maths: dict[str, Any]) -> None:
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


@pytest.mark.parametrize("chunk", [1, 3, 7])
@pytest.mark.parametrize("case", [case for case in CASES if not case.v], ids=str)
def test_chunks_give_what_one_pass_gives(case: Case, chunk: int, maths: dict[str, Any]) -> None:
    cell = maths["Cell"](**make(case, requires_grad=False))
    h, c_n = cell.forward()
    torch.testing.assert_close(maths["states_by_chunks"](cell, chunk), cell.c, rtol=1e-12, atol=1e-13)
    grad_h, grad_c_n = torch.randn_like(h), torch.randn_like(c_n)
    q = maths["q_by_chunks"](cell, grad_h, grad_c_n, chunk)
    assert len(q) == math.ceil(7 / chunk)
    torch.testing.assert_close(q[0], maths["backward"](cell, grad_h, grad_c_n)["c0"], rtol=1e-12, atol=1e-13)


def test_coverage_of_the_page(maths: dict[str, Any]) -> None:
    module, weights = Coverage(3).double(), torch.rand(1, 6, 4).double()
    torch.nn.init.normal_(module.weight)
    bias, _ = module(weights, None, torch.zeros(1, 6).bool())
    torch.testing.assert_close(bias[0], maths["coverage"](weights[0], *module.weight.detach()))


def test_the_bytes_of_the_page_follow(maths: dict[str, Any]) -> None:
    stated = re.search(r"in training moves (\d+) bytes an element, backward (\d+)", (DOCS / "maths.md").read_text())
    expected = [maths["bytes_moved"](f"sru_{kernel}", 4, 4, 3, 1) for kernel in ("forward", "backward")]
    assert stated is not None and [int(number) for number in stated.groups()] == expected


@pytest.mark.parametrize("v1", [True, False])
@pytest.mark.parametrize("options", [{}, {"highway_bias": -2.0, "dropout": 0.3, "rnn_dropout": 0.2}, {"layer_norm": 1}])
def test_layers_start_with_the_stated_variances(v1: bool, options: dict[str, Any], maths: dict[str, Any]) -> None:
    torch.manual_seed(0)
    blocks = SRUCell(300, 400, v1=v1, **options).weight.detach().view(4, -1)
    for block, expected in zip(blocks, maths["weight_variances"](300, v1, **options), strict=True):
        torch.testing.assert_close(block.var().item(), expected, rtol=0.02, atol=0.0)  # of 120,000 draws
    stated = 1.0 if v1 else maths["skip_scale"](options.get("highway_bias", 0.0))
    assert math.isclose(SRUCell(300, 300, v1=v1, **options).skip_scale, stated)


@pytest.mark.parametrize("highway_bias", [0.0, -2.0, 1.5])
def test_outputs_have_the_stated_second_moment(highway_bias: float, maths: dict[str, Any]) -> None:
    """With the gates at their biases and another input at each step."""
    torch.manual_seed(0)
    cell = SRUCell(512, 512, use_tanh=0, v1=False, highway_bias=highway_bias)
    with torch.no_grad():
        cell.weight[512:].zero_()
        cell.weight_c.zero_()
        h, c = cell(torch.randn(60, 64, 512))
    stated = maths["output_moment"](highway_bias, 1 / 3, maths["skip_scale"](highway_bias))
    assert math.isclose(c.square().mean().item(), 1 / 3, rel_tol=0.05)
    assert math.isclose(h[-1].square().mean().item(), stated, rel_tol=0.05)


# --- extending.md -----------------------------------------------------------------------------------------------------


@pytest.fixture
def extended() -> Iterator[None]:
    """Run the page's Python, and remove what it adds after the test."""
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


def test_the_model_of_the_page_is_trained_and_translates(toy_data: Path, tmp_path: Path) -> None:
    [text] = [block for block in fenced((DOCS / "extending.md").read_text(), "python") if "register_model" in block]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(text)
    words = ["--user-dir", tmp_path / "mine", "--arch", "sru_positions", "--encoder-positions", 9, "--max-update", 2]
    words += ["--encoder-embed-dim", 16, "--decoder-embed-dim", 16, "--optimizer", "adam", "--max-tokens", 400, "--cpu"]
    run_cli("train", toy_data, *words, "--lr", 5e-3, "--save-dir", tmp_path / "save", "--num-workers", 0)
    checkpoint = tmp_path / "save" / "checkpoint_last.pt"
    assert torch.load(checkpoint, weights_only=False)["model"]["encoder.positions.weight"].shape == (9, 16)
    words = ["--user-dir", tmp_path / "mine", "--path", checkpoint, "--cpu", "--gen-subset", "valid"]
    assert run_cli("generate", toy_data, *words).stdout.count("\nH-") == 50


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
    lines = (text / "test.de").read_bytes().splitlines(keepends=True)[:60]
    assert (tmp_path / "out" / "test.de").read_bytes() == b"".join(lines)
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


def test_the_presets_have_the_sizes_of_the_table() -> None:
    """Layers as `3 layers of 2 x 136` or `2 layers of 500`."""
    size = r"(\d+) layers of (?:(2) x )?(\d+)"
    found = re.findall(rf"^\| `(\w+)` \|.*\| {size} \| {size} \|$", (DOCS / "training.md").read_text(), re.M)
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


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that a script makes of its command line."""
    main = import_module(module).main
    parsers: list[argparse.ArgumentParser] = []

    def parse(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        parsers.append(self)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as now, contextlib.suppress(InterruptedError):
        for name in ("parse_args", "parse_known_args", "parse_intermixed_args"):
            now.setattr(argparse.ArgumentParser, name, parse)
        main([]) if inspect.signature(main).parameters else main()
    return parsers[0]


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """Flags of a parser and of its subcommands."""
    flags = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            flags |= set().union(*map(flags_of, action.choices.values()))
    return flags


def fairseq_parser(command: str) -> argparse.ArgumentParser:
    makers = {
        "train": options.get_training_parser,
        "generate": options.get_generation_parser,
        "interactive": options.get_interactive_generation_parser,
        "validate": options.get_validation_parser,
        "eval-lm": options.get_eval_lm_parser,
        "preprocess": options.get_preprocessing_parser,
    }
    return makers[command]()


def commands(text: str) -> Iterator[list[str]]:
    """The commands in the blocks that aren't Python, as words; pipes are split, and NAME=VALUE before one dropped."""
    for block in [*indented(text), *fenced(text, "bash")]:
        if not is_python(block):
            for line in re.sub(r"\\\n", " ", block).splitlines():
                for command in line.split(" | "):
                    words = itertools.takewhile(lambda word: word not in "<>", shlex.split(command, comments=True))
                    yield list(itertools.dropwhile(re.compile(r"[A-Z_]+=").match, words))


def read_by_fairseq(parser: argparse.ArgumentParser, words: list[str]) -> None:
    if "--user-dir" in words:  # whose package has been imported
        at = words.index("--user-dir")
        words = words[:at] + words[at + 2 :]
    convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=words))


SCRIPT = re.compile(r"recipes/(\w+)\.py")
OTHERS = {"--fix", "--no-index", "--find-links", "--upgrade"}  # of ruff and pip
OTHERS |= {"--no-deps", "--no-binary", "--strip-components", "--no-prefix", "--multirun"}  # of pip, tar, git and Hydra
OF_TASKS = {"--sample-break-mode"}  # which fairseq adds where the task is named
PREPARED = {"DATA", "TEXT", "SENTENCES", "SPEECH"}  # folders of the reader


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Flags of all programs that the pages name."""
    flags = OTHERS | OF_TASKS
    for path in [*(ROOT / "recipes").glob("*.sh"), ROOT / "tests" / "run.sh", ROOT / "tests" / "wheels.py"]:
        flags |= set(re.findall(r"--[a-z][\w-]*", path.read_text()))
    modules = [path.stem for path in (ROOT / "recipes").glob("*.py") if "\ndef main" in path.read_text()]
    ours = ("doctor", "install_fairseq", "export", "translate")
    for module in [*modules, *(f"fairseq_sru.{name}" for name in ours), "corpora.lohelp"]:
        flags |= flags_of(parser_of(module))
    for config in MODEL_DATACLASS_REGISTRY.values():
        flags |= {f"--{field.replace('_', '-')}" for field in config.__dataclass_fields__}
    for name in ("train", "generate", "interactive", "validate", "eval-lm", "preprocess"):
        flags |= flags_of(fairseq_parser(name))
    return flags | flags_of(torchrun_parser())


@pytest.mark.filterwarnings("ignore::UserWarning")
@each_page
def test_commands_and_flags_exist(
    page: Path, known: set[str], toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command of a block is read by its own program's parser, and each flag in the text is one of some program."""
    text = page.read_text()
    monkeypatch.setattr(architectures, "check_data", lambda args: None)  # which isn't there
    torch.save({}, tmp_path / "checkpoint.pt")  # fairseq looks whether there is one
    flags = set(known)

    def there(word: str) -> str:
        return str(toy_data) if word in PREPARED or word.endswith("/bin") else word

    for program, *rest in filter(None, commands(text)):
        words = [re.sub(r"^([\w/]+\.pt:?)+$", str(tmp_path / "checkpoint.pt"), word) for word in rest]
        if program.startswith("fairseq-") and program not in ("fairseq-hydra-train", "fairseq-preprocess"):
            parser = fairseq_parser(program.removeprefix("fairseq-"))
            read_by_fairseq(parser, [there(word) for word in words])
        elif program == "python" and (script := SCRIPT.fullmatch(rest[0])):
            parser = parser_of(script[1])
        elif program == "python" and rest[0] == "-m" and rest[1].startswith("fairseq_sru."):
            parser = parser_of(rest[1])
        else:
            assert program != "bash" or (ROOT / rest[0]).is_file(), rest
            continue
        flags |= flags_of(parser)
        unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - flags_of(parser)
        assert program.startswith("fairseq-") or not unknown, (program, *words)
    mentioned = re.findall(r"(?<![\w{}/-])--[a-z][\w-]*(?![\w{-])", text)
    assert set(mentioned) <= flags
