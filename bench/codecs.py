"""Every codec: its speed beside memcpy and bitsandbytes, its size, its error, on made and on real values.

    python bench/codecs.py                          # all of it; about ten minutes
    python bench/codecs.py speed --codecs nf4 int8
    python bench/codecs.py error --plot error.png

``speed``: GB/s of fp32 for a tensor of 1 GiB, worked on in the slices that are sent, with one thread and with
two, each figure the best of some runs; the ratio to memcpy of the same tensor in the same run; what encoding,
decoding or accumulating takes in memory beyond tensor, payloads and one frame a thread.

``error``: relative mean square error and bits a parameter, on Gaussian weights and on what a round of the
demo's fine-tuning really changes in SmolLM2.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import codec_error
import codec_plot
import codec_speed
import smollm2
import stock_bitsandbytes

from tensorbus.codecs.kernels.loader import status

PLAIN = ("none", "bf16", "fp16", "int8", "fp4", "nf4", "nf4-dq", "uniform", "lloyd:3", "lloyd:2", "lossless")
STAGED = ("rotate | lloyd:3", "rotate | lloyd:2")
STEPS = tuple(f"uniform:step={step}" for step in (0.02, 0.05, 0.1, 0.2, 0.5, 0.7, 1.0, 1.4))
FEEDBACK = ("nf4", "uniform:step=0.7", "rotate | lloyd:3", "rotate | lloyd:2")
UPDATE = Path("bench-output/smollm2-update.safetensors")


def main() -> None:
    """Measure what was asked for, and print tables in Markdown."""
    parser = argparse.ArgumentParser(description="Speed, size and error of the codecs")
    parser.add_argument("what", nargs="?", choices=("all", "speed", "error"), default="all")
    parser.add_argument("--codecs", nargs="+", default=[*PLAIN, *STAGED], help="pipelines to time")
    parser.add_argument("--mib", type=int, default=1024, help="size of the tensor that is timed")
    parser.add_argument("--runs", type=int, default=5, help="of which the best counts")
    parser.add_argument(
        "--stock", action=argparse.BooleanOptionalAction, default=True, help="bitsandbytes too"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plot", type=Path, help="draw error against bits into this file")
    arguments = parser.parse_args()
    print(f"kernels: {status().kind} ({status().isa or 'no SIMD'}): {status().reason}\n")
    figures: dict[str, object] = {}
    if arguments.what in ("all", "speed"):
        figures["speed"] = speed(arguments.codecs, arguments.mib << 20, arguments.runs, arguments.stock)
    if arguments.what in ("all", "error"):
        figures["error"] = error(arguments.plot)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def speed(codecs: Sequence[str], nbytes: int, runs: int, stock: bool) -> dict[str, object]:
    """Time the codecs, and print a row for each; all figures."""
    bench = codec_speed.Bench(nbytes, runs)
    copies = {threads: bench.memcpy(threads) for threads in codec_speed.THREADS}
    rows = {codec: bench.measure(codec) for codec in codecs}
    halves = codec_speed.Bench(nbytes, runs, "bfloat16")
    rows["lossless, bfloat16"] = halves.measure("lossless")
    halves.close()
    # Again at the end: whoever shares the machine may have come or gone meanwhile.
    copies = {threads: max(copies[threads], bench.memcpy(threads)) for threads in codec_speed.THREADS}
    bench.close()
    theirs = stock_bitsandbytes.measure(nbytes) if stock else {}
    print(f"{nbytes / (1 << 20):.0f} MiB of fp32; memcpy {copies[1]:.1f} / {copies[2]:.1f} GB/s\n")
    print("| codec | encode | decode | accumulate | of memcpy, 1 thread | 2 threads to 1 | extra MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for codec, row in rows.items():
        pairs = [row.rates[step] for step in codec_speed.STEPS]
        print(
            f"| {codec.replace('|', '→')} | "
            + " | ".join(f"{one:.1f} / {two:.1f}" for one, two in pairs)
            + " | "
            + " / ".join(f"{one / copies[1]:.2f}" for one, _ in pairs)
            + " | "
            + " / ".join(f"{two / one:.2f}" for one, two in pairs)
            + f" | {row.extra_mib:.1f} |"
        )
    for name, stock_row in theirs.items():
        pairs = [stock_row.rates[step] for step in codec_speed.STEPS]
        ours = rows.get(name)
        faster = (
            ""
            if ours is None
            else "ours × "
            + " / ".join(
                f"{ours.rates[step][0] / stock_row.rates[step][0]:.0f}" for step in codec_speed.STEPS
            )
        )
        print(
            f"| bitsandbytes {name} | "
            + " | ".join(f"{one:.2f} / {two:.2f}" for one, two in pairs)
            + f" | {faster} | | {stock_row.extra_mib:.0f} |"
        )
    print()
    return {
        "memcpy": copies,
        "codecs": {name: asdict(row) for name, row in rows.items()},
        "bitsandbytes": {name: asdict(row) for name, row in theirs.items()},
    }


def error(plot: Path | None) -> dict[str, object]:
    """Measure errors and sizes, and print a row for each pipeline; all figures."""
    weights = codec_error.gaussian()
    update = smollm2.update(UPDATE)
    print("| pipeline | bits, Gaussian | error | bits, real update | error | 20 rounds with feedback |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    found: dict[str, object] = {}
    points: list[codec_plot.Point] = []
    for pipeline in dict.fromkeys((*PLAIN, *STEPS, *STAGED)):
        made, real = codec_error.measure(pipeline, weights), codec_error.measure(pipeline, update)
        summed = codec_error.with_feedback(pipeline) if pipeline in FEEDBACK else None
        shown = "" if summed is None else f"{summed:.1e}"
        print(
            f"| {pipeline.replace('|', '→')} | {made.bits:.3f} | {made.error:.2e} | {real.bits:.3f}"
            f" | {real.error:.2e} | {shown} |",
            flush=True,
        )
        found[pipeline] = {"gaussian": asdict(made), "update": asdict(real), "feedback": summed}
        points.append(codec_plot.Point(pipeline, made, real))
    if plot is not None:
        codec_plot.draw(points, plot)
    return found


if __name__ == "__main__":
    main()
