"""Builds of fairseq."""

import fairseq
import pytest

patched = pytest.mark.skipif("+py311" not in fairseq.__version__, reason="fairseq is without our patches")
"""Marks a test of what they mend."""
