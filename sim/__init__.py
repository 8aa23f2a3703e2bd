"""The simulated robot, and the evaluations that run on it.

Begin with `run_libero.py` for evaluations, `demo.py` for the whole chain over ROS; rooms below hold how.
Imports `policies` and `vega3d_ros`; neither imports it.
"""

import logging

from policies.interrupts import quiet_while_imported

quiet_while_imported()


def _is_news(record: logging.LogRecord) -> bool:
    """robosuite advises to make a private macro file whenever it is imported; nothing here needs one."""
    text = record.getMessage()
    return "macro file" not in text and "setup_macros" not in text


logging.getLogger("robosuite_logs").addFilter(_is_news)
