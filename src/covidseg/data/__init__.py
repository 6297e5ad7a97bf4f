"""From raw scans to patches on the device."""
