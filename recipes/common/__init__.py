"""What the other packages of the recipes share. ``fairseq_sru`` is that beside them, whatever the environment holds."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
