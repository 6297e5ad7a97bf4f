"""Raw scans and masks -> a prepared folder."""
