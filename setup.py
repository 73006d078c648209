"""Builds the C++ core: the row kernels once for each instruction set, the rest for any processor."""

import os
import platform
import sys
import sysconfig

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

HEADERS = [f"csrc/{name}.h" for name in ("host_device", "cell", "kernels", "parallel", "multigrid")]
# Not -ffast-math: at link time it would flush subnormal numbers in the whole process.
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden", "-Wno-psabi"]
OPENMP = ["-fopenmp"]
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS = {
        "v2": ["-march=x86-64-v2"],
        "v3": ["-march=x86-64-v3"],
        "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    }
else:
    INSTRUCTION_SETS = {"baseline": []}


class BuildExt(build_ext):
    """Adds the objects of csrc/kernels.cpp, one for each instruction set."""

    def build_extension(self, ext):
        """Compile the kernels, then let setuptools compile and link the rest."""
        objects = []
        for name, march in INSTRUCTION_SETS.items():
            objects += self.compiler.compile(
                ["csrc/kernels.cpp"],
                output_dir=os.path.join(self.build_temp, name),
                macros=[("EF_ISA", name)],
                extra_postargs=["-std=c++17", *FLAGS, *OPENMP, *march],
                depends=HEADERS,
            )
        ext.extra_objects = objects
        super().build_extension(ext)


core = Pybind11Extension(
    "elastofast._core",
    ["csrc/bindings.cpp", "csrc/multigrid.cpp", "csrc/dispatch.cpp"],
    depends=["csrc/kernels.cpp", *HEADERS],
    cxx_std=17,
    define_macros=[
        ("EF_COMPILER", f'"{os.environ.get("CXX", sysconfig.get_config_var("CXX") or "c++")}"'),
        ("EF_FLAGS", f'"{" ".join(FLAGS + OPENMP)}"'),
    ],
    extra_compile_args=[*FLAGS, *OPENMP],
    extra_link_args=OPENMP,
)

if sys.platform == "win32":
    raise SystemExit("elastofast needs GCC or Clang with OpenMP; on Windows install it inside WSL")

setup(ext_modules=[core], cmdclass={"build_ext": BuildExt})
