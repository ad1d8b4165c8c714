"""``streambank view``: one page about all results of a run, pictures of states and sounds, detections drawn onto a video."""
