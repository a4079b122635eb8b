"""Small proteins without the cost of launches: blocks of the network replayed as CUDA graphs, applied from outside.

A block of a small protein is some sixty kernels of a few microseconds each, and launching them takes longer than they
run. So a block is recorded once for a shape and replayed from then on. The blocks of a stack are one program with other
parameters: one recording serves all of them, in every model, because a block's parameters (some MB) are copied to where
the recording reads them. So a shape costs two blocks at the speed of launches, and no protein is padded to another's.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from axfold.memory.costs import Sizes
from axfold.memory.plan import MARGIN, Plan
from axfold.memory.rows import Rows
from axfold.model.alphafold import AlphaFold

MOST_RESIDUES = 768  # of a protein for which launches matter
COPIES = "copies for CUDA graphs"
KEPT = 64  # recordings: four for a shape
ALIGNED = 512  # bytes, as PyTorch's allocator aligns tensors


def with_graphs(plan: Plan, sizes: Sizes, budget_bytes: int) -> Plan | None:
    """The plan with what graphs hold beside it, where graphs are worth it and there is room; else None.

    Recordings have a pool of memory of their own, at most what a pass takes, and copies of the representations. What a
    pass recycles is kept on the device too, in case that the memory runs out (`network.passes`).
    """
    if not sizes.on_gpu or plan.tier != "resident" or sizes.residues > MOST_RESIDUES:
        return None
    held = bytes_held(sizes) + sizes.residues**2 * sizes.model.c_z * sizes.itemsize
    if 2 * plan.peak_device_bytes + held > (1 - MARGIN) * budget_bytes:
        return None
    return replace(plan, parts={**plan.parts, COPIES: held})


def bytes_held(sizes: Sizes) -> int:
    """Bytes of the copies on which recordings work: the pair representation, and what is largest beside it."""
    model, n = sizes.model, sizes.residues
    msa = (sizes.clusters + sizes.templates) * (model.c_m + 1) * sizes.itemsize
    extra = sizes.extra * (model.c_e + 1) * sizes.itemsize
    layer = (2 * model.c_s + 4 + 3 + 2) * max(sizes.itemsize, 4)
    return n * n * (model.c_z + 1) * sizes.itemsize + n * max(msa, extra, layer) + 8 * ALIGNED


_Method = tuple[nn.Module, str, Callable[..., Any]]


class Recorder(Protocol):
    """Records what a function does with tensors that stay where they are."""

    def record(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """What does again what run() does, and its result, which that fills; run() itself changes nothing yet."""
        ...


class CudaRecorder:
    """By CUDA graphs, which share one pool of memory: none runs beside another."""

    def __init__(self, device: torch.device):
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def record(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        # torch.cuda.graph() would also give all cached memory back, at each recording
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = run()
            except BaseException:  # an interruption too: a capture must end
                with suppress(RuntimeError):  # the first error is the one to tell
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph.replay, result


@dataclass
class _Program:
    """A function of tensors at fixed places, for one shape. replay: None before it is recorded"""

    inputs: tuple[Tensor, ...]
    warm: bool = False
    refused: bool = False
    replay: Callable[[], None] | None = None
    result: Any = None


class _Template:
    """A copy of a module, through whose parameters the same part of any model is run."""

    def __init__(self, module: nn.Module, method: str):
        with torch.inference_mode(False), torch.no_grad():
            self.module = copy.deepcopy(module)
        for inner in self.module.modules():
            inner._forward_hooks.clear()
            inner._forward_pre_hooks.clear()
        self.run: Callable[..., Any] = getattr(self.module, method)
        self._parameters: list[Tensor] = [*self.module.parameters()]
        self._by_rows = [inner for inner in self.module.modules() if hasattr(inner, "rows")]

    def load(self, parameters: list[Tensor]) -> None:
        torch._foreach_copy_(self._parameters, parameters)

    def set_rows(self, rows: Sequence[Rows]) -> None:
        for module, own in zip(self._by_rows, rows, strict=True):
            setattr(module, "rows", own)  # noqa: B010 - it is no tensor, as PyTorch's annotations have it


class Part:
    """A module of a network that is replayed, and the template that stands for it."""

    def __init__(self, module: nn.Module, method: str, template: _Template):
        self.template = template
        self.eager: Callable[..., Any] = getattr(type(module), method).__get__(module)
        self.parameters: list[Tensor] = [*module.parameters()]
        self._module = module
        self._by_rows: list[Any] = [inner for inner in module.modules() if hasattr(inner, "rows")]
        self._inner = [inner for inner in module.modules() if inner is not module]

    @property
    def rows(self) -> tuple[Rows, ...]:
        return tuple(inner.rows for inner in self._by_rows)

    @property
    def watched_inside(self) -> bool:
        """Whether anyone measures what is inside, where nothing is called in a replay."""
        return any(inner._forward_hooks or inner._forward_pre_hooks for inner in self._inner)

    @property
    def learns(self) -> bool:
        return torch.is_grad_enabled() or self._module.training


class Graphs:
    """Recordings of the parts of networks on a device. Networks that run one after the other share them.

    The first call of a part with some shape runs as ever, so that every kernel is built and loaded; the second is
    recorded. Results are those without graphs, bit for bit. What can't be recorded runs as ever, and say() tells so.
    """

    def __init__(self, device: torch.device, recorder: Callable[[], Recorder] | None = None):
        if device.type == "cuda" and device.index is None:  # tensors know theirs by its number
            device = torch.device("cuda", torch.cuda.current_device())
        self.device = device
        self.say: Callable[[str], None] = lambda text: None
        self._make_recorder = recorder or (lambda: CudaRecorder(device))
        self._recorder: Recorder | None = None
        self._arena: Tensor | None = None
        self._templates: dict[Any, _Template] = {}
        self._programs: OrderedDict[Any, _Program] = OrderedDict()
        self._refused: set[Any] = set()
        self._open: _Program | None = None  # of the stack that runs
        self._methods: WeakKeyDictionary[AlphaFold, tuple[object, list[_Method]]] = WeakKeyDictionary()

    def apply(self, network: AlphaFold, held: int = 0) -> None:
        """Replay this network's blocks from now on, until `remove`. held: `bytes_held` of what comes, taken at once."""
        with suppress(torch.OutOfMemoryError):  # which the first program tells
            self._take(held)
        both = network.trunk.single.weight, network.structure.project.weight
        kind = [(id(p), p.dtype, p.device) for p in both]  # parameters that are replaced are others
        known, methods = self._methods.get(network, (None, []))
        if known != kind:
            self.remove(network)
            methods = list(self._replacements(network))
            self._methods[network] = kind, methods
        for module, name, function in methods:
            setattr(module, name, function)

    def remove(self, network: AlphaFold) -> None:
        """Run this network as ever."""
        for module, name, _ in self._methods.get(network, (None, []))[1]:
            module.__dict__.pop(name, None)

    def _replacements(self, network: AlphaFold) -> Iterator[_Method]:
        """Modules, names of their methods, and what takes the places of these."""
        sizes, trunk = network.sizes, network.trunk
        for stack, c, of_stack in (
            (trunk.extra_stack, sizes.c_e, sizes.extra_stack),
            (trunk.evoformer, sizes.c_m, sizes.evoformer),
        ):
            parts = [self._part(block, "forward", (c, sizes.c_z, of_stack)) for block in stack.blocks]
            for block, part in zip(stack.blocks, parts, strict=True):
                yield block, "forward", self._replayed(part)
            if parts:
                yield stack, "forward", self._staged(type(stack).forward.__get__(stack), parts)
        if trunk.template_pair is not None:
            for block in trunk.template_pair.embed.blocks:
                yield block, "forward", self._replayed(self._part(block, "forward", sizes.templates))
        structure = network.structure
        part = self._part(structure, "layer", (sizes.c_s, sizes.c_z, sizes.structure))
        yield structure, "layer", self._replayed(part)

    def clear(self) -> None:
        """Give the memory back; what can't be recorded for want of memory may be tried again."""
        self._programs.clear()
        self._refused.clear()
        self._recorder = self._arena = None

    def _part(self, module: nn.Module, method: str, config: object) -> Part:
        weight = next(module.parameters())
        key = type(module), config, weight.dtype, weight.device
        if key not in self._templates:
            self._templates[key] = _Template(module, method)
        return Part(module, method, self._templates[key])

    def _replayed(self, part: Part) -> Callable[..., Any]:
        """What takes the place of a module's method."""

        def call(*inputs: Tensor) -> Any:
            if self._open is not None and inputs[0] is self._open.inputs[0]:
                return self._run(self._open, part, inputs)
            if part.learns or part.watched_inside:
                return part.eager(*inputs)
            with self._program(part, inputs) as program:
                return part.eager(*inputs) if program is None else self._run(program, part, inputs)

        return call

    def _staged(self, stack: Callable[..., Any], parts: Sequence[Part]) -> Callable[..., Any]:
        """What takes the place of a stack's forward: its representations are copied once for all blocks."""

        def call(*inputs: Tensor) -> Any:
            if parts[0].learns or any(part.watched_inside for part in parts):
                return stack(*inputs)
            with self._program(parts[0], inputs) as program:
                if program is None:
                    return stack(*inputs)
                _copy(inputs, program.inputs)
                return _results(stack(*program.inputs), program.inputs, inputs)

        return call

    @contextmanager
    def _program(self, part: Part, inputs: tuple[Tensor, ...]) -> Iterator[_Program | None]:
        """The program for such inputs, None where there can be none; the blocks of a stack find it open."""
        key = part.template, *map(_form, inputs), part.rows, torch.get_float32_matmul_precision()
        program = None
        if inputs[0].device == self.device and key not in self._refused:
            program = self._programs.get(key)
            if program is None:
                try:
                    places = self._places(inputs)
                except torch.OutOfMemoryError as error:
                    self._refused.add(key)
                    self._tell(error)
                else:
                    program = self._programs[key] = _Program(places)
        if program is None:
            yield None
            return
        self._programs.move_to_end(key)
        while len(self._programs) > KEPT:
            self._programs.popitem(last=False)
        before, self._open = self._open, program
        try:
            yield program
        finally:
            self._open = before
            if program.refused:
                self._programs.pop(key, None)
                self._refused.add(key)
            else:
                self._programs[key] = program  # a second try at recording has let go of all

    def _run(self, program: _Program, part: Part, inputs: tuple[Tensor, ...]) -> Any:
        """One call of a part by a program, with that part's parameters."""
        template = part.template
        if inputs[0] is not program.inputs[0]:
            _copy(inputs, program.inputs)
        template.load(part.parameters)
        if program.replay is None:
            template.set_rows(part.rows)
            if program.warm and not program.refused:
                self._record(program, template)
        if program.replay is None:
            program.warm = True
            return _results(template.run(*program.inputs), program.inputs, inputs)
        program.replay()
        return _results(program.result, program.inputs, inputs, copied=True)

    def _record(self, program: _Program, template: _Template) -> None:
        for last in (False, True):
            if self._recorder is None:
                self._recorder = self._make_recorder()
            try:
                program.replay, program.result = self._recorder.record(lambda: template.run(*program.inputs))
                return
            except RuntimeError as error:
                self._programs.clear()  # what they hold may be what is missing
                self._recorder = None
                if last or not isinstance(error, torch.OutOfMemoryError):
                    program.refused = True
                    self._tell(error)
                    return
            # PyTorch can't give back what it keeps for later while something is recorded
            torch.cuda.empty_cache()

    def _tell(self, error: RuntimeError) -> None:
        full = isinstance(error, torch.OutOfMemoryError)
        reason = "the memory ran out" if full else str(error).partition("\n")[0]
        self.say(
            f"A part of the network could not be recorded as a CUDA graph ({reason}); it runs without one."
        )

    def _places(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tensors like these at places that stay. No two programs run at once, so all have the same places."""
        forms = [_form(x) for x in inputs]
        sizes = [(1 if hidden else prod(shape)) * dtype.itemsize for shape, dtype, hidden in forms]
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + -(-size // ALIGNED) * ALIGNED)
        with torch.inference_mode(False):
            arena = self._take(starts[-1])
            places = []
            for (shape, dtype, hidden), start, size in zip(forms, starts, sizes, strict=False):
                place = arena[start : start + size].view(dtype)
                places.append(place[0].expand(shape) if hidden else place.view(shape))
        return tuple(places)

    def _take(self, size: int) -> Tensor:
        """The memory of the copies, which has at least so many bytes."""
        if self._arena is None or len(self._arena) < size:
            self._programs.clear()  # they work in the one that goes
            # nothing can be recorded in the pool of a recorder whose recordings are all gone
            self._recorder = self._arena = None
            with torch.inference_mode(False):
                self._arena = torch.zeros(size, dtype=torch.uint8, device=self.device)
        return self._arena


def _form(x: Tensor) -> tuple[torch.Size, torch.dtype, bool]:
    """What a recording depends on: the shape, the type, and whether it is one number expanded."""
    return x.shape, x.dtype, x.dim() > 0 and not any(x.stride())


def _copy(inputs: Sequence[Tensor], places: Sequence[Tensor]) -> None:
    for x, place in zip(inputs, places, strict=True):
        if _form(x)[2]:
            first = (0,) * x.dim()
            place[first].copy_(x[first])
        else:
            place.copy_(x)


def _results(result: Any, places: Sequence[Tensor], inputs: Sequence[Tensor], copied: bool = False) -> Any:
    """The tensors of a result where their owner has them.

    One that is an input, updated in its place, becomes that input updated; another is a copy where the recording
    will write into it again.
    """

    def of(x: Tensor) -> Tensor:
        for place, given in zip(places, inputs, strict=True):
            if x.data_ptr() == place.data_ptr() and x.shape == place.shape:
                return given if given is place else given.copy_(place)
        return x.clone() if copied else x

    return tree_map(of, result)
