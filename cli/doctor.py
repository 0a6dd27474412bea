"""`tensorbus doctor`: what this installation is made of, and what is wrong with it."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

import click

from tensorbus import __version__

from .main import FAILED
from .output import print_json

OPTIONAL = ("torch", "bitsandbytes", "safetensors")


class Findings:
    """What was found, by subject, for programs and for people; and what is broken."""

    def __init__(self) -> None:
        self.facts: dict[str, object] = {}
        self.words: dict[str, str] = {}
        self.problems: list[str] = []

    def note(self, subject: str, fact: object, words: str) -> None:
        """``fact`` is JSON, ``words`` say the same."""
        self.facts[subject] = fact
        self.words[subject] = words


@click.command("doctor")
@click.option("--torch", "with_torch", is_flag=True, help="Import torch and list the GPUs that it sees.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as one JSON object.")
def command(with_torch: bool, as_json: bool) -> None:
    """Say what is installed here and what is in use: kernels, checksums, codecs, optional packages.

    The exit code is 1 if something is broken. What is merely slow or not installed is not.
    """
    findings = examine(with_torch=with_torch)
    if as_json:
        print_json({**findings.facts, "problems": findings.problems})
    else:
        for subject, words in findings.words.items():
            click.echo(f"{subject:<14}{words}")
    for problem in findings.problems:
        click.secho(f"broken: {problem}", fg="red", err=True)
    if findings.problems:
        sys.exit(FAILED)


def examine(*, with_torch: bool) -> Findings:
    """Look at this process and at what it could import; torch is imported only ``with_torch``."""
    findings = Findings()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    for subject, fact in (
        ("tensorbus", __version__),
        ("python", python),
        ("platform", platform.platform()),
        ("processor", f"{_processor()}, {os.cpu_count()} logical cores"),
    ):
        findings.note(subject, fact, fact)
    _kernels(findings)
    _checksums(findings)
    for package in OPTIONAL:
        installed = _installed_version(package)
        findings.note(package, installed, installed or "not installed")
    _codecs(findings)
    if with_torch:
        _torch(findings)
    return findings


def _processor() -> str:
    """The processor's name where the system tells it, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _kernels(findings: Findings) -> None:
    from tensorbus.codecs.kernels import status
    from tensorbus.errors import KernelsUnavailable

    try:
        in_use = status()
    except KernelsUnavailable as error:
        findings.note("kernels", None, "none that can be used")
        findings.problems.append(str(error))
        return
    words = "numpy" if in_use.path is None else f"C with {in_use.isa} ({in_use.path})"
    findings.note("kernels", asdict(in_use), f"{words}: {in_use.reason}")


def _checksums(findings: Findings) -> None:
    import google_crc32c

    implementation = google_crc32c.implementation
    slow = "" if implementation == "c" else ", right but slow"
    findings.note("crc32c", implementation, f"google_crc32c in {implementation}{slow}")


def _codecs(findings: Findings) -> None:
    from tensorbus.codecs import registry

    for noun, table, group in (
        ("quantizers", registry.QUANTIZERS, registry.QUANTIZER_GROUP),
        ("stages", registry.STAGES, registry.STAGE_GROUP),
        ("serializers", registry.SERIALIZERS, registry.SERIALIZER_GROUP),
    ):
        names = registry.installed(table, group)
        findings.note(noun, names, ", ".join(names))
        for point in entry_points(group=group):
            try:
                point.load()
            except Exception as error:
                findings.problems.append(f"the plug-in {point.name!r} of {group} does not load: {error!r}")


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torch(findings: Findings) -> None:
    try:
        import torch
    except (ImportError, OSError) as error:
        findings.note("gpus", None, "no torch to ask")
        if _installed_version("torch") is not None:
            findings.problems.append(f"torch is installed but does not import: {error}")
        return
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    findings.note(
        "gpus", gpus, ", ".join(gpus) or f"none that torch sees (its CUDA: {torch.version.cuda or 'none'})"
    )
