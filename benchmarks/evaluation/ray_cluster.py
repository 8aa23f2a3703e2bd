"""A Ray cluster of two nodes on this machine, for tests and measurements."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

MEMORY = 100 * 2**20


@contextlib.contextmanager
def two_nodes() -> Iterator[str]:
    """Address of a cluster of two nodes with one CPU each, whose processes talk over the loopback interface only.

    Its processes end with the context.  Ray must not have been imported before: it reads its environment then.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else Ray puts the address on the network for 127.0.0.1
    import ray.util
    from ray.cluster_utils import Cluster

    if ray.util.get_node_ip_address() != "127.0.0.1":
        raise RuntimeError("Ray was imported before its environment was set")
    node: dict[str, Any] = {
        "num_cpus": 1, "object_store_memory": MEMORY, "node_ip_address": "127.0.0.1", "include_dashboard": False,
        "include_log_monitor": False, "no_monitor": True,  # fewer processes, a sooner start
    }  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)
        yield str(cluster.address)
    finally:
        cluster.shutdown()
