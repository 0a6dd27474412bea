"""Server optimisers: against torch and numpy over many rounds, through restarts, kills and damage."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from modelling.federated import Array, BFloat16, Federation, bfloat16
from tensorbus.aggregator.reducers.base import Reducer, Workspace
from tensorbus.aggregator.reducers.server_state import name_of
from tensorbus.aggregator.reducers.spec import ReducerSpec
from tensorbus.aggregator.updates import FoldingInterrupted
from tensorbus.errors import JobError, StoreDamaged

Doubles = npt.NDArray[np.float64]
ROUNDS = 6


def made_of(folder: Path, text: str, federation: Federation) -> Reducer:
    """The reducer, with its state in the folder."""
    return ReducerSpec.parse(text).build(federation.layout, Workspace(lambda: folder))


def jolted(value: Array, random: np.random.Generator) -> Array:
    """A tensor with noise, in its dtype."""
    return (value + random.normal(size=value.shape)).astype(value.dtype)


async def one_round(reducer: Reducer, number: int, model: dict[str, Any], seed: int) -> dict[str, Any]:
    """Round ``number``, from this model: two sites that move it by noise, as whole models."""
    federation = Federation(number)
    federation.model(number, model)
    random = np.random.default_rng([seed, number])
    for site in "ab":
        moved: dict[str, object] = {
            name: bfloat16(value.values + random.normal(size=value.values.shape))
            if isinstance(value, BFloat16)
            else jolted(value, random)
            for name, value in model.items()
        }
        federation.update(site, moved)
    made = await federation.round(reducer)
    return {
        name: bfloat16(np.asarray(value, np.float32)) if isinstance(model[name], BFloat16) else value
        for name, value in made.items()
    }


def begun(dtype: str = "float32") -> dict[str, Array]:
    """A first model, of more than a piece."""
    random = np.random.default_rng(7)
    return {"w": random.normal(size=(300, 250)).astype(dtype), "v": random.normal(size=9).astype(dtype)}


def pseudo_gradients(models: list[dict[str, Any]], seed: int) -> list[dict[str, Doubles]]:
    """Of each round, from the models that the rounds began with: the mean of what the two sites added."""
    found: list[dict[str, Doubles]] = []
    for number, model in enumerate(models[:-1], start=1):
        random = np.random.default_rng([seed, number])
        sites = [
            {name: np.asarray(jolted(value, random), np.float64) for name, value in model.items()}
            for _ in "ab"
        ]
        found.append({name: (sites[0][name] + sites[1][name]) / 2 - model[name] for name in model})
    return found


def by_torch(optimizer: Callable[[list[torch.Tensor]], torch.optim.Optimizer]) -> Callable[..., Doubles]:
    """The last model, by an optimiser of torch whose gradients are −Δ."""

    def run(start: Array, changes: list[Doubles], prepare: Callable[..., None] = lambda *_: None) -> Doubles:
        parameter = torch.tensor(np.asarray(start, np.float64), requires_grad=True)
        rule = optimizer([parameter])
        for step, change in enumerate(changes, start=1):
            prepare(rule, parameter, step)
            parameter.grad = torch.tensor(-change)
            rule.step()
        return parameter.detach().numpy()

    return run


def as_paper(rule: torch.optim.Optimizer, parameter: torch.Tensor, step: int) -> None:
    """Torch's Adam without its correction of the bias, and with v beginning as τ² (lr 0.1, τ 0.05)."""
    if step == 1:
        rule.state[parameter] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.full_like(parameter, 0.05**2),
        }
    root = (1 - 0.99**step) ** 0.5
    rule.param_groups[0].update(lr=0.1 * (1 - 0.9**step) / root * root, eps=0.05 / root)
    rule.param_groups[0]["lr"] = 0.1 * (1 - 0.9**step) / root


