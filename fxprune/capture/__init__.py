"""Capture: nn.Module -> fx graph over a structural clone of the model."""
