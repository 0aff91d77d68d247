"""`pyro.infer`, faster: a script that runs with Pyro runs with these names in place of Pyro's.

    from ppgen.pyro_compat import SVI, Trace_ELBO     # was: from pyro.infer import SVI, Trace_ELBO

SVI, NUTS, HMC and Predictive are ppgen's; every other name is that of `pyro.infer` itself.
"""

from typing import Any

from pyro import infer
from pyro.infer import MCMC, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

from ppgen.pyro_compat.kernels import HMC, NUTS
from ppgen.pyro_compat.predictive import Predictive
from ppgen.pyro_compat.svi import SVI

__all__ = ["HMC", "MCMC", "NUTS", "SVI", "Predictive", "TraceEnum_ELBO", "TraceMeanField_ELBO", "Trace_ELBO"]


def __getattr__(name: str) -> Any:
    return getattr(infer, name)