def yogi(start: Array, changes: list[Doubles], lr: float, tau: float) -> Doubles:
    """Algorithm 2 of Reddi et al. 2021, in numpy."""
    x, m, v = np.asarray(start, np.float64), np.zeros(start.shape), np.full(start.shape, tau**2)
    for change in changes:
        m = 0.9 * m + 0.1 * change
        v = v - 0.01 * change**2 * np.sign(v - change**2)
        x = x + lr * m / (np.sqrt(v) + tau)
    return x


ORACLES: dict[str, Callable[[Array, list[Doubles]], Doubles]] = {
    "fedavgm:lr=0.7,momentum=0.6": by_torch(lambda p: torch.optim.SGD(p, 0.7, momentum=0.6)),
    "fedavgm:0.7,momentum=0.6,nesterov=true": by_torch(
        lambda p: torch.optim.SGD(p, 0.7, momentum=0.6, nesterov=True)
    ),
    "fedadagrad:lr=0.1,tau=0.05": by_torch(
        lambda p: torch.optim.Adagrad(p, 0.1, initial_accumulator_value=0.05**2, eps=0.05)
    ),
    "fedadam:lr=0.1,tau=0.05": lambda start, changes: by_torch(torch.optim.Adam)(start, changes, adam),
    "fedyogi:lr=0.1,tau=0.05": lambda start, changes: yogi(start, changes, 0.1, 0.05),
}


def adam(rule: torch.optim.Optimizer, parameter: torch.Tensor, step: int) -> None:
    """Prepares a step of torch's Adam so that it is that of the paper."""
    rule.param_groups[0]["betas"] = (0.9, 0.99)
    as_paper(rule, parameter, step)


@pytest.mark.parametrize("text", list(ORACLES))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
async def test_rounds_move_the_model_as_the_published_rule_does(
    tmp_path: Path, text: str, dtype: str
) -> None:
    """Against torch where it has the same rule, over several rounds, with a new process for each."""
    models = [begun(dtype)]
    for number in range(1, ROUNDS + 1):
        federation = Federation(number)
        federation.model(number, models[-1])
        reducer = made_of(tmp_path, text, federation)
        models.append(await one_round(reducer, number, models[-1], seed=1))
        await reducer.commit(number + 1)
        await reducer.commit(number + 1)
        await reducer.aclose()
        assert [path.name for path in tmp_path.iterdir()] == [name_of(number + 1)]
    changes = pseudo_gradients(models, seed=1)
    tolerance = 2e-4 if dtype == "float32" else 1e-10
    for name in "wv":
        wanted = ORACLES[text](models[0][name], [change[name] for change in changes])
        assert models[-1][name].dtype == np.dtype(dtype)
        assert np.allclose(models[-1][name], wanted, rtol=tolerance, atol=tolerance)


async def test_momentum_of_zero_and_a_rate_of_one_are_the_combined_model(tmp_path: Path) -> None:
    """So the pseudo-gradient is right for every dtype; what is no float passes by."""
    random = np.random.default_rng(3)
    federation = Federation(1)
    start = random.normal(size=999).astype(np.float32)
    model = {"f": start, "h": bfloat16(random.normal(size=99))}
    federation.model(1, model | {"n": np.arange(5), "b": np.array([True, False]), "s": 1})
    for site in "abc":
        moved = {"f": start * np.float32(1.5), "h": bfloat16(random.normal(size=99))}
        federation.update(site, moved | {"n": np.arange(5) * 2, "b": np.array([False, False]), "s": 2})
    plain = made_of(tmp_path, "median", federation)
    wanted = await federation.round(plain)
    reducer = made_of(tmp_path, "median | fedavgm:1,momentum=0", federation)
    made = await federation.round(reducer)
    assert np.allclose(made["f"], wanted["f"], rtol=1e-6)
    assert all(np.array_equal(made[name], wanted[name]) for name in "hnbs")
    await plain.aclose()
    await reducer.aclose()


