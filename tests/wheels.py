"""Build the sdist and the wheel, install them into fresh environments, and use what was installed from another folder.

    python tests/wheels.py [--python PYTHON ...] [--append docs/platforms.md]

Each PYTHON (by default the one that runs this) gets an environment of its own. The packages next to PYTHON's own torch
or fairseq are lent to it; what is lacking is downloaded and built there, which takes some GB and minutes. Prints a row
of a table for each, and ends with status 1 where something failed.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import random
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = runpy.run_path(str(ROOT / "fairseq_sru" / "versions.py"))
HEAD = "| date | system | Python | torch | fairseq | result |\n|---|---|---|---|---|---|"
SHIPPED = ("fairseq_sru", "kernels", "recipes", "tests", "docs")
LEFT_OUT = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__")

LEND = """
import importlib.metadata
for name in ("torch", "fairseq"):
    try:
        print(importlib.metadata.distribution(name).locate_file(""))
    except importlib.metadata.PackageNotFoundError:
        pass
"""

LAYERS = """
import torch
import fairseq_sru
assert fairseq_sru.backends()["native"] == "ready", fairseq_sru.backends()
results = []
for backend in ("native", "reference"):
    torch.manual_seed(1)
    rnn = fairseq_sru.SRU(6, 8, bidirectional=True, backend=backend).double()
    h, c = rnn(torch.randn(9, 3, 6, dtype=torch.float64), lengths=[9, 4, 1])
    (h.square().sum() + c.sum()).backward()
    results.append([h, c, *(p.grad for p in rnn.parameters())])
for one, other in zip(*results, strict=True):
    torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
"""


class Failure(Exception):
    """A check failed; the message has the end of what was said."""


def run(*words: str | Path, cwd: Path, **env: str) -> str:
    """Run a command and return what it printed.

    Raises:
        Failure: it ended with another status than 0.
    """
    ours = ("PYTHONPATH", "VIRTUAL_ENV", "PIP_CONSTRAINT", "PIP_USER")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(words, cwd=cwd, env={**kept, **env}, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise Failure(f"{' '.join(map(str, words))[:300]}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def copy_tree(to: Path) -> None:
    """Copy the project, but nothing that is next to it in the same folder, as environments and data."""
    for name in SHIPPED:
        shutil.copytree(ROOT / name, to / name, ignore=LEFT_OUT)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, to)


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist of this tree, and the wheel that pip builds of it.

    Raises:
        Failure: it can't be built.
    """
    tree, tools = folder / "tree", folder / "tools"
    copy_tree(tree)
    run(sys.executable, "-m", "pip", "install", "--target", tools, VERSIONS["FAIRSEQ_BUILD"][0], cwd=folder)
    run(sys.executable, "setup.py", "sdist", "--dist-dir", folder, cwd=tree, PYTHONPATH=str(tools))
    (sdist,) = folder.glob("*.tar.gz")
    return sdist, wheel_of(sdist, Path(sys.executable), folder)


