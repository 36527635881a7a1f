"""The multi-scale image tokenizer: pictures to codes of every scale, and back."""
