"""The loss of logits in one pass, where products are in bfloat16 on a CPU: cross entropy, with label smoothing or not.

fairseq turns logits into log-probabilities in float32, reads those twice more, and as often again for gradients. Here
compiled code writes the gradient of the logits while it computes the loss.
"""

from __future__ import annotations

from typing import Any

import torch
from fairseq.models import FairseqDecoder
from torch import Tensor

from ..recurrence.native_call import call, compiled

NAMES = ("run_cross_entropy",)


class CrossEntropy(torch.autograd.Function):
    """``one`` times the summed negative log-likelihood of the targets plus ``each`` times that of all words, and the
    first by itself. Arguments: logits ``(rows, words)``, targets ``(rows)``, the target that counts nothing, one,
    each."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits: Tensor, target: Tensor, ignored: int, one: float, each: float
    ) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        losses = logits.new_empty(len(logits), 2, dtype=torch.float32)
        functions = compiled("loss.cpp", logits.dtype, NAMES)
        assert functions is not None
        arguments = (logits, target, losses, gradient, logits.size(1), ignored, one, each)
        call(functions[0], len(logits), logits.numel(), *arguments)
        likelihood, smooth = losses.sum(0).unbind()
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(likelihood)
        loss = one * likelihood
        return loss + each * smooth if each else loss, likelihood  # 0 times infinity is NaN

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient if grad == 1 else gradient * grad, None, None, None, None


def usual_probabilities(model: Any) -> bool:
    """Return whether a model's probabilities are what fairseq makes of logits, and not a plugin's own."""
    decoder = getattr(model, "decoder", None)
    return (
        isinstance(decoder, FairseqDecoder)
        and type(decoder).get_normalized_probs is FairseqDecoder.get_normalized_probs
        and type(decoder).get_normalized_probs_scriptable is FairseqDecoder.get_normalized_probs_scriptable
        and getattr(model.get_normalized_probs, "__module__", "").startswith("fairseq.")
    )


def cross_entropy(
    model: Any, net_output: Any, sample: dict[str, Any], epsilon: float, padding: int
) -> tuple[Tensor, Tensor] | None:
    """Return what fairseq's criterions compute: the loss and the negative log-likelihood, summed over tokens; None
    where theirs has to.

    net_output has the logits ``(batch, length, words)``, float32 or bfloat16; epsilon is that of label smoothing
    (Szegedy et al. 2016, section 7), shared by all words but the target; padding the target that counts nothing.

    Raises:
        IndexError: a target is no word of the dictionary.
    """
    logits = net_output[0]
    if (
        not torch.is_autocast_enabled("cpu")
        or not isinstance(logits, Tensor)
        or not logits.is_cpu
        or logits.dtype not in (torch.float32, torch.bfloat16)
        or torch.compiler.is_compiling()
        or not usual_probabilities(model)
        or getattr(model.decoder, "adaptive_softmax", None) is not None
        or compiled("loss.cpp", logits.dtype, NAMES) is None
    ):
        return None
    words, target = logits.size(-1), model.get_targets(sample, net_output)
    if target.dtype != torch.int64 or not target.is_cpu or target.numel() * words != logits.numel():
        return None
    if not 0 <= int(target.min()) <= int(target.max()) < words:
        raise IndexError(
            f"target: must be from 0 to {words - 1}, of {words} words; got {target.min()} to {target.max()}"
        )
    each = epsilon / (words - 1)
    return CrossEntropy.apply(  # type: ignore[no-any-return]
        logits.reshape(-1, words).contiguous(), target.reshape(-1).contiguous(), padding, 1 - epsilon - each, each
    )
