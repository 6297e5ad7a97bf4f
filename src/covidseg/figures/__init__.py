"""What the report and the tracker both draw."""
