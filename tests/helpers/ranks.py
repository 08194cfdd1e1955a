"""Similarities whose ranks and recalls are counted by hand."""

import numpy as np

# Rows: photos 0 to 3. Columns: their captions 0 to 7, two each. Own captions are set apart.
SIMILARITY = np.array([
    [0.9, 0.2,  0.8, 0.1,  0.3, 0.0,  0.4, 0.5],  # best own 0.9: nothing above
    [0.6, 0.7,  0.5, 0.4,  0.8, 0.1,  0.2, 0.3],  # best own 0.5: 0.6, 0.7, 0.8 above
    [0.1, 0.3,  0.2, 0.5,  0.4, 0.6,  0.0, 0.7],  # best own 0.6: 0.7 above
    [0.8, 0.4,  0.7, 0.6,  0.5, 0.9,  0.1, 0.0],  # best own 0.1: all six others above
])
PAIRS = np.repeat(np.arange(4), 2)  # each caption's photo
I2T, T2I = [0, 3, 1, 6], [0, 3, 2, 2, 2, 1, 2, 3]
HAND_METRICS = {
    "i2t_r1": 25.0, "i2t_r5": 75.0, "i2t_r10": 100.0, "i2t_medr": 3.0, "i2t_meanr": 3.5,
    "t2i_r1": 12.5, "t2i_r5": 100.0, "t2i_r10": 100.0, "t2i_medr": 3.0, "t2i_meanr": 2.875,
    "rsum": 412.5,
}
