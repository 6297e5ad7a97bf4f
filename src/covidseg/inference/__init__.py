"""From a scan to masks and figures."""
