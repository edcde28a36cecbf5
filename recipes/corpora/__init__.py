"""Data sets: where they are, how they are fetched, cleaned, cut into subwords and built."""
