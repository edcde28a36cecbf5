"""Comparisons of translation systems: settings, stages, scores, reports."""
