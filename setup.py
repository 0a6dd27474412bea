"""The one step of the build that pyproject.toml cannot state: compiling codecs/kernels/*.c.

They become one plain shared library beside codecs/kernels/loader.py, which opens it with ctypes. It has no
Python ABI, so setuptools' extension modules are the wrong tool: one wheel, ``py3-none-<platform>``, serves
every Python. An installation never fails for want of a compiler: it goes on without the library, in a wheel
that is ``py3-none-any``, and the codecs use numpy.

``python setup.py build_kernels --inplace`` (``make kernels``) builds into the checkout, or fails.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.errors import CompileError

SOURCES = Path("src/tensorbus/codecs/kernels")
LIBRARY = "_kernels.dylib" if sys.platform == "darwin" else "_kernels.so"
NOT_BUILT = "_kernels.txt"
# Without contraction a product and a sum stay two roundings, on every processor; wider instructions than the
# platform's baseline are asked for function by function, and chosen when the library runs.
FLAGS = ["-O3", "-std=c11", "-Wall", "-Wextra", "-ffp-contract=off", "-fno-math-errno"]
AS_LIBRARY = ["-fPIC", "-shared", "-fvisibility=hidden"]
LIBRARIES = ["-lm"]


def compiler() -> list[str]:
    """The C compiler as $CC or Python's own build names it; ``cc`` where that one is not installed.

    Raises:
        CompileError: there is none.
    """
    chosen = os.environ.get("CC")
    for command in [chosen] if chosen else [sysconfig.get_config_var("CC") or "cc", "cc"]:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    raise CompileError(f"there is no C compiler: {chosen or 'cc'} was not found")


def compile_kernels(sources: list[str], library: Path) -> None:
    """Make ``library`` of the C files. It replaces an older one at once, which running programs keep.

    Raises:
        CompileError: there is no compiler, or it refused.
    """
    new = library.with_suffix(f".{os.getpid()}")
    command = [*compiler(), *FLAGS, *AS_LIBRARY, "-o", str(new), *sources, *LIBRARIES]
    print(*command, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    sys.stderr.write(done.stderr)
    if done.returncode:
        lines = done.stderr.splitlines()
        why = next((line for line in lines if "error" in line), f"exit status {done.returncode}")
        raise CompileError(f"{command[0]} failed: {why}")
    new.replace(library)


class BuildKernels(Command):
    """Compile the kernels into the build folder, or into the checkout of an editable installation."""

    description = "compile codecs/kernels/*.c into one shared library"
    user_options: ClassVar[list[tuple[str, str, str]] | list[tuple[str, str | None, str]]] = [
        ("inplace", "i", "build into the checkout, and fail if it cannot be done"),
    ]
    boolean_options: ClassVar[list[str]] = ["inplace"]
    editable_mode = False
    built = False

    def initialize_options(self) -> None:
        self.inplace = False
        self.build_lib = ""

    def finalize_options(self) -> None:
        self.build_lib = str(self.get_finalized_command("build").build_lib)

    @property
    def library(self) -> Path:
        """Where the library goes."""
        beside = self.inplace or self.editable_mode
        return (SOURCES if beside else Path(self.build_lib, SOURCES.relative_to("src"))) / LIBRARY

    def run(self) -> None:
        self.library.parent.mkdir(parents=True, exist_ok=True)
        not_built = self.library.with_name(NOT_BUILT)
        try:
            compile_kernels([name for name in self.get_source_files() if name.endswith(".c")], self.library)
            not_built.unlink(missing_ok=True)
            self.built = True
        except (CompileError, OSError) as error:
            # An older build must not stand in for these sources. `tensorbus doctor` tells the reason later.
            self.library.unlink(missing_ok=True)
            not_built.write_text(f"{error}\n")
            if self.inplace:
                raise
            print(f"tensorbus: no compiled kernels, the codecs will use numpy: {error}", file=sys.stderr)

    def get_source_files(self) -> list[str]:
        return [str(path) for path in sorted(SOURCES.glob("*.[ch]"))]

    def get_outputs(self) -> list[str]:
        return [str(self.library)] if self.library.exists() else []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class BuildAll(build):
    """The build, with the kernels."""

    sub_commands: ClassVar = [*build.sub_commands, ("build_kernels", None)]


class WithKernels(Distribution):
    """Has platform-dependent modules as soon as the kernels are built."""

    def has_ext_modules(self) -> bool:
        kernels = self.get_command_obj("build_kernels")
        return isinstance(kernels, BuildKernels) and kernels.built


class Wheel(bdist_wheel):
    """For any Python of this platform if it holds the library, else for any platform."""

    def run(self) -> None:
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        _, _, system = super().get_tag()
        # The library is compiled for one processor, whatever Python was.
        return "py3", "none", system.replace("universal2", platform.machine())


if __name__ == "__main__":
    setup(
        distclass=WithKernels,
        ext_modules=[],
        cmdclass={"build": BuildAll, "build_kernels": BuildKernels, "bdist_wheel": Wheel},
    )
