"""One thin function a verb; the logic lives in the rooms that they call."""
