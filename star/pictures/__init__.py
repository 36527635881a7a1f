"""Pictures as files: their names, what they say of how they were made, lists of prompts, sheets, strips and films."""
