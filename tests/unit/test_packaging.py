"""What is built from this checkout is whole, small and clean: wheel, sdist, metadata."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ["aggregator", "bus", "cli", "codecs", "demo", "integrations", "streaming"]
EXTRAS = ["torch", "bitsandbytes", "transformers", "accelerate", "matplotlib", "gguf", "yaml", "safetensors"]
OF_TORCH = (
    "codecs/serializers/torch.py",
    "codecs/devices/blockwise.py",
    "codecs/devices/halves.py",
    "codecs/devices/lanes.py",
)


def _packages() -> list[str]:
    """Dotted names of all subpackages, read from the folders themselves and not through the links."""
    inits = [init for room in ROOMS for init in sorted((ROOT / room).rglob("__init__.py"))]
    return ["tensorbus", *(".".join(["tensorbus", *init.parent.relative_to(ROOT).parts]) for init in inits)]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this checkout, and the wheel that is built from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return out


def _wheel(dist: Path) -> Path:
    [wheel] = dist.glob("*.whl")
    return wheel


def _metadata(dist: Path) -> Message:
    with zipfile.ZipFile(_wheel(dist)) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        return HeaderParser().parsestr(wheel.read(name).decode())


def test_built_wheel_imports_without_the_checkout(dist: Path, tmp_path: Path) -> None:
    """Every subpackage comes from the built wheel alone: no linked folder was dropped on the way."""
    site = tmp_path / "site"
    with zipfile.ZipFile(_wheel(dist)) as wheel:
        wheel.extractall(site)
    script = (
        "import importlib, sys\n"
        f"sys.path.insert(0, {str(site)!r})\n"
        "for name in sys.argv[1:]:\n"
        "    file = importlib.import_module(name).__file__\n"
        f"    assert file is not None and file.startswith({str(site)!r}), (name, file)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, *_packages()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_plain_install_imports_everything_but_torch_and_the_demo() -> None:
    """With the plain dependencies alone every module imports, but for the demo, the integrations, and those
    that work on torch's tensors: its serializer, and what codes on a device."""
    modules = [
        ".".join(["tensorbus", *path.relative_to(ROOT).with_suffix("").parts])
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        if path.stem != "__init__"
        and room not in ("demo", "integrations")
        and path.relative_to(ROOT).as_posix() not in OF_TORCH
    ]
    script = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({EXTRAS!r}))\n"  # None in sys.modules refuses the import
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, *modules], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_wheel_holds_every_module_once(dist: Path) -> None:
    """The wheel is the code, its type marker and its licence; the sdist alone suffices to build it."""
    with zipfile.ZipFile(_wheel(dist)) as wheel:
        names = wheel.namelist()
    assert len(names) == len(set(names))
    modules = {name for name in names if name.startswith("tensorbus/") and name.endswith(".py")}
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    expected = {f"tensorbus/{path.relative_to(ROOT).as_posix()}" for path in files}
    expected |= {f"tensorbus/{path.name}" for path in (ROOT / "src/tensorbus").glob("*.py")}
    assert modules == expected
    assert "tensorbus/py.typed" in names
    page = {f"tensorbus/bus/server/page/{path.name}" for path in (ROOT / "bus/server/page").glob("*.[chjs]*")}
    assert {name for name in names if name.startswith("tensorbus/bus/server/page/")} >= page
    assert len(page) > 10
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert all(name.split("/")[0].startswith("tensorbus") for name in names)


def test_sdist_holds_files_not_links(dist: Path) -> None:
    """The sdist unpacks where there are no symbolic links: it carries each linked folder as files."""
    [sdist] = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    assert any(member.name.endswith("/tensorbus/codecs/item.py") for member in members)


def test_plain_install_brings_no_torch(dist: Path) -> None:
    """`pip install tensorbus` asks for nothing of torch; `tensorbus[torch]` does (law 3)."""
    requirements = _metadata(dist).get_all("Requires-Dist") or []
    plain = {line for line in requirements if "extra ==" not in line}
    torch = {line for line in requirements if line.startswith("torch")}
    assert torch
    assert not [line for line in plain if line.startswith(tuple(EXTRAS))]


def test_constraints_pin_what_is_installed() -> None:
    """Each line of constraints.txt pins one exact version, and torch is the tested one."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(line.count("==") == 1 for line in lines)
    assert "torch==2.13.0" in lines
    assert len({line.split("==")[0] for line in lines}) == len(lines)