def wheel_of(sdist: Path, python: Path, folder: Path) -> Path:
    run(python, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, sdist, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def lacking(sdist: Path, wheel: Path) -> Iterator[str]:
    """The files of this tree that ought to be in the sdist and the wheel, and aren't."""
    with tarfile.open(sdist) as tar:
        unpacked = {name.partition("/")[2] for name in tar.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        installed = set(archive.namelist())
    information = next(name.partition("/")[0] for name in installed if name.endswith(".dist-info/METADATA"))
    if f"{information}/licenses/LICENSE" not in installed:
        yield f"{information}/licenses/LICENSE of the wheel"
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "requirements.txt", "pyproject.toml", "setup.py"):
        if name not in unpacked:
            yield f"{name} of the sdist"
    for top in SHIPPED:
        for path in sorted((ROOT / top).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.is_dir() or "__pycache__" in path.parts or "/." in f"/{name}":
                continue
            if name not in unpacked:
                yield f"{name} of the sdist"
            packed = {"fairseq_sru": name, "kernels": f"fairseq_sru/{name}"}.get(top)
            if packed and packed not in installed:
                yield f"{packed} of the wheel"


def contents(wheel: Path) -> dict[str, int]:
    """Checksums of what a wheel installs."""
    with zipfile.ZipFile(wheel) as archive:
        return {item.filename: item.CRC for item in archive.infolist() if ".dist-info/" not in item.filename}


class Environment:
    """A fresh environment of a Python, with the wheel in it; work is done in another folder."""

    def __init__(self, python: Path, sdist: Path, wheel: Path, folder: Path) -> None:
        self.sdist, self.wheel = sdist, wheel
        self.home, self.work = folder / "environment", folder / "work"
        self.python = self.home / "bin" / "python"
        self.work.mkdir(parents=True)
        run(python, "-m", "venv", self.home, cwd=self.work)
        (site,) = self.home.glob("lib/python*/site-packages")
        lent = dict.fromkeys(run(python, "-c", LEND, cwd=self.work).splitlines())
        (site / "lent.pth").write_text("".join(f"{place}\n" for place in lent))
        self.cache = folder / "cache"

    def run(self, *words: str | Path) -> str:
        env = {"FAIRSEQ_SRU_CACHE": str(self.cache), "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1"}
        return run(self.python, *words, cwd=self.work, **env)

    def say(self, program: str) -> str:
        """Return the last line of a program's output."""
        return self.run("-c", program).splitlines()[-1]

    @property
    def user_dir(self) -> str:
        return self.say("import fairseq_sru; print(fairseq_sru.__path__[0])")

    def installs(self) -> None:
        self.run("-m", "pip", "install", self.wheel)
        if not Path(self.user_dir).is_relative_to(self.home):
            raise Failure(f"{self.user_dir} is imported")

    def builds(self) -> None:
        folder = self.work / "wheel"
        folder.mkdir()
        if contents(wheel_of(self.sdist, self.python, folder)) != contents(self.wheel):
            raise Failure("the wheel that this Python makes of the sdist has other files")

    def runs_layers(self) -> None:
        self.run("-c", LAYERS)
        if not any(path.suffix == ".so" for path in self.cache.iterdir()):
            raise Failure(f"nothing was compiled into {self.cache}")

    def has_fairseq(self) -> None:
        self.run("-m", "fairseq_sru.install_fairseq")

    def passes_doctor(self) -> None:
        self.run("-m", "fairseq_sru.doctor")

    def trains(self) -> None:
        """Train and translate with the user dir that is printed; a Hydra preset is found next to it."""
        rng = random.Random(0)
        for split, count in (("train", 200), ("valid", 20), ("test", 20)):
            lines = [" ".join(rng.choices("abcdefgh", k=5)) for _ in range(count)]
            for language in ("en", "de"):
                (self.work / f"{split}.{language}").write_text("\n".join(lines) + "\n")
        prefixes = [word for split in ("train", "valid", "test") for word in (f"--{split}pref", split)]
        self.run(
            "-m", "fairseq_cli.preprocess", "-s", "en", "-t", "de", *prefixes, "--joined-dictionary", "--destdir", "bin"
        )
        plugin = ("--user-dir", self.user_dir, "--cpu")
        size = ("--encoder-embed-dim", "32", "--decoder-embed-dim", "32", "--encoder-hidden-size", "16")
        how = ("--optimizer", "adam", "--max-tokens", "400", "--max-epoch", "1", "--save-dir", "saved")
        self.run("-m", "fairseq_cli.train", "bin", *plugin, "--arch", "sru_tiny", *size, *how)
        said = self.run("-m", "fairseq_cli.generate", "bin", *plugin, "--path", "saved/checkpoint_last.pt")
        if sum(line.startswith("H-") for line in said.splitlines()) != 20:
            raise Failure("fairseq-generate did not translate 20 sentences")
        config = ("--config-dir", f"{self.user_dir}/config", "model=sru/sru_tiny", "task=translation")
        if "_name: sru" not in self.run("-m", "fairseq_cli.hydra_train", *config, "--cfg", "job"):
            raise Failure("Hydra does not find the preset sru_tiny")


CHECKS: tuple[Callable[[Environment], None], ...] = (
    Environment.installs,
    Environment.builds,
    Environment.runs_layers,
    Environment.has_fairseq,
    Environment.passes_doctor,
    Environment.trains,
)


def row(python: Path, sdist: Path, wheel: Path, folder: Path) -> tuple[str, bool]:
    """Try the wheel with a Python: a row of the table, and whether all went well."""
    failed: list[str] = []
    said = {"torch": "", "fairseq": ""}
    version = run(python, "-c", "import platform; print(platform.python_version())", cwd=folder).strip()
    try:
        environment = Environment(python, sdist, wheel, folder / f"python-{version}")
        for check in CHECKS:
            name = check.__name__.replace("_", " ")
            try:
                check(environment)
            except Failure as error:
                failed.append(name)
                print(f"{version}: {name}: {error}", file=sys.stderr)
        for package in said:
            try:
                said[package] = environment.say(f"import importlib.metadata as m; print(m.version({package!r}))")
            except Failure:
                said[package] = "none"
    except Failure as error:
        failed.append("environment")
        print(f"{version}: {error}", file=sys.stderr)
    result = f"failed: {', '.join(failed)}" if failed else f"all {len(CHECKS)} checks passed"
    system = f"{platform.system()} {platform.machine()}"
    date = datetime.date.today().isoformat()
    return f"| {date} | {system} | {version} | {said['torch']} | {said['fairseq']} | {result} |", not failed


def append(path: Path, rows: list[str]) -> None:
    """Add rows to the table at the end of a file."""
    text = path.read_text().rstrip("\n")
    aside = path.with_name(f".{path.name}.new")
    aside.write_text("\n".join([text, *rows]) + "\n")
    aside.replace(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, nargs="+", default=[Path(sys.executable)], metavar="PYTHON")
    parser.add_argument(
        "--append", type=Path, metavar="FILE", help="a page that ends with the table: add the rows to it"
    )
    args = parser.parse_args(argv)
    for python in args.python:
        if not python.is_file():
            parser.error(f"argument --python: there is no file {python}")
    if args.append and HEAD not in args.append.read_text():
        parser.error(f"argument --append: {args.append} has no such table:\n{HEAD}")
    with tempfile.TemporaryDirectory(prefix="wheels-") as temporary:
        folder = Path(temporary)
        try:
            sdist, wheel = build(folder)
            if missing := list(lacking(sdist, wheel)):
                raise Failure(f"there is no {', no '.join(missing)}")
        except Failure as error:
            print(error, file=sys.stderr)
            return 1
        done = [row(python.absolute(), sdist, wheel, folder) for python in args.python]
    rows = [line for line, _ in done]
    print(HEAD, *rows, sep="\n")
    if args.append:
        append(args.append, rows)
    return int(not all(good for _, good in done))


if __name__ == "__main__":
    sys.exit(main())
