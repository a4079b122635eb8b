"""A plan is carried out by a network: two attributes of the modules that read them are set, from outside."""

from __future__ import annotations

from contextlib import nullcontext

from torch import nn

from axfold.memory.host import Bus, HostRows
from axfold.memory.plan import Plan
from axfold.memory.rows import Rows

EVOFORMER = "trunk.evoformer."  # where a network has the stack whose blocks may be wider


def apply(network: nn.Module, plan: Plan, bus: Bus | None = None) -> None:
    """Run `network` as `plan` says, until another is applied.

    `bus` carries what the plan keeps on the host; a plan that keeps nothing there needs none. Representations that an
    earlier plan kept by it are given up.
    """
    if bus is None and (plan.host or plan.rest):
        raise ValueError("a plan that keeps representations on the host needs a bus")
    if bus is not None:
        bus.release()
    for name, module in network.named_modules():
        if isinstance(getattr(module, "rows", None), Rows):
            stage = getattr(module, "stage", None)  # the network itself only makes a representation
            size = None if stage is None else plan.blocks.get(stage)
            if name.startswith(EVOFORMER):
                size = plan.wider.get(stage or "", size)
            rows = (
                HostRows(size, bus, plan.host, {"pair": plan.kept}, stage or "", plan.handovers, plan.lent)
                if plan.host
                else Rows(size, context_bytes=plan.context_bytes, direct=stage in plan.direct)
            )
            setattr(module, "rows", rows)  # noqa: B010 - it is no tensor, as PyTorch's annotations have it
        if hasattr(module, "idle"):
            idle = bus.resting if bus is not None and plan.rest else nullcontext
            setattr(module, "idle", idle)  # noqa: B010
