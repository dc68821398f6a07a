"""Point clouds for viewers: a page for a browser, a recording for Rerun."""
