"""Promises of adapters: the folder that PEFT writes goes in, and one that PEFT loads comes out."""

# transformers, torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportMissingTypeArgument=false

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tensorbus.aggregator.job import JobSpec
from tensorbus.aggregator.participant import Participant
from tensorbus.aggregator.worker import Aggregator
from tensorbus.bus.client import Client
from tensorbus.bus.testing import running_broker
from tensorbus.codecs.pipeline import Pipeline
from tensorbus.errors import LimitExceeded, UnsupportedContainer
from tensorbus.streaming.adapter_folders import AdapterSource

TOKENS = torch.arange(24).reshape(2, 12)
FILES = ["adapter_config.json", "adapter_model.safetensors"]


@pytest.fixture(autouse=True)
def one_thread() -> None:  # pyright: ignore[reportUnusedFunction]
    """The machine is shared."""
    torch.set_num_threads(1)


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A real broker."""
    async with running_broker(tmp_path / "data") as address:
        yield address


@pytest.fixture
async def bus(url: str) -> AsyncIterator[Client]:
    """A client of it."""
    async with Client(url) as client:
        yield client


def pretrained() -> LlamaForCausalLM:
    """What every site has: always the same."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **cast("Any", sizes)))


def with_adapter(seed: int = 1) -> peft.PeftModel:
    """A new adapter on it, which changes nothing yet."""
    model = pretrained()
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return cast("peft.PeftModel", peft.get_peft_model(model, config))


def step(model: Any, tokens: torch.Tensor = TOKENS) -> None:
    """One step of training."""
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.05)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()


def logits(model: Any) -> torch.Tensor:
    """What the model says."""
    model.eval()
    with torch.no_grad():
        return cast("torch.Tensor", model(input_ids=TOKENS).logits)


def loaded(folder: Path) -> peft.PeftModel:
    """As a user loads it."""
    return peft.PeftModel.from_pretrained(pretrained(), folder)


def _json(codec: str) -> dict[str, object]:
    return Pipeline.parse(codec).to_json()


def written(folder: Path, model: Any) -> Path:
    """As a user writes it."""
    model.save_pretrained(folder)
    return folder


async def test_a_folder_arrives_as_a_folder_that_peft_loads(bus: Client, tmp_path: Path) -> None:
    """The same tensors, the same configuration, the same outputs."""
    model = with_adapter()
    step(model)
    sent = written(tmp_path / "sent", model)
    receipt = await bus.publish("adapters.demo", str(sent))
    message = await bus.fetch(receipt.id)
    await message.save(tmp_path / "got")
    assert sorted(file.name for file in (tmp_path / "got").iterdir()) == FILES
    assert (tmp_path / "got" / FILES[0]).read_bytes() == (sent / FILES[0]).read_bytes()
    torch.testing.assert_close(logits(loaded(tmp_path / "got")), logits(model), rtol=0, atol=0)
    assert not torch.equal(logits(model), logits(pretrained()))
    names = cast("dict[str, torch.Tensor]", await message.load())
    assert set(names) == set(peft.get_peft_model_state_dict(model))


async def test_an_adapter_is_quantised_as_any_model(bus: Client, tmp_path: Path) -> None:
    """bf16 on the wire, fp32 in the folder; in a folder that is there, other files stay."""
    model = with_adapter()
    step(model)
    sent = written(tmp_path / "sent", model)
    receipt = await bus.publish("adapters.demo", sent, codec="bf16")
    assert receipt.bytes_on_wire < 0.5 * receipt.bytes_original + 8000
    got = written(tmp_path / "got", with_adapter(seed=5))
    (got / "notes.txt").write_text("mine")
    await (await bus.fetch(receipt.id)).save(f"{got}/")
    assert (got / "notes.txt").read_text() == "mine"
    torch.testing.assert_close(logits(loaded(got)), logits(model), rtol=0.05, atol=0.05)


async def test_one_file_can_be_had_too_and_becomes_a_folder_again(bus: Client, tmp_path: Path) -> None:
    """Whatever asks for a .safetensors file gets one; nothing is lost in it."""
    sent = written(tmp_path / "sent", with_adapter())
    message = await bus.fetch((await bus.publish("adapters.demo", sent)).id)
    await message.save(tmp_path / "one.safetensors")
    again = await bus.fetch((await bus.publish("adapters.demo", tmp_path / "one.safetensors")).id)
    await again.save(tmp_path / "got")
    torch.testing.assert_close(logits(loaded(tmp_path / "got")), logits(loaded(sent)), rtol=0, atol=0)


