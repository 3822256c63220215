"""The devices of TPUs that are not here, for which libtpu compiles."""

import importlib.util
import os

from uam_jax.engine.parallel import Devices
from uam_jax.errors import InputError, shortened

# libtpu looks for a TPU's machine by these; nothing of it is needed to compile.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


def absent_tpus(topology: str) -> Devices:
    """Returns the devices of a topology such as "v5e:2x2"; programs can be compiled for them, but not run.

    Raises:
      InputError: libtpu is not installed, or it knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"--for {topology}: the TPU's compiler is not installed: pip install 'uam_jax[tpu-plan]'"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import jax
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        first = shortened(next(iter(str(error).splitlines()), ""), 200)
        raise InputError(f"--for {topology}: libtpu can't make this topology ({first})") from None
    return Devices(tuple(found.devices))
