"""Promises of the Trainer's callback: an unchanged script is a site; one alone trains as without it."""

# transformers, torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportMissingTypeArgument=false

from __future__ import annotations

import asyncio
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tensorbus.aggregator.events import Event
from tensorbus.aggregator.job import JobSpec
from tensorbus.aggregator.models import GlobalModel
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client, ClientSettings
from tensorbus.bus.client.portal import Portal
from tensorbus.bus.client.sync import SyncClient
from tensorbus.bus.testing import running_broker
from tensorbus.errors import (
    BrokerUnavailable,
    InvalidName,
    InvalidRequest,
    JobCancelled,
    JobError,
    ManifestMismatch,
)
from tensorbus.integrations.training_run import steps_of
from tensorbus.integrations.transformers import FederatedCallback

SCRIPT = Path(__file__).with_name("training_script.py")
script: dict[str, Any] = runpy.run_path(str(SCRIPT))
new_model, new_trainer = script["new_model"], script["new_trainer"]
STEPS, EXAMPLES = 8, 22
"""Of the script: optimizer steps in all, and examples an epoch."""

Tensors = dict[str, torch.Tensor]


class Federation:
    """A real broker, and an aggregator, in a thread of their own."""

    def __init__(self, folder: Path) -> None:
        self.portal = Portal()
        self.folder = folder
        self.events: list[Event] = []
        self._broker = AsyncExitStack()
        self.url = self.portal.call(lambda: self._broker.enter_async_context(running_broker(folder / "data")))

    def aggregate(self, init: Path, **change: Any) -> Future[GlobalModel]:
        """Run the job ``sft``, of one site and two rounds."""
        given: dict[str, Any] = {"sites": 1, "rounds": 2, "quorum": 1, "deadline": 60, **change}

        async def work() -> GlobalModel:
            async with Client(self.url, settings=ClientSettings(retry_for=5)) as bus:
                spec = JobSpec(job="sft", **given)
                return await Aggregator(bus, spec, init=init, listener=self.events.append).run()

        return asyncio.run_coroutine_threadsafe(work(), self.portal.loop)

    def told(self, name: str) -> list[Event]:
        """The events of this name."""
        return [event for event in self.events if event.name == name]

    def stop(self) -> None:
        """The broker goes away."""
        self.portal.call(self._broker.aclose)

    def close(self) -> None:
        """And all of it."""
        self.stop()
        self.portal.close()


@pytest.fixture
def federation(tmp_path: Path) -> Generator[Federation]:
    """One that ends with the test."""
    torch.set_num_threads(1)
    made = Federation(tmp_path)
    yield made
    made.close()


def saved(folder: Path, model: Any) -> Path:
    """The file of a model as transformers writes it: tied weights once."""
    model.save_pretrained(folder)
    return folder / "model.safetensors"


def values(model: Any) -> Tensors:
    """A copy."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trained(folder: Path, model: Any, *callbacks: TrainerCallback, **change: Any) -> Tensors:
    """The model after the script's training."""
    trainer = new_trainer(folder, model, **change)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train()
    return values(model)


def assert_same(one: Tensors, other: Tensors, tolerance: float = 0.0) -> None:
    """Name by name."""
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance, msg=name)


class Watching(TrainerCallback):
    """Notes what the script sees, and calls ``do`` after each step."""

    def __init__(self, do: Callable[[int], None] = lambda step: None) -> None:
        self.steps: list[int] = []
        self._do = do

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(state.global_step)
        self._do(state.global_step)


def test_an_unchanged_script_trains_in_a_federation(federation: Federation, tmp_path: Path) -> None:
    """Two sites, each the script as a process; both end with the federation's model."""
    start = new_model()
    running = federation.aggregate(saved(tmp_path / "init", start), sites=2, quorum=2)
    environment = {
        **os.environ,
        "TENSORBUS_URL": federation.url,
        "TENSORBUS_JOB": "sft",
        "HF_HUB_OFFLINE": "1",
    }
    module = [sys.executable, "-m", "tensorbus.integrations.transformers"]
    sites = [
        subprocess.Popen(
            [*module, "--site", name, str(SCRIPT), str(tmp_path / name), "--seed", seed],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, seed in (("a", "1"), ("b", "2"))
    ]
    for site in sites:
        output, _ = site.communicate(timeout=120)
        assert site.returncode == 0, output
    assert running.result(60).final
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert_same(a, b)
    folded = federation.told("folded")
    assert [(event.fields["round"], event.fields["num_examples"]) for event in folded] == [
        (1, EXAMPLES), (1, EXAMPLES), (2, EXAMPLES), (2, EXAMPLES)
    ]  # fmt: skip
    first, last = (
        cast("dict[str, float]", event.fields["metrics"])["loss"] for event in federation.told("closing")
    )
    assert 3 < last < first < 5
    assert not federation.told("closing")[1].fields["left"]
    alone = trained(tmp_path / "alone", new_model())
    assert any(not torch.equal(alone[name], tensor) for name, tensor in a.items())


def test_one_site_alone_trains_as_without_a_federation(federation: Federation, tmp_path: Path) -> None:
    """But for the mean's rounding: batches, accumulated gradients, evaluation and optimizer are its own."""
    plain = trained(tmp_path / "plain", new_model())
    running = federation.aggregate(saved(tmp_path / "init", new_model()), rounds=3)
    other = new_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)  # the model comes from the federation
    seen = Watching()
    result = trained(tmp_path / "site", other, FederatedCallback(federation.url, job="sft", site="a"), seen)
    assert_same(result, plain, 1e-5)
    assert seen.steps == [*range(1, STEPS + 1)]
    assert running.result(30).round == 4
    # 8 steps in 3 rounds: 2, 3 and 3, of 6 examples, the last of an epoch of 4.
    assert [event.fields["num_examples"] for event in federation.told("folded")] == [12, 16, 16]
    assert other.lm_head.weight.data_ptr() == other.model.embed_tokens.weight.data_ptr()


