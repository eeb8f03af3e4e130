"""What the fused losses are compared with, and how: dense formulas, and seconds and bytes side by side."""
