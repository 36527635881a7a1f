"""Augmentation of what a discriminator sees: ADA and DiffAugment."""
