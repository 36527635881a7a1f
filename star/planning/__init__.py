"""What a training needs, before it is begun."""
