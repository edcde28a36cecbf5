"""SRU in place of DrQA's StackedBRNN, by the code of docs/layers.md."""

from __future__ import annotations

import re
from typing import Any

import torch
from conftest import ROOT

PAGE = (ROOT / "docs" / "layers.md").read_text()
(BLOCK,) = re.findall(r"^```python\n(.*?)^```$", PAGE[PAGE.index("## DrQA") :], re.MULTILINE | re.DOTALL)


def stacked() -> Any:
    names: dict[str, Any] = {}
    exec(BLOCK, names)
    return names["StackedBRNN"]


def test_padding_changes_nothing_and_all_layers_are_concatenated() -> None:
    stack = stacked()(5, 4, 3, dropout_rate=0.3, concat_layers=True).double().eval()
    x, mask = torch.randn(2, 7, 5).double(), torch.zeros(2, 7).byte()
    mask[1, 4:] = 1
    x[1, 4:] = float("nan")
    out = stack(x, mask)
    assert out.shape == (2, 7, 3 * 2 * 4)
    torch.testing.assert_close(out[1:, :4], stack(x[1:, :4], mask[1:, :4]))
    assert stacked()(5, 4, 3).double()(x, mask).shape == (2, 7, 8)
