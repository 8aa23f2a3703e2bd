"""The simulated robot, and the evaluations that run on it."""

import logging


def _is_news(record: logging.LogRecord) -> bool:
    """robosuite advises to make a private macro file whenever it is imported; nothing here needs one."""
    text = record.getMessage()
    return "macro file" not in text and "setup_macros" not in text


logging.getLogger("robosuite_logs").addFilter(_is_news)
