"""Recipes as users run them: by the command of their first line, in a copy of the checkout, with the paths they have.

The archives have the real layout and little text; stand_in/sitecustomize.py leads their addresses to a server on this
machine, and nothing beyond it can be reached. What a walk overrides is the size of the budget.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from comparison import commands, report, settings
from conftest import ROOT
from corpora import registry
from support.archives import iwslt_archive, lohelp, multi30k_archives, text_of, tgz, wmt14_archives
from wheels import copy_tree

RECIPES = [
    path for path in sorted((ROOT / "recipes" / "configs").glob("*.yaml")) if settings.load(path).kind == "translation"
]

TESTED = 10  # sentences


def wmt14(folder: Path) -> None:
    wmt14_archives(folder, tested=TESTED)
    dev = {f"dev/newstest2013.{language}": text_of(lohelp("valid", language, count=30)) for language in ("en", "de")}
    tgz(folder / "dev.tgz", dev)  # without sentences that are longer than a walk's batches


MAKERS: dict[str, Callable[[Path], Any]] = {
    "multi30k-en-de": partial(multi30k_archives, tested=TESTED),
    "iwslt14-de-en": partial(iwslt_archive, tested=TESTED // 5),
    "wmt14-en-de": wmt14,
}
OF_SACREBLEU = [name for name, corpus in registry.CORPORA.items() if corpus.sacrebleu]
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)


class Internet(NamedTuple):
    """The archives of each data set in a folder of its own, and the requests that the server had."""

    archives: Path
    asked: list[str]
    env: dict[str, str]


@pytest.fixture(scope="module")
def internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    folder = tmp_path_factory.mktemp("internet")
    facts: dict[str, dict[str, Any]] = {}
    for name, make in MAKERS.items():
        make(folder / name)
        corpus = registry.CORPORA[name]
        for archive in [
            *corpus.archives,
            *([registry.sacrebleu_archive(corpus.sacrebleu)] if corpus.sacrebleu else []),
        ]:
            content = (folder / name / archive.name).read_bytes()
            sums = {kind: hashlib.new(kind, content).hexdigest() for kind in ("sha256", "md5")}
            facts[archive.url] = {"bytes": len(content), **sums}
            place = folder / "site" / archive.url.partition("://")[2]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder / "site"))) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        known = {"server": f"http://127.0.0.1:{server.server_port}/", "archives": facts}
        (folder / "known.json").write_text(json.dumps(known))
        nobody = "http://127.0.0.1:9"
        env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "tests" / "support" / "stand_in"),
            "STAND_IN": str(folder / "known.json"),
            "SACREBLEU": str(folder / "sacrebleu"),
            **{f"{kind}_proxy": nobody for kind in ("http", "https", "ftp")},
            "no_proxy": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        yield Internet(folder, asked, env)
        server.shutdown()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy; the text that ships with the project is as small as the archives."""
    copy_tree(tmp_path / "checkout")
    for path in (tmp_path / "checkout" / "recipes" / "data").glob("*/*.??"):
        path.write_bytes(
            b"".join(path.read_bytes().splitlines(keepends=True)[: 400 if "train" in path.name else TESTED])
        )
    return tmp_path / "checkout"


def typed(command: str, checkout: Path, internet: Internet) -> str:
    """Return the output of a command that is typed in the folder of the installed checkout."""
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    env = {**os.environ, **internet.env, "PYTHONPATH": f"{internet.env['PYTHONPATH']}:{checkout}"}
    done = subprocess.run(["bash", "-c", command], cwd=checkout, env=env, **how)
    assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}"
    return done.stdout


def contents(folder: Path) -> dict[str, str]:
    """Checksums by path, but of what Python caches, and of locks."""
    paths = (
        p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts and not p.name.endswith(".lock")
    )
    found = {}
    for path in paths:
        with path.open("rb") as file:
            found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


# --- data sets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OF_SACREBLEU)
def test_a_test_set_of_sacrebleu_is_prepared_in_a_relative_folder(
    name: str, checkout: Path, internet: Internet
) -> None:
    del internet.asked[:]
    out = checkout / "runs" / "deep" / name
    typed(f"python recipes/prepare.py {name} --out runs/deep/{name} --vocab-size 250", checkout, internet)
    assert manifest(out)["counts"]["test"]["binarised"] == len((out / "test.de").read_text().splitlines()) == TESTED
    assert len(internet.asked) == len(set(internet.asked)) == len(manifest(out)["sources"])


# --- whole recipes ----------------------------------------------------------------------------------------------------


FEWER = {  # of these recipes other systems have a walk as part of another, or differ in depth alone
    "debian": ["sru", "lstm"],
    "multi30k": ["sru", "lstm"],
    "wmt14": ["sru", "lstm", "lstm-luong"],
    "wmt14-paper": ["lstm-2", "sru-2"],
}


SHALLOW = ("wmt14", "iwslt14")  # test_wmt_models.py has such models as deep as they are
PREPARED_BEFORE = "multi30k"  # of this recipe the data are prepared by the command that --dry-run prints


def name_of(given: settings.Settings) -> str:
    return Path(given.out).name


