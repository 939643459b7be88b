"""A device that is not the CPU but is made of it: what mixes the two fails here as it would on a GPU.

Its tensors hide CPU tensors, which compute: whatever works here gives the numbers that it gives on the CPU. It has no
autocast and no compiler.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

import kdx.run
from kdx.training import runtime

NAME = "elsewhere"
COPIES = ("aten::copy_", "aten::_to_copy")  # from one device to the other
INDEXES = ("aten::index.", "aten::index_put", "aten::_index_put")  # by indices on the CPU as well


class Held(Tensor):
    """A tensor that lies elsewhere; `held` are its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Held":
        place = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.size(), device=torch.device(NAME, 0), **place)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{operation}: outside of the emulation")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.detach().__reduce_ex__(protocol)  # a file holds plain tensors


class _Operations(TorchDispatchMode):
    """Compute every operation on the CPU, and refuse those that see tensors of both devices."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = operation.name(), dict(kwargs or {})
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [leaf for leaf in given if isinstance(leaf, Held)]
        _refuse_both(name, args, given, there)
        lands = _lands_there(name, args, kwargs, bool(there))
        if lands and "device" in kwargs:
            kwargs |= {"device": torch.device("cpu"), "pin_memory": False}
        args, kwargs = pytree.tree_map_only(Held, lambda leaf: leaf.held, (args, kwargs))
        result = operation(*args, **kwargs)
        if name == "aten::_local_scalar_dense" or not lands:
            return result
        known = {id(leaf.held): leaf for leaf in there}  # what an operation changes in place is the same tensor after
        return pytree.tree_map_only(Tensor, lambda leaf: known[id(leaf)] if id(leaf) in known else Held(leaf), result)


def _refuse_both(name: str, args: Sequence[Any], given: Sequence[Tensor], there: Sequence[Tensor]) -> None:
    here = [leaf for leaf in given if not isinstance(leaf, Held) and leaf.ndim > 0]  # one number may come from the CPU
    indexed_here = name.startswith(INDEXES) and not isinstance(args[0], Held)
    if there and here and (indexed_here or not name.startswith(COPIES + INDEXES)):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in given)
        raise RuntimeError(f"{name}: tensors on {NAME} and on the CPU, of shapes {shapes}")


def _lands_there(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], any_there: bool) -> bool:
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"]).type == NAME
    return isinstance(args[0], Held) if name == "aten::copy_" else any_there


class _Calls(TorchFunctionMode):
    """What torch makes without asking a mode: made on the CPU, and moved."""

    def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if call in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return call(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        if call is Tensor.new_tensor and isinstance(args[0], Held):
            return torch.tensor(args[1], dtype=args[0].dtype).to(args[0].device)
        if call is Tensor.tolist and isinstance(args[0], Held):
            return args[0].held.tolist()
        return call(*args, **kwargs)


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return []


def main() -> None:
    """`python -m tests.elsewhere <arguments>`: kdx, where `device` is chosen to be this one.

    In a process of its own: torch makes room for devices at the first backward pass.
    """
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Backend())
    runtime.choose_device = lambda wanted: torch.device(NAME, 0)
    with _Operations(), _Calls():
        kdx.run.main()


if __name__ == "__main__":
    main()
