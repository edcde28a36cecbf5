"""Faults that each patch of fairseq mends, in the order of fairseq_sru/patches/series: no test passes without it."""

from __future__ import annotations

import gc
import io
import shutil
import subprocess
import sys
import weakref
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, run_cli
from fairseq import checkpoint_utils
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from fairseq.data import data_utils
from fairseq.data.language_pair_dataset import collate
from fairseq.dataclass.configs import CheckpointConfig, FairseqConfig
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.modules import MultiheadAttention
from fairseq.modules.adaptive_softmax import AdaptiveSoftmax
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.options import get_training_parser, parse_args_and_arch
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from omegaconf import OmegaConf
from support.builds import patched
from support.commands import PLUGIN, SMALL, hypotheses, train
from support.small_models import made, numbered, sources
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = patched
SERIES = (ROOT / "fairseq_sru" / "patches" / "series").read_text().splitlines()


def test_each_patch_but_those_without_which_nothing_runs_has_a_test() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    named = [name for name in SERIES if name.endswith(".patch") and name >= "1"]
    assert len(named) > 10 and [name for name in named if f"# {name}\n" not in tests] == []


# 11-whole-checkpoints.patch


def test_a_checkpoint_is_whole_and_a_file_of_the_users_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, save = io.BytesIO(), torch.save

    def fails_once(state: Any, to: Any) -> None:
        monkeypatch.setattr(torch, "save", save)
        to.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fails_once)
    checkpoint_utils._torch_persistent_save({"a": 1}, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == {"a": 1}

    def stopped(source: Any, target: Any, *_: Any, **__: Any) -> None:
        Path(target).write_text("half")
        raise KeyboardInterrupt

    for name in ("checkpoint1.pt", "checkpoint_last.pt", "dummy"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(shutil, "copyfile", stopped)
    with pytest.raises(KeyboardInterrupt):
        PathManager.copy(str(tmp_path / "checkpoint1.pt"), str(tmp_path / "checkpoint_last.pt"), overwrite=True)
    checkpoint_utils.verify_checkpoint_directory(str(tmp_path))
    assert all((tmp_path / name).read_text() == name for name in ("checkpoint_last.pt", "dummy"))


# 12-resume.patch


def test_patience_goes_on_and_what_is_done_trains_no_further(toy_data: Path, tmp_path: Path) -> None:
    def said(*more: Any) -> tuple[str, dict[str, Any]]:
        done = train(toy_data, tmp_path, "--lr", 0, "--patience", 2, *more)
        state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)
        return done.stdout + done.stderr, state

    said("--max-epoch", 2)
    log, state = said("--max-epoch", 9)
    assert "hasn't improved for last 2 runs" in log
    assert state["extra_state"]["train_iterator"]["epoch"] == 4
    before = (tmp_path / "checkpoint_last.pt").read_bytes()
    updates = state["optimizer_history"][-1]["num_updates"]
    for more in ([], ["--patience", 9, "--max-update", updates]):
        said(*more)
        assert (tmp_path / "checkpoint_last.pt").read_bytes() == before


def test_the_best_of_another_training_in_this_process_does_not_count(
    tmp_path: Path,
) -> None:
    """Jobs of a sweep by Hydra are such."""
    checkpoint_utils.save_checkpoint.best = 1.0
    trainer = SimpleNamespace(checkpoint_suffix="", load_checkpoint=lambda *_, **__: None, lr_step=lambda _: None)
    trainer.get_train_iterator = lambda **_: SimpleNamespace(epoch=1)
    checkpoint_utils.load_checkpoint(CheckpointConfig(save_dir=str(tmp_path)), trainer)
    assert not hasattr(checkpoint_utils.save_checkpoint, "best")


# 14-adaptive-loss.patch


def test_the_adaptive_loss_is_that_of_float64() -> None:
    """In bfloat16, and with a word of a later cluster that has the padding's number there."""
    words = numbered(30)
    softmax = AdaptiveSoftmax(len(words), 8, [10], 0.0)
    features, target = 9 * torch.randn(2, 3, 8), torch.tensor([[5, 10 + words.pad(), 9], [20, 3, words.pad()]])

    class Model:
        decoder = SimpleNamespace(adaptive_softmax=softmax)
        adaptive_softmax = softmax

        def __call__(self) -> tuple[torch.Tensor]:
            return (features.bfloat16(),)

        def get_targets(self, *_: Any) -> torch.Tensor:
            return target

    sample = {"net_input": {}, "target": target, "ntokens": 5}
    softmax.bfloat16()
    loss = AdaptiveLoss(Namespace(target_dictionary=words), False)(Model(), sample)[0]
    log_p = softmax.double().get_log_prob(features.bfloat16().double(), None).reshape(6, -1)
    kept = target.flatten() != words.pad()
    expected = -log_p[kept].gather(1, target.flatten()[kept, None]).sum()
    torch.testing.assert_close(loss.double().sum(), expected.double(), rtol=0.02, atol=0)


# 15-no-repeat-ngram.patch


def repeats(words: list[int], n: int) -> bool:
    """True if the last n-gram was there before."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return grams[-1:] != [] and grams[-1] in grams[:-1]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_words_that_would_repeat_an_ngram_are_banned_and_no_others(n: int) -> None:
    """On buffers as the search has them: what begins a sentence, the words so far, padding."""
    pad, eos, vocabulary, bsz, beam, longest = 1, 2, 9, 3, 4, 15
    for step in range(longest):
        tokens = torch.full((bsz * beam, longest + 2), pad)
        tokens[:, 0] = eos
        tokens[:, 1 : step + 1] = torch.randint(4, vocabulary, (bsz * beam, step))
        before = torch.randn(bsz * beam, vocabulary)
        after = NGramRepeatBlock(n)(tokens, before.clone(), bsz, beam, step)
        for row, old, new in zip(tokens[:, 1 : step + 1].tolist(), before, after, strict=True):
            for word in range(vocabulary):
                allowed = word == eos or not repeats([*row, word], n)
                assert new[word] == (old[word] if allowed else -torch.inf), (row, word)


# 16-parts-of-a-training-set.patch


def test_a_training_set_may_have_several_parts(toy_data: Path, tmp_path: Path) -> None:
    data = shutil.copytree(toy_data, tmp_path / "bin")
    for path in list(data.glob("valid.*")):
        shutil.copyfile(path, data / path.name.replace("valid", "train1"))
    for options, count in ({}, 1500 + 50), ({"upsample_primary": 5}, 5 * 1500 + 50):
        cfg = TranslationConfig(data=str(data), dataset_impl="mmap", source_lang="en", target_lang="de", **options)
        task = TranslationTask.setup_task(cfg)
        task.load_dataset("train", combine=True)
        assert len(task.dataset("train")) == count


# 17-cpu.patch


def test_cpu_is_one_process_whatever_gpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = OmegaConf.structured(FairseqConfig)
    cfg.common.cpu, cfg.distributed_training.distributed_world_size = True, 2  # fairseq's default with two GPUs
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    begun: list[Any] = []
    distributed_utils.call_main(cfg, begun.append)
    assert begun == [cfg] and cfg.distributed_training.distributed_world_size == 1


def test_training_on_a_cpu_leaves_a_gpu_alone(toy_data: Path, tmp_path: Path) -> None:
    """torch says that there is one, which would fail if it were used."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "__init__.py").write_text(
        "import torch, fairseq_sru\ntorch.cuda.is_available = lambda: True\n"
    )
    words = ["--user-dir", "full", *SMALL, "--optimizer", "adam", "--lr", 0.005, "--max-tokens", 400]
    words += ["--num-workers", 1, "--clip-norm", 1, "--max-update", 2, "--save-dir", "saved"]
    run_cli("train", toy_data, *words, cwd=tmp_path, PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="")
    assert (tmp_path / "saved" / "checkpoint_last.pt").is_file()


