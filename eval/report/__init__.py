"""Records side by side: tables, plots, galleries, one page."""
