"""Graphs compiled by Inductor, called with as little as possible in between."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx

from ppgen.engine.compiling import native
from ppgen.engine.compiling.small import written_out
from ppgen.engine.graphs.trace import fakes_told_in_debug
from ppgen.errors import PpgenError

log = logging.getLogger("ppgen")

TOO_LARGE = 4000  # operations: beyond them compilation takes minutes
LARGE = 1000  # operations: beyond them most of the compiler's time goes to what calls the kernels
COMPILED = 0.5  # CPU s of the C++ compiler, at least, where Inductor has not found what it had made before
_IMPORT, _SECONDS, _SECONDS_A_NODE = 2.0, 4.0, 0.012  # CPU s of Inductor's import; of the rest (benchmarks/engine.py)


def compiler() -> str | None:
    """The C++ compiler that Inductor would use, None where there is none."""
    for name in (os.environ.get("CXX"), "clang++" if sys.platform == "darwin" else "g++"):
        if name and (path := shutil.which(name)):
            return path
    return None


def require_compiler() -> None:
    """Refuses to go on without a C++ compiler."""
    if compiler() is None:
        raise PpgenError(
            "engine 'compile' needs a C++ compiler, and there is none on the PATH; install g++ (apt install g++, "
            "conda install gxx, or Xcode's command line tools), or take engine 'trace'"
        )


def estimated_seconds(operations: int) -> float:
    """CPU seconds that a graph of so many operations takes to compile, about: by the last one on this machine."""
    return _IMPORT + native.pace() * (_SECONDS + _SECONDS_A_NODE * operations)


@contextmanager
def _paced(operations: int) -> Iterator[None]:
    """Keeps how long a compilation takes beside what was thought, in CPU seconds: what else runs is left out."""
    before = os.times()
    yield
    own, system, child, child_system = (a - b for a, b in zip(os.times()[:4], before[:4], strict=True))
    if child + child_system > COMPILED:
        native.keep_pace((own + system + child + child_system) / (_SECONDS + _SECONDS_A_NODE * operations))


def code_key(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> str:
    """What the compiled code of a graph is kept under: see `native`."""
    return native.key_of(graph, inputs, repr(_settings(graph)))


def compiled(graph: fx.GraphModule, inputs: Sequence[Tensor], key: str | None = None) -> Callable[[list[Tensor]], Any]:
    """Compiles a graph of ATen operations for inputs of these shapes, or loads what was compiled before.

    Random operations keep torch's own kernels and stream; tensors that the graph writes to are written to.

    Args:
        inputs: as many as the graph has placeholders.
        key: what the code is kept under, `code_key` if None.

    Returns:
        A function of a list of tensors; its result is what the graph returns, as a sequence.
    """
    key = code_key(graph, inputs) if key is None else key
    entry = native.load(key)
    if entry is not None:
        return _entered(entry)

    from torch._inductor import config

    # The first call builds the C++, and draws what the graph draws: that must not move the run's own stream.
    with (
        _own_cache(), _silent(), _instructions_asked(), config.patch(_inductors(graph)), written_out(),
        torch.no_grad(), torch.random.fork_rng(devices=[]), _paced(len(graph.graph.nodes) - len(inputs)),
    ):  # fmt: skip
        outer, kernels = _compile(graph, inputs)

    # What lies between is for inputs that share memory or need a gradient: ours do not.
    direct = getattr(kernels[0][0], "current_callable", None) if [n for _, n in kernels] == [len(inputs)] else None
    if direct is None:

        def call(arguments: list[Tensor]) -> Any:
            with torch.no_grad():
                return outer(*arguments)

        return call
    entry = _entry(direct)
    if entry is None:
        return lambda arguments: direct(list(arguments))  # it empties the list
    native.keep(key, entry)
    return _entered(entry)


def _entered(entry: Callable[..., Any]) -> Callable[[list[Tensor]], Any]:
    aoti = torch._C._aoti

    def enter(arguments: list[Tensor]) -> Any:
        return aoti.alloc_tensors_by_stealing_from_void_ptrs(entry(aoti.unsafe_alloc_void_ptrs_from_tensors(arguments)))

    return enter


def _settings(graph: fx.GraphModule) -> dict[str, Any]:
    """Inductor's, for the graph."""
    return {
        "fallback_random": True,
        "cpp_wrapper": True,
        "size_asserts": False,
        "alignment_asserts": False,
        "fx_graph_cache": True,  # for what has no entry of its own to keep
        # A precompiled header takes 11 s and 200 MB, and saves a compilation 4 s; the code itself is kept (`native`).
        "cpp_cache_precompile_headers": False,
        # An allocation costs as much as a small kernel. (What is returned would lie on the stack as well.)
        "aot_inductor.allow_stack_allocation": not any(
            n.all_input_nodes for n in graph.graph.nodes if n.op == "output"
        ),
        "cpp_wrapper_build_separate": len(graph.graph.nodes) > LARGE,  # what calls the kernels is optimised less
    }


