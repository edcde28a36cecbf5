"""Memory stays flat over many steps, backward releases what forward saved, and what doesn't fit is torch's error."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import python
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from fairseq_sru import SRU, sru_recurrence

BACKENDS = ("native", "torch")
WARM_UP, STEPS = 300, 3000
LENGTH, BATCH, SIZE = 12, 8, 256
ROOM = 8 * 2**20  # bytes by which the process may grow: a third of what one state a step comes to
Step = Callable[[], object]

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read the memory from")


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(step: Step) -> tuple[int, int]:
    """Bytes and Python objects that STEPS steps add after a warm-up."""
    for _ in range(WARM_UP):
        step()
    memory, objects = resident(), len(gc.get_objects())
    for _ in range(STEPS):
        step()
    return resident() - memory, len(gc.get_objects()) - objects


def training(backend: str, length: int = LENGTH, size: int = SIZE // 4) -> Step:
    torch.manual_seed(0)
    rnn = SRU(size, size, bidirectional=True, dropout=0.1, rnn_dropout=0.1, layer_norm=True, backend=backend)
    optimizer = torch.optim.Adam(rnn.parameters(), lr=1e-4)
    x = torch.randn(length, BATCH, size)
    pad = torch.arange(length)[:, None] >= torch.randint(1, length + 1, (BATCH,))

    def step() -> None:
        h, c = rnn(x, padding_mask=pad)
        (h.square().mean() + c.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def decoding(backend: str) -> Step:
    torch.manual_seed(0)
    rnn = SRU(SIZE, SIZE, num_layers=2, backend=backend).eval()
    x = torch.randn(1, BATCH, SIZE)
    state = rnn(x)[1].detach()

    @torch.no_grad()
    def step() -> None:
        nonlocal state
        _, state = rnn(x, c0=state)

    return step


def leaking() -> Step:
    kept: list[Tensor] = []
    return lambda: kept.append(torch.ones(BATCH, SIZE))


def measured(step: str) -> tuple[int, int]:
    """growth(step) in a process of its own: here, what earlier tests have freed would take a leak in unseen."""
    script = f"{Path(__file__).read_text()}\nprint(*growth({step}))"
    memory, objects = map(int, python("-c", script).stdout.split())
    return memory, objects


@needs_proc
def test_a_leak_of_one_state_a_step_would_show() -> None:
    memory, objects = measured("leaking()")
    assert memory > 2 * ROOM
    assert objects > STEPS // 2


@needs_proc
@pytest.mark.parametrize("backend", [b if b == "native" else pytest.param(b, marks=pytest.mark.slow) for b in BACKENDS])
@pytest.mark.parametrize("what", [pytest.param("training", marks=pytest.mark.slow), "decoding"])
def test_memory_is_flat(what: str, backend: str) -> None:
    memory, objects = measured(f"{what}({backend!r})")
    assert memory < ROOM
    assert objects < 100


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_leaves_no_objects_behind(backend: str) -> None:
    """Without the garbage collector's help: a cycle would hold the memory of a step until it comes around."""
    step = training(backend, length=3, size=8)
    for _ in range(20):
        step()
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        for _ in range(50):
            step()
        assert tensors() == before
    finally:
        gc.enable()


def tensors() -> int:
    return sum(issubclass(type(o), Tensor) for o in gc.get_objects())


# ---------------------------------------------------------------- what forward saves


class Saved:
    """Tensors that autograd saves: bytes of distinct memory, and the number that is still held."""

    def __init__(self) -> None:
        self.boxes: list[weakref.ref[Box]] = []
        self.memory: dict[int, int] = {}
        self.storages: dict[int, StorageWeakRef] = {}

    def pack(self, t: Tensor) -> Box:
        box = Box(t)
        self.boxes.append(weakref.ref(box))
        storage = t.untyped_storage()
        self.memory[storage.data_ptr()] = storage.nbytes()
        self.storages[storage.data_ptr()] = StorageWeakRef(storage)
        return box

    @property
    def held(self) -> int:
        return sum(box() is not None for box in self.boxes)

    def in_memory(self, *others: Tensor) -> int:
        """Return how many of them there still are, whoever holds them, but for the memory of others."""
        known = {t.untyped_storage().data_ptr() for t in others}
        return sum(not ref.expired() for at, ref in self.storages.items() if at not in known)

    @property
    def bytes(self) -> int:
        return sum(self.memory.values())


