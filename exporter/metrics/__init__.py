"""From totals to families and their text."""
