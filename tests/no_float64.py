"""A pretend accelerator without float64, as Apple's is.

Its tensors live on the host, but act as a real accelerator's would.

Within `Pretended`, `device="mps"` gives tensors of the class `OnDevice`. Operations on them that
would give a float64 are refused, and so are operations that mix them with tensors of the host. A
tensor brought to the host is an ordinary tensor without these limits.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("mps")
HOST = torch.device("cpu")
MOVES = {
    "_has_compatible_shallow_copy_type",
    "to",
    "cpu",
    "copy_",
    "__set__",
    "__getitem__",
    "__setitem__",
    "load_state_dict",
    "as_subclass",
    "type",
    "backward",
}
WIDE = (torch.float64, torch.complex128)


class OnDevice(torch.Tensor):
    """A tensor on the pretend accelerator."""


class Pretended(TorchFunctionMode):
    """Within it ``mps`` is an accelerator. `calls` counts the operations on it."""

    calls = 0

    def __enter__(self):
        self.overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error):
        torch.__future__.set_overwrite_module_params_on_conversion(self.overwritten)
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name in ("_parse_to", "device"):  # words for a device alone
            return func(*args, **kwargs)
        leaves = tree_flatten((args, kwargs))[0]
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        if ours and func == torch.Tensor.device.__get__:
            return DEVICE
        if ours and name in ("__deepcopy__", "__reduce_ex__"):
            plain = ours[0].detach().as_subclass(torch.Tensor)
            return (
                OnDevice.moved(plain.clone())
                if name == "__deepcopy__"
                else plain.__reduce_ex__(args[1])
            )
        if ours and name == "random_" and args[1:2] == (-(2**63),):
            raise RuntimeError("random_mps_ currently does not handle the lowest() -> max() range")
        on_device = self._result_is_on_device(name, leaves, tensors, ours, kwargs)
        mixed = [
            tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim() > 0
        ]
        if ours and mixed and name not in MOVES:
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, found mps and cpu"
            )
        args, kwargs = tree_map(_host, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        self.calls += on_device
        given = {id(tensor) for tensor in tensors}

        def placed(value):
            if not isinstance(value, torch.Tensor) or (
                id(value) in given and isinstance(value, OnDevice) == on_device
            ):
                return value
            if not on_device:
                return value.as_subclass(torch.Tensor) if isinstance(value, OnDevice) else value
            if value.dtype in WIDE:
                raise TypeError(
                    f"{name}: cannot convert a MPS Tensor to float64 dtype as the MPS framework "
                    "doesn't support float64"
                )
            return value.as_subclass(OnDevice)

        with torch._C.DisableTorchFunctionSubclass():
            return tree_map(placed, result)

    @staticmethod
    def _result_is_on_device(name, leaves, tensors, ours, kwargs):
        """Where a result is: where an argument says, else where the first tensor is."""
        named = [
            torch.device(leaf)
            for leaf in leaves
            if isinstance(leaf, torch.device) or (isinstance(leaf, str) and leaf in ("mps", "cpu"))
        ]
        if named:
            return named[0].type == "mps"
        if name == "cpu":
            return False
        if name == "to" and len(tensors) == 2:
            return isinstance(tensors[1], OnDevice)
        if name in MOVES:
            return isinstance(tensors[0], OnDevice) if tensors else False
        return bool(ours)


def _host(value):
    if isinstance(value, torch.device) and value.type == "mps":
        return HOST
    return "cpu" if isinstance(value, str) and value == "mps" else value


def _moved(plain):
    with torch._C.DisableTorchFunction():
        return plain.as_subclass(OnDevice)


OnDevice.moved = staticmethod(_moved)
