"""`Server`: a deployment of Ray Serve, whose replicas each have an engine."""

from __future__ import annotations

from ray import serve

from fastdecode.ray.replica import Replica, app_of_replica
from fastdecode.serve.limits import Limits

SPARE_SECONDS = 30.0
"""How much longer a replica that is replaced may take than a request may."""

Server = serve.deployment(
    serve.ingress(app_of_replica)(Replica),
    name="fastdecode",
    max_ongoing_requests=256,
    graceful_shutdown_timeout_s=Limits().seconds + SPARE_SECONDS,
)
"""``serve.run(Server.options(num_replicas=2).bind(model="blocks"))``. Its arguments and methods are those of
`fastdecode.ray.replica.Replica`.
"""
