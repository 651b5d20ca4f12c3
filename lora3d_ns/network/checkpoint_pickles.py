"""What a pickle asks for, found by reading its opcodes, before anybody unpickles it."""

import io
import pickletools
from collections.abc import Iterator
from pathlib import Path

from lora3d_ns.errors import UnsafeCheckpointError

# Each use of an object that was put aside before can multiply the size of what is built of it; a checkpoint of tensors
# reuses names only. As many uses as this make at most 3^8 copies.
_MOST_REUSED_OBJECTS = 24

# Globals that the pickle of a plain checkpoint asks for: tensors, and the arguments of the training script. Torch's
# own list of harmless globals is longer (sparse and quantized tensors, say), and no DUSt3R checkpoint needs it.
_STORAGES = ("Float", "Half", "BFloat16", "Double", "Byte", "Char", "Short", "Int", "Long", "Bool")
_ALLOWED_GLOBALS = frozenset(
    {
        "argparse.Namespace",
        "collections.OrderedDict",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
        "torch.Size",
        *(f"torch.{name}Storage" for name in _STORAGES),
    }
)


def refuse_unsafe_pickle(data: bytes, path: Path) -> None:
    """Checks that the pickles at the start of `data` ask for nothing that a checkpoint does not need.

    Raises:
        UnsafeCheckpointError: One asks for another global, or reuses its objects beyond reason.
    """
    for name in _globals_asked_for(data):
        if name not in _ALLOWED_GLOBALS:
            raise UnsafeCheckpointError(
                f"the pickle in the file asks for {name[:120]!a}, which loading tensors does not need; "
                "nothing of it was executed",
                way_out="Do not use this file; get the checkpoint as safetensors, or from its official source",
                path=path,
            )

    if _reused_objects(data) > _MOST_REUSED_OBJECTS:
        raise UnsafeCheckpointError(
            "the pickle in the file builds objects out of themselves over and over, which tensors do not need",
            way_out="Do not use this file; get the checkpoint as safetensors, or from its official source",
            path=path,
        )


def _reused_objects(data: bytes) -> int:
    """How often the first pickle in `data` reuses an object other than a string or a global.

    Tuples nested in themselves fifty times fit into a few hundred bytes, and hashing the outermost takes for ever.
    """
    count, previous = 0, ""
    memo: dict[int, bool] = {}
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
            name_or_global = "UNICODE" in previous or "STRING" in previous or "GLOBAL" in previous
            match opcode.name:
                case "MEMOIZE":
                    memo[len(memo)] = name_or_global
                case "PUT" | "BINPUT" | "LONG_BINPUT" if isinstance(argument, int):
                    memo[argument] = name_or_global
                case "GET" | "BINGET" | "LONG_BINGET" if isinstance(argument, int):
                    count += not memo.get(argument, False)
                case "DUP":
                    count += 1
                case _:
                    pass
            previous = opcode.name
    # Damaged from here on; who reads it next says so. pickletools raises ValueError and what decoding raises.
    except (ValueError, OverflowError, MemoryError, EOFError, IndexError):
        return count
    return count


def _globals_asked_for(data: bytes) -> Iterator[str]:
    """Names of all globals in the pickles that follow each other in `data`, up to the first damaged byte.

    The names of protocol 4 are taken from the stack; following the strings last pushed finds them in every pickle that
    a pickler wrote, and gives some other, equally refused name for one made by hand.
    """
    stream = io.BytesIO(data)
    strings: list[str] = []
    memo: dict[int, str] = {}
    while stream.tell() < len(data):
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                match opcode.name:
                    case "GLOBAL" | "INST":
                        yield str(argument).replace(" ", ".", 1)
                    case "STACK_GLOBAL":
                        yield ".".join(strings[-2:])
                    case "EXT1" | "EXT2" | "EXT4":
                        yield f"extension {argument}"
                    case "MEMOIZE":
                        memo[len(memo)] = strings[-1] if strings else ""
                    case "PUT" | "BINPUT" | "LONG_BINPUT" if isinstance(argument, int):
                        memo[argument] = strings[-1] if strings else ""
                    case "GET" | "BINGET" | "LONG_BINGET" if isinstance(argument, int):
                        strings.append(memo.get(argument, ""))
                    case _ if isinstance(argument, str):
                        strings.append(argument)
                    case _:
                        pass
        # Damaged from here on; who reads it next says so. pickletools raises ValueError and what decoding raises.
        except (ValueError, OverflowError, MemoryError, EOFError, IndexError):
            return
