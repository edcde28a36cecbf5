"""R-Drop (Liang et al. 2021, arXiv 2106.14448): two passes with other dropouts are to predict alike."""

from dataclasses import dataclass, field
from typing import Any

from fairseq import utils
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
    label_smoothed_nll_loss,
)
from torch import Tensor

from .architectures import exit_with


@dataclass
class RDropConfig(LabelSmoothedCrossEntropyCriterionConfig):
    """Options of ``label_smoothed_cross_entropy_with_rdrop``; fairseq reads their types at run time."""

    rdrop_alpha: float = field(
        default=5.0, metadata={"help": "weight of the divergence between two passes; 0: one pass, no divergence"}
    )


@register_criterion("label_smoothed_cross_entropy_with_rdrop", dataclass=RDropConfig)
class RDropCriterion(LabelSmoothedCrossEntropyCriterion):
    """Label-smoothed cross entropy of two passes, and their symmetric Kullback-Leibler divergence.

    A sentence's loss is ``(L1 + L2 + alpha (KL(P1, P2) + KL(P2, P1)) / 2) / 2``, half of equation 4 of the paper: with
    an alpha of 0 it is what ``label_smoothed_cross_entropy`` has. In validation there is one pass, as there.

    Raises:
        ValueError: rdrop_alpha is below 0; fairseq-train ends with its one line.
    """

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        rdrop_alpha: float = 5.0,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
    ) -> None:
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        if not rdrop_alpha >= 0:  # nor NaN
            raise ValueError(f"--rdrop-alpha: must be at least 0; got {rdrop_alpha}")
        self.alpha = rdrop_alpha

    @classmethod
    def build_criterion(cls, cfg: RDropConfig, task: Any) -> Any:
        try:
            return super().build_criterion(cfg, task)
        except ValueError as error:
            exit_with(str(error))

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """As fairseq's criterions; both passes are one of a batch twice as large."""
        if not (model.training and self.alpha and reduce):
            found: tuple[Tensor, int, dict[str, Any]] = super().forward(model, sample, reduce)
            return found
        once = {key: sample[key] for key in ("net_input", "target")}
        # a sentence beside itself, so that lengths which descend still do
        both = {**sample, **utils.apply_to_sample(lambda x: x.repeat_interleave(2, 0), once)}
        net_output = model(**both["net_input"])
        log_p, target = self.get_lprobs_and_target(model, net_output, both)
        loss, likelihood = label_smoothed_nll_loss(log_p, target, self.eps, self.padding_idx)
        first, second = log_p.view(len(sample["target"]), 2, -1, log_p.size(-1)).unbind(1)
        apart = ((first.exp() - second.exp()) * (first - second)).sum(-1)  # both divergences
        apart = apart.masked_fill(target.view(len(apart), 2, -1)[:, 0].eq(self.padding_idx), 0.0).sum()
        loss, likelihood = (loss + self.alpha / 2 * apart) / 2, likelihood / 2
        size = len(sample["target"]) if self.sentence_avg else sample["ntokens"]
        told = {
            "loss": loss.data,
            "nll_loss": likelihood.data,
            "ntokens": sample["ntokens"],
            "nsentences": len(sample["target"]),
            "sample_size": size,
        }
        if self.report_accuracy:
            right, total = self.compute_accuracy(model, net_output, both)
            told |= {"n_correct": right.item() / 2, "total": total.item() / 2}
        return loss, size, told
