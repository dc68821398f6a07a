"""A student as others get it: its model card, and the licences of what it was made from.

How it is exported and measured lies elsewhere (`runs`, `stages/deploy`). Read `card.py` first.
"""
