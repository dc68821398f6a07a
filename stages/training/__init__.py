"""Parts of stage two: schedule, augmentation, the optimiser step, checks before the first one, log.

The stage itself is `stages/train_student.py`. Read `step.py` first.
"""
