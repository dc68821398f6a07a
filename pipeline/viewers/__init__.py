"""Point clouds for viewers: a page for a browser, a recording for Rerun.

The clouds are made elsewhere (`stages/inference`). Read `cloud_page.py` first.
"""
