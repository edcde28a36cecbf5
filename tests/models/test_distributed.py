"""Training by several processes: the weights of one on the joint batch, resuming, a killed worker, options."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_cli
from support.processes import LONG
from support.small_models import made, numbered
from torch.nn.parallel import DistributedDataParallel

SMALL = ["--user-dir", "fairseq_sru", "--arch", "sru_tiny", "--encoder-embed-dim", 32, "--decoder-embed-dim", 32]
SMALL += ["--encoder-hidden-size", 16, "--encoder-layers", 1, "--decoder-layers", 1, "--share-all-embeddings"]
SMALL += ["--dropout", 0, "--optimizer", "adam", "--lr", 5e-3, "--batch-size", 16, "--cpu", "--no-progress-bar"]
GLOO = ["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]
EVERY_TEN = ["--save-interval-updates", 10]


def torchrun(module: str, *words, processes: int = 2) -> list[str]:
    program = [str(Path(sys.executable).with_name("torchrun")), "--standalone", f"--nproc-per-node={processes}"]
    return [*program, "-m", f"fairseq_cli.{module}", *map(str, words)]


def start(command: list[str]) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def train(data: Path, save: Path, *more, processes: int = 1, fails: bool = False) -> str:
    """fairseq-train by one process, or by several of torchrun; returns the log."""
    if processes == 1:
        done = run_cli("train", data, *SMALL, "--save-dir", save, *more, check=False)
        log = done.stdout + done.stderr
    else:
        done = start(torchrun("train", data, *SMALL, "--save-dir", save, *GLOO, *more, processes=processes))
        log = done.communicate(timeout=LONG)[0]
    assert (done.returncode != 0) is fails, log[-6000:]
    return log


def state(save: Path, name: str = "checkpoint_last.pt") -> dict:
    return torch.load(save / name, weights_only=True)


def assert_same(a: Path, b: Path, **tolerance) -> None:
    """The weights of two runs' last checkpoints agree."""
    one, other = state(a), state(b)
    updates = [s["optimizer_history"][-1]["num_updates"] for s in (one, other)]
    assert updates[0] == updates[1]
    torch.testing.assert_close(one["model"], other["model"], **tolerance)


ROUNDING = {"rtol": 1e-4, "atol": 1e-5}  # of float32, after some Adam updates of 5e-3


MODELS = {
    "attention": {"encoder_bidirectional": True},
    "no attention": {"decoder_attention": "False", "share_decoder_input_output_embed": True},
    "LSTM": {"recurrent_unit": "lstm"},
}


def make_model(options):
    torch.manual_seed(1)
    return made("sru", numbered(20), dropout=0.0, **options).train()


