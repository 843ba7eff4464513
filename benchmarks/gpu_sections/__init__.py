"""What `gpu.py` measures: one module per part of the plan, each with the figures that arithmetic expects."""
