"""What `lerobot_dataset.py` is made of: statistics of columns and pictures, and whose a dataset is.

Begin with `ownership.py`.
"""
