"""Many backbones on the user's own pictures and machine: accuracy, speed, memory and cost in one table. It begins in `command.py`."""
