"""Point clouds to turn: a page for a browser, a recording for Rerun."""
