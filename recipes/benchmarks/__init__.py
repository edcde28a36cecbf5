"""Timing of layers, models and translation."""

import common  # noqa: F401  before fairseq_sru
