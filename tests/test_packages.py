"""The rooms of the package, as the contracts of pyproject.toml have them."""

from __future__ import annotations

import pytest
from conftest import ROOT


def test_imports_keep_the_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No room imports from one above it, and there is no circle."""
    pytest.importorskip("importlinter")
    from importlinter.cli import lint_imports

    monkeypatch.syspath_prepend(str(ROOT))
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0