def test_rounds_share_the_steps_out() -> None:
    """All of them, evenly; never none."""
    assert [steps_of(number, 3, 8) for number in (1, 2, 3)] == [2, 3, 3]
    assert sum(steps_of(number, 7, 1000) for number in range(1, 8)) == 1000
    assert [steps_of(number, 4, 2) for number in (1, 2, 3, 4)] == [1, 1, 1, 1]


def test_the_jobs_end_is_the_trainings_end(federation: Federation, tmp_path: Path) -> None:
    """Two rounds of one step, though the script would do eight; a second training adds nothing."""
    running = federation.aggregate(saved(tmp_path / "init", new_model()))
    model, seen = new_model(), Watching()
    callback = FederatedCallback(federation.url, job="sft", site="a", steps=1, reset_optimizer=True)
    trainer = new_trainer(tmp_path / "site", model)
    for one in (callback, seen):
        trainer.add_callback(one)
    trainer.train()
    final = values(model)
    assert seen.steps == [1, 2]
    with SyncClient(federation.url) as bus:
        assert_same(final, {**final, **bus.fetch(running.result(30).info.id).load()})  # type: ignore[dict-item]
    trainer.train()
    assert_same(values(model), final)
    # Its moments were forgotten: no parameter has seen more than one step since.
    assert all(int(one["step"]) <= 1 for one in trainer.optimizer.state.values())


def test_a_training_that_ends_first_leaves_the_job(federation: Federation, tmp_path: Path) -> None:
    """The round goes on without the site."""
    running = federation.aggregate(saved(tmp_path / "init", new_model()), sites=1, quorum="50%", rounds=3)
    callback = FederatedCallback(federation.url, job="sft", site="a", steps=3)
    trained(tmp_path / "site", new_model(), callback)
    assert [event.fields["num_examples"] for event in federation.told("folded")] == [18, 16]
    assert federation.told("left") or federation.told("declined")
    assert not running.done()
    running.cancel()


def test_bf16_models_are_trained_in_bf16(federation: Federation, tmp_path: Path) -> None:
    """And untied ones have a head of their own."""
    start = new_model(tied=False, dtype=torch.bfloat16)
    running = federation.aggregate(saved(tmp_path / "init", start))
    plain = trained(tmp_path / "plain", new_model(tied=False, dtype=torch.bfloat16))
    callback = FederatedCallback(federation.url, job="sft", site="a")
    result = trained(tmp_path / "site", new_model(tied=False, dtype=torch.bfloat16), callback)
    assert_same(result, plain)
    assert {tensor.dtype for tensor in result.values()} == {torch.bfloat16}
    assert running.result(30).info.original_bytes == 2 * sum(one.numel() for one in result.values())


def with_adapter(**change: Any) -> Any:
    """A LoRA on the script's model."""
    model = new_model(tied=False)
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **change)
    return peft.get_peft_model(model, config)


def test_of_a_peft_model_only_the_adapter_travels(federation: Federation, tmp_path: Path) -> None:
    """With a head that is trained as a whole; what is fetched at the end is a folder again."""
    start = with_adapter(modules_to_save=["lm_head"])
    start.save_pretrained(tmp_path / "init")
    running = federation.aggregate(tmp_path / "init")
    plain = trained(tmp_path / "plain", with_adapter(modules_to_save=["lm_head"]))
    callback = FederatedCallback(federation.url, job="sft", site="a")
    result = trained(tmp_path / "site", with_adapter(modules_to_save=["lm_head"]), callback)
    assert_same(result, plain, 1e-5)
    with SyncClient(federation.url) as bus:
        message = bus.fetch(running.result(30).info.id)
        assert len(message.manifest) == 2 * 2 + 1
        message.save(tmp_path / "final")
    got = peft.PeftModel.from_pretrained(new_model(tied=False), tmp_path / "final")
    final = peft.get_peft_model_state_dict(got)
    assert_same({name: result[_long(name)] for name in final}, final)