class Box:
    def __init__(self, t: Tensor) -> None:
        self.t = t


@pytest.fixture
def saved() -> Iterator[Saved]:
    made = Saved()
    with torch.autograd.graph.saved_tensors_hooks(made.pack, lambda box: box.t):
        yield made


def arguments() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"u": (LENGTH, BATCH, 3, SIZE), "x": (LENGTH, BATCH, SIZE), "bias": (2, SIZE), "c0": (BATCH, SIZE)}
    made = {name: torch.randn(shape, generator=generator).requires_grad_() for name, shape in shapes.items()}
    return made


def sizes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_saved_may_come_back_laid_out_otherwise(backend: str) -> None:
    """torch promises value, size, dtype and device."""
    found = []
    for unpack in (lambda t: t, lambda t: t.mT.contiguous().mT if t.dim() > 1 else t):
        given = arguments()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
            sru_recurrence(**given, backend=backend)[0].square().sum().backward()
        found.append([t.grad for t in given.values()])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_releases_what_forward_saved(backend: str, saved: Saved) -> None:
    given = arguments()
    h, c = sru_recurrence(**given, backend=backend)
    assert saved.held == len(saved.boxes) > 0
    assert saved.in_memory(*given.values(), h, c) > 0
    (h.sum() + c.sum()).backward()
    assert saved.held == 0, "though h and c are still here"
    assert saved.in_memory(*given.values(), h, c) == 0
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        h.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_dropped_without_backward_is_released(backend: str, saved: Saved) -> None:
    h, c = sru_recurrence(**arguments(), backend=backend)
    assert saved.held > 0
    del h
    assert saved.held > 0
    del c
    assert saved.held == 0


@pytest.mark.parametrize("backend, states", [("native", 1), ("torch", 3)])
def test_forward_saves_its_inputs_and_its_states_and_no_more(backend: str, states: int, saved: Saved) -> None:
    """The kernels save the state before and after each step; plain PyTorch also the gates."""
    given = arguments()
    sru_recurrence(**given, backend=backend)
    state = sizes(given["x"].detach())
    assert saved.bytes <= sizes(*given.values()) + states * state + sizes(given["c0"])
    assert saved.bytes > sizes(*given.values()), "the states are among it"


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_gradients_nothing_is_saved(backend: str, saved: Saved) -> None:
    given = arguments()
    with torch.no_grad():
        sru_recurrence(**given, backend=backend)
    sru_recurrence(**{name: t.detach() for name, t in given.items()}, backend=backend)
    assert saved.boxes == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_releases_what_it_saved(backend: str, saved: Saved) -> None:
    rnn = SRU(16, 16, num_layers=3, bidirectional=True, layer_norm=True, rnn_dropout=0.1, dropout=0.1, backend=backend)
    h, c = rnn(torch.randn(LENGTH, BATCH, 16))
    assert saved.held > 3
    (h.sum() + c.sum()).backward()
    assert saved.held == 0


# ---------------------------------------------------------------- more than fits

MORE = 2**50  # channels of 4 bytes, in three planes: more than 64-bit processors address


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_recurrence_that_does_not_fit_is_torchs_error(backend: str, grad: bool) -> None:
    u = torch.ones(1, 1, 3, 1, requires_grad=grad).expand(1, 1, 3, MORE)  # 12 bytes of memory so far
    with pytest.raises(RuntimeError, match="allocate"):
        sru_recurrence(u, backend=backend)
    h, _ = sru_recurrence(u[..., :8], backend=backend)  # and all goes on
    assert h.shape == (1, 1, 8) and bool(h.isfinite().all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backward_that_does_not_fit_is_torchs_error(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out between forward and backward."""
    given = arguments()
    h, _ = sru_recurrence(**given, backend=backend)

    def fail(*_: object, **__: object) -> Tensor:
        raise torch.OutOfMemoryError("can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", fail)
        with pytest.raises(torch.OutOfMemoryError):
            h.sum().backward(retain_graph=True)
        assert all(t.grad is None for t in given.values()), "no gradient is half written"
    h.sum().backward()
    assert all(t.grad is not None and bool(t.grad.isfinite().all()) for t in given.values())
