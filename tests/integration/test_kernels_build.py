"""Builds of the kernels: wheels carry them, installs go on without them, and what was loaded is what fits.

Wheels are built from one sdist of this checkout by the hooks that pip calls. A missing compiler fails these
tests where ``CI`` is set, and skips them elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "_kernels.dylib" if sys.platform == "darwin" else "_kernels.so"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TENSORBUS_")}

# nf4 by whatever kernels there are: what a site without a compiler must do exactly as one with it.
ENCODE = """
import hashlib, numpy as np
from tensorbus.codecs.dtypes import dtype as parse
from tensorbus.codecs.registry import quantizer
values = np.random.default_rng(0).standard_normal(100_001).astype(np.float32)
nf4, dtype = quantizer("nf4"), parse("float32")
payload = bytearray(nf4.encoded_size(values.size, dtype))
nf4.encode(memoryview(values).cast("B"), dtype, memoryview(payload))
print(hashlib.sha256(payload).hexdigest())
"""


def _compiler() -> str:
    found = shutil.which("cc")
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("cc, a C compiler, is not installed")
    return found


def _hook(name: str, source: Path, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What pip does to build in ``source``; the wheel or sdist goes to ``out``."""
    out.mkdir(exist_ok=True)
    code = f"import sys, setuptools.build_meta as hooks; hooks.{name}(sys.argv[1])"
    return subprocess.run(
        [sys.executable, "-c", code, str(out)],
        cwd=source,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )


def _run(site: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python with the packages of this environment, but Tensorbus from ``site``."""
    code = f"import sys; sys.path.insert(0, {str(site)!r}); exec(sys.argv.pop(1))"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=site,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def _doctor(site: Path, **environment: str) -> tuple[int, Mapping[str, object] | None, str]:
    """`tensorbus doctor --json`: its exit code, what it says of the kernels, and its errors."""
    code = "from tensorbus.cli.main import main; main()"
    done = _run(site, code, "doctor", "--json", **environment)
    return done.returncode, json.loads(done.stdout)["kernels"], done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of this checkout, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    _hook("build_sdist", ROOT, folder)
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        members.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def compiled(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a machine with a compiler."""
    out = tmp_path_factory.mktemp("compiled")
    _hook("build_wheel", source, out, CC=_compiler())
    return next(out.glob("*.whl"))


@pytest.fixture
def site(compiled: Path, tmp_path: Path) -> Path:
    """That wheel, unpacked."""
    return _unpacked(compiled, tmp_path / "site")


def _unpacked(wheel: Path, site: Path) -> Path:
    with zipfile.ZipFile(wheel) as members:
        members.extractall(site)
    return site


def _library(site: Path) -> Path:
    return site / "tensorbus" / "codecs" / "kernels" / LIBRARY


def test_a_wheel_carries_the_library_for_every_python(compiled: Path, site: Path) -> None:
    """Its tag names the platform and no Python ABI, it holds no C files, and what is unpacked uses it."""
    python, abi, platform = compiled.stem.split("-")[2:]
    assert (python, abi) == ("py3", "none")
    assert platform != "any"
    assert _library(site).is_file()
    assert {path.suffix for path in _library(site).parent.iterdir()} == {".py", _library(site).suffix}
    wheel_file = next(site.glob("*.dist-info/WHEEL")).read_text()
    assert "Root-Is-Purelib: false" in wheel_file
    assert f"Tag: py3-none-{platform}" in wheel_file

    code, kernels, _ = _doctor(site)
    assert code == 0
    assert kernels is not None
    assert (kernels["kind"], kernels["path"]) == ("c", str(_library(site)))


def test_without_a_compiler_the_install_goes_on(source: Path, site: Path, tmp_path: Path) -> None:
    """One line says why; the wheel is for any platform, knows the reason, and encodes the same bytes."""
    done = _hook("build_wheel", source, tmp_path / "out", CC="/nowhere/cc")
    [line] = [line for line in done.stderr.splitlines() if "tensorbus:" in line]
    assert "the codecs will use numpy" in line
    assert "/nowhere/cc was not found" in line
    [wheel] = (tmp_path / "out").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")

    bare = _unpacked(wheel, tmp_path / "bare")
    assert not _library(bare).exists()
    code, kernels, _ = _doctor(bare)
    assert code == 0
    assert kernels is not None
    assert kernels["kind"] == "numpy"
    assert "/nowhere/cc was not found" in str(kernels["reason"])
    encoded = {_run(place, ENCODE).stdout for place in (bare, site)}
    assert len(encoded) == 1
    assert len(encoded.pop().strip()) == hashlib.sha256().digest_size * 2


@pytest.fixture
def checkout(source: Path, tmp_path: Path) -> Path:
    """A copy of the sources with one C file, which has what the loader asks for, and is soon compiled."""
    copy = shutil.copytree(source, tmp_path / "checkout")
    for file in _library(copy / "src").parent.glob("*.c"):
        if file.name != "convert.c":
            file.unlink()
    return copy


def test_a_compiler_that_fails_is_named(checkout: Path, tmp_path: Path) -> None:
    """Its first error is what the line and the doctor say, and an older library does not stay in place."""
    library = _library(checkout / "src")
    library.with_name("convert.c").write_text("int tb_abi(void) { return 1 }\n")
    library.write_bytes(b"older")
    done = _hook("build_editable", checkout, tmp_path / "out", CC=_compiler())
    assert "tensorbus: no compiled kernels" in done.stderr
    assert not library.exists()
    code, kernels, _ = _doctor(checkout / "src")
    assert code == 0
    assert kernels is not None
    assert "convert.c:1" in str(kernels["reason"])


def test_an_editable_install_builds_beside_the_sources(checkout: Path, tmp_path: Path) -> None:
    """The checkout itself can then load the library, which belongs to no wheel."""
    _hook("build_editable", checkout, tmp_path / "out", CC=_compiler())
    assert _library(checkout / "src").is_file()
    code, kernels, _ = _doctor(checkout / "src", TENSORBUS_KERNELS="c")
    assert code == 0
    assert kernels is not None
    assert kernels["kind"] == "c"
    [wheel] = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as members:
        assert not [name for name in members.namelist() if LIBRARY in name]


def test_a_library_that_does_not_fit_is_refused(site: Path) -> None:
    """Missing, of other sources, or no library at all: numpy takes over and says why; `c` fails instead."""
    library = _library(site)
    other = library.with_suffix(".c")
    other.write_text("long long tb_abi(void) { return 999; } int tb_set_isa(int level) { return level; }\n")

    def missing() -> None:
        library.unlink()

    def of_other_sources() -> None:
        subprocess.run([_compiler(), "-shared", "-fPIC", "-o", library, other], check=True, timeout=60)

    def no_library() -> None:
        library.write_bytes(b"\x7fELF and then nothing")

    for break_it, why in (
        (missing, "it was never built"),
        (of_other_sources, "was built from other sources (ABI 999, not "),
        (no_library, "does not load: "),
    ):
        break_it()
        code, kernels, errors = _doctor(site)
        assert (code, errors) == (0, "")
        assert kernels is not None
        assert kernels["kind"] == "numpy"
        assert why in str(kernels["reason"])

        code, kernels, errors = _doctor(site, TENSORBUS_KERNELS="c")
        assert (code, kernels) == (1, None)
        assert "TENSORBUS_KERNELS=c, but " in errors
        assert why in errors
        # And whoever encodes is told so, instead of being slow without a word.
        refused = _run(site, ENCODE, TENSORBUS_KERNELS="c")
        assert refused.returncode == 1
        assert "KernelsUnavailable" in refused.stderr
