"""Where numbers stopped being finite: the first tensor that isn't, looked for by doing the same again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from axfold.train.loss import Losses


def tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in dictionaries, sequences and dataclasses, by the way that leads to them."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, tuple | list):
        for i, value in enumerate(tree):
            yield from tensors(value, f"{name}.{i}" if name else str(i))
    elif is_dataclass(tree):
        for field in fields(tree):
            yield from tensors(getattr(tree, field.name), f"{name}.{field.name}" if name else field.name)


def not_finite(x: Tensor) -> str | None:
    """What a tensor holds that is no finite number: "NaN" or "infinity"."""
    x = x.detach()
    if not x.is_floating_point() or bool(x.isfinite().all()):
        return None
    return "NaN" if bool(x.isnan().any()) else "infinity"


class _Found(Exception):
    pass


def first_bad(network: nn.Module, example: Any, losses: Callable[[], Losses]) -> str | None:
    """What is the first not to be finite, in words; None where all is.

    losses() passes `example` through the network. Looked at are, in this order, the parameters, what the passes and
    labels bring, what each module puts out, each term of the loss, and the gradients as they are found.
    """

    def look(what: str, tree: Any) -> None:
        for name, x in tensors(tree):
            if bad := not_finite(x):
                raise _Found(f"{what}{f' ({name})' if name else ''} holds {bad}")

    try:
        for name, parameter in network.named_parameters():
            look(f"the parameter {name}", parameter)
        for name, x in tensors({"passes": example.passes, "labels": example.labels}):
            look(f"the input {name}", x)
        with ExitStack() as stack:
            for name, module in network.named_modules():

                def ended(_: Any, __: Any, output: Any, *, name: str = name) -> None:
                    look(f"the output of {name or 'the network'}", output)

                stack.callback(module.register_forward_hook(ended).remove)
            for name, parameter in network.named_parameters():

                def arrived(p: Tensor, *, name: str = name) -> None:
                    look(f"the gradient of {name}", p.grad)

                stack.callback(parameter.register_post_accumulate_grad_hook(arrived).remove)
            found = losses()
            for name, term in found.terms.items():
                look(f"the loss term {name}", term)
            look("the loss", found.total)
            found.total.sum().backward()
    except _Found as error:
        return str(error)
    return None
