"""Parts of stage two: checks before the first step, schedule, augmentation, the optimiser step, log.

The stage itself is `stages/train_student.py`. Read `step.py` first.
"""
