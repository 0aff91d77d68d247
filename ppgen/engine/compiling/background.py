"""Compilation in a process of its own while steps go on; what it makes is found in `native`.

One at a time a user; the rest is not compiled, or later. It ends by itself when the fit has ended before it: the next
one of the same graph finds the code.
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ppgen.engine.compiling import native
from ppgen.engine.compiling.compile import compiled
from ppgen.errors import first_line

log = logging.getLogger("ppgen")

CHILDREN: list[subprocess.Popen] = []  # one that outlives its fit is not to be waited for
BYTES = 2**26  # of inputs, at most, that are handed to the other process


def start(graph: fx.GraphModule, inputs: Sequence[Tensor], key: str) -> subprocess.Popen | None:
    """Begins; None where it cannot: a graph that cannot be handed over, large inputs, a single processor; or is not to
    (the environment variable PPGEN_BACKGROUND is 0)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if os.environ.get("PPGEN_BACKGROUND") == "0" or not key or cores < 2 or sum(t.nbytes for t in inputs) > BYTES:
        return None
    with tempfile.TemporaryFile() as held:  # without a name: nothing is left behind
        try:
            tensors = io.BytesIO()
            torch.save([t.detach().clone() for t in inputs], tensors)
            pickle.dump((_packed(graph), tensors.getvalue(), key, torch.get_num_threads()), held)
        except Exception as e:  # what a graph may hold is not for us to list
            log.info("not compiled in the background: %s", first_line(e))
            return None
        held.seek(0)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        child = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()"],  # its classes are as pickled
            stdin=held, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env, start_new_session=True,
        )  # fmt: skip
    CHILDREN[:] = [*(c for c in CHILDREN if c.poll() is None), child]
    return child


class _Of(NamedTuple):
    """A node, by its name."""

    node: str


class _Op(NamedTuple):
    """An operation, by its names."""

    namespace: str
    name: str
    overload: str


def _packed(graph: fx.GraphModule) -> list[tuple]:
    """The nodes of a graph that holds no tensors, to be pickled.

    (A pickled GraphModule is traced anew where it is read: what it draws or makes there is a constant from then on.)
    """
    nodes = []
    for node in graph.graph.nodes:
        target = node.target
        if isinstance(target, torch._ops.OpOverload):
            target = _Op(target.namespace, target._opname, target._overloadname)
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: _Of(n.name))
        nodes.append((node.name, node.op, target, args, kwargs))
    return nodes


def _unpacked(nodes: Sequence[tuple]) -> fx.GraphModule:
    """The graph of `_packed`, name by name."""
    known: dict[str, fx.Node] = {}
    graph = fx.Graph()

    def given(value: Any) -> Any:
        if isinstance(value, _Of):
            return known[value.node]
        if isinstance(value, (list, tuple)):
            return type(value)([given(v) for v in value])
        return {k: given(v) for k, v in value.items()} if isinstance(value, dict) else value

    for name, op, target, args, kwargs in nodes:
        if isinstance(target, _Op):
            target = getattr(getattr(getattr(torch.ops, target.namespace), target.name), target.overload)
        known[name] = graph.create_node(op, target, given(args), given(kwargs), name)
    return fx.GraphModule(nn.Module(), graph)


def main() -> None:
    """The other process: reads its parent's graph, and compiles."""
    native.folder().mkdir(parents=True, exist_ok=True)
    with (native.folder() / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        os.nice(10)
        import torch._inductor.compile_fx  # what a graph is read with is not all there before it

        graph, tensors, key, threads = pickle.load(sys.stdin.buffer)
        torch.set_num_threads(threads)
        if not native.is_known(key):
            compiled(_unpacked(graph), torch.load(io.BytesIO(tensors)), key)
