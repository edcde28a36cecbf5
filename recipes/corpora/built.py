"""A folder that a data set was built into: written aside, whole, and replaced only where it holds nothing else."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import RecipeError

from .archives import digest


def check_out(out: Path, made_by: str) -> None:
    """Only what the script that says ``made_by`` in its manifest wrote may be replaced, and only as it was written.

    Raises:
        RecipeError: ``out`` has something else; the message names a file.
    """
    held = {p.name for p in out.iterdir()} if out.is_dir() else {out.name} if out.exists() else set()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        if manifest["made_by"] == made_by:
            same = {name for name, made in manifest["files"].items() if name in held and digest(out / name) == made}
            held -= {"manifest.json", *same}
    if held:
        raise RecipeError(
            f"{out} has files that are not of this script, or were changed ({min(held)}): "
            "move them or name another --out"
        )


def replace(out: Path, texts: Mapping[str, Sequence[str]], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Put files, lines by name, into ``out``, all at once, in place of what an earlier build made.

    ``made_by`` in the manifest names the script. Returns the manifest with the checksums of the files.

    Raises:
        RecipeError: ``out`` has something else.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as aside:
        fresh = Path(aside, "new")
        fresh.mkdir()
        for name, lines in texts.items():
            (fresh / name).write_bytes("".join(f"{line}\n" for line in lines).encode())
        made = {**manifest, "files": {path.name: digest(path) for path in sorted(fresh.iterdir())}}
        (fresh / "manifest.json").write_bytes(f"{json.dumps(made, indent=2)}\n".encode())
        check_out(out, manifest["made_by"])
        old = Path(aside, "old")
        if out.exists():
            out.rename(old)
        try:
            fresh.rename(out)
        except BaseException:  # Ctrl-C, too: what is aside goes with it
            if old.exists():
                old.rename(out)
            raise
    return made
