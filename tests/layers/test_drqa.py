"""SRU in DrQA's reader, as docs/layers.md has it: a miniature of the reader, which learns to find answers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn
from torch.nn import functional as F

PAGE = (ROOT / "docs" / "layers.md").read_text()
(BLOCK,) = re.findall(r"^```python\n(.*?)^```$", PAGE[PAGE.index("## DrQA") :], re.MULTILINE | re.DOTALL)


def stacked() -> Any:
    names: dict[str, Any] = {}
    exec(BLOCK, names)
    return names["StackedBRNN"]


class Reader(nn.Module):
    """DrQA's document reader: two stacks, a weighted sum of the question's words, bilinear scores of start and end."""

    def __init__(self, words: int, size: int) -> None:
        super().__init__()
        make = stacked()
        self.embedding = nn.Embedding(words, size)
        self.document = make(input_size=size, hidden_size=size, num_layers=2, concat_layers=True, rnn_type=nn.LSTM)
        self.question = make(input_size=size, hidden_size=size, num_layers=2, concat_layers=True, padding=False)
        self.weight = nn.Linear(4 * size, 1)
        self.start, self.end = nn.Linear(4 * size, 4 * size), nn.Linear(4 * size, 4 * size)

    def forward(self, document: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
        masks = document.eq(0), question.eq(0)
        read = self.document(self.embedding(document), masks[0])
        asked = self.question(self.embedding(question), masks[1].byte())
        weights = self.weight(asked).squeeze(2).masked_fill(masks[1], -torch.inf).softmax(1)
        asked = (weights.unsqueeze(2) * asked).sum(1)
        scores = [(read @ layer(asked).unsqueeze(2)).squeeze(2) for layer in (self.start, self.end)]
        return scores[0].masked_fill(masks[0], -torch.inf), scores[1].masked_fill(masks[0], -torch.inf)


def asked(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Documents of words of which each stands once; the answer is what follows the question's word."""
    documents = torch.zeros(count, 12, dtype=torch.long)
    questions, places = torch.zeros(count, 3, dtype=torch.long), torch.zeros(count, dtype=torch.long)
    for row in range(count):
        n = int(torch.randint(6, 13, (1,), generator=rng))
        documents[row, :n] = 2 + torch.randperm(18, generator=rng)[:n]
        places[row] = torch.randint(1, n, (1,), generator=rng)
        questions[row, : 1 + row % 2] = 1
        questions[row, 1 + row % 2] = documents[row, places[row] - 1]
    return documents, questions, places


def test_padding_changes_nothing_and_all_layers_are_concatenated() -> None:
    stack = stacked()(5, 4, 3, dropout_rate=0.3, concat_layers=True).double().eval()
    x, mask = torch.randn(2, 7, 5).double(), torch.zeros(2, 7).byte()
    mask[1, 4:] = 1
    x[1, 4:] = float("nan")
    out = stack(x, mask)
    assert out.shape == (2, 7, 3 * 2 * 4)
    torch.testing.assert_close(out[1:, :4], stack(x[1:, :4], mask[1:, :4]))
    assert stacked()(5, 4, 3).double()(x, mask).shape == (2, 7, 8)


@pytest.mark.slow
def test_the_reader_learns_to_answer() -> None:
    rng = torch.Generator().manual_seed(1)
    reader = Reader(20, 16)
    optimizer = torch.optim.Adamax(reader.parameters(), lr=0.02)
    for _ in range(250):
        documents, questions, places = asked(32, rng)
        loss = sum(F.cross_entropy(score, places) for score in reader(documents, questions))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    documents, questions, places = asked(200, rng)
    start, end = reader(documents, questions)
    assert (start.argmax(1) == places).float().mean() > 0.9
    assert (end.argmax(1) == places).float().mean() > 0.9
