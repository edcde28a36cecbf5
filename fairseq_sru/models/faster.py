"""Compiled code for fairseq's training and decoding, by methods of its classes that are replaced here.

Importing this module replaces them, in any fairseq from 0.12.2 on and for fairseq's own models, too. Where our code
doesn't know what it is asked for, fairseq's method runs.
"""

from __future__ import annotations

import functools
import math
from argparse import Namespace
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.modules import FairseqDropout
from fairseq.optim.adam import Adam
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks.fairseq_task import FairseqTask
from fairseq.tasks.translation import TranslationTask
from fairseq.trainer import Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.optim.adamw import adamw

from .dropout import fused_dropout
from .loss import cross_entropy

New = TypeVar("New", bound=Callable[..., Any])
AT_A_TIME = 16  # weights in a call of adamw, which copies as many


def replaces(owner: type, name: str) -> Callable[[New], New]:
    """Return a decorator for a function that takes the place of a method; its first argument is that method."""

    def decorate(new: New) -> New:
        old = getattr(owner, name)

        @functools.wraps(old)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return new(old, self, *args, **kwargs)

        setattr(owner, name, method)
        return new

    return decorate


@replaces(SequenceGenerator, "generate")
def _generate(old: Any, self: SequenceGenerator, models: Any, sample: dict[str, Any], **options: Any) -> Any:
    """Let a model search by itself: no prefix, constraint or first token is asked for, and there is no other model."""
    ours = getattr(self.model.single_model, "beam_search", None)
    plain = self.model.models_size == 1 and all(value is None for value in options.values())
    hypotheses = ours(self, sample) if ours and plain else None
    return old(self, models, sample, **options) if hypotheses is None else hypotheses


@replaces(TranslationTask, "_inference_with_bleu")
def _inference_with_bleu(old: Any, self: TranslationTask, generator: SequenceGenerator, *args: Any) -> Any:
    """Translate for ``--eval-bleu``, which reads no attention weights."""
    generator.keeps_attention = False
    return old(self, generator, *args)


@replaces(CrossEntropyCriterion, "compute_loss")
def _cross_entropy(
    old: Any, self: Any, model: Any, net_output: Any, sample: dict[str, Any], reduce: bool = True
) -> Any:
    losses = cross_entropy(model, net_output, sample, 0.0, self.padding_idx) if reduce else None
    return old(self, model, net_output, sample, reduce=reduce) if losses is None else losses


_PROBABILITIES = LabelSmoothedCrossEntropyCriterion.get_lprobs_and_target


@replaces(LabelSmoothedCrossEntropyCriterion, "compute_loss")
def _label_smoothed(
    old: Any, self: Any, model: Any, net_output: Any, sample: dict[str, Any], reduce: bool = True
) -> Any:
    usual = type(self).get_lprobs_and_target is _PROBABILITIES and self.ignore_prefix_size == 0
    losses = cross_entropy(model, net_output, sample, self.eps, self.padding_idx) if reduce and usual else None
    return old(self, model, net_output, sample, reduce=reduce) if losses is None else losses


def _dropout(self: Any, x: Tensor, inplace: bool = False) -> Tensor:  # TorchScript has to read it
    if self.p > 0 and (self.training or self.apply_during_inference):
        if not torch.jit.is_scripting():
            dropped = fused_dropout(x, self.p)
            if dropped is not None:
                return dropped
        return F.dropout(x, p=self.p, training=True, inplace=inplace)
    return x


FairseqDropout.forward = _dropout


@replaces(Adam, "step")
def _step(old: Any, self: Adam, closure: Callable[[], Any] | None = None) -> Any:
    """Update all weights at once, with the same result but for rounding: by torch's kernel on a CPU, which reads and
    writes memory once, and by a few kernels for many weights on a GPU.

    Raises:
        ValueError: the optimizer's state, loaded from a checkpoint, is of weights of other shapes.
    """
    groups = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
    if closure is not None or not all(_is_plain(group, weights) for group, weights in groups):
        return old(self, closure)
    for group, weights in groups:
        by_step: dict[int, list[tuple[Tensor, ...]]] = {}
        for p in weights:
            state = self.state[p]
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            if state["exp_avg"].shape != p.shape:  # torch's kernels don't look
                raise ValueError(
                    f"the checkpoint's optimizer has a state of shape {tuple(state['exp_avg'].shape)} for weights of "
                    f"shape {tuple(p.shape)}: give --reset-optimizer"
                )
            state["step"] += 1
            some = by_step.setdefault(state["step"], [])
            some.append((p.data, p.grad.data, state["exp_avg"], state["exp_avg_sq"]))
        for step, tensors in by_step.items():
            _update(group, step, tensors)
    return None


def _is_plain(group: dict[str, Any], weights: list[Tensor]) -> bool:
    devices = {p.device.type for p in weights}
    dense = all(p.dtype == p.grad.dtype == torch.float32 and not p.grad.is_sparse for p in weights)  # type: ignore[union-attr]
    return dense and devices in ({"cpu"}, {"cuda"}, set()) and not group.get("amsgrad", False)


def _update(group: dict[str, Any], step: int, tensors: list[tuple[Tensor, ...]]) -> None:
    """Update weights, given with gradients and moments, for the ``step``-th time."""
    beta1, beta2 = group["betas"]
    settings: dict[str, Any] = {name: group[name] for name in ("lr", "weight_decay")} | {"amsgrad": False}
    settings |= {"beta1": beta1, "beta2": beta2, "maximize": False}
    settings["eps"] = group["eps"] / math.sqrt(1 - beta2**step)  # torch adds it after the correction of the bias
    on_cpu = tensors[0][0].is_cpu
    size = len(tensors) if on_cpu else AT_A_TIME
    for start in range(0, len(tensors), size):
        weights, gradients, first, second = map(list, zip(*tensors[start : start + size], strict=True))
        if not on_cpu:
            before = [torch.tensor(float(step - 1)) for _ in weights]  # adamw counts by itself
            adamw(weights, gradients, first, second, [], before, foreach=True, **settings)
        else:
            steps = [torch.tensor(float(step))] * size
            torch._fused_adamw_(weights, gradients, first, second, [], steps, **settings)


@replaces(Trainer, "__init__")
def _init(old: Any, self: Trainer, cfg: Any, task: FairseqTask, *args: Any, **kwargs: Any) -> None:
    """Take ``--amp`` and ``--bf16`` on a CPU for products in bfloat16: weights and optimizer stay in float32."""
    cfg = convert_namespace_to_omegaconf(cfg) if isinstance(cfg, Namespace) else cfg
    common = cfg.common
    on_cpu = (common.cpu or not torch.cuda.is_available()) and not common.tpu
    task.bf16_on_cpu = on_cpu and (common.amp or common.bf16 or common.memory_efficient_bf16)
    if task.bf16_on_cpu:
        common.amp = common.bf16 = common.memory_efficient_bf16 = False
    old(self, cfg, task, *args, **kwargs)


@replaces(FairseqTask, "train_step")
def _train_step(old: Any, self: FairseqTask, sample: Any, model: Any, criterion: Any, *args: Any, **kwargs: Any) -> Any:
    if not getattr(self, "bf16_on_cpu", False):
        return old(self, sample, model, criterion, *args, **kwargs)
    result = old(self, sample, model, torch.autocast("cpu", torch.bfloat16)(criterion), *args, **kwargs)
    for p in model.parameters():  # of embeddings.look_up, where the loss left the output layer out
        if p.grad is not None and p.grad.is_sparse:
            p.grad = p.grad.to_dense()
    return result
