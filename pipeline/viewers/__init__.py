"""Files for viewers: a page for a browser, a recording for Rerun, messages for Foxglove and rviz2.

The clouds are made elsewhere (`stages/inference`). Read `cloud_page.py` first.
"""
