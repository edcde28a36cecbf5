"""The elementwise SRU recurrence behind one function, :func:`sru_recurrence`.

Everything an SRU layer does next to its matrix product happens here. The function checks its arguments, picks a backend
and hands over (recurrence.py, dispatch.py). The backends, best first:

- ``cuda``: the CUDA source in kernels/, compiled by NVRTC for the GPU that is there and launched by CuPy (GPU);
- ``native``: the same source built by the host's C++ compiler (CPU);
- ``torch``: plain PyTorch with its backward pass written by hand (any device);
- ``reference``: the definition, a loop over time that autograd differentiates (any device).
"""

from .dispatch import BACKENDS, backends, check_backend
from .recurrence import sru_recurrence
from .reference import ACTIVATIONS

__all__ = ["ACTIVATIONS", "BACKENDS", "backends", "check_backend", "sru_recurrence"]
