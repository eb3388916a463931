"""What a pruned model takes on disk, form by form, beside what it takes without any.

1. ``dense``: the bytes of all tensors, nothing else. Every other number is the size of a whole file, header and digest included.
2. The forms are those of file.py, each with and without zstd (level 19). ``safetensors``: the plain state dict as a safetensors file.
   Rows whose package is not installed are left out.
3. ``numbers`` counts what the paper counts, over the tensors that are stored sparse: 2a + n + 1 for CSR and CSC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from fxprune.sparse.encode import bits_of, compress
from fxprune.sparse.file import CONV_BITS, FORMS, LINEAR_BITS, encode, state_of, zstandard


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes per form (clauses 1 and 2)."""

    bytes: Mapping[str, int]

    def table(self) -> str:
        """A Markdown table: form, bytes, share of dense."""
        dense = max(1, self.bytes["dense"])
        rows = [f"| {form} | {size:,} | {100 * size / dense:.1f} % | {dense / size:.1f} x |" for form, size in self.bytes.items()]
        return "\n".join(("| form | bytes | of dense | smaller by |", "|---|---|---|---|", *rows))


def sizes(source: nn.Module | Mapping[str, Tensor], *, conv_bits: int = CONV_BITS, linear_bits: int = LINEAR_BITS) -> Sizes:
    """Clauses 1 and 2; the bits are those of relative indices."""
    state = {name: tensor.contiguous() for name, tensor in state_of(source).items()}
    found = {"dense": sum(tensor.numel() * tensor.element_size() for tensor in state.values())}
    packed = find_spec("zstandard") is not None
    for form in (*FORMS[1:], "auto"):
        found[form] = len(encode(state, form=form, conv_bits=conv_bits, linear_bits=linear_bits))
        if packed:
            found[f"{form} + zstd"] = len(encode(state, form=form, zstd=True, conv_bits=conv_bits, linear_bits=linear_bits))
    if find_spec("safetensors") is not None:
        from safetensors.torch import save

        plain: Any = save({name: tensor.clone() for name, tensor in state.items()})
        found["safetensors"] = len(plain)
        if packed:
            found["safetensors + zstd"] = len(zstandard().ZstdCompressor(level=19).compress(plain))
    return Sizes(found)


def numbers(source: nn.Module | Mapping[str, Tensor], *, rows: bool = True) -> dict[str, int]:
    """Clause 3: numbers in CSR (or CSC) per tensor of rank 2 and more."""
    state = state_of(source)
    return {name: compress(bits_of(t), tuple(t.shape), rows=rows).numbers for name, t in state.items() if t.dim() >= 2}
