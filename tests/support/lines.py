"""The lines that fairseq's commands print: whatever else comes is noise."""

from __future__ import annotations

import re

LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| INFO \| "
STATISTICS = r"( \| [\w ]+ [-+.\de]+)+"
START = [
    r"fairseq.tasks.\w+ \| .*dictionary: \d+ types",
    r"fairseq.data.data_utils \| loaded [\d,]+ examples from: .+",
    r"fairseq.tasks.translation \| .+ \w+ en-de \d+ examples",
]
TRAINED = [
    r"fairseq_cli.train \| (task|model|criterion): \w+",
    r"fairseq_cli.train \| num. (shared|expert) model params: [\d,]+ \(num. trained: [\d,]+\)",
    r"fairseq.trainer \| detected shared parameter: encoder.embed_tokens.weight <- decoder.embed_tokens.weight",
    r"fairseq_cli.train \| training on \d+ devices \(GPUs/TPUs\)",
    r"fairseq_cli.train \| max tokens per device = \d+ and max sentences per device = None",
    r"fairseq.trainer \| (Preparing to load|No existing|Loaded) checkpoint (found )?.+",
    r"fairseq.trainer \| loading train data for epoch \d+",
    r"fairseq.trainer \| begin training epoch \d+",
    r"train_inner \| epoch \d+: +\d+ / \d+ [\w=., ]+",
    rf"(train|valid) \| epoch \d+( \| valid on 'valid' subset)?{STATISTICS}",
    r"fairseq.checkpoint_utils \| Saved checkpoint .+",
    r"fairseq_cli.train \| Stopping training due to num_updates: \d+ >= max_update: \d+",
    r"fairseq_cli.train \| done training in [\d.]+ seconds",
]
DECODED = [
    r"fairseq_cli.\w+ \| loading model\(s\) from .+",
    r"fairseq_cli.\w+ \| NOTE: hypothesis and token scores are output in base 2",
    r"fairseq_cli.\w+ \| Type the input sentence and press return:",
    r"fairseq_cli.\w+ \| (Translated|Total time: )[\w\d,.():; /]+",
    rf"valid \| valid on 'valid' subset{STATISTICS}",
]
OUTPUT = [r"[SW]-\d+\t.*", r"T-\d+\t.*", r"[HDP]-\d+\t-?[-\d.]+.*", r"Generate test with beam=\d: BLEU.*"]


def unexpected(text: str, logged: list[str], plain: list[str]) -> list[str]:
    """The lines that are none of these."""
    allowed = [LINE + pattern for pattern in logged] + plain
    return [line for line in text.splitlines() if not any(re.fullmatch(pattern, line) for pattern in allowed)]
