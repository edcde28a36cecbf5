"""How long layers and models take."""

import common  # noqa: F401  before fairseq_sru