# 18-gpu-precision.patch


def _scaler(real: Any, device: str, **options: Any) -> Any:
    assert device == "cuda"
    return real("cpu", **options)


def test_mixed_precision_of_a_gpu_divides_gradients_once_by_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scaler runs on the CPU here. Plain descent shows by how much a gradient was divided."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(_scaler, torch.amp.GradScaler))
    common = {"amp_init_scale": 1024, "fp16_init_scale": 8, "amp_scale_window": None, "min_loss_scale": 1e-4}
    descent = {"_name": "sgd", "lr": [0.5], "momentum": 0.0, "weight_decay": 0.0}
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = AMPOptimizer.build_optimizer(OmegaConf.create({"common": common, "optimizer": descent}), [weight])
    assert optimizer.scaler.get_scale() == 1024
    optimizer.backward((weight**2).sum() / 2)
    assert float(optimizer.clip_grad_norm(0.0)) == pytest.approx(5**0.5)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.5, 1.0]))


def test_bfloat16_asks_for_no_tpu() -> None:
    args = parse_args_and_arch(get_training_parser(), [".", "--arch", "lstm", "--bf16"])
    assert args.bf16 and not args.tpu


# 19-best-and-interval-checkpoints.patch


class Trainer:
    """Parts that save_checkpoint asks for."""

    data_parallel_rank, checkpoint_suffix, should_save_checkpoint_on_current_rank = 0, "", True
    consolidate_optimizer = get_num_updates = lambda self: 0

    def save_checkpoint(self, path: str, _: Any) -> None:
        Path(path).touch()


