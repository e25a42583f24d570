"""All that touches ``nn.Module``: specs, checkpoints, examples, engines, directions, training."""