def batch_of(lengths: list[int], seed: int) -> tuple[torch.Tensor, ...]:
    """Source (left-padded), its lengths, decoder input and target of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.full((len(lengths), max(lengths)), 1)
    target = torch.full((len(lengths), max(lengths) + 2), 1)
    for row, length in enumerate(lengths):
        source[row, -length:] = torch.randint(4, 20, (length,), generator=generator)
        target[row, : length + 2] = torch.randint(4, 20, (length + 2,), generator=generator)
    return source, torch.tensor(lengths), torch.where(target == 1, 1, target.roll(1, 1)), target


HALVES = [batch_of([7, 3, 1], 1), batch_of([2, 4], 2)]  # padded to unequal lengths


def loss_of(model, source, lengths, previous, target):
    logits = model(source, lengths, previous)[0]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=1, reduction="sum")


def gradients_of_a_rank(rank: int, folder: str) -> None:
    """Two backward passes of each model, each rank on its half of the batch; rank 0 saves the mean gradients."""
    from fairseq.distributed import LegacyDistributedDataParallel

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
    found = {}
    for name, options in MODELS.items():
        for kind in ("legacy_ddp", "pytorch_ddp"):
            model = make_model(options)
            if kind == "legacy_ddp":
                wrapped = LegacyDistributedDataParallel(model, torch.distributed.group.WORLD)
            else:
                wrapped = DistributedDataParallel(model)  # refuses a second pass if a weight had no gradient
            for _ in range(2):
                model.zero_grad()
                loss_of(wrapped, *HALVES[rank]).backward()
                if kind == "legacy_ddp":
                    wrapped.all_reduce_grads()
            found[name, kind] = {name: p.grad for name, p in model.named_parameters()}
    if rank == 0:
        torch.save(found, f"{folder}/gradients.pt")
    torch.distributed.barrier()  # a process that leaves before the other has what it waits for lets it wait forever
    torch.distributed.destroy_process_group()


def test_gradients_of_two_processes_are_those_of_the_joint_batch(tmp_path):
    """In float64. Also with torch's own DistributedDataParallel, fairseq's default."""
    torch.multiprocessing.spawn(gradients_of_a_rank, (str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    lengths = torch.cat([half[1] for half in HALVES]).tolist()
    joint = batch_of(lengths, 0)
    for tensor, *parts in zip(joint, *HALVES, strict=True):  # the same sentences, padded to one length
        tensor.fill_(1)
        for rows, part in zip(tensor.split([3, 2]), parts, strict=True):
            if tensor is joint[0]:
                rows[:, -part.shape[1] :] = part
            else:
                rows[..., : part.shape[-1]] = part
    for name, options in MODELS.items():
        model = make_model(options)
        loss_of(model, *joint).backward()
        expected = {name: p.grad for name, p in model.named_parameters()}
        assert max(float(g.abs().max()) for g in expected.values()) > 0.1
        for kind in ("legacy_ddp", "pytorch_ddp"):
            means = {n: 2 * g for n, g in found[name, kind].items()}
            torch.testing.assert_close(means, expected, rtol=1e-10, atol=1e-12)


# 13-unequal-processes.patch


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer, backend", [(["sgd", "--lr", 0.5], "legacy_ddp"), (["adam", "--lr", 5e-3], "pytorch_ddp")]
)
def test_a_process_has_a_batch_less_than_the_other(optimizer, backend, toy_data, tmp_path):
    """In the last update of an epoch, of 3 batches and what stands in for a fourth, which must count for nothing."""
    options = ["--batch-size", 160, "--optimizer", *optimizer, "--clip-norm", 1.0, "--max-epoch", 3]
    train(toy_data, tmp_path / "two", *options, "--update-freq", 2, "--ddp-backend", backend, processes=2)
    log = train(toy_data, tmp_path / "one", *options, "--update-freq", 4)
    assert state(tmp_path / "one")["optimizer_history"][-1]["num_updates"] == 9 and "total_num_itrs = 3" in log
    assert_same(tmp_path / "two", tmp_path / "one", **ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--eval-bleu", "--eval-bleu-args", '{"beam": 1, "max_len_b": 9}', "--best-checkpoint-metric", "bleu"],
        ["--arch", "lstm", "--decoder-out-embed-dim", 32],  # its options are an argparse.Namespace
    ],
    ids=["BLEU", "Namespace"],
)
def test_resuming_is_as_if_never_stopped(options, toy_data, tmp_path):
    """Whatever fairseq keeps is read with the safety on and sent to the other process; the bits are those of a run
    in one go."""
    if "lstm" in options:
        options = [*options, "--encoder-hidden-size", 32]
    train(toy_data, tmp_path / "stopped", *options, "--max-epoch", 1, processes=2)
    log = train(toy_data, tmp_path / "stopped", *options, "--max-epoch", 2, processes=2)
    assert "Loaded checkpoint" in log
    train(toy_data, tmp_path / "whole", *options, "--max-epoch", 2, processes=2)
    assert_same(tmp_path / "stopped", tmp_path / "whole", rtol=0, atol=0)


def ranks(launcher: int) -> dict[int, int]:
    """The process ids of torchrun's workers by rank."""
    found = {}
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found.update({int(entry[5:]): int(child) for entry in environment if entry.startswith(b"RANK=")})
    return found


@pytest.fixture(scope="module")
def never_killed(toy_data, tmp_path_factory) -> Path:
    save = tmp_path_factory.mktemp("never")
    train(toy_data, save, "--max-update", 150, processes=2)
    return save


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_worker_ends_the_job_and_the_same_command_goes_on(killed, never_killed, toy_data, tmp_path):
    options = ["--max-update", 150, *EVERY_TEN]
    save = tmp_path / "killed"
    process = start(torchrun("train", toy_data, *SMALL, "--save-dir", save, *GLOO, *options))
    while not (save / "checkpoint_last.pt").exists():
        assert process.poll() is None, process.communicate()[0][-6000:]
        time.sleep(0.05)
    workers = ranks(process.pid)
    os.kill(workers[killed], signal.SIGKILL)
    log = process.communicate(timeout=600)[0]
    assert process.returncode == 1
    message = log[log.index("Root Cause (first observed failure)") :]
    assert re.search(rf"rank +: {killed} ", message)
    assert f"Signal 9 (SIGKILL) received by PID {workers[killed]}" in message
    for pid in workers.values():
        assert not Path(f"/proc/{pid}").exists()
    assert state(save)["optimizer_history"][-1]["num_updates"] < 150

    assert "Loaded checkpoint" in train(toy_data, save, *options, processes=2)
    assert_same(save, never_killed, rtol=0, atol=0)


def test_bfloat16_is_a_matter_of_the_products(toy_data, tmp_path):
    """On a CPU --amp and --bf16 are one: weights learn in float32, and the checkpoint is as without."""
    for name in ("--amp", "--bf16", "whole"):
        train(toy_data, tmp_path / name, *([] if name == "whole" else [name]), "--update-freq", 2, "--max-update", 6)
    assert_same(tmp_path / "--bf16", tmp_path / "--amp", rtol=0, atol=0)
    half, whole = state(tmp_path / "--amp"), state(tmp_path / "whole")
    assert half["optimizer_history"][-1]["optimizer_name"] == "FairseqAdam"
    assert half.keys() == whole.keys()
    for name, weight in half["model"].items():
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, whole["model"][name]) and not torch.equal(weight, weight.bfloat16().float())
    assert "Loaded checkpoint" in train(toy_data, tmp_path / "--amp", "--max-update", 8)
