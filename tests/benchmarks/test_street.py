"""A sensor of few beams keeps the points that lie on them, as the sensor itself sees them."""

import numpy as np
from benchmarks.street import on_beams


def test_points_on_a_beam_are_seen_from_the_sensor_by_hand():
    """The sensor sits 2 m up: 10 m away, 1.65 m up is -2.00 degrees; seen from the ground it would be 9.4."""
    lidar_from_ground = np.eye(4)
    lidar_from_ground[2, 3] = -2.0
    points_m = np.array([[10.0, 0, 1.65], [0, -10.0, 1.65], [10.0, 0, 1.6], [10.0, 0, 2.0], [-20.0, 0, 2.17]])
    # elevations: -2.00, -2.00, -2.29, 0, 0.49 degrees; a beam is 0.25 degrees wide to each side
    assert on_beams(points_m, lidar_from_ground, [-2.0]).tolist() == [True, True, False, False, False]
    assert on_beams(points_m, lidar_from_ground, [-2.0, 0.5]).tolist() == [True, True, False, False, True]
    assert not on_beams(points_m, np.eye(4), [-2.0]).any()