def test_the_best_checkpoints_are_kept_from_the_first_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_utils.save_checkpoint, "best", 3.0, raising=False)
    cfg = CheckpointConfig(save_dir=str(tmp_path), keep_best_checkpoints=3, no_epoch_checkpoints=True)
    for epoch, loss in enumerate([3.0, 3.3, 3.1, 3.2], 1):
        state = SimpleNamespace(epoch=epoch, end_of_epoch=lambda: True, state_dict=dict)
        checkpoint_utils.save_checkpoint(OmegaConf.structured(cfg), Trainer(), state, loss)
    kept = sorted(path.name[:-4] for path in tmp_path.glob("checkpoint.best_*"))  # a random digit each
    assert kept == [f"checkpoint.best_loss_{loss}00" for loss in ("3.0", "3.1", "3.2")]


def test_an_update_at_the_end_of_an_epoch_is_saved_where_epochs_are_not(toy_data: Path, tmp_path: Path) -> None:
    saved = ["--no-epoch-checkpoints", "--save-interval-updates", 1, "--keep-interval-updates", 2]
    train(toy_data, tmp_path, "--max-tokens", 2000, "--max-epoch", 1, *saved)
    updates = torch.load(tmp_path / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"]
    numbered = {path.name for path in tmp_path.glob("checkpoint_1_*.pt")}
    assert numbered == {f"checkpoint_1_{updates - 1}.pt", f"checkpoint_1_{updates}.pt"}


# 20-interactive.patch


def test_interactive_keeps_step_with_a_file(toy_data: Path, tmp_path: Path) -> None:
    train(toy_data, tmp_path, "--max-update", 1)
    (tmp_path / "source").write_text("a b c\n" + "a " * 1100 + "\nd c b\n")
    words = ["--path", tmp_path / "checkpoint_last.pt", "--cpu", "--skip-invalid-size-inputs-valid-test"]
    done = run_cli("interactive", toy_data, *PLUGIN, *words, "--input", tmp_path / "source", "--buffer-size", 5)
    alone = hypotheses(run_cli("interactive", toy_data, *PLUGIN, *words, text_in="a b c\nd c b\n").stdout)
    assert hypotheses(done.stdout) == {0: alone[0], 1: "", 2: alone[1]}


# 21-end-of-threads.patch

READS_ON = """
import torch
from fairseq.data.iterators import BufferedIterator

class Batches:
    def __len__(self):
        return 10**6

    def __iter__(self):
        for i in range(10**6):
            yield [torch.arange(2000).float().sort() for _ in range(50)]

next(BufferedIterator(1000, Batches()))
"""


def test_python_ends_while_batches_are_prepared(tmp_path: Path) -> None:
    for _ in range(3):  # without the patch it aborts most of the times
        done = subprocess.run([sys.executable, "-c", READS_ON], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


# 22-one-line-errors.patch

BAD = [
    (["train", "bin", *SMALL, "--user-dir", "none"], ("--user-dir", "none")),
    (["generate", "none", "--path", "whole.pt"], ("data", "none")),
    (["eval-lm", "none", "--path", "whole.pt"], ("data", "none")),
    (["generate", "bin", "--path", "none.pt"], ("--path", "none.pt")),
    (["validate", "bin", "--task", "translation", "--path", "cut.pt"], ("--path", "truncated", "cut.pt")),
    (["train", "bin", *SMALL, "--restore-file", "none.pt"], ("--restore-file", "none.pt")),
    (["train", "bin", *SMALL, "--finetune-from-model", "none.pt"], ("--finetune-from-model", "none.pt")),
    (["train", "bin", *SMALL, "--save-dir", "."], ("--save-dir", "truncated", "checkpoint_last.pt")),
]


@pytest.fixture(scope="module")
def folder(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to be in: data, the plugin, and checkpoints that are cut off."""
    made = tmp_path_factory.mktemp("here")
    (made / "bin").symlink_to(toy_data)
    (made / "fairseq_sru").symlink_to(ROOT / "fairseq_sru")
    torch.save({"args": None, "cfg": {}, "model": {"weight": torch.zeros(1000)}}, made / "whole.pt")
    for name in ("cut.pt", "checkpoint_last.pt"):
        (made / name).write_bytes((made / "whole.pt").read_bytes()[:-50])
    return made


@pytest.mark.parametrize("command, parts", BAD)
def test_a_bad_argument_is_one_line(command: list[Any], parts: tuple[str, ...], folder: Path) -> None:
    user_dir = [] if "--user-dir" in command else PLUGIN
    before = sorted(folder.iterdir())
    done = run_cli(*command, *user_dir, check=False, cwd=folder)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert line.startswith(f"fairseq-{command[0]}: error: ") and all(part in line for part in parts), line
    assert sorted(folder.iterdir()) == before


def test_help_tells_the_options_of_the_architecture() -> None:
    told = run_cli("train", *PLUGIN, "--arch", "sru", "--help").stdout
    assert "--encoder-kernel-size " in told and "--label-smoothing " not in told


# 31-collate.patch


class Operations(TorchDispatchMode):
    """Counts torch's operations, and those with a result of at least so many numbers."""

    def __init__(self, large: int = 0) -> None:
        super().__init__()
        self.large, self.count = large, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.count += isinstance(made, torch.Tensor) and made.numel() >= self.large
        return made


@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("left_pad", [False, True])
@pytest.mark.parametrize("more", [{}, {"pad_to_length": 12}, {"pad_to_multiple": 8}, {"pad_to_bsz": 9}], ids=str)
def test_a_batch_is_put_together_as_sentence_by_sentence(move: bool, left_pad: bool, more: dict[str, int]) -> None:
    sentences = [torch.randint(4, 99, (n,)) for n in (3, 1, 9, 4, 9)]
    size = max(9, more.get("pad_to_length", 0))
    size = -(-size // more.get("pad_to_multiple", 1)) * more.get("pad_to_multiple", 1)
    for eos in (2, None):
        expected = []
        for tokens in map(torch.Tensor.tolist, sentences):
            given = [tokens[-1] if eos is None else eos, *tokens[:-1]] if move else tokens
            padding = [1] * (size - len(given))
            expected.append([*padding, *given] if left_pad else [*given, *padding])
        expected += [[1] * size] * (more.get("pad_to_bsz", 0) - len(sentences))
        made = data_utils.collate_tokens(sentences, 1, eos, left_pad, move, **more)
        assert made.tolist() == expected and made.dtype == torch.int64


def test_a_batch_takes_as_many_operations_whatever_its_size() -> None:
    counts = []
    for size in (2, 50):
        drawn = [torch.randint(4, 99, (n % 7 + 1,)) for n in range(size)]
        samples = [{"id": i, "source": tokens, "target": tokens} for i, tokens in enumerate(drawn)]
        with Operations() as operations:
            batch = collate(samples, pad_idx=1, eos_idx=2)
        counts.append(operations.count)
        lengths = sorted((len(tokens) for tokens in drawn), reverse=True)
        assert batch["net_input"]["src_lengths"].tolist() == lengths
    assert counts[0] == counts[1]


# 32-beam-search.patch


def test_a_step_of_the_search_makes_few_tensors_of_all_words() -> None:
    """Softmax, scores of the hypotheses and the best of them, and four that rule words out."""
    words = numbered(500)
    model = made("sru", words).eval()
    counts = []
    for steps in (5, 15):
        generator = SequenceGenerator([model], words, beam_size=3, max_len_b=steps, min_len=steps)
        tokens = sources(words, [5, 9])
        sample = {"net_input": {"src_tokens": tokens, "src_lengths": tokens.ne(words.pad()).sum(1)}}
        sample["net_input"]["prev_output_tokens"] = tokens
        with Operations(large=2 * 3 * len(words)) as operations:
            generator.generate([model], sample, prefix_tokens=tokens[:, :1])  # which the compiled search doesn't know
        counts.append(operations.count)
    assert (counts[1] - counts[0]) / 10 <= 12


# 33-attention-on-a-cpu.patch


def test_attention_of_fairseqs_transformer_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast the projections are rounded, the products between queries, keys and values are not."""
    layer = MultiheadAttention(8, 2, kdim=8, vdim=8, encoder_decoder_attention=True)
    query, source = torch.randn(3, 4, 8), torch.randn(5, 4, 8)
    seen, product = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: seen.append((a.dtype, b.dtype)) or product(a, b))
    exact, _ = layer(query, source, source, static_kv=True)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = layer(query, source, source, static_kv=True)
    assert seen == [(torch.float32, torch.float32)] * 4
    assert rounded.dtype == torch.bfloat16 and not torch.equal(rounded.float(), exact)
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.02)


# 34-end-of-workers.patch


def test_what_hands_out_batches_goes_with_its_last_reference(toy_data: Path) -> None:
    """And its workers with it: the garbage collector ends each after five seconds."""
    data = {"data": str(toy_data), "source_lang": "en", "target_lang": "de", "dataset_impl": "mmap"}
    cfg = OmegaConf.structured(TranslationConfig(**data, train_subset="train", required_seq_len_multiple=1))
    OmegaConf.set_struct(cfg, True)
    task = TranslationTask.setup_task(cfg)
    task.load_dataset("valid")
    gc.disable()
    try:
        batches = task.get_batch_iterator(task.dataset("valid"), max_tokens=100, disable_iterator_cache=True)
        assert len(list(batches.next_epoch_itr())) > 1
        kept = weakref.ref(batches)
        del batches
        assert kept() is None
    finally:
        gc.enable()