async def test_tensors_in_no_update_stay_and_so_does_what_is_remembered(tmp_path: Path) -> None:
    """A partial round neither moves them by old momentum nor forgets it."""
    start = {"w": np.zeros(500, np.float32), "v": np.zeros(500, np.float32)}
    reducer = None
    model = start
    for number, names in ((1, "wv"), (2, "v"), (3, "wv")):
        federation = Federation(number)
        federation.model(number, model)
        federation.update("a", {name: model[name] + np.float32(1) for name in names})
        reducer = reducer or made_of(tmp_path, "fedavgm:momentum=0.5", federation)
        made = await federation.round(reducer)
        await reducer.commit(number + 1)
        if number == 2:
            assert np.array_equal(made["w"], model["w"])
        model = {name: np.asarray(made[name], np.float32) for name in "wv"}
    assert np.allclose(model["w"], 1 + 1.5)
    assert np.allclose(model["v"], 1 + 1.5 + 1.75)
    assert reducer is not None
    await reducer.aclose()


async def test_a_round_that_is_closed_again_gives_the_same_bits(tmp_path: Path) -> None:
    """Killed after closing and before the model was sealed, or after that and before the commit."""
    text = "median | fedadam:lr=0.1"
    federation = Federation(1)
    federation.model(1, begun())
    first = made_of(tmp_path, text, federation)
    second_model = await one_round(first, 1, begun(), seed=4)
    await first.commit(2)
    third_model = await one_round(first, 2, second_model, seed=4)  # and then nothing: killed
    await first.aclose()
    (tmp_path / "optimizer-3.state.77-abc.part").write_bytes(b"torn")
    again = made_of(tmp_path, text, federation)
    for _ in range(2):
        repeated = await one_round(again, 2, second_model, seed=4)
        assert all(np.array_equal(repeated[name], third_model[name]) for name in "wv")
    await again.aclose()
    after = made_of(tmp_path, text, federation)  # model 3 was sealed; the commit never came
    fourth = await one_round(after, 3, third_model, seed=4)
    await after.commit(4)
    assert [path.name for path in tmp_path.iterdir()] == [name_of(4)]
    await after.aclose()
    other = tmp_path / "other"
    other.mkdir()
    straight = made_of(other, text, federation)
    model = begun()
    for number in (1, 2, 3):
        model = await one_round(straight, number, model, seed=4)
        await straight.commit(number + 1)
    assert all(np.array_equal(model[name], fourth[name]) for name in "wv")
    await straight.aclose()


