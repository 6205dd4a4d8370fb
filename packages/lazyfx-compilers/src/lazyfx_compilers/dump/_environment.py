"""What a run depends on besides its graph and its inputs.

The *environment* is what a reader wants to know and cannot change: versions, machine, rank. The
*settings* are switches of torch that decide which kernels run and how; a replay sets them as they
were. Random numbers have a state per device.
"""

from __future__ import annotations

import contextlib
import os
import platform
from typing import TYPE_CHECKING, Any

import torch

from lazyfx_compilers import _torch_debug
from lazyfx_compilers.errors import DumpFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ._schema import Field


def rank() -> int | None:
    """This process's rank, if it is one of several: torch.distributed's, else ``$RANK``."""
    distributed: Any = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    given = os.environ.get("RANK", "")
    return int(given) if given.isascii() and given.isdigit() else None


def environment() -> dict[str, Any]:
    """Versions and machine, as JSON; starts no accelerator."""
    from lazyfx_compilers import __version__

    found: dict[str, Any] = {
        "lazyfx": __version__,
        "torch": str(torch.__version__),
        "git": str(torch.version.git_version),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "process": os.getpid(),
    }
    for name in ("cuda", "hip"):
        version = getattr(torch.version, name, None)
        if version is not None:
            found[name] = str(version)
    cuda: Any = torch.cuda
    if cuda.is_initialized():  # asking whether there is one would spoil CUDA in a forked child
        found["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def differences(recorded: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where this machine is another than the recorded one: ``{what: (recorded, here)}``."""
    here = environment()
    return {
        key: (value, here.get(key))
        for key, value in recorded.items()
        if key in ("torch", "git", "cpu", "cuda", "hip") and here.get(key) != value
    }


def physical_memory() -> int:
    """How many bytes of memory this machine has; 64 GiB if it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on Windows
        return 1 << 36


# --- settings --------------------------------------------------------------------------------


def settings() -> dict[str, Any]:
    """The settings as they are now, as JSON."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic_warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "float32_matmul_precision": _matmul_precision(),
        "mkldnn": bool(torch.backends.mkldnn.enabled),
        "cudnn_benchmark": bool(torch.backends.cudnn.benchmark),
        "cudnn_deterministic": bool(torch.backends.cudnn.deterministic),
    }


def decode_settings(field: Field) -> dict[str, Any]:
    """Settings from JSON; those that are not recorded stay as they are.

    Raises:
        DumpFormatError: Names the file and the field.
    """
    if not isinstance(field.value, dict):
        raise field.wrong("an object")
    found: dict[str, Any] = {}
    for name in field.value:
        each = field.get(name)
        if name == "threads":
            found[name] = each.integer(least=1)
            if found[name] > 4096:
                raise each.wrong("a number of threads")
        elif name == "default_dtype":
            found[name] = _choice(each, ("float16", "bfloat16", "float32", "float64"))
        elif name == "float32_matmul_precision":
            if each.value is not None:
                found[name] = _choice(each, ("highest", "high", "medium"))
        elif name in settings():
            found[name] = each.boolean()
    return found


def _choice(field: Field, known: tuple[str, ...]) -> str:
    if field.value not in known:
        raise field.wrong(f"one of {', '.join(known)}")
    return field.text()


def _matmul_precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # since 2.9: set by the newer interface, which this one cannot tell
        return None


@contextlib.contextmanager
def applied(wanted: Mapping[str, Any]) -> Iterator[None]:
    """Run with these settings, then put back what was there. Process-wide, like torch's own."""
    before = settings()
    try:
        _apply(before, {**before, **wanted})
        yield
    finally:
        _apply({**before, **wanted}, before)


def _apply(now: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    changed = {name for name, value in wanted.items() if now.get(name) != value}
    if "threads" in changed:
        torch.set_num_threads(wanted["threads"])
    if changed & {"deterministic", "deterministic_warn_only"}:
        torch.use_deterministic_algorithms(
            wanted["deterministic"], warn_only=wanted["deterministic_warn_only"]
        )
    if "default_dtype" in changed:
        torch.set_default_dtype(getattr(torch, wanted["default_dtype"]))
    # where nobody can tell what it is, nobody could put it back
    if "float32_matmul_precision" in changed and None not in (
        now["float32_matmul_precision"],
        wanted["float32_matmul_precision"],
    ):
        torch.set_float32_matmul_precision(wanted["float32_matmul_precision"])
    for name in changed & _torch_debug.BACKEND_FLAGS.keys():
        _torch_debug.set_backend_flag(name, wanted[name])


# --- random numbers --------------------------------------------------------------------------

_CPU = "random_cpu"


def random_states(devices: Iterable[torch.device]) -> dict[str, torch.Tensor]:
    """The state of the default generators of the CPU and of these devices, by name."""
    found = {_CPU: torch.get_rng_state()}
    for device in devices:
        if device.type not in ("cpu", "meta"):
            found[f"random_{device}"] = torch.get_device_module(device).get_rng_state(device)
    return found


@contextlib.contextmanager
def random_state(
    wanted: Mapping[str, torch.Tensor], seed: int, devices: Iterable[Any]
) -> Iterator[None]:
    """Run with these random states, and this seed for the rest; then put back what was there.

    Raises:
        DumpFormatError: A recorded state is none.
    """
    involved = [torch.device(each) for each in devices]
    before = random_states(involved)
    try:
        # a generator that is not put back afterwards is not touched
        _seed(seed, before.keys() - wanted.keys())
        _set_random_states({name: wanted[name] for name in before if name in wanted})
        yield
    finally:
        _set_random_states(before)


def _seed(seed: int, names: Iterable[str]) -> None:
    """Seed these generators; ``torch.manual_seed`` seeds those of all devices, for good."""
    for name in names:
        if name == _CPU:
            torch.default_generator.manual_seed(seed)
        else:
            device = torch.device(name.removeprefix("random_"))
            module = torch.get_device_module(device)
            with module.device(device) if hasattr(module, "device") else contextlib.nullcontext():
                module.manual_seed(seed)


def _set_random_states(states: Mapping[str, torch.Tensor]) -> None:
    for name, state in states.items():
        device = name.removeprefix("random_")
        try:
            if name == _CPU:
                torch.set_rng_state(state)
            elif _is_here(device):
                torch.get_device_module(device).set_rng_state(state, device)
        except (RuntimeError, TypeError) as error:
            raise DumpFormatError(
                f"{name} is no state of a random number generator ({error}); dump the graph again"
            ) from error


def _is_here(device: str) -> bool:
    try:
        module = torch.get_device_module(device)
        return bool(module.is_available()) and (
            (torch.device(device).index or 0) < module.device_count()
        )
    except RuntimeError:
        return False