def walked(given: settings.Settings) -> list[str]:
    """The systems of a walk."""
    return FEWER.get(name_of(given), list(given.systems))


def small(given: settings.Settings) -> list[str]:
    """Overrides that leave a recipe two updates of two batches, and this machine's processors."""
    import torch

    words = ["budget.minutes=0.0001" if given.budget.minutes else "budget.updates=2", "checkpoints=2", "seeds=[1]"]
    words += [f"systems.{name}=null" for name in given.systems if name not in walked(given)]
    if name_of(given) in SHALLOW:
        layers = ("encoder-layers", "decoder-layers")
        words += [f"systems.{name}.{flag}=2" for name in walked(given) for flag in layers]
    words += ["slices={updates: 2, rounds: 1}", "curve.sentences=2", "speed={sentences: 2, rounds: 1}"]
    if name_of(given) != "lohelp":
        words += ["speed.beams=[5]", "speed.batches=[64]"]
    words += ["train.max-tokens=200", "generate.max-len-b=20"]  # after two updates outputs are as long as allowed
    words += ["average=2"] if given.average > 1 else []
    words += ["prepare.vocab-size=250"] if "vocab-size" in given.prepare else []
    gpus = torch.cuda.device_count()
    words += [f"processes={min(given.processes, gpus or 2)}"] if given.processes > 1 else []
    words += ["train.fp16=false"] if given.train.get("fp16") and not gpus else []  # it takes long on a CPU
    return words


@pytest.mark.slow
@each_recipe
def test_a_recipe_runs_as_its_first_line_says(
    recipe: Path, checkout: Path, internet: Internet, request: pytest.FixtureRequest
) -> None:
    given = settings.load(recipe)
    overrides = small(given)
    if given.data == "debian-en-de":  # its packages are apt's
        overrides += [f"prepare.local-dir={request.getfixturevalue('repository')}"]
    first = recipe.read_text().splitlines()[0].removeprefix("# ")
    command = f"{first} {shlex.join(overrides)}"
    if walked(given) != list(given.systems):
        typed(f"{first} --dry-run", checkout, internet)  # which has fairseq read the flags of all
    before = contents(checkout)
    del internet.asked[:]
    if name_of(given) == PREPARED_BEFORE:
        typed(typed(f"{command} --dry-run 2>/dev/null", checkout, internet).splitlines()[0], checkout, internet)
        before |= contents(checkout)
    printed = typed(command, checkout, internet)

    out = checkout / given.out
    done = contents(checkout)
    assert before.items() <= done.items()
    assert all(name in before or name.startswith("runs/") for name in done)
    found = json.loads((out / "report.json").read_text())
    assert list(found["systems"]) == walked(given)
    text = (out / "report.md").read_text()
    folder = checkout / commands.Commands(given).data
    target, count = manifest(folder)["target"], manifest(folder)["counts"]["test"]["binarised"]
    for name, system in found["systems"].items():
        assert system["failures"] == []
        assert [(run["seed"], run["updates"]) for run in system["runs"]] == [(1, 2)], name
        assert {"BLEU", "chrF2", "TER"} <= system["scores"].keys()
        assert system["training_tokens_per_second"] > 0
        assert all(cell["sentences_per_second"] > 0 for cell in system["decoding"])
        assert [point["updates"] for point in system["runs"][0]["curve"]] == [1, 2]
        assert len((out / "translations" / f"{name}-1.{target}").read_text().splitlines()) == count
        assert re.search(rf"^\| {re.escape(name)}\b", text, re.MULTILINE)
    assert all((out / name).stat().st_size for name in report.FILES)
    assert len(internet.asked) == len(set(internet.asked))
    sources = {source["url"].partition("://")[2] for source in manifest(folder)["sources"] if "url" in source}
    assert {path.lstrip("/") for path in internet.asked} == sources

    again = typed(command, checkout, internet)
    first_time, second_time = (re.findall(r"^\+ (.*)", text, re.MULTILINE) for text in (printed, again))
    left_out = [name for name, system in found["systems"].items() if "missing" in system.get("translator", {})]
    assert not left_out or recipe.stem == "wmt14-paper"  # whose layers are plain: no translator is for them
    folders = tuple(f"/{name}-1-float32" for name in left_out)
    assert second_time == [first_time[0], *(command for command in first_time if command.endswith(folders))]
    changed = {name for name, text in contents(checkout).items() if done.get(name) != text}
    assert changed <= {f"{given.out}/logs/prepare.log"}
    assert len(internet.asked) == len(sources)

    if given.data in MAKERS:  # once more, with the archives fetched by hand
        prepared = re.search(r"^\+ (python recipes/prepare\.py .*)", printed, re.MULTILINE)
        assert prepared
        shutil.copytree(internet.archives / given.data, checkout / "runs" / "by hand")
        typed(f"{prepared[1]} --local-dir 'runs/by hand' --out runs/local", checkout, internet)
        assert manifest(checkout / "runs" / "local") == manifest(folder)
        assert len(internet.asked) == len(sources)
        assert not (checkout / "runs" / "local" / "archives").exists()
    shutil.rmtree(checkout)  # some have gigabytes of checkpoints
