"""Our speed against a bare PyTorch loop and against Flower's own simulation: ``python -m scripts.benchmark``."""
