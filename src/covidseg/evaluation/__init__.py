"""What is measured, on which cases, and how sure it is."""
