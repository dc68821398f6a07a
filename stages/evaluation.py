"""Parts of stage three: metrics, protocols, pooling, regions, consistency, latency, saved predictions.

The stage itself is `stages/evaluate.py`. Read `protocols.py` first, then `metrics.py`.
"""