async def test_state_that_cannot_be_used_says_how_to_go_on(tmp_path: Path) -> None:
    """Missing, cut, changed by a bit, of another optimiser or another model; ``start`` begins afresh."""
    federation = Federation(1)
    federation.model(1, begun())
    reducer = made_of(tmp_path, "fedadam", federation)
    second = await one_round(reducer, 1, begun(), seed=2)
    await reducer.aclose()
    path = tmp_path / name_of(2)
    whole = path.read_bytes()

    async def refused(text: str, why: str, model: dict[str, Any] = second) -> None:
        other = Federation(2)
        other.model(2, model)
        broken = made_of(tmp_path, text, other)
        with pytest.raises(StoreDamaged, match=f"{why}(?s:.)*start=2"):
            await one_round(broken, 2, model, seed=2)
        await broken.aclose()

    for data, why in (
        (whole[: len(whole) // 2], "too short"),
        (whole[:-1], "does not end as such a file does"),
        (whole[:-40] + b"?" + whole[-39:], "description does not match"),
        (bytes([whole[0] ^ 1]) + whole[1:], "values of 'w' do not match"),
    ):
        path.write_bytes(data)
        await refused("fedadam", why)
    path.write_bytes(whole)
    await refused("fedyogi", "optimizer is 'fedadam', not 'fedyogi'")
    await refused("fedadam", "layout|of another model", {"other": np.zeros(4, np.float32)})
    path.unlink()
    await refused("fedadam", "it is not there")
    fresh = made_of(tmp_path, "fedadam:start=2", federation)
    third = await one_round(fresh, 2, second, seed=2)
    await fresh.commit(3)
    await one_round(fresh, 3, third, seed=2)
    await fresh.aclose()


async def test_an_interrupted_step_is_begun_again_with_all_updates(tmp_path: Path) -> None:
    """The round's model goes away while it is read: the combined values are half replaced, and of no use."""
    federation = Federation(1)
    federation.model(1, begun())
    federation.update("a", {name: value * 2 for name, value in begun().items()})
    reducer = made_of(tmp_path, "fedavgm", federation)
    await reducer.begin(1, federation.find_base)
    await reducer.reset()
    await reducer.add(*federation.updates[0], lambda _: None)
    federation.models[1].gone = True
    with pytest.raises(FoldingInterrupted):
        await reducer.close(federation.models[1], federation.find_base)
    assert reducer.dirty
    assert not list(tmp_path.iterdir())
    federation.models[1].gone = False
    made = await federation.round(reducer)
    assert not reducer.dirty
    assert np.allclose(made["w"], begun()["w"] * 2, rtol=1e-6)
    await reducer.aclose()


async def test_a_federation_that_diverges_is_told_so(tmp_path: Path) -> None:
    """Instead of a model of infinities."""
    federation = Federation(1)
    federation.model(1, {"w": np.ones(10, np.float32)})
    federation.update("a", {"w": np.full(10, 1e38, np.float32)})
    reducer = made_of(tmp_path, "fedavgm:lr=1e9", federation)
    with pytest.raises(JobError, match="diverges; use a smaller learning rate"):
        await federation.round(reducer)
    await reducer.aclose()


CHILD = """
import asyncio, sys
from pathlib import Path
import numpy as np
sys.path.append(sys.argv[3])
from modelling.federated import Federation
from tensorbus.aggregator.reducers.base import Workspace
from tensorbus.aggregator.reducers.spec import ReducerSpec

async def main(folder, last):
    while True:
        newest = max([int(path.stem) for path in folder.glob("*.npy")], default=1)
        if newest == last:
            return
        model = np.load(folder / f"{newest}.npy") if newest > 1 else np.arange(70_000, dtype=np.float32)
        federation = Federation(newest)
        federation.model(newest, {"w": model})
        federation.update("a", {"w": model * np.float32(1 + 1 / newest)})
        reducer = ReducerSpec.parse("fedadam:lr=0.1").build(federation.layout, Workspace(lambda: folder))
        await reducer.commit(newest)
        made = await federation.round(reducer)
        with (folder / "part").open("wb") as file:
            np.save(file, made["w"])
        (folder / "part").rename(folder / f"{newest + 1}.npy")
        await reducer.commit(newest + 1)
        await reducer.aclose()

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


def test_kill_9_at_any_instant_changes_nothing(tmp_path: Path) -> None:
    """A process that is killed again and again makes the same model as one that never was, bit for bit."""
    last, kills = 16, 0
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    random = np.random.default_rng(11)
    for folder in killed, straight:
        folder.mkdir()
        command = [sys.executable, "-c", CHILD, folder, str(last), Path(__file__).parents[1] / "model"]
        while True:
            sealed = len(list(folder.glob("*.npy")))
            child = subprocess.Popen(command)
            if folder == straight:
                assert child.wait(120) == 0
                break
            # When it has sealed a model or a few more, at some instant of the round that it is in.
            target = min(last - 1, sealed + int(random.integers(1, 4)))
            while child.poll() is None and len(list(folder.glob("*.npy"))) < target:
                time.sleep(0.001)
            time.sleep(float(random.random()) * 0.01)
            child.kill()
            kills += 1
            if child.wait() == 0 or (folder / f"{last}.npy").exists():
                break
            assert child.returncode == -signal.SIGKILL
    assert kills >= 3
    assert (killed / f"{last}.npy").read_bytes() == (straight / f"{last}.npy").read_bytes()
    assert (killed / name_of(last)).read_bytes() == (straight / name_of(last)).read_bytes()
