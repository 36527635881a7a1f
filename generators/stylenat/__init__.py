"""StyleNAT (Walton et al. 2022)."""
