"""What the other nodes hear of node 0's command where it ends without a training."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING

from rlhf_core.errors import ProcessError, RlhfError

if TYPE_CHECKING:
    from rlhf_core.config import DistributedConfig, PipelineConfig
    from rlhf_core.schema import ModelRole

logger = logging.getLogger(__name__)

_NOTIFIED: ContextVar["set[ModelRole] | None"] = ContextVar("notified", default=None)
"""What the block of ``notifying_peers`` around this has called other nodes to train."""


def note_peers_notified(role: "ModelRole") -> None:
    """Say that a training has begun: from here on its own processes tell the other nodes."""
    notified = _NOTIFIED.get()
    if notified is not None:
        notified.add(role)


@contextmanager
def notifying_peers(
    config: "PipelineConfig", role: "ModelRole", *, trains_after: bool = False
) -> Iterator[None]:
    """Tell the nodes that wait for this one, as node 0, where the block ends without a training.

    Args:
        config: of the run.
        role: what is trained.
        trains_after: the training comes after the block, if that raises nothing.
    """
    error = ""
    notified: set[ModelRole] = set()
    outside = _NOTIFIED.set(notified)
    try:
        yield
    except (Exception, KeyboardInterrupt) as raised:
        error = str(raised) if isinstance(raised, RlhfError) else "its own lines say why"
        raise
    finally:
        _NOTIFIED.reset(outside)
        if role not in notified and (error or not trains_after):
            _tell(config.distributed_of(role), error)


def _tell(settings: "DistributedConfig", error: str) -> None:
    """Tell them that the command ends: by an error, or since the stage had been finished before."""
    if settings.nnodes == 1 or settings.node_rank or settings.rdzv_endpoint is None:
        return
    from rlhf_core.stages.distributed import nodes

    logger.info("peers_notified rdzv_endpoint=%s", settings.rdzv_endpoint)
    with suppress(ProcessError):  # what ends the command matters more
        rendezvous = nodes.host(settings.model_copy(update={"rdzv_timeout": 1}))
        rendezvous.report_untrained(
            f"node 0 has ended before it trained: {error}" if error else nodes.FINISHED
        )
