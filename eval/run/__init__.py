"""One evaluation, from a benchmark to a record."""
