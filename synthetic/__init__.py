"""The setting in which the theory is exact: data, small trainable mixtures of experts, experiments on them."""
