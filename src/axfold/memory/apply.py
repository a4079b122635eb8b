"""A plan is carried out by a network: two attributes of the modules that read them are set, from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

from torch import nn

from axfold.memory.host import Bus, HostRows
from axfold.memory.plan import Plan
from axfold.memory.rows import Rows

EVOFORMER = ".trunk.evoformer."  # where a network has the stack whose blocks may be wider


def apply(network: nn.Module, plan: Plan, bus: Bus | None = None) -> None:
    """Run `network` as `plan` says, until another is applied.

    `bus` carries what the plan keeps on the host; a plan that keeps nothing there needs none. Representations that an
    earlier plan kept by it are given up.
    """
    if bus is None and (plan.host or plan.rest):
        raise ValueError("a plan that keeps representations on the host needs a bus")
    if bus is not None:
        bus.release()
    for name, module in _modules(network):
        own = vars(
            module
        )  # PyTorch's ways to read and set attributes take as long as a small protein's block
        if isinstance(own.get("rows"), Rows):
            stage = getattr(module, "stage", None)  # the network itself only makes a representation
            size = None if stage is None else plan.blocks.get(stage)
            if name.startswith(EVOFORMER):
                size = plan.wider.get(stage or "", size)
            rows = (
                HostRows(size, bus, plan.host, {"pair": plan.kept}, stage or "", plan.handovers, plan.lent)
                if plan.host
                else Rows(size, context_bytes=plan.context_bytes, direct=stage in plan.direct)
            )
            own["rows"] = rows
        if "idle" in own:
            own["idle"] = bus.resting if bus is not None and plan.rest else nullcontext


def _modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules with their names, in no order; PyTorch goes through a generator for each that contains one."""
    waiting = [("", network)]
    while waiting:
        name, module = waiting.pop()
        yield name, module
        waiting += ((f"{name}.{key}", inner) for key, inner in module._modules.items() if inner is not None)
