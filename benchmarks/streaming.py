"""Slimming a checkpoint that is larger than memory, against copying it: ``python benchmarks/streaming.py --gigabytes 12``.

1. The checkpoint is synthetic: a decoder shaped like Llama (RMS norm, rotary positions, grouped-query attention, SwiGLU, untied head) with
   as many layers as fill ``--gigabytes``, in bfloat16 shards of at most ``--shard`` gigabytes. Numbers are random.
2. *Copy* is each file read and written in pieces of eight megabytes and flushed to the disk. *Slim* is ``fxprune.io.slim_checkpoint`` with
   a ratio: analysis, scores and cutting, in a process of its own.
3. Both are measured alike: wall time, and bytes of the original over time. Before each, the system is asked to forget the file contents it
   holds (``posix_fadvise``). Memory is the greatest resident set of the process, the interpreter and torch included.
4. Everything is written below ``--folder`` (a temporary one by default) and removed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIECE = 1 << 23
WIDTH, HIDDEN, HEADS, KV_HEADS, VOCABULARY = 4096, 14336, 32, 8, 32000


class Norm(nn.Module):
    """RMS norm with a weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, width // heads
        self.q_proj = nn.Linear(width, heads * self.size, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.size, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.size, bias=False)
        self.o_proj = nn.Linear(heads * self.size, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q = turned(self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2), cos, sin)
        k = turned(self.k_proj(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2), cos, sin)
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        share = self.heads // self.kv_heads
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(found.transpose(1, 2).flatten(2))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: pairs of the two halves are rotated."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Layer(nn.Module):
    """Attention and SwiGLU, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, hidden: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(width), Norm(width)
        self.self_attn = Attention(width, heads, kv_heads)
        self.gate_proj, self.up_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        y = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Decoder(nn.Module):
    """Clause 1."""

    def __init__(
        self,
        layers: int,
        width: int = WIDTH,
        hidden: int = HIDDEN,
        heads: int = HEADS,
        kv_heads: int = KV_HEADS,
        vocabulary: int = VOCABULARY,
    ) -> None:
        super().__init__()
        self.size = width // heads
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, hidden, heads, kv_heads) for _ in range(layers))
        self.norm = Norm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        steps = torch.arange(0, self.size, 2, device=tokens.device) / self.size
        angles = torch.arange(tokens.shape[1], device=tokens.device)[:, None] * 10000.0**-steps
        angles = torch.cat([angles, angles], -1)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))


def decoder(layers: int) -> Decoder:
    """The model without memory, in bfloat16."""
    with torch.device("meta"):
        return Decoder(layers).to(torch.bfloat16)


def layers_for(gigabytes: float) -> int:
    """How many layers fill so much."""
    none, one = (sum(p.numel() for p in decoder(n).parameters()) * 2 for n in (0, 1))
    return max(1, round((gigabytes * 1e9 - none) / (one - none)))


def synthesize(folder: Path, layers: int, shard_bytes: int) -> None:
    """Write the checkpoint, one tensor in memory at a time."""
    from fxprune.io.container import write
    from fxprune.io.layout import Entry
    from fxprune.io.shards import INDEX, index_text

    shards: list[list[Entry]] = [[]]
    for name, tensor in decoder(layers).state_dict().items():
        entry = Entry(name, tensor.dtype, tuple(tensor.shape))
        if sum(e.bytes for e in shards[-1]) + entry.bytes > shard_bytes and shards[-1]:
            shards.append([])
        shards[-1].append(entry)
    generator = torch.Generator().manual_seed(0)
    place = {}
    noise = torch.randn(1 << 22, generator=generator).mul_(0.02).to(torch.bfloat16)

    def numbers(entry: Entry) -> Any:
        left = entry.bytes // 2
        while left:  # the same noise, turned and scaled, so that making it costs little
            part = noise.roll(left % 9973)[: min(left, len(noise))] * float(0.5 + torch.rand((), generator=generator))
            left -= len(part)
            yield part

    for i, entries in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        write(folder / name, entries, {"format": "pt"}, numbers)
        place.update({entry.name: name for entry in entries})
    (folder / INDEX).write_text(index_text(place, sum(e.bytes for entries in shards for e in entries)))


def forget(folder: Path) -> None:
    """Clause 3: the next reader shall read from the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copied(source: Path, target: Path) -> float:
    """Seconds to copy a folder."""
    began = time.perf_counter()
    target.mkdir()
    for path in sorted(source.iterdir()):
        with path.open("rb") as file, (target / path.name).open("wb") as other:
            shutil.copyfileobj(file, other, PIECE)
            other.flush()
            os.fsync(other.fileno())
    return time.perf_counter() - began


def slimmed(source: Path, target: Path, layers: int, ratio: float) -> dict[str, Any]:
    """Clause 2, in this process."""
    import fxprune.io

    torch.set_num_threads(1)
    began = time.perf_counter()
    result = fxprune.io.slim_checkpoint(
        source, target, ratio, decoder(layers), torch.zeros(1, 8, dtype=torch.int64, device="meta")
    )
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_bytes": peak, "bytes": result.bytes, "achieved": result.plan.achieved}


def main() -> None:
    from machine import facts, line

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--shard", type=float, default=4.0, help="gigabytes per file")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--folder", type=Path, help="where to write (a temporary folder by default)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--slim", nargs=2, metavar=("SOURCE", "TARGET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    layers = layers_for(options.gigabytes)
    if options.slim:
        print(json.dumps(slimmed(Path(options.slim[0]), Path(options.slim[1]), layers, options.ratio)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, copy, slim = (Path(folder) / name for name in ("source", "copy", "slim"))
        source.mkdir()
        synthesize(source, layers, int(options.shard * 1e9))
        total = sum(path.stat().st_size for path in source.iterdir())
        print(line())
        print(f"{layers} layers, {total / 1e9:.2f} GB in {len(list(source.iterdir())) - 1} files", flush=True)
        forget(source)
        seconds = copied(source, copy)
        shutil.rmtree(copy)
        print(f"copy: {seconds:.1f} s, {total / seconds / 1e6:.0f} MB/s", flush=True)
        forget(source)
        command = [sys.executable, __file__, "--gigabytes", str(options.gigabytes), "--ratio", str(options.ratio)]
        run = subprocess.run([*command, "--slim", str(source), str(slim)], stdout=subprocess.PIPE, check=True, text=True)  # noqa: S603
        found = json.loads(run.stdout.splitlines()[-1])
        share = seconds / found["seconds"]
        print(
            f"slim: {found['seconds']:.1f} s, {total / found['seconds'] / 1e6:.0f} MB/s of the original, {share:.2f} of copying"
        )
        print(f"peak resident memory: {found['peak_bytes'] / 1e9:.2f} GB; {found['bytes'] / 1e9:.2f} GB are left")
        if options.json:
            figures = {"original_bytes": total, "copy_seconds": seconds, "speed_of_copying": share, **found, "machine": facts()}
            options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
