"""What demonstrations keep of the cameras' 256 x 256 px images.

`sim/demonstrations/collect_demos.py` writes it and `dataset.py` reads it.
"""

AGENTVIEW_CROP = (48, 24, 216, 256)  # top, left, bottom, right, px
WRIST_SIZE = 96  # px, the whole image, area-averaged
