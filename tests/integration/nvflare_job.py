"""A job of NVIDIA FLARE as a folder of configuration files, run by FLARE's simulator.

python nvflare_job.py FOLDER CODEC
"""

# nvflare is not typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

ROUNDS = 2
FILTERS = "tensorbus.integrations.nvflare."


def initial() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The first model."""
    return np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)


def write(folder: Path, codec: str) -> Path:
    """The job's folder."""
    encoder = {"path": FILTERS + "TensorbusEncoder", "args": {"codec": codec, "keep": ["*norm*"]}}
    decoder = {"path": FILTERS + "TensorbusDecoder", "args": {}}

    def filters(first: object, then: object) -> dict[str, object]:
        return {
            "task_data_filters": [{"tasks": ["train"], "filters": [first]}],
            "task_result_filters": [{"tasks": ["train"], "filters": [then]}],
        }

    common = "nvflare.app_common."
    server = {
        "format_version": 2,
        **filters(encoder, decoder),
        "components": [
            {
                "id": "persistor",
                "path": common + "np.np_model_persistor.NPModelPersistor",
                "args": {"model": initial().tolist()},
            },
            {
                "id": "generator",
                "path": common
                + "shareablegenerators.full_model_shareable_generator.FullModelShareableGenerator",
                "args": {},
            },
            {
                "id": "aggregator",
                "path": common + "aggregators.intime_accumulate_model_aggregator."
                "InTimeAccumulateWeightedAggregator",
                "args": {"expected_data_kind": "WEIGHTS"},
            },
        ],
        "workflows": [
            {
                "id": "rounds",
                "path": common + "workflows.scatter_and_gather.ScatterAndGather",
                "args": {
                    "min_clients": 2,
                    "num_rounds": ROUNDS,
                    "wait_time_after_min_received": 0,
                    "aggregator_id": "aggregator",
                    "persistor_id": "persistor",
                    "shareable_generator_id": "generator",
                    "train_task_name": "train",
                },
            }
        ],
    }
    trainer = {"path": common + "np.np_trainer.NPTrainer", "args": {"delta": 1}}
    client = {
        "format_version": 2,
        **filters(decoder, encoder),
        "executors": [{"tasks": ["train"], "executor": trainer}],
        "components": [],
    }
    config = folder / "app" / "config"
    config.mkdir(parents=True)
    # A site allows the classes that it lists, and jobs that bring code of their own, as this one does.
    (folder / "app" / "custom").mkdir()
    (folder / "app" / "custom" / "own.py").write_text("")
    (config / "config_fed_server.json").write_text(json.dumps(server))
    (config / "config_fed_client.json").write_text(json.dumps(client))
    meta = {"name": "job", "deploy_map": {"app": ["@ALL"]}, "min_clients": 2}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def main() -> None:
    """Run it."""
    from nvflare.private.fed.app.simulator.simulator_runner import SimulatorRunner

    folder = Path(sys.argv[1])
    job = write(folder / "job", sys.argv[2])
    sys.exit(SimulatorRunner(str(job), str(folder / "work"), n_clients=2, threads=2).run())


if __name__ == "__main__":
    main()
