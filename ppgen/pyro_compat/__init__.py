"""`pyro.infer`, faster: a script that runs with Pyro runs with these names in place of Pyro's.

    from ppgen.pyro_compat import SVI, Trace_ELBO     # was: from pyro.infer import SVI, Trace_ELBO

SVI, MCMC, NUTS, HMC and Predictive are ppgen's; every other name of `pyro.infer` is Pyro's own.
"""

from typing import Any

from pyro import infer
from pyro.infer import MCMC, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

from ppgen.pyro_compat.svi import SVI

__all__ = ["MCMC", "SVI", "TraceEnum_ELBO", "TraceMeanField_ELBO", "Trace_ELBO"]


def __getattr__(name: str) -> Any:
    return getattr(infer, name)
