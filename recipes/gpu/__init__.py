"""Tests, speed and training on a GPU, by one command: ../gpu.sh."""
