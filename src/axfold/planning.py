"""Which plan a protein is folded by: the memory that there is, against what each plan takes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from axfold import ops
from axfold.config import Config
from axfold.data.query import Query
from axfold.errors import InputError
from axfold.forecast import CPU_FEATURES, line, sizes_for
from axfold.graphs import Graphs, bytes_held, with_graphs
from axfold.memory.apply import apply
from axfold.memory.budget import parse_bytes, written
from axfold.memory.costs import Sizes
from axfold.memory.host import Bus
from axfold.memory.plan import DoesNotFit, Plan, plan
from axfold.model.alphafold import AlphaFold
from axfold.model.msa import MSAColumnGlobalAttention


@dataclass(frozen=True)
class Memory:
    """What may be used. device_bytes: by PyTorch on the device; host_bytes: of the machine; name: of the device"""

    device: torch.device
    device_bytes: int
    host_bytes: int
    name: str

    @property
    def cores(self) -> int:
        return os.cpu_count() or 1


def find_memory(device: torch.device, budget: str | None = None) -> Memory:
    """The memory that is free now, or `budget` of it ("8GB"). Raises InputError.

    What other processes hold of a GPU is not free. Memory that PyTorch keeps for its next tensors is.
    """
    host = _host_memory()
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device)
        name = torch.cuda.get_device_name(device)
    else:
        free, total, name = host, _total_memory(), "cpu"
    if budget is not None:
        wanted = parse_bytes(budget)
        if wanted > total:
            raise InputError(
                f"--memory-budget {budget}: {name} has {written(total)}; give less, or leave the option out."
            )
        free = min(wanted, free)
    return Memory(device, free, host, name)


def sizes_before(query: Query, config: Config, precision: str, device: torch.device) -> Sizes:
    """Sizes of a pass, at most, as they are known before there are features and weights."""
    rows = max(sum(len(alignment.sequences) for alignment in query.alignments), 1)
    return sizes_for(
        config,
        len(query.sequence),
        precision,
        clusters=rows,
        extra=rows,
        templates=config.data.templates if query.templates else 0,
        on_gpu=device.type == "cuda",
    )


def sizes_of(sample: Mapping[str, Sized], config: Config, network: AlphaFold) -> Sizes:
    """Sizes of a pass over such a sample of the features."""
    weight = network.trunk.single.weight
    return Sizes(
        residues=len(sample["aatype"]),
        clusters=len(sample["msa_feat"]),
        extra=len(sample["extra_msa"]),
        templates=len(sample.get("template_aatype", ())),
        model=config.model,
        itemsize=weight.itemsize,
        weights=sum(p.numel() * p.itemsize for p in network.parameters()),
        ensembles=config.ensembles,
        on_gpu=weight.is_cuda,
        kernels=kernels_of(network),
        msa_features=(0, 0) if weight.is_cuda else CPU_FEATURES,
    )


@torch.no_grad()
def kernels_of(network: AlphaFold) -> frozenset[str]:
    """The ops whose own kernels take the calls of this network's trunk: some of KERNELS."""
    block: Any = network.trunk.evoformer.blocks[0]
    pair, mean = block.pair, block.outer_product_mean
    products, o = mean.output.weight, mean.a.out_features
    triangle, attention = pair.multiplication_outgoing, pair.attention_starting

    def of(*layers: torch.nn.Module) -> list[torch.Tensor]:
        return [parameter for layer in layers for parameter in layer.parameters()]

    norm = of(triangle.norm)
    z = norm[0].new_zeros(1, 1, len(norm[0]))
    own = z.new_zeros(triangle.norm_product.weight.shape[0], 1, 1)
    heads, width = attention.attention.heads, attention.attention.gate.out_features
    q = z.new_zeros(1, 1, heads, width // heads)
    layers = of(triangle.norm, triangle.norm_product, triangle.output, triangle.output_gate)
    transition = of(pair.transition.norm, pair.transition.expand, pair.transition.output)
    # as the network's own, so that a kernel that is checked now is compiled as it will be used
    mask = z.new_ones(()).expand(1, 1)
    count = z.new_ones((), dtype=torch.promote_types(z.dtype, torch.float32)).expand(1, 1)
    points, norm_pair = network.structure.attention, network.structure.norm_pair
    sizes = network.sizes.structure
    residue = norm_pair.weight.new_zeros(1, sizes.heads, sizes.c_hidden)
    here = residue[:, 0, 0]
    point, value_point = (
        residue.new_zeros(1, sizes.heads, number, 3) for number in (sizes.query_points, sizes.value_points)
    )
    of_points = [residue] * 3 + [point, point, value_point, points.point_weights, z]
    of_points += [*of(norm_pair, points.bias), here, here]
    calls: dict[str, tuple[ops.Op, list[torch.Tensor]]] = {
        "gated_attention": (ops.gated_attention, [q, q, q, q, mask, z.new_zeros(heads, 1, 1)]),
        "invariant_point_attention": (ops.invariant_point_attention, of_points),
        "linear_residual": (ops.linear_residual, [z, q.flatten(-2), *of(attention.attention.output)]),
        "normed_linear": (ops.normed_linear, [z, *of(attention.norm, attention.bias)]),
        "transition": (ops.transition, [z, *transition]),
        "outer_product_mean": (
            ops.outer_product_update,
            [z, products.new_zeros(1, 1, o), products.new_zeros(1, 1, o), count, products, mean.output.bias],
        ),
        "triangle_operand": (ops.triangle_operand, [z, mask, *norm, *of(triangle.own)]),
        "triangle_update": (ops.triangle_update, [z, own, own, *layers]),
    }
    of_extra = network.trunk.extra_stack.modules()
    if column := next((x for x in of_extra if isinstance(x, MSAColumnGlobalAttention)), None):
        e = z.new_zeros(1, 1, len(column.norm.weight))
        of_column = of(column.norm, column.q, column.kv, column.gate, column.output)
        calls["global_column_attention"] = ops.global_column_attention, [e, mask, *of_column]
    return frozenset(name for name, (op, given) in calls.items() if op.backend_for(*given) == "triton")


def choose(sizes: Sizes, memory: Memory, leaner_than: Plan | None = None) -> Plan:
    """The fastest plan that fits. Raises DoesNotFit."""
    host = memory.host_bytes if sizes.on_gpu else None
    return plan(
        sizes,
        memory.device_bytes,
        host_bytes=host,
        device=memory.name,
        cores=memory.cores,
        leaner_than=leaner_than,
    )


class Ladder:
    """The plan that a network runs by, and leaner ones for when its memory does not suffice."""

    def __init__(
        self,
        network: AlphaFold,
        sizes: Sizes,
        memory: Memory,
        bus: Bus,
        say: Callable[[str], None],
        graphs: Graphs | None = None,
    ):
        """Makes `network` run by the fastest plan that fits, with `graphs` where they help. Raises DoesNotFit."""
        self._network, self._sizes, self._memory, self._bus, self._say = network, sizes, memory, bus, say
        self._graphs = graphs
        self.plan = choose(sizes, memory)
        apply(network, self.plan, bus)
        with_them = graphs and with_graphs(self.plan, sizes, memory.device_bytes)
        self._has_graphs = with_them is not None
        if graphs is not None and with_them:
            self.plan = with_them
            graphs.say = say
            graphs.apply(network, bytes_held(sizes))
        else:
            self._without_graphs()

    def has_graphs(self) -> bool:
        """Whether graphs are used, for which there is twice the memory of a pass."""
        return self._has_graphs

    def leaner(self) -> bool:
        """The memory ran out: take the next leaner plan and say so. False where there is none."""
        self._without_graphs()
        # what another process took meanwhile is gone
        now = find_memory(self._memory.device)
        self._memory = replace(self._memory, device_bytes=min(self._memory.device_bytes, now.device_bytes))
        try:
            self.plan = choose(self._sizes, self._memory, leaner_than=self.plan)
        except DoesNotFit:
            return False
        apply(self._network, self.plan, self._bus)
        self._say(
            f"The memory of {self._memory.name} ran out; going on with {line(self.plan, self._memory.device_bytes)}."
        )
        return True

    def _without_graphs(self) -> None:
        self._has_graphs = False
        if self._graphs is not None:
            self._graphs.remove(self._network)
            self._graphs.clear()


def _host_memory() -> int:
    """Bytes that this process could still take: without swapping where the system says so, and within the limit that
    a container sets."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text("ascii").splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = _total_memory()
    return max(min([free, *(limit - used for limit, used in map(_limited, _CGROUPS) if limit)]), 0)


def _limited(names: tuple[str, str, str]) -> tuple[int, int]:
    """Bytes that a container may have, 0 for no limit, and bytes in use that can't be had back."""
    folder, limit, used = names
    try:
        most = int((Path(folder) / limit).read_text("ascii"))
        taken = int((Path(folder) / used).read_text("ascii"))
        stat = (Path(folder) / "memory.stat").read_text("ascii")
    except (OSError, ValueError):  # "max" is no number
        return 0, 0
    pages = re.search(r"^(?:total_)?inactive_file (\d+)$", stat, re.MULTILINE)  # of files that were read
    return most, taken - int(pages[1] if pages else 0)


_CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def _total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
