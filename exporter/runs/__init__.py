"""From pages to totals: every run once."""
