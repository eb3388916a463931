"""How far an expected value may be off behind a maximum over a window.

1. A constant goes through a maximum as it is. So does what is known of a random variable: its expected value is that of one element, and the
   maximum of several has a larger one (a minimum a smaller one).
2. Of ``k`` independent elements of one distribution it is larger by at most ``(k - 1) / sqrt(2 k - 1)`` standard deviations (Gumbel 1954; Hartley and
   David 1954), of neighbours that go together by less. An activation that grows changes nothing about that: it can stand before or behind.
3. Windows behind one another multiply. A norm's output starts anew, its statistics are those of what arrives; so does a contraction's, of which
   constants alone are known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from fxprune.absorb.operators import CONTRACTION, NORM, Operation

PLAIN = frozenset(f"max_pool{rank}d" for rank in (1, 2, 3))
WHOLE = frozenset(f"adaptive_max_pool{rank}d" for rank in (1, 2, 3)) | {"amax", "amin"}


def window(
    node: fx.Node, what: Operation, module: nn.Module | None, before: Sequence[int], shapes: Sequence[Sequence[int]]
) -> int:
    """Clause 3: the elements that each element of a node's value is an extreme of.

    Args:
        node: of the program; ``what`` it does, and the ``module`` it calls.
        what: see above.
        module: see above.
        before: the same of its operands.
        shapes: of its first operand and of its value, where they are tensors.
    """
    if what.name in NORM or what.name in CONTRACTION or not before:
        return 1
    own = 1
    if what.name in PLAIN:
        size: Any = getattr(module, "kernel_size", node.kwargs.get("kernel_size", node.args[1] if len(node.args) > 1 else 1))
        sides = size if isinstance(size, (tuple, list)) else (size,) * int(what.name[-2])
        own = math.prod(side for side in sides if isinstance(side, int))
    elif what.name in WHOLE and len(shapes) == 2:
        own = math.ceil(math.prod(shapes[0]) / max(1, math.prod(shapes[1])))
    return max(before) * own


def excess(elements: int) -> float:
    """Clause 2, in standard deviations."""
    return (elements - 1) / math.sqrt(2 * elements - 1)
