"""Comparisons of translation systems and other models: settings, stages, scores, reports."""