def _inductors(graph: fx.GraphModule) -> dict[str, Any]:
    """Those of them that this torch has: 2.8 brought `cpp_wrapper_build_separate`."""
    from torch._inductor import config

    return {k: v for k, v in _settings(graph).items() if "." in k or hasattr(config, k)}


def _compile(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> tuple[Callable[..., Any], list[tuple[Any, int]]]:
    """The compiled function, called once, and the compiled graphs within it with their numbers of inputs."""
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.output_code import CompiledFxGraph
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    post_compile = CompiledFxGraph.post_compile

    def compile_under(context: AbstractContextManager[Any]) -> tuple[Callable[..., Any], list[tuple[Any, int]]]:
        made: list[tuple[Any, int]] = []

        def keep(self: Any, example: Any, *rest: Any) -> None:  # what is compiled and what the cache holds both pass
            post_compile(self, example, *rest)
            made.append((self, len(example)))

        with context, mock.patch.object(CompiledFxGraph, "post_compile", keep):
            run: Any = compile_fx(copy.deepcopy(graph), list(inputs))
        run(*inputs)
        return run, made

    try:  # without an environment of shapes Inductor does not look into its cache
        shapes = ShapeEnv(assume_static_by_default=True, allow_dynamic_output_shape_ops=False)
        with _few_headers():
            return compile_under(tracing(TracingContext(FakeTensorMode(shape_env=shapes))))
    except Exception:  # and with one it does not know some operations, as a Dirichlet's draws
        return compile_under(nullcontext())


def _entry(direct: Callable[..., Any]) -> Callable[..., Any] | None:
    """The C++ function behind the wrapper that Inductor writes around it; None where there is none."""
    cells = [cell.cell_contents for cell in getattr(direct, "__closure__", None) or ()]
    found = [c for c in cells if getattr(c, "__name__", "") == "inductor_entry_cpp"]
    names = ("unsafe_alloc_void_ptrs_from_tensors", "alloc_tensors_by_stealing_from_void_ptrs")
    known = all(hasattr(getattr(torch._C, "_aoti", None), name) for name in names)
    return found[0] if len(found) == 1 and known else None


@contextmanager
def _own_cache() -> Iterator[None]:
    """What Inductor keeps across runs by itself, in the user's cache folder unless torch was told another."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    name = "TORCHINDUCTOR_CACHE_DIR"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppgen" / "inductor"
    before = os.environ.get(name)
    if before not in (None, default_cache_dir()):
        yield
        return
    try:
        home.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(home)
    except OSError:  # a home that cannot be written to: torch's own place
        pass
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _instructions_asked() -> AbstractContextManager[Any]:
    """Asks the compiler whether it knows an instruction set, in 20 ms.

    Inductor builds a library with torch's headers for each set (8 s of CPU time in all) and loads each in a process of
    its own, anew in every run (2 s). That the processor has the instructions it sees by other means; and the
    program's own library is built and loaded a moment later, where what fails is an error with a reason.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.cpu_vec_isa import VecISA

    if not hasattr(VecISA, "check_build"):  # another torch
        return nullcontext()

    def knows(self: Any, code: str) -> bool:
        command = [get_cpp_compiler(), *self.build_arch_flags().split(), "-fsyntax-only", "-x", "c++", os.devnull]
        return subprocess.run(command, capture_output=True).returncode == 0

    return mock.patch.object(VecISA, "check_build", knows)


def _few_headers() -> AbstractContextManager[Any]:
    """Leaves out of a wrapper with arrays on the stack what it does not use: ATen's tensors, whose headers take the
    C++ compiler as long as all the rest."""
    from torch._inductor.codegen.cpp_wrapper_cpu_array_ref import CppWrapperCpuArrayRef

    of_arrays = Path(torch.__file__).parent / "include/torch/csrc/inductor/cpp_wrapper/array_ref.h"
    name = "get_device_include_path_jit"
    if not of_arrays.is_file() or not hasattr(CppWrapperCpuArrayRef, name):  # another torch
        return nullcontext()
    lines = [x for x in of_arrays.read_text().splitlines() if x.startswith("#include") and "array_ref_impl" not in x]
    return mock.patch.object(CppWrapperCpuArrayRef, name, staticmethod(lambda device: "\n".join(lines)))


@contextmanager
def _silent() -> Iterator[None]:
    """Inductor's notes on single operations, and what of torch it will no longer use, are not for who fits a model."""
    noisy = [
        logging.getLogger(n)
        for n in ("torch._inductor.ir", "torch._inductor.utils", "torch._inductor.select_algorithm")
    ]
    levels = [n.level for n in noisy]
    for n in noisy:
        n.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), fakes_told_in_debug():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for n, level in zip(noisy, levels, strict=True):
            n.setLevel(level)
