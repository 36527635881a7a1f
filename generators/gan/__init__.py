"""What the style-based GANs share: trainer, losses, augmentation, conditioning, discriminators."""
