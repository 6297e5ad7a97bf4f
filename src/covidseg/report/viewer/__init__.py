"""The page's viewer: scans with every method's contours, slice by slice, and their surfaces; nothing is fetched."""
