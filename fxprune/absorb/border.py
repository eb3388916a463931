"""The border map: a constant image seen through zero padding.

1. Constant input channels contribute ``conv(c * ones)`` to a convolution's output: in the interior the sum of the kernel, less where the window
   reaches into the padding. With the kernel ``K = sum_a W[:, a] c[a]`` of one input channel that is ``conv(ones, K)``, for every size of
   image.
2. The image of ones has one sample and one channel: the map costs 1 / (input channels * samples) of the convolution it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def bordered(
    made: Tensor,
    image: Tensor,
    kernel: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int] | None = None,
) -> Tensor:
    """Clause 1: ``made + conv(ones, kernel)``, with ones of the size of ``image``.

    Args:
        made: what the convolution made of the image, ``(n, out, *)``.
        image: its input, ``(n, channels, *)``; only its size is read.
        kernel: ``(out, 1, *window)``; ``(1, out, *window)`` of a transposed convolution.
        stride: the convolution's, as are padding and dilation.
        padding: see above.
        dilation: see above.
        output_padding: of a transposed convolution; None for others.
    """
    spatial = len(stride)
    ones = image.new_ones((1, 1, *[image.size(2 + i) for i in range(spatial)]))
    if output_padding is None:
        return made + CONVOLUTIONS[spatial - 1](ones, kernel, None, stride, padding, dilation)
    more = TRANSPOSED[spatial - 1](ones, kernel, None, stride, padding, output_padding, 1, dilation)
    return made + more