async def test_other_folders_are_refused(bus: Client, tmp_path: Path) -> None:
    """With what is missing; and a pickle is not read."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UnsupportedContainer, match=r"no adapter_config\.json"):
        await bus.publish("adapters.demo", folder)
    (folder / FILES[0]).write_text("{}")
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(UnsupportedContainer, match="is a pickle, which is never read"):
        await bus.publish("adapters.demo", folder)
    for text, error in (
        ("[]", UnsupportedContainer),
        ("{", UnsupportedContainer),
        ("x" * 99_999, LimitExceeded),
    ):
        broken = written(tmp_path / "broken", with_adapter())
        (broken / FILES[0]).write_text(text)
        with pytest.raises(error, match=r"adapter_config\.json"):
            AdapterSource(broken)
    plain = await bus.publish("models.demo", {"w": np.zeros(3, np.float32)})
    for path in (str(folder), f"{tmp_path}/none/"):
        with pytest.raises(UnsupportedContainer, match="no PEFT adapter"):
            await (await bus.fetch(plain.id)).save(path)
    assert not (tmp_path / "none").exists()


async def test_a_folder_that_fails_half_way_leaves_nothing(bus: Client, tmp_path: Path) -> None:
    """Here what arrives cannot be put into a file: it is announced as an adapter, and holds a text."""
    from tensorbus.codecs import registry
    from tensorbus.streaming.sources import ItemSource

    items = registry.serializer("numpy").items({"w": np.zeros(3, np.float32), "note": "text"})
    receipt = await bus.publish("adapters.demo", ItemSource("numpy", items, {FILES[0]: "{}"}))
    with pytest.raises(UnsupportedContainer, match="note"):
        await (await bus.fetch(receipt.id)).save(tmp_path / "got")
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize("codec", ["none", "delta | int8"])
async def test_two_sites_federate_an_adapter(url: str, bus: Client, tmp_path: Path, codec: str) -> None:
    """From a folder, by way of folders, to a folder: the configuration goes from model to model."""
    init = written(tmp_path / "init", with_adapter())
    spec = JobSpec(job="sft", sites=2, rounds=2, quorum=2, deadline=60, up=_json(codec), down=_json(codec))

    async def site(name: str, tokens: torch.Tensor, examples: int) -> None:
        async with Client(url, bases=[init] if "delta" in codec else []) as mine:
            participant = Participant(mine, job="sft", site=name)
            async for task in participant.rounds():
                folder = tmp_path / name / f"round-{task.round}"
                await task.save(folder)
                model = peft.PeftModel.from_pretrained(pretrained(), folder, is_trainable=True)
                step(model, tokens)
                await task.submit(written(tmp_path / name / f"trained-{task.round}", model), examples)
            await participant.final.save(tmp_path / name / "final")

    async with asyncio.timeout(60):
        aggregator = Aggregator(bus, spec, init=init, listener=lambda _: None)
        await asyncio.gather(aggregator.run(), site("a", TOKENS, 1), site("b", 63 - TOKENS, 3))
    finals = [loaded(tmp_path / name / "final") for name in "ab"]
    torch.testing.assert_close(logits(finals[0]), logits(finals[1]), rtol=0, atol=0)
    config = json.loads((tmp_path / "a" / "final" / FILES[0]).read_text())
    assert config["r"] == 4
    mean = {
        name: (one + 3 * other) / 4
        for (name, one), other in zip(
            peft.get_peft_model_state_dict(loaded(tmp_path / "a" / "trained-2")).items(),
            peft.get_peft_model_state_dict(loaded(tmp_path / "b" / "trained-2")).values(),
            strict=True,
        )
    }
    for name, value in peft.get_peft_model_state_dict(finals[0]).items():
        torch.testing.assert_close(value, mean[name], rtol=1e-5, atol=1e-6 if codec == "none" else 2e-3)


def test_the_command_line_takes_folders_and_gives_them(tmp_path: Path) -> None:
    """publish FOLDER, fetch -o FOLDER/."""
    from click.testing import CliRunner

    from tensorbus.bus.client.portal import Portal
    from tensorbus.cli.main import cli

    model = with_adapter()
    step(model)
    sent, got = written(tmp_path / "sent", model), tmp_path / "got"
    broker = running_broker(tmp_path / "data")
    with_broker = Portal()
    try:
        url = with_broker.call(broker.__aenter__)  # pyright: ignore[reportArgumentType]
        run = CliRunner().invoke(cli, ["publish", "adapters.demo", str(sent), "--json", "--url", url])
        assert run.exit_code == 0, run.output
        receipt = json.loads(run.stdout)
        run = CliRunner().invoke(cli, ["fetch", receipt["id"], "-o", f"{got}/", "--json", "--url", url])
        assert run.exit_code == 0, run.output
        assert json.loads(run.stdout)["bytes"] == sum(file.stat().st_size for file in got.iterdir())
        with_broker.call(lambda: broker.__aexit__(None, None, None))  # pyright: ignore[reportArgumentType]
    finally:
        with_broker.close()
    torch.testing.assert_close(logits(loaded(got)), logits(model), rtol=0, atol=0)
