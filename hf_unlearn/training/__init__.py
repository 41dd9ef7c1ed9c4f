"""Training: the Trainer and what it is made of."""
