"""Heat spreading over a plate, then a least-squares fit: temporaries of several MiB, made and dropped all the time."""

import numpy as np

random = np.random.default_rng(1)
plate = random.random((1024, 1024))
for _ in range(40):
    around = np.roll(plate, 1, 0) + np.roll(plate, -1, 0) + np.roll(plate, 1, 1) + np.roll(plate, -1, 1)
    plate = plate + 0.2 * (around - 4 * plate)
samples = random.random((60_000, 60))
weights = np.linalg.lstsq(samples, samples @ np.arange(60.0), rcond=None)[0]
order = np.argsort(plate, axis=None)
print(plate.mean(), weights.sum(), order[0])
