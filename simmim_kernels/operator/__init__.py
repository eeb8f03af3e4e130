"""The pairwise statistic as a differentiable PyTorch operator, whichever backend computes it."""
