"""Augmentation as batched tensor operations on the device: one file an idea, formulas as functions."""
