"""Training: the U-Net, its settings, losses and metrics, the loop, checkpoints."""
