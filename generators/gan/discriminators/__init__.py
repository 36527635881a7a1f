"""The discriminators: projected (StyleGAN-T), StyleGAN2's, and of wavelets (StyleNAT)."""
