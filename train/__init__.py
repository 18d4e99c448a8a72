"""Compact PyTorch trainer: configs, data, nets, saliency, coupling, losses, phases, checkpoints."""
