"""The models: ``nn.Module`` classes with plain arguments, the first two ``input_shape`` and ``num_classes``."""
