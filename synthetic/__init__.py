"""What happens in the setting in which the theory is exact? Data, small trainable models, experiments on them."""
