"""Evaluation on a CPU by compiled code: a model's step as a program, models as files, the translator. None of it loads
fairseq."""
