"""Parts of stage one: the teacher's input and products, the size of a cache, its verification, fitted bins.

The stage itself is `stages/teacher_cache.py`. Read `products.py` first.
"""
