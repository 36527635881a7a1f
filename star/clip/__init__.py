"""clip-emoji: a small CLIP, whose text tower reads the prompts."""
