"""Small CLIPs: guide-emoji, which reads prompts and guides GANs, and clip-emoji, which scores."""
