"""Questions about torch's state: computing, compiling, exporting or transforming."""

from __future__ import annotations

import torch
from torch import Tensor


def transformed() -> bool:
    """True under torch.func and forward-mode derivatives, which know only torch's own operations."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def recorded() -> bool:
    """True where tensors have no numbers: under make_fx and with fake tensors."""
    kinds = torch._C._TorchDispatchModeKey
    return torch._C._len_torch_dispatch_stack() > 0 and any(
        torch._C._get_dispatch_mode(kind) is not None for kind in (kinds.FAKE, kinds.PROXY, kinds.FUNCTIONAL)
    )


_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6 has none


def leaves() -> bool:
    """True while torch.jit.trace, torch.export or make_fx stores a graph, which runs later and elsewhere."""
    return torch.jit.is_tracing() or (_is_exporting() if torch.compiler.is_compiling() else recorded())


def eager() -> bool:
    """True where torch computes now and with numbers: nothing is compiled, stored or transformed."""
    return not (torch.compiler.is_compiling() or leaves() or transformed())


def batched(*grads: Tensor | None) -> bool:
    """True if vmap hands over many gradients at once."""
    known = (torch._C._functorch.is_batchedtensor, torch._C._functorch.is_legacy_batchedtensor)
    return any(is_batched(grad) for grad in grads if grad is not None for is_batched in known)
