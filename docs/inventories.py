"""What other projects' names in our signatures link to, for Sphinx's intersphinx, without fetching their inventories.

The tables below are small inventories, kept here; the build writes them to docs/_build/inventories in Sphinx's format
(version 2). tests/test_inventories.py looks up that each name exists in the installed packages.
"""

from __future__ import annotations

import zlib
from pathlib import Path

# project: its documentation, and of each name where it stands ("$" is the name) and, where it is another, its role.
PROJECTS: dict[str, tuple[str, dict[str, str]]] = {
    "python": (
        "https://docs.python.org/3",
        {
            **{f"collections.abc.{n}": "library/collections.abc.html#$" for n in
               ("Callable", "Collection", "Iterable", "Iterator", "Mapping", "Sequence")},
            "contextlib.AbstractContextManager": "library/contextlib.html#$",
            "pathlib.Path": "library/pathlib.html#$",
        },
    ),
    "numpy": ("https://numpy.org/doc/stable", {"numpy.ndarray": "reference/generated/numpy.ndarray.html#$"}),
    "xarray": ("https://docs.xarray.dev/en/stable", {"xarray.DataTree": "generated/xarray.DataTree.html#$"}),
    "torch": (
        "https://docs.pytorch.org/docs/stable",
        {
            "torch.Tensor": "tensors.html#$",
            "torch.device": "tensor_attributes.html#$",
            "torch.dtype": "tensor_attributes.html#$",
            "torch._C.Generator": "generated/torch.Generator.html#torch.Generator",
            "torch.nn.modules.module.Module": "generated/torch.nn.Module.html#torch.nn.Module",
            "torch.fx.graph_module.GraphModule": "fx.html#torch.fx.GraphModule",
            "torch.distributions.normal.Normal": "distributions.html#$",
            "torch.distributions.transforms.Transform": "distributions.html#$",
        },
    ),
    "pyro": (
        "https://docs.pyro.ai/en/stable",
        {
            "pyro.distributions.torch_distribution.TorchDistribution": "distributions.html#$",
            "pyro.distributions.torch.Normal": "distributions.html#pyro.distributions.Normal",
            "pyro.distributions.torch.MultivariateNormal": "distributions.html#pyro.distributions.MultivariateNormal",
            "pyro.infer.svi.SVI": "inference_algos.html#$",
            "pyro.infer.trace_elbo.Trace_ELBO": "inference_algos.html#$",
        },
    ),
    "arviz": (
        "https://python.arviz.org/projects/stats/en/latest",
        {f"arviz_stats.{n}": "api/index.html#$" for n in ("compare", "ess", "loo", "rhat", "summary")},
    ),
}  # fmt: skip
ALIASES = {
    "DataTree": "xarray.DataTree",
    "Path": "pathlib.Path",
    "Tensor": "torch.Tensor",
}  # as they are written


def inventory(project: str) -> bytes:
    """A project's inventory in Sphinx's format: a line a name, name, role, priority, address and what is shown."""
    _, names = PROJECTS[project]
    names = names | {short: names[long].replace("$", long) for short, long in ALIASES.items() if long in names}
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    role = "py:function" if project == "arviz" else "py:class"
    lines = "".join(f"{name} {role} 1 {address} -\n" for name, address in sorted(names.items()))
    return head.encode() + zlib.compress(lines.encode(), 9)


def write(folder: Path) -> dict[str, tuple[str, str]]:
    """Writes all inventories, and returns Sphinx's `intersphinx_mapping`."""
    folder.mkdir(parents=True, exist_ok=True)
    for project in PROJECTS:
        (folder / f"{project}.inv").write_bytes(inventory(project))
    return {project: (site, str(folder / f"{project}.inv")) for project, (site, _) in PROJECTS.items()}
