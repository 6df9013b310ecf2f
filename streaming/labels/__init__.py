"""Labels that arrive late: attribution windows, how training deals with them, and how long they take."""