def _long(name: str) -> str:
    """The name within the PeftModel."""
    for part in ("lora_A", "lora_B"):
        name = name.replace(f".{part}.weight", f".{part}.default.weight")
    return name.replace("lm_head.weight", "lm_head.modules_to_save.default.weight")


def test_prompts_which_peft_keeps_elsewhere_travel_too(federation: Federation, tmp_path: Path) -> None:
    """Prompt tuning: what PEFT would save is no part of the model's own memory."""

    def tuned() -> Any:
        torch.manual_seed(2)
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)  # type: ignore[arg-type]
        return peft.get_peft_model(new_model(), config)

    tuned().save_pretrained(tmp_path / "init")
    running = federation.aggregate(tmp_path / "init")
    plain = trained(tmp_path / "plain", tuned())
    other = tuned()
    with torch.no_grad():
        other.prompt_encoder["default"].embedding.weight.zero_()
    result = trained(tmp_path / "site", other, FederatedCallback(federation.url, job="sft", site="a"))
    assert_same(result, plain, 1e-5)
    assert running.result(30).final


def test_a_model_of_another_kind_is_told_apart(federation: Federation, tmp_path: Path) -> None:
    """Before anything is overwritten, with a hint for who federates an adapter."""
    running = federation.aggregate(saved(tmp_path / "init", new_model(tied=False)))
    callback = FederatedCallback(federation.url, job="sft", site="a")
    model = with_adapter()
    before = values(model)
    with pytest.raises(ManifestMismatch, match=r"start the job from a folder that save_pretrained\(\) wrote"):
        trained(tmp_path / "site", model, callback)
    assert_same(values(model), before)
    running.cancel()


def test_a_cancelled_job_ends_the_training(federation: Federation, tmp_path: Path) -> None:
    """With JobCancelled, in the midst of it."""
    from tensorbus.aggregator.control import give_order

    running = federation.aggregate(saved(tmp_path / "init", new_model()))

    async def cancel() -> None:
        async with Client(federation.url) as bus:
            await give_order(bus, "sft", "cancel")

    def cancelled(step: int) -> None:
        if step == 2:
            federation.portal.call(cancel)
            with pytest.raises(JobCancelled):
                running.result(30)

    callback = FederatedCallback(federation.url, job="sft", site="a")
    seen = Watching(cancelled)
    with pytest.raises(JobCancelled, match="was cancelled"):
        trained(tmp_path / "site", new_model(), seen, callback)
    assert seen.steps == [1, 2, 3, 4]


def test_a_broker_that_goes_away_ends_the_training(federation: Federation, tmp_path: Path) -> None:
    """With BrokerUnavailable, once the client's patience is over."""
    running = federation.aggregate(saved(tmp_path / "init", new_model()))
    with SyncClient(federation.url, settings=ClientSettings(retry_for=0.5)) as bus:
        callback = FederatedCallback(bus, job="sft", site="a")
        seen = Watching(lambda step: federation.stop() if step == 2 else None)
        with pytest.raises(BrokerUnavailable):
            trained(tmp_path / "site", new_model(), seen, callback)
        assert seen.steps[-1] == STEPS // 2
    running.cancel()


def test_arguments_are_checked_at_once(federation: Federation) -> None:
    """Not when the training begins."""
    with pytest.raises(InvalidName):
        FederatedCallback(federation.url, job="no job", site="a")
    with pytest.raises(InvalidRequest, match="0 steps"):
        FederatedCallback(federation.url, job="sft", site="a", steps=0)


def test_several_processes_are_refused(federation: Federation, tmp_path: Path) -> None:
    """Each would be the site."""
    trainer = new_trainer(tmp_path / "site", new_model())
    callback = FederatedCallback(federation.url, job="sft", site="a")
    trainer.args.__dict__["distributed_state"].num_processes = 2
    try:
        with pytest.raises(JobError, match="in 2 processes"):
            callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)
    finally:
        trainer.args.__dict__["distributed_state"].num_processes = 1


def test_without_the_package_the_error_says_what_to_install() -> None:
    """For each of the frameworks."""
    code = (
        "import sys; sys.modules['{0}'] = None\n"
        "from tensorbus.errors import MissingPackage\n"
        "try:\n    import tensorbus.integrations.{0}\n"
        "except MissingPackage as error:\n    print(error)"
    )
    for extra in ("transformers", "flwr", "nvflare"):
        run = subprocess.run(
            [sys.executable, "-c", code.format(extra).replace("integrations.flwr", "integrations.flower")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert f"pip install 'tensorbus[{extra.replace('flwr', 'flower')}]'" in run.stdout
