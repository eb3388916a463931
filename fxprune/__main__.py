"""``python -m fxprune`` is the command ``fxprune``; for ``torchrun --nproc-per-node N -m fxprune train ...``."""

from fxprune.cli import main

if __name__ == "__main__":
    main()
